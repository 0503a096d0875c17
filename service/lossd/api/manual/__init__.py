"""The manual at ``/manual``: the pages of the folder docs, in the explorer's style, with a search.

A wheel brings the Markdown, and the service renders a page when it is first asked for. So the manual is the same in a
clone, an installation and an image, and nothing is generated before the package is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape

import orjson
from fastapi import FastAPI, Request, Response

from lossd.api.explorer import GUARDS
from lossd.api.manual.contents import CONTENTS, FOLDER, ManualPage, entries, read, sections
from lossd.api.manual.frame import frame
from lossd.api.pages import JSON, MEDIA_TYPES, Files, Page
from lossd.losses import REGISTRY
from lossd_client.errors import PROBLEMS, NotFound
from lossd_client.wire.quoting import quoted

__all__ = ["aside", "mount"]

MANUAL = "/manual"


def mount(app: FastAPI, assets: Callable[[], str]) -> None:
    """Add the manual's pages, pictures and search index.

    Args:
        app: The application.
        assets: Returns the folder of the explorer's files, whose name changes with them.
    """
    if FOLDER is None:
        return
    names = frozenset(entry.name for entry in entries()) | {CONTENTS}
    pages = {name: Page(_maker(name, names, assets), MEDIA_TYPES[".html"], headers=GUARDS) for name in names}
    index = Page(_index, JSON)
    app.mount(f"{MANUAL}/images", Files(FOLDER / "images", GUARDS), name="manual-images")

    @app.get(MANUAL, include_in_schema=False)
    async def manual(request: Request) -> Response:
        return await pages[CONTENTS].answer(request.headers, assets())

    @app.get(f"{MANUAL}/search.json", include_in_schema=False)
    async def search(request: Request) -> Response:
        return await index.answer(request.headers)

    @app.get(f"{MANUAL}/{{name}}", include_in_schema=False)
    async def page(request: Request, name: str) -> Response:
        if name not in names - {CONTENTS}:
            raise NotFound(f"the manual has no page {quoted(name)}; {MANUAL} lists all pages")
        return await pages[name].answer(request.headers, assets())


def aside(root: str, current: str = "") -> str:
    """Return the HTML of the column beside a text: the search, and the manual's pages.

    Args:
        root: The relative address of the service's root, from the page.
        current: The name of the page that is shown.
    """
    lists = "".join(
        f"<h2>{escape(heading)}</h2><ul>{''.join(_link(entry, root, current) for entry in listed)}</ul>"
        for heading, listed in sections().items()
    )
    return (
        '<div class="find" role="search" hidden><label class="unseen" for="find">Search the manual</label>'
        '<input id="find" type="search" placeholder="Search the manual" autocomplete="off">'
        '<ol id="found" aria-live="polite" hidden></ol></div>'
        f'<details open><summary>Contents</summary><nav aria-label="Manual">{lists}</nav></details>'
    )


def _link(entry: ManualPage, root: str, current: str) -> str:
    mark = ' aria-current="page"' if entry.name == current else ""
    return f'<li><a href="{root}manual/{entry.name}"{mark}>{escape(entry.title)}</a></li>'


def _maker(name: str, names: frozenset[str], assets: Callable[[], str]) -> Callable[[], bytes]:
    """Return the function that makes a page."""

    def make() -> bytes:
        from lossd.api.manual.rendering import render  # a parser that only readers of the manual need

        root = "" if name == CONTENTS else "../"
        rendered = render(name, read(name), root, names)
        here = "".join(
            f'<li class="level-{h.level}"><a href="#{h.anchor}">{escape(h.text)}</a></li>'
            for h in rendered.headings
            if h.level <= 3
        )
        here = f"<h2>On this page</h2><ul>{here}</ul>" if here and name != CONTENTS else ""
        text = rendered.html + _neighbours(name, root)
        return frame(rendered.title, text, root=root, assets=assets(), aside=aside(root, name), here=here)

    return make


def _neighbours(name: str, root: str) -> str:
    """Return links to the page before and the page after."""
    order = entries()
    at = next((i for i, entry in enumerate(order) if entry.name == name), None)
    if at is None:
        return ""
    near = {"before": at - 1, "after": at + 1}
    links = [
        f'<a class="{way}" href="{root}manual/{order[i].name}">{escape(order[i].title)}</a>'
        for way, i in near.items()
        if 0 <= i < len(order)
    ]
    return f'<nav class="near" aria-label="Neighbouring pages">{"".join(links)}</nav>'


def _index() -> bytes:
    """Return the search index: page, heading, address from the root, and text of each section."""
    from lossd.api.manual.rendering import render

    found = [
        (entry.title, heading.text, f"manual/{entry.name}#{heading.anchor}", text)
        for entry in entries()
        for heading, text in render(entry.name, read(entry.name), "", frozenset()).sections
    ]
    found += [("Losses", loss.name, f"#/losses/{loss.name}", _plain(loss.summary)) for loss in REGISTRY.values()]
    found += [
        ("Errors", kind.title, f"problems/{slug}", _plain((kind.__doc__ or "").partition("\n")[0]))
        for slug, kind in PROBLEMS.items()
    ]
    return orjson.dumps(found)


def _plain(text: str) -> str:
    return re.sub(r"`+|:\w+:", "", text)
