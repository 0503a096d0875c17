"""A body read from the socket to where it belongs, with nothing in between.

On its usual way a body is copied five times before it reaches a route: out of the loop's buffer, by the parser, into
the server's buffer, out of it, and to its place. Most of a large request's time would go there. A body whose length is
known needs no parser once its head is read: while it pours in, the connection reads into the memory that is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lossd.api.http.connection import Http

__all__ = ["Pouring", "Vessel"]

SINK_BYTES = 256 << 10

_NOTHING = memoryview(b"")


class Vessel:
    """Where a body belongs: pieces of memory that are filled one after the other.

    Args:
        pieces: Writable, of bytes.

    Attributes:
        view: What of the current piece is still to be filled; empty where all are full.
        missing: Bytes still to be filled.
    """

    def __init__(self, pieces: Iterable[memoryview]) -> None:
        self._pieces = [piece for piece in pieces if len(piece)][::-1]
        self.missing = sum(map(len, self._pieces))
        self.view = _NOTHING
        self.advance(0)

    def advance(self, nbytes: int) -> None:
        """So much of ``view`` was filled."""
        self.missing -= nbytes
        self.view = self.view[nbytes:]
        if not len(self.view):  # a view of nothing would keep the memory from being closed, too
            self.view = self._pieces.pop() if self._pieces else _NOTHING

    def fill(self, data: memoryview) -> memoryview:
        """Fill in data, and return what there is no room for."""
        while len(data) and self.missing:
            step = min(len(data), len(self.view))
            self.view[:step] = data[:step]
            self.advance(step)
            data = data[step:]
        return data


class Pouring(asyncio.BufferedProtocol):
    """What a connection speaks to while a body pours in; afterwards, it is told to go on with HTTP.

    Args:
        http: The connection.
        vessel: Where the rest of the body belongs: as much as there is.

    Attributes:
        done: Whether all of it has come; cancelled where the client left.
    """

    def __init__(self, http: Http, vessel: Vessel) -> None:
        self._http = http
        self._vessel = vessel
        self.done: asyncio.Future[None] = http.loop.create_future()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._vessel.view

    def buffer_updated(self, nbytes: int) -> None:
        """They have come."""
        self._vessel.advance(nbytes)
        self._http.poured(self._vessel.missing)
        if not self._vessel.missing and not self.done.done():
            self.done.set_result(None)

    def fail(self, problem: Exception) -> None:
        """The rest is not read, for this reason."""
        if not self.done.done():
            self.done.set_exception(problem)

    def abandon(self) -> None:
        """What is still to come is not wanted: read it, so that the client may read its answer, and drop it."""
        self._vessel = _Sink(self._vessel.missing)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left."""
        self._vessel = _Sink(0)
        self.done.cancel()
        self._http.connection_lost(exc)

    def eof_received(self) -> bool:
        """It will send no more."""
        return self._http.eof_received()

    def pause_writing(self) -> None:
        """It reads too slowly."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """It has read most of what was sent."""
        self._http.resume_writing()


class _Sink(Vessel):
    """Takes so many bytes, and keeps none."""

    def __init__(self, nbytes: int) -> None:
        self.missing = nbytes
        self.view = self._memory = memoryview(bytearray(min(nbytes, SINK_BYTES)))

    def advance(self, nbytes: int) -> None:
        self.missing -= nbytes
        self.view = self._memory[: self.missing]
