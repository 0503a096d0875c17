"""Metrics of real-valued predictions: of the errors, prediction − target, all elements of a request together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lossd.deferred import Tensor, torch
from lossd.losses.registry import Input
from lossd.metrics.entries import Entries, rowwise
from lossd.metrics.registry import Array, Floats, Task, View, metric, spell, task
from lossd.metrics.signature import SAMPLE_WEIGHT, floats, given

__all__ = ["Regression"]


@task("regression")
class Regression(Task):
    """Errors and targets, flattened; computed in float64. Of a loss of log-rates, the errors are those of the rates.

    Attributes:
        target: (R, I).
        size: (B,), how many elements count, or what they weigh.
    """

    def __init__(self, view: View) -> None:
        super().__init__(view)
        target = view.tensors["target"]
        self.target = target.reshape(target.shape[0], -1)
        self.entries = Entries(view)
        self.size = self.entries.size(self.target.shape)

    @cached_property
    def prediction(self) -> Tensor:
        """(R, I)."""
        prediction = self.view.tensors["prediction"]
        if self.view.parameters.get("log_input"):
            prediction = prediction.exp()
        return prediction.reshape(prediction.shape[0], -1)

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Numbers, and the numbers they should be."""
        return (
            given("prediction", "Predictions, any real.", floats("real", "N *")),
            given("target", "Same shape; never broadcast.", floats("finite", "N *")),
            SAMPLE_WEIGHT,
        )

    def totals(self, function: Callable[..., list[Tensor]], *others: Tensor) -> Floats:
        """Sums over the elements that count, (B, K), of the K results of ``function(prediction, target, *others)``."""

        def sums(*parts: Tensor) -> Tensor:
            return torch.stack([term.sum(1) for term in function(*(part.double() for part in parts))], 1)

        return self.entries.total_of_rows(rowwise(sums, self.prediction, self.target, *others))

    def mean(self, name: str, totals: Floats) -> list[Any]:
        """Totals per element that counts, as answers."""
        return self.quotients(name, totals, self.size)

    @cached_property
    def _rows(self) -> Tensor:
        """(R, 6): sums of errors, of their sizes, of their squares, of predictions, of targets; the largest size."""

        def sums(prediction: Tensor, target: Tensor) -> Tensor:
            p, t = prediction.double(), target.double()
            error = p - t
            size = error.abs()
            return torch.stack([error.sum(1), size.sum(1), (error * error).sum(1), p.sum(1), t.sum(1), size.amax(1)], 1)

        def join(before: Tensor, part: Tensor) -> Tensor:
            return torch.cat([before[:, :5] + part[:, :5], torch.maximum(before[:, 5:], part[:, 5:])], 1)

        return rowwise(sums, self.prediction, self.target, join=join)

    @cached_property
    def errors(self) -> Floats:
        """(B, 5): sums of the errors, of their sizes, of their squares, of the predictions and of the targets."""
        if (counted := self.view.counted.get("errors")) is not None:
            return counted
        return self.entries.total_of_rows(self._rows[:, :5])

    @cached_property
    def largest(self) -> Floats:
        """(B,): the largest size of an error."""
        if (counted := self.view.counted.get("largest")) is not None:
            return counted
        rows = self._rows[:, 5]
        if self.entries.weight is not None:
            rows = rows.masked_fill(self.entries.weight == 0, 0)
        return np.maximum.reduceat(rows.numpy(force=True), self.view.segments.starts)

    @cached_property
    def means(self) -> tuple[Tensor, Tensor]:
        """Each request's mean prediction and mean target, spread over its elements."""
        means = self.errors[:, 3:] / np.where(self.size > 0, self.size, 1)[:, None]
        rows = torch.from_numpy(means).to(self.target.device)[self.view.segments.index]
        return rows[:, :1].expand(self.target.shape), rows[:, 1:].expand(self.target.shape)

    @cached_property
    def target_spread(self) -> Floats:
        """(B,): sums of the squared distances of the targets from their mean."""
        if (counted := self.view.counted.get("target_spread")) is not None:
            return counted
        return self.totals(lambda _, t, mean: [(t - mean).square()], self.means[1])[:, 0]

    @cached_property
    def constant_target(self) -> Array:
        """(B,) bool: whether all targets that count are the same number, or none counts."""
        if (counted := self.view.counted.get("constant_target")) is not None:
            return counted
        return self.constant(self.target)

    def constant(self, values: Tensor) -> Array:
        """(B,) bool, asked of the values, not of their spread, which rounding keeps from being 0."""
        low, high = values.amin(1).double(), values.amax(1).double()
        if self.entries.weight is not None:
            dropped = self.entries.weight == 0
            low, high = low.masked_fill(dropped, torch.inf), high.masked_fill(dropped, -torch.inf)
        starts = self.view.segments.starts
        lowest = np.minimum.reduceat(low.numpy(force=True), starts)
        return lowest >= np.maximum.reduceat(high.numpy(force=True), starts)


