"""Clients that exhaust the connections, and bodies that arrive as slowly as allowed."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from api.test_tls import openssl
from chaos.bodies import HEADERS, PATH, focal
from chaos.http import BrokenError, Connection, Response, head
from chaos.service import cpu_s
from lossd.api.http import time_limits
from serving import certificate, command, running

MOST = 4
KEY = "a-key-that-nobody-could-ever-guess-0123456789"
GET = b"GET /health/live HTTP/1.1\r\nHost: lossd\r\n"
NONE = b"GET /v1/none HTTP/1.1\r\nHost: lossd\r\n\r\n"
PROBES = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")


def test_probes_are_told_the_truth_when_all_connections_are_taken() -> None:
    async def run(port: int) -> None:
        crowd = [await Connection.open(port) for _ in range(MOST)]
        for connection in crowd:
            assert (await connection.ask("GET", "/health/live", {})).status == 200
        for path in PROBES:
            probe = await Connection.open(port)
            answer = await probe.ask("GET", path, {})
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            await probe.ended()
            await probe.close()
        surplus = await Connection.open(port)
        assert (await surplus.ask("GET", "/v1/losses", {})).status == 503
        for connection in [*crowd, surplus]:
            await connection.close()

    with running(engine="inline", max_connections=MOST) as service:
        asyncio.run(run(service.port))


def test_a_connection_too_many_that_asks_nothing_is_soon_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limits, "SURPLUS_HEAD_S", 0.2)

    async def run(port: int) -> float:
        crowd = [await Connection.open(port) for _ in range(MOST + 1)]
        begin = time.monotonic()
        await asyncio.wait_for(crowd[-1].ended(), 20)
        took_s = time.monotonic() - begin
        for connection in crowd:
            await connection.close()
        return took_s

    with running(engine="inline", max_connections=MOST, idle_timeout_ms=30_000) as service:
        assert asyncio.run(run(service.port)) < 15


def connected(port: int, data: bytes, *, reset: bool = False) -> socket.socket:
    """A connection that has sent something; if it is to be reset, it is closed so."""
    one = socket.create_connection(("127.0.0.1", port), timeout=60)
    one.sendall(data)
    if reset:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    return one


@contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    """Stop a process for the block, as a busy one that accepts nothing."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_what_a_client_sent_before_it_reset_its_connection_is_not_read() -> None:
    with command("--access-log=none") as (url, process, _):
        port = int(url.rpartition(":")[2])
        with stopped(process):
            for _ in range(50):
                connected(port, GET + b"a:\r\n" * 15_900, reset=True)
            left = connected(port, GET + b"a:\r\n" * 15_900)
        assert left.recv(12) == b"HTTP/1.1 431"
        left.close()
        (refused,) = re.findall(
            r"^lossd_requests_total\{.*head-too-large.* (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE
        )
        assert float(refused) == 1


def test_connections_are_accepted_however_busy_those_before_are() -> None:
    """Of 100 that come at once, the last is answered before those before have been answered 100 times each."""
    busy, waiting, requests = 16, 100, 400
    with command("--access-log=none") as (url, process, _), ExitStack() as stack:
        port = int(url.rpartition(":")[2])
        crowd = [stack.enter_context(connected(port, NONE * requests)) for _ in range(busy)]
        assert [one.recv(12) for one in crowd] == [b"HTTP/1.1 404"] * busy
        with stopped(process):
            late = [stack.enter_context(connected(port, GET + b"\r\n")) for _ in range(waiting)]
            before = sum(taken(one) for one in crowd)
        assert late[-1].recv(12) == b"HTTP/1.1 200"
        process.send_signal(signal.SIGSTOP)
        meanwhile = sum(taken(one) for one in crowd)
        process.send_signal(signal.SIGCONT)
        assert before + meanwhile < busy * requests, "the others were busy all the time"
        assert meanwhile < busy * waiting / 2


def test_few_connections_wait_to_be_accepted() -> None:
    """Of 700 that come at once, 512 find a place; the others try again when some were accepted."""
    with command("--access-log=none") as (url, process, _), ExitStack() as stack, stopped(process):
        poll = select.poll()
        for _ in range(700):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", int(url.rpartition(":")[2])))
            poll.register(one, select.POLLOUT)
        assert 500 < len(poll.poll(200)) < 520


