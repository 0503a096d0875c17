"""Requests with a known head are answered without a parser, a task and a coroutine.

For a small request, these take longer than everything else in the front. A request is answered so if its head is known
(:mod:`lossd.api.http.known_heads`), if its whole body has come, and if the connection has nothing else to do. Whatever
does not go as usual is left to the usual way: before the request is submitted, its bytes go to the parser, and what was
wrong is found again there; afterwards, a task takes over and waits for the same result.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from lossd.api.http.asgi import BATCH, CONNECTION, WHOLE, new_request_id
from lossd.api.http.known_heads import FoundHead, KnownHeads, head_of
from lossd.api.http.refusing import IDLE
from lossd.api.http.request import HttpRequest
from lossd.api.http.time_limits import TimedProtocol
from lossd.api.http.uvicorn_internals import answer_bytes

if TYPE_CHECKING:
    from starlette.types import Scope

    from lossd.api.http.sending import Headers, Pieces
    from lossd.engine import Result

__all__ = ["DirectProtocol", "DirectRequest"]

log = logging.getLogger("lossd.api")

HELD_BYTES = 64 << 10
"""Bodies up to this length are waited for, if they come after their heads."""


class DirectRequest(HttpRequest):
    """A request with a known head. To uvicorn it is the cycle of a request and its answer.

    Args:
        connection: The connection.
        found: Its head, and what is known of it.

    Attributes:
        connection: The connection.
        known: What is known of its head.
        name: The last part of the path of a PUT, which names what is put; empty for other methods.
        answer: The answer's format, as the route keeps it.
        future: What it waits for, such as the result; None before the request is submitted, and after it was answered,
            given up or handed over.
        parsed: When it was submitted, on the monotonic clock.
        disconnected: Whether the client left, as uvicorn notes it.
        response_complete: Whether it was answered or given up.
    """

    __slots__ = (
        "_scope",
        "answer",
        "connection",
        "disconnected",
        "future",
        "known",
        "name",
        "parsed",
        "response_complete",
    )

    message_event = asyncio.Event()
    """Uvicorn sets it; nobody waits for it."""

    more_body = waiting_for_100_continue = False
    """The whole body has come."""

    def __init__(self, connection: DirectProtocol, found: FoundHead) -> None:
        known = found.known
        self.begin = time.monotonic()
        self.deadline = self.begin + known.timeout_s
        self.request_id = found.request_id.decode("ascii") or new_request_id()
        self._scope: Scope | None = None
        self.name = found.name.decode("latin-1")
        self.headers, self.client, self.length = found.headers, known.client, found.length
        self.query = known.scope["query_string"]
        self.max_body_bytes, self._limit = known.max_body_bytes, "setting max_body_bytes"
        self.model, self.job = "", None
        self.decompressor = None
        self.unread, self.whole = False, True
        self.connection = connection
        self.known = known
        self.future: asyncio.Future[Any] | None = None
        self.disconnected = self.response_complete = False

    @property
    def scope(self) -> Scope:  # type: ignore[override]  # few requests need one
        """ASGI's scope, made when it is read first."""
        if self._scope is None:
            connection = self.connection
            self._scope = {
                **self.known.scope,
                "client": connection.client,
                "scheme": connection.scheme,
                "server": connection.server,
                CONNECTION: connection,
                WHOLE: True,
            }
            if self.name:
                self._scope["path"] += self.name
                self._scope["raw_path"] += self.name.encode("latin-1")
                self._scope[BATCH] = self.name
        return self._scope

    def submitted(self, answer: Any, future: asyncio.Future[Result]) -> None:
        """Note the answer's format and the result's future; the request is answered when that is done."""
        self.answer, self.parsed = answer, time.monotonic()
        self.wait_for(future)

    def wait_for(self, future: asyncio.Future[Any]) -> None:
        """Let the route complete the request when a future is done."""
        self.future = future
        future.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[Any]) -> None:
        if self.future is not future:  # it was handed over, or given up
            return
        try:
            answered = self._completed(future)
        except Exception:  # the task meets it again, and answers with it
            answered = False
            if self.response_complete:
                log.exception("request %s was answered, and failed then", self.request_id)
        if not answered:
            self.connection.hand_over()

    def _completed(self, future: asyncio.Future[Any]) -> bool:
        """Let the route go on with the request, if nothing unusual has happened."""
        connection = self.connection
        if future.cancelled() or future.exception() is not None or connection.flow.write_paused or connection.ending:
            return False
        answered: bool = self.known.route.complete(self, future.result())
        return answered

    def give_up(self) -> None:
        """Drop the request if it is not answered: the client left."""
        if self.future is not None:
            future, self.future, self.response_complete = self.future, None, True
            self.known.route.give_up(self, future)

    def encoded(self, headers: Headers, pieces: Pieces, status: int = 200) -> bytes:
        """Return an answer as it is sent."""
        return answer_bytes(status, self.connection.server_state.default_headers, headers, pieces)

    def send(self, answer: bytes) -> None:
        """Send an answer, and begin with the connection's next request."""
        self.future, self.response_complete = None, True
        connection = self.connection
        connection.transport.write(answer)
        connection.on_response_complete()


