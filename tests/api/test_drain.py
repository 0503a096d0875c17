"""SIGTERM to a service process while clients send requests."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection

import pytest

from chaos.bodies import HEADERS, PATH, focal
from chaos.http import BrokenError, Connection, head
from chaos.service import Service, served
from lossd.api.http import connection as connection_module
from lossd.api.http.connection import LAST_REQUEST_S, Http
from serving import running

GRACE_S = 20
CLIENTS = 24


@pytest.fixture(params=[1, 2], ids=["one front", "two fronts"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with served(drain_timeout_ms=GRACE_S * 1000, fronts=request.param) as service:
        yield service


@dataclass
class Ledger:
    """What became of the requests."""

    answered: int = 0
    broken: list[str] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    close_notices: int = 0
    after: int = 0


async def one_client(port: int, rows: int, stopped: asyncio.Event, ledger: Ledger) -> None:
    """Ask over one connection until told that it ends."""
    connection = await Connection.open(port)
    try:
        while True:
            answer = await connection.ask("POST", PATH, HEADERS, focal(rows))
            if answer.status != 200:
                ledger.others.append(answer.status)
            ledger.answered += 1
            ledger.after += stopped.is_set()
            if answer.headers.get("connection") == "close":
                ledger.close_notices += 1
                return
    except BrokenError as error:
        ledger.broken.append(str(error))
    finally:
        await connection.close()


@pytest.mark.timed  # a client that sends nothing for LAST_REQUEST_S, because it gets no processor, loses its connection
@pytest.mark.parametrize("rows", [64, 24_000], ids=["small", "streamed"])
def test_under_load_no_request_fails_and_every_client_is_told_that_its_connection_ends(
    service: Service, rows: int
) -> None:
    ledger = Ledger()

    async def run() -> None:
        stopped = asyncio.Event()
        clients = [asyncio.ensure_future(one_client(service.port, rows, stopped, ledger)) for _ in range(CLIENTS)]
        while ledger.answered < 2 * CLIENTS:
            await asyncio.sleep(0.01)
        stopped.set()
        service.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*clients), GRACE_S + 10)

    begin = time.monotonic()
    asyncio.run(run())
    assert (ledger.broken, ledger.others) == ([], [])
    assert ledger.close_notices == CLIENTS
    assert ledger.after >= CLIENTS
    assert service.process.wait(GRACE_S) == 0
    assert time.monotonic() - begin < GRACE_S + 20


@pytest.mark.timed
def test_what_is_under_way_is_finished_and_what_stalls_is_not_waited_for_beyond_the_grace_time() -> None:
    body = focal(40_000)

    async def run(service: Service) -> float:
        stalled, arriving = [await Connection.open(service.port) for _ in range(2)]
        for connection in (stalled, arriving):
            await connection.send(head("POST", PATH, HEADERS, len(body)) + body[: len(body) // 2])
        await asyncio.sleep(0.3)
        begin = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        with pytest.raises(ConnectionRefusedError):
            await Connection.open(service.port)
        await arriving.send(body[len(body) // 2 :])
        answer = await arriving.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await asyncio.to_thread(service.process.wait, 30)
        for connection in (stalled, arriving):
            await connection.close()
        return time.monotonic() - begin

    with served(drain_timeout_ms=2000) as service:
        took_s = asyncio.run(run(service))
        assert service.process.returncode == 0
    assert 1.9 < took_s < 6


async def asks_last(connection: Connection) -> None:
    """Ask, and see that the request is answered and that the connection ends with the answer."""
    answer = await connection.ask("POST", PATH, HEADERS, focal())
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    await connection.close()


async def port_closes(port: int) -> None:
    """Wait until a service has begun to end."""
    with suppress(ConnectionRefusedError):
        while True:
            await (await Connection.open(port)).close()
            await asyncio.sleep(0.01)


def test_a_connection_at_rest_stays_open_while_another_is_answered() -> None:
    """Its client may still read its last answer; and the service cannot end yet anyway."""
    body = focal(40_000)

    async def run(service: Service) -> None:
        resting, arriving = [await Connection.open(service.port) for _ in range(2)]
        assert (await resting.ask("POST", PATH, HEADERS, focal())).status == 200
        await arriving.send(head("POST", PATH, HEADERS, len(body)) + body[: len(body) // 2])
        while (await asyncio.to_thread(service.held))[0] == 0:
            await asyncio.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        await port_closes(service.port)
        await asyncio.sleep(4 * LAST_REQUEST_S)
        await asks_last(resting)
        await arriving.send(body[len(body) // 2 :])
        answer = await arriving.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await arriving.close()

    with served(drain_timeout_ms=GRACE_S * 1000) as service:
        asyncio.run(run(service))
        assert service.process.wait(GRACE_S) == 0


def test_a_request_in_the_socket_is_answered_though_it_was_not_read_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service had no processor for a while: its clock says that the connection rests, and its socket that not."""
    monkeypatch.setattr(connection_module, "LAST_REQUEST_S", 0.0)
    protocols: list[Http] = []
    made = Http.connection_made
    monkeypatch.setattr(
        Http, "connection_made", lambda http, transport: protocols.append(http) or made(http, transport)
    )
    body = focal()
    with running(engine="inline") as service, closing(HTTPConnection("127.0.0.1", service.port, timeout=60)) as client:
        client.request("POST", PATH, body, HEADERS)
        assert client.getresponse().read()
        (http,) = protocols
        stands, sent = threading.Event(), threading.Event()

        def stand_still() -> None:
            http.end_with_next_answer()
            stands.set()
            sent.wait(60)
            http._close_if_quiet(http.server_state.total_requests)

        http.loop.call_soon_threadsafe(stand_still)
        assert stands.wait(60)
        client.request("POST", PATH, body, HEADERS)
        sent.set()
        answer = client.getresponse()
        assert (answer.status, answer.headers["connection"]) == (200, "close")


@pytest.mark.timed
def test_a_connection_at_rest_may_have_its_last_request_under_way(service: Service) -> None:
    """It was sent before its client could know; it is answered, and that the connection ends is said with it."""

    async def run() -> None:
        connection = await Connection.open(service.port)
        assert (await connection.ask("POST", PATH, HEADERS, focal())).status == 200
        fresh = await Connection.open(service.port)
        await asyncio.sleep(0.1)
        service.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.15)
        for late in (connection, fresh):
            await asks_last(late)

    asyncio.run(run())
    assert service.process.wait(GRACE_S) == 0
