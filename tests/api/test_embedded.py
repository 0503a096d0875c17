"""lossd under a uvicorn server of another program: by lossd's own connections, and through the program's layers."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
import uvloop
from uvicorn.lifespan.on import LifespanOn

from lossd.api import create_app
from lossd.api.embedded import Embedded
from lossd.api.http.connection import Http
from lossd.api.http.uvicorn_internals import auto, replace_default_protocol
from lossd.configuration.settings import Settings
from lossd_client import LossClient

LAYER = b"x-layer"
LARGE = (1000, 1000)


class Layers:
    """A program that puts a header on every answer, and answers a path itself."""

    def __init__(self, app: Embedded) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (LAYER, b"1")]
            await send(message)

        if scope["path"] == "/-/healthz":
            await marked({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await marked({"type": "http.response.body", "body": b"ok"})
        else:
            await self.app(scope, receive, marked)


@dataclass
class Program:
    """The program: the service at ``own_url`` has lossd's connections, at ``layered_url`` uvicorn's."""

    embedded: Embedded
    own_url: str = ""
    layered_url: str = ""


async def run(program: Program, started: threading.Event, over: asyncio.Event) -> None:
    """Serve as Ray Serve does: the lifespan runs apart, and nobody says which connections to use."""
    lifespan = LifespanOn(uvicorn.Config(program.embedded, lifespan="on", log_config=None))
    await lifespan.startup()
    servers, urls = [], []
    for http in ("auto", "httptools"):
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            lambda: Layers(program.embedded), factory=True, http=http, lifespan="off", log_config=None
        )  # type: ignore[arg-type]
        server = uvicorn.Server(config)
        servers.append((server, asyncio.create_task(server.serve(sockets=[listener]))))
        urls.append(f"http://127.0.0.1:{listener.getsockname()[1]}")
    program.own_url, program.layered_url = urls
    started.set()
    await over.wait()
    for server, task in servers:
        server.should_exit = True
        await task
    await lifespan.shutdown()


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    settings = Settings(engine="inline", host="0.0.0.0", port=0, threads=1, runs="off")
    loop, started, over = uvloop.new_event_loop(), threading.Event(), asyncio.Event()
    program = Program(Embedded(create_app(settings), settings, "/-/"))
    before = auto.AutoHTTPProtocol
    replace_default_protocol(program.embedded.connection)
    thread = threading.Thread(target=loop.run_until_complete, args=(run(program, started, over),), daemon=True)
    try:
        thread.start()
        assert started.wait(30)
        yield program
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)
        replace_default_protocol(before)
    assert not thread.is_alive()
    loop.close()


def test_own_connections_answer_past_the_layers(program: Program) -> None:
    with httpx.Client(base_url=program.own_url) as client:
        assert LAYER.decode() not in client.get("/health/ready").headers
        checks = program.embedded.passed_on
        assert client.get("/-/healthz").headers[LAYER.decode()] == "1"
        assert program.embedded.passed_on == checks + 1
    with httpx.Client(base_url=program.layered_url) as client:
        assert client.get("/health/ready").headers[LAYER.decode()] == "1"


@pytest.mark.parametrize("way", ["own", "layered"])
def test_both_ways_give_the_right_answer(program: Program, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poured = []
    receive_into = Http.receive_into

    async def counted(http: Http, buffer: Any) -> None:
        poured.append(buffer.missing)
        await receive_into(http, buffer)

    monkeypatch.setattr(Http, "receive_into", counted)
    prediction, target = np.random.default_rng(0).standard_normal((2, *LARGE), dtype=np.float32)
    difference = prediction.astype(np.float64) - target
    with LossClient(getattr(program, f"{way}_url")) as client:
        answer = client.evaluate("mse", prediction, target)
    assert answer.loss == pytest.approx(np.mean(difference**2), rel=1e-5)
    np.testing.assert_allclose(answer.gradients["prediction"], 2 * difference / difference.size, rtol=1e-5, atol=1e-12)
    assert len(poured) == (way == "own"), "a large body is read into its slab by lossd's connections alone"


def test_refusals_by_own_connections_are_counted(program: Program) -> None:
    host, _, port = program.own_url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"application/problem+json" in connection.recv(4096)
    page = httpx.get(f"{program.own_url}/metrics").text
    assert re.search(r'^lossd_requests_total\{.*outcome="malformed-request"\} 1\.0$', page, re.MULTILINE)


def test_a_server_takes_the_replaced_connections(program: Program) -> None:
    """A release of uvicorn that no longer does so fails here; under Ray the slower way would be taken."""
    config = uvicorn.Config(program.embedded, log_config=None)
    config.load()
    assert config.http_protocol_class == program.embedded.connection
