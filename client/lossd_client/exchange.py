"""One call: what is sent, when it is retried, and how it ends. No I/O: both clients share this module.

A call is a generator. It yields :class:`Send` and receives the :class:`HttpResponse`, or the transport's error as an
exception. It yields :class:`Wait` before a retry. It returns the successful response.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, TypeVar

import httpx

from lossd_client.errors import (
    ConnectionFailed,
    LossdError,
    MalformedBody,
    NotFound,
    Problem,
    QueueFull,
    Unavailable,
    UnreadableAnswer,
)
from lossd_client.wire import json
from lossd_client.wire.quoting import digits

__all__ = ["Body", "Call", "HttpResponse", "ReceivedResponse", "Send", "Wait", "attempt", "exchange"]

T = TypeVar("T")

CHUNK_BYTES = 128 << 10
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 8.0
LONGEST_PAUSE_UNAVAILABLE_S = 1.0
GRACE_S = 1.0
"""How much longer the client waits than the service's deadline: a 504 says more than a closed connection."""

_NOTHING = httpx.ByteStream(b"")
_parsed = lru_cache(maxsize=128)(httpx.URL)


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A request's body, in pieces that can be sent again for a retry.

    Args:
        pieces: The memory to send. It is read at sending time, so it must not change before.
    """

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self.pieces = pieces
        self.nbytes = sum(len(piece) for piece in pieces)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks for the socket.

        Small pieces are joined to save system calls. Large pieces are split, because the HTTP library copies each chunk
        and a small copy is freed sooner.
        """
        small = bytearray()
        for piece in self.pieces:
            if len(small) + len(piece) <= CHUNK_BYTES:
                small += piece
                continue
            if small:
                yield bytes(small)
                small.clear()
            view = memoryview(piece)
            for at in range(0, len(view), CHUNK_BYTES):
                yield bytes(view[at : at + CHUNK_BYTES])
        if small:
            yield bytes(small)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the chunks of :meth:`__iter__`."""
        for chunk in self:
            yield chunk


@dataclass(frozen=True, slots=True)
class Call:
    """A request to the service, with its deadline and retries.

    Attributes:
        method: GET, PUT, POST or DELETE; sending it twice does what sending it once does.
        url: The whole address.
        headers: All headers except the body's length and the deadline, with lower-case names.
        timeout_s: Seconds until the call fails, pauses and retries included.
        retries: The most retries.
        request_id: The header ``X-Request-ID``.
        body: The body of a PUT or a POST.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    timeout_s: float
    retries: int
    request_id: str
    body: Body | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """An instruction to send the call now."""

    call: Call
    timeout_s: float

    def request(self, cookies: httpx.Cookies | None = None) -> httpx.Request:
        """Return the HTTP request.

        ``httpx.Client.build_request`` would merge the same headers for every call. That takes longer than the rest of
        this client takes for a small request.
        """
        url = _parsed(self.call.url)
        headers = {"host": url.netloc.decode("ascii"), **self.call.headers}
        if self.call.body is not None:
            headers["content-length"] = str(self.call.body.nbytes)
            headers["x-request-timeout-ms"] = str(max(1, int(self.timeout_s * 1000)))
        read_timeout_s = self.timeout_s + GRACE_S
        timeout = {"connect": self.timeout_s, "read": read_timeout_s, "write": read_timeout_s, "pool": self.timeout_s}
        return httpx.Request(
            self.call.method,
            url,
            headers=headers,
            cookies=cookies,
            stream=self.call.body or _NOTHING,
            extensions={"timeout": timeout},
        )


@dataclass(frozen=True, slots=True)
class Wait:
    """An instruction to sleep."""

    seconds: float


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete response; its headers' names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytearray

    @property
    def media_type(self) -> str:
        """The Content-Type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class ReceivedResponse:
    """A response that is still arriving.

    Its body goes into one writable buffer, of the size in Content-Length if there is one.

    Attributes:
        encoded: Whether the body is compressed, although the client never asks for compression.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._status = response.status_code
        self._headers = _headers_by_name(response.headers.raw)
        announced = self._headers.get("content-length", "")
        self.encoded = "content-encoding" in self._headers
        self._buffer = bytearray(int(announced) if announced.isdigit() and not self.encoded else 0)
        self._received = 0

    def add(self, chunk: bytes) -> None:
        """Append the next piece of the body."""
        end = self._received + len(chunk)
        self._buffer[self._received : end] = chunk
        self._received = end

    def response(self) -> HttpResponse:
        """Return the complete response."""
        return HttpResponse(self._status, self._headers, self._buffer)


