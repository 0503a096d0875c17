"""Tables of values by label: how often each value has each label, cut to as many leading bits as fit.

A label is the number of a group, times the kinds of values, plus the kind. So a table tells the counts of the values
without a group. It has few cells, because each may have many labels: an entry is a cell with a label that it has. The
bits of its cells are those of a :class:`~lossd.exact.table.Table`: a function of the values, not of their order.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lossd.exact.keys import BITS, HIGHEST, LOWEST, NEGATIVE_ZERO, cut, fitting_bits, keys_of, starts_of
from lossd.exact.sums import ExactSums
from lossd.exact.table import Table

__all__ = ["GroupTable"]

Array = npt.NDArray[Any]

MOST_LABELS = 128
LABEL = np.uint64(MOST_LABELS - 1)

LEAST_HELD = 1 << 12
"""Entries that wait at least to be merged."""

MOST = 1 << 60
"""More values than a table counts."""

HEADER = struct.Struct("<4sIBBBBBIQQ")
MAGIC, VERSION = b"gtab", 1
WIDTHS = (1, 2, 4, 8)


class TableEntries(NamedTuple):
    """Entries of a table, rising by key and label.

    Attributes:
        bits: The leading bits of each key that are kept.
        keys: The integer of each, (E,) uint64.
        labels: (E,) uint8.
        counts: How often each stands, (E,) int64; or E sums of weights.
        nan: How often NaN has each label, (labels,) int64; or as many sums of weights.
    """

    bits: int
    keys: Array
    labels: Array
    counts: Any
    nan: Any


class GroupTable:
    """How often each value has each label.

    Args:
        labels: The number of labels, at most 128.
        weighted: Whether values have weights, which are then summed exactly.
        limit: The largest number of cells.
    """

    def __init__(self, labels: int, *, weighted: bool, limit: int) -> None:
        self.labels, self.weighted, self.limit = labels, weighted, limit
        none = np.zeros(0, np.int64)
        counts, nan = (ExactSums(0), ExactSums(labels)) if weighted else (none, np.zeros(labels, np.int64))
        self._entries = TableEntries(BITS, np.zeros(0, np.uint64), np.zeros(0, np.uint8), counts, nan)
        self._waiting: list[TableEntries] = []
        self._held = 0

    @classmethod
    def of(cls, values: Array, labels: Array, weights: Array | None, *, count: int, limit: int) -> GroupTable:
        """Return the table of values, which keeps all bits, however many cells it takes.

        Args:
            values: (N,) float64.
            labels: (N,) integers below ``count``.
            weights: (N,) float64 above 0; None if values have none.
            count: The number of labels.
            limit: The limit of :meth:`fitted`.
        """
        table = cls(count, weighted=weights is not None, limit=limit)
        nan = np.isnan(values)
        if nan.any():
            of_nan, kept = labels[nan], ~nan
            if weights is None:
                table._entries.nan[:] = np.bincount(of_nan, minlength=count)
            else:
                table._entries.nan.add(weights[nan], of_nan)
                weights = weights[kept]
            values, labels = values[kept], labels[kept]
        keys = keys_of(values)
        order = None if weights is None else _order(keys, labels)
        keys, labels = _ordered(keys, labels) if order is None else (keys[order], labels[order])
        starts = np.flatnonzero(_changes(keys, labels))
        if weights is None or order is None:
            counts: Any = np.diff(starts, append=len(keys))
        else:
            counts = ExactSums(len(starts))
            if len(starts):
                counts.add(weights[order], np.repeat(np.arange(len(starts)), np.diff(starts, append=len(keys))))
        table._entries = TableEntries(BITS, keys[starts], labels[starts].astype(np.uint8), counts, table._entries.nan)
        return table

    def fitted(self) -> GroupTable:
        """Return the table with no more bits than fit its limit."""
        answer = GroupTable(self.labels, weighted=self.weighted, limit=self.limit)
        answer._entries = self._fitted(self._settled())
        return answer

    @property
    def bits(self) -> int:
        """The leading bits of each value that are kept, 0 to 64."""
        return self._settled().bits

    @property
    def whole(self) -> bool:
        """Whether every value is a cell of its own."""
        return self.bits == BITS

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._settled().keys)

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        entries = self._settled()
        nan = entries.nan.signs if self.weighted else entries.nan
        return not len(entries.keys) and not nan.any()

    def merge(self, other: GroupTable) -> None:
        """Add all that was added to another table of the same labels, weights and limit."""
        self._waiting.append(other._settled())
        self._held += len(self._waiting[-1].keys)
        if self._held > max(LEAST_HELD, len(self._entries.keys)):
            self._settled()

    def merged(self, others: Sequence[GroupTable]) -> GroupTable:
        """Return a table of all that was added to this table and to others, with the bits of the fewest."""
        answer = GroupTable(self.labels, weighted=self.weighted, limit=self.limit)
        answer._entries = self._united([table._settled() for table in (self, *others)])
        return answer

    def table(self, kinds: int, limit: int, groups: int = 0, left_out: int | None = None) -> Table:
        """Return the values of each kind: of all groups, or of all but one.

        Args:
            kinds: The number of kinds.
            limit: The limit of the answer.
            groups: The number of groups of which one is left out.
            left_out: The values whose group modulo ``groups`` is this are left out; None for none.
        """
        entries = self._settled()
        starts = starts_of(entries.keys)
        group, kind = np.divmod(entries.labels.astype(np.int64), kinds)
        of_nan, kind_of_nan = np.divmod(np.arange(self.labels), kinds)
        cell = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(entries.keys)))
        kept, kept_nan = np.ones(len(group), bool), np.ones(self.labels, bool)
        if left_out is not None:
            kept, kept_nan = group % groups != left_out, of_nan % groups != left_out
        cells: Any
        used: Any
        if self.weighted:
            size = (len(starts) + 1) * kinds
            cells = entries.counts.moved(np.where(kept, cell * kinds + kind, -1), count=size)
            cells.merge(entries.nan.moved(np.where(kept_nan, len(starts) * kinds + kind_of_nan, -1), count=size))
            used = cells.signs[:-kinds].reshape(-1, kinds).any(1)
            row = np.append(np.where(used, np.cumsum(used) - 1, -1), used.sum())
            cells = cells.moved(row, count=int(used.sum() + 1) * kinds, cells=kinds)
        else:
            cells, key, counts = np.zeros((kinds, len(starts) + 1), np.int64), kind * len(starts) + cell, entries.counts
            if left_out is not None:
                key, counts = key[kept], counts[kept]
            # Each count is exact in float64 below 2**53.
            cells[:, :-1] = np.bincount(key, counts, kinds * len(starts)).reshape(kinds, -1)
            np.add.at(cells[:, -1], kind_of_nan[kept_nan], entries.nan[kept_nan])
            used = slice(None)
            if left_out is not None:
                used = cells[:, :-1].any(0)
                cells = cells[:, np.append(used, True)]
        keys = entries.keys[starts][used]
        return Table.of_cells(entries.bits, keys, cells, kinds=kinds, weighted=self.weighted, limit=limit)

    def counts(self, kinds: int, groups: int) -> Array | None:
        """Return how many values of each kind are in each cell and each group, (kinds, cells, groups).

        Weights are sums in float64. None if one is NaN. Groups are taken modulo ``groups``.
        """
        entries = self._settled()
        if (entries.nan.signs if self.weighted else entries.nan).any():
            return None
        starts = starts_of(entries.keys)
        group, kind = np.divmod(entries.labels.astype(np.int64), kinds)
        cell = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(entries.keys)))
        place = (kind * len(starts) + cell) * groups + group % groups
        # Each count is exact in float64 below 2**53.
        amounts = entries.counts.sums() if self.weighted else entries.counts
        flat: Array = np.bincount(place, amounts, kinds * len(starts) * groups)
        return (flat if self.weighted else flat.astype(np.int64)).reshape(kinds, len(starts), groups)

    # Bytes

    def encode(self) -> bytes:
        """Return the table as bytes, equal for equal tables.

        The header is the magic ``gtab``, the version, the number of labels, whether there are weights, the bits, the
        bytes of a key and of a count, the limit, the numbers of cells and of entries, little-endian as all that
        follows: the cells' integers without the bits that are not kept, how many entries each has (uint8), the labels
        (uint8) and the counts, of the entries and then of NaN; or exact sums.
        """
        bits, keys, labels, counts, nan = self._settled()
        starts = starts_of(keys)
        size = 4 if bits <= 32 else 8
        if self.weighted:
            both = len(keys) + self.labels
            together = counts.moved(np.arange(len(keys)), count=both)
            together.merge(nan.moved(np.arange(len(keys), both), count=both))
            width, numbers = 0, together.encode()
        else:
            most = max(int(counts.max(initial=0)), int(nan.max()))
            width = next(w for w in WIDTHS if most < 1 << 8 * w)
            numbers = np.concatenate([counts, nan] if nan.any() else [counts]).astype(f"<u{width}").tobytes()
        shape = (self.labels, self.weighted, bits, size, width, self.limit, len(starts), len(keys))
        shifted = keys[starts] >> np.uint64(BITS - bits) if bits else np.zeros(len(starts), np.uint64)
        return b"".join(
            [
                HEADER.pack(MAGIC, VERSION, *shape),
                shifted.astype(f"<u{size}").tobytes(),
                np.diff(starts, append=len(keys)).astype(np.uint8).tobytes(),
                labels.tobytes(),
                numbers,
            ]
        )

    @classmethod
    def decode(cls, data: bytes, *, like: GroupTable) -> GroupTable:
        """Return the table that :meth:`encode` wrote.

        Args:
            data: Bytes, trusted in nothing.
            like: A table of the labels, weights and limit that it must have.

        Raises:
            ValueError: The bytes are not those of such a table, in the form that ``encode`` writes.
        """
        if len(data) < HEADER.size:
            raise ValueError(f"a table of groups has at least {HEADER.size} bytes, found {len(data)}")
        magic, version, labels, weighted, bits, size, width, limit, cells, count = HEADER.unpack_from(data)
        if (magic, version) != (MAGIC, VERSION) or (labels, weighted, limit) != (
            like.labels,
            like.weighted,
            like.limit,
        ):
            raise ValueError("no table of groups of these labels, weights and limit")
        start = HEADER.size + cells * (size + 1) + count
        if bits > BITS or size != (4 if bits <= 32 else 8) or cells > limit or len(data) < start:
            raise ValueError(f"no table of groups has {cells} cells of {bits} bits in {len(data)} bytes")
        keys = np.frombuffer(data, f"<u{size}", cells, HEADER.size).astype(np.uint64)
        keys = keys << np.uint64(BITS - bits) if bits else keys
        times = np.frombuffer(data, np.uint8, cells, HEADER.size + cells * size).astype(np.int64)
        found = np.frombuffer(data, np.uint8, count, HEADER.size + cells * (size + 1))
        answer = cls(labels, weighted=like.weighted, limit=limit)
        nan: Any = answer._entries.nan
        counts: Any
        if weighted:
            together = ExactSums.decode(data[start:], count=count + labels)
            counts = together.moved(
                np.where(np.arange(count + labels) < count, np.arange(count + labels), -1), count=count
            )
            nan = together.moved(np.maximum(np.arange(count + labels) - count, -1), count=labels)
            used = together.signs
            if together.non_finite.any():
                raise ValueError("a table of groups has a weight that is not finite")
        else:
            if width not in WIDTHS or (len(data) - start) % width:
                raise ValueError("a table of groups has counts of an impossible width")
            used = np.frombuffer(data, f"<u{width}", (len(data) - start) // width, start).astype(np.int64)
            if len(used) not in (count, count + labels) or used.sum(dtype=np.float64) >= MOST:
                raise ValueError("a table of groups has another number of counts than entries, or too many values")
            counts, nan = used[:count], used[count:] if len(used) > count else nan
        if (used < 0).any() or not used[:count].all() or times.sum() != count or not times.all():
            raise ValueError("a table of groups has an entry of nothing, or a cell without entries")
        answer._entries = TableEntries(bits, np.repeat(keys, times), found, counts, nan)
        answer._check(keys)
        if answer.encode() != bytes(data):
            raise ValueError("a table of groups is in another form than the shortest")
        return answer

    def _check(self, keys: Array) -> None:
        entries = self._entries
        lowest, highest = cut(np.array([LOWEST, HIGHEST], np.uint64), entries.bits)
        wrong = (keys[1:] <= keys[:-1]).any() or ((keys < lowest) | (keys > highest)).any()
        wrong |= (entries.labels >= self.labels).any()
        same = entries.keys[1:] == entries.keys[:-1]
        wrong |= (same & (entries.labels[1:] <= entries.labels[:-1])).any()
        if wrong or (entries.bits == BITS and (keys == NEGATIVE_ZERO).any()):
            raise ValueError("the entries of a table of groups are not in order, or not of numbers of its bits")

    # Entries

    def _settled(self) -> TableEntries:
        """Return the entries with all that waits."""
        if self._waiting:
            waiting, self._waiting, self._held = self._waiting, [], 0
            self._entries = self._fitted(self._united([self._entries, *waiting]))
        return self._entries

    def _fitted(self, entries: TableEntries) -> TableEntries:
        """Return the entries with no more bits than fit the limit."""
        bits = fitting_bits(entries.keys[starts_of(entries.keys)], entries.bits, self.limit)
        return entries if bits == entries.bits else self._united([entries], bits)

    def _united(self, parts: Sequence[TableEntries], bits: int = BITS) -> TableEntries:
        """Return the entries of all parts, cut to the fewest bits."""
        bits = min(bits, *(part.bits for part in parts))
        keys = np.concatenate([cut(part.keys, bits) for part in parts])
        labels = np.concatenate([part.labels for part in parts])
        order = _order(keys, labels)
        keys, labels = keys[order], labels[order]
        starts = np.flatnonzero(_changes(keys, labels))
        counts: Any
        nan: Any
        if self.weighted:
            row = np.empty(len(order), np.int64)
            row[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
            counts, nan, begin = ExactSums(len(starts)), ExactSums(self.labels), 0
            for part in parts:
                end = begin + len(part.keys)
                counts.merge(part.counts.moved(row[begin:end], count=len(starts)))
                nan.merge(part.nan)
                begin = end
        else:
            numbers = np.concatenate([part.counts for part in parts])[order]
            counts = np.add.reduceat(numbers, starts) if len(starts) else numbers
            nan = np.sum([part.nan for part in parts], 0)
        return TableEntries(bits, keys[starts], labels[starts], counts, nan)


def _together(keys: Array, labels: Array) -> Array | None:
    """Return key and label in one integer; None if a key needs its lowest bits.

    Those of a cut key are 0. So are those of a float32, and of its complement, which stands for a negative one, 1.
    """
    low = keys & LABEL
    if low.any() and not (low == np.where(keys >> np.uint64(63), np.uint64(0), LABEL)).all():
        return None
    together: Array = (keys ^ low) | labels.astype(np.uint64)
    return together


def _order(keys: Array, labels: Array) -> Array:
    """Return the order by key and label."""
    together = _together(keys, labels)
    if together is None:
        _, number = np.unique(keys, return_inverse=True)
        together = number * MOST_LABELS + labels
    return np.argsort(together)  # equal ones are added up, so their order does not matter


def _ordered(keys: Array, labels: Array) -> tuple[Array, Array]:
    """Return keys and labels in the order of both."""
    together = _together(keys, labels)
    if together is None:
        order = _order(keys, labels)
        return keys[order], labels[order]
    ones = bool((keys & LABEL).any())
    together.sort()
    labels = together & LABEL
    keys = together ^ labels
    return keys | np.where(keys >> np.uint64(63), np.uint64(0), LABEL) if ones else keys, labels


def _changes(keys: Array, labels: Array) -> Array:
    """Return which entries differ from the one before, (E,) bool."""
    first = np.ones(len(keys), bool)
    first[1:] = (keys[1:] != keys[:-1]) | (labels[1:] != labels[:-1])
    return first
