"""What metrics of real values must be, from scikit-learn, SciPy and plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
from sklearn import metrics as sk

from metrics.oracles import UNDEFINED, Oracle
from metrics.samples import Sample


def _correlation(s: Sample) -> Any:
    if np.ptp(s.prediction) == 0 or np.ptp(s.true) == 0:
        return UNDEFINED
    if np.ptp(s.weight) == 0:
        return scipy.stats.pearsonr(s.prediction, s.true).statistic
    covariance = np.cov(s.prediction, s.true, aweights=s.weight)
    return covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])


def _quantiles(s: Sample) -> Any:
    levels = s.options.get("quantiles", [0.05, 0.25, 0.5, 0.75, 0.95])
    errors = s.prediction - s.true
    if not s.options["weighted"]:
        return np.quantile(errors, levels)
    order = np.argsort(errors)
    reached = np.cumsum(s.weight[order]) / s.weight.sum()
    return [errors[order][np.argmax(reached >= level - 1e-12)] for level in levels]


def _unless_constant(function: Callable[..., Any]) -> Oracle:
    return lambda s: UNDEFINED if np.ptp(s.true) == 0 else function(s.true, s.prediction, sample_weight=s.weight)


REGRESSION: dict[str, Oracle] = {
    "mae": lambda s: sk.mean_absolute_error(s.true, s.prediction, sample_weight=s.weight),
    "mse": lambda s: sk.mean_squared_error(s.true, s.prediction, sample_weight=s.weight),
    "rmse": lambda s: sk.root_mean_squared_error(s.true, s.prediction, sample_weight=s.weight),
    "bias": lambda s: np.average(s.prediction - s.true, weights=s.weight),
    "max_error": lambda s: sk.max_error(s.true, s.prediction),
    "r2": _unless_constant(sk.r2_score),
    "explained_variance": _unless_constant(sk.explained_variance_score),
    "pearson": _correlation,
    "mape": lambda s: sk.mean_absolute_percentage_error(s.true, s.prediction, sample_weight=s.weight),
    "error_quantiles": _quantiles,
}
