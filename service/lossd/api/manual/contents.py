"""The manual's files and their order, which the page ``contents.md`` states."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["CONTENTS", "FOLDER", "ManualPage", "entries", "read", "sections"]

_PACKAGE = Path(__file__).parents[2]
# A wheel brings the pages beside the package's folders. In a clone they are in the folder docs.
FOLDER = next((path for path in (_PACKAGE / "manual_pages", _PACKAGE.parents[1] / "docs") if path.is_dir()), None)
"""The folder of the pages; None if the installation has none."""

CONTENTS = "contents"

_HEADING = re.compile(r"^## (.+)$")
_ENTRY = re.compile(r"^- \[([^\]]+)\]\(([\w-]+)\.md\)")


class ManualPage(NamedTuple):
    """A page of the manual: its name in addresses, and its title in the contents."""

    name: str
    title: str


def read(name: str) -> str:
    """Return the Markdown of a page."""
    if FOLDER is None:
        raise FileNotFoundError("this installation has no manual")
    return (FOLDER / f"{name}.md").read_text()


@cache
def sections() -> dict[str, list[ManualPage]]:
    """Return the pages in order, by the headings of the contents."""
    found: dict[str, list[ManualPage]] = {}
    for line in read(CONTENTS).splitlines() if FOLDER else ():
        if heading := _HEADING.match(line):
            found[heading[1]] = here = []
        elif entry := _ENTRY.match(line):
            here.append(ManualPage(entry[2], entry[1]))
    return found


def entries() -> list[ManualPage]:
    """Return all pages in order."""
    return [entry for listed in sections().values() for entry in listed]
