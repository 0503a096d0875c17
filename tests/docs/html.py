"""What can be wrong with a built website: links and anchors that lead nowhere, and what is loaded from elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from html import unescape
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

# Python's parser of HTML takes ten times as long.
_UNREAD = re.compile(r"<!--.*?-->|(<(script|style)\b[^>]*>).*?</\2>", re.DOTALL)
_TAG = re.compile(r"""<([a-z][\w-]*)((?:\s+[^\s=>"'/]+(?:\s*=\s*(?:"[^"]*"|'[^']*'|[^\s>"']+))?)+)""", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""\s(id|name|href|src|data)\s*=\s*(?:"([^"]+)"|'([^']+)'|([^\s>"']+))""", re.IGNORECASE)


class _Page:
    def __init__(self, path: Path) -> None:
        self.anchors: set[str] = set()
        self.links: list[tuple[str, str, str]] = []
        for tag, attributes in _TAG.findall(_UNREAD.sub(r"\1", path.read_text())):
            for name, *quoted in _ATTRIBUTE.findall(attributes):
                value = unescape("".join(quoted))
                if name.lower() in ("id", "name"):
                    self.anchors.add(value)
                else:
                    self.links.append((tag.lower(), name.lower(), value))


def faults(site: Path) -> list[str]:
    """Each fault of the website in a folder, as a sentence."""
    pages = {str(path): _Page(path) for path in site.rglob("*.html")}
    files = {str(path) for path in site.rglob("*") if path.is_file()}
    return [fault for path in pages for fault in _of_page(str(site), path, pages, files)]


def _of_page(site: str, path: str, pages: dict[str, _Page], files: set[str]) -> Iterable[str]:
    here = os.path.relpath(path, site)
    for tag, attribute, link in pages[path].links:
        url = urlsplit(link)
        if url.scheme or url.netloc:
            if (tag, attribute) in LOADING and url.scheme != "data":
                yield f"{here}: {link} is loaded from elsewhere"
            continue
        base = site if url.path.startswith("/") else os.path.dirname(path)
        target = os.path.normpath(os.path.join(base, unquote(url.path).lstrip("/"))) if url.path else path
        if target not in files:
            yield f"{here}: {link} leads nowhere"
        elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].anchors:
            yield f"{here}: {link} names an anchor that is not there"
