"""Reads a body from the socket into the memory where it is evaluated, without a copy.

Otherwise a body is copied five times before a route has it: out of the loop's buffer, by the parser, into the server's
buffer, out of it, and into the slab. Most of a large request's time would go there. A body of known length needs no
parser after its head. Until it is complete, the connection reads directly into the given memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

__all__ = ["BodyBuffer", "BodyProtocol"]

DISCARD_BYTES = 256 << 10

_NOTHING = memoryview(b"")


class BodyBuffer:
    """Pieces of memory that a body fills, one after the other.

    Args:
        pieces: Writable views of bytes.

    Attributes:
        view: The unfilled part of the current piece; empty when all are full.
        missing: Bytes still to be filled.
    """

    def __init__(self, pieces: Iterable[memoryview]) -> None:
        self._pieces = [piece for piece in pieces if len(piece)][::-1]
        self.missing = sum(map(len, self._pieces))
        self.view = _NOTHING
        self.advance(0)

    def advance(self, nbytes: int) -> None:
        """Note that the first ``nbytes`` of ``view`` were filled."""
        self.missing -= nbytes
        self.view = self.view[nbytes:]
        if not len(self.view):  # even an empty view keeps the memory from being closed
            self.view = self._pieces.pop() if self._pieces else _NOTHING

    def fill(self, data: memoryview) -> memoryview:
        """Copy data in, and return the rest that has no room."""
        while len(data) and self.missing:
            step = min(len(data), len(self.view))
            self.view[:step] = data[:step]
            self.advance(step)
            data = data[step:]
        return data


class Connection(Protocol):
    """The HTTP connection, as :class:`BodyProtocol` calls it."""

    loop: asyncio.AbstractEventLoop

    def body_received(self, missing: int) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def eof_received(self) -> bool: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class BodyProtocol(asyncio.BufferedProtocol):
    """A transport's protocol while a body is read into its buffer; then the connection returns to HTTP.

    Args:
        http: The connection.
        buffer: Memory of exactly the size of the rest of the body.

    Attributes:
        done: Resolved when the body is whole; cancelled when the client leaves.
    """

    def __init__(self, http: Connection, buffer: BodyBuffer) -> None:
        self._http = http
        self._buffer = buffer
        self.done: asyncio.Future[None] = http.loop.create_future()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the memory for the next bytes."""
        return self._buffer.view

    def buffer_updated(self, nbytes: int) -> None:
        """Note that ``nbytes`` more have been read."""
        self._buffer.advance(nbytes)
        self._http.body_received(self._buffer.missing)
        if not self._buffer.missing and not self.done.done():
            self.done.set_result(None)

    def fail(self, problem: Exception) -> None:
        """Stop waiting for the rest of the body: ``done`` raises this problem."""
        if not self.done.done():
            self.done.set_exception(problem)

    def abandon(self) -> None:
        """Read and drop the rest of the body, so that the client comes to read its answer."""
        self._buffer = _Discard(self._buffer.missing)

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on that the client left."""
        self._buffer = _Discard(0)
        self.done.cancel()
        self._http.connection_lost(exc)

    def eof_received(self) -> bool:
        """Pass on that the client sends no more."""
        return self._http.eof_received()

    def pause_writing(self) -> None:
        """Pass on that the client reads too slowly."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client has read most of the answer."""
        self._http.resume_writing()


class _Discard(BodyBuffer):
    """A buffer that accepts so many bytes and keeps none."""

    def __init__(self, nbytes: int) -> None:
        self.missing = nbytes
        self.view = self._memory = memoryview(bytearray(min(nbytes, DISCARD_BYTES)))

    def advance(self, nbytes: int) -> None:
        self.missing -= nbytes
        self.view = self._memory[: self.missing]
