"""What a run has added up: one total for each contribution of its parts.

Totals are merged in any order and by any tree, and hold the same bytes then. They are read once, at the end, and
rounded once.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, ClassVar, Protocol, cast

import numpy as np

from lossd.metrics.parts import Amounts, Contribution, Extremes, Products, Scores
from lossd.metrics.ranking import Steps
from lossd.metrics.registry import Array, Floats
from lossd.runs.exact import ExactSums, root, rounded, second_moment
from lossd.runs.table import Table

__all__ = ["RunTotal", "decode", "empty", "new", "shape_of"]

LENGTH = struct.Struct("<Q")

FEW_COLUMNS, MANY_ROWS = 8, 1 << 11
"""Up to so many columns of so many rows are added one by one, which takes half as long."""


class RunTotal(Protocol):
    """One total of a run."""

    kind: ClassVar[str]
    shape: list[int]
    """The numbers from which an empty total of this kind is made."""

    def add(self, contribution: Any) -> None:
        """Add what a batch contributes."""

    def merge(self, other: Any) -> None:
        """Add the total of other batches."""

    def encode(self) -> bytes:
        """Return the same bytes for the same content."""
        ...


class SumTotal:
    """Sums: of integers as integers, of all other numbers, and of weighted ones, exactly.

    Args:
        shape: The shape of the sums.
    """

    kind: ClassVar[str] = "sums"

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = list(shape)
        self.count = math.prod(shape)
        self.whole: Array | None = None
        self.exact: ExactSums | None = None

    def add(self, contribution: Amounts) -> None:
        """Add numbers to the sums."""
        values, weight, index = contribution.values, contribution.weight, contribution.index
        if weight is None and values.dtype.kind in "bi":
            sums = values.reshape(-1, self.count).sum(0) if index is None else np.bincount(index, values, self.count)
            self.whole = sums.astype(np.int64) + (0 if self.whole is None else self.whole)
            return
        if self.exact is None:
            self.exact = ExactSums(self.count)
        if index is not None:
            self._add(values, weight, index)
            return
        values = values.reshape(len(values), self.count)
        if self.count <= FEW_COLUMNS and len(values) >= MANY_ROWS:
            for k, column in enumerate(values.T):
                self._add(column, weight, k)
            return
        spread = None if weight is None else np.broadcast_to(weight[:, None], values.shape)
        self._add(values, spread, np.broadcast_to(np.arange(self.count), values.shape))

    def _add(self, values: Array, weight: Floats | None, index: Array | int) -> None:
        assert self.exact is not None
        if weight is None:
            self.exact.add(values, index)
        elif values.dtype.kind in "bi" and values.size and 0 <= values.min() <= values.max() <= 1:
            self.exact.add(values * weight, index)  # no product is rounded
        else:
            self.exact.add_products(values, weight, index=index)

    def merge(self, other: SumTotal) -> None:
        """Add the sums of other batches."""
        if other.whole is not None:
            self.whole = other.whole + (0 if self.whole is None else self.whole)
        if other.exact is not None:
            self.exact = self.exact or ExactSums(self.count)
            self.exact.merge(other.exact)

    def all_exact(self) -> ExactSums:
        """Return integers and other numbers together."""
        sums = ExactSums(self.count) if self.exact is None else self.exact.copy()
        if self.whole is not None:
            index = np.arange(self.count)
            for part in (self.whole >> 32 << 32, self.whole & 0xFFFF_FFFF):  # each is exact in float64
                sums.add(part.astype(float), index)
        return sums

    def numbers(self, exponent: int | None) -> Array:
        """Return the sums, (1, *shape): int64, or float64 times two to minus the exponent."""
        if self.exact is None:
            whole = np.zeros(self.count, np.int64) if self.whole is None else self.whole
            return whole.reshape(1, *self.shape)
        sums = self.all_exact()
        values = sums.sums()
        if exponent is not None:
            values = np.ldexp(values, -exponent)
            for k in np.flatnonzero(np.isinf(values) & ~sums.non_finite.any(1)).tolist():
                values[k] = rounded(sums.fraction(k) / Fraction(2) ** exponent)
        return values.reshape(1, *self.shape)

    def over(self, other: SumTotal) -> Floats:
        """Return the correctly rounded quotients by other sums, (1, *shape); 0 where those are 0."""
        by = [int(n) for n in other.numbers(None).ravel()] if other.exact is None else other.all_exact()
        quotients = np.nan_to_num(self.all_exact().means(by), nan=np.nan, posinf=np.inf, neginf=-np.inf)
        zero = other.numbers(None).ravel() == 0
        return np.where(zero, 0, quotients).reshape(1, *self.shape)

    def encode(self) -> bytes:
        """Return the integers, then the exact sums, each after its length."""
        whole = b"" if self.whole is None else self.whole.astype("<i8").tobytes()
        exact = b"" if self.exact is None else self.exact.encode()
        return LENGTH.pack(len(whole)) + whole + exact

    @classmethod
    def decode(cls, data: bytes, shape: list[int]) -> SumTotal:
        """Return what :meth:`encode` wrote.

        Raises:
            ValueError: The bytes are not what it writes.
        """
        total = cls(shape)
        length = LENGTH.unpack_from(data)[0] if len(data) >= LENGTH.size else -1
        whole, exact = data[LENGTH.size : LENGTH.size + length], data[LENGTH.size + length :]
        if length not in (0, 8 * total.count) or len(whole) != length:
            raise ValueError("sums of another length than their shape")
        if length:
            total.whole = np.frombuffer(whole, "<i8").astype(np.int64)
        if exact:
            total.exact = ExactSums.decode(exact, count=total.count)
        return total


class LargestTotal:
    """The largest of numbers; NaN if one is.

    Args:
        shape: How many numbers there are.
    """

    kind: ClassVar[str] = "largest"

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = list(shape)
        self.values = np.full(self.shape, -np.inf)

    def add(self, contribution: Extremes) -> None:
        """Compare numbers with the largest."""
        self.values = np.maximum(self.values, contribution.values)

    def merge(self, other: LargestTotal) -> None:
        """Compare the largest of other batches."""
        self.values = np.maximum(self.values, other.values)

    def numbers(self, exponent: int | None) -> Floats:
        """Return the largest numbers, (1, K)."""
        return self.values[None]

    def encode(self) -> bytes:
        """Return float64 numbers, with one NaN and one zero."""
        return np.where(np.isnan(self.values), np.nan, self.values + 0.0).astype("<f8").tobytes()

    @classmethod
    def decode(cls, data: bytes, shape: list[int]) -> LargestTotal:
        """Return what :meth:`encode` wrote.

        Raises:
            ValueError: The bytes are not what it writes.
        """
        if len(shape) != 1 or len(data) != 8 * shape[0]:
            raise ValueError("extremes of another length than their shape")
        total = cls(shape)
        total.values = np.frombuffer(data, "<f8").astype(float)
        return total


class TableTotal:
    """A table of scores for each column.

    Args:
        shape: The number of columns; 2 kinds for positive and negative entries, 1 for numbers alone; whether entries
            are weighted, 0 or 1; and the most rows of all tables together.
    """

    kind: ClassVar[str] = "tables"

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = list(shape)
        columns, kinds, weighted, self.limit = shape
        limit = max(2, self.limit // columns)
        self.tables = [Table(kinds, weighted=bool(weighted), limit=limit) for _ in range(columns)]

    def add(self, contribution: Scores) -> None:
        """Add the scores of a batch to the tables."""
        for table, (values, positive, weight) in zip(self.tables, contribution.columns(), strict=True):
            table.add(values, positive, weight)

    def merge(self, other: TableTotal) -> None:
        """Add the tables of other batches."""
        for table, from_table in zip(self.tables, other.tables, strict=True):
            table.merge(from_table)

    def steps(self, column: int | None) -> Steps:
        """Return the steps of one column's scores; of all columns together for None."""
        table = Table.pooled(self.tables, limit=self.limit) if column is None else self.tables[column]
        return table.steps()

    def bounded(self, name: str) -> tuple[float, int]:
        """Return how far an area may be from the true one, the farthest of all columns, and the fewest bits of a score.

        Args:
            name: auroc or average_precision.
        """
        tables = [*self.tables, *([Table.pooled(self.tables, limit=self.limit)] if len(self.tables) > 1 else [])]
        areas = [area for table in tables if (area := getattr(table, name)()) is not None]
        return max((area.within for area in areas), default=0.0), min(table.bits for table in tables)

    def quantiles(self, levels: list[float]) -> tuple[Floats, Floats] | None:
        """Return the lowest and the highest that each quantile can be; None without numbers."""
        return self.tables[0].quantiles(levels)

    def encode(self) -> bytes:
        """Return each table after its length."""
        encoded = [table.encode() for table in self.tables]
        return b"".join(LENGTH.pack(len(data)) + data for data in encoded)

    @classmethod
    def decode(cls, data: bytes, shape: list[int]) -> TableTotal:
        """Return what :meth:`encode` wrote.

        Raises:
            ValueError: The bytes are not what it writes.
        """
        if len(shape) != 4 or not 1 <= shape[0] <= len(data) or shape[1] not in (1, 2) or shape[2] not in (0, 1):
            raise ValueError("tables of an impossible shape")
        total = cls(shape)
        parts = list(_parts(data))
        total.tables = [Table.decode(part, like=like) for part, like in zip(parts, total.tables, strict=True)]
        return total


