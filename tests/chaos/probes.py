"""Probes: how long health and another key's small request wait, by the clock and in CPU time of the service.

On a machine with other load, most of a wait is the wait for a core. The CPU time that the service takes between a
probe's request and its answer does not depend on other load: it is about what the wait would be on an idle machine.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe

from chaos.bodies import JSON, PATH, SMALL
from chaos.http import BrokenError, Connection
from chaos.service import cpu_s, memory_bytes, processes

HEALTH = "/health/live"
PAUSE_S = 0.02
GIVE_UP_S = 60.0
MEMORY_EVERY_S = 0.5

Span = tuple[float, float]
"""Begin and end, on the machine's monotonic clock."""


@dataclass(frozen=True)
class Probe:
    """One request.

    Attributes:
        path: Its route.
        span: When it was sent, and when it was answered.
        front_cpu_s: CPU time of the front meanwhile.
        workers_cpu_s: CPU time of the workers and their lanes meanwhile.
        fault: Why its answer is not the one it must have; empty otherwise.
    """

    path: str
    span: Span
    front_cpu_s: float
    workers_cpu_s: float
    fault: str = ""

    @property
    def wall_s(self) -> float:
        return self.span[1] - self.span[0]


@dataclass
class Waits:
    """The longest waits of some probes, in seconds.

    Attributes:
        count: How many probes.
        health_s: Longest wait for health, by the clock.
        health_cpu_s: Most CPU time of the front during one.
        small_s: Longest wait for a small request, by the clock.
        small_cpu_s: Most CPU time of front, workers and lanes during one.
        faults: Of the probes that were not answered as they must be.
    """

    count: int = 0
    health_s: float = 0.0
    health_cpu_s: float = 0.0
    small_s: float = 0.0
    small_cpu_s: float = 0.0
    faults: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, probes: Iterable[Probe], disturbed: Sequence[Span] = ()) -> Waits:
        """Sum up probes.

        Args:
            probes: The probes.
            disturbed: When no worker could answer; the time of small requests does not count then.
        """
        waits = cls()
        for probe in probes:
            waits.count += 1
            if probe.fault:
                waits.faults.append(f"{probe.path}: {probe.fault}")
            if probe.path == HEALTH:
                waits.health_s = max(waits.health_s, probe.wall_s)
                waits.health_cpu_s = max(waits.health_cpu_s, probe.front_cpu_s)
            elif not any(begin < probe.span[1] and probe.span[0] < end for begin, end in disturbed):
                waits.small_s = max(waits.small_s, probe.wall_s)
                waits.small_cpu_s = max(waits.small_cpu_s, probe.front_cpu_s + probe.workers_cpu_s)
        return waits

    def __str__(self) -> str:
        faults = f", faults {len(self.faults)}: {self.faults[0]}" if self.faults else ""
        return (
            f"health {self.health_s:5.2f} s (CPU {self.health_cpu_s:4.2f}), "
            f"small {self.small_s:5.2f} s (CPU {self.small_cpu_s:4.2f}) at the longest of {self.count}{faults}"
        )


def probe(port: int, key: str, front: int, ending: Pipe) -> None:
    """Probe until something arrives; the target of a process of its own, so that the probes wait for nobody else.

    Args:
        port: Of the service.
        key: The API key of the small requests.
        front: The front's process id.
        ending: Gets the list of probes, and the most memory of the service, in bytes.
    """
    ending.send(asyncio.run(_probes(port, key, front, ending)))


async def _probes(port: int, key: str, front: int, ending: Pipe) -> tuple[list[Probe], int]:
    probes, most_bytes, next_s = [], 0, 0.0
    while not ending.poll():
        probes.append(await _asked(port, front, "GET", HEALTH, {}, b""))
        probes.append(await _asked(port, front, "POST", PATH, {**JSON, "X-API-Key": key}, SMALL))
        if time.monotonic() >= next_s:
            most_bytes, next_s = max(most_bytes, memory_bytes(front)), time.monotonic() + MEMORY_EVERY_S
        await asyncio.sleep(PAUSE_S)
    return probes, most_bytes


async def _asked(port: int, front: int, method: str, path: str, headers: dict[str, str], body: bytes) -> Probe:
    workers = processes(front)[1:]
    cpu_front, cpu_workers, fault, begin = cpu_s([front]), cpu_s(workers), "", time.monotonic()
    try:
        async with asyncio.timeout(GIVE_UP_S):
            connection = await Connection.open(port)
            answer = await connection.ask(method, path, headers, body)
        if answer.status != 200 or (body and json.loads(answer.body)["loss"] != 2.0):
            fault = f"{answer.status} {answer.body[:200]!r}"
        connection.abort()
    except (BrokenError, OSError, TimeoutError) as error:
        fault = repr(error)
    end = time.monotonic()
    taken_s = cpu_s([front]) - cpu_front, max(0.0, cpu_s(processes(front)[1:]) - cpu_workers)
    return Probe(path, (begin, end), *taken_s, fault)
