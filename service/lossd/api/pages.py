"""Pages that are the same for all clients: compressed once, and answered with 304 to clients that have them."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from lossd.api.http.compression import MIN_BYTES, choose_encoding
from lossd.api.http.negotiation import combined, is_current

__all__ = ["ASK_AGAIN", "FOREVER", "JSON", "MEDIA_TYPES", "Files", "Page"]

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

_HEADERS = frozenset((b"accept-encoding", b"if-none-match"))

FOREVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"


class Page:
    """A page that is the same for all clients. It is made, and compressed, once, in a thread.

    Args:
        make: Returns the page.
        media_type: The page's media type.
        caching: The answer's Cache-Control.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        make: Callable[[], bytes],
        media_type: str,
        *,
        caching: str = ASK_AGAIN,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._make = make
        self._stated = {**(headers or {}), "cache-control": caching, "vary": "accept-encoding"}
        self._media_type = media_type
        self._version: Hashable = None
        self._forms: dict[bytes | None, tuple[bytes, dict[str, str]]] = {}
        self._making = asyncio.Lock()

    async def answer(self, request_headers: Headers, version: Hashable = None) -> Response:
        """Return the answer to a request: compressed if the client accepts it, 304 if the client has the page.

        Args:
            request_headers: The request's headers.
            version: The page is made again if this changes.
        """
        headers = combined(request_headers.raw, _HEADERS)
        encoding = choose_encoding(headers.get(b"accept-encoding"), (b"gzip",))
        form = self._forms.get(encoding) if version == self._version else None
        if form is None:
            async with self._making:
                if version != self._version:
                    self._version, self._forms = version, {}
                if encoding not in self._forms:
                    self._forms[encoding] = await run_in_threadpool(self._form, encoding)
                form = self._forms[encoding]
        body, stated = form
        if is_current(headers.get(b"if-none-match", b""), stated["etag"]):
            return Response(status_code=304, headers=stated)
        return Response(body, headers=stated, media_type=self._media_type)

    def _form(self, encoding: bytes | None) -> tuple[bytes, dict[str, str]]:
        """Return the page in an encoding, and its headers."""
        body = self._make()
        stated = {**self._stated, "etag": f'W/"{hashlib.blake2b(body, digest_size=8).hexdigest()}"'}
        if encoding and len(body) >= MIN_BYTES and self._media_type not in INCOMPRESSIBLE:
            return gzip.compress(body, mtime=0), {**stated, "content-encoding": "gzip"}
        return body, stated


class Files(StaticFiles):
    """Static files, answered as pages.

    Args:
        directory: The files' folder.
        headers: Headers of each answer.
    """

    def __init__(self, directory: Path, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(directory=directory)
        self.headers = headers
        self._pages: dict[tuple[Path, str], Page] = {}

    def caching(self, scope: Scope) -> str:
        """Return the Cache-Control of the requested file."""
        return ASK_AGAIN

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file at a path, or the refusal of StaticFiles."""
        found = await super().get_response(path, scope)
        if not isinstance(found, FileResponse):
            return found
        file = Path(found.path)
        return await self.page(file, file.read_bytes, scope).answer(Headers(scope=scope), found.headers["etag"])

    def page(self, file: Path, make: Callable[[], bytes], scope: Scope) -> Page:
        """Return the page of a path; ``make`` returns its content."""
        caching = self.caching(scope)
        key = file, caching
        page = self._pages.get(key)
        if page is None:
            page = Page(make, MEDIA_TYPES.get(file.suffix, TEXT), caching=caching, headers=self.headers)
            self._pages[key] = page
        return page
