"""The parts that metrics are made of: what two sets of rows have together follows from what each has.

A part is an attribute of a task: a sum, a mean, an extreme. A metric is a function of parts. For a batch, a part is
computed on the device, with one value for each request. For a run, which is a set of batches, each batch contributes
:class:`Amounts`, :class:`Extremes`, :class:`Scores` or :class:`Products`, numbers that are added up exactly; the task
is then built of the totals, without tensors. So an evaluation and a run have one definition of every metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from lossd.lazy_torch import Tensor
from lossd.metrics.entries import Entries
from lossd.metrics.registry import Array, Floats, Task

__all__ = [
    "Amounts",
    "Contribution",
    "Extreme",
    "Extremes",
    "Mean",
    "Moments",
    "Part",
    "Products",
    "Rankings",
    "RowMean",
    "Scores",
    "Size",
    "Sums",
    "Tally",
    "Total",
    "part_of",
    "products",
]

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Amounts:
    """Numbers to be added up.

    Attributes:
        values: (n, *shape); or (n,) if ``index`` says which sum each belongs to. Integers or float64.
        weight: The factor of each of the n, (n,) float64, > 0; None for 1.
        shape: The shape of the sums.
        index: The flat index of the sum of each value, (n,) int64.
    """

    values: Array
    weight: Floats | None
    shape: tuple[int, ...]
    index: Array | None = None


@dataclass(frozen=True, slots=True)
class Extremes:
    """Numbers of which the largest is kept: (K,) float64; -inf where there is none."""

    values: Floats


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores and the truth of n entries for each of several columns.

    Attributes:
        columns: Yields the scores (n,) float64, whether each is positive (n,) bool, and the weights (n,) or None.
        count: The number of columns.
        kinds: 2 for scores of positive and negative entries, 1 for numbers without a truth.
        weighted: Whether entries have weights.
    """

    columns: Callable[[], Iterator[tuple[Floats, Array | None, Floats | None]]]
    count: int
    kinds: int
    weighted: bool


@dataclass(frozen=True, slots=True)
class Products:
    """Numbers whose sums, and sums of products of two of them, are kept.

    Attributes:
        values: (n, K) float64.
        weight: (n,) float64, > 0; None for 1.
        pairs: The columns of which products are added up; a column with itself for its squares.
    """

    values: Floats
    weight: Floats | None
    pairs: tuple[tuple[int, int], ...]


Contribution = Amounts | Extremes | Scores | Products


class Total(Protocol):
    """What a run has added up of one contribution."""

    def numbers(self, exponent: int | None) -> Array:
        """Return the sums with a first axis of length 1; times two to minus the exponent if they are of weights."""
        ...

    def over(self, other: Any) -> Floats:
        """Return the correctly rounded quotients by other sums, with a first axis of length 1; 0 where that is 0."""
        ...


class Exact(Protocol):
    """The exact sums of a run's :class:`Products`, for the tasks that read them."""

    columns: int

    def means_scaled(self, exponent: int) -> Floats:
        """Return the means of the columns and of the products, with two to minus the exponent for each factor."""
        ...

    def product_scaled(self, first: int, second: int) -> tuple[Floats, Array]:
        """Return the sum of the products of two columns, (1,), and the exponent of four to go with it."""
        ...

    def centred_scaled(self, first: int, second: int) -> tuple[Floats, Array]:
        """Return the sum of the products of two columns' distances from their means, as :meth:`product_scaled`."""
        ...

    def variance(self, column: int) -> float:
        """Return the mean squared distance of a column's numbers from their mean."""
        ...

    def correlation(self) -> Floats:
        """Return the spread of the first two columns and their joint spread, (1, 3), each column in its own unit."""
        ...


class Part(cached_property[V]):
    """A part of a task: an attribute, computed once at first use.

    Its function returns the numbers of each row or entry of the batch. A compiled pass may have counted the part
    already, and a run has: both give it in ``view.counted`` under its name.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__(self._value)
        self.function = function
        self.__doc__ = function.__doc__

    def _value(self, task: Task) -> V:
        assert self.attrname is not None
        counted = task.view.counted.get(self.attrname)
        return self.reduced(task, self.function(task)) if counted is None else counted  # type: ignore[return-value]

    def reduced(self, task: Any, found: Any) -> V:
        """Return the part of each request, given what the function returned."""
        raise NotImplementedError

    divisible: ClassVar[bool] = True
    """Whether a task of several requests tells what each contributes."""

    def contributions(self, task: Any) -> list[dict[str, Contribution]]:
        """Return what each request adds to a run, by name; of one request if the part is not divisible."""
        raise NotImplementedError

    def of_totals(self, totals: Mapping[str, Any], exponent: int | None) -> V:
        """Return the part of a run.

        Args:
            totals: The run's total of each contribution.
            exponent: Sums of weights are to be divided by two to this; None if no sample is weighted.
        """
        raise NotImplementedError


class Sums(Part[Array]):
    """Sums over the rows: the function returns (R, ...); the part is (B, ...)."""

    def reduced(self, task: Any, found: Any) -> Array:
        """Return the sums of each request's rows."""
        sums: Array = task.entries.sums(found)
        return sums

    def contributions(self, task: Any) -> list[dict[str, Contribution]]:
        """Return the numbers to be added up; of integers without weights, the request's sum."""
        assert self.attrname is not None
        if task.view.sample_weight is None and (sums := getattr(task, self.attrname)).dtype.kind == "i":
            shape = sums.shape[1:]
            return [{"sum": Amounts(sums[request : request + 1], None, shape)} for request in range(len(sums))]
        return [{"sum": amounts} for amounts in self.amounts(task)]

    def amounts(self, task: Any) -> Iterator[Amounts]:
        """Yield the numbers of each request to be added up."""
        found = self.function(task).numpy(force=True)
        for rows, kept, weight in _requests(task.entries):
            yield Amounts(found[rows][kept], weight, tuple(found.shape[1:]))

    def of_totals(self, totals: Mapping[str, Total], exponent: int | None) -> Array:
        """Return the sums."""
        return totals["sum"].numbers(exponent)


