"""What a batch contributes to a run: numbers that are added up exactly, and the totals as tasks read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lossd.lazy_torch import Tensor
from lossd.metrics.entries import Entries
from lossd.metrics.registry import Array, Floats

__all__ = [
    "Amounts",
    "Contribution",
    "CountedRows",
    "Exact",
    "Extremes",
    "Products",
    "Scores",
    "Tallied",
    "Total",
    "one_by_one",
    "products",
]


@dataclass(frozen=True, slots=True)
class Amounts:
    """Numbers to be added up.

    Attributes:
        values: (n, *shape); or (n,) if ``index`` says which sum each belongs to. Integers or float64.
        weight: The factor of each of the n, (n,) float64, > 0; None for 1.
        shape: The shape of the sums.
        place: The combination of each of the n, (n,) int64; None if there is one for each combination, in order.
        index: The flat index of the sum of each value, (n,) int64.
    """

    values: Array
    weight: Floats | None
    shape: tuple[int, ...]
    place: Array | None
    index: Array | None = None


@dataclass(frozen=True, slots=True)
class Tallied:
    """Counts of entries that are added up, without those of 0.

    Attributes:
        key: The combination times the number of counts of each, plus the place of the count: (m,) int64, rising.
        times: The counts, (m,) int64.
        shape: The shape of the counts of a combination.
    """

    key: Array
    times: Array
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Extremes:
    """Numbers of which the largest is kept.

    Attributes:
        columns: K columns, (n,) floats each.
        place: The combination of each of the n, (n,) int64.
    """

    columns: Sequence[Array]
    place: Array


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores and the truth of n entries for each of several columns.

    Attributes:
        columns: Yields the scores (n,) float64, whether each is positive (n,) bool or None, the weights (n,) or None,
            and the combination of each (n,), whose requests rise.
        count: The number of columns.
        kinds: 2 for scores of positive and negative entries, 1 for numbers without a truth.
        weighted: Whether entries have weights.
    """

    columns: Callable[[], Iterator[tuple[Floats, Array | None, Floats | None, Array]]]
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
        place: The combination of each of the n, (n,) int64.
    """

    values: Floats
    weight: Floats | None
    pairs: tuple[tuple[int, int], ...]
    place: Array


Contribution = Amounts | Tallied | Extremes | Scores | Products


class Total(Protocol):
    """The sums of a run's :class:`Amounts`, as tasks read them: B sets of rows."""

    def numbers(self, exponent: int | None) -> Array:
        """Return the sums, (B, *shape); times two to minus the exponent if they are of weights."""
        ...

    def over(self, other: Any) -> Floats:
        """Return the correctly rounded quotients by other sums, (B, *shape); 0 where that is 0."""
        ...


class Exact(Protocol):
    """The exact sums of a run's :class:`Products`, as tasks read them: B sets of rows."""

    columns: int

    def means_scaled(self, exponents: Array) -> Floats:
        """Return the means of the columns and of the products, (B, K), times two to minus the exponent for each factor.

        Args:
            exponents: (B,) integers.
        """
        ...

    def product_scaled(self, first: int, second: int) -> tuple[Floats, Array]:
        """Return the sums of the products of two columns, (B,), and the exponents of four to go with them."""
        ...

    def centred_scaled(self, first: int, second: int) -> tuple[Floats, Array]:
        """Return the sums of the products of two columns' distances from their means, as :meth:`product_scaled`."""
        ...

    def variances(self) -> Floats:
        """Return the mean squared distance of each column's numbers from their mean, (B, columns)."""
        ...

    def correlation(self) -> Floats:
        """Return the spread of the first two columns and their joint spread, (B, 3), each column in its own unit."""
        ...


class CountedRows:
    """The rows of a batch with a weight above 0.

    Attributes:
        kept: Which rows these are, a slice or (R,) bool.
        weight: Their weights as they were sent; None for 1.
        place: Their combinations.
    """

    def __init__(self, entries: Entries) -> None:
        index, sent = entries.view.placed.index, entries.view.sample_weight
        self.kept: Any = slice(None)
        self.weight: Floats | None = None
        if sent is not None:
            weight = sent.numpy(force=True)
            self.kept = weight > 0
            self.weight = weight[self.kept]
        self.place: Array = index[self.kept]


def one_by_one(values: Floats, sums: Floats, lost: Array, place: Array, sent: Tensor | None) -> Amounts:
    """Return the sums of rows, and the entries of each row whose sum overflows.

    Args:
        values: The entries, (R, I).
        sums: The rows' sums, (R,).
        lost: Which of them overflow, (R,) bool.
        place: The combination of each row, (R,).
        sent: The rows' weights, (R,), or None.
    """
    weights = np.ones(len(values)) if sent is None else sent.numpy(force=True)
    rest, entries = np.flatnonzero(~lost), values.shape[1]
    spread = np.concatenate([rest, np.repeat(np.flatnonzero(lost), entries)])
    numbers = np.concatenate([sums[rest], values[lost].ravel()])
    kept = weights[spread] > 0
    spread = spread[kept]
    return Amounts(numbers[kept], None if sent is None else weights[spread], (), place[spread])


def products(entries: Entries, *columns: Floats, pairs: tuple[tuple[int, int], ...]) -> Products:
    """Return the elements of columns, (R, I) each, that count."""
    rows, length = CountedRows(entries), columns[0].shape[1]
    values = np.stack([column[rows.kept].ravel() for column in columns], 1)
    weight = None if rows.weight is None else np.repeat(rows.weight, length)
    place = rows.place if length == 1 else np.repeat(rows.place, length)
    if (masked := entries.view.ignored) is not None:
        counts = ~np.broadcast_to(masked.numpy(force=True), columns[0].shape)[rows.kept].ravel()
        values, weight, place = values[counts], None if weight is None else weight[counts], place[counts]
    return Products(values, weight, pairs, place)