def test_more_connections_than_files_leave_some_for_those_who_ask_for_health() -> None:
    """300 connections that ask nothing, and 200 files; health is not reset, and no core is busy."""
    with command("--idle-timeout-ms=120000", files=200) as (url, process, log), ExitStack() as stack:
        port = int(url.rpartition(":")[2])
        assert "200 files may be open" in log.readline() + log.readline()
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        begin_s, end = cpu_s([process.pid]), time.monotonic() + 30
        while not is_live(url):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert [is_live(url) for _ in range(5)] == [True] * 5
        assert cpu_s([process.pid]) - begin_s < 2


def is_live(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/health/live").status_code == 200
    return False


def taken(connection: socket.socket) -> int:
    """How many answers have arrived; they are read."""
    connection.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while chunk := connection.recv(1 << 20):
            count += chunk.count(b"HTTP/1.1 404")
    return count


def test_who_shows_no_key_rests_shorter_than_who_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limits, "ANONYMOUS_KEEP_ALIVE_S", 0.3)

    async def run(port: int) -> None:
        stranger, known = await Connection.open(port), await Connection.open(port)
        assert (await stranger.ask("GET", "/health/live", {})).status == 200
        assert (await known.ask("GET", "/health/live", {"X-API-Key": KEY})).status == 200
        await asyncio.wait_for(stranger.ended(), 20)
        assert (await known.ask("GET", "/health/live", {"X-API-Key": KEY})).status == 200
        for connection in (stranger, known):
            await connection.close()

    with running(engine="inline", api_key=KEY, keep_alive_timeout_ms=60_000) as service:
        asyncio.run(run(service.port))


@pytest.mark.parametrize("rows", [64, 40_000], ids=["gathered", "streamed"])
def test_a_body_slower_than_the_least_rate_is_given_up(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte comes in time, and it would take hours; what was taken for it is given back."""
    monkeypatch.setattr(time_limits, "RATE_WINDOW_S", 0.5)
    body = focal(rows)

    async def run(port: int) -> Response:
        connection = await Connection.open(port)
        await connection.send(head("POST", PATH, HEADERS, len(body)))

        async def trickle() -> None:
            try:
                for at in range(len(body)):
                    await connection.send(body[at : at + 1])
                    await asyncio.sleep(0.02)
            except BrokenError:
                pass

        sending = asyncio.ensure_future(trickle())
        answer = await asyncio.wait_for(connection.answer(), 30)
        sending.cancel()
        await connection.close()
        return answer

    with running(engine="inline", stream_bytes=1 << 20, min_body_bytes_per_s=1000) as service:
        answer = asyncio.run(run(service.port))
        service.wait_until(lambda e: e.in_progress == 0)
        assert (service.engine.pool.in_use, service.engine.budget.held_bytes) == (0, 0)
    assert (answer.status, answer.problem) == (408, "request-timeout")
    assert b"min_body_bytes_per_s" in answer.body


@openssl
def test_connections_that_do_not_agree_on_a_key_are_counted_and_timed(tmp_path: Path) -> None:
    """1000 that say nothing, where 64 may be served: probes are answered, and the crowd is gone in time."""
    cert, key = certificate(tmp_path, "crowd")
    trusted = ssl.create_default_context(cafile=str(cert))
    limits = {"LOSSD_MAX_CONNECTIONS": "64", "LOSSD_IDLE_TIMEOUT_MS": "4000"}
    with (
        command("--tls-cert", str(cert), "--tls-key", str(key), **limits) as (url, process, _),
        ExitStack() as crowd,
    ):
        at = httpx.URL(url).host, httpx.URL(url).port
        hanging = [crowd.enter_context(socket.create_connection(at, timeout=30)) for _ in range(1000)]
        for _ in range(3):
            assert httpx.get(f"{url}/health/live", verify=trusted, timeout=30).status_code == 200
            assert sockets_of(process.pid) <= 2 * 64 + 16
        begin = time.monotonic()
        for connection in hanging:
            assert ended(connection)
        assert time.monotonic() - begin < 30  # a minute by default


def sockets_of(pid: int) -> int:
    links = (os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink())
    return sum(link.startswith("socket:") for link in links)


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
