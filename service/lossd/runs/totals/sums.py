"""What a run has added up of numbers: sums, sums of products, and the largest."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from lossd.exact.integer_sums import IntegerSums
from lossd.exact.sums import ExactSums
from lossd.metrics.contributions import Amounts, Extremes, Products, Tallied
from lossd.metrics.registry import Array
from lossd.runs.rows.slots import Placement, Slots
from lossd.runs.totals.reads import LargestRead, ProductsRead, SumsRead

__all__ = ["LargestTotal", "ProductTotal", "SumTotal", "rows_by_slot", "without_groups"]

LENGTH = struct.Struct("<Q")

MOST_SUMS = 1 << 32
"""More sums than a total has."""


def rows_by_slot(placement: Placement) -> list[IntegerSums]:
    """Return how many rows each slot of each batch has."""
    return _each(placement, *placement.combinations.tally_rows(), 1)


def _counts_of(placement: Placement, index: Array) -> list[IntegerSums]:
    """Return how many of the given combinations, (n,) int64, each slot of each batch has."""
    counts = np.bincount(index, minlength=placement.combinations.count)
    used = np.flatnonzero(counts)
    return _each(placement, used, counts[used], 1)


def _each(placement: Placement, key: Array, values: Array, cells: int) -> list[IntegerSums]:
    """Return the sums of each batch, given those of the combinations.

    Args:
        placement: The placement of the batches.
        key: The combination times the cells plus the cell of each sum, rising, (m,) int64.
        values: The sums other than 0, (m,) int64.
        cells: The number of cells.
    """
    key, values = placement.moved(key, values, cells)
    return IntegerSums.split(key, values, placement.slots.count * cells, placement.batches, placement.pack)


def _keys(place: Array, cells: int) -> Array:
    """Return the number of each combination's sums: (n,) to (n · cells,)."""
    return place if cells == 1 else (place[:, None] * cells + np.arange(cells)).ravel()


def _added(rows: Array, place: Array | None, count: int) -> tuple[Array, Array]:
    """Return the keys of the sums that are not 0, and these sums.

    A key is the combination times the cells plus the cell.

    Args:
        rows: Integers, (n, cells).
        place: The combination of each row; None if there is one for each combination, in order.
        count: The number of combinations.
    """
    cells = rows.shape[1]
    sums = rows.ravel()
    if place is not None:
        # Each sum is exact in float64 below 2**53.
        sums = np.bincount(_keys(place, cells), sums, count * cells).astype(np.int64)
    found = np.flatnonzero(sums != 0)  # of bool, which takes a sixth of the time
    return found, sums[found].astype(np.int64)


def without_groups(sums: IntegerSums, slots: Slots, stratum: int, cells: int, groups: int) -> Array:
    """Return the sums of a stratum, and those without each group: (1 + groups, cells) int64.

    Args:
        sums: The sums of all slots.
        slots: The run's slots.
        stratum: The number of the stratum.
        cells: The sums of a slot.
        groups: How many groups there are to be, which divides those that there are; 0 for none.
    """
    size = slots.groups * cells
    apart = sums.dense(stratum * size, (stratum + 1) * size).reshape(-1, max(groups, 1), cells).sum(0)
    whole = apart.sum(0, keepdims=True)
    return np.concatenate([whole, whole - apart]) if groups else whole


