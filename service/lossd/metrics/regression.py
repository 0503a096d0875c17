"""Metrics of real-valued predictions, from the errors (prediction − target) of all elements of a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.registry import Input
from lossd.metrics.entries import Entries, rowwise
from lossd.metrics.registry import Array, Floats, Task, View, metric, spell, task
from lossd.metrics.signature import SAMPLE_WEIGHT, floats, given

__all__ = ["Regression"]


# Sums of squares between these are right as they are: none of their terms that count was too large or too small for
# float64.
SAFE = (1e-280, 1e300)


@task("regression")
class Regression(Task):
    """Errors and targets, flattened, in float64. For a loss of log-rates, the errors are those of the rates.

    Numbers whose squares or sums leave float64's range are scaled by a power of two before they are summed, so results
    are right wherever the numbers themselves are.

    Attributes:
        target: (R, I).
        size: The number of elements that count, or their weight, (B,).
    """

    def __init__(self, view: View) -> None:
        super().__init__(view)
        target = view.tensors["target"]
        self.target = target.reshape(target.shape[0], -1)
        self.entries = Entries(view)
        self.size = self.entries.size(self.target.shape)
        self.some = np.where(self.size > 0, self.size, 1)

    @cached_property
    def prediction(self) -> Tensor:
        """The predictions, (R, I)."""
        prediction = self.view.tensors["prediction"]
        if self.view.parameters.get("log_input"):
            prediction = prediction.exp()
        return prediction.reshape(prediction.shape[0], -1)

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: numbers, and their targets."""
        return (
            given("prediction", "Predictions, any real.", floats("real", "N *")),
            given("target", "Same shape; never broadcast.", floats("finite", "N *")),
            SAMPLE_WEIGHT,
        )

    def totals(self, function: Callable[..., list[Tensor]], *of_request: Floats) -> Floats:
        """Sums over the elements that count, (B, K), of the K results of ``function(prediction, target, ...)``.

        Args:
            function: Blocks (r, i) of both, and of each request's number (r, 1), to K blocks (r, i); all float64.
            of_request: (B,) each.
        """
        spread = (self.spread(numbers).expand(self.target.shape) for numbers in of_request)

        def sums(*parts: Tensor) -> Tensor:
            return torch.stack([term.sum(1) for term in function(*(part.double() for part in parts))], 1)

        return self.entries.total_of_rows(rowwise(sums, self.prediction, self.target, *spread))

    def spread(self, numbers: Floats) -> Tensor:
        """Return each request's number for each of its rows: (B,) to (R, 1) float64."""
        rows = np.repeat(np.asarray(numbers, float), self.view.segments.rows)
        return torch.from_numpy(rows).to(self.target.device).unsqueeze(1)

    def mean(self, name: str, totals: Floats, exponents: Array | int = 0) -> list[Any]:
        """Return totals times two to the ``exponents``, divided by the number of elements, as answers."""
        return self.numbers(name, np.ldexp(totals / self.some, exponents), self.size == 0)

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
    def _plain(self) -> Floats:
        """(B, 5): sums of the errors, of their sizes, of their squares, of the predictions and of the targets."""
        if (counted := self.view.counted.get("errors")) is not None:
            return counted
        return self.entries.total_of_rows(self._rows[:, :5])

    @cached_property
    def errors(self) -> tuple[Floats, Array]:
        """(B, 3): sums of the errors, of their sizes and of their squares, times powers of two; (B,): their exponents.

        An exponent is that of the errors: squares are to be taken times two to twice of it.
        """
        plain = self._plain[:, :3]
        exponents = np.zeros(self.count, int)
        if (np.isfinite(plain).all(1) & _safe(plain[:, 2], self.largest == 0)).all():
            return plain, exponents
        halves = np.isinf(self.largest)  # differences of numbers of opposite sign may be twice as large as any number
        largest = np.where(halves, self._most(lambda p, t: (p / 2 - t / 2).abs()), self.largest)
        exponents = np.frexp(largest)[1]

        def scaled(p: Tensor, t: Tensor, half: Tensor, first: Tensor, second: Tensor) -> list[Tensor]:
            error = (p * half - t * half) * first * second
            return [error, error.abs(), error.square()]

        return self.totals(scaled, np.where(halves, 0.5, 1), *_powers(-exponents)), exponents + halves

    @cached_property
    def largest(self) -> Floats:
        """The largest size of an error, (B,)."""
        if (counted := self.view.counted.get("largest")) is not None:
            return counted
        return self._largest_of(self._rows[:, 5])

    def _most(self, function: Callable[[Tensor, Tensor], Tensor]) -> Floats:
        """(B,): the largest of what ``function`` makes of the elements that count, which is never negative."""

        def largest(prediction: Tensor, target: Tensor) -> Tensor:
            return function(prediction.double(), target.double()).amax(1, keepdim=True)

        return self._largest_of(rowwise(largest, self.prediction, self.target, join=torch.maximum)[:, 0])

    def _largest_of(self, rows: Tensor) -> Floats:
        if self.entries.weight is not None:
            rows = rows.masked_fill(self.entries.weight == 0, 0)
        return np.maximum.reduceat(rows.numpy(force=True), self.view.segments.starts)

    @cached_property
    def target_spread(self) -> tuple[Floats, Array]:
        """(B,): sums of the squared distances of the targets from their mean, and the exponents of four to go with."""
        plain = self.view.counted.get("target_spread")
        if plain is None:
            mean = self._plain[:, 4] / self.some
            plain = self.totals(lambda _, t, mean: [(t - mean).square()], mean)[:, 0]
        if _safe(plain, self.constant_target).all():
            return plain, np.zeros(self.count, int)
        exponents, mean = self.scale(of_target=True)

        def squared(_: Tensor, t: Tensor, first: Tensor, second: Tensor, mean: Tensor) -> list[Tensor]:
            return [(t * first * second - mean).square()]

        return self.totals(squared, *_powers(-exponents), mean)[:, 0], exponents

    def scale(self, *, of_target: bool) -> tuple[Array, Floats]:
        """(B,) each: the exponent that brings the largest target or prediction below 1, and their mean by it."""
        exponents = np.frexp(self._most(lambda p, t: (t if of_target else p).abs()))[1]
        sums = self.totals(lambda p, t, one, two: [(t if of_target else p) * one * two], *_powers(-exponents))
        return exponents, sums[:, 0] / self.some

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

    def explained(self, name: str, unexplained: Floats, exponents: Array) -> list[Any]:
        """1 − sums of squares, times four to the ``exponents``, over the target's; undefined where that is constant."""
        spread, of_spread = self.target_spread
        ratio = unexplained / np.where(self.constant_target, 1, spread)
        return self.numbers(name, 1 - np.ldexp(ratio, 2 * (exponents - of_spread)), self.constant_target)


