"""One request and its answer over ASGI: what the routes that evaluate share.

Bodies are read within limits and deadlines, and results are waited for while the client is watched.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from lossd.api.http.body_buffer import Vessel
from lossd.api.http.compression import Unpacker, encoding_of
from lossd.configuration.settings import Settings
from lossd.engine import Engine, Result, Upload
from lossd.engine.admission import Budget
from lossd.job import Job
from lossd_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    Problem,
    TooLarge,
    Unauthorized,
)
from lossd_client.wire import json

__all__ = [
    "CLIENT",
    "CONNECTION",
    "FAULT",
    "ROOT",
    "TELEMETRY",
    "WHOLE",
    "DisconnectedError",
    "Exchange",
    "Receive",
    "Send",
    "cancel_on_disconnect",
    "new_request_id",
    "refusal",
    "request_id",
]

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Where the scope has the name of the API key that the request came with.
CLIENT = "lossd.client"
# Where the scope has the connection, if that can :meth:`pour <lossd.api.http.connection.Http.pour>`.
CONNECTION = "lossd.connection"
# Where the scope has the problem for which the rest of the body is not read.
FAULT = "lossd.fault"
# Where the application's state has what counts requests.
TELEMETRY = "lossd.telemetry"
# Where the scope has the path that a proxy serves this one below, if there is one.
ROOT = "lossd.root"
# Where the scope says that all of the body had arrived when the request began to be answered.
WHOLE = "lossd.whole"

MAX_DIGITS = 18
# Bodies up to this length are given their memory before they have come.
POURED_BYTES = 1 << 20
LINGER_S = 2.0

_HEADERS = frozenset(
    (
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"accept",
        b"accept-encoding",
        b"inference-header-content-length",
        b"x-request-id",
        b"x-request-timeout-ms",
    )
)
_ids = itertools.count()
_id_prefix = secrets.token_hex(4)


def new_request_id() -> str:
    """An id for a request that brings none: unique among the running services."""
    return f"{_id_prefix}-{next(_ids):x}"


def request_id(given: str) -> str:
    """The client's id, cut to 128 characters; a new one in place of one that a log could take for something else."""
    return given[:128] if given and given.isascii() and given.isprintable() else new_request_id()


class DisconnectedError(Exception):
    """The client left; there is nobody to answer."""


