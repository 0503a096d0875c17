"""Behind a proxy, below a path of its own: ``/loss/v1/evaluate`` for ``/v1/evaluate``.

Pages refer to each other relatively, and stay below whatever path a proxy serves them at without being told. What is
absolute by nature, the types of problems, needs to know it.
"""

from __future__ import annotations

from collections.abc import Awaitable, MutableMapping
from typing import Any

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lossd.api.http.asgi import ROOT

__all__ = ["Prefix", "relative", "strip_prefix"]


class Prefix:
    """Notes the path in the scope, and takes it off a request's, where the proxy has not.

    Not as ASGI's ``root_path``, which Starlette wants to find at the beginning of every path.

    Args:
        app: What is behind it.
        root_path: The path, such as ``/loss``.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass the request on."""
        if scope["type"] == "http":
            if scope["path"] == self.root_path:  # what the page there refers to is below it
                return RedirectResponse(f"{self.root_path.rpartition('/')[2]}/")(scope, receive, send)
            strip_prefix(scope, self.root_path)
        return self.app(scope, receive, send)


def strip_prefix(scope: MutableMapping[str, Any], root: str) -> None:
    """Note the path in a request's scope, once, and take it off the request's own where it is still there.

    Args:
        scope: The request's.
        root: The path, such as ``/loss``.
    """
    if ROOT not in scope:
        scope[ROOT] = root
        if scope["path"].startswith(f"{root}/"):
            scope["path"] = scope["path"].removeprefix(root)
            scope["raw_path"] = scope["raw_path"].removeprefix(root.encode())


def relative(location: str, path: str) -> str:
    """Where a redirection within the service leads, whatever path and host a proxy serves it at.

    Args:
        location: The address it leads to, in this service.
        path: That of the request.
    """
    _, _, target = location.partition("://")
    return "../" * (path.count("/") - 1) + target.partition("/")[2].lstrip("/")
