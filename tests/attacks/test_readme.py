"""The table of attacks names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", (TESTS / "attacks/README.md").read_text())
ROWS = [line for line in (TESTS / "attacks/README.md").read_text().splitlines() if line.startswith("| ")]


def test_a_named_test_exists() -> None:
    functions = {
        (path, name)
        for path in {path for path, _ in NAMED}
        for name in re.findall(r"^ *(?:async )?def (\w+)\(", (TESTS / path).read_text(), re.MULTILINE)
    }
    assert set(NAMED) - functions == set()


def test_every_attack_has_a_test() -> None:
    attacks = [row for row in ROWS if not row.startswith(("| Attack", "| ---"))]
    assert len(attacks) > 30
    assert [row for row in attacks if "::test_" not in row.rpartition("| `")[2]] == []


def test_every_test_of_an_attack_is_named() -> None:
    tests = {
        (f"attacks/{path.name}", name)
        for path in (TESTS / "attacks").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    elsewhere = {"test_readme.py"}
    support = {
        "test_requests_one_behind_the_other_are_two_where_nothing_is_in_doubt",
        "test_a_path_of_bytes_that_are_no_text_is_no_http",
        "test_pointers_are_escaped",
        "test_the_body_of_a_repository_index_is_bounded",
    }
    unnamed = {(path, test) for path, test in tests - set(NAMED) if Path(path).name not in elsewhere}
    assert {test for _, test in unnamed} == support
