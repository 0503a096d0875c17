"""lossd's routes and connections under a uvicorn server that another program starts.

The program runs the application as any other, and may put layers of its own around it. Its server makes lossd's
connections, which give the requests to the routes directly, past those layers.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from lossd.api.http.connection import Http
from lossd.api.http.timeouts import Timeouts
from lossd.api.server import Forwarded, known_heads

if TYPE_CHECKING:
    from lossd.api.app import ServiceApp
    from lossd.configuration.settings import Settings

__all__ = ["Embedded"]


class Embedded:
    """The application that the program runs.

    Args:
        service: lossd's application.
        settings: The service's settings.
        kept: The prefix of the paths that the program answers itself.

    Attributes:
        passed_on: The number of requests on lossd's connections that the program answered.
    """

    def __init__(self, service: ServiceApp, settings: Settings, kept: str) -> None:
        self.passed_on = 0
        self._routes = Forwarded(service)
        self._service = service
        self._kept = kept
        self._timeouts = Timeouts(settings)
        self._heads = known_heads()  # of lossd's routes alone, which the connections ask directly
        self._state: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of the program, or run the lifespan."""
        if scope["type"] == "lifespan":
            self._state = scope["state"]  # filled at startup
            await self._service(scope, receive, send)
        else:
            await self._routes(scope, receive, send)

    def connection(self, **uvicorn: Any) -> Http:
        """Return a new connection, made of uvicorn's arguments."""
        http = Http(**{**uvicorn, "app_state": self._state}, timeouts=self._timeouts, heads=self._heads)
        http.app = partial(self._answer, http.app)
        return http

    def _answer(self, program: ASGIApp, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the coroutine that answers a request on one of lossd's connections."""
        if scope["path"].startswith(self._kept):
            self.passed_on += 1
            return program(scope, receive, send)
        return self._routes(scope, receive, send)
