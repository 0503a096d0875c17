"""Reading requests: uvicorn's parser, with limits, fed as fast as requests are answered.

**What uvicorn leaves open.** Uvicorn limits neither heads nor trailers, and parses all requests that one read brings:
256 KB of pipelined GETs cost 6 MB a connection, and 15,900 header fields cost 1.93 MB.

**How the parser is fed.** httptools calls back for everything that it is given. A read of up to 4 KiB is fed at once. A
longer one is fed in pieces: at most 1 KiB of a head, and no further than the head's end, so that the body behind it
comes in one piece; a body of known length at once; a chunked body in pieces of 4 KiB. As soon as a request waits behind
the one that is answered, feeding stops, the rest stays as bytes, and the transport is paused. Before, pieces of a fixed
size were fed; a body was cut where the piece ended.
"""

from __future__ import annotations

from typing import Any

import httptools

from lossd.api.http.asgi import CONNECTION, RAW_HEAD, WHOLE
from lossd.api.http.refusing import BODY, HEAD, IDLE, RefusingProtocol
from lossd.api.http.uvicorn_internals import HIGH_WATER_LIMIT
from lossd_client.errors import HeadTooLarge, MalformedRequest, Problem, UriTooLong
from lossd_client.wire.quoting import quoted

__all__ = ["ParsingProtocol"]

# The limits of a head, and of the trailers behind a body.
MAX_HEAD_BYTES = 64 << 10
MAX_FIELDS = 128

# The most bytes the parser gets at once: of a short read, of a head in a longer read, and of a chunked body.
SHORT_BYTES = 4 << 10
SLICE_BYTES = 1 << 10
CHUNKED_BYTES = 4 << 10

_FRAMING = frozenset((b"content-length", b"expect", b"host", b"transfer-encoding"))


class ParsingProtocol(RefusingProtocol):
    """The part of a connection that parses.

    Java's HTTP client, among others, offers HTTP/2 with its first request and accepts an answer in HTTP/1.1. The parser
    ends a message at an ``Upgrade`` header and drops its body. The head is therefore parsed again without that header.

    Attributes:
        ending: Whether the connection ends after the requests that have been sent.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ending = False
        self._received_s = self.timeouts.now  # on the clock of the time-outs
        self._overhead_bytes = 0  # bytes parsed since the last head or piece of a body was complete
        self._body_left = 0  # bytes; of a chunked body, minus the bytes that have arrived
        self._content_length = b""
        self._host_fields = 0
        self._raw_head = b""  # of the request that is parsed next, if it may be known later

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, or keep them while a request waits."""
        self._received_s = self.timeouts.now
        if self._refusing:
            return
        if self._unparsed or self.pipeline:  # TLS delivers what it has decrypted although reading is paused
            self._unparsed += data
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Feed the parser until a request waits behind the one that is answered.

        A head that offers another protocol is parsed again without the offer.
        """
        at, size = 0, len(data)
        while at < size and not self.pipeline and not self._refusing:
            piece: bytes | memoryview = data
            if size > SHORT_BYTES:
                piece = memoryview(data)[at : at + self._next_step(data, at)]
            at += len(piece)
            self._overhead_bytes += len(piece)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                if self._offers_upgrade():
                    data = self._strip_upgrade() + data[at - len(piece) + upgrade.args[0] :]
                    at, size = 0, len(data)
            except httptools.HttpParserError as error:
                cause = error.__context__
                self._refuse(cause if isinstance(cause, Problem) else MalformedRequest("this is not HTTP"))
            if self._overhead_bytes > MAX_HEAD_BYTES:
                self._refuse(self._head_too_large())
        if not self._refusing:
            self._unparsed = data[at:] if at < size else b""
        if self._unparsed or self.pipeline:
            self.flow.full = True
            self.flow.pause_reading()

    def _next_step(self, data: bytes, at: int) -> int:
        """Return how many bytes the parser gets next."""
        if self._parsing != BODY:  # no further than the head's end, so that the body comes in one piece
            end = data.find(b"\r\n\r\n", at, at + SLICE_BYTES)
            return SLICE_BYTES if end < 0 else end + 4 - at
        return self._body_left if self._body_left > 0 else CHUNKED_BYTES

    def _offers_upgrade(self) -> bool:
        # CONNECT leaves HTTP too, but by itself, and has no body.
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _strip_upgrade(self) -> bytes:
        """Return the parsed head without its Upgrade header, and renew the parser for it."""
        version = self.parser.get_http_version().encode()
        start = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)
        headers = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self._renew_parser()
        return b"\r\n".join([start, *headers, b"", b""])

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._parsing = HEAD
        self._host_fields = self._body_left = 0
        self._content_length = b""
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a field of the head or of the trailers. Trailers are counted and dropped."""
        if len(self.headers) == MAX_FIELDS:
            raise HeadTooLarge(f"the request has more than {MAX_FIELDS} header fields")
        name, value = name.lower(), value.strip(b" \t")  # the parser leaves the white space behind a value
        if name in _FRAMING:
            if name == b"host":
                self._host_fields += 1
            elif name == b"content-length":
                self._content_length = value
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":  # the parser ignores codings before it
                    raise MalformedRequest(
                        f"Transfer-Encoding {quoted(value.decode('latin-1'))} is not read; chunked is, and "
                        "Content-Encoding says how a body is compressed"
                    )
            elif value.lower() == b"100-continue":
                self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the head must be parsed again.

        Raises:
            HeadTooLarge, UriTooLong: The head has too many bytes.
            MalformedRequest: The request has no Host field, or several.
        """
        if self._offers_upgrade():
            return
        if self._overhead_bytes > MAX_HEAD_BYTES - SHORT_BYTES and self._head_bytes() > MAX_HEAD_BYTES:
            raise self._head_too_large()
        if self._host_fields != 1 and (self._host_fields or self.parser.get_http_version() == "1.1"):
            raise MalformedRequest(f"the request has {self._host_fields or 'no'} Host fields; send one")
        self.scope[CONNECTION] = self  # type: ignore[literal-required]  # a key that lossd adds
        if self._raw_head:
            self.scope[RAW_HEAD] = self._raw_head  # type: ignore[literal-required]  # likewise
            self._raw_head = b""
        super().on_headers_complete()
        self._parsing, self._overhead_bytes = BODY, 0
        if self._content_length:
            self._body_left = int(self._content_length)
        self.headers = []  # a new list for the trailers; the scope keeps the old one
        if self.ending:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Store a piece of the body."""
        self._overhead_bytes = 0
        self._body_left -= len(body)
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """End the request, unless its head must be parsed again."""
        if not self._offers_upgrade():
            self._parsing, self._overhead_bytes = IDLE, 0
            self.scope[WHOLE] = True  # type: ignore[literal-required]  # a key that lossd adds
            cycle = self.cycle
            if not cycle.response_complete:
                cycle.more_body = False
                cycle.message_event.set()

    def _head_too_large(self) -> HeadTooLarge | UriTooLong:
        if self._parsing == HEAD and 2 * len(self.url) > MAX_HEAD_BYTES:
            return UriTooLong(f"the request's address and head have more than {MAX_HEAD_BYTES} bytes")
        what = "trailers and the framing of its body" if self._parsing == BODY else "head"
        return HeadTooLarge(f"the request's {what} has more than {MAX_HEAD_BYTES} bytes")

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
