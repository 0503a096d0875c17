"""The explorer: the page at ``/``, made of static files, which uses the service as any client does.

A browser runs the modules under ``static``, in packs of one file for each view. The addresses of files and packs have a
version that changes with the files, so a browser may cache them for ever and never mixes two versions.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Set
from functools import lru_cache, partial
from html import escape
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from lossd import __version__
from lossd.api.explorer.packs import SHELL_PACK, SUFFIX, pack, packs
from lossd.api.pages import ASK_AGAIN, FOREVER, MEDIA_TYPES, Files, Page

__all__ = ["GUARDS", "mount"]

STATIC = Path(__file__).parent / "static"
PREFIX = "/explorer"

# Only files of this service, no inline script or style, and no frame around the page. blob: is for pictures that the
# page draws of the reader's tensors.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
GUARDS = {"content-security-policy": POLICY, "cross-origin-opener-policy": "same-origin"}


def mount(app: FastAPI) -> Callable[[], str]:
    """Add the page at ``/`` and its files. Return a function that returns the folder of the files, from the root."""
    versions: set[str] = set()
    app.mount(f"{PREFIX}/{{version}}", _Assets(versions), name="explorer-assets")

    @lru_cache(maxsize=1)
    def folder(_: int) -> str:
        version = _version()
        versions.add(version)
        return f"{PREFIX[1:]}/{version}"

    def assets() -> str:
        return folder(int(time.monotonic()))  # files are looked at once a second

    def index() -> bytes:
        text = (STATIC / "index.html").read_text().replace('"static/', f'"{assets()}/')
        return text.replace("{version}", __version__).replace("{packs}", escape(json.dumps(packs(STATIC)))).encode()

    page = Page(index, MEDIA_TYPES[".html"], headers=GUARDS)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def explorer(request: Request) -> Response:
        return await page.answer(request.headers, assets())

    return assets


class _Assets(Files):
    """The page's files and packs.

    Args:
        versions: The versions that the page has named. Files under another version may not be cached.
    """

    def __init__(self, versions: Set[str]) -> None:
        super().__init__(STATIC, GUARDS)
        self.versions = versions

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file or the pack at a path, or the refusal of StaticFiles."""
        if not path.endswith(SUFFIX) or path not in (SHELL_PACK, *packs(STATIC)):
            return await super().get_response(path, scope)
        page = self.page(STATIC / path, partial(pack, STATIC, path), scope)
        return await page.answer(Headers(scope=scope), _version())

    def caching(self, scope: Scope) -> str:
        """Return the Cache-Control of an address: for ever if the page has named its version."""
        return FOREVER if scope["path_params"]["version"] in self.versions else ASK_AGAIN


def _version() -> str:
    """Return a version that changes with every file, so that an edited page is loaded again."""
    states = [(str(file), file.stat().st_mtime_ns) for file in sorted(STATIC.rglob("*"))]
    return hashlib.blake2b(repr(states).encode(), digest_size=6).hexdigest()
