"""The explorer: the page at ``/``, a client of this service like any other, made of static files.

Everything a browser runs is under ``static``. The page's address of them has a version in it that changes with them, so
a browser may keep them for good and still never mixes two versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Scope

from lossd.api.pages import ASK_AGAIN, FOREVER, MEDIA_TYPES, Files, page

__all__ = ["mount"]

STATIC = Path(__file__).parent / "static"
PREFIX = "/explorer"

# Nothing but what the service itself serves, no script or style in the page's text, and no page around it. blob: is
# for pictures that the page draws of the reader's own tensors.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
GUARDS = {"content-security-policy": POLICY, "cross-origin-opener-policy": "same-origin"}


def mount(app: FastAPI) -> None:
    """Add the page at ``/`` and what it is made of."""
    versions: set[str] = set()
    app.mount(f"{PREFIX}/{{version}}", _Assets(versions), name="explorer-assets")

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def explorer(request: Request) -> Response:
        version = _version()
        versions.add(version)
        text = (STATIC / "index.html").read_text().replace('"static/', f'"{PREFIX[1:]}/{version}/')
        return page(text.encode(), MEDIA_TYPES[".html"], request.headers, headers=GUARDS)


class _Assets(Files):
    """The files that the page is made of.

    Args:
        versions: Those that the page has named; what is under another may not be kept.
    """

    def __init__(self, versions: Set[str]) -> None:
        super().__init__(STATIC, GUARDS)
        self.versions = versions

    def caching(self, scope: Scope) -> str:
        """For good, where the address has a version that was named."""
        return FOREVER if scope["path_params"]["version"] in self.versions else ASK_AGAIN


def _version() -> str:
    """Changes whenever a file does, so that whoever edits the page sees it on the next load."""
    states = [(str(file), file.stat().st_mtime_ns) for file in sorted(STATIC.rglob("*"))]
    return hashlib.blake2b(repr(states).encode(), digest_size=6).hexdigest()
