"""Metrics of real-valued predictions, from the errors (prediction − target) of all elements of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_total
from lossd.losses.registry import Input
from lossd.metrics.entries import Entries, entrywise, rowwise
from lossd.metrics.parts import Extreme, Mean, Moments, Products, Rankings, Scores, Size, products
from lossd.metrics.registry import Array, Floats, Task, metric, spell, task
from lossd.metrics.signature import SAMPLE_WEIGHT, floats, given
from lossd.runs.table import between

__all__ = ["Regression"]


# Sums of squares between these are right as they are: none of their terms that count was too large or too small for
# float64.
SAFE = (1e-280, 1e300)


@task("regression")
class Regression(Task):
    """Errors and targets, flattened, in float64. For a loss of log-rates, the errors are those of the rates.

    Numbers whose squares or sums leave float64's range are scaled by a power of two before they are summed, so results
    are right wherever the numbers themselves are.

    A batch takes sums of squares about the mean after it knows the mean. A run has exact sums, ``Moments``, of which
    they follow without cancellation.
    """

    base: ClassVar[tuple[str, ...]] = ("size",)

    @cached_property
    def entries(self) -> Entries:
        """The elements that count."""
        return Entries(self.view)

    @Size
    def size(self) -> torch.Size:
        """The number of elements that count, or their weight, (B,)."""
        return self.target.shape

    @cached_property
    def some(self) -> Array:
        """The same, 1 instead of 0."""
        return np.where(self.size > 0, self.size, 1)

    @cached_property
    def target(self) -> Tensor:
        """The targets, (R, I)."""
        target = self.view.tensors["target"]
        return target.reshape(target.shape[0], -1)

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
            return torch.stack([row_total(term) for term in function(*(part.double() for part in parts))], 1)

        return self.entries.sums(rowwise(sums, self.prediction, self.target, *spread))

    def spread(self, numbers: Floats) -> Tensor:
        """Return each request's number for each of its rows: (B,) to (R, 1) float64."""
        rows = np.repeat(np.asarray(numbers, float), self.view.segments.rows)
        return torch.from_numpy(rows).to(self.target.device).unsqueeze(1)

    def mean(self, name: str, means: Floats, exponents: Array | int = 0) -> list[Any]:
        """Return means times two to the ``exponents`` as answers."""
        return self.numbers(name, np.ldexp(means, exponents), self.size == 0)

    def flat(self, *names: str) -> list[Floats]:
        """Return prediction or target as float64 arrays, (R, I)."""
        return [getattr(self, name).double().numpy(force=True) for name in names]

    @Moments
    def error_moments(self) -> Products:
        """The errors and their sizes."""
        prediction, target = self.flat("prediction", "target")
        errors = prediction - target
        return self.products(errors, np.abs(errors), pairs=((0, 0),))

    @Moments
    def target_moments(self) -> Products:
        """The targets."""
        return self.products(*self.flat("target"), pairs=((0, 0),))

    @Moments
    def joint_moments(self) -> Products:
        """The predictions and the targets."""
        return self.products(*self.flat("prediction", "target"), pairs=((0, 0), (1, 1), (0, 1)))

    def products(self, *columns: Floats, pairs: tuple[tuple[int, int], ...]) -> Products:
        """Return the elements of columns, (R, I) each, with the weights of their rows."""
        rows = products(self.entries, np.stack(columns, 2), pairs)
        weight = None if rows.weight is None else np.repeat(rows.weight, columns[0].shape[1])
        return Products(rows.values.reshape(-1, len(columns)), weight, pairs)

    @cached_property
    def _rows(self) -> Tensor:
        """(R, 6): sums of errors, of their sizes, of their squares, of predictions, of targets; the largest size."""

        def sums(prediction: Tensor, target: Tensor) -> Tensor:
            p, t = prediction.double(), target.double()
            error = p - t
            size = error.abs()
            return torch.stack([*map(row_total, (error, size, error * error, p, t)), size.amax(1)], 1)

        def join(before: Tensor, part: Tensor) -> Tensor:
            return torch.cat([before[:, :5] + part[:, :5], torch.maximum(before[:, 5:], part[:, 5:])], 1)

        return rowwise(sums, self.prediction, self.target, join=join)

    @cached_property
    def _plain(self) -> Floats:
        """(B, 5): sums of the errors, of their sizes, of their squares, of the predictions and of the targets."""
        if (counted := self.view.counted.get("errors")) is not None:
            return counted
        return self.entries.sums(self._rows[:, :5])

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
    def error_means(self) -> tuple[Floats, Array]:
        """(B, 3): means of the errors, of their sizes and of their squares; (B,): the exponents as of ``errors``."""
        if self.error_moments is not None:
            exponents = np.frexp(self.largest)[1]
            return self.error_moments.means_scaled(int(exponents[0]))[None], exponents
        sums, exponents = self.errors
        return sums / self.some[:, None], exponents

    @cached_property
    def largest(self) -> Floats:
        """The largest size of an error, (B,)."""
        if (counted := self.view.counted.get("largest")) is not None:
            return counted
        return np.maximum(self.largest_error[:, 0], 0) if self.view.merged else self._largest_of(self._rows[:, 5])

    @Extreme
    def largest_error(self) -> tuple[Tensor]:
        """The largest size of an error."""
        return (self._rows[:, 5],)

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
        if self.target_moments is not None:
            return self.target_moments.centred_scaled(0, 0)
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
        return _constant(self.target_range)

    @Extreme
    def target_range(self) -> tuple[Tensor, Tensor]:
        """Minus the lowest target, and the highest."""
        return _range(self.target)

    @Extreme
    def prediction_range(self) -> tuple[Tensor, Tensor]:
        """Minus the lowest prediction, and the highest."""
        return _range(self.prediction)

    @cached_property
    def error_spread(self) -> tuple[Floats, Array]:
        """(B,): sums of the squared distances of the errors from their mean, and the exponents of four to go with."""
        if self.error_moments is not None:
            return self.error_moments.centred_scaled(0, 0)
        sums, exponents = self.errors
        halves = np.isinf(self.largest)

        def squared(p: Tensor, t: Tensor, half: Tensor, first: Tensor, second: Tensor, mean: Tensor) -> list[Tensor]:
            return [((p * half - t * half) * first * second - mean).square()]

        half, mean = np.where(halves, 0.5, 1), sums[:, 0] / self.some
        return self.totals(squared, half, *_powers(halves - exponents), mean)[:, 0], exponents

    @cached_property
    def squared_errors(self) -> tuple[Floats, Array]:
        """(B,): sums of the squared errors, and the exponents of four to go with."""
        if self.error_moments is not None:
            return self.error_moments.product_scaled(0, 0)
        sums, exponents = self.errors
        return sums[:, 2], exponents

    @cached_property
    def joint_spread(self) -> Floats:
        """(B, 3): the spread of the predictions, that of the targets and that of both, in units of their own."""
        if self.joint_moments is not None:
            return self.joint_moments.correlation()
        (of_p, mean_p), (of_t, mean_t) = self.scale(of_target=False), self.scale(of_target=True)

        def products(p: Tensor, t: Tensor, *by: Tensor) -> list[Tensor]:
            p, t = p * by[0] * by[1] - by[2], t * by[3] * by[4] - by[5]
            return [p.square(), t.square(), p * t]

        return self.totals(products, *_powers(-of_p), mean_p, *_powers(-of_t), mean_t)

    @Mean
    def relative_errors(self) -> Tensor:
        """The size of each error, divided by that of its target."""
        tiny = torch.finfo(torch.float64).eps

        def relative(p: Tensor, t: Tensor) -> Tensor:
            p, t = p.double(), t.double()
            size = t.abs().clamp(min=tiny)
            error = p - t
            # An infinite difference of two numbers is of opposite signs, so that nothing cancels here.
            return torch.where(error.isinf(), p / size - t / size, error / size).abs()

        return entrywise(
            lambda p, t: relative(p[:, 0], t), self.prediction.unsqueeze(1), self.target, dtype=torch.float64
        )

    @Rankings
    def error_table(self) -> Scores:
        """The errors."""

        def columns() -> Iterator[tuple[Floats, None, Floats | None]]:
            found = self.products(np.subtract(*self.flat("prediction", "target")), pairs=())
            yield found.values[:, 0], None, found.weight

        return Scores(columns, 1, 1, self.view.sample_weight is not None)

    def explained(self, name: str, unexplained: Floats, exponents: Array) -> list[Any]:
        """1 − sums of squares, times four to the ``exponents``, over the target's; undefined where that is constant."""
        spread, of_spread = self.target_spread
        ratio = unexplained / np.where(self.constant_target, 1, spread)
        return self.numbers(name, 1 - np.ldexp(ratio, 2 * (exponents - of_spread)), self.constant_target)