class Tally(Sums):
    """Sums over the entries by a key: the function returns keys, (R, I), and the number of cells; values may follow.

    The part is (B, cells).
    """

    def reduced(self, task: Any, found: tuple[Any, ...]) -> Array:
        """Return how many entries of each request have each key, or the sums of their values."""
        tally: Array = task.entries.tally(*found)
        return tally

    def amounts(self, task: Any) -> Iterator[Amounts]:
        """Yield the entries of each request, with the sum that each belongs to."""
        tensor, cells, *values = self.function(task)
        key = tensor.numpy(force=True)
        own = values[0].numpy(force=True) if values else None
        all_kept, all_weights = _entries(task.entries, key.shape)
        for request in range(task.count):
            rows = task.entries.rows_of(request)
            kept = all_kept[rows]
            index = key[rows][kept]
            numbers = np.ones(len(index), np.int64) if own is None else own[rows][kept]
            yield Amounts(numbers, None if all_weights is None else all_weights[rows][kept], (cells,), index)


class Mean(Part[tuple[Floats, Array]]):
    """The mean over the entries: the function returns (R, I); the part is a numerator and a denominator, (B,) each."""

    def reduced(self, task: Any, found: Tensor) -> tuple[Floats, Array]:
        """Return the sum of each request's entries, and how many there are."""
        mean: tuple[Floats, Array] = task.entries.mean_of(found)
        return mean

    def contributions(self, task: Any) -> list[dict[str, Contribution]]:
        """Return the sums of the rows and the numbers of their entries."""
        found: Tensor = self.function(task)
        values, entries = found.double().numpy(force=True), task.entries
        counts = np.full(len(values), values.shape[1])
        if entries.ignored is not None:
            ignored = np.broadcast_to(entries.ignored.numpy(force=True), values.shape)
            values, counts = np.where(ignored, 0, values), (~ignored).sum(1)
        # NumPy sums each row by itself; torch sums a single long row in another order than several.
        sums = np.add.reduce(np.ascontiguousarray(values), axis=1)
        lost = np.isinf(sums)
        if lost.any():
            lost &= np.isfinite(values).all(1)
        answers: list[dict[str, Contribution]] = []
        for rows, kept, weight in _requests(entries):
            sizes = Amounts(counts[rows][kept], weight, ())
            own = Amounts(sums[rows][kept], weight, ())
            if lost[rows].any():
                own = _one_by_one(values[rows], sums[rows], lost[rows], kept, weight)
            answers.append({"sum": own, "size": sizes})
        return answers

    def of_totals(self, totals: Mapping[str, Any], exponent: int | None) -> tuple[Floats, Array]:
        """Return the correctly rounded mean, over 1; or 0 over 0."""
        total, size = totals["sum"], totals["size"]
        return total.over(size), (size.numbers(None) > 0).astype(float)


class RowMean(Part[tuple[Floats, Array]]):
    """Means over the rows that have a value: the function returns values and whether they are defined, (R, K) each.

    The part is the means and whether there is one, (B, K) each.
    """

    def reduced(self, task: Any, found: tuple[Floats, Array]) -> tuple[Floats, Array]:
        """Return the mean of each request's defined rows."""
        means: tuple[Floats, Array] = task.entries.row_means(*found)
        return means

    def contributions(self, task: Any) -> list[dict[str, Contribution]]:
        """Return the values and how many there are."""
        values, defined = self.function(task)
        defined = np.broadcast_to(defined, values.shape)
        known, sizes, shape = np.where(defined, values, 0.0), defined.astype(np.int64), tuple(values.shape[1:])
        return [
            {"sum": Amounts(known[rows][kept], weight, shape), "size": Amounts(sizes[rows][kept], weight, shape)}
            for rows, kept, weight in _requests(task.entries)
        ]

    def of_totals(self, totals: Mapping[str, Any], exponent: int | None) -> tuple[Floats, Array]:
        """Return the correctly rounded means, and whether there are any."""
        total, size = totals["sum"], totals["size"]
        return total.over(size), size.numbers(None) > 0


