"""Serves below a path of a proxy: ``/loss/v1/evaluate`` for ``/v1/evaluate``.

Pages refer to each other relatively, and work below any path. The types of problems are absolute, and need the path.
"""

from __future__ import annotations

from collections.abc import Awaitable, MutableMapping
from typing import Any

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lossd.api.http.asgi import ROOT

__all__ = ["Prefix", "relative", "strip_prefix"]


class Prefix:
    """An application that removes a proxy's path from requests, if the proxy has not, and writes it into the scope.

    ASGI's ``root_path`` does not serve: Starlette expects it at the beginning of every path.

    Args:
        app: The application behind it.
        root_path: The proxy's path, such as ``/loss``.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the coroutine that answers the request."""
        if scope["type"] == "http":
            if scope["path"] == self.root_path:  # the page's relative addresses need the slash
                return RedirectResponse(f"{self.root_path.rpartition('/')[2]}/")(scope, receive, send)
            strip_prefix(scope, self.root_path)
        return self.app(scope, receive, send)


def strip_prefix(scope: MutableMapping[str, Any], root: str) -> None:
    """Write the proxy's path into a request's scope, once, and remove it from the request's path.

    Args:
        scope: The request's scope.
        root: The proxy's path, such as ``/loss``.
    """
    if ROOT not in scope:
        scope[ROOT] = root
        if scope["path"].startswith(f"{root}/"):
            scope["path"] = scope["path"].removeprefix(root)
            if "raw_path" in scope:  # servers may leave it out
                scope["raw_path"] = scope["raw_path"].removeprefix(root.encode())


def relative(location: str, path: str) -> str:
    """Return the relative form of a redirection within the service, which holds below any path and host of a proxy.

    Args:
        location: The absolute address in this service.
        path: The request's path.
    """
    _, _, target = location.partition("://")
    return "../" * (path.count("/") - 1) + target.partition("/")[2].lstrip("/")
