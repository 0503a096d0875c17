"""One call: what is sent, when it is sent again, and what its end means. No I/O, so that both clients share it.

A call is a generator. It yields :class:`Send` and is given the :class:`Answer`, or has the transport's error thrown in;
it yields :class:`Wait` before it tries again; it returns what the caller reads.
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
    Problem,
    QueueFull,
    Unavailable,
    UnreadableAnswer,
)
from lossd_client.wire import json
from lossd_client.wire.quoting import digits

__all__ = ["Answer", "Body", "Call", "Receipt", "Send", "Wait", "attempt", "exchange"]

T = TypeVar("T")

CHUNK_BYTES = 128 << 10
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 8.0
LONGEST_PAUSE_UNAVAILABLE_S = 1.0
GRACE_S = 1.0
"""How much longer than the service the client waits: its answer to a deadline says more than silence."""

_NOTHING = httpx.ByteStream(b"")
_parsed = lru_cache(maxsize=128)(httpx.URL)


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A request's body: pieces that are sent one after the other, as often as it takes.

    Args:
        pieces: The memory to send; it is read when it is sent, not before.
    """

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self.pieces = pieces
        self.nbytes = sum(len(piece) for piece in pieces)

    def __iter__(self) -> Iterator[bytes]:
        """What to hand to the socket.

        Small pieces are put together, which spares system calls; large ones are cut up, because the HTTP library
        copies what it is given, and a small copy is a short-lived one.
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
        """The same."""
        for chunk in self:
            yield chunk


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of the service.

    Attributes:
        method: GET or POST.
        url: The whole address.
        headers: All but those that say how long the body is and the wait may be, their names in lower case.
        timeout_s: Seconds until the answer is no longer wanted, pauses and repetitions included.
        retries: How often it is sent again, at most.
        request_id: Its ``X-Request-ID``.
        body: What a POST sends.
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
    """Send the call now."""

    call: Call
    timeout_s: float

    def request(self, cookies: httpx.Cookies | None = None) -> httpx.Request:
        """What goes over the wire.

        ``httpx.Client.build_request`` would merge anew, call by call, what is the same for all of them, and take longer
        over it than the rest of this client takes over a small request.
        """
        url = _parsed(self.call.url)
        headers = {"host": url.netloc.decode("ascii"), **self.call.headers}
        if self.call.body is not None:
            headers["content-length"] = str(self.call.body.nbytes)
            headers["x-request-timeout-ms"] = str(max(1, int(self.timeout_s * 1000)))
        patience_s = self.timeout_s + GRACE_S
        timeout = {"connect": self.timeout_s, "read": patience_s, "write": patience_s, "pool": self.timeout_s}
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
    """Do nothing for so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whole; the headers' names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytearray

    @property
    def media_type(self) -> str:
        """The Content-Type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Receipt:
    """An answer under way: its body is gathered in one writable buffer, of the announced size where there is one.

    Attributes:
        encoded: Whether the body comes compressed, although nobody asked for that.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._status = response.status_code
        self._headers = _joined(response.headers.raw)
        announced = self._headers.get("content-length", "")
        self.encoded = "content-encoding" in self._headers
        self._buffer = bytearray(int(announced) if announced.isdigit() and not self.encoded else 0)
        self._received = 0

    def add(self, chunk: bytes) -> None:
        """The next piece of the body."""
        end = self._received + len(chunk)
        self._buffer[self._received : end] = chunk
        self._received = end

    def answer(self) -> Answer:
        """All of it."""
        return Answer(self._status, self._headers, self._buffer)


def _joined(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by name. Five are read: ``httpx`` takes as long to look up each as this does for all of them."""
    headers: dict[str, str] = {}
    for name_bytes, value_bytes in raw:
        name, value = name_bytes.decode("latin-1").lower(), value_bytes.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def exchange(call: Call) -> Generator[Send | Wait, Answer | None, Answer]:
    """The successful answer to a call, after as many repetitions as it may have.

    Evaluation is pure, so what may or may not have been evaluated can be sent again: after a connection that failed or
    broke, and after 429 and 503, no sooner than their Retry-After says. Pauses grow and are drawn at random, so that
    clients which failed together do not come back together. A service that is unavailable says so until it has started:
    503 is repeated until the deadline, all else ``call.retries`` times.

    Raises:
        LossdError: The last attempt's failure.
    """
    deadline = time.monotonic() + call.timeout_s
    repetition = counted = 0
    while True:
        try:
            return (yield from attempt(call, deadline - time.monotonic()))
        except LossdError as failure:
            unavailable = isinstance(failure, Problem) and failure.status == Unavailable.status
            longest_s = LONGEST_PAUSE_UNAVAILABLE_S if unavailable else LONGEST_PAUSE_S
            pause_s = random.uniform(0, min(longest_s, FIRST_PAUSE_S * 2 ** min(repetition, 10)))
            if isinstance(failure, Problem):
                pause_s += failure.retry_after_s or 0.0
            late = time.monotonic() + pause_s >= deadline
            spent = call.retries == 0 if unavailable else counted == call.retries
            if late or spent or not _worth_repeating(failure):
                raise
        yield Wait(pause_s)
        repetition += 1
        counted += not unavailable


def attempt(call: Call, timeout_s: float) -> Generator[Send | Wait, Answer | None, Answer]:
    """The successful answer to a call that is sent once.

    Raises:
        LossdError: What came of it instead.
    """
    try:
        answer = yield Send(call, max(timeout_s, 0.001))
    except httpx.RequestError as error:
        raise _connection_failed(call, error) from error
    assert answer is not None
    if 200 <= answer.status < 300:
        return answer
    raise _failure(call, answer)


def _worth_repeating(failure: LossdError) -> bool:
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
        detail = f"{call.url} did not answer within {digits(call.timeout_s)} s; give it more with timeout_s"
    else:
        detail = f"the connection to {call.url} broke before the answer was complete ({reason}); the log may say why"
    return ConnectionFailed(detail, request_id=call.request_id)


def _failure(call: Call, answer: Answer) -> LossdError:
    request_id = answer.headers.get("x-request-id") or call.request_id
    if answer.status < 400:
        place = answer.headers.get("location")
        elsewhere = f" to {place}; connect to that address instead" if place else ""
        return UnreadableAnswer(f"{call.url} answers with status {answer.status}{elsewhere}", request_id=request_id)
    document: Any = None
    if answer.media_type in ("application/problem+json", json.MEDIA_TYPE):
        with suppress(MalformedBody):
            document = json.loads(answer.body)
    if not isinstance(document, dict):
        text = " ".join(answer.body[:200].decode("utf-8", "replace").split())
        detail = (
            f"{call.url} answers with status {answer.status} but no problem document; is it lossd? It says: {text!r}"
        )
        document = {"detail": detail}
    return Problem.from_json(
        document,
        status=answer.status,
        request_id=request_id,
        retry_after_s=_retry_after_s(answer.headers.get("retry-after", "")),
    )


def _retry_after_s(value: str) -> float | None:
    """Retry-After, which is a number of seconds or a date, as seconds from now."""
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        return max(0.0, (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return None
