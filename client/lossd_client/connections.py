"""What connections need besides httpx: the records of a name, and attempts in which no byte moves.

An attempt whose service computes for a long time is silent too. So an attempt is ended only if no byte moved for some
seconds and the service does not answer on another connection. httpx's time-outs cannot wait on, because they end the
connection. The sync client therefore waits below httpx, in the streams of its connections; the async client uses a
timer.

The other end may answer, or close its side, and read no more of a request. httpx does not notice while its write
blocks. The streams of both clients do.

All names of httpx and httpcore that are not documented stand here. A client without them works, without this.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, Self

import httpcore
import httpx

from lossd_client.addresses import Name
from lossd_client.calls import Stalled

__all__ = ["Interruptible", "Patience", "StallTimer", "connects_by_name", "find_records", "trusted", "wait_below"]


def find_records(name: Name) -> list[str]:
    """Return the IP addresses of a name; none if it cannot be resolved."""
    try:
        found = socket.getaddrinfo(name.host, name.port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(sockaddr[0]) for *_, sockaddr in found]


def trusted(cacert: str | os.PathLike[str] | None) -> ssl.SSLContext:
    """Return a context that trusts the usual authorities, and those in a file of certificates.

    Raises:
        OSError: The file cannot be read, or holds no certificate.
    """
    context = httpx.create_ssl_context()
    if cacert is not None:
        context.load_verify_locations(cafile=cacert)
    return context


def connects_by_name(http: httpx.Client | httpx.AsyncClient, url: str) -> bool:
    """Return whether a client connects to the host of a URL by itself: not through a proxy or a transport of its own.

    Only then may an IP address stand in for the name.
    """
    find_transport = getattr(http, "_transport_for_url", None)
    pool = getattr(find_transport(httpx.URL(url)), "_pool", None) if find_transport else None
    plain = type(pool) in (httpcore.ConnectionPool, httpcore.AsyncConnectionPool)
    return plain and getattr(pool, "_uds", None) is None


LOOK_S = 1.0
"""How long a write blocks before a client looks whether the request was answered already."""

READ_BYTES = 1 << 14
"""How much is read ahead at a time: a record of TLS."""

PREFACE = b"PRI * HTTP/2.0"
"""What a connection with HTTP/2 begins with (RFC 9113, section 3.4). There, what comes is not always an answer."""

ANSWERED = "an answer came before the request was read"

STEPS = 5
"""How often an attempt of the async client is looked at within ``stall_s``."""


class Patience(float):
    """A time-out in seconds. A silent peer is waited for in steps.

    Args:
        seconds: The time-out of a read or a write.
        quiet_s: The length of a step.
        lives: Returns whether the service answers on another connection.
    """

    quiet_s: float
    lives: Callable[[], bool]

    def __new__(cls, seconds: float, quiet_s: float, lives: Callable[[], bool]) -> Self:
        """Return the time-out."""
        self = super().__new__(cls, seconds)
        self.quiet_s, self.lives = quiet_s, lives
        return self

    def steps(self) -> Iterator[float]:
        """Yield the time-out of each step after a silent first one, until the whole time is over.

        Raises:
            Stalled: A step was silent, and the service does not answer.
        """
        ends = time.monotonic() + self - self.quiet_s
        while (left := ends - time.monotonic()) > 0:
            if not self.lives():
                raise Stalled(self.quiet_s)
            yield min(left, self.quiet_s)


class Interruptible(float):
    """The time-out in seconds of a write of the async client, which an answer ends."""


class _Ahead:
    """The bytes that were read from a stream while a write blocked. The next reads return it.

    A stream of TLS is readable without an answer, for example because of session tickets. Only reading tells.
    """

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._http2 = False

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def append(self, chunk: bytes) -> None:
        """Add what was read; no bytes are the end of the stream."""
        self._chunks.append(chunk)

    def take(self, max_bytes: int) -> bytes:
        """Remove and return the first bytes."""
        chunk = self._chunks.popleft()
        if len(chunk) > max_bytes:
            self._chunks.appendleft(chunk[max_bytes:])
        return chunk[:max_bytes]

    def allowed(self, buffer: bytes) -> bool:
        """Return whether an answer ends the write of these bytes: not on a connection with HTTP/2."""
        self._http2 = self._http2 or buffer.startswith(PREFACE)
        return not self._http2


class _Stream(httpcore.NetworkStream):
    """A stream that waits with :class:`Patience`."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._socket: socket.socket = stream.get_extra_info("socket")
        self._ahead = _Ahead()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._ahead:
            return self._ahead.take(max_bytes)
        if not isinstance(timeout, Patience):
            return self._stream.read(max_bytes, timeout)
        try:
            return self._stream.read(max_bytes, timeout.quiet_s)
        except httpcore.ReadTimeout:
            for step_s in timeout.steps():
                with suppress(httpcore.ReadTimeout):
                    return self._stream.read(max_bytes, step_s)
            raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        looks = self._ahead.allowed(buffer)
        if isinstance(timeout, Patience):
            rest = memoryview(buffer)
            while rest:
                rest = rest[self._send(rest, timeout, looks) :]
        else:
            self._stream.write(buffer, timeout)

    def _send(self, rest: memoryview, timeout: Patience, looks: bool) -> int:
        """Return how many bytes the socket took. A stream's own write does not tell how far it came.

        Raises:
            httpcore.WriteError: The connection broke, or the other end answered or closed its side before it had read
                the request. httpcore then reads the answer.
        """
        try:
            for step_s in chain((timeout.quiet_s,), timeout.steps()):
                ends = time.monotonic() + step_s
                while (left := ends - time.monotonic()) > 0:
                    self._socket.settimeout(min(left, LOOK_S))
                    with suppress(TimeoutError):
                        return self._socket.send(rest)
                    if looks and self._has_answer():
                        raise httpcore.WriteError(ANSWERED)
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error
        raise httpcore.WriteTimeout("timed out")

    def _has_answer(self) -> bool:
        """Return whether an answer or the end of the connection came, and read it."""
        self._socket.settimeout(0.0)
        with suppress(BlockingIOError, ssl.SSLWantReadError):
            self._ahead.append(self._socket.recv(READ_BYTES))
        return bool(self._ahead)

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, *arguments: Any, **keywords: Any) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(*arguments, **keywords)
        # To a proxy with TLS, this layer's bytes go to the outer layer, not to the socket.
        return stream if self._stream.get_extra_info("ssl_object") else _Stream(stream)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _AsyncStream(httpcore.AsyncNetworkStream):
    """A stream whose writes an answer ends, if their time-out is :class:`Interruptible`.

    A timer and ``asyncio.timeout`` for each write would add 5 us to it. So one timer serves all writes of a second.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._ahead = _Ahead()
        self._timer: asyncio.TimerHandle | None = None
        self._writer: asyncio.Task[Any] | None = None
        self._begun = 0.0
        self._reader: asyncio.Task[None] | None = None
        self._cancelling: int | None = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._ahead:
            return self._ahead.take(max_bytes)
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._ahead.allowed(buffer) and isinstance(timeout, Interruptible) and buffer:
            await self._send(buffer, timeout)
        else:
            await self._stream.write(buffer, timeout)

    async def _send(self, buffer: bytes, timeout: float) -> None:
        """Write the buffer.

        Raises:
            httpcore.WriteError: As for the sync stream.
        """
        if self._ahead:
            raise httpcore.WriteError(ANSWERED)
        self._writer = writer = asyncio.current_task()
        self._begun = time.monotonic()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        try:
            await self._stream.write(buffer, timeout)
        except asyncio.CancelledError:
            # If others cancelled the task too, then that holds.
            if writer is None or self._cancelling is None or writer.uncancel() > self._cancelling:
                raise
            raise httpcore.WriteError(ANSWERED) from None
        finally:
            self._writer = None
            if self._reader is not None:
                self._reader.cancel()
                await asyncio.wait([self._reader])  # only one task may read
                self._reader = None

    def _look(self) -> None:
        """Begin to read if the write in progress has blocked for long."""
        self._timer = None
        if self._writer is None:
            return
        left = self._begun + LOOK_S - time.monotonic()
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._look)
        else:
            self._reader = asyncio.ensure_future(self._read_ahead(self._writer))

    async def _read_ahead(self, writer: asyncio.Task[Any]) -> None:
        """Read the answer, and end the write. Over TLS nothing can be read after that."""
        with suppress(Exception):  # httpcore meets the error when it reads
            chunk = await self._stream.read(READ_BYTES)
            self._ahead.append(chunk)
            while chunk:
                chunk = await self._stream.read(READ_BYTES, LOOK_S)
                self._ahead.append(chunk)
        self._cancelling = writer.cancelling()
        writer.cancel()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(self, *arguments: Any, **keywords: Any) -> httpcore.AsyncNetworkStream:
        return _AsyncStream(await self._stream.start_tls(*arguments, **keywords))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Connects as another backend does, with streams that wait with :class:`Patience`."""

    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(self, *arguments: Any, **keywords: Any) -> httpcore.NetworkStream:
        return _Stream(self._backend.connect_tcp(*arguments, **keywords))

    def connect_unix_socket(self, *arguments: Any, **keywords: Any) -> httpcore.NetworkStream:
        return _Stream(self._backend.connect_unix_socket(*arguments, **keywords))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _AsyncBackend(httpcore.AsyncNetworkBackend):
    """Connects as another backend does, with streams whose writes an answer ends."""

    def __init__(self, backend: httpcore.AsyncNetworkBackend) -> None:
        self._backend = backend

    async def connect_tcp(self, *arguments: Any, **keywords: Any) -> httpcore.AsyncNetworkStream:
        return _AsyncStream(await self._backend.connect_tcp(*arguments, **keywords))

    async def connect_unix_socket(self, *arguments: Any, **keywords: Any) -> httpcore.AsyncNetworkStream:
        return _AsyncStream(await self._backend.connect_unix_socket(*arguments, **keywords))

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