class DirectProtocol(TimedProtocol):
    """The part of a connection that answers requests with known heads.

    Args:
        args: Uvicorn's arguments.
        heads: The known heads; None to answer all requests in the usual way.
        kwargs: Uvicorn's arguments, and the time-outs.
    """

    def __init__(self, *args: Any, heads: KnownHeads | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._heads = heads
        self._held = b""  # a known head that waits for its body
        self._latest: FoundHead | None = None

    def data_received(self, data: bytes) -> None:
        """Answer a request with a known head directly, and pass other bytes to the parser."""
        if self._parsing == IDLE and self._answers(data):
            self._received_s = self.timeouts.now
        else:
            self.pass_held()
            self.hand_over()
            super().data_received(data)

    def _answers(self, data: bytes) -> bool:
        """Begin to answer a request directly, or hold its head until its body comes; return whether that is done."""
        heads = self._heads
        if heads is None or self._is_busy() or self._unparsed or self.ending or self._refusing or self._surplus:
            return False
        begun = self._held
        if begun:
            data = begun + data
        found = heads.find(data, self._latest)
        if found is None:
            self._raw_head = head_of(data)
            return False
        self._latest = found
        known, length, end = found.known, found.length, len(found.head)
        missing = end + length - len(data)
        if missing > 0 and not begun and length <= min(HELD_BYTES, known.max_body_bytes):
            self._held = data
            return True
        if missing or length > known.max_body_bytes:
            return False
        request = DirectRequest(self, found)
        if not known.route.begin(request, memoryview(data)[end:]):
            return False
        self._held = b""
        self.cycle = request  # type: ignore[assignment]  # as much of a cycle as it needs
        return True

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's may say so
        """Note that the client sends no more; whether it left is found out while a task answers."""
        self.hand_over()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the request that is answered directly, if there is one."""
        self._held = b""
        if isinstance(self.cycle, DirectRequest):
            self.cycle.give_up()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        return self._parsing == IDLE if isinstance(self.cycle, DirectRequest) else super()._is_idle()

    def check_timeouts(self, now: float) -> None:
        """Pass a head whose body has not come to the parser: from then on, the usual limits hold for it."""
        self.pass_held()
        super().check_timeouts(now)

    def learn(self, request: HttpRequest, route: Any, form: Any) -> None:
        """Keep the head of a request that was answered; see :meth:`KnownHeads.learn`."""
        if self._heads is not None and not self._surplus:
            self._heads.learn(request, route, form)

    def pass_held(self) -> None:
        """Pass a head that waits for its body to the parser."""
        if held := self._held:
            self._held = b""
            super().data_received(held)

    def hand_over(self) -> None:
        """Let a task answer the request that is answered directly, if there is one."""
        request = self.cycle
        if not isinstance(request, DirectRequest) or request.response_complete:
            return
        future, request.future = request.future, None
        cycle = self.cycle = self._new_cycle(request.scope, keep_alive=not self.ending)
        cycle.more_body = False
        self._start_asgi_task(cycle, partial(request.known.route.finish, request, future))
