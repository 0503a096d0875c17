"""One connection: uvicorn's HTTP, and what it leaves open: how much a client may send, and how long it may take.

Uvicorn times the pause between two requests and nothing else: whoever sends half a head, half a body, or does not read
its answer, keeps the connection and what hangs on it for as long as it likes. Here all connections are looked at a few
times in each time-out, so that a request pays for none of it: it only notes when it was last heard of.

Uvicorn parses all that a read has brought, even ten thousand requests. Here the parser is fed so little at a time that
few requests wait behind the one that is answered; the rest stays as it came, and meanwhile nothing more is read.
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
from lossd.api.http.refusing import Crowded, Lingering, Refused
from lossd.api.http.uvicorn_internals import HIGH_WATER_LIMIT, FlowControl, HttpToolsProtocol, RequestResponseCycle
from lossd_client.errors import HeadTooLarge, MalformedRequest, Problem, RequestTimeout, UriTooLong
from lossd_client.wire.quoting import digits

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["Http", "http_for"]

# Of a head, and of the trailers behind a body.
MAX_HEAD_BYTES = 64 << 10
MAX_FIELDS = 128

TOLD_BYTES = 256  # of a path, in the log

# So much goes to the parser at once: of a read that is short, of one that is not, and of a chunked body.
SHORT_BYTES = 4 << 10
SLICE_BYTES = 1 << 10
CHUNKED_BYTES = 4 << 10

LOOKS = 4
LONGEST_LOOK_S = 1.0
LINGER_S = 0.25
READ_ANSWER_S = 2.0  # for a client that was refused while it was still sending
RATE_WINDOW_S = 10.0
STRANGER_REST_S = 5.0  # between two requests of who shows no key where keys are asked for
SURPLUS_HEAD_S = 2.0
# A client that has closed its sending side may have gone. It resets the connection on the first probe, which the second
# one finds out; a fast answer comes before either.
PROBE_S, PROBES = 0.05, (1, 2, 4)

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FRAMING = frozenset((b"content-length", b"expect", b"host"))

# What the parser is in.
_NOTHING, _HEAD, _BODY = range(3)


def http_for(settings: Settings) -> Callable[..., Http]:
    """The protocol for a server with these settings: what ``uvicorn.Config`` takes as ``http``."""
    return partial(Http, watch=Watch(settings))


class Watch:
    """Looks at the connections of one server from time to time.

    Args:
        settings: The time-outs and limits.

    Attributes:
        now: The monotonic clock at the last look, near enough to measure a time-out by.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.idle_s = settings.idle_timeout_ms / 1000
        self.now = 0.0
        self.connections: set[Http] = set()
        self._every_s = min(self.idle_s / LOOKS, LONGEST_LOOK_S)
        self._looking = False

    def add(self, connection: Http) -> None:
        """Look at this one too."""
        self.connections.add(connection)
        if not self._looking:
            self._looking = True
            self._look(connection.loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = time.monotonic()
        for connection in list(self.connections):
            connection.look(self.now)
        self._looking = bool(self.connections)
        if self._looking:
            loop.call_later(self._every_s, self._look, loop)


class _Flow(FlowControl):
    """Uvicorn's, which reads nothing while ``full``, whatever the request that is answered waits for."""

    full = False

    def resume_reading(self) -> None:
        if self.read_paused and not self.full:
            self.read_paused = False
            self._transport.resume_reading()


class Http(HttpToolsProtocol):
    """Uvicorn's, with time-outs for slow clients, limits on heads and connections, and patience for offers.

    A body may follow an offer to speak another protocol. Java's HTTP client, among others, offers HTTP/2 with every
    first request and is content to be answered in HTTP/1.1. The parser, though, ends a message where an ``Upgrade``
    header takes effect, and drops its body.

    Args:
        args: Uvicorn's.
        watch: Of the server.
        kwargs: Uvicorn's.
    """

    flow: _Flow

    def __init__(self, *args: Any, watch: Watch, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch = watch
        self.ending = False
        self._answered: RequestResponseCycle | None = None
        # What is read.
        self._part = _NOTHING
        self._held = b""  # read, and not yet for the parser
        self._unframed = 0  # bytes for the parser since the last of which a request has something
        self._body_left = 0  # of a body of known length; below 0, what has come of one of unknown length
        self._length = b""
        self._hosts = 0
        self._refusing = self._half_closed = self._surplus = False
        self._body_protocol: BodyProtocol | None = None
        # When, on the watch's clock.
        self._heard_s = self._drained_s = self._waiting_s = self._rested_s = self._rated_s = watch.now
        self._unsent = self._rated_left = 0
        self._waiting_for: Any = self
        self._rated: Any = None

    # What uvicorn calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's
        """Take the connection; one too many is answered that, and closed."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        # Not the watch's clock, which stands still while there is nothing to look at; and TLS has begun to write.
        self._heard_s = self._drained_s = time.monotonic()
        self.watch.add(self)
        most = self.watch.settings.max_connections
        if len(self.connections) > 2 * most:
            transport.abort()
        elif len(self.connections) > most:
            self._surplus = True
            self.app = Crowded(self.app, self.watch.settings)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.watch.connections.discard(self)
        self._held = b""
        answered = self._answered
        if answered is not None and not answered.response_complete:  # others may have been read behind it
            answered.disconnected = True
            answered.message_event.set()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """The client has read most of what was sent."""
        self._drained_s = self.watch.now
        super().resume_writing()

    def shutdown(self) -> None:
        """Let the request under way be the last.

        A client that keeps the connection may have sent its next request before it can know: it is waited for a moment,
        answered, and told that the connection ends.
        """
        self.ending = True
        if self._busy():
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(LINGER_S, self._end)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's may say so
        """The client sends no more. What it has asked is answered; half a request never will be."""
        self._half_closed = self._part == _NOTHING and self._busy() and self.scheme == "http"
        if self._half_closed:
            for times in PROBES:
                self.loop.call_later(times * PROBE_S, self._probe)
        return self._half_closed

    def data_received(self, data: bytes) -> None:
        """Parse as much as may be parsed now."""
        self._heard_s = self.watch.now
        if self._refusing:
            return
        if self._held or self.pipeline:  # TLS has some left when it is told to pause
            self._held += data
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Feed the parser until a request waits for the one that is answered.

        A head that offers another protocol is parsed again, without the offer.
        """
        at, size = 0, len(data)
        while at < size and not self.pipeline and not self._refusing:
            piece: bytes | memoryview = data
            if size > SHORT_BYTES:
                piece = memoryview(data)[at : at + self._step(data, at)]
            at += len(piece)
            self._unframed += len(piece)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as stop:
                if self._offers_upgrade():
                    data = self._without_offer() + data[at - len(piece) + stop.args[0] :]
                    at, size = 0, len(data)
            except httptools.HttpParserError as error:
                known = error.__context__
                self._refuse(known if isinstance(known, Problem) else MalformedRequest("this is not HTTP"))
            if self._unframed > MAX_HEAD_BYTES:
                self._refuse(self._too_large())
        if not self._refusing:
            self._held = data[at:] if at < size else b""
        if self._held or self.pipeline:
            self.flow.full = True
            self.flow.pause_reading()

    def _step(self, data: bytes, at: int) -> int:
        if self._part != _BODY:  # no further than the head's end, so that the body comes in one piece
            end = data.find(b"\r\n\r\n", at, at + SLICE_BYTES)
            return SLICE_BYTES if end < 0 else end + 4 - at
        return self._body_left if self._body_left > 0 else CHUNKED_BYTES

    def _without_offer(self) -> bytes:
        """The head that was parsed, as if it had offered nothing; and a parser for it."""
        version = self.parser.get_http_version().encode()
        start = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)
        headers = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self._renew_parser()
        return b"\r\n".join([start, *headers, b"", b""])

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    # What the parser calls

    def on_message_begin(self) -> None:
        """The first line begins."""
        self._part = _HEAD
        self._hosts = self._body_left = 0
        self._length = b""
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field: of the head, or of trailers, which are nothing to anybody here and are dropped."""
        if len(self.headers) == MAX_FIELDS:
            raise HeadTooLarge(f"the request has more than {MAX_FIELDS} header fields")
        name = name.lower()
        if name in _FRAMING:
            if name == b"host":
                self._hosts += 1
            elif name == b"content-length":
                self._length = value
            elif value.lower() == b"100-continue":
                self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin to answer, unless this head is parsed again."""
        if self._offers_upgrade():
            return
        if self._unframed > MAX_HEAD_BYTES - SHORT_BYTES and self._head_bytes() > MAX_HEAD_BYTES:
            raise self._too_large()
        if self._hosts != 1 and (self._hosts or self.parser.get_http_version() == "1.1"):
            raise MalformedRequest(f"the request has {self._hosts or 'no'} Host fields; send one")
        self.scope[CONNECTION] = self  # type: ignore[literal-required]  # a key of our own
        super().on_headers_complete()
        self._part, self._unframed = _BODY, 0
        if self._length:
            self._body_left = int(self._length)
        self.headers = []  # not those of the scope: trailers come here
        if self.ending:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A piece of it."""
        self._unframed = 0
        self._body_left -= len(body)
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The body is whole, unless it has not begun."""
        if not self._offers_upgrade():
            self._part, self._unframed = _NOTHING, 0
            self.scope[WHOLE] = True  # type: ignore[literal-required]  # a key of our own
            cycle = self.cycle
            if not cycle.response_complete:
                cycle.more_body = False
                cycle.message_event.set()

    # A body of known length, straight to where it belongs

    async def receive_into(self, buffer: BodyBuffer) -> None:
        """Read the rest of the body into a buffer, which has room for exactly that.

        Raises:
            DisconnectedError: The client left.
            Problem: The rest is not read, for this reason.
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
        """Note that more of the body is in its buffer; after the last of it, return to HTTP."""
        self._heard_s = self.watch.now
        self._body_left = missing
        if not missing:
            self._body_protocol = None
            self._part = _NOTHING
            self._renew_parser()  # the one so far still waits for the body
            self.transport.set_protocol(self)
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """The answer is sent: go on with the request behind it, or rest; how long, the watch sees.

        Uvicorn sets a timer for each rest. To set and to cancel it takes longer than to parse a request.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._rested_s = self.watch.now
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if self.flow.full and not self.pipeline:
            self.flow.full = False
            if held := self._held:
                self._held = b""
                self._parse(held)
        if self._half_closed and not self._busy():
            self.transport.close()
        self.flow.resume_reading()

    # Time-outs

    def look(self, now: float) -> None:
        """Give the client up where it took too long.

        Args:
            now: The monotonic clock.
        """
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._drained_s = unsent, now
        elif now - self._drained_s > self.watch.idle_s:
            self.transport.abort()  # to close it would mean to wait until all was read
            return
        if self._busy():
            self._waiting_for = self
            self._look_at_body(now)
            if self._half_closed or self._closed_unread:
                self._probe()
        elif self._refusing:
            pass  # it lingers, and closes by itself
        elif self._rests():
            if now - self._rested_s > self._longest_rest_s():
                self.transport.close()
        else:  # the head has begun, or is due: this is a new connection
            longest_s = min(self.watch.idle_s, SURPLUS_HEAD_S) if self._surplus else self.watch.idle_s
            if self._waiting_for is not self.scope:
                self._waiting_for, self._waiting_s = self.scope, now
            elif now - self._waiting_s > longest_s:
                self._refuse(RequestTimeout(f"the request's head was not whole within {digits(longest_s)} seconds"))

    def _look_at_body(self, now: float) -> None:
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            self._heard_s = now  # it is this side that keeps the body waiting
            self._rated = None
        elif self.cycle.more_body and not self._refusing:
            if now - self._heard_s > self.watch.idle_s:
                waited = digits(self.watch.idle_s)
                self._refuse(RequestTimeout(f"nothing of the body has arrived for {waited} seconds"))
            elif self._rated is not self.scope:
                self._rated, self._rated_s, self._rated_left = self.scope, now, self._body_left
            elif (window_s := now - self._rated_s) > RATE_WINDOW_S:
                least = self.watch.settings.min_body_bytes_per_s
                if self._rated_left - self._body_left < least * window_s:
                    slow = f"the body arrives with less than {least} bytes per second (setting min_body_bytes_per_s)"
                    self._refuse(RequestTimeout(slow))
                self._rated_s, self._rated_left = now, self._body_left

    def _probe(self) -> None:
        """Find out whether a client that sends no more still reads, or is gone: both look the same until one writes.

        It is said to go on, as it may be at any time before its answer. Where nobody is, that breaks the connection.
        """
        cycle = self._answered
        if cycle is None or self.transport.is_closing() or cycle.response_started:
            return
        if cycle.scope["http_version"] != "1.0":
            self.transport.write(_CONTINUE)

    @property
    def _closed_unread(self) -> bool:
        """Whether the client has closed its side behind requests that are not read yet: reading would not tell."""
        if not self.flow.full or self.scheme != "http":
            return False
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def _longest_rest_s(self) -> float:
        if self.watch.settings.has_keys and CLIENT not in self.cycle.scope:
            return min(self.timeout_keep_alive, STRANGER_REST_S)
        return self.timeout_keep_alive

    def _end(self) -> None:
        if not self._busy() and self._part != _HEAD:
            self.transport.close()

    def _busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _rests(self) -> bool:
        """Whether a request was answered and nothing of the next one has come."""
        return self.cycle is not None and self.cycle.scope is self.scope

    # Refusals

    def _refuse(self, problem: Problem) -> None:
        """Say what is wrong with what is being read, after the answers that are due before; then close.

        Whoever reads a body is told, and answers in its own form. What has nobody to answer it yet is answered here.
        """
        if self._refusing or self.transport.is_closing():
            return
        self._refusing, self._held = True, b""
        if self._part != _BODY:
            self._start_refusal(problem)
        elif self.cycle.response_complete:
            self._linger()
        else:
            self.let_end()
            self.cycle.scope[FAULT] = problem  # type: ignore[literal-required]  # a key of our own
            self.cycle.message_event.set()
            if self._body_protocol is not None:
                self._body_protocol.fail(problem)

    def let_end(self) -> None:
        """Let the connection end with the answer to what was read last."""
        self.cycle.keep_alive = False
        self.cycle.transport = Lingering(self.transport, self._linger)  # type: ignore[assignment]  # all it needs

    def _start_refusal(self, problem: Problem) -> None:
        if self._part != _HEAD:
            self.on_message_begin()
        known = self.url.partition(b"?")[0][:TOLD_BYTES].decode("latin-1")
        method = self.parser.get_method().decode("latin-1") if self.url else ""
        about = {"method": method, "path": known, "raw_path": known.encode("latin-1"), "query_string": b""}
        self.scope.update({**about, CONNECTION: self})  # type: ignore[typeddict-item]  # a key of our own
        before = self.cycle
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
        self.let_end()
        app = Refused(problem, self.watch.settings)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, app)
        else:
            self.pipeline.appendleft((self.cycle, app))  # type: ignore[arg-type]

    def _linger(self) -> None:
        """Close when the client has had time to read its answer; what it still sends is read and dropped."""
        if self._part == _NOTHING or self.transport.is_closing():
            self.transport.close()
            return
        self._refusing = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.full = False
        self.flow.resume_reading()
        self.loop.call_later(READ_ANSWER_S, self.transport.close)

    def _too_large(self) -> HeadTooLarge | UriTooLong:
        if self._part == _HEAD and 2 * len(self.url) > MAX_HEAD_BYTES:
            return UriTooLong(f"the request's address and head have more than {MAX_HEAD_BYTES} bytes")
        what = "trailers and the framing of its body" if self._part == _BODY else "head"
        return HeadTooLarge(f"the request's {what} has more than {MAX_HEAD_BYTES} bytes")

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _offers_upgrade(self) -> bool:
        # CONNECT leaves HTTP too, but by itself, and has no body.
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