class Exchange:
    """One request and its answer: what the stages need to hand on.

    Args:
        scope: ASGI's.
        receive: ASGI's.
        settings: Limits.

    Attributes:
        allow: The methods its path takes.
        begin: When the request began, on the monotonic clock.
        client: The name of the API key it came with; empty where it came without.
        deadline: When its answer is no longer wanted, on the same clock.
        headers: Those that lossd reads, by lower-case name.
        job: What it asks, once that is known.
        request_id: The client's, or a new one.
        scope: ASGI's.
        setting: Where the limit of the body comes from.
        loss: What it is counted under, see :func:`lossd.job.model_name`; empty until that is known.
        turn_bytes: What it counts for in :class:`lossd.api.http.fairness.Turns`; 0 before its turn.
        unpacker: What takes the body out of its Content-Encoding, where it has one.
        unread: Whether there is more of the body to come.
        whole: Whether all of it is known to have arrived.
        length: The body's stated length in bytes, as it travels; None where it is not stated.
    """

    __slots__ = (
        "allow",
        "begin",
        "client",
        "deadline",
        "headers",
        "job",
        "length",
        "loss",
        "max_body_bytes",
        "max_timeout_ms",
        "query",
        "receive",
        "request_id",
        "scope",
        "setting",
        "turn_bytes",
        "unpacker",
        "unread",
        "whole",
    )

    def __init__(self, scope: Mapping[str, Any], receive: Receive, settings: Settings) -> None:
        self.allow = b"POST"
        self.begin = time.monotonic()
        self.client: str = scope.get(CLIENT, "")
        self.receive = receive
        self.headers = {name: value for name, value in scope["headers"] if name in _HEADERS}
        given = self.headers.get(b"x-request-id")
        self.request_id = new_request_id() if given is None else request_id(given.decode("latin-1"))
        self.query = scope["query_string"]
        self.scope = scope
        self.loss = ""
        self.job: Job | None = None
        self.turn_bytes = 0
        self.unpacker: Unpacker | None = None
        self.unread = True
        self.whole: bool = scope.get(WHOLE, False)
        self.length: int | None = None
        self.max_body_bytes, self.setting = int(settings.max_body_bytes), "max_body_bytes"
        self.max_timeout_ms = settings.max_timeout_ms
        self.deadline = self.begin + settings.request_timeout_ms / 1000

    def read_headers(self) -> None:
        """Learn length, encoding and deadline.

        Raises:
            TooLarge: By the stated length.
            UnsupportedMediaType: An encoding that is not read.
            InvalidRequest: A time-out that is no number of milliseconds.
        """
        if length := self.headers.get(b"content-length"):
            self.length = int(length)
            if self.length > self.max_body_bytes:
                raise self.too_large(self.length)
        if encoding := encoding_of(self.headers.get(b"content-encoding")):
            self.unpacker = Unpacker(encoding)
        if timeout := self.headers.get(b"x-request-timeout-ms"):
            if not timeout.isdigit() or len(timeout) > MAX_DIGITS or not int(timeout):
                raise InvalidRequest(
                    "X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1, of at most "
                    f"{MAX_DIGITS} digits"
                )
            self.deadline = self.begin + min(int(timeout), self.max_timeout_ms) / 1000

    def limit_json(self, max_json_bytes: int) -> None:
        """Hold a body that is all JSON to the limit of those, where that is less.

        Raises:
            TooLarge: By the stated length.
        """
        if max_json_bytes < self.max_body_bytes:
            self.max_body_bytes, self.setting = max_json_bytes, "max_json_bytes; tensors may be larger in binary"
            if self.length is not None and self.length > max_json_bytes:
                raise self.too_large(self.length)

    def too_large(self, size: int) -> TooLarge:
        """The refusal of a body that has at least so many bytes."""
        return TooLarge(
            f"the body has {size} bytes or more, at most {self.max_body_bytes} are read (setting {self.setting})"
        )

    # In

    async def chunk(self) -> bytes:
        """The next piece of the body; ``unread`` is false after the last.

        Raises:
            DisconnectedError: There will be none.
            Problem: Why the rest is not read.
        """
        if self.unpacker is not None:
            return await self._unpacked(self.unpacker)
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

    async def _unpacked(self, unpacker: Unpacker) -> bytes:
        """The next piece of the body as it was before its Content-Encoding."""
        while unpacker.hungry:
            message = await self._message()
            unpacker.feed(message.get("body", b""), unread=message.get("more_body", False))
        piece = await unpacker.piece()
        if (size := max(unpacker.size, unpacker.taken)) > self.max_body_bytes:  # as a stated length of either would be
            raise self.too_large(size)
        self.unread = not unpacker.done
        return piece

    async def body(self, budget: Budget) -> bytes | bytearray:
        """The whole body, for what is too small to be worth streaming or cannot be.

        Args:
            budget: The engine's, in which it counts until it is whole.

        Raises:
            TooLarge, QueueFull, DeadlineExceeded, DisconnectedError: While it was read.
        """
        if self.whole and self.unpacker is None:
            cycle = getattr(self.receive, "__self__", None)  # a middleware's is bound to something else, or to nothing
            chunk = self._take(cycle) if type(cycle) is RequestResponseCycle else await self.chunk()
            if len(chunk) > self.max_body_bytes:
                raise self.too_large(len(chunk))
            return chunk
        if self._can_pour and self.length is not None and self.length <= POURED_BYTES:
            return await self._poured(self.length, budget)
        body = bytearray()
        gathered = 0
        try:
            async with self.in_time():
                while self.unread:
                    body += await self.chunk()
                    if len(body) > self.max_body_bytes:
                        raise self.too_large(len(body))
                    budget.gather(self.client, len(body) - gathered)
                    gathered = len(body)
        finally:
            budget.gather(self.client, -gathered)
        return body

    async def pour(
        self,
        upload: Upload,
        received: memoryview,
        spans: Iterable[tuple[str, int, int]],
        wrong_length: Callable[[int], MalformedBody],
    ) -> asyncio.Future[Result]:
        """Write the rest of the body where it will be evaluated, chunk by chunk, as it arrives; then hand it in.

        Args:
            upload: What it is written into; abandoned if this fails.
            received: What has arrived of the tensors already.
            spans: Names and places of the tensors in the body, in order and without gaps, from 0 on.
            wrong_length: Given how many bytes of tensors there were, the refusal.
        """
        try:
            vessel = Vessel(upload.buffer(name) for name, _, _ in spans)
            size = vessel.missing
            received = vessel.fill(received)
            if vessel.missing and self._can_pour:
                await self._pour(vessel)
            while vessel.missing or (self.unread and not len(received)):  # the last chunk may be empty
                if not self.unread:
                    raise wrong_length(size - vessel.missing)
                received = vessel.fill(memoryview(await self.chunk()))
            if len(received):
                raise wrong_length(size + len(received))
        except BaseException:
            upload.abandon()
            raise
        return upload.submit()

    def _take(self, cycle: RequestResponseCycle) -> bytearray:
        """The body that uvicorn has for the request, without the copy that its ``receive`` makes."""
        if cycle.disconnected:
            raise DisconnectedError
        self.unread = False
        body, cycle.body = cycle.body, bytearray()
        cycle.message_event.clear()
        return body

    @property
    def _can_pour(self) -> bool:
        """Whether the rest of the body can be read straight to where it belongs."""
        return self.unread and self.length is not None and self.unpacker is None and CONNECTION in self.scope

    async def _pour(self, vessel: Vessel) -> None:
        await self.scope[CONNECTION].pour(vessel)
        self.unread = False

    async def _poured(self, length: int, budget: Budget) -> bytearray:
        """The whole body, of that length."""
        budget.gather(self.client, length)
        try:
            async with self.in_time():
                body = bytearray(length)
                vessel = Vessel([memoryview(body)])
                vessel.fill(memoryview(await self.chunk()))  # before which the client may wait for leave to send it
                if self.unread:
                    await self._pour(vessel)
        finally:
            budget.gather(self.client, -length)
        return body

    @contextmanager
    def holding(self, budget: Budget, nbytes: int) -> Iterator[None]:
        """What is inside has a body at hand, which counts as one that is gathered.

        Raises:
            QueueFull: There is no room for it.
        """
        budget.gather(self.client, nbytes)
        try:
            yield
        finally:
            budget.gather(self.client, -nbytes)

    @asynccontextmanager
    async def in_time(self, late: str = "the body had not arrived") -> AsyncIterator[None]:
        """What is inside must be done before the request's deadline.

        Args:
            late: How it stands where it is not.

        Raises:
            DeadlineExceeded: It was not.
        """
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                yield
        except TimeoutError:
            raise DeadlineExceeded(f"{late} when the request's deadline passed") from None

    async def refuse(self, problem: Problem, status: int, media_type: bytes, body: bytes, send: Send) -> None:
        """Answer with a problem, in the route's form; where a body has to be drained, the connection ends with it."""
        if self.unpacker is not None:
            self.unread, self.unpacker = self.unpacker.unread, None
        if self.unread and self.whole:
            with suppress(DisconnectedError, Problem):
                await self.chunk()
        headers = [
            (b"content-type", media_type),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", self.request_id.encode("latin-1")),
        ]
        if problem.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(problem.retry_after_s))))
        if isinstance(problem, MethodNotAllowed):
            headers.append((b"allow", self.allow))
        if isinstance(problem, Unauthorized):
            headers.append((b"www-authenticate", b'Bearer realm="lossd"'))
        if self.unread:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": self.unread})
        if self.unread:
            await self._drain()
            await send({"type": "http.response.body", "body": b""})

    async def _drain(self) -> None:
        """Take and drop what is still being sent.

        A socket that is closed over unread bytes is reset, and takes the answer with it: the client would see a broken
        connection in place of the reason.
        """
        with suppress(DisconnectedError, TimeoutError, Problem):
            async with asyncio.timeout(LINGER_S):
                while self.unread:
                    await self.chunk()

    # Between

    async def result(self, engine: Engine, future: asyncio.Future[Result]) -> Result:
        """The result; a request that waits long enough to notice is given up when its client leaves."""
        watcher: list[asyncio.Task[None]] = []

        def watch() -> None:
            watcher.append(asyncio.ensure_future(cancel_on_disconnect(self.receive, future)))

        engine.waiting.add(future, watch)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()  # answered and cancelled at the same moment
            else:
                future.cancel()
            if watcher and watcher[0].done():
                raise DisconnectedError from None
            raise
        finally:
            engine.waiting.remove(future)
            if watcher:
                watcher[0].cancel()


async def cancel_on_disconnect(receive: Receive, future: asyncio.Future[Any]) -> None:
    """Give up what a client waits for when it leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    future.cancel()


# Out


def refusal(scope: Mapping[str, Any], problem: Problem) -> tuple[bytes, bytes]:
    """A problem's media type and body, in the form of the protocol that the request's path belongs to."""
    path = scope["path"]
    if path == "/v2" or path.startswith("/v2/"):
        return json.MEDIA_TYPE.encode(), json.dumps({"error": problem.detail})
    document = problem.to_json()
    if ROOT in scope:
        document["type"] = scope[ROOT] + document["type"]
    return b"application/problem+json", json.dumps(document)