class Size(Sums):
    """How many entries count: the function returns the shape of the entries, (R, I); the part is (B,)."""

    def reduced(self, task: Any, found: Any) -> Array:
        """Return how many of each request's entries count, or their weight."""
        size: Array = task.entries.size(found)
        return size

    def amounts(self, task: Any) -> Iterator[Amounts]:
        """Yield how many entries of each row of a request count."""
        shape, entries = self.function(task), task.entries
        counts = np.full(shape[0], shape[1])
        if entries.ignored is not None:
            counts = np.broadcast_to(~entries.ignored.numpy(force=True), shape).sum(1)
        for rows, kept, weight in _requests(entries):
            yield Amounts(counts[rows][kept], weight, ())


class Extreme(Part[Floats]):
    """The largest of K numbers of the rows that count: the function returns (R,) each; the part is (B, K).

    -inf where no row counts.
    """

    def reduced(self, task: Any, found: tuple[Tensor, ...]) -> Floats:
        """Return the largest of each request's rows."""
        largest: Floats = task.entries.largest(*found)
        return largest

    def contributions(self, task: Any) -> list[dict[str, Contribution]]:
        """Return the largest of each request."""
        return [{"largest": Extremes(largest)} for largest in task.entries.largest(*self.function(task))]

    def of_totals(self, totals: Mapping[str, Total], exponent: int | None) -> Floats:
        """Return the largest of the run."""
        return totals["largest"].numbers(None)


class OfRuns(Part[V]):
    """A part that only runs have: the run's total. It is None of a batch, which computes its metrics another way.

    The function returns what a batch of one request contributes.
    """

    def _value(self, task: Task) -> V:
        assert self.attrname is not None
        return task.view.counted.get(self.attrname)  # type: ignore[return-value]

    divisible = False

    def contributions(self, task: Any) -> list[dict[str, Contribution]]:
        """Return what the function returned."""
        return [{self.key: self.function(task)}]

    def of_totals(self, totals: Mapping[str, Any], exponent: int | None) -> V:
        """Return the total."""
        total: V = totals[self.key]
        return total

    key: ClassVar[str]
    """The name of the contribution."""


class Rankings(OfRuns[Any]):
    """The scores of each column, in a run's tables; a batch sorts them when they are asked for. Of :class:`Scores`."""

    key = "scores"


class Moments(OfRuns["Exact | None"]):
    """Exact sums of numbers and of their products; a batch subtracts the mean first. Of :class:`Products`."""

    key = "products"


def _rows(entries: Entries) -> tuple[Any, Floats | None]:
    """Return which rows have a weight above 0, and their weights as they were sent; None for 1."""
    if entries.view.sample_weight is None:
        return slice(None), None
    weight = entries.view.sample_weight.numpy(force=True)
    kept = weight > 0
    return kept, weight[kept]


def _requests(entries: Entries) -> Iterator[tuple[slice, Any, Floats | None]]:
    """Yield the rows of each request, which of them have a weight above 0, and the weights of those; None for 1."""
    sent = entries.view.sample_weight
    weights = None if sent is None else sent.numpy(force=True)
    for request in range(entries.segments.count):
        rows = entries.rows_of(request)
        if weights is None:
            yield rows, slice(None), None
        else:
            kept = weights[rows] > 0
            yield rows, kept, weights[rows][kept]


def _one_by_one(values: Floats, sums: Floats, lost: Array, kept: Any, weight: Floats | None) -> Amounts:
    """Return the sums of rows, and the entries of each row whose sum overflows; arguments are of one request."""
    alone = np.flatnonzero(lost)
    rest = np.setdiff1d(np.arange(len(values))[kept], alone)
    weights = np.ones(len(values))
    if weight is not None:
        weights[:] = 0
        weights[kept] = weight
    numbers = np.concatenate([sums[rest], values[alone].ravel()])
    spread = np.concatenate([weights[rest], np.repeat(weights[alone], values.shape[1])])
    return Amounts(numbers[spread > 0], None if weight is None else spread[spread > 0], ())


def _entries(entries: Entries, shape: Any) -> tuple[Array, Floats | None]:
    """Return which entries count, (R, I) bool, and the weights of all as they were sent, (R, I)."""
    kept = np.ones(shape, bool)
    if entries.ignored is not None:
        kept &= ~entries.ignored.numpy(force=True)
    if entries.view.sample_weight is None:
        return kept, None
    weight = entries.view.sample_weight.numpy(force=True)[:, None]
    return kept, np.broadcast_to(weight, shape)


def products(entries: Entries, values: Floats, pairs: tuple[tuple[int, int], ...]) -> Products:
    """Return the columns of the rows that count, (R, K), as :class:`Products`."""
    kept, weight = _rows(entries)
    return Products(values[kept], weight, pairs)


def part_of(cls: type[Task], name: str) -> Part[Any]:
    """Return a task's part."""
    found = getattr(cls, name)
    assert isinstance(found, Part), f"{cls.__name__}.{name} is no part"
    return found
