"""The parts that metrics are made of: what two sets of rows have together follows from what each has.

A part is an attribute of a task: a sum, a mean, an extreme. A metric is a function of parts. For a batch, a part is
computed on the device, with one value for each request. For a run, which is a set of batches, each batch contributes
numbers that are added up exactly (:mod:`lossd.metrics.contributions`); the task is then built of the totals, without
tensors. So an evaluation and a run have one definition of every metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np

from lossd.lazy_torch import Tensor
from lossd.metrics.contributions import (
    Amounts,
    Contribution,
    CountedRows,
    Exact,
    Extremes,
    Tallied,
    Total,
    one_by_one,
)
from lossd.metrics.entries import Entries
from lossd.metrics.registry import Array, Floats, Task

__all__ = ["Extreme", "Mean", "Moments", "Part", "Rankings", "RowMean", "Size", "Sums", "Tally", "part_of"]

V = TypeVar("V")


class Part(cached_property[V]):
    """A part of a task: an attribute, computed once at first use.

    Its function returns the numbers of each row or entry of the batch. A compiled pass may have counted the part
    already, and a run has: both give it in ``view.counted`` under its name. A task may have a kernel that counts it.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__(self._value)
        self.function = function
        self.__doc__ = function.__doc__

    def _value(self, task: Task) -> V:
        assert self.attrname is not None
        counted = task.view.counted.get(self.attrname)
        if counted is None:
            counted = task.by_kernel(self.attrname)
        return self.reduced(task, self.function(task)) if counted is None else counted  # type: ignore[return-value]

    def reduced(self, task: Any, found: Any) -> V:
        """Return the part of each request, given what the function returned."""
        raise NotImplementedError

    def contributions(self, task: Any) -> dict[str, Contribution]:
        """Return what the rows of all requests add to runs, by name, each with its combination."""
        raise NotImplementedError

    def of_totals(self, totals: Mapping[str, Any], exponent: int | None) -> V:
        """Return the part of a run.

        Args:
            totals: The total of each contribution, read for B sets of rows.
            exponent: Sums of weights are to be divided by two to this; None if no sample is weighted.
        """
        raise NotImplementedError


class Sums(Part[Array]):
    """Sums over the rows: the function returns (R, ...), of the entries that count; the part is (B, ...)."""

    def reduced(self, task: Any, found: Any) -> Array:
        """Return the sums of each request's rows."""
        sums: Array = task.entries.sums(found)
        return sums

    def contributions(self, task: Any) -> dict[str, Contribution]:
        """Return the numbers to be added up; of integers without weights, the sums of each combination."""
        found: Tensor = self.function(task)
        shape = tuple(found.shape[1:])
        if task.view.sample_weight is None and not found.is_floating_point():
            return {"sum": Amounts(task.view.placed.sums(found), None, shape, None)}
        rows = CountedRows(task.entries)
        return {"sum": Amounts(found.numpy(force=True)[rows.kept], rows.weight, shape, rows.place)}

    def of_totals(self, totals: Mapping[str, Total], exponent: int | None) -> Array:
        """Return the sums."""
        return totals["sum"].numbers(exponent)


class Tally(Sums):
    """Sums over the entries by a key: the function returns keys, (R, I), and the number of cells; values may follow.

    The part is (B, cells). Keys of all classes are (R, C·I).
    """

    def reduced(self, task: Any, found: tuple[Any, ...]) -> Array:
        """Return how many entries of each request have each key, or the sums of their values."""
        tally: Array = task.entries.repeated(found[0].shape[1]).tally(*found)
        return tally

    def contributions(self, task: Any) -> dict[str, Contribution]:
        """Return the entries, each with its sum; without weights and values, how many each combination has."""
        tensor, cells, *values = self.function(task)
        entries: Entries = task.entries.repeated(tensor.shape[1])
        if not values and task.view.sample_weight is None:
            found, times = task.view.placed.tally(tensor, cells, entries.ignored)
            return {"sum": Tallied(found, times, (cells,))}
        key = tensor.numpy(force=True)
        kept = np.ones(key.shape, bool) if entries.ignored is None else ~entries.ignored.numpy(force=True)
        kept = np.broadcast_to(kept, key.shape)
        weight = task.view.sample_weight
        numbers = values[0].numpy(force=True)[kept] if values else np.ones(np.count_nonzero(kept), np.int64)
        spread = None if weight is None else np.broadcast_to(weight.numpy(force=True)[:, None], key.shape)[kept]
        place = np.broadcast_to(task.view.placed.index[:, None], key.shape)[kept]
        return {"sum": Amounts(numbers, spread, (cells,), place, key[kept])}


