"""SIGTERM to a service that still takes requests for a while, so that balancers see in time that it ends."""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from api.test_drain import Ledger, one_client
from chaos.bodies import HEADERS, PATH, focal
from chaos.http import BrokenError, Connection, head
from chaos.service import Service, served
from lossd.engine import worker_process
from serving import certificate, command

PERIOD_S = 2.0
LONG_MS = 60_000
END_S = 20  # far less than LONG_MS

fronts = pytest.mark.parametrize("fronts", [1, 2], ids=["one front", "two fronts"])


async def until_not_ready(port: int) -> None:
    """Ask, each time over a new connection, until the service says that it shuts down."""
    while True:
        connection = await Connection.open(port)
        answer = await connection.ask("GET", "/health/ready", {})
        await connection.close()
        if answer.status != 200:
            assert (answer.status, answer.problem) == (503, "unavailable")
            assert b"the service is shutting down" in answer.body
            assert answer.headers["connection"] == "close"
            return
        await asyncio.sleep(0.01)


def refuses(port: int) -> bool:
    with suppress(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=5)
        return False
    return True


@fronts
def test_requests_of_new_connections_are_answered_until_the_period_ends(fronts: int) -> None:
    """Clients that keep their connections are told to close them, and those that come are, with their first answer."""
    ledger = Ledger()

    async def client(port: int, begun: float) -> int:
        """Ask over one connection after the other; return how many came after the signal."""
        late = 0
        while time.monotonic() - begun < 0.6 * PERIOD_S:
            connection = await Connection.open(port)
            answer = await connection.ask("POST", PATH, HEADERS, focal())
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            with pytest.raises(BrokenError):
                await connection.ask("POST", PATH, HEADERS, focal())
            await connection.close()
            late += 1
            await asyncio.sleep(0.05)
        return late

    async def run(service: Service) -> list[int]:
        stopped = asyncio.Event()
        kept = [asyncio.ensure_future(one_client(service.port, 64, stopped, ledger)) for _ in range(8)]
        resting = [await Connection.open(service.port) for _ in range(2)]
        for connection in resting:
            assert "connection" not in (await connection.ask("POST", PATH, HEADERS, focal())).headers
        while ledger.answered < 40:
            await asyncio.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        await until_not_ready(service.port)
        stopped.set()
        come = await asyncio.gather(*(client(service.port, begun) for _ in range(4)))
        await asyncio.wait_for(asyncio.gather(*kept), END_S)
        asks, rests = resting
        answer = await asks.ask("POST", PATH, HEADERS, focal())
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await asyncio.wait_for(rests.reader.read(), END_S) == b"", "an idle connection is closed"
        assert time.monotonic() - begun >= PERIOD_S
        for connection in resting:
            await connection.close()
        return come

    with served(lame_duck_ms=int(PERIOD_S * 1000), fronts=fronts) as service:
        come = asyncio.run(run(service))
        assert service.process.wait(END_S) == 0
        assert refuses(service.port)
    assert all(come)
    assert (ledger.broken, ledger.others, ledger.close_notices) == ([], [], 8)


@fronts
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_period_and_accepted_requests_are_finished(
    fronts: int, second: signal.Signals
) -> None:
    body = focal(40_000)

    async def run(service: Service) -> None:
        arriving = await Connection.open(service.port)
        await arriving.send(head("POST", PATH, HEADERS, len(body)) + body[: len(body) // 2])
        service.process.send_signal(signal.SIGTERM)
        await until_not_ready(service.port)
        assert not refuses(service.port)
        service.process.send_signal(second)
        while not refuses(service.port):
            await asyncio.sleep(0.02)
        await arriving.send(body[len(body) // 2 :])
        answer = await arriving.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await arriving.close()

    with served(lame_duck_ms=LONG_MS, fronts=fronts) as service:
        asyncio.run(asyncio.wait_for(run(service), END_S))
        assert service.process.wait(END_S) == 0


@fronts
def test_ctrl_c_begins_no_period(fronts: int) -> None:
    with served(lame_duck_ms=LONG_MS, fronts=fronts) as service:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(END_S) == 0


def test_under_tls_and_for_lossd_health(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "service")
    context = ssl.create_default_context(cafile=cert)
    with (
        command(f"--tls-cert={cert}", f"--tls-key={key}", f"--lame-duck-ms={LONG_MS}") as (url, process, _),
        httpx.Client(base_url=url, verify=context, timeout=30) as kept,
    ):
        health = [sys.executable, "-m", "lossd.cli", "health", "--port", url.rpartition(":")[2]]
        assert worker_process.subprocess.run(health, capture_output=True, timeout=60).returncode == 0
        assert "connection" not in kept.get("/health/ready").headers
        process.send_signal(signal.SIGTERM)
        while (answer := kept.get("/health/ready")).status_code == 200:  # the signal is not there yet
            pass
        assert answer.json()["type"] == "/problems/unavailable"
        assert answer.headers["connection"] == "close"
        result = worker_process.subprocess.run(health, capture_output=True, text=True, timeout=60)
        assert result.returncode == 1
        assert "shutting down" in result.stderr
        answer = httpx.get(f"{url}/health/live", verify=context, timeout=30)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert process.poll() is None
    # `command` sends a second SIGTERM, after which the process ends at once


@fronts
def test_batches_of_runs_are_counted_in_the_period_and_kept(fronts: int, tmp_path: Path) -> None:
    settings = {"runs": tmp_path / "runs.db"}
    inputs = {"prediction": [2.0, -1.0, 0.5, -3.0], "target": [1, 0, 0, 1]}

    def put(service: Service, batch: int) -> httpx.Response:
        document = {"first": 4 * batch, "inputs": inputs}
        return httpx.put(f"{service.url}/v1/runs/late/batches/{batch}", json=document, timeout=30)

    with served(lame_duck_ms=LONG_MS, fronts=fronts, **settings) as service:
        definition = {"task": "binary", "metrics": ["accuracy"], "identity": "position"}
        assert httpx.put(f"{service.url}/v1/runs/late", json=definition, timeout=30).status_code == 201
        assert put(service, 0).status_code == 201
        service.process.send_signal(signal.SIGTERM)
        asyncio.run(until_not_ready(service.port))
        for batch in range(1, 5):
            answer = put(service, batch)
            assert (answer.status_code, answer.headers["connection"]) == (201, "close")
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(END_S) == 0
    with served(**settings) as service:
        found = httpx.get(f"{service.url}/v1/runs/late", timeout=30).json()
        assert found["counted"] == {"rows": 20, "entries": 20, "batches": 5}
