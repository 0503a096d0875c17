"""What every page says to browsers: load nothing from elsewhere, stay out of frames, take types as they are stated."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lossd.api.http.asgi import request_id
from lossd.api.prefix import relative

__all__ = ["PageHeaders", "with_policy"]

# For answers that state no policy of their own.
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",  # for browsers that do not know frame-ancestors
}


def with_policy(page: HTMLResponse) -> HTMLResponse:
    """The page with a policy: its assets are the service's, and of inline scripts exactly those in its text may run.

    Styles may be inline, for the documentation's libraries write them; so may images, and a worker that searches.
    """
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    hashes = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts)
    allowed = " ".join(("'self'", *(f"'sha256-{digest}'" for digest in hashes)))
    page.headers["content-security-policy"] = (
        f"{POLICY}; script-src {allowed}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:"
    )
    return page


class PageHeaders:
    """Adds to each answer what it does not state itself, and the request's id.

    Args:
        app: Who answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have it answered."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if "location" in headers:
                    headers["location"] = relative(headers["location"], scope["path"])
                if "x-request-id" not in headers:
                    headers["x-request-id"] = request_id(Headers(scope=scope).get("x-request-id", ""))
            await send(message)

        await self.app(scope, receive, guarded if scope["type"] == "http" else send)
