"""Answers that a connection gives by itself: to what is no request, and where it is one too many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from starlette.types import Receive, Send

from lossd.api.http.asgi import CONNECTION, TELEMETRY
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import send_problem
from lossd.api.prefix import place
from lossd_client.errors import Problem, Unavailable

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["Crowded", "Lingering", "Refused"]

HEALTH = ("/health/", "/v2/health/")


class Refused:
    """Answers one request with a problem; it is counted and logged as any other.

    Args:
        problem: What is wrong.
        settings: Of the service.
    """

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self.problem = problem
        self.settings = settings

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer it."""
        if self.settings.root_path:
            place(scope, self.settings.root_path)
        request = HttpRequest(scope, receive, self.settings, unread=False)
        if (telemetry := scope["state"].get(TELEMETRY)) is not None:
            telemetry.refused(request, self.problem.slug, self.problem.status)
        await send_problem(request, self.problem, send)


class Crowded:
    """What answers on a connection that is one too many: health, as it is, and nothing else.

    Args:
        app: What answers on the others.
        settings: Of the service.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; the connection ends with it."""
        scope[CONNECTION].let_end()
        if self.settings.root_path:
            place(scope, self.settings.root_path)
        if scope["path"].startswith(HEALTH):
            await self.app(scope, receive, send)
            return
        detail = f"{self.settings.max_connections} connections are open; no more are taken (setting max_connections)"
        await Refused(Unavailable(detail, retry_after_s=1.0), self.settings)(scope, receive, send)


class Lingering:
    """A transport whose closing waits for the client to have read its answer.

    A socket that is closed over unread bytes is reset, and takes the answer with it: the client would see a broken
    connection in place of the reason.

    Args:
        transport: The connection's.
        linger: Called in place of closing it.
    """

    def __init__(self, transport: asyncio.Transport, linger: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = linger
