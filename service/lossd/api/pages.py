"""Pages that are the same for all clients: compressed once, and answered with 304 to clients that have them."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from lossd.api.http.compression import MIN_BYTES, choose_encoding

__all__ = ["ASK_AGAIN", "FOREVER", "JSON", "MEDIA_TYPES", "Files", "page"]

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
INCOMPRESSIBLE = frozenset(("font/woff2", "image/png"))

FOREVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"


def page(
    body: bytes,
    media_type: str,
    request_headers: Headers,
    *,
    caching: str = ASK_AGAIN,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the answer to a request for a page: compressed if the client accepts it, 304 if the client has the page.

    Args:
        body: The page. It must not depend on the request, because its compressed form is cached.
        media_type: The page's media type.
        request_headers: The request's headers.
        caching: The answer's Cache-Control.
        headers: Further headers of the answer.
    """
    tag = f'W/"{hashlib.blake2b(body, digest_size=8).hexdigest()}"'
    stated = {**(headers or {}), "cache-control": caching, "etag": tag, "vary": "accept-encoding"}
    if tag in request_headers.get("if-none-match", ""):
        return Response(status_code=304, headers=stated)
    encoding = choose_encoding(request_headers.get("accept-encoding", "").encode("latin-1"), (b"gzip",))
    if encoding and len(body) >= MIN_BYTES and media_type not in INCOMPRESSIBLE:
        body, stated["content-encoding"] = _gzipped(body), "gzip"
    return Response(body, headers=stated, media_type=media_type)


@lru_cache(maxsize=256)
def _gzipped(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)


class Files(StaticFiles):
    """Static files, answered as pages.

    Args:
        directory: The files' folder.
        headers: Headers of each answer.
    """

    def __init__(self, directory: Path, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(directory=directory)
        self.headers = headers

    def caching(self, scope: Scope) -> str:
        """Return the Cache-Control of the requested file."""
        return ASK_AGAIN

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file at a path, or the refusal of StaticFiles."""
        found = await super().get_response(path, scope)
        if not isinstance(found, FileResponse):
            return found
        file = Path(found.path)  # read before the answer begins: there may be no file descriptor left
        media_type, caching = MEDIA_TYPES.get(file.suffix, TEXT), self.caching(scope)
        return await run_in_threadpool(
            lambda: page(file.read_bytes(), media_type, Headers(scope=scope), caching=caching, headers=self.headers)
        )
