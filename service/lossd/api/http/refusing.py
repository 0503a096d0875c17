"""The answers that a connection gives without the application: to malformed requests, and over the limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from starlette.types import Receive, Send

from lossd.api.http.asgi import CONNECTION, TELEMETRY
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import send_problem
from lossd.api.prefix import strip_prefix
from lossd_client.errors import Problem, Unavailable

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["LingeringTransport", "OverLimit", "Refusal"]

HEALTH = ("/health/", "/v2/health/")


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
