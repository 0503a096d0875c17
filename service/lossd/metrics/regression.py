"""Metrics of real-valued predictions, from the errors (prediction − target) of all elements of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lossd.metrics.association import Association
from lossd.metrics.deviances import Deviances
from lossd.metrics.numbers import Numbers, is_constant
from lossd.metrics.registry import metric, task
from lossd.metrics.relative import RelativeErrors

__all__ = ["Regression"]


@task("regression")
class Regression(RelativeErrors, Deviances, Association):
    """Errors and targets, flattened, in float64. For a loss of log-rates, the errors are those of the rates."""


@metric("regression", default=True, reads=("error_moments", "largest_error"), better="lower", interval="positive")
def mae(task: Numbers) -> Sequence[Any]:
    """The mean absolute error. Equals sklearn.metrics.mean_absolute_error."""
    means, exponents = task.error_means
    return task.mean("mae", means[:, 1], exponents)


@metric("regression", default=True, reads=("error_moments", "largest_error"), better="lower", interval="positive")
def mse(task: Numbers) -> Sequence[Any]:
    """The mean squared error. Equals sklearn.metrics.mean_squared_error."""
    means, exponents = task.error_means
    return task.mean("mse", means[:, 2], 2 * exponents)


@metric("regression", default=True, reads=("error_moments", "largest_error"), better="lower", interval="positive")
def rmse(task: Numbers) -> Sequence[Any]:
    """The root of the mean squared error, in the units of the target."""
    means, exponents = task.error_means
    return task.mean("rmse", np.sqrt(means[:, 2]), exponents)


@metric("regression", default=True, reads=("error_moments", "largest_error"), interval="real")
def bias(task: Numbers) -> Sequence[Any]:
    """The mean of prediction − target: positive where predictions are too high."""
    means, exponents = task.error_means
    return task.mean("bias", means[:, 0], exponents)


@metric("regression", default=True, reads=("largest_error",), better="lower", interval=None)
def max_error(task: Numbers) -> Sequence[Any]:
    """The largest absolute error. Equals sklearn.metrics.max_error."""
    return task.numbers("max_error", task.largest, task.empty)


@metric(
    "regression",
    default=True,
    reads=("error_moments", "target_moments", "target_range"),
    better="higher",
    interval="real",
)
def r2(task: Numbers) -> Sequence[Any]:
    """The coefficient of determination, 1 − Σe² / Σ(t − mean t)², over the flattened values.

    Undefined for a constant target, which nothing explains. Equals sklearn.metrics.r2_score elsewhere.
    """
    return task.explained("r2", *task.squared_errors)


@metric("regression", reads=("error_moments", "target_moments", "target_range"), better="higher", interval="real")
def explained_variance(task: Numbers) -> Sequence[Any]:
    """1 − the variance of the errors / the variance of the target: r2 for the prediction without its bias.

    Undefined for a constant target. Equals sklearn.metrics.explained_variance_score.
    """
    return task.explained("explained_variance", *task.error_spread)


@metric("regression", reads=("joint_moments", "target_range", "prediction_range"), better="higher", interval="signed")
def pearson(task: Numbers) -> Sequence[Any]:
    """Pearson's correlation of prediction and target, in [-1, 1]; undefined where either is constant.

    Equals scipy.stats.pearsonr.
    """
    sums = task.joint_spread
    constant = task.constant_target | is_constant(task.prediction_range)
    if task.joint_moments is not None:  # exact, so that it is 0 of what is constant
        constant |= (sums[:, :2] == 0).any(1)
    spread = np.sqrt(sums[:, 0]) * np.sqrt(sums[:, 1])
    return task.numbers("pearson", (sums[:, 2] / np.where(constant, 1, spread)).clip(-1, 1), constant)


@metric("regression", reads=("relative_errors",), better="lower", interval="positive")
def mape(task: Numbers) -> Sequence[Any]:
    """The mean of abs(error) / abs(target), a fraction; smaller targets count as 2.2e-16.

    Equals sklearn.metrics.mean_absolute_percentage_error.
    """
    return task.quotients("mape", *task.relative_errors)


@metric("regression", options=("quantiles",), reads=("error_table",), interval=None)
def error_quantiles(task: Numbers) -> Sequence[Any]:
    """The ``quantiles`` of prediction − target, a list in their order.

    Between two errors linearly, as numpy.quantile; of weighted samples the smallest error at which the weight reaches
    the quantile.
    """
    levels = task.view.options["quantiles"]
    return task.quantiles("error_quantiles", task.error_table, lambda: task.differences, levels)
