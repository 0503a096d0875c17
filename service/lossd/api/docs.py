"""Interactive documentation. Every asset is from an installed package, none from a CDN."""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse

from lossd.api.headers import with_policy
from lossd.api.pages import JSON, MEDIA_TYPES, Files, Page

__all__ = ["mount"]

ASSETS = Path(fastapi_offline.__file__).parent / "static"
STATIC = "/docs/static"
REDOC = "redoc.standalone.js"
EXPLORER = Path(__file__).parent / "explorer" / "static"
# What ReDoc does not let a page choose: its logo, loaded from another host, which the page's policy forbids, and the
# colour of patterns, which a dark page cannot have.
REPLACED = {
    b"https://cdn.redoc.ly/redoc/logo-mini.svg": b"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E",
    b"color: #0e7c86": b"color: var(--pattern)",
}


def mount(app: FastAPI) -> None:
    """Add ``/openapi.json``, ``/docs``, ``/redoc`` and their assets."""
    script = Page(_redoc, MEDIA_TYPES[".js"])

    @app.get(f"{STATIC}/{REDOC}", include_in_schema=False)
    async def redoc_script(request: Request) -> Response:
        return await script.answer(request.headers)

    app.mount(STATIC, Files(ASSETS), name="docs-assets")
    document = Page(lambda: orjson.dumps(app.openapi()), JSON)
    assets = STATIC[1:]  # relative, so that the path below which a proxy serves the page does not matter
    icon = f"{assets}/favicon.png"
    swagger_page = _page(
        get_swagger_ui_html(
            openapi_url="openapi.json",
            title="lossd",
            swagger_js_url=f"{assets}/swagger-ui-bundle.js",
            swagger_css_url=f"{assets}/swagger-ui.css",
            swagger_favicon_url=icon,
            swagger_ui_parameters={"defaultModelsExpandDepth": 0},  # the list of schemas is long, and folded at first
        ),
        style="swagger.css",
    )
    redoc_page = _page(
        get_redoc_html(
            openapi_url="openapi.json",
            title="lossd",
            redoc_js_url=f"{assets}/{REDOC}",
            redoc_favicon_url=icon,
            with_google_fonts=False,
        ),
        style="redoc.css",
        colors="redoc-theme.js",
    )

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        return await document.answer(request.headers)

    @app.get("/docs", include_in_schema=False)
    async def swagger(request: Request) -> Response:
        return await swagger_page.answer(request.headers)

    @app.get("/redoc", include_in_schema=False)
    async def redoc(request: Request) -> Response:
        return await redoc_page.answer(request.headers)


def _redoc() -> bytes:
    script = (ASSETS / REDOC).read_bytes()
    for old, new in REPLACED.items():
        script = script.replace(old, new)
    return script


def _page(html: HTMLResponse, style: str, colors: str | None = None) -> Page:
    """Return a library's page in the explorer's theme.

    Args:
        html: The page.
        style: The file of further styles.
        colors: The file of a script that sets the colours before ReDoc draws.
    """
    text = bytes(html.body).decode().replace("<html>", '<html lang="en">', 1)
    text = text.replace("</head>", f"<style>{_read(style)}</style><script>{_read('docs-theme.js')}</script></head>", 1)
    if colors is not None:
        text = text.replace("</redoc>", f"</redoc><script>{_read(colors)}</script>", 1)
    html = HTMLResponse(text)
    policy = "content-security-policy"
    return Page(lambda: bytes(html.body), MEDIA_TYPES[".html"], headers={policy: with_policy(html).headers[policy]})


def _read(file: str) -> str:
    return (EXPLORER / file).read_text(encoding="utf-8")