class Mean(Part[tuple[Floats, Array]]):
    """The mean over the entries: the function returns (R, I); the part is a numerator and a denominator, (B,) each."""

    def reduced(self, task: Any, found: Tensor) -> tuple[Floats, Array]:
        """Return the sum of each request's entries, and how many there are."""
        mean: tuple[Floats, Array] = task.entries.mean_of(found)
        return mean

    def contributions(self, task: Any) -> dict[str, Contribution]:
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
        rows = CountedRows(entries)
        amounts = Amounts(sums[rows.kept], rows.weight, (), rows.place)
        if lost.any():
            amounts = one_by_one(values, sums, lost, task.view.placed.index, task.view.sample_weight)
        return {"sum": amounts, "size": Amounts(counts[rows.kept], rows.weight, (), rows.place)}

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

    def contributions(self, task: Any) -> dict[str, Contribution]:
        """Return the values and how many there are."""
        values, defined = self.function(task)
        defined = np.broadcast_to(defined, values.shape)
        shape, rows = tuple(values.shape[1:]), CountedRows(task.entries)
        known, sizes = np.where(defined, values, 0.0)[rows.kept], defined.astype(np.int64)[rows.kept]
        return {
            "sum": Amounts(known, rows.weight, shape, rows.place),
            "size": Amounts(sizes, rows.weight, shape, rows.place),
        }

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

    def contributions(self, task: Any) -> dict[str, Contribution]:
        """Return how many entries of each row count."""
        shape, entries = self.function(task), task.entries
        counts = np.full(shape[0], shape[1])
        if entries.ignored is not None:
            counts = np.broadcast_to(~entries.ignored.numpy(force=True), shape).sum(1)
        rows = CountedRows(entries)
        return {"sum": Amounts(counts[rows.kept], rows.weight, (), rows.place)}


class Extreme(Part[Floats]):
    """The largest of K numbers of the rows that count: the function returns (R,) each; the part is (B, K).

    The function's numbers are those of the entries that count, -inf for none. The part is -inf where no row counts.
    """

    def reduced(self, task: Any, found: tuple[Tensor, ...]) -> Floats:
        """Return the largest of each request's rows."""
        largest: Floats = task.entries.largest(*found)
        return largest

    def contributions(self, task: Any) -> dict[str, Contribution]:
        """Return the numbers of the rows that count."""
        rows = CountedRows(task.entries)
        columns = [column.numpy(force=True)[rows.kept] for column in self.function(task)]
        return {"largest": Extremes(columns, rows.place)}

    def of_totals(self, totals: Mapping[str, Total], exponent: int | None) -> Floats:
        """Return the largest of the run."""
        return totals["largest"].numbers(None)


class OfRuns(Part[V]):
    """A part that only runs have: the run's total. It is None of a batch, which computes its metrics another way.

    The function returns what the rows of all requests contribute.
    """

    def _value(self, task: Task) -> V:
        assert self.attrname is not None
        return task.view.counted.get(self.attrname)  # type: ignore[return-value]

    def contributions(self, task: Any) -> dict[str, Contribution]:
        """Return what the function returned."""
        return {self.key: self.function(task)}

    def of_totals(self, totals: Mapping[str, Any], exponent: int | None) -> V:
        """Return the run's total as it is."""
        total: V = totals[self.key]
        return total

    key: ClassVar[str]
    """The name of the contribution."""


class Rankings(OfRuns[Any]):
    """The scores of each column, in a run's tables; a batch sorts them when they are asked for. Of :class:`Scores`."""

    key = "scores"


class Moments(OfRuns[Exact | None]):
    """Exact sums of numbers and of their products; a batch subtracts the mean first. Of :class:`Products`."""

    key = "products"


def part_of(cls: type[Task], name: str) -> Part[Any]:
    """Return a task's part."""
    found = getattr(cls, name)
    assert isinstance(found, Part), f"{cls.__name__}.{name} is no part"
    return found
