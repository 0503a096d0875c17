"""How predictions and targets go together: correlations of ranks, concordance, the angle between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lossd.losses.elementary import row_total
from lossd.metrics.numbers import Numbers
from lossd.metrics.parts import RowMean
from lossd.metrics.ranking import bounded
from lossd.metrics.registry import Array, Floats, metric

__all__ = ["Association"]


class Association(Numbers):
    """Predictions and targets in pairs."""

    @cached_property
    def covariance(self) -> tuple[Floats, Array]:
        """(B,): sums of the products of the distances from the means, and the exponents of two to go with."""
        if self.joint_moments is not None:
            found, exponents = self.joint_moments.centred_scaled(0, 1)
            return found, 2 * exponents
        (of_p, _), (of_t, _) = self.scale(of_target=False), self.scale(of_target=True)
        return self.joint_spread[:, 2], of_p + of_t

    @RowMean
    def row_cosines(self) -> tuple[Floats, Array]:
        """The cosine of prediction and target of each row, (R, 1), where neither is 0."""
        units, known = [], []
        for tensor in (self.prediction.double(), self.target.double()):
            largest = tensor.abs().amax(1, keepdim=True)
            scaled = tensor / largest.masked_fill(largest == 0, 1)
            units.append(scaled / row_total(scaled.square(), keepdim=True).sqrt().masked_fill(largest == 0, 1))
            known.append(largest != 0)
        cosines = row_total(units[0] * units[1], keepdim=True).clamp(-1, 1)
        return cosines.numpy(force=True), (known[0] & known[1]).numpy(force=True)

    def of_ranks(self, name: str, function: Callable[[Array, Array, Floats], float]) -> list[Any]:
        """Return a function of the ranks of predictions and targets; undefined where either is constant.

        Args:
            name: The metric's name.
            function: Ranks of distinct predictions and of distinct targets from 0 on, (n,) each, and weights, (n,).
        """
        bounded(self.target.numel())
        values, undefined = np.zeros(self.count), np.zeros(self.count, bool)
        for request in range(self.count):
            prediction, weight = self.kept(request, self.prediction)
            target, _ = self.kept(request, self.target)
            if np.isnan(prediction).any() or np.isnan(target).any():
                values[request] = np.nan
                continue
            first, second = (np.unique(each, return_inverse=True)[1] for each in (prediction, target))
            if len(first) == 0 or not (first.max() and second.max()):
                undefined[request] = True
                continue
            values[request] = function(first, second, np.ones(len(first)) if weight is None else weight)
        return self.numbers(name, values, undefined)


@metric("regression", reads=("error_moments", "joint_moments"), better="higher", interval="signed")
def ccc(task: Association) -> Sequence[Any]:
    """Lin's concordance, 2 cov / (var p + var t + (mean p − mean t)²): 1 where prediction and target are equal.

    Variances have the number of elements as divisor; torchmetrics has one less. 0 where only one side is constant,
    undefined where both are the same constant.

    References:
        L. I. Lin, A Concordance Correlation Coefficient to Evaluate Reproducibility, 1989, doi:10.2307/2532051.
    """
    # The divisor is the mean squared error and twice the covariance.
    covariance, of_covariance = task.covariance
    squares, of_squares = task.squared_errors
    perfect = squares == 0
    ratio = np.ldexp(2 * covariance / np.where(perfect, 1, squares), of_covariance - 2 * of_squares)
    values = np.where(perfect | np.isposinf(ratio), 1.0, ratio / (1 + ratio))
    return task.numbers("ccc", values, perfect & (covariance == 0) & ~np.isnan(squares))


@metric("regression", reads=("row_cosines",), better="higher", interval="signed")
def cosine_similarity(task: Association) -> Sequence[Any]:
    """The cosine of prediction and target of each row, the mean over the rows; further axes are flattened.

    A row whose prediction or target is 0 has no direction and is left out. Equals the diagonal of
    sklearn.metrics.pairwise.cosine_similarity elsewhere.
    """
    means, found = task.row_cosines
    return task.numbers("cosine_similarity", means[:, 0], ~found[:, 0])


@metric("regression", sorts=True, reads=None, better="higher", interval=None)
def spearman(task: Association) -> Sequence[Any]:
    """Spearman's correlation: Pearson's correlation of the ranks; equal values share their mean rank.

    Undefined where prediction or target is constant. A weight counts as so many equal elements. Equals
    scipy.stats.spearmanr.
    """
    return task.of_ranks("spearman", _spearman)


@metric("regression", sorts=True, reads=None, better="higher", interval=None)
def kendall(task: Association) -> Sequence[Any]:
    """Kendall's τ_b: concordant minus discordant pairs, over the geometric mean of the pairs untied in each.

    Undefined where prediction or target is constant. A weight counts as so many equal elements. Equals
    scipy.stats.kendalltau.
    """
    return task.of_ranks("kendall", _kendall)


def _spearman(first: Array, second: Array, weight: Floats) -> float:
    centred = []
    for rank in (first, second):
        size = np.bincount(rank, weight)
        # Twice the rank's distance from the mean rank, which is half the weight; whole numbers without weights.
        centred.append((2 * np.cumsum(size) - size - size.sum())[rank])
    one, other = centred
    joint, of_first, of_second = ((weight * a * b).sum() for a, b in ((one, other), (one, one), (other, other)))
    return _correlation(float(joint), float(of_first), float(of_second))


def _correlation(joint: float, first: float, second: float) -> float:
    """Return a joint spread over the geometric mean of two; exactly 1 where all are equal, whatever their size."""
    return min(1.0, max(-1.0, joint / first * math.sqrt(first / second)))


def _kendall(first: Array, second: Array, weight: Floats) -> float:
    together = np.unique(first * (second.max() + 1) + second, return_inverse=True)[1]
    apart_first, apart_second, apart = (_apart(rank, weight) for rank in (first, second, together))
    order = np.lexsort((second, first))
    discordant = _inversions(second[order], weight[order])
    # Pairs that tie in neither are those apart in the first and those in the second, less those apart in any.
    balance = apart_first + apart_second - apart - 2 * discordant
    return _correlation(balance, apart_first, apart_second)


def _apart(rank: Array, weight: Floats) -> float:
    """Return the weight of the pairs with different ranks."""
    size = np.bincount(rank, weight)
    return float((size * (np.cumsum(size) - size)).sum())


def _inversions(rank: Array, weight: Floats) -> float:
    """Return the weight of the pairs whose first has the higher rank.

    Blocks that are sorted are merged two by two, as in a merge sort: in the order of ranks, each element of the left
    block follows the elements of the right one that it is inverted with.
    """
    index, width, total, cells = np.arange(len(rank)), 1, 0.0, int(rank.max()) + 1
    while width < len(rank):
        block, right = index // (2 * width), index // width % 2
        order = np.argsort(block * cells + rank, kind="stable")
        rank, weight, right = rank[order], weight[order], right[order]
        of_right = np.where(right == 1, weight, 0)
        before = np.cumsum(of_right) - of_right
        first = before[block * 2 * width]
        total += float((weight * (before - first))[right == 0].sum())
        width *= 2
    return total
