"""The table of attacks names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", (TESTS / "attacks/README.md").read_text())
ROWS = [line for line in (TESTS / "attacks/README.md").read_text().splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_a_named_test_exists(path: str) -> None:
    tree = ast.parse((TESTS / path).read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert {test for file, test in NAMED if file == path} <= functions


def test_every_attack_has_a_test() -> None:
    attacks = [row for row in ROWS if not row.startswith(("| Attack", "| ---"))]
    assert len(attacks) > 30
    assert [row for row in attacks if "::test_" not in row.rpartition("| `")[2]] == []


def test_every_test_of_an_attack_is_named() -> None:
    own = {
        (f"attacks/{path.name}", node.name)
        for path in (TESTS / "attacks").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    elsewhere = {"test_readme.py"}
    support = {
        "test_requests_one_behind_the_other_are_two_where_nothing_is_in_doubt",
        "test_a_path_of_bytes_that_are_no_text_is_no_http",
        "test_pointers_are_escaped",
        "test_the_body_of_a_repository_index_is_bounded",
    }
    unnamed = {(path, test) for path, test in own - set(NAMED) if Path(path).name not in elsewhere}
    assert {test for _, test in unnamed} == support