class SumTotal:
    """Sums: of integers as integers, of all other numbers, and of weighted ones, exactly.

    Args:
        shape: The shape of the sums of a slot.
        slots: The run's slots.
    """

    kind: ClassVar[str] = "sums"

    def __init__(self, shape: Sequence[int], slots: Slots) -> None:
        self.shape, self.slots = list(shape), slots
        self.cells = math.prod(shape)
        self.size = self.cells * slots.count
        if not 0 <= self.size < MOST_SUMS or min(shape, default=1) < 0:
            raise ValueError(f"sums of the impossible shape {self.shape}")
        self.whole = IntegerSums(self.size)
        self.exact: ExactSums | None = None

    @classmethod
    def each(cls, amounts: Amounts | Tallied, placement: Placement, limit: int) -> list[SumTotal]:
        """Return the total of each batch of a placement."""
        like = cls(amounts.shape, placement.slots)
        cells = like.cells
        if isinstance(amounts, Tallied):
            return [like._of(whole) for whole in _each(placement, amounts.key, amounts.times, cells)]
        values, place, index = amounts.values, amounts.place, amounts.index
        count = placement.combinations.count
        if amounts.weight is None and values.dtype.kind in "bi":
            if index is None or place is None:
                key, values = _added(values.reshape(-1, cells), place, count)
            else:
                key = place * cells + index
            return [like._of(whole) for whole in _each(placement, key, values, cells)]
        totals = [like._of(IntegerSums(like.size)) for _ in placement.lengths]
        if place is None:
            place = np.arange(count)
        sums, weight = ExactSums(count * cells), amounts.weight
        if index is None:
            values, key = values.reshape(len(values), cells), _keys(place, cells)
            weight = None if weight is None else np.broadcast_to(weight[:, None], values.shape)
        else:
            key = place * cells + index
        if weight is None:
            sums.add(values, key)
        elif values.dtype.kind in "bi" and values.size and 0 <= values.min() <= values.max() <= 1:
            sums.add(values * weight, key)  # no product is rounded
        else:
            sums.add_products(values, weight, index=key)
        for total, exact in zip(totals, _moved(sums, placement, cells), strict=True):
            total.exact = exact
        return totals

    def _of(self, whole: IntegerSums) -> SumTotal:
        """Return a total of the same shape with these integers."""
        total = SumTotal.__new__(SumTotal)  # the shape is checked
        total.shape, total.slots, total.cells, total.size = self.shape, self.slots, self.cells, self.size
        total.whole, total.exact = whole, None
        return total

    def merge(self, other: SumTotal) -> None:
        """Add the sums of other batches."""
        self.whole.merge(other.whole)
        if other.exact is not None:
            self.exact = self.exact or ExactSums(self.size)
            self.exact.merge(other.exact)

    def read(self, stratum: int, groups: int) -> SumsRead:
        """Return the sums of a stratum as metrics read them, and those without each group."""
        whole = without_groups(self.whole, self.slots, stratum, self.cells, groups)
        exact = self.exact
        if exact is not None:
            held = self.slots.groups
            exact = exact.without_groups(stratum * held * self.cells, held, self.cells, groups)
        return SumsRead(self.shape, whole, exact)

    def encode(self) -> bytes:
        """Return the integers after their length, then the exact sums."""
        whole = self.whole.encode()
        exact = b"" if self.exact is None else self.exact.encode()
        return LENGTH.pack(len(whole)) + whole + exact

    @classmethod
    def merged(cls, many: Sequence[bytes], shape: list[int], slots: Slots) -> SumTotal:
        """Return the sum of totals that :meth:`encode` wrote, all read at once.

        Raises:
            ValueError: The bytes are not what it writes.
        """
        total = cls(shape, slots)
        parts = [_halves(data) for data in many]
        total.whole = IntegerSums.merged([whole for whole, _ in parts], total.size)
        if exact := [exact for _, exact in parts if exact]:
            total.exact = ExactSums.merged(exact, count=total.size)
        return total

    @classmethod
    def of_dense(cls, data: bytes, shape: list[int], slots: Slots) -> SumTotal:
        """Return what versions before groups wrote: all integers, int64, after their length, then the exact sums.

        Raises:
            ValueError: The bytes are not what they wrote.
        """
        total = cls(shape, slots)
        length = LENGTH.unpack_from(data)[0] if len(data) >= LENGTH.size else -1
        whole, exact = data[LENGTH.size : LENGTH.size + length], data[LENGTH.size + length :]
        if length not in (0, 8 * total.cells) or len(whole) != length:
            raise ValueError("sums of another length than their shape")
        numbers = np.frombuffer(whole, "<i8").astype(np.int64)
        used = np.flatnonzero(numbers)
        total.whole = IntegerSums(total.size, used, numbers[used])
        if exact:
            total.exact = ExactSums.decode(exact, count=total.size)
        return total