def _safe(squares: Floats, zero: Array) -> Array:
    """Return whether sums of squares are within float64's range, or 0 where ``zero`` says so."""
    return ((squares > SAFE[0]) & (squares < SAFE[1])) | zero


def _powers(exponents: Array) -> tuple[Floats, Floats]:
    """Return two factors whose product is two to the exponents; one alone may overflow or underflow."""
    first = exponents // 2
    return np.ldexp(1.0, first), np.ldexp(1.0, exponents - first)


@metric("regression", default=True)
def mae(task: Regression) -> Sequence[Any]:
    """The mean absolute error. Equals sklearn.metrics.mean_absolute_error."""
    sums, exponents = task.errors
    return task.mean("mae", sums[:, 1], exponents)


@metric("regression", default=True)
def mse(task: Regression) -> Sequence[Any]:
    """The mean squared error. Equals sklearn.metrics.mean_squared_error."""
    sums, exponents = task.errors
    return task.mean("mse", sums[:, 2], 2 * exponents)


@metric("regression", default=True)
def rmse(task: Regression) -> Sequence[Any]:
    """The root of the mean squared error, in the units of the target."""
    sums, exponents = task.errors
    return task.numbers("rmse", np.ldexp(np.sqrt(sums[:, 2] / task.some), exponents), task.size == 0)


