"""Intervals of metrics by the jackknife over groups of rows.

Each metric is computed of all rows, and of all rows but those of one group, for each group. The spread of the latter
is the standard error of the former, for any smooth function of the rows' sums and counts. Groups are chosen by a hash
of the rows' identities, so that no random number is drawn: the interval is a function of the rows.

An interval is symmetric on a scale without ends (the logit of a fraction), and is transformed back, so that it stays
within the metric's range. Where all rows agree, the spread says nothing; there the end is the exact binomial one.

References:
    M. H. Quenouille, Notes on Bias in Estimation, 1956, doi:10.1093/biomet/43.3-4.353.
    J. W. Tukey, Bias and confidence in not-quite large samples (abstract), 1958.
    P. S. Kott, The Delete-a-Group Jackknife, Journal of Official Statistics 17(4), 2001.
    C. J. Clopper, E. S. Pearson, The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial,
        1934, doi:10.1093/biomet/26.4.404.
    G. Y. Zou, A. Donner, Construction of confidence limits about effect measures: a general approach, 2008,
        doi:10.1002/sim.3095: the distances of several limits are added as squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lossd.metrics.registry import Array, Floats, Scale
from lossd.runs.statistics.student import quantile

__all__ = ["FEW", "Interval", "biased", "enough_groups", "independent", "interval", "standard_errors", "unseen"]

FEW = 64
"""A value made of fewer entries has no interval."""

LEAST_IN_MEAN = 5
"""A mean over classes of which one has fewer entries has no interval: it depends on which rows there happen to be."""

MOST_BIAS = 0.5
"""An estimate whose bias is more than this part of its standard error has no interval; coverage would be below 92 %."""


class Interval(NamedTuple):
    """The interval of a value, and the value's standard error."""

    low: float
    high: float
    standard_error: float


class _Map(NamedTuple):
    """A strictly rising function to a scale without ends, its derivative and its inverse."""

    to: Callable[[float], float]
    slope: Callable[[float], float]
    back: Callable[[float], float]


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


MAPS: dict[Scale, _Map] = {
    "unit": _Map(lambda p: math.log(p / (1 - p)), lambda p: 1 / (p * (1 - p)), _logistic),
    "signed": _Map(math.atanh, lambda r: 1 / (1 - r * r), math.tanh),
    "positive": _Map(math.log, lambda x: 1 / x, lambda y: math.exp(min(y, 709.0))),
    "real": _Map(lambda x: x, lambda x: 1.0, lambda x: x),
}

RANGES: dict[Scale, tuple[float, float]] = {
    "unit": (0.0, 1.0),
    "signed": (-1.0, 1.0),
    "positive": (0.0, math.inf),
    "real": (-math.inf, math.inf),
}


def standard_errors(left_out: Floats) -> Floats:
    """Return the standard error of each value.

    Args:
        left_out: Each value of all rows but one group's, (G, L), for the G groups that have rows.

    Returns:
        (L,); NaN where a value is.
    """
    groups = len(left_out)
    distances = left_out - _mean(left_out)
    # Row by row, so that the rounding does not depend on how many values there are.
    errors: Floats = np.sqrt((groups - 1) / groups * np.add.reduce(distances * distances, axis=0))
    return errors


def biased(values: Floats, left_out: Floats, errors: Floats) -> Array:
    """Return whether the bias of each estimate is large beside its standard error, (L,) bool.

    Args:
        values: The values of all rows, (L,).
        left_out: As for :func:`standard_errors`.
        errors: The standard errors, (L,).
    """
    bias = (len(left_out) - 1) * (_mean(left_out) - values)
    large: Array = np.abs(bias) > MOST_BIAS * errors
    return large & (errors > 0)


def _mean(left_out: Floats) -> Floats:
    """Return the mean over groups; exactly the value where all are equal."""
    first = left_out[0]
    mean: Floats = first + np.add.reduce(left_out - first, axis=0) / len(left_out)
    return mean


def interval(
    value: float,
    error: float,
    *,
    groups: int,
    scale: Scale,
    level: float,
    beyond: tuple[float, float] = (0.0, 0.0),
) -> Interval | None:
    """Return the interval of a value; None where the spread of the groups says nothing.

    Args:
        value: The value.
        error: Its standard error.
        groups: The number of groups that have rows.
        scale: Where the values of the metric lie.
        level: The probability with which such intervals contain the true value.
        beyond: How far the true value may lie below and above by what no row has shown; see :func:`unseen`.
    """
    if not (math.isfinite(value) and math.isfinite(error)):
        return None
    lowest, highest = RANGES[scale]
    if error == 0 or not lowest < value < highest:
        low = high = value
        if error != 0 or beyond == (0.0, 0.0):
            return None
    else:
        map_ = MAPS[scale]
        centre, half = map_.to(value), quantile(level, groups - 1) * error * map_.slope(value)
        low, high = map_.back(centre - half), map_.back(centre + half)
    low = max(lowest, value - math.hypot(value - low, beyond[0]))
    high = min(highest, value + math.hypot(high - value, beyond[1]))
    return Interval(low, high, error)


def unseen(rows: float, level: float) -> float:
    """Return the largest part of a population that none of so many rows would be of, with half of what ``level`` omits.

    It is the distance of the exact binomial interval's end from 0 or 1, where all rows are alike.
    """
    return -math.expm1(math.log((1 - level) / 2) / rows) if rows > 0 else 1.0


def enough_groups(groups: int) -> int:
    """Return how many groups must have entries, given the number of groups."""
    return min(16, 3 * groups // 4)


def independent(holding: Array, groups: int) -> Floats:
    """Return about how many independent things lie in so many of the groups, each in a random one.

    If all groups have some, as many as leave one group empty.

    Args:
        holding: How many groups have some, (K,).
        groups: The number of groups.
    """
    some = np.minimum(holding, groups - 1)
    number: Floats = np.log1p(-some / groups) / math.log1p(-1 / groups)
    return number