class LargestTotal:
    """The largest of numbers, by stratum; NaN if one is.

    Args:
        shape: How many numbers there are.
        slots: The run's slots.
    """

    kind: ClassVar[str] = "largest"

    def __init__(self, shape: Sequence[int], slots: Slots) -> None:
        if len(shape) != 1 or not 0 <= shape[0] * slots.strata < MOST_SUMS:
            raise ValueError(f"extremes of the impossible shape {list(shape)}")
        self.shape, self.slots = list(shape), slots
        self.values = np.full((slots.strata, *shape), -np.inf)

    @classmethod
    def each(cls, extremes: Extremes, placement: Placement, limit: int) -> list[LargestTotal]:
        """Return the total of each batch of a placement."""
        slots, width = placement.slots, len(extremes.columns)
        if slots.strata == 1 and len(extremes.place) == sum(placement.lengths):  # all rows, in their order
            starts = np.concatenate([[0], np.cumsum(placement.lengths[:-1])]).astype(np.int64)
            found = [np.maximum.reduceat(column, starts).astype(np.float64) for column in extremes.columns]
            return [cls._of(values, slots) for values in np.stack(found, 1)[:, None]]
        largest = np.full((width, placement.batches * slots.strata), -np.inf)
        for of_combination in placement.maps:
            slot = of_combination[extremes.place]
            inside = slice(None) if placement.simple else slot >= 0
            stratum = slot[inside] // slots.groups
            for of_column, column in zip(largest, extremes.columns, strict=True):
                np.maximum.at(of_column, stratum, column[inside].astype(np.float64))
        return [cls._of(values, slots) for values in largest.T.reshape(placement.batches, slots.strata, width)]

    @classmethod
    def _of(cls, values: Array, slots: Slots) -> LargestTotal:
        """Return the total of these numbers, (strata, K)."""
        total = cls(values.shape[1:], slots)
        total.values = values
        return total

    def merge(self, other: LargestTotal) -> None:
        """Compare the largest of other batches."""
        self.values = np.maximum(self.values, other.values)

    def read(self, stratum: int, groups: int) -> LargestRead:
        """Return the numbers of a stratum as metrics read them."""
        return LargestRead(np.repeat(self.values[stratum : stratum + 1], 1 + groups, 0))

    def encode(self) -> bytes:
        """Return the strata with a number (uint32) after their count, then float64 numbers, with one NaN and one 0."""
        if len(self.values) == 1:
            row = [math.nan if value != value else value + 0.0 for value in self.values[0].tolist()]
            if any([value != -math.inf for value in row]):  # noqa: C419 - half the time of a generator
                return LENGTH.pack(1) + struct.pack(f"<I{len(row)}d", 0, *row)
        used = np.flatnonzero((self.values != -np.inf).any(1))
        values = self.values[used]
        numbers = np.where(np.isnan(values), np.nan, values + 0.0)
        return LENGTH.pack(len(used)) + used.astype("<u4").tobytes() + numbers.astype("<f8").tobytes()

    @classmethod
    def decode(cls, data: bytes, shape: list[int], slots: Slots) -> LargestTotal:
        """Return what :meth:`encode` wrote.

        Raises:
            ValueError: The bytes are not what it writes.
        """
        total = cls(shape, slots)
        count = LENGTH.unpack_from(data)[0] if len(data) >= LENGTH.size else -1
        if len(data) != LENGTH.size + count * (4 + 8 * shape[0]):
            raise ValueError("extremes of another length than their shape")
        used = np.frombuffer(data, "<u4", count, LENGTH.size).astype(np.int64)
        values = np.frombuffer(data, "<f8", count * shape[0], LENGTH.size + 4 * count).reshape(count, shape[0])
        rising = (used[1:] > used[:-1]).all() and used[-1:].sum() < slots.strata
        if not rising or not (values != -np.inf).any(1).all():
            raise ValueError("extremes of strata that there are not, or of none")
        total.values[used] = values
        return total

    @classmethod
    def of_dense(cls, data: bytes, shape: list[int], slots: Slots) -> LargestTotal:
        """Return what versions before groups wrote: float64 numbers.

        Raises:
            ValueError: The bytes are not what they wrote.
        """
        total = cls(shape, slots)
        if len(data) != 8 * shape[0]:
            raise ValueError("extremes of another length than their shape")
        total.values[0] = np.frombuffer(data, "<f8")
        return total


