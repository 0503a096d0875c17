"""What a run has added up of scores: tables by value, of all rows, by group and by stratum."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from lossd.exact.group_table import GroupTable
from lossd.exact.table import Table
from lossd.metrics.contributions import Scores
from lossd.metrics.registry import Array, Floats
from lossd.runs.rows.slots import Placement, Slots
from lossd.runs.totals.reads import TablesRead

__all__ = ["GROUP_ROWS", "TableTotal", "parts_of", "rows_of_a_slice"]

LENGTH = struct.Struct("<Q")
STRATUM = struct.Struct("<I")

GROUP_ROWS = 1 << 14
"""The most cells of a table by group: enough for the error of an interval, and 128 labels of each fit in memory."""

STRATA_ROWS, LEAST_ROWS = 1 << 17, 1 << 10
"""The cells that the strata's tables share, and those that each has at least."""

LEAST_HELD = 1 << 12
"""Entries that wait at least to be merged."""


class TableTotal:
    """Tables of scores for each column.

    All rows have a table of points, as large as the run allows, and a smaller one by group. While the latter keeps all
    bits, the former follows from it and is left out. Each further stratum has a table by group alone, if it has rows.
    Without groups, all rows have a table of points alone.

    Args:
        shape: The number of columns; 2 kinds for positive and negative entries, 1 for numbers alone; whether entries
            are weighted, 0 or 1; and the most rows of all tables of points together.
        slots: The run's slots.
    """

    kind: ClassVar[str] = "tables"

    def __init__(self, shape: Sequence[int], slots: Slots) -> None:
        self.shape, self.slots = list(shape), slots
        self.columns = [_Column(shape, slots) for _ in range(shape[0])]

    @classmethod
    def each(cls, scores: Scores, placement: Placement, limit: int) -> list[TableTotal]:
        """Return the total of each batch of a placement."""
        shape = [scores.count, scores.kinds, int(scores.weighted), limit]
        totals = [cls(shape, placement.slots) for _ in placement.lengths]
        slots, groups = placement.slots, placement.slots.groups
        for number, (values, positive, weight, place) in enumerate(scores.columns()):
            slot = placement.maps[0][place]
            label = slot % groups * scores.kinds + (0 if positive is None else positive)
            bounds = np.searchsorted(slot // slots.count, np.arange(placement.batches + 1)).tolist()
            for batch, total in enumerate(totals):
                part = slice(bounds[batch], bounds[batch + 1])
                weights = None if weight is None else weight[part]
                total.columns[number].add(0, values[part], label[part], weights)
                for of_combination in placement.maps[1:]:
                    stratum = of_combination[place[part]]
                    stratum = np.where(stratum < 0, -1, stratum // groups % slots.strata)
                    for of_slice in np.unique(stratum[stratum >= 0]).tolist():
                        these = np.flatnonzero(stratum == of_slice) + bounds[batch]
                        some = None if weight is None else weight[these]
                        total.columns[number].add(of_slice, values[these], label[these], some)
        return totals

    def merge(self, other: TableTotal) -> None:
        """Add the tables of other batches."""
        for column, of_other in zip(self.columns, other.columns, strict=True):
            column.merge(of_other)

    def read(self, stratum: int, groups: int) -> TablesRead:
        """Return the tables of a stratum as metrics read them, and those without each group."""
        return TablesRead([_Reader(column, stratum, groups) for column in self.columns], groups, self.shape[3])

    def encode(self) -> bytes:
        """Return each column after its length."""
        return _joined(column.encode() for column in self.columns)

    @classmethod
    def decode(cls, data: bytes, shape: list[int], slots: Slots) -> TableTotal:
        """Return what :meth:`encode` wrote.

        Raises:
            ValueError: The bytes are not what it writes.
        """
        total = cls._empty(data, shape, slots)
        for column, part in zip(total.columns, parts_of(data), strict=True):
            column.decode(part)
        return total

    @classmethod
    def of_points(cls, data: bytes, shape: list[int], slots: Slots) -> TableTotal:
        """Return what versions before groups wrote: the table of points of each column, after its length.

        Raises:
            ValueError: The bytes are not what they wrote.
        """
        total = cls._empty(data, shape, slots)
        for column, part in zip(total.columns, parts_of(data), strict=True):
            column.points = Table.decode(part, like=column.no_points())
        return total

    @classmethod
    def _empty(cls, data: bytes, shape: list[int], slots: Slots) -> TableTotal:
        if len(shape) != 4 or not 1 <= shape[0] <= len(data) or shape[1] not in (1, 2) or shape[2] not in (0, 1):
            raise ValueError("tables of an impossible shape")
        return cls(shape, slots)


class _Reader:
    """One column of one stratum.

    Args:
        column: The column.
        stratum: The number of the stratum.
        groups: The number of groups of which one is left out.
    """

    def __init__(self, column: _Column, stratum: int, groups: int) -> None:
        self._column, self._stratum, self._groups = column, stratum, groups

    def table(self, left_out: int | None) -> Table:
        """Return the table of all rows, or of all but one group's."""
        return self._column.table(self._stratum, self._groups, left_out)

    def by_group(self) -> GroupTable:
        """Return the table by group."""
        return self._column.by_group(self._stratum)


class _Column:
    """The tables of one column.

    Attributes:
        points: The table of all rows; None while it follows from the table by group.
        groups: The tables by group, by stratum.
    """

    def __init__(self, shape: Sequence[int], slots: Slots) -> None:
        columns, self.kinds, weighted, limit = shape
        self.weighted, self.slots = bool(weighted), slots
        self.limit = max(2, limit // columns)
        by_group = min(GROUP_ROWS, limit)
        self.limits = [max(2, rows // columns) for rows in (by_group, min(by_group, rows_of_a_slice(slots)))]
        self.points: Table | None = None
        self.groups: dict[int, GroupTable] = {}
        self._waiting: list[_Column] = []
        self._held = 0

    def add(self, stratum: int, values: Floats, labels: Array, weights: Floats | None) -> None:
        """Add the values of a batch to a stratum that has none."""
        if not stratum and self.slots.groups == 1:
            self.points = self.no_points()
            self.points.add(values, labels if self.kinds > 1 else None, weights)
            return
        if not len(values):
            return
        count, limit = self._labels, self.limits[stratum > 0]
        full = GroupTable.of(values, labels, weights, count=count, limit=limit)
        self.groups[stratum] = full.fitted()
        if not stratum and not self.groups[0].whole:
            self.points = full.table(self.kinds, self.limit)

    def merge(self, other: _Column) -> None:
        """Add the tables of other batches."""
        other._settle()
        if self.slots.groups == 1 and other.points is not None:
            if self.points is None:
                self.points = self.no_points()
            self.points.merge(other.points)
        for stratum, table in other.groups.items():
            if stratum:
                self._group(stratum).merge(table)
        if 0 in other.groups:
            self._waiting.append(other)
            self._held += len(other.groups[0])
            if self._held > max(LEAST_HELD, len(self.groups.get(0, ()))):
                self._settle()

    def _settle(self) -> None:
        """Merge what waits of all rows. What keeps all bits is merged first, of which points follow, if they must."""
        if not self._waiting:
            return
        waiting, self._waiting, self._held = [self, *self._waiting], [], 0
        tables = [column.groups[0] for column in waiting if 0 in column.groups]
        whole = [table for table in tables if table.whole]
        cut = [table for table in tables if not table.whole]
        full = self._empty_group(0).merged(whole)
        united = full.fitted() if not cut else full.merged(cut).fitted()
        points = [column.points for column in waiting if column.points is not None]
        self.groups[0] = united
        if united.whole:
            return
        if self.points is None:
            self.points = self.no_points()
        for table in points:
            if table is not self.points:
                self.points.merge(table)
        self.points.merge(full.table(self.kinds, self.limit))

    def table(self, stratum: int, groups: int, left_out: int | None) -> Table:
        """Return the table of a stratum: of all rows, or of all but one group's."""
        self._settle()
        if not stratum and left_out is None and self.points is not None:
            return self.points
        if not stratum and self.slots.groups == 1:
            return self.no_points()
        return self._group(stratum).table(self.kinds, self.limit, groups, left_out)

    def by_group(self, stratum: int) -> GroupTable:
        """Return the table of a stratum by group."""
        self._settle()
        return self._group(stratum)

    def no_points(self) -> Table:
        """Return an empty table of points."""
        return Table(self.kinds, weighted=self.weighted, limit=self.limit)

    @property
    def _labels(self) -> int:
        return self.kinds * self.slots.groups

    def _empty_group(self, stratum: int) -> GroupTable:
        return GroupTable(self._labels, weighted=self.weighted, limit=self.limits[stratum > 0])

    def _group(self, stratum: int) -> GroupTable:
        if stratum not in self.groups:
            self.groups[stratum] = self._empty_group(stratum)
        return self.groups[stratum]

    def encode(self) -> bytes:
        """Return the points, then the number and the stratum of each table by group, and these."""
        self._settle()
        groups = {stratum: table for stratum, table in sorted(self.groups.items()) if not table.empty}
        heads = b"".join(STRATUM.pack(stratum) for stratum in groups)
        points = b"" if self.points is None else self.points.encode()
        return _joined([points, heads, *(table.encode() for table in groups.values())])

    def decode(self, data: bytes) -> None:
        """Set the tables that :meth:`encode` wrote.

        Raises:
            ValueError: The bytes are not what it writes.
        """
        points, heads, *tables = parts_of(data)
        strata = [stratum for (stratum,) in STRATUM.iter_unpack(heads)]
        if sorted(set(strata)) != strata or any(stratum >= self.slots.strata for stratum in strata):
            raise ValueError("tables of strata that there are not")
        if points:
            self.points = Table.decode(points, like=self.no_points())
        for stratum, table in zip(strata, tables, strict=True):
            self.groups[stratum] = GroupTable.decode(table, like=self._empty_group(stratum))
        if self.slots.groups > 1 and bool(points) != (0 in self.groups and not self.groups[0].whole):
            raise ValueError(
                "a table of points beside one by group that keeps all bits, or none beside one that does not"
            )


def rows_of_a_slice(slots: Slots) -> int:
    """Return the most cells of the tables of a stratum other than all rows."""
    return max(LEAST_ROWS, STRATA_ROWS // slots.strata)


def _joined(parts: Iterator[bytes] | Sequence[bytes]) -> bytes:
    return b"".join(LENGTH.pack(len(data)) + data for data in parts)


def parts_of(data: bytes) -> Iterator[bytes]:
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
