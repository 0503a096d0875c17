"""Attacks on a running service, one kind after the other, and what they cost its other clients."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe

import numpy as np

from chaos.bodies import HEADERS, JSON, PATH, safetensors_body
from chaos.http import BrokenError, Connection, head
from chaos.probes import Probe, Span, Waits, probe
from chaos.service import Service, cpu_s

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1 << 20
AT_ONCE = 8
"""Attackers of a kind at a time."""

CROWD = 100
"""Connections that each attacker of a crowd opens."""

GIVE_UP_S = 5.0

Attack = Callable[[Connection, dict[str, str]], Awaitable[object]]


@cache
def _triplets(rows: int) -> bytes:
    return safetensors_body(
        {"loss": {"name": "mined_triplet", "mining": "all"}, "outputs": ["loss"]},
        embedding=np.random.default_rng(0).standard_normal((rows, 1)).astype("f4"),
        label=np.arange(rows) % 7,
    )


@cache
def _zeros_and_a_nan() -> bytes:
    prediction = np.zeros(1 << 20, np.float32)
    prediction[7] = np.nan
    request = {"loss": {"name": "mse"}, "outputs": ["gradient"]}
    return zstd.compress(safetensors_body(request, prediction=prediction, target=np.zeros_like(prediction)))


LONG_ROWS = 2000
FAULTS = json.dumps({"loss": {"name": "cross_entropy", "class_weight": [-1] * 100_000}, "inputs": {}}).encode()
CURVE = "/v1/losses/mse/curve.json?" + "&".join(f"{name}={i}" for name in "abcd" for i in range(150))


async def _nothing(connection: Connection, key: dict[str, str]) -> object:
    return await asyncio.sleep(0.1)


async def _long(connection: Connection, key: dict[str, str]) -> object:
    return await connection.ask("POST", PATH, {**HEADERS, **key}, _triplets(LONG_ROWS))


async def _leaves(connection: Connection, key: dict[str, str]) -> object:
    body = _triplets(LONG_ROWS)
    await connection.send(head("POST", PATH, {**HEADERS, **key}, len(body)) + body)
    return await asyncio.sleep(0.5)


async def _too_much(connection: Connection, key: dict[str, str]) -> object:
    return await connection.ask("POST", PATH, {**HEADERS, **key}, _triplets(16_384))


async def _answers(connection: Connection, key: dict[str, str]) -> object:
    packed = {"Accept": "application/json", "Content-Encoding": "zstd"}
    return await connection.ask("POST", PATH, {**HEADERS, **packed, **key}, _zeros_and_a_nan())


async def _faults(connection: Connection, key: dict[str, str]) -> object:
    return await connection.ask("POST", PATH, {**JSON, **key}, FAULTS)


async def _curve(connection: Connection, key: dict[str, str]) -> object:
    return await connection.ask("GET", CURVE, key)


async def _page(connection: Connection, key: dict[str, str]) -> object:
    return await connection.ask("GET", "/openapi.json", {"Accept-Encoding": "gzip"})


async def _trailers(connection: Connection, key: dict[str, str]) -> object:
    await connection.send(head("POST", PATH, {**JSON, **key, "Transfer-Encoding": "chunked"}) + b"0\r\n")
    while True:
        await connection.send(b"a:\r\n" * 4096)


async def _heads(connection: Connection, key: dict[str, str]) -> object:
    return await connection.send(b"GET / HTTP/1.1\r\nHost: test\r\n" + b"a:\r\n" * 15_900)


async def _pipeline(connection: Connection, key: dict[str, str]) -> object:
    return await connection.send(head("GET", "/v1/losses", key) * 2000)


async def _crowd(connection: Connection, key: dict[str, str]) -> object:
    crowd = [await Connection.open(connection.port) for _ in range(CROWD)]
    try:
        for one in crowd:
            await one.send(b"GET / HTTP/1.1\r\nHost: test\r\n" + b"a:\r\n" * 15_900)
        return await asyncio.sleep(1)
    finally:
        for one in crowd:
            one.abort()


async def _announces(connection: Connection, key: dict[str, str]) -> object:
    await connection.send(head("POST", PATH, {**JSON, **key}, MIB) + b" ")
    return await asyncio.sleep(2)


async def _stalls(connection: Connection, key: dict[str, str]) -> object:
    body = _triplets(LONG_ROWS)
    await connection.send(head("POST", PATH, {**HEADERS, **key}, len(body)) + body[:-1])
    return await asyncio.sleep(2)


ATTACKS: dict[str, Attack] = {
    "nothing": _nothing,
    "long": _long,
    "leaves": _leaves,
    "too much": _too_much,
    "answers": _answers,
    "faults": _faults,
    "curves": _curve,
    "pages": _page,
    "trailers": _trailers,
    "heads": _heads,
    "pipelines": _pipeline,
    "crowds": _crowd,
    "announced bodies": _announces,
    "stalled bodies": _stalls,
}


@dataclass
class Attacked:
    """What one kind of attack did.

    Attributes:
        attack: Its name.
        span: When it began and ended, on the monotonic clock.
        outcomes: How often each outcome came: an answer's status, or what broke the connection.
        front_cpu_s: CPU time of the front.
        most_bytes: The most memory of the service, its workers included.
        probes: What others asked meanwhile.
    """

    attack: str
    span: Span
    outcomes: Counter[str]
    front_cpu_s: float
    most_bytes: int
    probes: list[Probe]

    def describe(self, disturbed: Sequence[Span] = ()) -> str:
        """Return a line; see :meth:`chaos.probes.Waits.of`."""
        busy = self.front_cpu_s / (self.span[1] - self.span[0])
        outcomes = ", ".join(f"{count} × {outcome}" for outcome, count in self.outcomes.most_common(3))
        return (
            f"{self.attack:16s} {Waits.of(self.probes, disturbed)}; front busy {busy:4.0%}, "
            f"most memory {self.most_bytes / MIB:.0f} MiB; {outcomes}"
        )


def attacked(service: Service, attacker: str, other: str, seconds: float, names: Sequence[str]) -> Iterator[Attacked]:
    """Attack in each way, from one process, and probe meanwhile, from another.

    Args:
        service: The service; it has one front.
        attacker: The API key that attacks.
        other: The API key that probes.
        seconds: How long each kind goes on.
        names: The kinds, of :data:`ATTACKS`.
    """
    for name in names:
        yield _attacked(service, name, attacker, other, seconds)


def _attacked(service: Service, name: str, attacker: str, other: str, seconds: float) -> Attacked:
    front, context = service.process.pid, get_context("spawn")
    outcomes, attacking = context.Pipe(duplex=False)
    probes, probing = context.Pipe()
    processes = [
        context.Process(target=probe, args=(service.port, other, front, probing), daemon=True),
        context.Process(target=_attack, args=(service.port, name, attacker, seconds, attacking), daemon=True),
    ]
    cpu, begin = cpu_s([front]), time.monotonic()
    for process in processes:
        process.start()
    counted = outcomes.recv()
    probes.send("end")
    found, most_bytes = probes.recv()
    for process in processes:
        process.join()
    return Attacked(name, (begin, time.monotonic()), counted, cpu_s([front]) - cpu, most_bytes, found)


def _attack(port: int, name: str, key: str, seconds: float, outcomes: Pipe) -> None:
    """Attack; the target of a process of its own."""
    end, counted = time.monotonic() + seconds, Counter[str]()

    async def attacks() -> None:
        while time.monotonic() < end:
            try:
                connection = await Connection.open(port)
                try:
                    async with asyncio.timeout(GIVE_UP_S):
                        answer = await ATTACKS[name](connection, {"X-API-Key": key})
                finally:
                    connection.abort()
                counted[str(getattr(answer, "status", "sent"))] += 1
            except (BrokenError, OSError, TimeoutError) as error:
                counted[type(error).__name__] += 1

    async def all_attacks() -> None:
        await asyncio.gather(*(attacks() for _ in range(AT_ONCE)))

    asyncio.run(all_attacks())
    outcomes.send(counted)
