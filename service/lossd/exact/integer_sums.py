"""Sparse sums of integers: few differ from 0."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.exact.digits import starts_of

__all__ = ["IntegerSums"]

Array = npt.NDArray[Any]

HEADER = struct.Struct("<IBB")
WRONG = "an integer sum is 0, or none of those that there are"
WIDTHS = (1, 2, 4, 8)
MOST = {kind: np.array([(1 << 8 * width - (kind == "i")) - 1 for width in WIDTHS[:-1]]) for kind in "ui"}
"""The largest integer of each width but the last, unsigned and signed."""

NONE = np.zeros(0, np.int64)
LEAST_WAITING = 1 << 12
"""So many sums wait at least to be added up, as many as there are else: a merge then takes a constant time a sum."""


class IntegerSums:
    """Sums of integers, int64.

    Args:
        size: The number of sums.
        index: The sums that may differ from 0, rising, (m,) int64; None for none.
        values: These, (m,) int64.
    """

    def __init__(self, size: int, index: Array | None = None, values: Array | None = None) -> None:
        self.size = size
        self._index = NONE if index is None else index  # none of these is changed in place
        self._values = NONE if values is None else values
        self._waiting: list[tuple[Array, Array]] = []
        self._held = 0
        # The bytes of the sums, once they are known.
        self._encoded: bytes | None = None
        self._unread = False

    @classmethod
    def split(
        cls, index: Array, values: Array, size: int, parts: int, pack: Callable[..., None] | None = None
    ) -> list[IntegerSums]:
        """Return neighbouring sums, as many in each of several parts, whose bytes are made together.

        Args:
            index: The sums other than 0 of all parts, rising, (m,) int64.
            values: These, (m,) int64.
            size: The number of sums of a part.
            parts: The number of parts.
            pack: The compiled function that makes the bytes; None if it is not at hand.
        """
        if pack is not None:
            data, ends = np.empty(parts * HEADER.size + 16 * len(index), np.uint8), np.empty(parts, np.int64)
            pack(index, values, size, data, ends)
            stops = ends.tolist()
            whole = data[: stops[-1]].tobytes()
            return [cls.encoded(whole[begin:end], size) for begin, end in zip([0, *stops], stops, strict=False)]
        firsts = np.arange(parts + 1) * size
        bounds = np.searchsorted(index, firsts)
        local = index - np.repeat(firsts[:-1], np.diff(bounds))
        gaps = np.empty_like(index)
        np.subtract(index[1:], index[:-1], out=gaps[1:])
        gaps -= 1
        used = bounds[:-1][bounds[1:] > bounds[:-1]]
        gaps[used] = local[used]  # the first of each part
        widths = []
        for column, kind in ((gaps, "u"), (values, "i")):
            found = [1] * len(used)
            if len(used) and int(max(column.max(), -1 - column.min())) > MOST[kind][0]:
                most = np.maximum.reduceat(column, used)
                if kind == "i":
                    most = np.maximum(most, -1 - np.minimum.reduceat(column, used))
                found = [WIDTHS[place] for place in np.searchsorted(MOST[kind], most).tolist()]
            widths.append((found, {width: column.astype(f"<{kind}{width}").tobytes() for width in set(found)}))
        (of_gaps, gaps_by_width), (of_values, values_by_width) = widths
        answers, number = [], 0
        for first, last in itertools.pairwise(bounds.tolist()):
            answers.append(cls(size, local[first:last], values[first:last]))
            if first == last:
                answers[-1]._encoded = HEADER.pack(0, 1, 1)
                continue
            gap_width, width = of_gaps[number], of_values[number]
            number += 1
            answers[-1]._encoded = b"".join(
                (
                    HEADER.pack(last - first, gap_width, width),
                    gaps_by_width[gap_width][first * gap_width : last * gap_width],
                    values_by_width[width][first * width : last * width],
                )
            )
        return answers

    @classmethod
    def encoded(cls, data: bytes, size: int) -> IntegerSums:
        """Return the sums of the bytes that :meth:`encode` returns; they are read when they are needed."""
        sums = cls(size)
        sums._encoded, sums._unread = data, True
        return sums

    def merge(self, other: IntegerSums) -> None:
        """Add other sums, as many."""
        if other.size != self.size:
            raise ValueError(f"expected {self.size} sums, found {other.size}")
        other._settle()
        self._read()
        if not (len(self._index) or self._waiting):
            # None of these is changed in place.
            self._index, self._values, self._encoded = other._index, other._values, other._encoded
            return
        self._encoded = None
        self._waiting.append((other._index, other._values))
        self._held += len(other._index)
        if self._held > max(LEAST_WAITING, len(self._index)):
            self._settle()

    def dense(self, first: int = 0, last: int | None = None) -> Array:
        """Return the sums from ``first`` up to but without ``last``, int64."""
        self._settle()
        last = self.size if last is None else last
        part = slice(*np.searchsorted(self._index, (first, last)))
        answer = np.zeros(last - first, np.int64)
        answer[self._index[part] - first] = self._values[part]
        return answer

    def encode(self) -> bytes:
        """Return the same bytes for the same sums.

        The header is the number of sums other than 0 and the bytes of an index and of a sum, little-endian as all that
        follows: how far each index is behind the one before (unsigned), and the sums (signed).
        """
        if self._encoded is None:
            self._encoded = self._bytes()
        return self._encoded

    def _bytes(self) -> bytes:
        self._settle()
        index, values = self._index, self._values
        if len(values) and not values.all():
            kept = values != 0
            index, values = index[kept], values[kept]
        if not len(index):
            return HEADER.pack(0, 1, 1)
        gaps = np.diff(index, prepend=-1) - 1
        most, largest = int(gaps.max()), int(max(values.max(), -1 - values.min()))
        gap_width = next(width for width in WIDTHS if most < 1 << 8 * width)
        width = next(width for width in WIDTHS if largest < 1 << 8 * width - 1)
        return b"".join(
            [
                HEADER.pack(len(index), gap_width, width),
                gaps.astype(f"<u{gap_width}").tobytes(),
                values.astype(f"<i{width}").tobytes(),
            ]
        )

    @classmethod
    def decode(cls, data: bytes, size: int) -> IntegerSums:
        """Return the sums that :meth:`encode` wrote.

        Args:
            data: Bytes, trusted in nothing.
            size: The number of sums that there must be.

        Raises:
            ValueError: The bytes are not those of so many sums.
        """
        count, gap_width, width = _header(data)
        gaps = np.frombuffer(data, f"<u{gap_width}", count, HEADER.size)
        values = np.frombuffer(data, f"<i{width}", count, HEADER.size + count * gap_width).astype(np.int64)
        index = _indices(gaps, np.array([count]), size)
        if not values.all():
            raise ValueError(WRONG)
        return cls(size, index, values)

    @classmethod
    def merged(cls, many: Sequence[bytes], size: int) -> IntegerSums:
        """Return the sum of sums that :meth:`encode` wrote, all read at once; errors are those of :meth:`decode`."""
        if len(many) == 1:
            return cls.decode(many[0], size)
        by_widths: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        for data in many:
            count, *widths = _header(data)
            if count:
                by_widths.setdefault((widths[0], widths[1]), []).append((count, data))
        answer, columns = cls(size), []
        for (gap_width, width), encoded in by_widths.items():
            gaps = np.frombuffer(
                b"".join([data[HEADER.size : HEADER.size + count * gap_width] for count, data in encoded]),
                f"<u{gap_width}",
            )
            values = np.frombuffer(
                b"".join([data[HEADER.size + count * gap_width :] for count, data in encoded]), f"<i{width}"
            ).astype(np.int64)
            counts = np.array([count for count, _ in encoded])
            index = _indices(gaps, counts, size)
            if not values.all():
                raise ValueError(WRONG)
            columns.append((index, values))
        if columns:
            [index, values], *others = columns
            if others:
                index, values = (np.concatenate(column) for column in zip(*columns, strict=True))
            if size <= 2 * len(index):
                sums = np.zeros(size, np.int64)
                np.add.at(sums, index, values)
            else:
                order = np.argsort(index, kind="stable")
                index = index[order]
                starts = starts_of(index)
                answer._index, answer._values = index[starts], np.add.reduceat(values[order], starts)
                return answer
            answer._index = np.flatnonzero(sums)
            answer._values = sums[answer._index]
        return answer

    def _read(self) -> None:
        if self._unread:
            assert self._encoded is not None
            read = self.decode(self._encoded, self.size)
            self._index, self._values, self._unread = read._index, read._values, False

    def _settle(self) -> None:
        self._read()
        if not self._waiting:
            return
        parts = [(self._index, self._values), *self._waiting]
        self._waiting, self._held = [], 0
        total = sum(len(index) for index, _ in parts)
        if self.size <= 2 * total:
            answer = np.zeros(self.size, np.int64)
            for index, values in parts:
                answer[index] += values  # each index stands once in a part
            self._index = np.flatnonzero(answer)
            self._values = answer[self._index]
            return
        index = np.concatenate([index for index, _ in parts])
        order = np.argsort(index, kind="stable")
        index = index[order]
        starts = starts_of(index)
        values = np.add.reduceat(np.concatenate([values for _, values in parts])[order], starts)
        self._index, self._values = index[starts], values


def _header(data: bytes) -> tuple[int, int, int]:
    """Return the number of sums in bytes, and the widths of an index and of a sum.

    Raises:
        ValueError: The bytes are cut off.
    """
    if len(data) < HEADER.size:
        raise ValueError("integer sums are cut off")
    count, gap_width, width = HEADER.unpack_from(data)
    if gap_width not in WIDTHS or width not in WIDTHS or len(data) != HEADER.size + count * (gap_width + width):
        raise ValueError("integer sums have another length than their header says")
    return count, gap_width, width


def _indices(gaps: Array, counts: Array, size: int) -> Array:
    """Return the indices that gaps say, of as many sums as ``counts`` one after the other.

    Args:
        gaps: How far each index is behind the one before, unsigned.
        counts: How many gaps each of several sums has, at least 1.
        size: The number of sums that there are.

    Raises:
        ValueError: One is none of those that there are.
    """
    if not len(gaps):
        return NONE
    if (gaps.itemsize == 8 or len(gaps) >= 1 << 31) and int(gaps.max()) >= size:  # shorter ones cannot overflow
        raise ValueError(WRONG)
    index: Array = gaps.astype(np.int64)
    index += 1
    ends = np.cumsum(counts)
    # One sum over all: the first gap of each part goes back to its start.
    index[ends[:-1]] -= np.add.reduceat(index, np.concatenate([[0], ends[:-1]]))[:-1]
    index[0] -= 1
    np.cumsum(index, out=index)
    if int(index[ends - 1].max()) >= size:  # they rise in each part
        raise ValueError(WRONG)
    return index
