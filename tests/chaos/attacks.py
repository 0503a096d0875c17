"""Attacks mixed into the soak, one kind after the other: how long health and another key's small request wait."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

import numpy as np

from chaos.bodies import HEADERS, PATH, safetensors_body
from chaos.http import BrokenError, Connection, head

AT_ONCE = 8
"""Attackers of a kind at a time."""

SMALL = json.dumps({"loss": {"name": "mse"}, "inputs": {"prediction": [1.0, 2.0], "target": [1.0, 4.0]}}).encode()
JSON = {"Content-Type": "application/json"}
GIVE_UP_S = 5.0

Attack = Callable[[Connection, dict[str, str]], Awaitable[object]]


@dataclass
class Waits:
    """The longest waits during one kind of attack, in seconds.

    Attributes:
        attack: Which.
        health_s: For ``/health/live``, on a connection of its own each time.
        small_s: For another key's small request.
        asked: How many of both were asked.
        failed: Those that were not answered as they must be.
    """

    attack: str
    health_s: float = 0.0
    small_s: float = 0.0
    asked: int = 0
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        failed = f", failed {len(self.failed)}: {self.failed[0]}" if self.failed else ""
        waits = f"health {self.health_s * 1000:6.0f} ms, small {self.small_s * 1000:6.0f} ms"
        return f"{self.attack:20s} {waits} at the longest of {self.asked}{failed}"


def _triplets(rows: int) -> bytes:
    return safetensors_body(
        {"loss": {"name": "mined_triplet", "mining": "all"}, "outputs": ["loss"]},
        embedding=np.random.default_rng(0).standard_normal((rows, 1)).astype("f4"),
        label=np.arange(rows) % 7,
    )


LONG = _triplets(2000)
FAULTS = json.dumps({"loss": {"name": "cross_entropy", "class_weight": [-1] * 100_000}, "inputs": {}}).encode()
CURVE = "/v1/losses/mse/curve.json?" + "&".join(f"{name}={i}" for name in "abcd" for i in range(150))


async def _nothing(connection: Connection, key: dict[str, str]) -> object:
    return await asyncio.sleep(0.1)


async def _long(connection: Connection, key: dict[str, str]) -> object:
    return await connection.ask("POST", PATH, {**HEADERS, **key}, LONG)


async def _leaves(connection: Connection, key: dict[str, str]) -> object:
    await connection.send(head("POST", PATH, {**HEADERS, **key}, len(LONG)) + LONG)
    return await asyncio.sleep(0.5)


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


async def _announces(connection: Connection, key: dict[str, str]) -> object:
    await connection.send(head("POST", PATH, {**JSON, **key}, 1 << 20) + b" ")
    return await asyncio.sleep(2)


ATTACKS: dict[str, Attack] = {
    "nothing": _nothing,
    "long": _long,
    "leaves": _leaves,
    "faults": _faults,
    "curves": _curve,
    "pages": _page,
    "trailers": _trailers,
    "heads": _heads,
    "pipelines": _pipeline,
    "announced bodies": _announces,
}


def attacked(port: int, attacker: str, other: str, seconds: float, tell: Callable[[Waits], None]) -> list[Waits]:
    """Attack in each way from a process of its own, and ask meanwhile.

    Args:
        port: Of the service, on this machine.
        attacker: The API key that attacks.
        other: The API key that asks.
        seconds: How long each kind goes on.
        tell: Called with what each has done.
    """
    found = []
    for name in ATTACKS:
        process = get_context("spawn").Process(target=_attack, args=(port, name, attacker, seconds))
        process.start()
        found.append(asyncio.run(_waits(port, name, other, process)))
        process.join()
        tell(found[-1])
    return found


def _attack(port: int, name: str, key: str, seconds: float) -> None:
    end = time.monotonic() + seconds

    async def attacks() -> None:
        while time.monotonic() < end:
            with suppress(BrokenError, OSError, TimeoutError):
                connection = await Connection.open(port)
                try:
                    async with asyncio.timeout(GIVE_UP_S):
                        await ATTACKS[name](connection, {"X-API-Key": key})
                finally:
                    connection.abort()

    async def crowd() -> None:
        await asyncio.gather(*(attacks() for _ in range(AT_ONCE)))

    asyncio.run(crowd())


async def _waits(port: int, name: str, other: str, attack: BaseProcess) -> Waits:
    waits = Waits(name)
    while attack.is_alive():
        waits.health_s = max(waits.health_s, await _asked(port, waits, "GET", "/health/live", {}, b""))
        key = {**JSON, "X-API-Key": other}
        waits.small_s = max(waits.small_s, await _asked(port, waits, "POST", PATH, key, SMALL))
        await asyncio.sleep(0.02)
    return waits


async def _asked(port: int, waits: Waits, method: str, path: str, headers: dict[str, str], body: bytes) -> float:
    begin = time.monotonic()
    waits.asked += 1
    try:
        async with asyncio.timeout(60):
            connection = await Connection.open(port)
            answer = await connection.ask(method, path, headers, body)
        connection.abort()
        if answer.status != 200 or (body and json.loads(answer.body)["loss"] != 2.0):
            waits.failed.append(f"{path} {answer.status} {answer.body[:200]!r}")
    except (BrokenError, OSError, TimeoutError) as error:
        waits.failed.append(f"{path} {error!r}")
    return time.monotonic() - begin
