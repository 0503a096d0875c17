"""One HTTP connection: uvicorn's protocol, with limits on what a client sends and on how long it takes.

**What uvicorn leaves open.** Uvicorn times the pause between two requests and nothing else. A client that sends half a
head or half a body, or does not read its answer, keeps its connection and the memory of its request as long as it
likes. Uvicorn also limits neither heads nor trailers, and parses all requests that one read brings: 256 KB of pipelined
GETs cost 6 MB a connection, and 15,900 header fields cost 1.93 MB.

**What the subclass changes.** :class:`Http` overrides callbacks of the transport and of the parser. Each callback notes
when something happened. :class:`~lossd.api.http.timeouts.Timeouts` compares these times with the limits a few times in
each time-out, so that a request sets no timer: to set and cancel one takes longer than to parse a small request. A
refused client is answered in order, behind the requests before, and has time to read the answer.

**How the parser is fed.** httptools calls back for everything that it is given. A read of up to 4 KiB is fed at once. A
longer one is fed in pieces: at most 1 KiB of a head, and no further than the head's end, so that the body behind it
comes in one piece; a body of known length at once; a chunked body in pieces of 4 KiB. As soon as a request waits behind
the one that is answered, feeding stops, the rest stays as bytes, and the transport is paused. Before, pieces of a fixed
size were fed; a body was cut where the piece ended. A body of known length that arrives later does not pass the parser
at all: see :meth:`Http.receive_into`.

**The half-closed probe.** After a client closes its sending side, a client that waits for its answer and one that left
look the same until something is written to them. So ``100 Continue``, which HTTP/1.1 allows before every answer, is
written to them. A client that left resets the connection, and the next write fails. The probes come after 50, 100 and
200 ms, then at each check of the time-outs. The first probe used to come after a second; until then the requests of
clients that had left were evaluated. TLS connections and HTTP/1.0 have no such probe.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import httptools

from lossd.api.http.asgi import CLIENT, CONNECTION, FAULT, WHOLE, DisconnectedError
from lossd.api.http.body_buffer import BodyBuffer, BodyProtocol
from lossd.api.http.refusing import LingeringTransport, OverLimit, Refusal
from lossd.api.http.timeouts import Timeouts
from lossd.api.http.uvicorn_internals import HIGH_WATER_LIMIT, FlowControl, HttpToolsProtocol, RequestResponseCycle
from lossd_client.errors import HeadTooLarge, MalformedRequest, Problem, RequestTimeout, UriTooLong
from lossd_client.wire.quoting import digits

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["Http", "http_for"]

# The limits of a head, and of the trailers behind a body.
MAX_HEAD_BYTES = 64 << 10
MAX_FIELDS = 128

LOGGED_PATH_BYTES = 256

# The most bytes the parser gets at once: of a short read, of a head in a longer read, and of a chunked body.
SHORT_BYTES = 4 << 10
SLICE_BYTES = 1 << 10
CHUNKED_BYTES = 4 << 10

LAST_REQUEST_S = 0.25  # for the next request of a client that keeps a connection which is about to end
READ_ANSWER_S = 2.0  # for a client that was refused while it was still sending
RATE_WINDOW_S = 10.0
ANONYMOUS_KEEP_ALIVE_S = 5.0  # between two requests of a client without a key, if the service has keys
SURPLUS_HEAD_S = 2.0  # for the head of a request on a connection over the limit
# A client that left resets the connection on the first probe, and the second probe fails. A fast answer precedes both.
PROBE_S, PROBES = 0.05, (1, 2, 4)

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FRAMING = frozenset((b"content-length", b"expect", b"host"))

# What is being parsed: nothing (between two requests), a head, or a body.
_IDLE, _HEAD, _BODY = range(3)


def http_for(settings: Settings) -> Callable[..., Http]:
    """Return the protocol of a server with these settings, for the ``http`` of ``uvicorn.Config``."""
    return partial(Http, timeouts=Timeouts(settings))


class _PausableFlow(FlowControl):
    """Uvicorn's flow control. It does not resume reading while ``full``, even if a request waits for its body."""

    full = False

    def resume_reading(self) -> None:
        if self.read_paused and not self.full:
            self.read_paused = False
            self._transport.resume_reading()


