"""Rows by position, kept as ranges."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain, islice
from typing import ClassVar

import numpy as np

from lossd.runs.rows.row_sets import (
    APART,
    BEFORE,
    BOTH,
    LAST_POSITION,
    MAX_BYTES,
    MAX_LISTED,
    MAX_RANGES,
    NEW_ONLY,
    damaged,
    duplicate,
    gaps,
    halves,
)
from lossd_client.errors import DuplicateRows, Fault, InvalidRequest, TooLarge

__all__ = ["Positions"]

RANGE_BYTES = 16
RANGE = struct.Struct("<qq")

MAGIC = b"P1"
ONE = np.dtype([("magic", "S2"), ("first", "<i8"), ("rows", "<i8")])
"""The bytes of one range."""


class Positions:
    """Rows by position: a batch holds the rows first, first + 1, ...; kept as sorted ranges that do not touch.

    Args:
        max_bytes: The most bytes that the ranges may take, 16 each.
    """

    kind: ClassVar[str] = "position"

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self.rows = 0
        self._max_bytes = max_bytes
        self._starts, self._stops = array("q"), array("q")

    @property
    def stop(self) -> int:
        """The position behind the last counted row; 0 without rows."""
        return self._stops[-1] if self._stops else 0

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The lowest and the highest counted position; None without rows."""
        return (self._starts[0], self._stops[-1] - 1) if self._starts else None

    @property
    def nbytes(self) -> int:
        """The bytes that the ranges take."""
        return len(self._starts) * RANGE_BYTES

    def check(self, first: int, count: int) -> int:
        """Return ``count``, the rows that the batch of the positions first to first + count - 1 would add.

        Raises:
            DuplicateRows: One of them was counted before.
            InvalidRequest: A position is negative, or beyond 64 bits.
            TooLarge: The batch leaves a gap, and the ranges would take too many bytes.
        """
        self.check_range(first, count)
        index = bisect_right(self._stops, first)
        overlaps = []
        while count and index < len(self._starts) and self._starts[index] < first + count:
            overlaps.append(range(max(self._starts[index], first), min(self._stops[index], first + count)))
            index += 1
        if overlaps:
            raise _duplicate_positions(BEFORE, overlaps, NEW_ONLY, "/first")
        if (len(self._starts) + 1) * RANGE_BYTES > self._max_bytes:
            self._check_bytes(len(self._starts) + (not self._touches(index, first, count)))
        return count

    def add(self, first: int, count: int) -> int:
        """Count a batch; return how many rows it added; errors are those of :meth:`check`."""
        if self._stops and first == self._stops[-1] and 0 < count <= LAST_POSITION - first:
            self._stops[-1] += count  # most batches come in their order
            self.rows += count
            return count
        if not self.check(first, count):
            return 0
        index = bisect_right(self._stops, first)
        after_one = index > 0 and self._stops[index - 1] == first
        before_one = index < len(self._starts) and self._starts[index] == first + count
        if after_one and before_one:
            self._stops[index - 1] = self._stops.pop(index)
            self._starts.pop(index)
        elif after_one:
            self._stops[index - 1] = first + count
        elif before_one:
            self._starts[index] = first
        else:
            self._starts.insert(index, first)
            self._stops.insert(index, first + count)
        self.rows += count
        return count

    def extend(self, batch: Positions) -> None:
        """Count the rows of a batch; errors are those of :meth:`check`."""
        if len(batch._starts) == 1:
            self.add(batch._starts[0], batch.rows)
            return
        ranges = [(start, stop - start) for start, stop in zip(batch._starts, batch._stops, strict=True)]
        for first, count in ranges:
            self.check(first, count)
        for first, count in ranges:
            self.add(first, count)

    def merge(self, other: Positions) -> None:
        """Add the rows of another run.

        Raises:
            DuplicateRows: Both counted a row.
            TooLarge: The ranges would take too many bytes.
        """
        if len(other._starts) == 1:  # a batch: NumPy takes 20 times as long
            first, stop = other._starts[0], other._stops[0]
            index = bisect_right(self._stops, first)
            if index == len(self._starts) or self._starts[index] >= stop:
                self.add(first, stop - first)
                return
        starts = np.concatenate([np.asarray(self._starts), np.asarray(other._starts)])
        order = np.argsort(starts, kind="stable")
        starts, stops = starts[order], np.concatenate([np.asarray(self._stops), np.asarray(other._stops)])[order]
        before = np.maximum.accumulate(stops)[:-1]  # each row is in one range of each run, so two overlap at most
        if (twice := np.flatnonzero(starts[1:] < before)).size:
            lasts = np.minimum(stops[1:], before)
            raise _duplicate_positions(BOTH, [range(starts[at + 1], lasts[at]) for at in twice.tolist()], APART)
        apart = starts[1:] > stops[:-1]
        kept = np.flatnonzero(np.concatenate([[True], apart]))[: len(starts)]
        self._check_bytes(len(kept))
        self._starts = array("q", starts[kept].tobytes())
        self._stops = array("q", np.append(stops[:-1][apart], stops[-1:]).tobytes())
        self.rows += other.rows

    def missing(self, expected: int | None = None, *, limit: int = MAX_RANGES) -> list[range]:
        """Return the first ranges of positions that were not counted.

        Args:
            expected: The number of rows of the data set; None for the position behind the last counted row.
            limit: The most ranges to return.
        """
        runs = zip(self._starts, self._stops, strict=True)
        return gaps(runs, self.stop if expected is None else expected, limit)

    def encode(self) -> bytes:
        """Return the canonical bytes: ``P1``, then the starts and the lengths of the ranges as int64."""
        if len(self._starts) == 1:
            return self.range_of(self._starts[0], self._stops[0] - self._starts[0])
        starts, stops = (np.asarray(bounds, "<i8") for bounds in (self._starts, self._stops))
        return b"".join((MAGIC, starts.tobytes(), (stops - starts).tobytes()))

    @staticmethod
    def range_of(first: int, count: int) -> bytes:
        """Return the canonical bytes of one batch of at least one row; errors are those of :meth:`check_range`."""
        Positions.check_range(first, count)
        return MAGIC + RANGE.pack(first, count)

    @staticmethod
    def check_range(first: int, count: int) -> None:
        """Check that there are the positions first to first + count - 1.

        Raises:
            InvalidRequest: A position is negative, or beyond 64 bits.
        """
        if first < 0 or count < 0 or first + count > LAST_POSITION:
            detail = f"first is {first} for {count} rows; positions are 0 to 2^63 - 2"
            raise InvalidRequest(detail, errors=[Fault(pointer="/first", detail=detail)])

    @classmethod
    def decoded(cls, data: memoryview, max_bytes: int) -> Positions:
        """Return the rows of their canonical bytes without the magic; errors are those of ``identity.decode``."""
        identity = cls(max_bytes=max_bytes)
        if len(data) == RANGE_BYTES:  # a batch; NumPy takes ten times as long for one range
            first, count = RANGE.unpack(data)
            if not 0 <= first < first + count <= LAST_POSITION:
                raise damaged("a range of positions is empty or beyond 64 bits")
            identity._check_bytes(1)
            identity._starts.append(first)
            identity._stops.append(first + count)
            identity.rows = count
            return identity
        starts, lengths = halves(data, identity._check_bytes)
        if not ((starts >= 0) & (lengths > 0) & (lengths <= LAST_POSITION - starts)).all():
            raise damaged("a range of positions is empty or beyond 64 bits")
        stops = starts + lengths
        if not (starts[1:] > stops[:-1]).all():
            raise damaged("its ranges of positions touch or are out of order")
        identity._starts, identity._stops = array("q", starts.tobytes()), array("q", stops.tobytes())
        identity.rows = sum(lengths.tolist())
        return identity

    @classmethod
    def of_ranges(cls, many: Sequence[bytes]) -> Positions | None:
        """Return the rows of several identities together, if each is the bytes of one range and no two overlap.

        None leaves them to be read and merged one by one, which takes ten times as long, and finds what is wrong.
        """
        data = b"".join(many)
        if len(many) < 2 or len(data) != len(many) * ONE.itemsize or {*map(len, many)} != {ONE.itemsize}:
            return None
        ranges = np.frombuffer(data, ONE)
        ranges = ranges[np.argsort(ranges["first"])]
        first, rows = ranges["first"], ranges["rows"]
        if not ((ranges["magic"] == MAGIC).all() and first[0] >= 0 and (rows > 0).all()):
            return None
        if not (rows <= LAST_POSITION - first).all() or not ((stops := first + rows)[:-1] <= first[1:]).all():
            return None
        apart = np.flatnonzero(first[1:] != stops[:-1])
        found = cls()
        if len(apart) * RANGE_BYTES >= found._max_bytes:
            return None
        found._starts = array("q", np.append(first[:1], first[apart + 1]).tobytes())
        found._stops = array("q", np.append(stops[apart], stops[-1:]).tobytes())
        found.rows = sum(rows.tolist())
        return found

    def _touches(self, index: int, first: int, count: int) -> bool:
        """Return whether a batch extends a range, of which ``index`` is the first behind it."""
        return (index > 0 and self._stops[index - 1] == first) or (
            index < len(self._starts) and self._starts[index] == first + count
        )

    def _check_bytes(self, ranges: int) -> None:
        if ranges * RANGE_BYTES > self._max_bytes:
            raise TooLarge(
                f"{ranges} ranges of rows need more than {self._max_bytes} bytes; send batches in the order of their "
                "rows, so that ranges grow together"
            )


def _duplicate_positions(what: str, overlaps: Sequence[range], remedy: str, pointer: str = "") -> DuplicateRows:
    listed = list(islice(chain.from_iterable(overlaps), MAX_LISTED))
    return duplicate(what, listed, sum(map(len, overlaps)), remedy, pointer=pointer)
