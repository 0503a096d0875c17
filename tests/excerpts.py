"""Pieces of tested files, as the documentation shows them: ``python tests/excerpts.py`` puts them in anew."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"^(<!-- (?P<file>\S+)#(?P<region>\S*) -->\n```\w+\n).*?^```$", re.DOTALL | re.MULTILINE)


def excerpt(file: str, region: str) -> str:
    """The lines between ``#region <region>`` and ``#endregion``, which stand in comments; all, without a region."""
    source = (ROOT / file).read_text()
    if not region:
        return source
    found = re.findall(rf"^ *\S+ #region {region}\n(.*?)^ *\S+ #endregion$", source, re.DOTALL | re.MULTILINE)
    if len(found) != 1:
        raise ValueError(f"{file} has {len(found)} regions called {region}")
    return textwrap.dedent(found[0]).strip("\n") + "\n"


def filled(page: str) -> str:
    """The page with every code block below ``<!-- file#region -->`` as it is in that file."""
    return _BLOCK.sub(lambda block: f"{block[1]}{excerpt(block['file'], block['region'])}```", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text()))