class Http(HttpToolsProtocol):
    """Uvicorn's protocol with time-outs, limits on heads and connections, and support for ignored upgrades.

    Java's HTTP client, among others, offers HTTP/2 with its first request and accepts an answer in HTTP/1.1. The parser
    ends a message at an ``Upgrade`` header and drops its body. The head is therefore parsed again without that header.

    Args:
        args: Uvicorn's arguments.
        timeouts: The time-outs of the server.
        kwargs: Uvicorn's arguments.

    Attributes:
        ending: Whether the connection ends after the requests that have been sent.
    """

    flow: _PausableFlow

    def __init__(self, *args: Any, timeouts: Timeouts, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeouts = timeouts
        self.ending = False
        self._answering: RequestResponseCycle | None = None
        # What is being read.
        self._parsing = _IDLE
        self._unparsed = b""  # bytes read, not yet given to the parser
        self._overhead_bytes = 0  # bytes parsed since the last head or piece of a body was complete
        self._body_left = 0  # bytes; of a chunked body, minus the bytes that have arrived
        self._content_length = b""
        self._host_fields = 0
        self._refusing = self._half_closed = self._surplus = False
        self._body_protocol: BodyProtocol | None = None
        # Times on the clock of the time-outs, and what they belong to.
        self._received_s = self._drained_s = self._head_due_s = self._idle_since_s = self._rate_begin_s = timeouts.now
        self._unsent = self._rate_begin_left = 0
        self._head_due: Any = self
        self._rate_scope: Any = None

    # Callbacks of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's
        """Begin a connection. One over the limit is refused with an answer; over twice the limit, it is reset."""
        super().connection_made(transport)
        self.flow = _PausableFlow(transport)
        # The time-outs' clock stands still while there are no connections; TLS has already written something.
        self._received_s = self._drained_s = time.monotonic()
        self.timeouts.add(self)
        limit = self.timeouts.settings.max_connections
        if len(self.connections) > 2 * limit:
            transport.abort()
        elif len(self.connections) > limit:
            self._surplus = True
            self.app = OverLimit(self.app, self.timeouts.settings)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection, and tell the request that is being answered."""
        self.timeouts.discard(self)
        self._unparsed = b""
        answered = self._answering
        if answered is not None and not answered.response_complete:  # uvicorn tells only the request read last
            answered.disconnected = True
            answered.message_event.set()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """Note that the client has read most of what was sent."""
        self._drained_s = self.timeouts.now
        super().resume_writing()

    def shutdown(self) -> None:
        """End the connection after the current request.

        If there is none, the client may have sent its next request already. It has a moment to arrive; its answer says
        that the connection closes.
        """
        self.ending = True
        if self._is_busy():
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(LAST_REQUEST_S, self._close_if_idle)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's may say so
        """Note that the client sends no more. Complete requests are still answered; half a request is dropped."""
        self._half_closed = self._parsing == _IDLE and self._is_busy() and self.scheme == "http"
        if self._half_closed:
            for times in PROBES:
                self.loop.call_later(times * PROBE_S, self._probe)
        return self._half_closed

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
        if self._parsing != _BODY:  # no further than the head's end, so that the body comes in one piece
            end = data.find(b"\r\n\r\n", at, at + SLICE_BYTES)
            return SLICE_BYTES if end < 0 else end + 4 - at
        return self._body_left if self._body_left > 0 else CHUNKED_BYTES

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

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._parsing = _HEAD
        self._host_fields = self._body_left = 0
        self._content_length = b""
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a field of the head or of the trailers. Trailers are counted and dropped."""
        if len(self.headers) == MAX_FIELDS:
            raise HeadTooLarge(f"the request has more than {MAX_FIELDS} header fields")
        name = name.lower()
        if name in _FRAMING:
            if name == b"host":
                self._host_fields += 1
            elif name == b"content-length":
                self._content_length = value
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
        super().on_headers_complete()
        self._parsing, self._overhead_bytes = _BODY, 0
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
            self._parsing, self._overhead_bytes = _IDLE, 0
            self.scope[WHOLE] = True  # type: ignore[literal-required]  # a key that lossd adds
            cycle = self.cycle
            if not cycle.response_complete:
                cycle.more_body = False
                cycle.message_event.set()

    # A body of known length, read directly into its memory

    async def receive_into(self, buffer: BodyBuffer) -> None:
        """Read the rest of the body into a buffer of exactly that size.

        Raises:
            DisconnectedError: The client left.
            Problem: Why the rest is not read.
        """
        cycle = self.cycle
        if cycle.disconnected:
            raise DisconnectedError
        buffer.fill(memoryview(cycle.body))
        cycle.body = bytearray()
        if not cycle.more_body:
            return
        cycle.message_event.clear()
        protocol = self._body_protocol = BodyProtocol(self, buffer)
        self.transport.set_protocol(protocol)
        self.flow.resume_reading()
        try:
            await protocol.done
        except asyncio.CancelledError:
            if cycle.disconnected:
                raise DisconnectedError from None
            protocol.abandon()
            raise
        except Problem:
            protocol.abandon()
            raise

    def body_received(self, missing: int) -> None:
        """Note that ``missing`` bytes of the body are left; return to HTTP when there are none."""
        self._received_s = self.timeouts.now
        self._body_left = missing
        if not missing:
            self._body_protocol = None
            self._parsing = _IDLE
            self._renew_parser()  # the old parser still waits for the body
            self.transport.set_protocol(self)
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Answer the next request, or become idle.

        Uvicorn sets a timer here. To set and cancel it takes longer than to parse a request.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._idle_since_s = self.timeouts.now
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if self.flow.full and not self.pipeline:
            self.flow.full = False
            if unparsed := self._unparsed:
                self._unparsed = b""
                self._parse(unparsed)
        if self._half_closed and not self._is_busy():
            self.transport.close()
        self.flow.resume_reading()

    # Time-outs

    def check_timeouts(self, now: float) -> None:
        """Close the connection, or refuse the request, if the client took too long.

        Args:
            now: The monotonic clock.
        """
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._drained_s = unsent, now
        elif now - self._drained_s > self.timeouts.idle_s:
            self.transport.abort()  # close() would wait until all was read
            return
        if self._is_busy():
            self._head_due = self
            self._check_body(now)
            if self._half_closed or self._closed_unread:
                self._probe()
        elif self._refusing:
            pass  # the refusal closes the connection
        elif self._is_idle():
            if now - self._idle_since_s > self._keep_alive_s():
                self.transport.close()
        else:  # the head has begun, or the connection is new
            limit_s = min(self.timeouts.idle_s, SURPLUS_HEAD_S) if self._surplus else self.timeouts.idle_s
            if self._head_due is not self.scope:
                self._head_due, self._head_due_s = self.scope, now
            elif now - self._head_due_s > limit_s:
                self._refuse(RequestTimeout(f"the request's head was not whole within {digits(limit_s)} seconds"))

    def _check_body(self, now: float) -> None:
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            self._received_s = now  # this side does not read
            self._rate_scope = None
        elif self.cycle.more_body and not self._refusing:
            if now - self._received_s > self.timeouts.idle_s:
                waited = digits(self.timeouts.idle_s)
                self._refuse(RequestTimeout(f"nothing of the body has arrived for {waited} seconds"))
            elif self._rate_scope is not self.scope:
                self._rate_scope, self._rate_begin_s, self._rate_begin_left = self.scope, now, self._body_left
            elif (window_s := now - self._rate_begin_s) > RATE_WINDOW_S:
                least = self.timeouts.settings.min_body_bytes_per_s
                if self._rate_begin_left - self._body_left < least * window_s:
                    slow = f"the body arrives with less than {least} bytes per second (setting min_body_bytes_per_s)"
                    self._refuse(RequestTimeout(slow))
                self._rate_begin_s, self._rate_begin_left = now, self._body_left

    def _probe(self) -> None:
        """Write ``100 Continue`` to a client that has closed its sending side.

        If the client left, it resets the connection. Otherwise it ignores the line.
        """
        cycle = self._answering
        if cycle is None or self.transport.is_closing() or cycle.response_started:
            return
        if cycle.scope["http_version"] != "1.0":
            self.transport.write(_CONTINUE)

    @property
    def _closed_unread(self) -> bool:
        """Whether the client has closed its sending side while nothing is read, so that no read reports it."""
        if not self.flow.full or self.scheme != "http":
            return False
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def _keep_alive_s(self) -> float:
        if self.timeouts.settings.has_keys and CLIENT not in self.cycle.scope:
            return min(self.timeout_keep_alive, ANONYMOUS_KEEP_ALIVE_S)
        return self.timeout_keep_alive

    def _close_if_idle(self) -> None:
        if not self._is_busy() and self._parsing != _HEAD:
            self.transport.close()

    def _is_busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _is_idle(self) -> bool:
        """Whether a request was answered and nothing of the next one has come."""
        return self.cycle is not None and self.cycle.scope is self.scope

    # Refusals

    def _refuse(self, problem: Problem) -> None:
        """Refuse the request that is being read, after the answers due before it, and close the connection.

        If a route already reads the body, it gets the problem and answers. Otherwise the refusal is sent from here.
        """
        if self._refusing or self.transport.is_closing():
            return
        self._refusing, self._unparsed = True, b""
        if self._parsing != _BODY:
            self._start_refusal(problem)
        elif self.cycle.response_complete:
            self._linger()
        else:
            self.end_after_answer()
            self.cycle.scope[FAULT] = problem  # type: ignore[literal-required]  # a key that lossd adds
            self.cycle.message_event.set()
            if self._body_protocol is not None:
                self._body_protocol.fail(problem)

    def end_after_answer(self) -> None:
        """Close the connection after the answer to the request that was read last."""
        self.cycle.keep_alive = False
        self.cycle.transport = LingeringTransport(self.transport, self._linger)  # type: ignore[assignment]  # enough

    def _start_refusal(self, problem: Problem) -> None:
        if self._parsing != _HEAD:
            self.on_message_begin()
        path = self.url.partition(b"?")[0][:LOGGED_PATH_BYTES].decode("latin-1")
        method = self.parser.get_method().decode("latin-1") if self.url else ""
        head = {"method": method, "path": path, "raw_path": path.encode("latin-1"), "query_string": b""}
        self.scope.update({**head, CONNECTION: self})  # type: ignore[typeddict-item]  # a key that lossd adds
        previous = self.cycle
        self.cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        self.end_after_answer()
        app = Refusal(problem, self.timeouts.settings)
        if previous is None or previous.response_complete:
            self._start_asgi_task(self.cycle, app)
        else:
            self.pipeline.appendleft((self.cycle, app))  # type: ignore[arg-type]

    def _linger(self) -> None:
        """Close the connection after the client has had time to read its answer. Drop what it still sends."""
        if self._parsing == _IDLE or self.transport.is_closing():
            self.transport.close()
            return
        self._refusing = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.full = False
        self.flow.resume_reading()
        self.loop.call_later(READ_ANSWER_S, self.transport.close)

    def _head_too_large(self) -> HeadTooLarge | UriTooLong:
        if self._parsing == _HEAD and 2 * len(self.url) > MAX_HEAD_BYTES:
            return UriTooLong(f"the request's address and head have more than {MAX_HEAD_BYTES} bytes")
        what = "trailers and the framing of its body" if self._parsing == _BODY else "head"
        return HeadTooLarge(f"the request's {what} has more than {MAX_HEAD_BYTES} bytes")

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _offers_upgrade(self) -> bool:
        # CONNECT leaves HTTP too, but by itself, and has no body.
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
