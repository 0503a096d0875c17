"""The verdict of a comparison in words."""

from __future__ import annotations

from typing import Any

import pytest

from lossd.runs.statistics.sentence import sentence

BETTER = {"difference": 0.0124, "low": 0.0041, "high": 0.0203, "p_holm": 0.0031, "verdict": "b"}
WORSE = {"difference": -3.0, "low": -4.25, "high": -1.75, "p_holm": 4e-9, "verdict": "a"}
UNDECIDED = {"difference": 0.001, "low": -0.01, "high": 0.012, "p_holm": 1.0, "verdict": "undecided"}
SIDELESS = {"difference": 0.001, "low": -0.01, "high": 0.012, "p_holm": 1.0, "verdict": None}


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        (
            {"accuracy": BETTER, "f1.macro": UNDECIDED},
            "new is better than old in accuracy (+0.012, 95 % interval +0.004 to +0.020, p 0.0031); "
            "undecided: f1.macro",
        ),
        ({"mae": WORSE}, "new is worse than old in mae (−3.0, 95 % interval −4.2 to −1.8, p < 0.001)"),
        (
            {"accuracy": BETTER, "mae": WORSE},
            "new is better than old in accuracy (+0.012, 95 % interval +0.004 to +0.020, p 0.0031) and worse in mae "
            "(−3.0, 95 % interval −4.2 to −1.8, p < 0.001)",
        ),
        ({"f1.macro": UNDECIDED}, "new and old cannot be told apart; undecided: f1.macro"),
        (
            {f"m{i}": UNDECIDED for i in range(7)},
            "new and old cannot be told apart; undecided: m0, m1, m2, m3, m4 and 2 more",
        ),
        (
            {"f1.macro": UNDECIDED, "f1.micro": BETTER, "iou.micro": BETTER},
            "new is better than old in iou.micro (+0.012, 95 % interval +0.004 to +0.020, p 0.0031); "
            "undecided: f1.macro",
        ),
        ({"f1.macro": UNDECIDED, "f1.per_class.3": BETTER}, "new and old cannot be told apart; undecided: f1.macro"),
        ({"bias": SIDELESS}, "nothing can be decided between new and old: no metric has a better side and an interval"),
    ],
)
def test_the_verdict_is_said_in_words(metrics: dict[str, Any], text: str) -> None:
    assert sentence("new", "old", metrics, level=0.95) == text


def test_open_runs_and_the_level_are_named() -> None:
    text = sentence("new", "old", {"accuracy": BETTER}, level=0.999, provisional=["new"])
    assert "99.9 % interval" in text
    assert text.endswith("; provisional, as new is open")
    both = sentence("new", "old", {"accuracy": UNDECIDED}, level=0.95, provisional=["old", "new"])
    assert both.endswith("; provisional, as old and new are open")


def test_a_difference_without_spread_has_digits() -> None:
    exact = {"difference": 0.5, "low": 0.5, "high": 0.5, "p_holm": 0.0, "verdict": "b"}
    assert sentence("new", "old", {"f1": exact}, level=0.9) == (
        "new is better than old in f1 (+0.500, 90 % interval +0.500 to +0.500, p < 0.001)"
    )