@metric("regression", default=True)
def mae(task: Regression) -> Sequence[Any]:
    """The mean absolute error. Equals sklearn.metrics.mean_absolute_error."""
    return task.mean("mae", task.errors[:, 1])


@metric("regression", default=True)
def mse(task: Regression) -> Sequence[Any]:
    """The mean squared error. Equals sklearn.metrics.mean_squared_error."""
    return task.mean("mse", task.errors[:, 2])


@metric("regression", default=True)
def rmse(task: Regression) -> Sequence[Any]:
    """The root of the mean squared error, in the units of the target."""
    size = task.size
    return task.numbers("rmse", np.sqrt(task.errors[:, 2] / np.where(size > 0, size, 1)), size == 0)


@metric("regression", default=True)
def bias(task: Regression) -> Sequence[Any]:
    """The mean of prediction − target: positive where predictions are too high."""
    return task.mean("bias", task.errors[:, 0])


@metric("regression", default=True)
def max_error(task: Regression) -> Sequence[Any]:
    """The largest absolute error. Equals sklearn.metrics.max_error."""
    return task.numbers("max_error", task.largest, task.size == 0)


@metric("regression", default=True)
def r2(task: Regression) -> Sequence[Any]:
    """The coefficient of determination, 1 − Σe² / Σ(t − mean t)², over the flattened values.

    Undefined for a constant target, which nothing explains. Equals sklearn.metrics.r2_score elsewhere.
    """
    constant = task.constant_target
    return task.numbers("r2", 1 - task.errors[:, 2] / np.where(constant, 1, task.target_spread), constant)


@metric("regression")
def explained_variance(task: Regression) -> Sequence[Any]:
    """1 − the variance of the errors / the variance of the target: r2 for the prediction without its bias.

    Undefined for a constant target. Equals sklearn.metrics.explained_variance_score.
    """
    mean_p, mean_t = task.means
    unexplained = task.totals(lambda p, t, mp, mt: [((p - mp) - (t - mt)).square()], mean_p, mean_t)[:, 0]
    constant = task.constant_target
    values = 1 - unexplained / np.where(constant, 1, task.target_spread)
    return task.numbers("explained_variance", values, constant)


@metric("regression")
def pearson(task: Regression) -> Sequence[Any]:
    """Pearson's correlation of prediction and target, in [-1, 1]; undefined where either is constant.

    Equals scipy.stats.pearsonr.
    """
    mean_p, mean_t = task.means
    sums = task.totals(lambda p, t, mp, mt: [(p - mp).square(), (p - mp) * (t - mt)], mean_p, mean_t)
    constant = task.constant_target | task.constant(task.prediction)
    spread = np.sqrt(sums[:, 0]) * np.sqrt(task.target_spread)
    return task.numbers("pearson", sums[:, 1] / np.where(constant, 1, spread), constant)


@metric("regression")
def mape(task: Regression) -> Sequence[Any]:
    """The mean of abs(error) / abs(target), a fraction; targets below 2.2e-16 count as that.

    Equals sklearn.metrics.mean_absolute_percentage_error.
    """
    tiny = torch.finfo(torch.float64).eps
    return task.mean("mape", task.totals(lambda p, t: [(p - t).abs() / t.abs().clamp(min=tiny)])[:, 0])


@metric("regression", options=("quantiles",))
def error_quantiles(task: Regression) -> Sequence[Any]:
    """The ``quantiles`` of prediction − target, a list in their order.

    Between two errors linearly, as numpy.quantile; of weighted samples the smallest error at which the weight reaches
    the quantile.
    """
    answers: list[Any] = []
    levels: list[float] = task.view.options["quantiles"]
    weight = task.entries.weight
    for request in range(task.count):
        rows = task.entries.rows_of(request)
        errors = (task.prediction[rows].double() - task.target[rows].double()).numpy(force=True)
        if weight is None:
            answers.append(spell(_between(np.sort(errors, axis=None), levels)))
            continue
        weights = np.broadcast_to(weight[rows].unsqueeze(1).numpy(force=True), errors.shape)
        kept = weights > 0
        if not kept.any():
            task.undefined[request]["error_quantiles"] = []
            answers.append([task.zero_division] * len(levels))
            continue
        answers.append(spell(np.quantile(errors[kept], levels, weights=weights[kept], method="inverted_cdf")))
    return answers


def _between(ordered: Floats, levels: list[float]) -> Floats:
    """Quantiles by linear interpolation, which numpy.quantile does not do next to an infinity."""
    if np.isnan(ordered[-1]):
        return np.full(len(levels), np.nan)
    place = np.array(levels) * (len(ordered) - 1)
    low, high = ordered[np.floor(place).astype(int)], ordered[np.ceil(place).astype(int)]
    between: Floats = np.where(low == high, low, low + (high - low) * (place % 1))
    return between
