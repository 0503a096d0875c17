"""A front's connection to the parent."""

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

from lossd.fronts import FrontConfig
from lossd.fronts.counts import Family
from lossd_client.errors import Unavailable

__all__ = ["LINE_BYTES", "Member"]

log = logging.getLogger("lossd.fronts")

LINE_BYTES = 64 << 20
PATIENCE_S = 3.0


class Member:
    """A front's connection to the parent; the front ends with it.

    Args:
        config: What the parent passed to this front.

    Attributes:
        config: The same.
    """

    def __init__(self, config: FrontConfig) -> None:
        self.config = config
        self._requested: deque[asyncio.Future[list[Family]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def join(self, counted: Callable[[], Sequence[Family]]) -> None:
        """Begin to answer the parent.

        Args:
            counted: Returns this front's counters.
        """
        self._counted = counted
        connection = socket.socket(fileno=self.config.socket)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=connection, limit=LINE_BYTES)
        self._task = asyncio.create_task(self._listen())

    def leave(self) -> None:
        """Stop answering."""
        if self._task is not None:
            self._task.cancel()

    def report(self, state: Literal["listening", "ready"]) -> None:
        """Report to the parent that this front accepts connections, or that a worker is ready."""
        self._send({state: True})

    async def totals(self) -> list[Family]:
        """Return the counters of all fronts, also of fronts that ended.

        Raises:
            Unavailable: The parent does not answer.
        """
        answer: asyncio.Future[list[Family]] = asyncio.get_running_loop().create_future()
        self._requested.append(answer)
        self._send({"ask": True})
        try:
            return await asyncio.wait_for(asyncio.shield(answer), PATIENCE_S)
        except TimeoutError:
            raise Unavailable("the other fronts cannot be asked what they counted", retry_after_s=1.0) from None

    def _send(self, message: object) -> None:
        self._writer.write(orjson.dumps(message) + b"\n")

    async def _listen(self) -> None:
        while line := await self._reader.readline():
            message = orjson.loads(line)
            if "round" in message:
                self._send({"round": message["round"], "counted": self._counted()})
            else:
                self._requested.popleft().set_result(message["totals"])
        log.warning("the parent ended; this front ends too")
        os.kill(os.getpid(), signal.SIGINT)  # it is not restarted here, so it closes its port at once