class ProductTotal:
    """Sums of numbers and of their products, in one or several columns.

    Args:
        shape: The number of columns, then the pairs of columns of which products are added up, two numbers each.
    """

    kind: ClassVar[str] = "products"

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = list(shape)
        self.columns, *flat = shape
        self.pairs = list(zip(flat[::2], flat[1::2], strict=True))
        self.rows = 0
        self.sums = ExactSums(1 + self.columns + len(self.pairs))  # the weights come first

    def add(self, contribution: Products) -> None:
        """Add the numbers of a batch."""
        columns, weight = list(np.ascontiguousarray(contribution.values.T)), contribution.weight
        if weight is None:
            self.rows += len(contribution.values)
        else:
            self.sums.add(weight, 0)
        for column, values in enumerate(columns):
            if weight is None:
                self.sums.add(values, 1 + column)
            else:
                self.sums.add_products(values, weight, index=1 + column)
        for number, (first, second) in enumerate(self.pairs):
            factors = [columns[first], columns[second], *([] if weight is None else [weight])]
            self.sums.add_products(*factors, index=1 + self.columns + number)

    def merge(self, other: ProductTotal) -> None:
        """Add the sums of other batches."""
        self.rows += other.rows
        self.sums.merge(other.sums)

    def _size(self) -> Fraction:
        return self.rows + self.sums.fraction(0)

    def _sum(self, column: int) -> Fraction | float:
        return self._finite(1 + column)

    def _product(self, first: int, second: int) -> Fraction | float:
        return self._finite(1 + self.columns + self.pairs.index((first, second)))

    def _finite(self, k: int) -> Fraction | float:
        return float(self.sums.sums()[k]) if self.sums.non_finite[k].any() else self.sums.fraction(k)

    def _centred(self, first: int, second: int) -> Fraction | float:
        """Return the sum of the products of two columns' distances from their means; NaN if a number is not finite."""
        size, product = self._size(), self._product(first, second)
        one, other = self._sum(first), self._sum(second)
        if size == 0 or isinstance(product, float) or isinstance(one, float) or isinstance(other, float):
            return math.nan if size else 0.0
        return second_moment(size, (one, other), product)

    def means_scaled(self, exponent: int) -> Floats:
        """Return the means of the columns and of the products, with two to minus the exponent for each factor."""
        size = self._size()
        found = [(self._sum(column), 1) for column in range(self.columns)]
        found += [(self._product(*pair), 2) for pair in self.pairs]
        return np.array([_scaled(value / size if size else 0.0, -exponent * factors) for value, factors in found])

    def product_scaled(self, first: int, second: int) -> tuple[Floats, Array]:
        """Return the sum of the products of two columns, (1,), and the exponent of four to go with it."""
        return _with_exponent(self._product(first, second))

    def centred_scaled(self, first: int, second: int) -> tuple[Floats, Array]:
        """Return the sum of the products of two columns' distances from their means, as :meth:`product_scaled`."""
        return _with_exponent(self._centred(first, second))

    def variance(self, column: int) -> float:
        """Return the mean squared distance of a column's numbers from their mean."""
        size = self._size()
        return _scaled(self._centred(column, column) / size if size else 0.0, 0)

    def correlation(self) -> Floats:
        """Return the spread of the first two columns and their joint spread, (1, 3), in units that make those 1."""
        first, second, both = self._centred(0, 0), self._centred(1, 1), self._centred(0, 1)
        if isinstance(first, float) or isinstance(second, float) or isinstance(both, float):
            return np.full((1, 3), math.nan)
        size = root(both * both / (first * second)) if first and second else 0.0
        return np.array([[1.0, 1.0, -size if both < 0 else size]])

    def encode(self) -> bytes:
        """Return the number of rows, then the sums."""
        return LENGTH.pack(self.rows) + self.sums.encode()

    @classmethod
    def decode(cls, data: bytes, shape: list[int]) -> ProductTotal:
        """Return what :meth:`encode` wrote.

        Raises:
            ValueError: The bytes are not what it writes.
        """
        columns, *flat = shape
        if len(data) < LENGTH.size or len(flat) % 2 or not all(0 <= column < columns for column in flat):
            raise ValueError("products of an impossible shape")
        total = cls(shape)
        total.rows = LENGTH.unpack_from(data)[0]
        total.sums = ExactSums.decode(data[LENGTH.size :], count=total.sums.count)
        return total


