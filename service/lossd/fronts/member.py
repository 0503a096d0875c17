"""A front among several, as it sees its parent."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import orjson

from lossd.fronts import Place
from lossd.fronts.counts import Family
from lossd_client.errors import Unavailable

__all__ = ["LINE_BYTES", "Member"]

log = logging.getLogger("lossd.fronts")

LINE_BYTES = 64 << 20
PATIENCE_S = 3.0


class Member:
    """The connection to the parent; a front does not outlive it.

    Args:
        place: What the parent told.

    Attributes:
        place: Likewise.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._asked: deque[asyncio.Future[list[Family]]] = deque()

    async def join(self, counted: Callable[[], Sequence[Family]]) -> None:
        """Begin to answer the parent.

        Args:
            counted: Called for what this front has counted.
        """
        self._counted = counted
        connection = socket.socket(fileno=self.place.socket)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=connection, limit=LINE_BYTES)
        self._task = asyncio.create_task(self._listen())

    def leave(self) -> None:
        """Stop answering."""
        self._task.cancel()

    def say(self, what: Literal["listening", "ready"]) -> None:
        """Tell the parent that connections are accepted, or that a worker is ready."""
        self._say({what: True})

    async def totals(self) -> list[Family]:
        """What all fronts have counted, those before this one included.

        Raises:
            Unavailable: The parent does not say.
        """
        answer: asyncio.Future[list[Family]] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        self._say({"ask": True})
        try:
            return await asyncio.wait_for(asyncio.shield(answer), PATIENCE_S)
        except TimeoutError:
            raise Unavailable("the other fronts cannot be asked what they counted", retry_after_s=1.0) from None

    def _say(self, message: object) -> None:
        self._writer.write(orjson.dumps(message) + b"\n")

    async def _listen(self) -> None:
        while line := await self._reader.readline():
            message = orjson.loads(line)
            if "round" in message:
                self._say({"round": message["round"], "counted": self._counted()})
            else:
                self._asked.popleft().set_result(message["totals"])
        log.warning("the parent is gone, this front ends")
        os.kill(os.getpid(), signal.SIGTERM)
