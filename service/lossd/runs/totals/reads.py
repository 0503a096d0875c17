"""What metrics read of a run's totals: numbers of B sets of rows, rounded once.

The first set has all rows of a stratum. Each further one has all rows but those of one group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

from lossd.exact.group_table import GroupTable
from lossd.exact.rationals import root, rounded, second_moment
from lossd.exact.steps import Area, Steps, areas_without
from lossd.exact.sums import ExactSums
from lossd.exact.table import Table
from lossd.metrics.registry import Array, Floats

__all__ = ["LargestRead", "ProductsRead", "SumsRead", "TablesRead"]


class SumsRead:
    """Sums, of the given shape for each set.

    Args:
        shape: The shape of the sums of one set.
        whole: The sums of integers, (B, cells); None for none.
        exact: The sums of other numbers, B times as many as cells; None for none.
    """

    def __init__(self, shape: Sequence[int], whole: Array | None, exact: ExactSums | None) -> None:
        cells = math.prod(shape)
        self.sets = exact.count // cells if whole is None and exact is not None else 1 if whole is None else len(whole)
        self.shape = (self.sets, *shape)
        self.whole = np.zeros((self.sets, cells), np.int64) if whole is None else whole
        self.exact = exact

    def numbers(self, exponent: int | None) -> Array:
        """Return the sums, (B, *shape): int64, or float64 times two to minus the exponent."""
        if self.exact is None:
            return self.whole.reshape(self.shape)
        sums = self._together()
        values = sums.sums()
        if exponent is not None:
            values = np.ldexp(values, -exponent)
            for k in np.flatnonzero(np.isinf(values) & ~sums.non_finite.any(1)).tolist():
                values[k] = rounded(sums.fraction(k) / Fraction(2) ** exponent)
        return values.reshape(self.shape)

    def over(self, other: SumsRead) -> Floats:
        """Return the correctly rounded quotients by other sums, (B, *shape); 0 where those are 0."""
        by = other.whole.ravel() if other.exact is None else other._together()
        quotients = np.nan_to_num(self._together().means(by), nan=np.nan, posinf=np.inf, neginf=-np.inf)
        zero = other.numbers(None).ravel() == 0
        return np.where(zero, 0, quotients).reshape(self.shape)

    def _together(self) -> ExactSums:
        """Return integers and other numbers together."""
        if self.exact is not None and not self.whole.any():
            return self.exact
        sums = ExactSums(self.whole.size) if self.exact is None else self.exact.copy()
        index, whole = np.arange(self.whole.size), self.whole.ravel()
        for part in (whole >> 32 << 32, whole & 0xFFFF_FFFF):  # each is exact in float64
            sums.add(part.astype(float), index)
        return sums


class LargestRead:
    """The largest numbers of a stratum, (B, K), which are those of all rows in every set: a maximum takes none away."""

    def __init__(self, values: Floats) -> None:
        self.values = values

    def numbers(self, exponent: int | None) -> Floats:
        """Return the largest numbers, (B, K)."""
        return self.values


class ScoreTables(Protocol):
    """The tables of one column of scores."""

    def table(self, left_out: int | None) -> Table:
        """Return the table of all rows, or of all but one group's."""
        ...

    def by_group(self) -> GroupTable:
        """Return the table by group."""
        ...


