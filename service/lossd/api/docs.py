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
LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
THEME = (Path(__file__).parent / "explorer" / "static" / "docs-theme.js").read_text()
# Code in a paragraph does not cover the line above; answers have no links, whose column a phone has no room for.
STYLE = """html.dark-mode { color-scheme: dark }
.swagger-ui .renderedMarkdown p code { padding: 0 5px }
@media (max-width: 40rem) { .swagger-ui .response-col_links { display: none } }"""
NO_LOGO = b"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E"


def mount(app: FastAPI) -> None:
    """Add ``/openapi.json``, ``/docs``, ``/redoc`` and their assets."""
    # ReDoc would load its logo from elsewhere, which the page's policy forbids and a browser complains of.
    script = Page(lambda: (ASSETS / REDOC).read_bytes().replace(LOGO, NO_LOGO), MEDIA_TYPES[".js"])

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
        head=f"<style>{STYLE}</style><script>{THEME}</script>",
    )
    redoc_page = _page(
        get_redoc_html(
            openapi_url="openapi.json",
            title="lossd",
            redoc_js_url=f"{assets}/{REDOC}",
            redoc_favicon_url=icon,
            with_google_fonts=False,
        )
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


def _page(html: HTMLResponse, head: str = "") -> Page:
    policy = "content-security-policy"
    html = HTMLResponse(bytes(html.body).decode().replace("</head>", f"{head}</head>", 1))
    return Page(lambda: bytes(html.body), MEDIA_TYPES[".html"], headers={policy: with_policy(html).headers[policy]})
