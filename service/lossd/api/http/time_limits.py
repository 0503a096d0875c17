"""How long a client may take: for a head, for the next piece of a body, for reading its answer, between two requests.

Uvicorn times the pause between two requests and nothing else. A client that sends half a head or half a body, or does
not read its answer, keeps its connection and the memory of its request as long as it likes. Here each callback notes
when something happened. :class:`~lossd.api.http.timeouts.Timeouts` compares these times with the limits a few times in
each time-out, so that a request sets no timer: to set and cancel one takes longer than to parse a small request.
"""

from __future__ import annotations

import time
from typing import Any

from lossd.api.http.asgi import CLIENT
from lossd.api.http.half_closed import PROBES_S, probe
from lossd.api.http.parsing import ParsingProtocol
from lossd.api.http.refusing import IDLE
from lossd.api.http.socket_state import has_closed
from lossd_client.errors import RequestTimeout
from lossd_client.wire.quoting import digits

__all__ = ["TimedProtocol"]

RATE_WINDOW_S = 10.0
ANONYMOUS_KEEP_ALIVE_S = 5.0  # between two requests of a client without a key, if the service has keys
SURPLUS_HEAD_S = 2.0  # for the head of a request on a connection over the limit


class TimedProtocol(ParsingProtocol):
    """The part of a connection that limits time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._half_closed = self._surplus = False
        # Times on the clock of the time-outs, and what they belong to.
        self._drained_s = self._head_due_s = self._idle_since_s = self._rate_begin_s = self.timeouts.now
        self._unsent = self._rate_begin_left = 0
        self._head_due: Any = self
        self._rate_scope: Any = None

    def _start_clock(self) -> None:
        """Note that the connection begins. The time-outs' clock stands still while there are no connections."""
        self._received_s = self._drained_s = time.monotonic()  # TLS has already written something

    def resume_writing(self) -> None:
        """Note that the client has read most of what was sent."""
        self._drained_s = self.timeouts.now
        super().resume_writing()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's may say so
        """Note that the client sends no more. Complete requests are still answered; half a request is dropped."""
        self._half_closed = self._parsing == IDLE and self._is_busy() and self.scheme == "http"
        if self._half_closed:
            for delay_s in PROBES_S:
                self.loop.call_later(delay_s, self._probe)
        return self._half_closed

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
            if self._half_closed or (self.flow.full and self.scheme == "http" and has_closed(self.transport)):
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
        probe(self.transport, self._answering)

    def _keep_alive_s(self) -> float:
        if self.timeouts.settings.has_keys and CLIENT not in self.cycle.scope:
            return min(self.timeout_keep_alive, ANONYMOUS_KEEP_ALIVE_S)
        return self.timeout_keep_alive

    def _is_busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _is_idle(self) -> bool:
        """Whether a request was answered and nothing of the next one has come."""
        return self.cycle is not None and self.cycle.scope is self.scope
