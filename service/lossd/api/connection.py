"""One connection: uvicorn's HTTP, and what it leaves open, which is how long a client may take for its part.

Uvicorn times the pause between two requests and nothing else: whoever sends half a head, half a body, or does not read
its answer, keeps the connection and what hangs on it for as long as it likes. Here all connections are looked at a few
times in each time-out, so that a request pays for none of it: it only notes when it was last heard of.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from lossd.api.exchange import CONNECTION, WHOLE, DisconnectedError, Exchange, Receive, Send, refusal
from lossd.api.pouring import Pouring, Vessel
from lossd_client.errors import Unavailable
from lossd_client.wire import json
from lossd_client.wire.quoting import digits

if TYPE_CHECKING:
    from lossd.settings import Settings

__all__ = ["Http", "http_for"]

MAX_HEAD_BYTES = 64 << 10
LOOKS = 4
LONGEST_LOOK_S = 1.0
LINGER_S = 0.25


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

    def __init__(self, *args: Any, watch: Watch, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch = watch
        self.ending = False
        self._heard_s = self._drained_s = self._waiting_s = self._rested_s = watch.now
        self._head_bytes = self._unsent = 0
        self._waiting_for: Any = self

    # What uvicorn calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's
        """Take the connection; one too many is answered that, and closed."""
        super().connection_made(transport)
        # Not the watch's clock, which stands still while there is nothing to look at; and TLS has begun to write.
        self._heard_s = self._drained_s = time.monotonic()
        self.watch.add(self)
        most = self.watch.settings.max_connections
        if len(self.connections) > 2 * most:
            transport.abort()
        elif len(self.connections) > most:
            self.app = _Crowded(self.watch.settings)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.watch.connections.discard(self)
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

    def data_received(self, data: bytes) -> None:
        """Parse; a head that offers another protocol is parsed again, without the offer."""
        self._heard_s = self.watch.now
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            if self._offers_upgrade():
                version = self.parser.get_http_version().encode()
                start = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)
                headers = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
                self.parser = httptools.HttpRequestParser(self)
                self.data_received(b"\r\n".join([start, *headers, b"", data[stop.args[0] :]]))
        except httptools.HttpParserError:
            self.send_400_response("this is not HTTP")
        if self._in_head():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"the request's head has more than {MAX_HEAD_BYTES} bytes")
        else:
            self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Begin to answer, unless this head is parsed again."""
        if not self._offers_upgrade():
            self.scope[CONNECTION] = self  # type: ignore[literal-required]  # a key of our own
            super().on_headers_complete()
            if self.ending:
                self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The body is whole, unless it has not begun."""
        if not self._offers_upgrade():
            self.scope[WHOLE] = True  # type: ignore[literal-required]  # a key of our own
            super().on_message_complete()

    # A body of known length, straight to where it belongs

    async def pour(self, vessel: Vessel) -> None:
        """Read all that is left of the body.

        Args:
            vessel: Where it belongs; it has room for exactly that.

        Raises:
            DisconnectedError: It will not come.
        """
        cycle = self.cycle
        if cycle.disconnected:
            raise DisconnectedError
        vessel.fill(memoryview(cycle.body))
        cycle.body = bytearray()
        if not cycle.more_body:
            return
        cycle.message_event.clear()
        pouring = Pouring(self, vessel)
        self.transport.set_protocol(pouring)
        self.flow.resume_reading()
        try:
            await pouring.done
        except asyncio.CancelledError:
            if cycle.disconnected:
                raise DisconnectedError from None
            pouring.abandon()
            raise

    def poured(self, *, whole: bool) -> None:
        """More of the body has come; with the last of it, HTTP goes on."""
        self._heard_s = self.watch.now
        if whole:
            self.parser = httptools.HttpRequestParser(self)  # the one so far still waits for the body
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
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, msg)

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
            if self.flow.read_paused or self.cycle.waiting_for_100_continue:
                self._heard_s = now  # it is this side that keeps the body waiting
            elif self.cycle.more_body and now - self._heard_s > self.watch.idle_s:
                self._refuse(408, f"nothing of the body has arrived for {digits(self.watch.idle_s)} seconds")
        elif self._rests():
            if now - self._rested_s > self.timeout_keep_alive:
                self.transport.close()
        else:  # the head has begun, or is due: this is a new connection
            if self._waiting_for is not self.scope:
                self._waiting_for, self._waiting_s = self.scope, now
            elif now - self._waiting_s > self.watch.idle_s:
                self._refuse(408, f"the request's head was not whole within {digits(self.watch.idle_s)} seconds")

    def _end(self) -> None:
        if not self._busy() and not self._in_head():
            self.transport.close()

    def _busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _rests(self) -> bool:
        """Whether a request was answered and nothing of the next one has come."""
        return self.cycle is not None and self.cycle.scope is self.scope

    def _in_head(self) -> bool:
        return self.scope is not None and "path" not in self.scope

    def _refuse(self, status: int, detail: str) -> None:
        """Say what is wrong before there is a request to answer, or while it is still being read; then close."""
        if self.transport.is_closing():
            return
        if not self._busy() or not self.cycle.response_started:
            title = STATUS_LINE[status][len("HTTP/1.1 000 ") :].strip().decode()
            problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
            body = json.dumps(problem)
            headers = b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close" % len(body)
            self.transport.write(STATUS_LINE[status] + headers + b"\r\n\r\n" + body)
        self.transport.close()

    def _offers_upgrade(self) -> bool:
        # CONNECT leaves HTTP too, but by itself, and has no body.
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"


class _Crowded:
    """What answers on a connection that is one too many."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, self.settings)
        detail = f"{self.settings.max_connections} connections are open; no more are taken (setting max_connections)"
        problem = Unavailable(detail, request_id=exchange.request_id, retry_after_s=1.0)
        exchange.unread, exchange.whole = True, False  # as if more were to come: the connection ends with the answer
        await exchange.refuse(problem, problem.status, *refusal(scope["path"], problem), send)