class TablesRead:
    """Tables of scores, each made when it is first read.

    Args:
        columns: The tables of each column.
        groups: The number of groups of which one is left out.
        limit: The most rows of a table of all columns together.
    """

    def __init__(self, columns: Sequence[ScoreTables], groups: int, limit: int) -> None:
        self.columns = columns
        self.groups = groups
        self.limit = limit
        self._tables: dict[tuple[int, int | None], Table] = {}

    def share(self, other: TablesRead) -> None:
        """Use the tables of all rows that others, of the same stratum, have made or will make."""
        self._tables = other._tables

    def table(self, position: int, column: int | None) -> Table:
        """Return the table of one column in one set; of all columns together for None."""
        key = position, column
        if key not in self._tables:
            if column is None:
                tables = [self.table(position, number) for number in range(len(self.columns))]
                self._tables[key] = Table.pooled(tables, limit=self.limit)
            else:
                self._tables[key] = self.columns[column].table(position - 1 if position else None)
        return self._tables[key]

    def steps(self, position: int, column: int | None) -> Steps:
        """Return the steps of one column's scores in one set; of all columns together for None."""
        return self.table(position, column).steps()

    def areas(self, area: Area, column: int | None) -> tuple[Floats, Array]:
        """Return an area of one column's scores in each set, and whether it is defined, (B,) each.

        Args:
            area: :func:`~lossd.exact.steps.area_under_roc`, :func:`~lossd.exact.steps.precision_of_positives` or a
                :class:`~lossd.exact.steps.PartialArea`.
            column: The column; None for all together.
        """
        first = area(self.steps(0, column))
        counts = self._counts(column) if self.groups else None
        if counts is None:
            rest = [area(self.steps(position, column)) for position in range(1, 1 + self.groups)]
            values, defined = zip(first, *rest, strict=True)
            return np.array(values), np.array(defined)
        without, known = areas_without(counts, area)
        return np.append(first[0], without), np.append(first[1], known)

    def _counts(self, column: int | None) -> Array | None:
        if column is not None:
            return self.columns[column].by_group().counts(2, self.groups)
        table, *others = [each.by_group() for each in self.columns]
        return table.merged(others).counts(2, self.groups)

    def quantiles(self, levels: list[float]) -> list[tuple[Floats, Floats] | None]:
        """Return for each set the lowest and the highest that each quantile can be; None without numbers."""
        return [self.table(position, 0).quantiles(levels) for position in range(1 + self.groups)]

    def shares(self) -> list[tuple[Floats, Floats]]:
        """Return for each set its numbers, rising, and the share of each; numbers of one cell count as its middle."""
        return [self.table(position, 0).shares()[:2] for position in range(1 + self.groups)]

    def bounded(self, name: str) -> tuple[float, int]:
        """Return how far an area of all rows may be from the true one, and the fewest bits of a score.

        Args:
            name: auroc or average_precision. Of several columns, the farthest counts.
        """
        columns = [*range(len(self.columns)), *([None] if len(self.columns) > 1 else [])]
        tables = [self.table(0, column) for column in columns]
        areas = [area for table in tables if (area := getattr(table, name)()) is not None]
        return max((area.within for area in areas), default=0.0), min(table.bits for table in tables)


