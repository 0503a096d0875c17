"""Agreement of prediction and target beyond chance: Matthews' correlation coefficient and Cohen's kappa.

Both are quotients of sums of products of counts. No sum is a difference that could cancel, because weights may differ
by many orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lossd.metrics.classes import Classes
from lossd.metrics.counts import CLASSES, LABELS, ONE_CLASS, Counts, above, counts_of_others, of_four
from lossd.metrics.registry import Array, Floats, metric

__all__: list[str] = []


@metric(*ONE_CLASS, *LABELS, better="higher", interval="signed", cases="rarer")
def mcc(counts: Counts) -> Sequence[Any]:
    """Matthews' correlation coefficient, in [-1, 1]; undefined where prediction or target is constant.

    Equals sklearn.metrics.matthews_corrcoef, whose 0 for constant input is the option ``zero_division`` = 0 here.
    """
    return of_four(counts, "mcc", _matthews)


@metric(*CLASSES, name="mcc", better="higher", interval="signed")
def mcc_of_classes(counts: Classes) -> Sequence[Any]:
    """Matthews' correlation coefficient R_K, a plain number; undefined where prediction or target is constant.

    Equals sklearn.metrics.matthews_corrcoef, whose 0 for constant input is the option ``zero_division`` = 0 here.

    References:
        J. Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004.
    """
    tp, fp, fn, tn = (c.astype(float) for c in (counts.tp, counts.fp, counts.fn, counts.tn))
    predicted, actual = counts.predicted.astype(float), counts.actual.astype(float)
    covariance = (tp * tn - fp * fn).sum(-1)
    spread = _root(*((sums * counts_of_others(sums)).sum(-1) for sums in (predicted, actual)))
    constant = ((predicted > 0).sum(-1) < 2) | ((actual > 0).sum(-1) < 2)
    return counts.numbers("mcc", (covariance / np.where(constant, 1, spread)).clip(-1, 1), constant)


@metric(*ONE_CLASS, *LABELS, better="higher", interval="signed", cases="rarer")
def cohen_kappa(counts: Counts) -> Sequence[Any]:
    """Cohen's kappa, agreement beyond chance: 1 is perfect, 0 is chance.

    Undefined where prediction and target are constant and the same. Equals sklearn.metrics.cohen_kappa_score.
    """
    return of_four(counts, "cohen_kappa", _cohen)


@metric(*CLASSES, name="cohen_kappa", options=("weights",), reads=("disagreement",), better="higher", interval="signed")
def cohen_kappa_of_classes(counts: Classes) -> Sequence[Any]:
    """Cohen's kappa, agreement beyond chance: 1 is perfect, 0 is chance.

    With ``weights`` linear or quadratic a disagreement counts by the distance of the two classes' indices, or by its
    square, as fits classes in an order. Undefined where prediction and target are the same single class. Equals
    sklearn.metrics.cohen_kappa_score.

    References:
        J. Cohen, Weighted kappa: nominal scale agreement with provision for scaled disagreement or partial credit,
            1968, doi:10.1037/h0026256.
    """
    weights = counts.view.options["weights"]
    predicted, actual = counts.predicted.astype(float), counts.actual.astype(float)
    observed = counts.disagreement
    expected = _by_chance(predicted, actual, weights)
    constant = counts.present.sum(-1) < 2
    kappa = 1 - observed / np.where(constant, 1, expected) * counts.right[1]
    return counts.numbers("cohen_kappa", kappa, constant)


def _by_chance(predicted: Floats, actual: Floats, weights: str) -> Floats:
    """Return the disagreement expected by chance, summed over all pairs of classes: (B, C) to (B,)."""
    index = np.arange(actual.shape[1])
    match weights:
        case "none":
            chance = predicted * counts_of_others(actual)
        case "linear":  # the sum over the steps from a class to the next of the pairs that lie on either side
            chance = predicted.cumsum(-1) * above(actual) + actual.cumsum(-1) * above(predicted)
        case _:  # about the mean of the one, the product of the two has the sum 0
            total = actual.sum(-1, keepdims=True)
            centred = index - (actual * index).sum(-1, keepdims=True) / np.where(total > 0, total, 1)
            chance = total * (actual + predicted) * centred**2
    sums: Floats = chance.sum(-1)
    return sums


def _matthews(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> tuple[Floats, Array]:
    of_prediction, of_target = (tp + fp) * (tn + fn), (tp + fn) * (tn + fp)
    defined = (of_prediction > 0) & (of_target > 0)
    spread = _root(*(np.where(defined, sums, 1) for sums in (of_prediction, of_target)))
    return ((tp * tn - fp * fn) / spread).clip(-1, 1), defined


def _root(first: Floats, second: Floats) -> Floats:
    """Return the root of a product that may underflow in float64; of equal factors, one of them."""
    return second * np.sqrt(first / np.where(second > 0, second, 1))


def _cohen(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> tuple[Floats, Array]:
    chance = (tp + fp) * (tn + fp) + (tp + fn) * (tn + fn)
    defined = chance > 0
    return 1 - (fp + fn) / np.where(defined, chance, 1) * (tp + fp + fn + tn), defined
