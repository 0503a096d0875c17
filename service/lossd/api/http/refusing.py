"""The answers that a connection gives without the application: to malformed requests, and over the limit.

A refused client is answered in order, behind the requests before, and has time to read the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from starlette.types import Receive, Send

from lossd.api.http.asgi import CONNECTION, FAULT, TELEMETRY
from lossd.api.http.body_buffer import BodyProtocol
from lossd.api.http.flow import PausableFlow
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import send_problem
from lossd.api.http.timeouts import Timeouts
from lossd.api.http.uvicorn_internals import HttpToolsProtocol, RequestResponseCycle
from lossd.api.prefix import strip_prefix
from lossd_client.errors import Problem, Unavailable

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["BODY", "HEAD", "IDLE", "LingeringTransport", "OverLimit", "Refusal", "RefusingProtocol"]

HEALTH = ("/health/", "/v2/health/")

LOGGED_PATH_BYTES = 256
READ_ANSWER_S = 2.0  # for a client that was refused while it was still sending

IDLE, HEAD, BODY = range(3)
"""What is being parsed: nothing (between two requests), a head, or a body."""


class Refusal:
    """An application that answers one request with a problem, and counts and logs it.

    Args:
        problem: The problem to answer with.
        settings: The service's settings.
    """

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self.problem = problem
        self.settings = settings

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer the request."""
        if self.settings.root_path:
            strip_prefix(scope, self.settings.root_path)
        request = HttpRequest(scope, receive, self.settings, unread=False)
        if (telemetry := scope["state"].get(TELEMETRY)) is not None:
            telemetry.refused(request, self.problem.slug, self.problem.status)
        await send_problem(request, self.problem, send)


class OverLimit:
    """The application on a connection over the limit: it answers health checks, and refuses everything else.

    Args:
        app: The application on other connections.
        settings: The service's settings.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, and close the connection."""
        scope[CONNECTION].end_after_answer()
        if self.settings.root_path:
            strip_prefix(scope, self.settings.root_path)
        if scope["path"].startswith(HEALTH):
            await self.app(scope, receive, send)
            return
        detail = f"{self.settings.max_connections} connections are open; no more are taken (setting max_connections)"
        await Refusal(Unavailable(detail, retry_after_s=1.0), self.settings)(scope, receive, send)


class LingeringTransport:
    """A transport that does not close before the client has had time to read its answer.

    Closing a socket over unread bytes resets it, and the answer is lost: the client sees a broken connection instead
    of the reason.

    Args:
        transport: The connection's transport.
        linger: Called instead of its ``close``.
    """

    def __init__(self, transport: asyncio.Transport, linger: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = linger


class RefusingProtocol(HttpToolsProtocol):
    """The part of a connection that refuses requests.

    Args:
        args: Uvicorn's arguments.
        timeouts: The time-outs of the server.
        kwargs: Uvicorn's arguments.

    Attributes:
        timeouts: The time-outs of the server.
    """

    flow: PausableFlow

    def __init__(self, *args: Any, timeouts: Timeouts, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeouts = timeouts
        self._answering: RequestResponseCycle | None = None
        self._parsing = IDLE
        self._unparsed = b""  # bytes read, not yet given to the parser
        self._refusing = False
        self._body_protocol: BodyProtocol | None = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def end_after_answer(self) -> None:
        """Close the connection after the answer to the request that was read last."""
        self.cycle.keep_alive = False
        self.cycle.transport = LingeringTransport(self.transport, self._linger)  # type: ignore[assignment]  # enough

    def _refuse(self, problem: Problem) -> None:
        """Refuse the request that is being read, after the answers due before it, and close the connection.

        If a route already reads the body, it gets the problem and answers. Otherwise the refusal is sent from here.
        """
        if self._refusing or self.transport.is_closing():
            return
        self._refusing, self._unparsed = True, b""
        if self._parsing != BODY:
            self._start_refusal(problem)
        elif self.cycle.response_complete:
            self._linger()
        else:
            self.end_after_answer()
            self.cycle.scope[FAULT] = problem  # type: ignore[literal-required]  # a key that lossd adds
            self.cycle.message_event.set()
            if self._body_protocol is not None:
                self._body_protocol.fail(problem)

    def _new_cycle(self, scope: Any, *, keep_alive: bool) -> RequestResponseCycle:
        """Return uvicorn's object of a request and its answer, as uvicorn makes it."""
        return RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )

    def _start_refusal(self, problem: Problem) -> None:
        if self._parsing != HEAD:
            self.on_message_begin()
        path = self.url.partition(b"?")[0][:LOGGED_PATH_BYTES].decode("latin-1")
        method = self.parser.get_method().decode("latin-1") if self.url else ""
        head = {"method": method, "path": path, "raw_path": path.encode("latin-1"), "query_string": b""}
        self.scope.update({**head, CONNECTION: self})  # type: ignore[typeddict-item]  # a key that lossd adds
        previous = self.cycle
        self.cycle = self._new_cycle(self.scope, keep_alive=False)
        self.end_after_answer()
        app = Refusal(problem, self.timeouts.settings)
        if previous is None or previous.response_complete:
            self._start_asgi_task(self.cycle, app)
        else:
            self.pipeline.appendleft((self.cycle, app))  # type: ignore[arg-type]

    def _linger(self) -> None:
        """Close the connection after the client has had time to read its answer. Drop what it still sends."""
        if self._parsing == IDLE or self.transport.is_closing():
            self.transport.close()
            return
        self._refusing = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.full = False
        self.flow.resume_reading()
        self.loop.call_later(READ_ANSWER_S, self.transport.close)
