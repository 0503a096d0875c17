"""The association of predictions and targets: rank correlations, concordance, cosine similarity."""

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
    one, other = (_centred(rank, weight) for rank in (first, second))
    joint, of_first, of_second = ((weight * a * b).sum() for a, b in ((one, other), (one, one), (other, other)))
    return _correlation(float(joint), float(of_first), float(of_second))


def _centred(rank: Array, weight: Floats) -> Floats:
    """Return twice the distance of each rank from the mean rank; whole numbers without weights."""
    size = np.bincount(rank, weight)
    # The sums begin at either end: a difference of sums that hold a large weight would lose the small ones.
    distances: Floats = _before(size) - _before(size[::-1])[::-1]
    return distances[rank]


def _before(size: Array) -> Floats:
    """Return the sum of the sizes before each."""
    return np.concatenate([[0.0], np.cumsum(size)[:-1]])


def _correlation(joint: float, first: float, second: float) -> float:
    """Return a joint spread over the geometric mean of two; exactly 1 where all are equal, whatever their size."""
    return min(1.0, max(-1.0, joint / first * math.sqrt(first / second)))


def _kendall(first: Array, second: Array, weight: Floats) -> float:
    apart_first, apart_second = (_apart(rank, weight) for rank in (first, second))
    discordant, concordant = (_inversions(first, rank, weight) for rank in (second, second.max() - second))
    return _correlation(concordant - discordant, apart_first, apart_second)


def _apart(rank: Array, weight: Floats) -> float:
    """Return the weight of the pairs with different ranks."""
    size = np.bincount(rank, weight)
    return float((size * _before(size)).sum())


def _inversions(first: Array, second: Array, weight: Floats) -> float:
    """Return the weight of the discordant pairs: the two rankings have them in opposite orders.

    Blocks that are sorted by the second are merged two by two, as in a merge sort: in the order of ranks, each element
    of the left block follows the elements of the right one that it is inverted with.
    """
    order = np.lexsort((second, first))
    length = 1 << (len(order) - 1).bit_length()
    padding = 0, length - len(order)
    rank, weight = np.pad(second[order], padding), np.pad(weight[order], padding)
    total, width = 0.0, 1
    while width < length:
        pairs = rank.reshape(-1, 2 * width)
        order = np.argsort(pairs, axis=1, kind="stable")
        left = np.take_along_axis(weight.reshape(pairs.shape), order, 1)
        right = np.where(order >= width, left, 0)
        total += float(((left - right) * np.cumsum(right, 1)).sum())
        rank, weight = np.take_along_axis(pairs, order, 1).ravel(), left.ravel()
        width *= 2
    return total
