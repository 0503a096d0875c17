"""The explorer: the page at ``/``, a client of this service like any other, made of static files.

Everything a browser runs is under ``static``. The page's address of them has a version in it that changes with them, so
a browser may keep them for good and still never mixes two versions.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Set
from functools import lru_cache
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from lossd.api.http.compression import accepted

__all__ = ["mount"]

STATIC = Path(__file__).parent / "static"
PREFIX = "/explorer"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
INCOMPRESSIBLE = {".woff2"}

# Nothing but what the service itself serves, no script or style in the page's text, and no page around it. blob: is
# for pictures that the page draws of the reader's own tensors.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
GUARDS = {"content-security-policy": POLICY, "cross-origin-opener-policy": "same-origin"}
FOREVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"


def mount(app: FastAPI) -> None:
    """Add the page at ``/`` and what it is made of."""
    versions: set[str] = set()
    app.mount(f"{PREFIX}/{{version}}", _Assets(versions), name="explorer-assets")

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def page(request: Request) -> Response:
        version = _version()
        versions.add(version)
        text = (STATIC / "index.html").read_text().replace('"static/', f'"{PREFIX[1:]}/{version}/')
        return _answer(text.encode(), ".html", ASK_AGAIN, request.headers)


class _Assets(StaticFiles):
    """Static files, packed, with the page's headers.

    Args:
        versions: Those that the page has named; what is under another may not be kept.
    """

    def __init__(self, versions: Set[str]) -> None:
        super().__init__(directory=STATIC)
        self.versions = versions

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file at a path, or the refusal that StaticFiles has for it."""
        found = await super().get_response(path, scope)
        file = Path(getattr(found, "path", ""))
        if file.suffix not in MEDIA_TYPES:  # a licence
            return found
        caching = FOREVER if scope["path_params"]["version"] in self.versions else ASK_AGAIN
        headers = Headers(scope=scope)
        return await run_in_threadpool(lambda: _answer(file.read_bytes(), file.suffix, caching, headers))


def _answer(body: bytes, suffix: str, caching: str, asked: Headers) -> Response:
    tag = f'W/"{hashlib.blake2b(body, digest_size=8).hexdigest()}"'
    headers = GUARDS | {"cache-control": caching, "etag": tag, "vary": "accept-encoding"}
    if tag in asked.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if suffix not in INCOMPRESSIBLE and accepted(asked.get("accept-encoding", "").encode("latin-1"), (b"gzip",)):
        body, headers["content-encoding"] = _packed(body), "gzip"
    return Response(body, headers=headers, media_type=MEDIA_TYPES[suffix])


def _version() -> str:
    """Changes whenever a file does, so that whoever edits the page sees it on the next load."""
    states = [(str(file), file.stat().st_mtime_ns) for file in sorted(STATIC.rglob("*"))]
    return hashlib.blake2b(repr(states).encode(), digest_size=6).hexdigest()


@lru_cache(maxsize=256)
def _packed(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)
