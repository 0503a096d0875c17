"""What the pages under docs show is code that runs, and what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from excerpts import PAGES, ROOT, excerpt, filled, unfounded

pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_every_code_block_is_cut_from_a_program(page: Path) -> None:
    text = page.read_text()
    assert filled(text) == text, f"{page.name} is behind the programs; run: make docs"
    assert unfounded(text) == []


def test_every_command_is_one_that_the_program_s_head_names(page: Path) -> None:
    rows = re.findall(r"^\| \[\w.*\]\(\.\./(\S+)\) \| `(.*?)` \|", page.read_text(), re.MULTILINE)
    for file, commands in rows:
        for command in commands.split(" && "):
            assert command in (ROOT / file).read_text()
    examples = {path.parent for path in (ROOT / "client/examples").glob("*/*")} - {ROOT / "client/examples/digits"}
    assert {(ROOT / file).parent for file, _ in rows} == examples


def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert links
    for link in links:
        assert link.startswith("https://") or (page.parent / link.partition("#")[0]).exists(), link


def test_a_changed_program_shows(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text()
    (first, *_) = re.findall(r"^<!-- (\S+)#(\S+) -->$", text, re.MULTILINE)
    shown = excerpt(*first)
    assert filled(text.replace(shown, shown.replace(" ", "  ", 1), 1)) == text
    assert len(unfounded(text + "\n```sh\nrm -rf /\n```\n")) == 1
