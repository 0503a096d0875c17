"""Clients that leave, again and again: everything is back where it was."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from chaos.bodies import HEADERS, PATH, focal
from chaos.http import Connection, head
from chaos.service import Service

AT_ONCE = 20
LARGE_ROWS = 100_000


@dataclass(frozen=True)
class Left:
    """What the front held, before and after: open files and resident bytes, those of slabs kept for reuse aside."""

    files_before: int
    files_after: int
    resident_bytes_before: int
    resident_bytes_after: int


def leave(service: Service, count: int, seed: int = 0) -> Left:
    """Let clients leave in the middle of bodies and of answers, small and large.

    Args:
        service: That they leave.
        count: How many do.
        seed: Of where they leave.
    """
    asyncio.run(_rounds(service.port, AT_ONCE, random.Random(seed)))  # warm: what is kept for reuse is kept now
    service.wait_until_idle()
    files, resident = service.files(), service.resident_bytes()
    asyncio.run(_rounds(service.port, count, random.Random(seed + 1)))
    service.wait_until_idle()
    return Left(files, service.files(), resident, service.resident_bytes())


async def _rounds(port: int, count: int, chance: random.Random) -> None:
    for first in range(0, count, AT_ONCE):
        await asyncio.gather(*(_leave(port, chance) for _ in range(min(AT_ONCE, count - first))))


async def _leave(port: int, chance: random.Random) -> None:
    body = focal(chance.choice((64, 4096, LARGE_ROWS)))
    connection = await Connection.open(port, receive_bytes=4096)
    whole = head("POST", PATH, HEADERS, len(body)) + body
    if chance.random() < 0.5:
        await connection.send(whole[: chance.randrange(len(whole))])
        await asyncio.sleep(chance.random() * 0.02)
    else:
        await connection.send(whole)
        await connection.reader.read(chance.choice((1, 100, 10_000)))
    connection.abort()
