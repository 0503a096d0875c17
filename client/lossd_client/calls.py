"""What is sent and received in a call, and what a conversation yields. No I/O: both clients share this module.

A conversation is a generator. It yields :class:`Send` and receives the :class:`HttpResponse`, or the transport's error
as an exception. It yields :class:`Resolve` and receives the records of a name, and :class:`Wait` before a retry.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import httpx

from lossd_client.addresses import Address, Addresses, Name
from lossd_client.wire.quoting import digits

__all__ = ["Body", "Call", "Conversation", "HttpResponse", "ReceivedResponse", "Resolve", "Send", "Stalled", "Wait"]

T = TypeVar("T")

CHUNK_BYTES = 128 << 10
GRACE_S = 1.0
"""How much longer the client waits than the service's deadline: a 504 says more than a closed connection."""

CONNECT_S = 2.0
"""How long a connection may take if there is another address."""
PROBE_S = 3.0
HEALTH = "/health/live"
"""What a service that lives answers within that time, however busy it is."""

_NOTHING = httpx.ByteStream(b"")
_parsed = lru_cache(maxsize=1024)(httpx.URL)


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A request's body, in pieces that can be sent again for a retry.

    Args:
        pieces: The memory to send. It is read at sending time, so it must not change before.

    Attributes:
        nbytes: Its size.
        sent: The bytes that were taken to be sent, in all attempts together.
    """

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self.pieces = pieces
        self.nbytes = sum(len(piece) for piece in pieces)
        self.sent = 0

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
            self.sent += len(chunk)
            yield chunk


@dataclass(frozen=True, slots=True)
class Call:
    """A request to the service, with its deadline and retries.

    Attributes:
        method: GET, PUT, POST or DELETE; sending it twice does what sending it once does.
        path: The path and the query, appended to an address.
        headers: All headers except the body's length and the deadline, with lower-case names.
        timeout_s: Seconds until the call fails, pauses and retries included.
        retries: The most retries.
        request_id: The header ``X-Request-ID``.
        addresses: The addresses of the service.
        body: The body of a PUT or a POST.
        stall_s: Seconds without a byte after which the service must show that it lives.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    timeout_s: float
    retries: int
    request_id: str
    addresses: Addresses
    body: Body | None = None
    stall_s: float = math.inf

    @property
    def url(self) -> str:
        """The whole URL; with several addresses, all of them and the path."""
        return self.addresses.text + self.path


@dataclass(frozen=True, slots=True)
class Resolve:
    """An instruction to resolve a name, and to send its records."""

    name: Name


@dataclass(frozen=True, slots=True)
class Send:
    """An instruction to send the call now, to this address."""

    call: Call
    address: Address
    timeout_s: float

    @property
    def quiet_s(self) -> float:
        """Seconds without a byte after which the service must show that it lives.

        If there are several addresses, time is left for another one.
        """
        call = self.call
        return min(call.stall_s, self.timeout_s / 3) if call.addresses.several else call.stall_s

    def request(self, cookies: httpx.Cookies | None = None) -> httpx.Request:
        """Return the HTTP request.

        ``httpx.Client.build_request`` would merge the same headers for every call. That takes longer than the rest of
        this client takes for a small request.
        """
        call, address = self.call, self.address
        url = _parsed(address.url + call.path)
        named = url if address.name is None else _parsed(address.name)
        headers = {"host": named.netloc.decode("ascii"), **call.headers}
        if call.body is not None:
            headers["content-length"] = str(call.body.nbytes)
            headers["x-request-timeout-ms"] = str(max(1, int(self.timeout_s * 1000)))
        connect_s = min(self.timeout_s, self.quiet_s, CONNECT_S if call.addresses.several else math.inf)
        read_s = self.timeout_s + GRACE_S
        timeout = {"connect": connect_s, "read": read_s, "write": read_s, "pool": self.timeout_s}
        extensions: dict[str, Any] = {"timeout": timeout}
        if address.name is not None:
            extensions["sni_hostname"] = named.raw_host.decode("ascii")  # the certificate is the name's
        return httpx.Request(
            call.method, url, headers=headers, cookies=cookies, stream=call.body or _NOTHING, extensions=extensions
        )

    def probe(self) -> Send:
        """Return the instruction whose answer shows that the service at this address lives."""
        call = replace(self.call, method="GET", path=HEALTH, body=None, stall_s=math.inf)
        return Send(call, self.address, PROBE_S)


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
        nbytes: The bytes of the body that have arrived.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._status = response.status_code
        self._headers = _headers_by_name(response.headers.raw)
        announced = self._headers.get("content-length", "")
        self.encoded = "content-encoding" in self._headers
        self._buffer = bytearray(int(announced) if announced.isdigit() and not self.encoded else 0)
        self.nbytes = 0

    def add(self, chunk: bytes) -> None:
        """Append the next piece of the body."""
        end = self.nbytes + len(chunk)
        self._buffer[self.nbytes : end] = chunk
        self.nbytes = end

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


Conversation = Generator[Send | Wait | Resolve, HttpResponse | list[str] | None, T]


class Stalled(httpx.NetworkError):
    """No byte of an attempt moved, and the service does not answer on another connection."""

    def __init__(self, quiet_s: float) -> None:
        super().__init__(f"no byte moved for {digits(quiet_s)} s, and {HEALTH} was not answered either")
