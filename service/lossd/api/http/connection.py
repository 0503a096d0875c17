"""One HTTP connection: uvicorn's protocol, with limits on what a client sends and on how long it takes.

:class:`Http` overrides callbacks of the transport and of the parser, in layers that are subclasses of each other, so
that a request makes no further call:

1. :mod:`lossd.api.http.refusing` answers a refused client in order, behind the requests before.
2. :mod:`lossd.api.http.parsing` feeds the parser, and limits heads and pipelined requests.
3. :mod:`lossd.api.http.time_limits` limits the time that a client takes.
4. :mod:`lossd.api.http.direct` answers requests with known heads past the parser.
5. This module begins and ends the connection, limits the number of connections, and reads a body of known length past
   the parser.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from lossd.api.http.asgi import DisconnectedError
from lossd.api.http.body_buffer import BodyBuffer, BodyProtocol
from lossd.api.http.direct import DirectProtocol
from lossd.api.http.flow import PausableFlow
from lossd.api.http.refusing import HEAD, IDLE, OverLimit
from lossd.api.http.socket_state import has_reset, has_unread
from lossd.api.http.timeouts import Timeouts
from lossd.api.http.uvicorn_internals import is_ending
from lossd_client.errors import Problem

if TYPE_CHECKING:
    from lossd.api.http.known_heads import KnownHeads
    from lossd.configuration.settings import Settings

__all__ = ["Http", "http_for"]

LAST_REQUEST_S = 0.25
"""How long a server that ends has no request in progress before it closes the connections without one."""


def http_for(settings: Settings, heads: KnownHeads | None = None) -> Callable[..., Http]:
    """Return the protocol of a server with these settings, for the ``http`` of ``uvicorn.Config``.

    Args:
        settings: The time-outs and limits.
        heads: The heads that the server knows. Requests with one are answered past the application: only connections
            that give their requests to lossd's routes directly may have them.
    """
    return partial(Http, timeouts=Timeouts(settings), heads=heads)


class Http(DirectProtocol):
    """Uvicorn's protocol with time-outs, limits on heads and connections, and support for ignored upgrades.

    Args:
        args: Uvicorn's arguments.
        timeouts: The time-outs of the server.
        heads: The heads that the server knows; None if requests pass another program's application first.
        kwargs: Uvicorn's arguments.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's
        """Begin a connection. One over the limit is refused with an answer; over twice the limit, it is reset.

        A client that connects, sends and resets leaves its request behind it. Many of them would keep others waiting,
        so their requests are not read.
        """
        if has_reset(transport):
            self.transport = transport
            transport.abort()
            return
        super().connection_made(transport)
        self.ending = is_ending(
            self.server_state
        )  # not before: a server that begins to end tells the connections it knows
        self.flow = PausableFlow(transport)
        self._start_clock()
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

    def on_response_complete(self) -> None:
        """Answer the next request, or become idle.

        Uvicorn sets a timer here. To set and cancel it takes longer than to parse a request.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._idle_since_s = self.timeouts.now
        if self.pipeline:
            if has_reset(self.transport):  # nothing is read while requests wait, so no read reports it
                self.transport.abort()
                return
            self._start_asgi_task(*self.pipeline.pop())
        if self.flow.full and not self.pipeline:
            self.flow.full = False
            if unparsed := self._unparsed:
                self._unparsed = b""
                self._parse(unparsed)
        if self._half_closed and not self._is_busy():
            self.transport.close()
        self.flow.resume_reading()

    def shutdown(self) -> None:
        """End the connection after the current request.

        If there is none, the client may have sent its next request already, or may still read the answer to its last
        one. Until the server has nothing else to do, this connection may stay open: the answer to its next request says
        that it closes.
        """
        self.pass_held()
        self.end_with_next_answer()
        self._close_if_quiet()

    def end_with_next_answer(self) -> None:
        """End the connection after the current request; if there is none, after the next."""
        self.ending = True
        self.hand_over()
        if self._is_busy():
            self.cycle.keep_alive = False

    def _close_if_quiet(self, answered: int | None = None) -> None:
        """Close the connection, unless a request is read or answered on it.

        Args:
            answered: How many requests the server had answered at the last check; None at the first. If it answered
                others since, or still does, or if bytes of a request wait in the socket, the next check follows.
        """
        if self.transport.is_closing() or self._is_busy() or self._parsing == HEAD:
            return
        now = self.server_state.total_requests
        if answered == now and not self.tasks and not has_unread(self.transport):
            self.transport.close()
        else:
            self.loop.call_later(LAST_REQUEST_S, self._close_if_quiet, now)

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
            self._parsing = IDLE
            self._renew_parser()  # the old parser still waits for the body
            self.transport.set_protocol(self)
            self.cycle.more_body = False
            self.cycle.message_event.set()