def _scaled(value: Fraction | float, exponent: int) -> float:
    """Return a number times two to the exponent, rounded once."""
    return rounded(value * Fraction(2) ** exponent) if isinstance(value, Fraction) else value


def _with_exponent(value: Fraction | float) -> tuple[Floats, Array]:
    """Return a number between 1/8 and 2 in size, (1,), and the exponent of four that it is to be taken times, (1,)."""
    if not isinstance(value, Fraction) or value == 0:
        return np.array([float(value)]), np.zeros(1, int)
    exponent = (abs(value.numerator).bit_length() - value.denominator.bit_length()) // 2
    return np.array([_scaled(value, -2 * exponent)]), np.array([exponent])


def _parts(data: bytes) -> Iterator[bytes]:
    """Yield the parts of bytes that each follow their length.

    Raises:
        ValueError: The bytes end within a part.
    """
    at = 0
    while at < len(data):
        if at + LENGTH.size > len(data):
            raise ValueError("the bytes end within a length")
        length = LENGTH.unpack_from(data, at)[0]
        at += LENGTH.size
        if at + length > len(data):
            raise ValueError("the bytes end within a part")
        yield data[at : at + length]
        at += length


KINDS: dict[str, Any] = {cls.kind: cls for cls in (SumTotal, LargestTotal, TableTotal, ProductTotal)}
BY_CONTRIBUTION: dict[type, Any] = {
    Amounts: SumTotal,
    Extremes: LargestTotal,
    Scores: TableTotal,
    Products: ProductTotal,
}


