"""Checks the API key of every request before it reaches a route.

Every path needs a key unless it is listed here, so that a new route is protected. Public paths are health checks, since
probes have no key, and pages that are the same for every service of this version.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from lossd.api.http.asgi import CLIENT
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import send_problem
from lossd.configuration.keys import Keys
from lossd_client.errors import Problem, Unauthorized

if TYPE_CHECKING:
    from lossd.api.observability.telemetry import Telemetry
    from lossd.configuration.settings import Settings

__all__ = ["Access", "is_public", "load_keys", "send_refusal"]

log = logging.getLogger("lossd.api")

PAGES = frozenset(("/", "/docs", "/redoc", "/openapi.json", "/problems", "/manual"))
FOLDERS = ("/health/", "/v2/health/", "/docs/", "/problems/", "/explorer/", "/manual/")
METRICS = "/metrics"


def load_keys(settings: Settings) -> Keys | None:
    """Return the keys that the settings name; None if the service needs no key.

    Raises:
        ValueError: The keys file is malformed.
        OSError: The keys file cannot be read.
    """
    if not settings.has_keys:
        return None
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    return Keys(settings.api_keys_file, key)


class Access:
    """Passes requests with a valid key to the application, with the key's name in the scope.

    Args:
        app: The application.
        keys: The valid keys.
        settings: Whether metrics are public, and limits.
        telemetry: Counts refusals.
    """

    def __init__(self, app: ASGIApp, keys: Keys, settings: Settings, telemetry: Telemetry) -> None:
        self.app = app
        self.keys = keys
        self.settings = settings
        self.telemetry = telemetry

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the coroutine that answers or refuses the request."""
        if scope["type"] == "http":
            key = _key(scope)
            name = None if key is None else self.keys.name_of(key)
            if name is not None:
                scope[CLIENT] = name
            elif not self._public(scope["path"]):
                return self._refuse(scope, receive, send, has_key=key is not None)
        return self.app(scope, receive, send)

    def reload(self) -> None:
        """Read the keys file again. If it is malformed, log an error and keep the keys."""
        try:
            log.info("%d API keys are known", self.keys.reload())
        except (ValueError, OSError) as error:
            log.error("the API keys are unchanged: %s", error)

    def _public(self, path: str) -> bool:
        return is_public(path) or (path == METRICS and self.settings.metrics_public)

    def _refuse(self, scope: Scope, receive: Receive, send: Send, *, has_key: bool) -> Awaitable[None]:
        if has_key:
            problem = Unauthorized("the service does not know the request's API key")
        else:
            problem = Unauthorized("this service needs an API key; send it as a bearer token, or as X-API-Key")
        return send_refusal(problem, scope, receive, send, self.settings, self.telemetry)


def is_public(path: str) -> bool:
    """Return whether the path is a health check or a page that is the same for all clients."""
    return path in PAGES or path.startswith(FOLDERS)


async def send_refusal(
    problem: Problem, scope: Scope, receive: Receive, send: Send, settings: Settings, telemetry: Telemetry
) -> None:
    """Refuse a request before it reaches a route, and count it."""
    request = HttpRequest(scope, receive, settings)
    telemetry.refused(request, problem.slug, problem.status)
    await send_problem(request, problem, send)


def _key(scope: Scope) -> bytes | None:
    """Return the request's key: the bearer token, else X-API-Key."""
    key: bytes | None = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, credentials = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return bytes(credentials.strip())
        elif name == b"x-api-key":
            key = value
    return key
