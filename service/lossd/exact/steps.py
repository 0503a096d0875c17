"""What a falling threshold finds: counts of positives and negatives, and the metrics that are functions of them.

Counts are integers, or sums of weights. Sums of weights from tables are Python's integers, in units of a power of two:
all that is made of them is a ratio, so that it is exact until it is rounded, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.exact.sums import total
from lossd_client.exact import ratio

__all__ = [
    "PartialArea",
    "Steps",
    "area_under_roc",
    "areas_without",
    "best_step",
    "equal_error_rate",
    "farthest_apart",
    "found_at_top",
    "highest_within",
    "pr_points",
    "precision_of_positives",
    "roc_points",
    "tied_pairs",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Steps:
    """The counts of scores at or above each threshold, falling.

    Attributes:
        thresholds: The lowest score of each step, (n,); NaN of scores that are NaN, which come first.
        tp: The positives at or above each, (n,): int64, float64, or Python's integers.
        fp: The negatives, likewise.
        highest: The highest score of each step, (n,); None if each step is one score.
    """

    thresholds: Floats
    tp: Array
    fp: Array
    highest: Floats | None = None

    @property
    def positives(self) -> Any:
        """The count of all positives, a Python number."""
        return self.tp[-1:].tolist()[0] if self.tp.size else 0

    @property
    def negatives(self) -> Any:
        """The count of all negatives, a Python number."""
        return self.fp[-1:].tolist()[0] if self.fp.size else 0

    @property
    def unranked(self) -> bool:
        """Whether a score is NaN."""
        return self.thresholds.size > 0 and bool(np.isnan(self.thresholds[0]))

    def around(self, step: int) -> Floats:
        """Return the lowest score of a step, and the highest below it if there is one."""
        below = self.thresholds if self.highest is None else self.highest
        return np.append(self.thresholds[step], below[step + 1 : step + 2])


Area = Callable[[Steps], tuple[float, bool]]
"""A function of steps: an area, and whether it is defined."""


def area_under_roc(s: Steps) -> tuple[float, bool]:
    """Return how likely a positive scores higher than a negative, ties counting half, and whether it is defined."""
    if not (s.positives > 0 and s.negatives > 0):
        return 0.0, False
    if s.unranked:
        return np.nan, True
    # Twice the area is a whole number without weights, so this is exact.
    twice = _dot(np.diff(s.fp, prepend=0), s.tp + np.append(0, s.tp[:-1]), s)
    return ratio(twice, 2 * s.positives * s.negatives), True


@dataclass(frozen=True, slots=True)
class PartialArea:
    """The area under the ROC curve up to a false positive rate, standardised: 1 is perfect, 1/2 is chance.

    The curve is linear between its points. Its area is set between that of chance, which is ``most`` squared over 2,
    and the largest, ``most``.

    References:
        D. K. McClish, Analyzing a Portion of the ROC Curve, 1989, doi:10.1177/0272989X8900900307.

    Attributes:
        most: The highest false positive rate, in (0, 1].
    """

    most: float

    def __call__(self, s: Steps) -> tuple[float, bool]:
        """Return the area, and whether it is defined."""
        if s.unranked or not (s.positives > 0 and s.negatives > 0):
            return area_under_roc(s)
        fpr, tpr = (_divided(np.append(0, found), size) for found, size in ((s.fp, s.negatives), (s.tp, s.positives)))
        return float(self.standardised(total(self.parts(fpr, tpr)))), True

    def parts(self, fpr: Floats, tpr: Floats) -> Floats:
        """Return the areas below the lines between points of curves, (n + 1, ...) each, as far as they count."""
        width, height = np.diff(fpr, axis=0), np.diff(tpr, axis=0)
        share = ((self.most - fpr[:-1]) / np.where(width > 0, width, 1)).clip(0, 1)
        areas: Floats = share * width * (tpr[:-1] + share * height / 2)
        return areas

    def standardised(self, area: Any) -> Any:
        """Return an area between that of chance and the largest."""
        chance = self.most * self.most / 2
        return (1 + (area - chance) / (self.most - chance)) / 2


def farthest_apart(s: Steps) -> float | None:
    """Return the largest distance of true and false positive rate, of any threshold; None where it is undefined.

    It is the Kolmogorov-Smirnov statistic of the scores of positives and negatives.
    """
    if not (s.positives > 0 and s.negatives > 0):
        return None
    if s.unranked:
        return np.nan
    return float(np.abs(_divided(s.tp, s.positives) - _divided(s.fp, s.negatives)).max())


def equal_error_rate(s: Steps) -> float | None:
    """Return the false positive rate where it equals the false negative rate; None where it is undefined.

    The ROC curve is linear between its points.
    """
    if not (s.positives > 0 and s.negatives > 0):
        return None
    if s.unranked:
        return np.nan
    fpr, tpr = (np.append(0, _divided(found, size)) for found, size in ((s.fp, s.negatives), (s.tp, s.positives)))
    balance = fpr + tpr - 1  # rises from -1 to 1
    after = int(np.searchsorted(balance, 0))
    before = after - 1
    share = -balance[before] / (balance[after] - balance[before])
    return float(fpr[before] + share * (fpr[after] - fpr[before]))


Rates = Callable[[Steps], tuple[Floats, Floats]]
"""A function of steps: the rate that is to be high at each, and the one that is to reach a limit."""


def highest_within(s: Steps, rates: Rates, least: float) -> tuple[float, int] | None:
    """Return the highest rate where another one is at least ``least``, and the step; None where none is.

    Of several steps with that rate, the one where the other is highest.
    """
    value, other = rates(s)
    reached = other >= least
    if not reached.any():
        return None
    best = value[reached].max()
    step = int(np.argmax(np.where(reached & (value == best), other, -1)))
    return float(best), step


def found_at_top(s: Steps, share: float) -> float | None:
    """Return the part of the positives among the highest scores; None where it is undefined.

    Of equal scores that are only partly among them, the same part is positive as of all of these.

    Args:
        s: The steps.
        share: The part of all scores, in (0, 1].
    """
    if not s.positives > 0:
        return None
    if s.unranked:
        return np.nan
    whole = s.positives + s.negatives
    scores = np.append(0, _divided(s.tp + s.fp, whole))
    found = np.append(0, _divided(s.tp, s.positives))
    return float(np.interp(share, scores, found))


def tied_pairs(s: Steps) -> Any:
    """Return how many pairs of a positive and a negative are of one step, times their weights."""
    return _dot(np.diff(s.tp, prepend=0), np.diff(s.fp, prepend=0), s)


def precision_of_positives(s: Steps) -> tuple[float, bool]:
    """Return the mean of the precision at each positive, and whether it is defined.

    The positives of each step times its precision, two numbers that are rounded once each, are rounded, summed exactly
    and divided by all positives.
    """
    if not s.positives > 0:
        return 0.0, False
    if s.unranked:
        return np.nan, True
    found, positives = _in_floats(np.diff(s.tp, prepend=0), s.positives)
    return total(found * _divided(s.tp, s.tp + s.fp)) / positives, True


def roc_points(s: Steps, points: int) -> tuple[Array, Array, Array] | None:
    """Return the ROC curve without the points on a straight line; None where it is undefined.

    Args:
        s: The steps.
        points: The number of points to which the curve is thinned, evenly.

    Returns:
        False and true positive rates, (n + 1,), from 0, and the steps of all but the first, (n,), rising.
    """
    if s.unranked or not (s.positives > 0 and s.negatives > 0):
        return None
    bend = (np.diff(s.fp, 2) != 0) | (np.diff(s.tp, 2) != 0)
    corners = np.flatnonzero(np.concatenate([[True], bend, [True]])) if len(s.tp) > 1 else np.arange(1)
    kept = _thinned(corners, points - 1)
    fpr, tpr = _divided(s.fp[kept], s.negatives), _divided(s.tp[kept], s.positives)
    return np.append(0, fpr), np.append(0, tpr), kept


def pr_points(s: Steps, points: int) -> tuple[Array, Array, Array] | None:
    """Return the precision-recall curve by rising threshold; None where it is undefined.

    Args:
        s: The steps.
        points: The number of points to which the curve is thinned, evenly.

    Returns:
        Precision and recall, (n + 1,), to (1, 0), and the steps of all but the last, (n,), falling.
    """
    if s.unranked or not s.positives > 0:
        return None
    kept = _thinned(np.arange(len(s.tp)), points - 1)[::-1]
    tp, fp = s.tp[kept], s.fp[kept]
    return np.append(_divided(tp, tp + fp), 1.0), np.append(_divided(tp, s.positives), 0.0), kept


def best_step(s: Steps) -> int | None:
    """Return the step with the highest F1, the first of several; None where it is undefined."""
    if s.unranked or not s.positives > 0:
        return None
    return int(np.argmax(_divided(2 * s.tp, s.tp + s.fp + s.positives)))


def _dot(first: Array, second: Array, s: Steps) -> Any:
    """Return the sum of products, a Python number: of Python's integers where int64 might be too small."""
    if first.dtype.kind == "i" and 2 * s.positives * s.negatives >= 1 << 63:
        first, second = first.astype(object), second.astype(object)
    answer = np.dot(first, second)
    return answer.item() if isinstance(answer, np.generic) else answer


