"""Attempts in which no byte moves: which are sent again, and which are waited for. Both clients, real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from client.fake import Caller, FakeService, Reply, Request, evaluation
from lossd_client.calls import Stalled
from lossd_client.connections import PREFACE, Interruptible, Patience, wait_below
from lossd_client.errors import ConnectionFailed, LossdError
from serving import certificate

LARGE = np.zeros((1, 21, 512, 512), np.float32)
CLASSES = np.zeros((1, 512, 512), np.int64)
Credentials = tuple[Path, Path]
SMALL = (np.zeros((4, 3), np.float32), np.zeros(4, np.int64))


class Hole:
    """Takes connections and never answers; reads at most ``taken`` bytes of each."""

    def __init__(self, taken: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        self.taken = taken
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = self.listener.accept()[0]
                self.connections.append(connection)
                left = self.taken
                while left > 0 and (got := len(connection.recv(min(left, 1 << 16)))):
                    left -= got

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        for each in [self.listener, *self.connections]:
            each.close()


@pytest.fixture(params=[0, 10 << 20], ids=["nothing", "some"])
def hole(request: pytest.FixtureRequest) -> Iterator[Hole]:
    hole = Hole(request.param)
    yield hole
    hole.close()


@pytest.mark.parametrize("inputs", [SMALL, (LARGE, CLASSES)], ids=["small", "large"])
def test_an_attempt_that_stalls_is_sent_to_another_address(
    inputs: tuple[Any, Any], hole: Hole, ask: Caller, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossd_client.calls.PROBE_S", 0.3)
    monkeypatch.setattr("lossd_client.calls.GRACE_S", 0.2)
    monkeypatch.setattr("lossd_client.addresses.random.shuffle", lambda items: None)
    begun = time.monotonic()
    answer = ask(f"{hole.url},{service.url}", "evaluate", "cross_entropy", *inputs, client={"stall_s": 0.3})
    assert answer.loss == 0.5
    assert len(hole.connections) >= 1
    assert len(service.requests) == 1
    assert time.monotonic() - begun < 15


def test_the_only_address_stalls_within_the_deadline(hole: Hole, ask: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossd_client.calls.PROBE_S", 0.1)
    monkeypatch.setattr("lossd_client.calls.GRACE_S", 0.1)
    with pytest.raises(ConnectionFailed, match=r"no byte moved for 0\.2 s, and /health/live was not answered either"):
        ask(hole.url, "evaluate", "cross_entropy", *SMALL, client={"stall_s": 0.2, "retries": 1})
    assert len(hole.connections) >= 1


def test_a_slow_service_that_lives_is_waited_for(ask: Caller, service: FakeService) -> None:
    def slow(request: Request) -> Reply:
        return Reply(body=b"{}") if request.path == "/health/live" else evaluation()

    service.default = slow
    service.replies.append(Reply(200, evaluation().headers, evaluation().body, delay_s=1.2))
    assert ask(service.url, "evaluate", "cross_entropy", *SMALL, client={"stall_s": 0.3}).loss == 0.5
    paths = [request.path for request in service.requests]
    assert paths.count("/v1/evaluate") == 1, "it was not dropped"
    assert paths.count("/health/live") >= 2


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """A certificate of this machine, and its key."""
    return certificate(tmp_path_factory.mktemp("tls"), "server")


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(
    request: pytest.FixtureRequest, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> ssl.SSLContext | None:
    """The context of a server, whose certificate the clients trust; or None for a connection without TLS."""
    monkeypatch.setenv("SSL_CERT_FILE", str(credentials[0]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*credentials)
    return context if request.param else None


def test_a_service_that_reads_slowly_and_lives_is_waited_for(
    ask: Caller, tls: ssl.SSLContext | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's buffers are full for a while, in the middle of a chunk. Session tickets are no answer."""
    monkeypatch.setattr("lossd_client.connections.LOOK_S", 0.1)
    service = FakeService(tls=tls)
    handler = service._server.RequestHandlerClass
    original = handler.do_GET  # type: ignore[attr-defined]

    def later(self: Any) -> None:
        if self.path == "/v1/evaluate":
            time.sleep(1.2)
        original(self)

    monkeypatch.setattr(handler, "do_POST", later)
    try:
        assert ask(service.url, "evaluate", "cross_entropy", LARGE, CLASSES, client={"stall_s": 0.3}).loss == 0.5
    finally:
        service.stop()
    bodies = [request for request in service.requests if request.path == "/v1/evaluate"]
    assert len(bodies) == 1
    assert bodies[0].tensors["prediction"].shape == LARGE.shape
    assert len(service.requests) > 1


