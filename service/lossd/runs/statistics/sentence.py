"""The verdict of a comparison in words. This module loads no torch."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from lossd_client.comparisons import interval_digits

__all__ = ["sentence"]

MOST_NAMED = 5
"""How many metrics a part of the sentence names."""

CLASS = ".per_class."
LEAST_P = 0.001


def sentence(
    run: str, baseline: str, metrics: Mapping[str, Mapping[str, Any]], *, level: float, provisional: Sequence[str] = ()
) -> str:
    """Return what a comparison says about a run, such as ``b is better than a in accuracy (+0.012, …)``.

    Metrics of single classes are left out, and averages beside the macro average. The p is that after Holm's
    correction, by which the verdict is given.

    Args:
        run: The run's name.
        baseline: The name of the run that it is compared with.
        metrics: The comparison's differences by the metric's name, each with ``difference``, ``low``, ``high``,
            ``p_holm`` and ``verdict``.
        level: The level of the intervals.
        provisional: The runs whose values may change.
    """
    found = {name: each for name, each in metrics.items() if CLASS not in name and not _beside_macro(name, metrics)}
    by_verdict: dict[Any, list[str]] = {"b": [], "a": [], "undecided": [], None: []}
    for name, each in found.items():
        by_verdict[each["verdict"]].append(name)
    parts: list[str] = []
    for verdict, word in (("b", "better"), ("a", "worse")):
        if names := by_verdict[verdict]:
            shown = _listed([f"{name} ({_figures(found[name], level)})" for name in names])
            parts.append(f"{word} than {baseline} in {shown}" if not parts else f"{word} in {shown}")
    if parts:
        text = f"{run} is {' and '.join(parts)}"
        undecided = f"; undecided: {_listed(by_verdict['undecided'])}" if by_verdict["undecided"] else ""
    elif by_verdict["undecided"]:
        text = f"{run} and {baseline} cannot be told apart"
        undecided = f"; undecided: {_listed(by_verdict['undecided'])}"
    else:
        text, undecided = (
            f"nothing can be decided between {run} and {baseline}: no metric has a better side and an interval",
            "",
        )
    if provisional:
        runs = " and ".join(dict.fromkeys(provisional))
        undecided += f"; provisional, as {runs} {'is' if len(set(provisional)) == 1 else 'are'} open"
    return f"{text}{undecided}"


def _beside_macro(name: str, metrics: Container[str]) -> bool:
    metric, _, average = name.rpartition(".")
    return average in ("micro", "weighted") and f"{metric}.macro" in metrics


def _figures(each: Mapping[str, Any], level: float) -> str:
    """Return the difference, its interval and its p; the interval's width determines the digits."""
    difference, low, high = each["difference"], each["low"], each["high"]
    digits = interval_digits(low, high)
    p = each["p_holm"]
    odds = f"p < {LEAST_P:g}" if p < LEAST_P else f"p {p:.2g}"
    return (
        f"{_signed(difference, digits)}, {100 * level:.6g} % interval {_signed(low, digits)} to "
        f"{_signed(high, digits)}, {odds}"
    )


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return f"{', '.join(texts[:MOST_NAMED])}{more}"