@metric("regression", default=True)
def bias(task: Regression) -> Sequence[Any]:
    """The mean of prediction − target: positive where predictions are too high."""
    sums, exponents = task.errors
    return task.mean("bias", sums[:, 0], exponents)


@metric("regression", default=True)
def max_error(task: Regression) -> Sequence[Any]:
    """The largest absolute error. Equals sklearn.metrics.max_error."""
    return task.numbers("max_error", task.largest, task.size == 0)


@metric("regression", default=True)
def r2(task: Regression) -> Sequence[Any]:
    """The coefficient of determination, 1 − Σe² / Σ(t − mean t)², over the flattened values.

    Undefined for a constant target, which nothing explains. Equals sklearn.metrics.r2_score elsewhere.
    """
    sums, exponents = task.errors
    return task.explained("r2", sums[:, 2], exponents)


@metric("regression")
def explained_variance(task: Regression) -> Sequence[Any]:
    """1 − the variance of the errors / the variance of the target: r2 for the prediction without its bias.

    Undefined for a constant target. Equals sklearn.metrics.explained_variance_score.
    """
    sums, exponents = task.errors
    halves = np.isinf(task.largest)

    def squared(p: Tensor, t: Tensor, half: Tensor, first: Tensor, second: Tensor, mean: Tensor) -> list[Tensor]:
        return [((p * half - t * half) * first * second - mean).square()]

    half, mean = np.where(halves, 0.5, 1), sums[:, 0] / task.some
    unexplained = task.totals(squared, half, *_powers(halves - exponents), mean)[:, 0]
    return task.explained("explained_variance", unexplained, exponents)


@metric("regression")
def pearson(task: Regression) -> Sequence[Any]:
    """Pearson's correlation of prediction and target, in [-1, 1]; undefined where either is constant.

    Equals scipy.stats.pearsonr.
    """
    (of_p, mean_p), (of_t, mean_t) = task.scale(of_target=False), task.scale(of_target=True)

    def products(p: Tensor, t: Tensor, *by: Tensor) -> list[Tensor]:
        p, t = p * by[0] * by[1] - by[2], t * by[3] * by[4] - by[5]
        return [p.square(), t.square(), p * t]

    sums = task.totals(products, *_powers(-of_p), mean_p, *_powers(-of_t), mean_t)
    constant = task.constant_target | task.constant(task.prediction)
    spread = np.sqrt(sums[:, 0]) * np.sqrt(sums[:, 1])
    return task.numbers("pearson", (sums[:, 2] / np.where(constant, 1, spread)).clip(-1, 1), constant)


@metric("regression")
def mape(task: Regression) -> Sequence[Any]:
    """The mean of abs(error) / abs(target), a fraction; targets below 2.2e-16 count as that.

    Equals sklearn.metrics.mean_absolute_percentage_error.
    """
    tiny = torch.finfo(torch.float64).eps

    def fractions(p: Tensor, t: Tensor, factor: Tensor) -> list[Tensor]:
        size = t.abs().clamp(min=tiny)
        error = p - t
        # An infinite difference of two numbers is of opposite signs, so that nothing cancels here.
        return [torch.where(error.isinf(), p / size - t / size, error / size).abs() * factor]

    exponents = np.zeros(task.count, int)
    sums = task.totals(fractions, np.ones(task.count))
    if np.isinf(sums).any():  # a sum of numbers may be too large where their mean is not
        exponents = exponents + 64
        sums = task.totals(fractions, np.ldexp(1.0, -exponents))
    return task.mean("mape", sums[:, 0], exponents)


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
    """Return quantiles by linear interpolation; numpy.quantile fails next to an infinity."""
    if np.isnan(ordered[-1]):
        return np.full(len(levels), np.nan)
    place = np.array(levels) * (len(ordered) - 1)
    low, high = ordered[np.floor(place).astype(int)], ordered[np.ceil(place).astype(int)]
    share, step = place % 1, high - low
    # Each on its own where their difference is infinite.
    between: Floats = np.where(np.isfinite(step), low + step * share, low * (1 - share) + high * share)
    return np.where(low == high, low, between)