def wait_below(http: httpx.Client | httpx.AsyncClient) -> None:
    """Let a client's connections heed :class:`Patience` and :class:`Interruptible`.

    All other time-outs mean what they always do.
    """
    transports = [getattr(http, "_transport", None), *getattr(http, "_mounts", {}).values()]
    for pool in (getattr(transport, "_pool", None) for transport in transports):
        backend = getattr(pool, "_network_backend", None)
        if isinstance(backend, _Backend | _AsyncBackend | None):
            continue
        if isinstance(pool, httpcore.ConnectionPool):
            pool._network_backend = _Backend(backend)
        elif isinstance(pool, httpcore.AsyncConnectionPool):
            pool._network_backend = _AsyncBackend(backend)


class StallTimer:
    """Ends the block if no byte moves and the service does not answer; for the async client.

    Args:
        quiet_s: Seconds without a byte after which the service is asked.
        moved: Returns how many bytes have moved.
        lives: Returns whether the service answers on another connection.

    Raises:
        Stalled: The block was ended.
    """

    def __init__(self, quiet_s: float, moved: Callable[[], int], lives: Callable[[], Awaitable[bool]]) -> None:
        self._quiet_s = quiet_s
        self._moved = moved
        self._lives = lives
        self._limit = asyncio.timeout(None)
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        # Most attempts end before a task is worth its cost.
        self._timer = asyncio.get_running_loop().call_later(self._quiet_s / STEPS, self._begin)

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise Stalled(self._quiet_s) from None

    def _begin(self) -> None:
        self._watch = asyncio.ensure_future(self._until_stalled())

    async def _until_stalled(self) -> None:
        silent, before = 1, self._moved()
        while silent < STEPS or await self._lives():
            silent %= STEPS
            await asyncio.sleep(self._quiet_s / STEPS)
            moved = self._moved()
            silent, before = (silent + 1 if moved == before else 0), moved
        self._limit.reschedule(asyncio.get_running_loop().time())
