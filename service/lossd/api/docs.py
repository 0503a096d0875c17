"""Interactive documentation and the pages of problems. Every asset is from an installed package, none from a CDN."""

from __future__ import annotations

import inspect
import re
from html import escape
from pathlib import Path

import fastapi_offline
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse

from lossd.api.headers import with_policy
from lossd.api.pages import JSON, MEDIA_TYPES, Files, Page
from lossd_client.errors import PROBLEMS, NotFound, Problem
from lossd_client.wire.quoting import quoted

__all__ = ["describe_problem", "mount"]

ASSETS = Path(fastapi_offline.__file__).parent / "static"
STATIC = "/docs/static"


def mount(app: FastAPI) -> None:
    """Add ``/openapi.json``, ``/docs``, ``/redoc``, ``/problems`` and their assets."""
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
        )
    )
    redoc_page = _page(
        get_redoc_html(
            openapi_url="openapi.json",
            title="lossd",
            redoc_js_url=f"{assets}/redoc.standalone.js",
            redoc_favicon_url=icon,
            with_google_fonts=False,
        )
    )
    all_problems = _text("Problems", "".join(_section(kind, linked=True) for kind in PROBLEMS.values()))
    each_problem = {slug: _text(kind.title, _section(kind, linked=False)) for slug, kind in PROBLEMS.items()}

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        return await document.answer(request.headers)

    @app.get("/docs", include_in_schema=False)
    async def swagger(request: Request) -> Response:
        return await swagger_page.answer(request.headers)

    @app.get("/redoc", include_in_schema=False)
    async def redoc(request: Request) -> Response:
        return await redoc_page.answer(request.headers)

    @app.get("/problems", include_in_schema=False)
    async def problems(request: Request) -> Response:
        return await all_problems.answer(request.headers)

    @app.get("/problems/{slug}", include_in_schema=False)
    async def problem(request: Request, slug: str) -> Response:
        if slug not in each_problem:
            raise NotFound(f"there is no problem type {quoted(slug)}; /problems lists all types")
        return await each_problem[slug].answer(request.headers)


def describe_problem(kind: type[Problem]) -> dict[str, str]:
    """Return a problem type's description, for its page and for the manual."""
    text = inspect.getdoc(kind) or ""
    retry = {
        429: "Yes, after the seconds that `Retry-After` names.",
        500: "Perhaps: another try may succeed, and the log says what failed.",
        503: "Yes, after the seconds that `Retry-After` names.",
        504: "Yes, with a later deadline, or when the service has less to do.",
    }
    return {
        "title": kind.title,
        "summary": text.partition("\n")[0],
        "text": text,
        "retry": retry.get(kind.status, "No: the same request will be refused again."),
    }


def _section(kind: type[Problem], *, linked: bool) -> str:
    described = describe_problem(kind)
    title = f'<a href="problems/{kind.slug}">{escape(kind.title)}</a>' if linked else escape(kind.title)
    text = "".join(f"<p>{_html(part)}</p>" for part in described["text"].split("\n\n"))
    facts = f"Status <code>{kind.status}</code>. In Python: <code>lossd_client.errors.{kind.__name__}</code>."
    return f"<section><h2>{title}</h2>{text}<p>{facts} Try again? {_html(described['retry'])}</p></section>"


def _html(text: str) -> str:
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(text))


def _text(title: str, body: str) -> Page:
    style = "body{font:1rem/1.5 system-ui;max-width:44rem;margin:3rem auto;padding:0 1rem;color-scheme:light dark}"
    html = HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)} · lossd</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style><main>{body}</main></html>'
    )
    return _page(html)


def _page(html: HTMLResponse) -> Page:
    policy = "content-security-policy"
    return Page(lambda: bytes(html.body), MEDIA_TYPES[".html"], headers={policy: with_policy(html).headers[policy]})
