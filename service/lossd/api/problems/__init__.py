"""The pages of problems, ``/problems`` and ``/problems/<type>``: what each means, an example, and how to fix it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from html import escape
from http import HTTPStatus

from fastapi import FastAPI, Request, Response

from lossd.api.explorer import GUARDS
from lossd.api.manual import aside
from lossd.api.manual.frame import frame
from lossd.api.pages import MEDIA_TYPES, Page
from lossd.api.problems.guide import EXAMPLES, FIXES, Example
from lossd_client.errors import PROBLEMS, NotFound, Problem
from lossd_client.wire.quoting import quoted

__all__ = ["describe", "mount"]

RETRY = {
    429: "Yes, after the number of seconds in `Retry-After`.",
    500: "A retry may succeed. The service's log says what failed.",
    503: "Yes, after the number of seconds in `Retry-After`.",
    504: "Yes, with a later deadline or at a lower load.",
}
MOST_SHOWN = 400  # characters of a body

_MARKUP = re.compile(r"`+([^`]+)`+|\[([^\]]+)\]\(([^)]+)\)")


def describe(kind: type[Problem]) -> dict[str, str]:
    """Return a problem type's description, for its page and for the manual."""
    text = (inspect.getdoc(kind) or "").partition("\n\n")[0]
    return {
        "title": kind.title,
        "summary": text.partition("\n")[0],
        "text": text,
        "retry": RETRY.get(kind.status, "No. The service refuses the same request again."),
        "fix": FIXES[kind.slug],
    }


def mount(app: FastAPI, assets: Callable[[], str]) -> None:
    """Add the pages.

    Args:
        app: The application.
        assets: Returns the folder of the explorer's files, whose name changes with them.
    """
    everything = Page(lambda: _list(assets()), MEDIA_TYPES[".html"], headers=GUARDS)
    each = {
        slug: Page(lambda kind=kind: _page(kind, assets()), MEDIA_TYPES[".html"], headers=GUARDS)  # type: ignore[misc]
        for slug, kind in PROBLEMS.items()
    }

    @app.get("/problems", include_in_schema=False)
    async def problems(request: Request) -> Response:
        return await everything.answer(request.headers, assets())

    @app.get("/problems/{slug}", include_in_schema=False)
    async def problem(request: Request, slug: str) -> Response:
        if slug not in each:
            raise NotFound(f"there is no problem type {quoted(slug)}; /problems lists all types")
        return await each[slug].answer(request.headers, assets())


def _list(assets: str) -> bytes:
    rows = "".join(
        f'<tr><td>{kind.status}</td><td><a href="problems/{slug}">{escape(kind.title)}</a></td>'
        f"<td>{_html(describe(kind)['summary'], '')}</td></tr>"
        for slug, kind in sorted(PROBLEMS.items(), key=lambda item: item[1].status)
    )
    text = (
        "<h1>Error codes</h1><p>Every error is a problem document (RFC 9457). Its <code>type</code> is the address of "
        "one of these pages, and its <code>detail</code> says what to change. The manual has "
        '<a href="manual/errors">more about errors</a>.</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="All errors"><table><thead><tr>'
        f"<th>Status</th><th>Error</th><th>What it means</th></tr></thead><tbody>{rows}</tbody></table>"
        "</div>"
    )
    return frame("Error codes", text, root="", assets=assets, aside=aside("", "errors"))


def _page(kind: type[Problem], assets: str) -> bytes:
    described, root = describe(kind), "../"
    facts = {
        "Status": f"{kind.status} {HTTPStatus(kind.status).phrase}",
        "<code>type</code>": f"<code>/problems/{kind.slug}</code>",
        "In Python": f"<code>lossd_client.errors.{kind.__name__}</code>",
        "Try again?": _html(described["retry"], root),
    }
    rows = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in facts.items())
    text = (
        f'<p><a class="back" href="{root}problems">All errors</a></p><h1>{escape(kind.title)}</h1>'
        f'<p class="lead">{_html(described["text"], root)}</p><h2>How to fix it</h2>'
        f"<p>{_html(described['fix'], root)}</p>{_example(kind)}<h2>For programs</h2>"
        f"<table><tbody>{rows}</tbody></table>"
    )
    return frame(kind.title, text, root=root, assets=assets, aside=aside(root, "errors"))


def _example(kind: type[Problem]) -> str:
    example = EXAMPLES.get(kind.slug)
    if example is None:
        return ""
    answer = {"type": f"/problems/{kind.slug}", "title": kind.title, "status": kind.status, "detail": example.detail}
    return (
        f"<h2>Example</h2><p>Request:</p>{_code(_sent(example))}<p>Answer:</p>"
        f"{_code(json.dumps(answer, indent=2, ensure_ascii=False))}"
    )


def _sent(example: Example) -> str:
    """Return a request as text: the first line, its headers, and its body."""
    headers = "".join(f"\n{name}: {value}" for name, value in example.headers.items())
    body = example.body if isinstance(example.body, str) else example.body and json.dumps(example.body)
    if body and len(body) > MOST_SHOWN:
        body = f"{body[:40]}… ({len(body)} bytes)"
    return f"{example.method} {example.path}{headers}" + (f"\n\n{body}" if body else "")


def _code(text: str) -> str:
    return f'<pre class="wrap" tabindex="0"><code>{escape(text)}</code></pre>'


def _html(text: str, root: str) -> str:
    """Return text with its code and links as HTML."""

    def marked(match: re.Match[str]) -> str:
        code, label, target = match.groups()
        return f"<code>{code}</code>" if code else f'<a href="{root}{target}">{label}</a>'

    return _MARKUP.sub(marked, escape(text, quote=False))