def _range(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return minus the lowest number of each row, and the highest, (R,) each."""
    low, high = values.aminmax(dim=1)
    return -low, high


def _constant(limits: Floats) -> Array:
    """Return whether all numbers are the same; of a NaN they are not.

    Asked of the numbers, not of their spread, which rounding keeps from being 0.
    """
    return -limits[:, 0] >= limits[:, 1]


def _safe(squares: Floats, zero: Array) -> Array:
    """Return whether sums of squares are within float64's range, or 0 where ``zero`` says so."""
    return ((squares > SAFE[0]) & (squares < SAFE[1])) | zero


def _powers(exponents: Array) -> tuple[Floats, Floats]:
    """Return two factors whose product is two to the exponents; one alone may overflow or underflow."""
    first = exponents // 2
    return np.ldexp(1.0, first), np.ldexp(1.0, exponents - first)


@metric("regression", default=True, reads=("error_moments", "largest_error"), better="lower")
def mae(task: Regression) -> Sequence[Any]:
    """The mean absolute error. Equals sklearn.metrics.mean_absolute_error."""
    means, exponents = task.error_means
    return task.mean("mae", means[:, 1], exponents)


@metric("regression", default=True, reads=("error_moments", "largest_error"), better="lower")
def mse(task: Regression) -> Sequence[Any]:
    """The mean squared error. Equals sklearn.metrics.mean_squared_error."""
    means, exponents = task.error_means
    return task.mean("mse", means[:, 2], 2 * exponents)


@metric("regression", default=True, reads=("error_moments", "largest_error"), better="lower")
def rmse(task: Regression) -> Sequence[Any]:
    """The root of the mean squared error, in the units of the target."""
    means, exponents = task.error_means
    return task.mean("rmse", np.sqrt(means[:, 2]), exponents)


@metric("regression", default=True, reads=("error_moments", "largest_error"))
def bias(task: Regression) -> Sequence[Any]:
    """The mean of prediction − target: positive where predictions are too high."""
    means, exponents = task.error_means
    return task.mean("bias", means[:, 0], exponents)


@metric("regression", default=True, reads=("largest_error",), better="lower")
def max_error(task: Regression) -> Sequence[Any]:
    """The largest absolute error. Equals sklearn.metrics.max_error."""
    return task.numbers("max_error", task.largest, task.size == 0)


@metric("regression", default=True, reads=("error_moments", "target_moments", "target_range"), better="higher")
def r2(task: Regression) -> Sequence[Any]:
    """The coefficient of determination, 1 − Σe² / Σ(t − mean t)², over the flattened values.

    Undefined for a constant target, which nothing explains. Equals sklearn.metrics.r2_score elsewhere.
    """
    return task.explained("r2", *task.squared_errors)


@metric("regression", reads=("error_moments", "target_moments", "target_range"), better="higher")
def explained_variance(task: Regression) -> Sequence[Any]:
    """1 − the variance of the errors / the variance of the target: r2 for the prediction without its bias.

    Undefined for a constant target. Equals sklearn.metrics.explained_variance_score.
    """
    return task.explained("explained_variance", *task.error_spread)


@metric("regression", reads=("joint_moments", "target_range", "prediction_range"), better="higher")
def pearson(task: Regression) -> Sequence[Any]:
    """Pearson's correlation of prediction and target, in [-1, 1]; undefined where either is constant.

    Equals scipy.stats.pearsonr.
    """
    sums = task.joint_spread
    constant = task.constant_target | _constant(task.prediction_range)
    spread = np.sqrt(sums[:, 0]) * np.sqrt(sums[:, 1])
    return task.numbers("pearson", (sums[:, 2] / np.where(constant, 1, spread)).clip(-1, 1), constant)


@metric("regression", reads=("relative_errors",), better="lower")
def mape(task: Regression) -> Sequence[Any]:
    """The mean of abs(error) / abs(target), a fraction; targets below 2.2e-16 count as that.

    Equals sklearn.metrics.mean_absolute_percentage_error.
    """
    return task.quotients("mape", *task.relative_errors)


@metric("regression", options=("quantiles",), reads=("error_table",))
def error_quantiles(task: Regression) -> Sequence[Any]:
    """The ``quantiles`` of prediction − target, a list in their order.

    Between two errors linearly, as numpy.quantile; of weighted samples the smallest error at which the weight reaches
    the quantile.
    """
    answers: list[Any] = []
    levels: list[float] = task.view.options["quantiles"]
    if task.error_table is not None:
        if (bracket := task.error_table.quantiles(levels)) is None:
            task.undefined[0]["error_quantiles"] = []
            return [[task.zero_division] * len(levels)]
        low, high = bracket
        return [spell(np.where(low == high, low, low / 2 + high / 2))]
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
    return between(ordered[np.floor(place).astype(int)], ordered[np.ceil(place).astype(int)], place % 1)