def _divided(counts: Array, by: Any) -> Floats:
    """Return ratios, each rounded once."""
    return np.asarray(counts / by, np.float64)


def _in_floats(counts: Array, whole: Any) -> tuple[Floats, float]:
    """Return parts of a whole and the whole, rounded once each; times a power of two if they are sums of weights."""
    if counts.dtype != object:
        return counts.astype(np.float64), float(whole)
    unit = 1 << whole.bit_length()
    return np.array([count / unit for count in counts.tolist()]), whole / unit


def _thinned(kept: Array, points: int) -> Array:
    if len(kept) <= points:
        return kept
    thinned: Array = kept[np.linspace(len(kept) - 1, 0, points)[::-1].round().astype(int)]
    return thinned


def areas_without(counts: Array, area: Area) -> tuple[Floats, Array]:
    """Return the area of all values but those of each group, and whether it is defined, (G,) each.

    It equals the area of each set's steps, but for rounding, of all groups at once.

    Args:
        counts: How many values of each cell are in each group, or their weight, (2, cells, G): the negatives, then the
            positives, by rising value.
        area: :func:`area_under_roc`, :func:`precision_of_positives` or a :class:`PartialArea`.
    """
    kept = (counts.sum(2, keepdims=True) - counts)[:, ::-1]
    fp, tp = np.cumsum(kept, 1)
    negatives, positives = (np.add.reduce(of_kind, axis=0, dtype=float) for of_kind in kept)
    if area is area_under_roc:
        pairs = np.add.reduce(kept[0] * (2 * tp - kept[1]).astype(float), axis=0)
        defined = (positives > 0) & (negatives > 0)
        return pairs / np.where(defined, 2 * positives * negatives, 1), defined
    if isinstance(area, PartialArea):
        defined = (positives > 0) & (negatives > 0)
        curves = (
            np.concatenate([np.zeros((1, sums.shape[1])), sums / np.where(defined, size, 1)])
            for sums, size in ((fp, negatives), (tp, positives))
        )
        return area.standardised(np.add.reduce(area.parts(*curves), axis=0)), defined
    found = np.add.reduce(kept[1] * (tp / np.where(tp + fp > 0, tp + fp, 1)), axis=0)
    return found / np.where(positives > 0, positives, 1), positives > 0
