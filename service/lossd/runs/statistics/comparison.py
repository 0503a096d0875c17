"""Whether the difference of two values is more than chance: paired over the same groups of rows, or not.

Two runs of the same rows err on the same difficult rows. The jackknife of their difference, which leaves the same rows
out of both, takes that into account without any further number being kept.

References:
    B. L. Welch, The generalization of Student's problem when several different population variances are involved, 1947,
        doi:10.1093/biomet/34.1-2.28: the degrees of freedom of the unpaired difference.
    S. Holm, A simple sequentially rejective multiple test procedure, 1979, https://www.jstor.org/stable/4615733.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from lossd.metrics.registry import Better, Floats
from lossd.runs.statistics.intervals import standard_errors
from lossd.runs.statistics.student import quantile, two_sided

__all__ = ["Difference", "Verdict", "holm", "paired", "unpaired", "verdict"]

Verdict = Literal["a", "b", "undecided"]


class Difference(NamedTuple):
    """A difference, its interval, its standard error, and how likely one as large is if there is none."""

    difference: float
    low: float
    high: float
    standard_error: float
    p: float


def paired(baseline: Floats, other: Floats, level: float) -> list[Difference | None]:
    """Return the differences of two runs of the same rows, other - baseline; None where one is not known.

    Args:
        baseline: The values of the first run, (1 + G, L): of all rows, then of all but those of each group.
        other: Those of the other run, of the same rows without the same groups.
        level: The level of the intervals.
    """
    with np.errstate(invalid="ignore"):
        distances = other - baseline
    errors = standard_errors(distances[1:]).tolist()
    df = len(distances) - 2
    return [_difference(value, error, df, level) for value, error in zip(distances[0].tolist(), errors, strict=True)]


def unpaired(baseline: Floats, other: Floats, level: float) -> list[Difference | None]:
    """Return the differences of two runs of different rows, other - baseline; None where one is not known.

    Args:
        baseline: The values of the first run, (1 + G, L): of all rows, then of all but those of each group.
        other: Those of the other run, (1 + H, L).
        level: The level of the intervals.
    """
    sizes = [len(values) - 2 for values in (baseline, other)]
    columns = zip(
        baseline[0].tolist(), other[0].tolist(), *(standard_errors(v[1:]).tolist() for v in (baseline, other)),
        strict=True,
    )  # fmt: skip
    found = []
    for first, second, error, further in columns:
        squares = [error * error, further * further]
        below = sum(square * square / size for square, size in zip(squares, sizes, strict=True))
        df = sum(squares) ** 2 / below if below > 0 else float(sum(sizes))
        found.append(_difference(second - first, math.hypot(error, further), df, level))
    return found


def _difference(value: float, error: float, df: float, level: float) -> Difference | None:
    if not (math.isfinite(value) and math.isfinite(error)):
        return None
    if error == 0:
        # All groups show the same difference: a sign test of the groups.
        return Difference(value, value, value, 0.0, 1.0 if value == 0 else 2.0**-df)
    half = quantile(level, df) * error
    return Difference(value, value - half, value + half, error, two_sided(value / error, df))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return each p corrected for their number by Holm's procedure, in the order given; None stays None."""
    known = sorted((value, place) for place, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        corrected[place] = largest
    return corrected


def verdict(difference: float, p: float, better: Better, level: float) -> Verdict:
    """Return which run is better: ``b``, the later one, ``a``, the baseline, or ``undecided``.

    Args:
        difference: The later run's value minus the baseline's.
        p: How likely such a difference is by chance.
        better: Which way is better.
        level: The level: the verdict is undecided unless p is below 1 - level.
    """
    if not p < 1 - level or difference == 0:
        return "undecided"
    return "b" if (difference > 0) == (better == "higher") else "a"