def shape_of(contribution: Contribution, limit: int) -> list[int]:
    """Return the shape of the total of such contributions.

    Args:
        contribution: What is to be added.
        limit: The most rows of the tables of one part.
    """
    match contribution:
        case Amounts():
            return list(contribution.shape)
        case Extremes():
            return [len(contribution.values)]
        case Scores():
            return [contribution.count, contribution.kinds, int(contribution.weighted), limit]
        case Products():
            columns = (column for pair in contribution.pairs for column in pair)
            return [contribution.values.shape[1], *columns]


def new(contribution: Contribution, limit: int) -> RunTotal:
    """Return an empty total for such contributions; arguments are those of :func:`shape_of`."""
    return cast("RunTotal", BY_CONTRIBUTION[type(contribution)](shape_of(contribution, limit)))


def empty(total: RunTotal) -> RunTotal:
    """Return an empty total of the same kind and shape."""
    return cast("RunTotal", KINDS[total.kind](total.shape))


def decode(kind: str, shape: list[int], data: bytes) -> RunTotal:
    """Return the total that :meth:`RunTotal.encode` wrote.

    Raises:
        ValueError: The bytes are not what it writes.
    """
    if kind not in KINDS:
        raise ValueError("a total of an unknown kind")
    return cast("RunTotal", KINDS[kind].decode(data, shape))