class ProductTotal:
    """Sums of numbers and of their products, in one or several columns.

    Args:
        shape: The number of columns, then the pairs of columns of which products are added up, two numbers each.
        slots: The run's slots.
    """

    kind: ClassVar[str] = "products"

    def __init__(self, shape: Sequence[int], slots: Slots) -> None:
        self.shape, self.slots = list(shape), slots
        columns, *flat = shape
        if len(flat) % 2 or not all(0 <= column < columns for column in flat):
            raise ValueError("products of an impossible shape")
        self.cells = 1 + columns + len(flat) // 2  # the weights come first
        if not 0 < self.cells * slots.count < MOST_SUMS:
            raise ValueError("products of an impossible shape")
        self.rows = IntegerSums(slots.count)
        self.sums = ExactSums(self.cells * slots.count)

    @classmethod
    def each(cls, products: Products, placement: Placement, limit: int) -> list[ProductTotal]:
        """Return the total of each batch of a placement."""
        shape = [products.values.shape[1], *(column for pair in products.pairs for column in pair)]
        totals = [cls(shape, placement.slots) for _ in placement.lengths]
        cells, place = totals[0].cells, products.place
        sums = ExactSums(cells * placement.combinations.count)
        columns, weight = list(np.ascontiguousarray(products.values.T)), products.weight
        key = place * cells
        if weight is None:
            for total, rows in zip(totals, _counts_of(placement, place), strict=True):
                total.rows = rows
        else:
            sums.add(weight, key)
        for column, values in enumerate(columns):
            if weight is None:
                sums.add(values, key + (1 + column))
            else:
                sums.add_products(values, weight, index=key + (1 + column))
        for number, (first, second) in enumerate(products.pairs):
            factors = [columns[first], columns[second], *([] if weight is None else [weight])]
            sums.add_products(*factors, index=key + (1 + len(columns) + number))
        for total, part in zip(totals, _moved(sums, placement, cells), strict=True):
            total.sums = part
        return totals

    def merge(self, other: ProductTotal) -> None:
        """Add the sums of other batches."""
        self.rows.merge(other.rows)
        self.sums.merge(other.sums)

    def read(self, stratum: int, groups: int) -> ProductsRead:
        """Return the sums of a stratum as metrics read them, and those without each group."""
        held = self.slots.groups
        counted = without_groups(self.rows, self.slots, stratum, 1, groups)[:, 0]
        sums = self.sums.without_groups(stratum * held * self.cells, held, self.cells, groups)
        return ProductsRead(self.shape, counted, sums)

    def encode(self) -> bytes:
        """Return the numbers of rows after their length, then the sums."""
        rows = self.rows.encode()
        return LENGTH.pack(len(rows)) + rows + self.sums.encode()

    @classmethod
    def merged(cls, many: Sequence[bytes], shape: list[int], slots: Slots) -> ProductTotal:
        """Return the sum of totals that :meth:`encode` wrote, all read at once.

        Raises:
            ValueError: The bytes are not what it writes.
        """
        total = cls(shape, slots)
        parts = [_halves(data) for data in many]
        total.rows = IntegerSums.merged([rows for rows, _ in parts], slots.count)
        total.sums = ExactSums.merged([sums for _, sums in parts], count=total.sums.count)
        return total

    @classmethod
    def of_dense(cls, data: bytes, shape: list[int], slots: Slots) -> ProductTotal:
        """Return what versions before groups wrote: the number of rows, uint64, then the sums.

        Raises:
            ValueError: The bytes are not what they wrote.
        """
        total = cls(shape, slots)
        if len(data) < LENGTH.size:
            raise ValueError("products are cut off")
        rows = np.array([LENGTH.unpack_from(data)[0]], np.int64)
        total.rows = IntegerSums(1, np.flatnonzero(rows), rows[rows != 0])
        total.sums = ExactSums.decode(data[LENGTH.size :], count=total.sums.count)
        return total


def _halves(data: bytes) -> tuple[bytes, bytes]:
    """Return integers that follow their length, and what follows them.

    Raises:
        ValueError: They are cut off.
    """
    length = LENGTH.unpack_from(data)[0] if len(data) >= LENGTH.size else len(data)
    end = LENGTH.size + length
    if len(data) < end:
        raise ValueError("sums of another length than they say")
    return data[LENGTH.size : end], data[end:]


def _moved(sums: ExactSums, placement: Placement, cells: int) -> list[ExactSums]:
    """Return the sums of each batch's slots, given those of the combinations."""
    if not placement.simple:
        sums = sums.moved(*placement.maps, count=placement.count * cells, cells=cells)
    return sums.split(placement.batches)
