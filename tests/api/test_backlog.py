"""Connections in the backlog when the service stops."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket

import pytest
import uvicorn
import uvloop

from lossd.api import create_app, server
from lossd.api.http.connection import http_for
from lossd.configuration.settings import Settings
from lossd.engine import create_engine

GET = b"GET /health/live HTTP/1.1\r\nHost: lossd\r\n\r\n"
COUNT = 40


def test_is_answered_before_the_listener_is_closed() -> None:
    """Between two looks of the loop at its listener, as many connect as a machine under load keeps waiting."""
    settings = Settings(port=0, engine="inline")
    engine = create_engine(settings)
    config = uvicorn.Config(
        create_app(settings, engine), host="127.0.0.1", port=0, http=http_for(settings), ws="none", log_level="error",
        timeout_graceful_shutdown=5,
    )  # fmt: skip

    def connected(port: int) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", port), timeout=10)
        client.sendall(GET)
        return client

    def answer(client: socket.socket) -> bytes:
        with client:
            received = b""
            while chunk := client.recv(1 << 16):
                received += chunk
            return received

    async def run() -> list[bytes]:
        config.load()
        one = server._Server(config, config.loaded_app, engine, settings, lambda _: None, None)
        one.lifespan = config.lifespan_class(config)
        await one.startup()
        port = one.servers[0].sockets[0].getsockname()[1]
        clients = [connected(port) for _ in range(COUNT)]
        stopping = asyncio.ensure_future(one.shutdown())
        answers = await asyncio.gather(*(asyncio.to_thread(answer, client) for client in clients))
        await stopping
        with pytest.raises(ConnectionRefusedError):
            connected(port)
        return answers

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answers = runner.run(run())
    assert [received[:12] for received in answers] == [b"HTTP/1.1 200"] * COUNT


@pytest.mark.parametrize(("hard", "served"), [(256, 72), (1 << 20, 4096), (resource.RLIM_INFINITY, 4096)])
def test_too_few_files_for_the_connections_are_told_at_the_start(
    hard: int, served: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 256 files 64 are for other things, and half of three quarters of the rest are 72."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
    with caplog.at_level(logging.WARNING, "lossd.api"):
        assert server.within_files(Settings()).max_connections == served
    assert ("256 files" in caplog.text and "72 are served" in caplog.text) is (served < 4096)
