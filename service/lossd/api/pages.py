"""Pages that are the same for everybody: packed once, and not sent again to who has them."""

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
    body: bytes, media_type: str, asked: Headers, *, caching: str = ASK_AGAIN, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request for a page: packed where that is welcome, 304 where the client has it.

    Args:
        body: The page. What a client sent is not in it, for it is kept.
        media_type: Of the page.
        asked: The request's headers.
        caching: For how long it may be kept.
        headers: Of the answer, beside those.
    """
    tag = f'W/"{hashlib.blake2b(body, digest_size=8).hexdigest()}"'
    stated = {**(headers or {}), "cache-control": caching, "etag": tag, "vary": "accept-encoding"}
    if tag in asked.get("if-none-match", ""):
        return Response(status_code=304, headers=stated)
    welcome = choose_encoding(asked.get("accept-encoding", "").encode("latin-1"), (b"gzip",))
    if welcome and len(body) >= MIN_BYTES and media_type not in INCOMPRESSIBLE:
        body, stated["content-encoding"] = _packed(body), "gzip"
    return Response(body, headers=stated, media_type=media_type)


@lru_cache(maxsize=256)
def _packed(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)


class Files(StaticFiles):
    """Static files as pages.

    Args:
        directory: Where they are.
        headers: Of each answer.
    """

    def __init__(self, directory: Path, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(directory=directory)
        self.headers = headers

    def caching(self, scope: Scope) -> str:
        """For how long the file that is asked for may be kept."""
        return ASK_AGAIN

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file at a path, or the refusal that StaticFiles has for it."""
        found = await super().get_response(path, scope)
        if not isinstance(found, FileResponse):
            return found
        file = Path(found.path)  # opened before the answer begins, for there may be no file descriptor left
        caching, media_type, asked = self.caching(scope), MEDIA_TYPES.get(file.suffix, TEXT), Headers(scope=scope)
        return await run_in_threadpool(
            lambda: page(file.read_bytes(), media_type, asked, caching=caching, headers=self.headers)
        )