def _headers_by_name(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by name.

    ``httpx`` takes as long to look up one of the five headers we read as this loop takes for all of them.
    """
    headers: dict[str, str] = {}
    for name_bytes, value_bytes in raw:
        name, value = name_bytes.decode("latin-1").lower(), value_bytes.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def exchange(call: Call) -> Generator[Send | Wait, HttpResponse | None, HttpResponse]:
    """Return the successful response to a call, after as many retries as it may have.

    Evaluation is pure, and the requests about runs are idempotent. So a request can be sent again even if the service
    has carried it out: after a failed or broken connection, and after 429 and 503, no sooner than Retry-After says.
    Pauses grow and are random, so that clients that failed together do not retry together. A starting service answers
    503, so 503 is retried until the deadline; other failures are retried ``call.retries`` times. A DELETE that is sent
    again and finds nothing has succeeded: the answer to the first one was lost.

    Raises:
        LossdError: The error of the last attempt.
    """
    deadline = time.monotonic() + call.timeout_s
    retries = counted_retries = 0
    while True:
        try:
            return (yield from attempt(call, deadline - time.monotonic()))
        except LossdError as failure:
            unavailable = isinstance(failure, Problem) and failure.status == Unavailable.status
            longest_s = LONGEST_PAUSE_UNAVAILABLE_S if unavailable else LONGEST_PAUSE_S
            pause_s = random.uniform(0, min(longest_s, FIRST_PAUSE_S * 2 ** min(retries, 10)))
            if isinstance(failure, Problem):
                pause_s += failure.retry_after_s or 0.0
            if retries and call.method == "DELETE" and isinstance(failure, NotFound):
                return HttpResponse(204, {}, bytearray())
            late = time.monotonic() + pause_s >= deadline
            exhausted = call.retries == 0 if unavailable else counted_retries == call.retries
            if late or exhausted or not _is_retryable(failure):
                raise
        yield Wait(pause_s)
        retries += 1
        counted_retries += not unavailable


def attempt(call: Call, timeout_s: float) -> Generator[Send | Wait, HttpResponse | None, HttpResponse]:
    """Return the successful response to a call that is sent once.

    Raises:
        LossdError: The call failed.
    """
    try:
        response = yield Send(call, max(timeout_s, 0.001))
    except httpx.RequestError as error:
        raise _connection_failed(call, error) from error
    assert response is not None
    if 200 <= response.status < 300:
        return response
    raise _failure(call, response)


def _is_retryable(failure: LossdError) -> bool:
    if isinstance(failure, ConnectionFailed):
        return isinstance(
            failure.__cause__,
            httpx.NetworkError | httpx.RemoteProtocolError | httpx.ConnectTimeout | httpx.PoolTimeout,
        )
    return isinstance(failure, Problem) and failure.status in (QueueFull.status, Unavailable.status)


def _connection_failed(call: Call, error: httpx.RequestError) -> ConnectionFailed:
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        detail = f"cannot connect to {call.url} ({reason}); is the service running there? Start one with: lossd serve"
    elif isinstance(error, httpx.PoolTimeout):
        detail = f"no connection to {call.url} became free within {digits(call.timeout_s)} s; send fewer at once"
    elif isinstance(error, httpx.TimeoutException):
        detail = f"{call.url} did not answer within {digits(call.timeout_s)} s; raise timeout_s"
    else:
        detail = f"the connection to {call.url} broke before the answer was complete ({reason}); the log may say why"
    return ConnectionFailed(detail, request_id=call.request_id)


def _failure(call: Call, response: HttpResponse) -> LossdError:
    request_id = response.headers.get("x-request-id") or call.request_id
    if response.status < 400:
        location = response.headers.get("location")
        remedy = f" to {location}; connect to that address instead" if location else ""
        return UnreadableAnswer(f"{call.url} answers with status {response.status}{remedy}", request_id=request_id)
    document: Any = None
    if response.media_type in ("application/problem+json", json.MEDIA_TYPE):
        with suppress(MalformedBody):
            document = json.loads(response.body)
    if not isinstance(document, dict):
        text = " ".join(response.body[:200].decode("utf-8", "replace").split())
        detail = (
            f"{call.url} answers with status {response.status} but no problem document; is it lossd? It says: {text!r}"
        )
        document = {"detail": detail}
    return Problem.from_json(
        document,
        status=response.status,
        request_id=request_id,
        retry_after_s=_retry_after_s(response.headers.get("retry-after", "")),
    )


def _retry_after_s(value: str) -> float | None:
    """Return Retry-After, a number of seconds or a date, as seconds from now."""
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        return max(0.0, (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return None