class ProductsRead:
    """Sums of numbers and of their products.

    Args:
        shape: The number of columns, then the pairs of columns, two numbers each.
        counted: How many rows of numbers have no weight, (B,).
        sums: For each set: the sum of the weights, those of the columns, those of the pairs' products.
    """

    def __init__(self, shape: Sequence[int], counted: Array, sums: ExactSums) -> None:
        self.columns, *flat = shape
        self.pairs = list(zip(flat[::2], flat[1::2], strict=True))
        self.counted: list[int] = counted.tolist()
        self.sums = sums
        self.each = 1 + self.columns + len(self.pairs)
        self.sets = range(len(self.counted))
        numerators, bits = sums.integers()
        self._finite = [Fraction(numerator, 1 << bits) for numerator in numerators]
        self._other = dict(_non_finite(sums))

    def _size(self, b: int) -> Fraction:
        return self.counted[b] + self._finite[self.each * b]

    def _sum(self, b: int, column: int) -> Fraction | float:
        return self._of(self.each * b + 1 + column)

    def _product(self, b: int, first: int, second: int) -> Fraction | float:
        return self._of(self.each * b + 1 + self.columns + self.pairs.index((first, second)))

    def _of(self, k: int) -> Fraction | float:
        return self._other.get(k, self._finite[k])

    def _centred(self, b: int, first: int, second: int) -> Fraction | float:
        """Return the sum of the products of two columns' distances from their means; NaN if a number is not finite."""
        size, product = self._size(b), self._product(b, first, second)
        one, other = self._sum(b, first), self._sum(b, second)
        if size == 0 or isinstance(product, float) or isinstance(one, float) or isinstance(other, float):
            return math.nan if size else 0.0
        return second_moment(size, (one, other), product)

    def means_scaled(self, exponents: Array) -> Floats:
        """Return the means of the columns and of the products, (B, K), times two to minus the exponent a factor.

        Args:
            exponents: (B,) integers.
        """
        rows = []
        for b, exponent in zip(self.sets, exponents.tolist(), strict=True):
            size = self._size(b)
            found = [(self._sum(b, column), 1) for column in range(self.columns)]
            found += [(self._product(b, *pair), 2) for pair in self.pairs]
            rows.append([_scaled(value / size if size else 0.0, -exponent * factors) for value, factors in found])
        return np.array(rows)

    def product_scaled(self, first: int, second: int) -> tuple[Floats, Array]:
        """Return the sums of the products of two columns, (B,), and the exponents of four to go with them."""
        return _with_exponents([self._product(b, first, second) for b in self.sets])

    def centred_scaled(self, first: int, second: int) -> tuple[Floats, Array]:
        """Return the sums of the products of two columns' distances from their means, as :meth:`product_scaled`."""
        return _with_exponents([self._centred(b, first, second) for b in self.sets])

    def variances(self) -> Floats:
        """Return the mean squared distance of each column's numbers from their mean, (B, columns)."""
        return np.array([[self._variance(b, column) for column in range(self.columns)] for b in self.sets])

    def _variance(self, b: int, column: int) -> float:
        size = self._size(b)
        return _scaled(self._centred(b, column, column) / size if size else 0.0, 0)

    def correlation(self) -> Floats:
        """Return the spread of the first two columns and their joint spread, (B, 3), in units that make those 1."""
        return np.array([self._correlation(b) for b in self.sets])

    def _correlation(self, b: int) -> list[float]:
        first, second, both = self._centred(b, 0, 0), self._centred(b, 1, 1), self._centred(b, 0, 1)
        if isinstance(first, float) or isinstance(second, float) or isinstance(both, float):
            return [math.nan] * 3 if self._size(b) else [0.0] * 3
        size = root(both * both / (first * second)) if first and second else 0.0
        return [float(first > 0), float(second > 0), -size if both < 0 else size]


def _non_finite(sums: ExactSums) -> list[tuple[int, float]]:
    """Return the sums that contain NaN or infinities, with their numbers."""
    counts = sums.non_finite
    answer = []
    for k in np.flatnonzero(counts.any(1)).tolist():
        nan, above, below = (counts[k] > 0).tolist()
        answer.append((k, math.nan if nan or (above and below) else math.inf if above else -math.inf))
    return answer


def _scaled(value: Fraction | float, exponent: int) -> float:
    """Return a number times two to the exponent, rounded once."""
    return rounded(value * Fraction(2) ** exponent) if isinstance(value, Fraction) else value


def _with_exponents(values: Sequence[Fraction | float]) -> tuple[Floats, Array]:
    """Return numbers between 1/8 and 2 in size, (B,), and the exponents of four that they are to be taken times."""
    pairs = [_with_exponent(value) for value in values]
    return np.array([value for value, _ in pairs]), np.array([exponent for _, exponent in pairs])


def _with_exponent(value: Fraction | float) -> tuple[float, int]:
    if not isinstance(value, Fraction) or value == 0:
        return float(value), 0
    exponent = (abs(value.numerator).bit_length() - value.denominator.bit_length()) // 2
    return _scaled(value, -2 * exponent), exponent
