"""A greedy client with 64 connections and a modest one with 2: what the one costs the other."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos.bodies import HEADERS, PATH, focal
from chaos.http import Connection
from chaos.service import Service

GREEDY, MODEST = "greedy", "modest"
KEYS = {name: f"{name}-key-of-a-test-{name}" for name in (MODEST, GREEDY)}
CONNECTIONS = {GREEDY: 64, MODEST: 2}


@dataclass(frozen=True)
class Served:
    """How a client was served."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Shares:
    """A modest client by itself, then beside a greedy one; and that one."""

    alone: Served
    beside: Served
    greedy: Served

    @property
    def ratio(self) -> float:
        """How many times its p99 alone the modest client's p99 is."""
        return self.beside.p99_ms / self.alone.p99_ms


def measure(service: Service, modest_rows: int, greedy_rows: int, seconds: float) -> Shares:
    """A round.

    Args:
        service: With :data:`KEYS`.
        modest_rows: The size of the modest client's requests, see :func:`chaos.bodies.focal`.
        greedy_rows: Likewise.
        seconds: For each of its two parts.
    """
    alone = _finished(_client(service, MODEST, modest_rows, seconds))
    greedy = _client(service, GREEDY, greedy_rows, seconds + 2)
    time.sleep(1.0)
    beside = _finished(_client(service, MODEST, modest_rows, seconds))
    return Shares(alone, beside, _finished(greedy))


def _client(service: Service, name: str, rows: int, seconds: float) -> subprocess.Popen[str]:
    """A client in a process of its own, so that what it costs is not what is measured."""
    command = [sys.executable, "-m", "chaos.fairness", str(service.port), name, str(rows), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def _finished(client: subprocess.Popen[str]) -> Served:
    output, _ = client.communicate(timeout=120)
    assert client.returncode == 0
    return Served(**json.loads(output))


async def _load(port: int, name: str, rows: int, seconds: float) -> Served:
    latencies: list[float] = []
    end = time.monotonic() + seconds

    async def ask() -> None:
        connection = await Connection.open(port)
        while (begin := time.monotonic()) < end:
            answer = await connection.ask("POST", PATH, HEADERS | {"X-API-Key": KEYS[name]}, focal(rows))
            assert answer.status == 200, answer.body
            latencies.append(time.monotonic() - begin)
        await connection.close()

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS[name])))
    latencies.sort()
    p50_s, p99_s = (latencies[int(len(latencies) * quantile)] for quantile in (0.5, 0.99))
    return Served(len(latencies), round(len(latencies) / seconds, 1), round(p50_s * 1e3, 2), round(p99_s * 1e3, 2))


if __name__ == "__main__":
    import uvloop

    port, name, rows, seconds = sys.argv[1:]
    print(json.dumps(asdict(uvloop.run(_load(int(port), name, int(rows), float(seconds))))))
