"""One timer a server checks the time-outs of all its connections, so that a request sets no timer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["Timeouts"]

CHECKS_PER_TIMEOUT = 4
MAX_INTERVAL_S = 1.0


class Connection(Protocol):
    """A connection, as :class:`Timeouts` calls it."""

    loop: asyncio.AbstractEventLoop

    def check_timeouts(self, now: float) -> None: ...

    def __hash__(self) -> int: ...


class Timeouts:
    """Checks the time-outs of one server's connections several times in each time-out.

    Args:
        settings: The time-outs and limits.

    Attributes:
        now: The monotonic clock at the last check, precise enough for time-outs.
        idle_s: The setting ``idle_timeout_ms``, in seconds.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.idle_s = settings.idle_timeout_ms / 1000
        self.now = 0.0
        self._connections: set[Connection] = set()
        self._interval_s = min(self.idle_s / CHECKS_PER_TIMEOUT, MAX_INTERVAL_S)
        self._checking = False

    def add(self, connection: Connection) -> None:
        """Check this connection from now on."""
        self._connections.add(connection)
        if not self._checking:
            self._checking = True
            self._check(connection.loop)

    def discard(self, connection: Connection) -> None:
        """Stop checking this connection."""
        self._connections.discard(connection)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = time.monotonic()
        for connection in list(self._connections):
            connection.check_timeouts(self.now)
        self._checking = bool(self._connections)
        if self._checking:
            loop.call_later(self._interval_s, self._check, loop)
