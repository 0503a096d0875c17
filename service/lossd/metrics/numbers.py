"""Predictions and targets that are real numbers: the errors of all elements of a request, and their sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lossd.exact.table import between
from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_total
from lossd.losses.registry import Input
from lossd.metrics.contributions import Products, Scores, products
from lossd.metrics.entries import Entries, entrywise, for_kernels, rowwise
from lossd.metrics.parts import Extreme, Mean, Moments, Rankings, Size
from lossd.metrics.registry import Array, Floats, Task, spell
from lossd.metrics.signature import SAMPLE_WEIGHT, constant_input, floats

__all__ = ["Numbers", "is_constant", "mean_of", "powers"]


# Sums of squares between these are right as they are: none of their terms that count was too large or too small for
# float64.
SAFE = (1e-280, 1e300)


class Numbers(Task):
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
        return np.where(self.size > 0, self.size, 1) if True in self.empty.tolist() else self.size

    @cached_property
    def empty(self) -> Array:
        """(B,) bool: whether no element counts."""
        empty: Array = self.size == 0
        return empty

    @cached_property
    def ignored(self) -> Tensor | None:
        """The elements that do not count by a mask, (R, I) bool; None if all count."""
        ignored = self.view.ignored
        return None if ignored is None else ignored.expand(self.target.shape)

    @cached_property
    def target(self) -> Tensor:
        """The targets, (R, I); 0 where a mask leaves them out."""
        target = self.view.tensors["target"].reshape(self.view.segments.total, -1)
        return target if self.view.ignored is None else target.masked_fill(self.view.ignored, 0)

    @cached_property
    def prediction(self) -> Tensor:
        """The predictions, (R, I); 0 where a mask leaves them out."""
        prediction = self.view.tensors["prediction"]
        if self.view.parameters.get("log_input"):
            prediction = prediction.double().exp()  # in float32 it would be infinite from 89 on
        prediction = prediction.reshape(prediction.shape[0], -1)
        return prediction if self.view.ignored is None else prediction.masked_fill(self.view.ignored, 0)

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: numbers, and their targets."""
        return (
            constant_input("prediction", "Predictions, any real.", floats("real", "N *")),
            constant_input("target", "Same shape; never broadcast.", floats("finite", "N *")),
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

        def sums_of_others(ignored: Tensor, *parts: Tensor) -> Tensor:
            terms = function(*(part.double() for part in parts))
            return torch.stack([row_total(term.masked_fill(ignored, 0)) for term in terms], 1)

        if self.ignored is None:
            return self.entries.sums(rowwise(sums, self.prediction, self.target, *spread))
        return self.entries.sums(rowwise(sums_of_others, self.ignored, self.prediction, self.target, *spread))

    def spread(self, numbers: Floats) -> Tensor:
        """Return each request's number for each of its rows: (B,) to (R, 1) float64."""
        rows = np.repeat(np.asarray(numbers, float), self.view.segments.rows)
        return torch.from_numpy(rows).to(self.target.device).unsqueeze(1)

    def mean(self, name: str, means: Floats, exponents: Array | int = 0) -> list[Any]:
        """Return means times two to the ``exponents`` as answers."""
        return self.numbers(name, np.ldexp(means, exponents), self.empty)

    def weights(self, sums: Floats) -> Floats:
        """Return sums of weights, (B,), in the scale in which weights were sent."""
        exponent = self.view.exponent
        rescaled: Floats = self.entries.counts(sums) if exponent is None else np.ldexp(sums, exponent)
        return rescaled

    def flat(self, *names: str) -> list[Floats]:
        """Return prediction or target as float64 arrays, (R, I)."""
        return [getattr(self, name).double().numpy(force=True) for name in names]

    def of_each(self, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return ``function(prediction, target)`` of each element, (R, I) float64, given blocks (r, i) of float64."""
        return entrywise(
            lambda p, t: function(p[:, 0].double(), t.double()),
            self.prediction.unsqueeze(1),
            self.target,
            dtype=torch.float64,
        )

    @Moments
    def error_moments(self) -> Products:
        """The errors and their sizes."""
        prediction, target = self.flat("prediction", "target")
        errors = prediction - target
        return products(self.entries, errors, np.abs(errors), pairs=((0, 0),))

    @Moments
    def target_moments(self) -> Products:
        """The targets."""
        return products(self.entries, *self.flat("target"), pairs=((0, 0),))

    @Moments
    def joint_moments(self) -> Products:
        """The predictions and the targets."""
        return products(self.entries, *self.flat("prediction", "target"), pairs=((0, 0), (1, 1), (0, 1)))

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
    def counted(self) -> Mapping[str, Array]:
        """What a pass has counted, or a kernel counts now; empty if none does, or some sum is not finite."""
        count = self.view.kernels.get("errors")
        if self.view.counted or count is None or self.prediction.shape != self.target.shape:
            return self.view.counted
        if (found := for_kernels(self.view, self.prediction, self.target)) is None:
            return {}
        rows, (prediction, target), words = found
        sums, (largest, spread) = np.empty((self.count, 5)), np.empty((2, self.count))
        constant = np.empty(self.count, bool)
        count(prediction, target, words, rows * self.target.shape[1], sums, largest, spread, constant)
        if not np.isfinite(sums).all():
            return {}
        return {"errors": sums, "largest": largest, "target_spread": spread, "constant_target": constant}

    @cached_property
    def _plain(self) -> Floats:
        """(B, 5): sums of the errors, of their sizes, of their squares, of the predictions and of the targets."""
        if (counted := self.counted.get("errors")) is not None:
            return counted
        return self.entries.sums(self._rows[:, :5])

    @cached_property
    def errors(self) -> tuple[Floats, Array]:
        """(B, 3): sums of the errors, of their sizes and of their squares, times powers of two; (B,): their exponents.

        An exponent is that of the errors: squares are to be taken times two to twice of it.
        """
        plain = self._plain[:, :3]
        exponents = np.zeros(self.count, int)
        if _all_safe(plain[:, 2]) or (np.isfinite(plain).all(1) & _safe(plain[:, 2], self.largest == 0)).all():
            return plain, exponents
        halves = np.isinf(self.largest)  # differences of numbers of opposite sign may be twice as large as any number
        largest = np.where(halves, self._most(lambda p, t: (p / 2 - t / 2).abs()), self.largest)
        exponents = np.frexp(largest)[1]

        def scaled(p: Tensor, t: Tensor, half: Tensor, first: Tensor, second: Tensor) -> list[Tensor]:
            error = (p * half - t * half) * first * second
            return [error, error.abs(), error.square()]

        return self.totals(scaled, np.where(halves, 0.5, 1), *powers(-exponents)), exponents + halves

    @cached_property
    def error_means(self) -> tuple[Floats, Array]:
        """(B, 3): means of the errors, of their sizes and of their squares; (B,): the exponents as of ``errors``."""
        if self.error_moments is not None:
            exponents = np.frexp(self.largest)[1]
            return self.error_moments.means_scaled(exponents), exponents
        sums, exponents = self.errors
        return sums / self.some[:, None], exponents

    @cached_property
    def largest(self) -> Floats:
        """The largest size of an error, (B,)."""
        if (counted := self.counted.get("largest")) is not None:
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
        plain = self.counted.get("target_spread")
        if plain is None:
            mean = self._plain[:, 4] / self.some
            plain = self.totals(lambda _, t, mean: [(t - mean).square()], mean)[:, 0]
        if _all_safe(plain) or _safe(plain, self.constant_target).all():
            return plain, np.zeros(self.count, int)
        exponents, mean = self.scale(of_target=True)

        def squared(_: Tensor, t: Tensor, first: Tensor, second: Tensor, mean: Tensor) -> list[Tensor]:
            return [(t * first * second - mean).square()]

        return self.totals(squared, *powers(-exponents), mean)[:, 0], exponents

    def scale(self, *, of_target: bool) -> tuple[Array, Floats]:
        """(B,) each: the exponent that brings the largest target or prediction below 1, and their mean by it."""
        exponents = np.frexp(self._most(lambda p, t: (t if of_target else p).abs()))[1]
        sums = self.totals(lambda p, t, one, two: [(t if of_target else p) * one * two], *powers(-exponents))
        return exponents, sums[:, 0] / self.some

    @cached_property
    def constant_target(self) -> Array:
        """(B,) bool: whether all targets that count are the same number, or none counts."""
        if (counted := self.counted.get("constant_target")) is not None:
            return counted
        constant = is_constant(self.target_range)
        # Of a run's rows without a group, the range is not known; their exact spread is.
        return constant if self.target_moments is None else constant | (self.target_spread[0] == 0)

    @Extreme
    def target_range(self) -> tuple[Tensor, Tensor]:
        """Minus the lowest target, and the highest."""
        return _range(self.target, self.ignored)

    @Extreme
    def prediction_range(self) -> tuple[Tensor, Tensor]:
        """Minus the lowest prediction, and the highest."""
        return _range(self.prediction, self.ignored)

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
        return self.totals(squared, half, *powers(halves - exponents), mean)[:, 0], exponents

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

        return self.totals(products, *powers(-of_p), mean_p, *powers(-of_t), mean_t)

    @Mean
    def relative_errors(self) -> Tensor:
        """The size of each error, divided by that of its target."""
        tiny = torch.finfo(torch.float64).eps

        def relative(p: Tensor, t: Tensor) -> Tensor:
            size = t.abs().clamp(min=tiny)
            error = p - t
            # An infinite difference of two numbers is of opposite signs, so that nothing cancels here.
            return torch.where(error.isinf(), p / size - t / size, error / size).abs()

        return self.of_each(relative)

    @property
    def differences(self) -> Tensor:
        """The errors, (R, I) float64."""
        return self.prediction.double() - self.target.double()

    @Rankings
    def error_table(self) -> Scores:
        """The errors."""
        return self.table_of(self.differences.numpy(force=True))

    def table_of(self, values: Floats) -> Scores:
        """Return the numbers of all elements that count as a column of scores, given (R, I)."""

        def columns() -> Iterator[tuple[Floats, None, Floats | None, Array]]:
            found = products(self.entries, values, pairs=())
            yield found.values[:, 0], None, found.weight, found.place

        return Scores(columns, 1, 1, self.view.sample_weight is not None)

    def kept(self, request: int, values: Tensor) -> tuple[Floats, Floats | None]:
        """Return the numbers of one request's elements that count, (n,) each, and their weights or None for 1.

        Args:
            request: The request.
            values: Numbers, (R, I).
        """
        rows, ignored, weight = self.entries.rows_of(request), self.entries.ignored, self.entries.weight
        found = values[rows].double().numpy(force=True)
        counts = np.ones(found.shape, bool)
        if ignored is not None:
            counts &= ~ignored[rows].numpy(force=True)
        if weight is None:
            return found[counts], None
        return found[counts], np.broadcast_to(weight[rows].unsqueeze(1).numpy(force=True), found.shape)[counts]

    def quantiles(self, name: str, table: Any, values: Callable[[], Tensor], levels: list[float]) -> list[list[Any]]:
        """Return the quantiles of numbers of the elements, one for each level; undefined without an element.

        Between two numbers linearly, as numpy.quantile; of weighted samples the smallest number at which the weight
        reaches the level.

        Args:
            name: The metric's name.
            table: The table of the numbers in a run; None of a batch.
            values: Returns the numbers, (R, I).
            levels: Numbers from 0 to 1.
        """
        if table is not None:
            brackets = table.quantiles(levels)
            found = [None if b is None else np.where(b[0] == b[1], b[0], b[0] / 2 + b[1] / 2) for b in brackets]
        else:
            numbers = values()
            found = [_quantiles(*self.kept(request, numbers), levels) for request in range(self.count)]
        for request, quantiles in enumerate(found):
            if quantiles is None:
                self.undefined[request][name] = []
        return [[self.zero_division] * len(levels) if q is None else spell(q) for q in found]

    def unexplained(self, squares: Floats, exponents: Array) -> Floats:
        """Return sums of squares, times four to the ``exponents``, over the target's about its mean, (B,)."""
        spread, of_spread = self.target_spread
        ratio: Floats = np.ldexp(squares / np.where(self.constant_target, 1, spread), 2 * (exponents - of_spread))
        return ratio

    def explained(self, name: str, squares: Floats, exponents: Array) -> list[Any]:
        """Return 1 less :meth:`unexplained` as answers; undefined where the target is constant."""
        return self.numbers(name, 1 - self.unexplained(squares, exponents), self.constant_target)


def mean_of(part: tuple[Floats, Array]) -> Floats:
    """Return means, (B,), given numerators and denominators; 0 over 0 is 0."""
    total, size = part
    return total / np.where(size > 0, size, 1)


def _quantiles(values: Floats, weights: Floats | None, levels: list[float]) -> Floats | None:
    """Return quantiles of numbers, (n,); None without any."""
    if not values.size:
        return None
    if weights is not None:
        found: Floats = np.quantile(values, levels, weights=weights, method="inverted_cdf")
        return found
    ordered = np.sort(values)
    if np.isnan(ordered[-1]):
        return np.full(len(levels), np.nan)
    place = np.array(levels) * (len(ordered) - 1)  # numpy.quantile fails next to an infinity
    return between(ordered[np.floor(place).astype(int)], ordered[np.ceil(place).astype(int)], place % 1)


def _range(values: Tensor, ignored: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return minus the lowest number of each row, and the highest, (R,) each; -inf where all are ignored."""
    if ignored is not None:
        return -values.masked_fill(ignored, torch.inf).amin(1), values.masked_fill(ignored, -torch.inf).amax(1)
    low, high = values.aminmax(dim=1)
    return -low, high


def is_constant(limits: Floats) -> Array:
    """Return whether all numbers are the same; of a NaN they are not.

    Asked of the numbers, not of their spread, which rounding keeps from being 0.
    """
    return -limits[:, 0] >= limits[:, 1]


def _all_safe(squares: Floats) -> bool:
    """Return whether all sums of squares are within float64's range; then what is squared has finite sums too."""
    return all(SAFE[0] < square < SAFE[1] for square in squares.tolist())


def _safe(squares: Floats, zero: Array) -> Array:
    """Return whether sums of squares are within float64's range, or 0 where ``zero`` says so."""
    return ((squares > SAFE[0]) & (squares < SAFE[1])) | zero


def powers(exponents: Array) -> tuple[Floats, Floats]:
    """Return two factors whose product is two to the exponents; one alone may overflow or underflow."""
    first = exponents // 2
    return np.ldexp(1.0, first), np.ldexp(1.0, exponents - first)
