"""Security headers of pages: load nothing from other hosts, allow no frames, sniff no types."""

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
    """Return the page with a policy that allows the service's assets and exactly the inline scripts in its text.

    Inline styles, inline images and a worker are allowed, because the documentation's libraries use them.
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
    """An application that adds missing security headers and the request's id to each answer.

    Args:
        app: The application that answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if "location" in headers:
                    headers["location"] = relative(headers["location"], scope["path"])
                if "x-request-id" not in headers:
                    headers["x-request-id"] = request_id(Headers(scope=scope).get("x-request-id", ""))
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)
