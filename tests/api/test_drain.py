"""SIGTERM to a service process while clients send requests."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from chaos.bodies import HEADERS, PATH, focal
from chaos.http import BrokenError, Connection, head
from chaos.service import Service, served

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
    told: int = 0
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
                ledger.told += 1
                return
    except BrokenError as error:
        ledger.broken.append(str(error))
    finally:
        await connection.close()


@pytest.mark.parametrize("rows", [64, 40_000], ids=["small", "streamed"])
def test_under_load_no_request_fails_and_every_client_is_told_that_its_connection_ends(
    service: Service, rows: int
) -> None:
    ledger = Ledger()

    async def run() -> None:
        stopped = asyncio.Event()
        clients = [asyncio.ensure_future(one_client(service.port, rows, stopped, ledger)) for _ in range(CLIENTS)]
        while ledger.answered < 5 * CLIENTS:
            await asyncio.sleep(0.01)
        stopped.set()
        service.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*clients), GRACE_S + 10)

    begin = time.monotonic()
    asyncio.run(run())
    assert (ledger.broken, ledger.others) == ([], [])
    assert ledger.told == CLIENTS
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
            answer = await late.ask("POST", PATH, HEADERS, focal())
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            await late.close()

    asyncio.run(run())
    assert service.process.wait(GRACE_S) == 0
