"""What can be wrong with a built website: links and anchors that lead nowhere, and what is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("object", "data"),
}
"""What a browser fetches by itself."""


class _Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[str, str, str]] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src", "data") and value:
                self.links.append((tag, name, value))


def faults(site: Path) -> list[str]:
    """Each fault of the website in a folder, as a sentence."""
    pages = {path: _Page(path) for path in site.rglob("*.html")}
    return [fault for path in pages for fault in _of_page(site, path, pages)]


def _of_page(site: Path, path: Path, pages: dict[Path, _Page]) -> Iterable[str]:
    here = path.relative_to(site)
    for tag, attribute, link in pages[path].links:
        url = urlsplit(link)
        if url.scheme or url.netloc:
            if (tag, attribute) in LOADING and url.scheme != "data":
                yield f"{here}: {link} is loaded from elsewhere"
            continue
        base = site if url.path.startswith("/") else path.parent
        target = (base / unquote(url.path).lstrip("/")).resolve() if url.path else path
        if not target.is_file():
            yield f"{here}: {link} leads nowhere"
        elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].anchors:
            yield f"{here}: {link} names an anchor that is not there"
