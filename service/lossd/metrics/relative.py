"""Errors beside something of their own kind: logarithms, the target's size or spread, another forecast's error."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import power, row_total
from lossd.metrics.contributions import Scores
from lossd.metrics.numbers import Numbers, mean_of, powers
from lossd.metrics.parts import Mean, Rankings, Sums
from lossd.metrics.registry import Array, Floats, metric

__all__ = ["RelativeErrors"]


class RelativeErrors(Numbers):
    """Sums of errors that are taken relative to something."""

    @Rankings
    def size_table(self) -> Scores:
        """The sizes of the errors."""
        return self.table_of(self.differences.abs().numpy(force=True))

    @Mean
    def squared_log_errors(self) -> Tensor:
        """The squared difference of the logarithms of one more than prediction and target."""
        return self.of_each(lambda p, t: (p.log1p() - t.log1p()).square())

    @Mean
    def symmetric_errors(self) -> Tensor:
        """Twice the size of each error over the sizes of prediction and target; 0 where both are 0."""

        def symmetric(p: Tensor, t: Tensor) -> Tensor:
            larger = torch.maximum(p.abs(), t.abs())
            unit = torch.where(larger == 0, 1, larger)  # in units of the larger, because sizes may add up to infinity
            first, second = p / unit, t / unit
            ratio = 2 * (first - second).abs() / torch.where(larger == 0, 1, first.abs() + second.abs())
            return torch.where(p.isinf(), 2, ratio)

        return self.of_each(symmetric)

    @Mean
    def half_errors(self) -> Tensor:
        """Half the size of each error: finite if prediction and target are."""
        return self.of_each(lambda p, t: (p / 2 - t / 2).abs())

    @Mean
    def half_targets(self) -> Tensor:
        """Half the size of each target."""
        return self.of_each(lambda _, t: t.abs() / 2)

    @Sums
    def error_powers(self) -> Tensor:
        """The sizes of the errors to the power ``p``, (B, 1)."""
        raised = self.of_each(lambda p, t: power((p - t).abs(), float(self.view.options["p"])))
        if self.ignored is not None:
            raised = raised.masked_fill(self.ignored, 0)
        return row_total(raised, keepdim=True)

    def below(self, limit: float) -> Array:
        """Return whether a prediction or a target is at most this number, (B,) bool."""
        lowest: Floats = np.minimum(-self.target_range[:, 0], -self.prediction_range[:, 0])
        return lowest <= limit

    @cached_property
    def squared_targets(self) -> tuple[Floats, Array]:
        """(B,): sums of the squared targets, and the exponents of four to go with."""
        if self.target_moments is not None:
            return self.target_moments.product_scaled(0, 0)
        exponents, _ = self.scale(of_target=True)
        squares = self.totals(lambda _, t, one, two: [(t * one * two).square()], *powers(-exponents))
        return squares[:, 0], exponents

    @cached_property
    def target_means(self) -> tuple[Floats, Array]:
        """(B,): means of the targets, and the exponents of two to go with."""
        if self.target_moments is None:
            exponents, means = self.scale(of_target=True)
            return means, exponents
        exponents = np.frexp(np.maximum(self.target_range, 0).max(1))[1]
        return self.target_moments.means_scaled(exponents)[:, 0], exponents


@metric("regression", reads=("size_table",), better="lower", interval=None)
def medae(task: RelativeErrors) -> Sequence[Any]:
    """The median absolute error; with weights, the smallest error at which half of the weight is reached.

    Equals sklearn.metrics.median_absolute_error without weights.
    """
    found = task.quantiles("medae", task.size_table, lambda: task.differences.abs(), [0.5])
    return [median for (median,) in found]


MSLE = ("squared_log_errors", "target_range", "prediction_range")


@metric("regression", reads=MSLE, better="lower", interval="positive")
def msle(task: RelativeErrors) -> Sequence[Any]:
    """The mean squared difference of log(1 + prediction) and log(1 + target).

    Undefined where a prediction or a target is -1 or less. Equals sklearn.metrics.mean_squared_log_error.
    """
    return task.numbers("msle", mean_of(task.squared_log_errors), (task.size == 0) | task.below(-1))


@metric("regression", reads=MSLE, better="lower", interval="positive")
def rmsle(task: RelativeErrors) -> Sequence[Any]:
    """The root of msle. Equals sklearn.metrics.root_mean_squared_log_error."""
    return task.numbers("rmsle", np.sqrt(mean_of(task.squared_log_errors)), (task.size == 0) | task.below(-1))


@metric("regression", reads=("symmetric_errors",), better="lower", interval="positive")
def smape(task: RelativeErrors) -> Sequence[Any]:
    """The mean of 2 abs(error) / (abs(prediction) + abs(target)), in [0, 2]; 0 where both are 0.

    The definition of the M4 competition, which multiplies by 100. Others leave out the 2, or divide by the target.

    References:
        S. Makridakis et al., The M4 Competition, 2020, doi:10.1016/j.ijforecast.2019.04.014.
    """
    return task.quotients("smape", *task.symmetric_errors)


@metric("regression", reads=("half_errors", "half_targets"), better="lower", interval="positive")
def wape(task: RelativeErrors) -> Sequence[Any]:
    """The sum of abs(error) over the sum of abs(target), a fraction. Undefined where all targets are 0."""
    return task.quotients("wape", mean_of(task.half_errors), mean_of(task.half_targets))


@metric(
    "regression",
    options=("scale",),
    needs={"scale": "the mean absolute error of a naive forecast of the training data"},
    reads=("error_moments", "largest_error"),
    better="lower",
    interval="positive",
)
def mase(task: RelativeErrors) -> Sequence[Any]:
    """The mean absolute error over ``scale``, the mean absolute error of a naive forecast.

    A naive forecast is the value of one season before. Below 1 predictions are better than it.

    References:
        R. J. Hyndman, A. B. Koehler, Another look at measures of forecast accuracy, 2006,
            doi:10.1016/j.ijforecast.2006.03.001.
    """
    means, exponents = task.error_means
    return task.mean("mase", means[:, 1] / task.view.options["scale"], exponents)


@metric("regression", reads=("error_moments", "target_moments", "target_range"), better="lower", interval="positive")
def rse(task: RelativeErrors) -> Sequence[Any]:
    """The relative squared error, Σe² / Σ(t − mean t)²: 1 − r2. Undefined for a constant target."""
    return task.numbers("rse", task.unexplained(*task.squared_errors), task.constant_target)


@metric(
    "regression",
    options=("by",),
    needs={"by": "mean, range, std or l2"},
    reads=("error_moments", "largest_error", "target_moments", "target_range"),
    better="lower",
    interval="positive",
)
def nrmse(task: RelativeErrors) -> Sequence[Any]:
    """The root mean squared error over the statistic ``by`` of the target. Undefined if that is 0.

    mean: the size of its mean. range: its highest less its lowest. std: its standard deviation, with the number of
    elements as divisor. l2: its root mean square, so that the ratio is that of the norms of error and target;
    torchmetrics divides by the norm itself, which grows with the number of elements.
    """
    by = task.view.options["by"]
    if by in ("std", "l2"):
        spread, of_spread = task.target_spread if by == "std" else task.squared_targets
        squares, of_squares = task.squared_errors
        zero = task.constant_target if by == "std" else spread == 0
        ratio = np.sqrt(squares / np.where(zero, 1, spread))
        return task.numbers("nrmse", np.ldexp(ratio, of_squares - of_spread), zero | (task.size == 0))
    if by == "mean":
        unit, of_unit = task.target_means
    else:  # halves, because two finite numbers may lie farther apart than any is large
        unit, of_unit = task.target_range[:, 1] / 2 + task.target_range[:, 0] / 2, np.ones(task.count, int)
    unit = np.abs(np.where(task.size == 0, 0, unit))
    means, exponents = task.error_means
    # In units of the divisor's own power of two: neither it nor the errors leave float64's range.
    fraction, of_fraction = np.frexp(np.where(unit == 0, 1, unit))
    ratio = np.sqrt(means[:, 2]) / fraction
    return task.numbers("nrmse", np.ldexp(ratio, exponents - of_unit - of_fraction), unit == 0)


@metric("regression", options=("p",), reads=("error_powers",), better="lower", interval=None)
def minkowski(task: RelativeErrors) -> Sequence[Any]:
    """Minkowski distance of prediction and target, (Σ abs(error)^p)^(1/p) with ``p`` >= 1; 2 is Euclidean.

    A sum, which grows with the number of elements; weights count as so many elements. Equals
    scipy.spatial.distance.minkowski.
    """
    sums = task.weights(task.error_powers[:, 0])
    return task.numbers("minkowski", np.power(sums, 1 / task.view.options["p"]), task.size == 0)
