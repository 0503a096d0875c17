"""One request over ASGI: its headers, its deadline, and its body within limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress

from starlette.types import Message, Receive, Scope

from lossd.api.http.asgi import CLIENT, CONNECTION, FAULT, WHOLE, DisconnectedError, new_request_id, request_id
from lossd.api.http.body_buffer import BodyBuffer
from lossd.api.http.compression import Decompressor, content_encoding
from lossd.api.http.negotiation import combined
from lossd.api.http.uvicorn_internals import own_cycle, take_body
from lossd.configuration.settings import Settings
from lossd.engine import Result, Upload
from lossd.engine.admission import Budget
from lossd.job import Job
from lossd_client.errors import DeadlineExceeded, InvalidRequest, MalformedBody, Problem, TooLarge

__all__ = ["HttpRequest"]

MAX_DIGITS = 18

PREALLOCATED_BYTES = 1 << 20
"""Bodies up to this length get their memory before they arrive."""

LINGER_S = 2.0

_HEADERS = frozenset(
    (
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"if-none-match",
        b"accept",
        b"accept-encoding",
        b"inference-header-content-length",
        b"x-request-id",
        b"x-request-timeout-ms",
    )
)


class HttpRequest:
    """One request for the routes that evaluate. Only its methods, and a subclass's, write its attributes.

    Args:
        scope: ASGI's scope.
        receive: ASGI's channel.
        settings: The limits.
        unread: Whether a body is to come; by default, whether the method has one.

    Attributes:
        begin: When the request began, on the monotonic clock.
        client: The name of its API key; empty without one.
        deadline: When the request expires, on the same clock.
        headers: The headers that lossd reads, by lower-case name.
        job: The job, after :meth:`identify`; None before.
        length: The Content-Length in bytes, compressed if the body is; None if it is not stated.
        max_body_bytes: The limit of the body.
        model: The name in metrics, see :func:`lossd.job.model_name`; empty before :meth:`identify`.
        query: The query string.
        receive: ASGI's channel.
        request_id: The client's id, or a new one.
        scope: ASGI's scope.
        decompressor: Decodes the body's Content-Encoding; None without one.
        unread: Whether more of the body is to come.
        whole: Whether the whole body is known to have arrived.
    """

    __slots__ = (
        "_limit",
        "begin",
        "client",
        "deadline",
        "decompressor",
        "headers",
        "job",
        "length",
        "max_body_bytes",
        "max_timeout_ms",
        "model",
        "query",
        "receive",
        "request_id",
        "scope",
        "unread",
        "whole",
    )

    def __init__(self, scope: Scope, receive: Receive, settings: Settings, *, unread: bool | None = None) -> None:
        self.begin = time.monotonic()
        self.client: str = scope.get(CLIENT, "")
        self.receive = receive
        self.headers: Mapping[bytes, bytes] = combined(scope["headers"], _HEADERS)
        sent_id = self.headers.get(b"x-request-id")
        self.request_id = new_request_id() if sent_id is None else request_id(sent_id.decode("latin-1"))
        self.query: bytes = scope["query_string"]
        self.scope = scope
        self.model = ""
        self.job: Job | None = None
        self.decompressor: Decompressor | None = None
        self.unread: bool = scope["method"] not in ("GET", "HEAD") if unread is None else unread
        self.whole: bool = scope.get(WHOLE, False)
        self.length: int | None = None
        self.max_body_bytes, self._limit = int(settings.max_body_bytes), "setting max_body_bytes"
        self.max_timeout_ms = settings.max_timeout_ms
        self.deadline = self.begin + settings.request_timeout_ms / 1000

    def identify(self, model: str, job: Job | None = None) -> None:
        """Note what the request asks for: logs and metrics name it."""
        self.model, self.job = model, job

    def read_headers(self) -> None:
        """Read length, encoding and deadline.

        Raises:
            TooLarge: The stated length is over the limit.
            UnsupportedMediaType: The encoding is unknown.
            InvalidRequest: The time-out is not a number of milliseconds.
        """
        if length := self.headers.get(b"content-length"):
            self.length = int(length)
            if self.length > self.max_body_bytes:
                raise self.too_large(self.length)
        if (header := self.headers.get(b"content-encoding")) is not None and (encoding := content_encoding(header)):
            self.decompressor = Decompressor(encoding)
        if timeout := self.headers.get(b"x-request-timeout-ms"):
            if not timeout.isdigit() or len(timeout) > MAX_DIGITS or not int(timeout):
                raise InvalidRequest(
                    "X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1, of at most "
                    f"{MAX_DIGITS} digits"
                )
            self.deadline = self.begin + min(int(timeout), self.max_timeout_ms) / 1000

    def limit_json(self, max_json_bytes: int) -> None:
        """Apply the limit of JSON bodies, if it is lower.

        Raises:
            TooLarge: The stated length is over it.
        """
        self.limit_body(max_json_bytes, "setting max_json_bytes; tensors may be larger in binary")

    def limit_body(self, nbytes: int, limit: str) -> None:
        """Apply a limit of the body, if it is lower.

        Args:
            nbytes: The most bytes.
            limit: The limit's name, for the error.

        Raises:
            TooLarge: The stated length is over it.
        """
        if nbytes < self.max_body_bytes:
            self.max_body_bytes, self._limit = nbytes, limit
            if self.length is not None and self.length > nbytes:
                raise self.too_large(self.length)

    def too_large(self, size: int) -> TooLarge:
        """Return the refusal of a body that has at least so many bytes."""
        return TooLarge(f"the body has {size} bytes or more, at most {self.max_body_bytes} are read ({self._limit})")

    async def chunk(self) -> bytes:
        """Return the next piece of the body; ``unread`` is false after the last.

        Raises:
            DisconnectedError: The client left.
            Problem: Why the rest is not read.
        """
        if self.decompressor is not None:
            return await self._decompressed(self.decompressor)
        message = await self._message()
        self.unread = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk

    async def _message(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        if FAULT in self.scope:
            raise self.scope[FAULT]
        return message

    async def _decompressed(self, decompressor: Decompressor) -> bytes:
        """Return the next piece of the body without its Content-Encoding."""
        while decompressor.needs_input:
            message = await self._message()
            decompressor.feed(message.get("body", b""), unread=message.get("more_body", False))
        piece = await decompressor.piece()
        if (size := max(decompressor.size, decompressor.taken)) > self.max_body_bytes:  # as if stated
            raise self.too_large(size)
        self.unread = not decompressor.done
        return piece

    async def body(self, budget: Budget) -> bytes | bytearray:
        """Return the whole body.

        Args:
            budget: The engine's budget; the body counts in it until it is complete.

        Raises:
            TooLarge: The body is over the limit.
            QueueFull: The budget has no room.
            DeadlineExceeded: The deadline passed.
            DisconnectedError: The client left.
        """
        if self.whole and self.decompressor is None:
            if (cycle := own_cycle(self.receive)) is not None:
                chunk: bytes | bytearray = take_body(cycle)
                self.unread = False
            else:
                chunk = await self.chunk()
            if len(chunk) > self.max_body_bytes:
                raise self.too_large(len(chunk))
            return chunk
        if self._can_receive_into and self.length is not None and self.length <= PREALLOCATED_BYTES:
            return await self._preallocated(self.length, budget)
        body = bytearray()
        with self.gathering(budget) as count:
            async with self.in_time():
                while self.unread:
                    body += await self.chunk()
                    if len(body) > self.max_body_bytes:
                        raise self.too_large(len(body))
                    count(len(body))
        return body

    async def upload(
        self,
        upload: Upload,
        received: memoryview,
        spans: Iterable[tuple[str, int, int]],
        wrong_length: Callable[[int], MalformedBody],
    ) -> asyncio.Future[Result]:
        """Write the rest of the body into an upload as it arrives, then submit it.

        Args:
            upload: Where the tensors go; it is abandoned if this fails.
            received: The bytes of the tensors that have arrived.
            spans: Name, begin and end of each tensor in the body, in order and without gaps, from 0 on.
            wrong_length: Makes the refusal of a body whose tensors have this number of bytes instead.
        """
        try:
            buffer = BodyBuffer(upload.buffer(name) for name, _, _ in spans)
            size = buffer.missing
            received = buffer.fill(received)
            if buffer.missing and self._can_receive_into:
                await self._receive_into(buffer)
            while buffer.missing or (self.unread and not len(received)):  # the last chunk may be empty
                if not self.unread:
                    raise wrong_length(size - buffer.missing)
                received = buffer.fill(memoryview(await self.chunk()))
            if len(received):
                raise wrong_length(size + len(received))
        except BaseException:
            upload.abandon()
            raise
        return upload.submit()

    @property
    def _can_receive_into(self) -> bool:
        """Whether the connection can read the rest of the body into given memory."""
        return self.unread and self.length is not None and self.decompressor is None and CONNECTION in self.scope

    async def _receive_into(self, buffer: BodyBuffer) -> None:
        await self.scope[CONNECTION].receive_into(buffer)
        self.unread = False

    async def _preallocated(self, length: int, budget: Budget) -> bytearray:
        """Return the whole body, of that length."""
        budget.gather(self.client, length, length)
        try:
            async with self.in_time():
                body = bytearray(length)
                buffer = BodyBuffer([memoryview(body)])
                buffer.fill(memoryview(await self.chunk()))  # sends 100 Continue if the client waits for it
                if self.unread:
                    await self._receive_into(buffer)
        finally:
            budget.gather(self.client, -length)
        return body

    @contextmanager
    def gathering(self, budget: Budget) -> Iterator[Callable[[int], None]]:
        """Count a body that grows in the budget for the duration of the block.

        Yields:
            A function of the body's bytes so far. It raises QueueFull or TooLarge if there is no room.
        """
        gathered, stated = 0, (self.length or 0) if self.decompressor is None else 0

        def count(nbytes: int) -> None:
            nonlocal gathered
            budget.gather(self.client, nbytes - gathered, max(nbytes, stated))
            gathered = nbytes

        try:
            yield count
        finally:
            budget.gather(self.client, -gathered)

    @contextmanager
    def holding(self, budget: Budget, nbytes: int) -> Iterator[None]:
        """Count a body of so many bytes in the budget for the duration of the block.

        Raises:
            QueueFull: There is no room now.
            TooLarge: There never is room.
        """
        budget.gather(self.client, nbytes, nbytes)
        try:
            yield
        finally:
            budget.gather(self.client, -nbytes)

    @asynccontextmanager
    async def in_time(self, late: str = "the body had not arrived") -> AsyncIterator[None]:
        """End the block at the request's deadline.

        Args:
            late: The beginning of the error's detail.

        Raises:
            DeadlineExceeded: The deadline passed.
        """
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                yield
        except TimeoutError:
            raise DeadlineExceeded(f"{late} when the request's deadline passed") from None

    async def stop_reading(self) -> None:
        """Stop decoding the body; take the rest if it has arrived."""
        if self.decompressor is not None:
            self.unread, self.decompressor = self.decompressor.unread, None
        if self.unread and self.whole:
            with suppress(DisconnectedError, Problem):
                await self.chunk()

    async def drain(self) -> None:
        """Read and drop the rest of the body, for two seconds at most.

        Closing a socket over unread bytes resets it, and the answer is lost: the client sees a broken connection
        instead of the reason.
        """
        with suppress(DisconnectedError, TimeoutError, Problem):
            async with asyncio.timeout(LINGER_S):
                while self.unread:
                    await self.chunk()