@pytest.mark.timed
def test_bytes_that_trickle_are_no_stall(ask: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else answers, but a byte moves now and then."""
    monkeypatch.setattr("lossd_client.calls.PROBE_S", 0.1)
    whole = evaluation(gradient__prediction=np.zeros(64, np.float32))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.safetensors\r\nContent-Length: %d\r\n\r\n" % len(
        whole.body
    )
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with listener.accept()[0] as connection:
            connection.recv(1 << 20)
            connection.sendall(head)
            step = len(whole.body) // 10
            for at in range(0, len(whole.body), step):
                time.sleep(0.15)
                connection.sendall(whole.body[at : at + step])

    threading.Thread(target=answer, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with listener:
        assert ask(url, "evaluate", "cross_entropy", *SMALL, client={"stall_s": 0.6, "retries": 0}).loss == 0.5


@pytest.mark.timed
def test_the_time_out_holds_while_a_service_lives(ask: Caller, service: FakeService) -> None:
    service.replies.append(Reply(delay_s=3.0))
    service.default = lambda request: Reply(body=b"{}")
    begun = time.monotonic()
    with pytest.raises(ConnectionFailed, match=r"did not answer within 0\.5 s"):
        ask(service.url, "evaluate", "cross_entropy", *SMALL, client={"stall_s": 0.2, "timeout_s": 0.5})
    assert time.monotonic() - begun < 2.5


@pytest.mark.parametrize("stall_s", [15.0, 100.0], ids=["stalls", "never stalls"])
@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nsorry", b""], ids=["answers", "ends"]
)
def test_a_proxy_that_gives_up_while_the_body_is_sent_is_heard(
    reply: bytes, tls: ssl.SSLContext | None, stall_s: float, ask: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads no more, and keeps the connection open, as HAProxy does whose replica has vanished."""
    monkeypatch.setattr("lossd_client.connections.LOOK_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http{'s' if tls else ''}://127.0.0.1:{listener.getsockname()[1]}"

        def give_up() -> None:
            taken = listener.accept()[0]
            with tls.wrap_socket(taken, server_side=True) if tls else taken as connection:
                connection.recv(1 << 16)
                connection.sendall(reply)
                connection.shutdown(socket.SHUT_WR)
                given_up.wait(60)

        given_up = threading.Event()
        thread = threading.Thread(target=give_up)
        thread.start()
        options = {"retries": 0, "timeout_s": 40, "stall_s": stall_s}
        try:
            with pytest.raises(LossdError) as raised:
                ask(url, "evaluate", "cross_entropy", LARGE, CLASSES, client=options)
        finally:
            given_up.set()
            thread.join()
    assert not isinstance(raised.value.__cause__, Stalled)
    assert ("answers with status 502" if reply else "Server disconnected") in str(raised.value)


def test_what_comes_over_http2_ends_no_write(ask: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames come at any time, in a client of the caller's own."""
    monkeypatch.setattr("lossd_client.connections.LOOK_S", 0.1)
    received = bytearray()

    def take() -> None:
        with listener.accept()[0] as connection:
            connection.sendall(b"frame")
            time.sleep(0.5)
            while data := connection.recv(1 << 20):
                received.extend(data)

    async def send_async(port: int) -> bytes:
        async with httpx.AsyncClient() as http:
            wait_below(http)
            stream = await http._transport._pool._network_backend.connect_tcp("127.0.0.1", port)  # type: ignore[attr-defined]
            for each in (PREFACE, LARGE.tobytes()):
                await stream.write(each, Interruptible(60))
            frame: bytes = await stream.read(1 << 10)
            await stream.aclose()
            return frame

    def send(port: int) -> bytes:
        with httpx.Client() as http:
            wait_below(http)
            stream = http._transport._pool._network_backend.connect_tcp("127.0.0.1", port)  # type: ignore[attr-defined]
            for each in (PREFACE, LARGE.tobytes()):
                stream.write(each, Patience(60, 60, lambda: True))
            frame: bytes = stream.read(1 << 10)
            stream.close()
            return frame

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=take)
        thread.start()
        port = listener.getsockname()[1]
        assert (send(port) if ask.colour == "sync" else asyncio.run(send_async(port))) == b"frame"
        thread.join()
    assert len(received) == len(PREFACE) + LARGE.nbytes
