"""Who may ask: every request shows its API key here, once, before any route sees it.

What is not named public below needs a key: a new route is protected until somebody decides otherwise. Public is health,
for probes that know no key, and so are pages that are the same for every service of this version.
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

__all__ = ["Access", "is_page", "keys_of", "turn_away"]

log = logging.getLogger("lossd.api")

PAGES = frozenset(("/", "/docs", "/redoc", "/openapi.json", "/problems"))
FOLDERS = ("/health/", "/v2/health/", "/docs/", "/problems/", "/explorer/")
METRICS = "/metrics"


def keys_of(settings: Settings) -> Keys | None:
    """The keys the settings name; None where the service asks for none.

    Raises:
        ValueError, OSError: The keys file is none.
    """
    if not settings.has_keys:
        return None
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    return Keys(settings.api_keys_file, key)


class Access:
    """The door: lets in whoever has a key, and notes its name in the scope.

    Args:
        app: What is behind it.
        keys: Those that open.
        settings: Whether metrics are public, and limits.
        telemetry: Where refusals are counted.
    """

    def __init__(self, app: ASGIApp, keys: Keys, settings: Settings, telemetry: Telemetry) -> None:
        self.app = app
        self.keys = keys
        self.settings = settings
        self.telemetry = telemetry

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass the request on, or refuse it: what is returned does either."""
        if scope["type"] == "http":
            key = _key(scope)
            name = None if key is None else self.keys.name_of(key)
            if name is not None:
                scope[CLIENT] = name
            elif not self._public(scope["path"]):
                return self._refuse(scope, receive, send, given=key is not None)
        return self.app(scope, receive, send)

    def reload(self) -> None:
        """Read the keys file again; one that is none changes nothing but the log."""
        try:
            log.info("%d API keys are known", self.keys.reload())
        except (ValueError, OSError) as error:
            log.error("the API keys stay as they were: %s", error)

    def _public(self, path: str) -> bool:
        return is_page(path) or (path == METRICS and self.settings.metrics_public)

    def _refuse(self, scope: Scope, receive: Receive, send: Send, *, given: bool) -> Awaitable[None]:
        if given:
            problem = Unauthorized("the request's API key is not one that this service knows")
        else:
            problem = Unauthorized("this service asks for an API key; send it as a bearer, or as X-API-Key")
        return turn_away(problem, scope, receive, send, self.settings, self.telemetry)


def is_page(path: str) -> bool:
    """Whether what is there is the same for everybody, or is health."""
    return path in PAGES or path.startswith(FOLDERS)


async def turn_away(
    problem: Problem, scope: Scope, receive: Receive, send: Send, settings: Settings, telemetry: Telemetry
) -> None:
    """Refuse a request before any route has seen it."""
    request = HttpRequest(scope, receive, settings)
    telemetry.refused(request, problem.slug, problem.status)
    await send_problem(request, problem, send)


def _key(scope: Scope) -> bytes | None:
    """The key the request shows: as a bearer, or else by itself."""
    key: bytes | None = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, credentials = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return bytes(credentials.strip())
        elif name == b"x-api-key":
            key = value
    return key
