"""Tables of values and their counts, cut to as many leading bits as fit, from which ranks and quantiles are read.

A value is an unsigned integer of 64 bits of the same order: the bits of its float64. A table keeps the first ``bits``
of each, and how much there is of each such cell. All 64 are kept while there are at most ``limit`` different values;
answers are then exact. Beyond, as many bits are kept as fit.

The state depends on what was added alone. Let D(b) be how many different beginnings of b bits all values have; it grows
with b and with more values. The bits in the end are b*, the largest b with D(b) at most ``limit``. A part of the values
has smaller D, so a table that was cut before the last value was added was cut to b* bits or more. The first b* bits of
its cells are those of its values, and so are their counts. So it does not matter when a table is cut, nor in which
order and from which parts it is made.

A cut table answers as if the values of one cell were equal, and says how far the true answer can be. Counts above a
cell's lowest value are exact: points of curves, taken there, are points of the true curves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.exact.keys import (
    BITS,
    HIGHEST,
    LOWEST,
    NEGATIVE_ZERO,
    cut,
    fitting_bits,
    keys_of,
    narrow,
    starts_of,
    values_of,
    widened,
)
from lossd.exact.steps import Steps, area_under_roc, precision_of_positives, tied_pairs
from lossd.exact.sums import ExactSums, total
from lossd_client.exact import ratio

__all__ = ["ROWS", "Bounded", "Table", "between"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
CellBatch = tuple[int, Array, Any]
Waiting = list[tuple[Array, Array | None, Floats | None]]

ROWS = 1 << 20
"""The number of cells that a table may have by default."""

LEAST_HELD = 1 << 12
"""Values that wait to be sorted into the cells, at least. Else as many as cells, or twice as many without weights."""

BLOCK = 1 << 15
"""Values that are made integers together, few enough for a core's cache."""

MOST = 1 << 60
"""More values than a table counts."""

HEADER = struct.Struct("<4sIBBBBIQ")
MAGIC, VERSION = b"tabl", 1
WIDTHS = (1, 2, 4, 8)

ROUNDING = 2.0**-48
"""More than the rounding errors of a bound."""


@dataclass(frozen=True, slots=True)
class Bounded:
    """An answer and its certainty.

    Attributes:
        value: The answer; NaN if a value is NaN.
        within: The largest distance of the true answer; 0 where the value is exact but for its rounding.
        bits: The leading bits of each value that the table keeps; 64 if it keeps all.
    """

    value: float
    within: float
    bits: int


class Table:
    """How many values there are of each kind, by value; NaN are counted apart, -0 is 0.

    Args:
        kinds: The number of kinds of values: 2 for scores of negatives (0) and positives (1), 1 for plain values.
        weighted: Whether values have weights, which are then summed exactly.
        limit: The largest number of cells. A cell of two kinds takes 24 bytes, of weights about 80.
    """

    __slots__ = ("_bits", "_cells", "_held", "_keys", "_merging", "_steps", "_waiting", "kinds", "limit", "weighted")

    def __init__(self, kinds: int = 2, *, weighted: bool = False, limit: int = ROWS) -> None:
        if not (1 <= kinds < 256 and 1 <= limit < 1 << 32):
            raise ValueError(f"a table has up to 255 kinds and at least one cell, found {kinds} and {limit}")
        self.kinds, self.weighted, self.limit = kinds, weighted, limit
        self._bits = BITS
        self._keys: Array = np.zeros(0, np.uint64)
        # The counts of each key, and of NaN as the last: (kinds, rows + 1) int64; or (rows + 1) · kinds sums.
        self._cells: Any = ExactSums(kinds) if weighted else np.zeros((kinds, 1), np.int64)
        self._waiting: Waiting = []
        # The cells of other tables, which wait until they are as many as these.
        self._merging: list[CellBatch] = []
        self._held = 0
        self._steps: Steps | None = None

    @classmethod
    def of_cells(cls, bits: int, keys: Array, cells: Any, *, kinds: int, weighted: bool, limit: int) -> Table:
        """Return the table of cells, with no more bits than fit its limit.

        Args:
            bits: The leading bits of each value that are kept.
            keys: The cells' integers, rising, (rows,) uint64.
            cells: The counts of each and then of NaN, (kinds, rows + 1) int64; or (rows + 1) · kinds sums of weights.
            kinds: As of a table.
            weighted: As of a table.
            limit: As of a table.
        """
        answer = cls(kinds, weighted=weighted, limit=limit)
        if len(keys) <= limit:
            answer._bits, answer._keys, answer._cells = bits, keys, cells
        else:
            answer._absorb([(bits, keys, cells)])
        return answer

    @property
    def bits(self) -> int:
        """The leading bits of each value that are kept, 0 to 64."""
        self._settle()
        return self._bits

    @property
    def rows(self) -> int:
        """The number of cells."""
        self._settle()
        return len(self._keys)

    @property
    def whole(self) -> bool:
        """Whether every value is a cell of its own."""
        return self.bits == BITS

    def add(
        self, values: npt.ArrayLike, labels: npt.ArrayLike | None = None, weights: npt.ArrayLike | None = None
    ) -> None:
        """Add values.

        Args:
            values: Any real, infinite or NaN, (N,) or any shape.
            labels: The kind of each, as many integers or bools; None where there is one kind.
            weights: The weight of each, as many, finite and at least 0; those of weight 0 are left out. Given if the
                table is weighted, None if it is not.

        Raises:
            ValueError: The labels or the weights are missing, of another size or out of range.
        """
        flat = np.ravel(np.asarray(values, np.float64))
        kind, weight = self._checked(flat.size, labels, weights)
        step = max(self.limit * (1 if self.weighted else 2), LEAST_HELD)
        length = min(step, BLOCK)
        for first in range(0, flat.size, length):
            part = slice(first, first + length)
            self._hold(flat[part], _at(kind, part), _at(weight, part))
            if self._held >= step:
                self._settle()

    def merge(self, other: Table) -> None:
        """Add all that was added to another table.

        Raises:
            ValueError: The other has other kinds, weights or another limit.
        """
        if (mine := self._shape) != other._shape:
            raise ValueError(f"tables differ in kinds, weights or limit: {mine} and {other._shape}")
        other._settle()
        self._merging.append((other._bits, other._keys, other._cells.copy()))
        self._steps = None
        if sum(len(keys) for _, keys, _ in self._merging) > max(LEAST_HELD, len(self._keys)):
            self._settle()

    @classmethod
    def pooled(cls, tables: Iterable[Table], limit: int = ROWS) -> Table:
        """Return a table of the values of several, of the same kinds, with a limit of its own; they stay as they are.

        Its bits are at most those of each table.
        """
        first, *others = tables
        answer = cls(first.kinds, weighted=first.weighted, limit=limit)
        answer._join([first, *others])
        return answer

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table):
            return NotImplemented
        return self.encode() == other.encode()

    __hash__ = None  # type: ignore[assignment]  # it changes

    # Scores of negatives and positives

    def steps(self) -> Steps:
        """Return the counts at or above the lowest value of each cell, falling; of two kinds."""
        self._settle()
        if self._steps is None:
            self._steps = self._falling()
        return self._steps

    def _falling(self) -> Steps:
        negatives, positives = self._counts()
        lowest, highest = self._ends()
        order = slice(None, None, -1)
        unranked = bool(negatives[-1] or positives[-1])
        # The row of NaN is the last, so it comes first.
        rows = slice(None) if unranked else slice(1, None)
        tp, fp = (np.cumsum(counts[order][rows]) for counts in (positives, negatives))
        nan = [np.nan] * unranked
        edges = [np.concatenate([nan, ends[order]]) for ends in (lowest, highest)]
        return Steps(edges[0], tp, fp, None if self.whole else edges[1])

    def auroc(self) -> Bounded | None:
        """Return the area under the ROC curve; None if all values are of one kind.

        Half the pairs of a positive and a negative in one cell may be on the wrong side of it.
        """
        s = self.steps()
        value, defined = area_under_roc(s)
        if not defined:
            return None
        if self.whole or s.unranked:
            return Bounded(value, 0.0, self._bits)
        half = ratio(tied_pairs(s), 2 * s.positives * s.negatives)
        return Bounded(value, _above(half), self._bits)

    def average_precision(self) -> Bounded | None:
        """Return the average precision; None if no value is positive.

        The best order of a cell has its positives first, as one step, the worst has them last, one by one.
        """
        s = self.steps()
        value, defined = precision_of_positives(s)
        if not defined:
            return None
        if self.whole or s.unranked:
            return Bounded(value, 0.0, self._bits)
        whole = s.positives + s.negatives
        scale = 1 if s.tp.dtype != object else 1 << whole.bit_length()
        tp, fp = (np.asarray(np.append(0, counts) / scale, np.float64) for counts in (s.tp, s.fp))
        found, before = np.diff(tp), tp[:-1]
        some = found > 0
        found, before, least, most = found[some], before[some], fp[:-1][some], fp[1:][some]
        best = found * ((before + found) / (before + found + least))
        # The sum of (before + j) / (before + j + most) for j = 1 to found is at least the integral from 1/2 to
        # found + 1/2, because this is concave in j. The sum for any weights is at least the integral from 0 to found.
        start = before + (0.0 if self.weighted else 0.5) + most
        start = np.maximum(start, found * 2.0**-1000)  # so that no quotient overflows
        worst = found - most * np.log1p(found / np.where(start > 0, start, 1))
        positives = s.positives / scale
        if positives == 0:  # beside the negatives' weight they vanish in float64
            return Bounded(value, 1.0, self._bits)
        within = max(total(best) / positives - value, value - total(worst) / positives)
        return Bounded(value, _above(within), self._bits)

    # Plain values

    def quantiles(self, levels: Sequence[float]) -> tuple[Floats, Floats] | None:
        """Return between which numbers each quantile is, low and high, as many as levels; None if there is no value.

        They are equal if the table is whole. Between two values linearly, as numpy.quantile; of weights, the smallest
        value at which the share of the weight, rounded to float64, reaches the level. NaN if a value is NaN.

        Args:
            levels: Numbers from 0 to 1.
        """
        (counts,) = self._counts()
        if counts[-1]:
            return np.full(len(levels), np.nan), np.full(len(levels), np.nan)
        if not len(self._keys):
            return None
        ends, fractions, reached = self._ends(), np.array(levels, np.float64), np.cumsum(counts[:-1])
        if self.weighted:
            row = np.searchsorted(np.asarray(reached / reached[-1], np.float64), fractions)
            return ends[0][row], ends[1][row]
        place = fractions * (int(reached[-1]) - 1)
        first, second = (np.searchsorted(reached, to(place).astype(np.int64), "right") for to in (np.floor, np.ceil))
        low, high = (between(values[first], values[second], place % 1) for values in ends)
        if self._bits == BITS:
            return low, high
        with np.errstate(over="ignore"):  # of the largest float64; the ends of the table bound it again
            low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
        return np.maximum(low, ends[0][0]), np.minimum(high, ends[1][-1])

    def shares(self) -> tuple[Floats, Floats, Floats]:
        """Return the middle of each cell, rising, its share in all values but NaN, and half its width, (rows,) each.

        Of one kind of values.
        """
        (counts,) = self._counts()
        low, high = self._ends()
        middle = np.where(low == high, low, low / 2 + high / 2)
        return middle, np.asarray(counts[:-1] / max(counts[:-1].sum(), 1), np.float64), high / 2 - low / 2

    # Bytes

    def encode(self) -> bytes:
        """Return the table as bytes, equal for equal tables.

        The header is the magic ``tabl``, the version, the number of kinds, whether there are weights, the bits, the
        bytes of a count, the limit and the number of cells, little-endian as all that follows: the cells' integers
        (uint64), rising, and their counts by kind, of each cell and then of NaN; or exact sums.
        """
        self._settle()
        if self.weighted:
            width, cells = 0, self._cells.encode()
        else:
            width = next(w for w in WIDTHS if int(self._cells.max()) < 1 << 8 * w)
            cells = self._cells.T.astype(f"<u{width}").tobytes()
        shape = (self.kinds, self.weighted, self._bits, width, self.limit, len(self._keys))
        return b"".join([HEADER.pack(MAGIC, VERSION, *shape), self._keys.astype("<u8").tobytes(), cells])

    @classmethod
    def decode(cls, data: bytes | memoryview, *, like: Table) -> Table:
        """Return the table that :meth:`encode` wrote.

        Args:
            data: Bytes, trusted in nothing.
            like: A table of the kinds, weights and limit that it must have.

        Raises:
            ValueError: The bytes are not those of such a table, in the form that ``encode`` writes.
        """
        if len(data) < HEADER.size:
            raise ValueError(f"a table has at least {HEADER.size} bytes, found {len(data)}")
        magic, version, kinds, weighted, bits, width, limit, rows = HEADER.unpack_from(data)
        if (magic, version) != (MAGIC, VERSION):
            raise ValueError(f"no table of version {VERSION}: it starts with {bytes(data[:8])!r}")
        if (kinds, weighted, limit) != like._shape:
            raise ValueError(f"tables differ in kinds, weights or limit: {like._shape}, {(kinds, weighted, limit)}")
        start = HEADER.size + 8 * rows
        if rows > limit or bits > BITS or len(data) < start or width not in ((0,) if weighted else WIDTHS):
            raise ValueError(f"no table has {rows} cells of {bits} bits in {len(data)} bytes, with counts of {width}")
        answer = cls(kinds, weighted=like.weighted, limit=limit)
        answer._bits, answer._keys = bits, np.frombuffer(data, "<u8", rows, HEADER.size).astype(np.uint64)
        if weighted:
            answer._cells = ExactSums.decode(data[start:], count=(rows + 1) * kinds)
            used = answer._cells.signs.reshape(-1, kinds)
            if answer._cells.non_finite.any():
                raise ValueError("a table has a weight that is not finite")
        else:
            if len(data) != start + width * (rows + 1) * kinds:
                raise ValueError(f"a table of {rows} cells has other than {len(data)} bytes")
            used = np.frombuffer(data[start:], f"<u{width}").astype(np.int64).reshape(-1, kinds)
            answer._cells = np.ascontiguousarray(used.T)
            if used.sum(dtype=np.float64) >= MOST:
                raise ValueError("a table counts more values than there can be")
        if (used < 0).any() or not used[:-1].any(1).all():
            raise ValueError("a table has a cell of nothing, or of less")
        answer._check_keys()
        if answer.encode() != bytes(data):
            raise ValueError("a table is in another form than the shortest")
        return answer

    def _check_keys(self) -> None:
        keys = self._keys
        lowest, highest = cut(np.array([LOWEST, HIGHEST], np.uint64), self._bits)
        wrong = (keys[1:] <= keys[:-1]).any() or (cut(keys, self._bits) != keys).any()
        wrong |= ((keys < lowest) | (keys > highest)).any()
        if wrong or (self._bits == BITS and (keys == NEGATIVE_ZERO).any()):
            raise ValueError("the cells of a table are not in order, or not of numbers of its bits")

    # Cells

    @property
    def _shape(self) -> tuple[int, bool, int]:
        return self.kinds, self.weighted, self.limit

    def _checked(
        self, size: int, labels: npt.ArrayLike | None, weights: npt.ArrayLike | None
    ) -> tuple[Array | None, Floats | None]:
        """Return labels and weights, (size,) each; labels None if there is one kind."""
        kind, weight = None, None
        if labels is not None:
            kind = np.ravel(np.asarray(labels))
            if (
                kind.size != size
                or kind.dtype.kind not in "biu"
                or (size and not 0 <= kind.min() <= kind.max() < self.kinds)
            ):
                raise ValueError(f"labels must be {size} integers from 0 to {self.kinds - 1}")
        elif self.kinds > 1:
            raise ValueError(f"labels must say of which of {self.kinds} kinds each value is")
        if (weights is not None) != self.weighted:
            raise ValueError(
                "weights must be given" if self.weighted else "a table without weights has no sums of them"
            )
        if weights is not None:
            weight = np.ravel(np.asarray(weights, np.float64))
            if weight.size != size or not ((weight >= 0) & (weight < np.inf)).all():
                raise ValueError(f"weights must be {size} finite numbers, none below 0")
        return None if self.kinds == 1 else kind, weight

    def _hold(self, values: Floats, labels: Array | None, weights: Floats | None) -> None:
        """Keep values until there are enough of them to be sorted; NaN are counted at once."""
        kept = ~np.isnan(values)
        nan = ~kept
        if weights is not None:
            kept &= weights > 0
        if not kept.all():
            if nan.any():
                self._count_nan(int(nan.sum()), _at(labels, nan), _at(weights, nan))
            values, labels, weights = values[kept], _at(labels, kept), _at(weights, kept)
        keys = narrow(keys_of(values), self._bits)
        if self.weighted or labels is None:
            self._waiting.append((keys, _copied(labels), _copied(weights)))
        else:
            # Kind by kind, because integers are sorted several times as fast without labels that move along. Numbers of
            # places are found without branches, unlike what a mask of random labels picks out.
            for kind in range(self.kinds):
                self._waiting.append((keys[np.flatnonzero(labels == kind)], np.array(kind), None))
        self._held += len(values)

    def _count_nan(self, size: int, labels: Array | None, weights: Floats | None) -> None:
        self._steps = None
        kind = np.zeros(size, np.int64) if labels is None else labels.astype(np.int64)
        if weights is None:
            self._cells[:, -1] += np.bincount(kind, minlength=self.kinds)
        else:
            self._cells.add(weights[weights > 0], len(self._keys) * self.kinds + kind[weights > 0])

    def _settle(self) -> None:
        """Bring what waits into the cells."""
        if self._merging:
            merging, self._merging = self._merging, []
            self._absorb(merging)
        if not self._waiting:
            return
        waiting, self._waiting, self._held = self._waiting, [], 0
        if self.weighted:
            self._add_weights(waiting)
        else:
            self._absorb(self._counted(waiting))

    def _counted(self, waiting: Waiting) -> list[CellBatch]:
        """Return the cells of values that wait, kind by kind; the list of these is emptied."""
        keys = [[keys for keys, k, _ in waiting if k is None or k == kind] for kind in range(self.kinds)]
        waiting.clear()
        parts = []
        for kind in range(self.kinds):
            ordered = np.concatenate(keys[kind])
            keys[kind].clear()
            ordered.sort()
            starts = starts_of(ordered)
            cells = np.zeros((self.kinds, len(starts) + 1), np.int64)
            np.subtract(np.append(starts[1:], len(ordered)), starts, out=cells[kind, :-1])
            parts.append((self._bits, widened(ordered[starts]), cells))
        return parts

    def _add_weights(self, waiting: Waiting) -> None:
        """Make cells of values that wait, and add the weights to them."""
        keys = widened(np.concatenate([keys for keys, _, _ in waiting]))
        order = np.argsort(keys)
        keys = keys[order]
        new = keys[starts_of(keys)]
        self._absorb([(self._bits, new, ExactSums((len(new) + 1) * self.kinds))])
        cell = np.searchsorted(self._keys, cut(keys, self._bits))
        if self.kinds > 1:
            cell = cell * self.kinds + np.concatenate([labels for _, labels, _ in waiting if labels is not None])[order]
        self._cells.add(np.concatenate([weights for _, _, weights in waiting if weights is not None])[order], cell)

    def _join(self, tables: Sequence[Table]) -> None:
        for table in [self, *tables]:
            table._settle()
        self._absorb([(table._bits, table._keys, table._cells) for table in tables])

    def _absorb(self, parts: list[CellBatch]) -> None:
        """Add cells to these, and keep as many bits as fit."""
        parts = [(self._bits, self._keys, self._cells), *parts]
        bits = min(bits for bits, _, _ in parts)
        keys = np.concatenate([cut(keys, bits) for _, keys, _ in parts])
        order = np.argsort(keys, kind="stable")  # the parts are sorted, so this merges them
        keys = keys[order]
        starts = starts_of(keys)
        self._bits = fitting_bits(keys[starts], bits, self.limit)
        if self._bits < bits:
            keys = cut(keys, self._bits)
            starts = starts_of(keys)
        self._keys, self._steps = keys[starts], None
        cells = [cells for _, _, cells in parts]
        self._cells = (self._merged_weights if self.weighted else self._merged_counts)(cells, order, starts)

    def _merged_counts(self, parts: list[Array], order: Array, starts: Array) -> Array:
        """Return the counts of merged cells.

        Args:
            parts: The counts of each part.
            order: The places of all cells, part after part, in the order of their keys.
            starts: The first of each key in that order.
        """
        answer = np.zeros((self.kinds, len(starts) + 1), np.int64)
        for kind, counts in enumerate(answer):
            # Differences of running sums: several times as fast as np.add.reduceat.
            running = np.concatenate([cells[kind, :-1] for cells in parts])[order]
            np.cumsum(running, out=running)
            counts[:-2], counts[-2:-1] = running[starts[1:] - 1], running[-1:]
            counts[1:-1] -= counts[:-2].copy()
            counts[-1] = sum(cells[kind, -1] for cells in parts)
        return answer

    def _merged_weights(self, parts: list[ExactSums], order: Array, starts: Array) -> ExactSums:
        """Return the weights of merged cells; arguments are those of :meth:`_merged_counts`."""
        count = len(starts)
        row = np.empty(len(order), np.int64)
        row[order] = np.repeat(np.arange(count), np.diff(starts, append=len(order)))
        answer = ExactSums((count + 1) * self.kinds)
        begin = 0
        for cells in parts:
            end = begin + cells.count // self.kinds - 1
            rows = np.append(row[begin:end], count)
            to = (rows[:, None] * self.kinds + np.arange(self.kinds)).ravel()
            answer.merge(cells.moved(to, count=answer.count))
            begin = end
        return answer

    def _counts(self) -> list[Array]:
        """Return the counts of each kind by cell and of NaN, (rows + 1,) each; Python's integers if weighted."""
        self._settle()
        if not self.weighted:
            return list(self._cells)
        numerators = np.empty((len(self._keys) + 1) * self.kinds, object)
        numerators[:] = self._cells.integers()[0]
        return list(numerators.reshape(-1, self.kinds).T)

    def _ends(self) -> tuple[Floats, Floats]:
        """Return the lowest and the highest value of each cell."""
        if self._bits == BITS:
            return (values := values_of(self._keys)), values
        highest = self._keys | np.uint64((1 << BITS - self._bits) - 1)
        # -0 is no value.
        ends = (self._keys, np.where(highest == NEGATIVE_ZERO, np.uint64(NEGATIVE_ZERO - 1), highest))
        low, high = (values_of(np.clip(end, np.uint64(LOWEST), np.uint64(HIGHEST))) for end in ends)
        return low, high


def between(low: Floats, high: Floats, share: Floats) -> Floats:
    """Return numbers at a share of the way from low to high, as numpy.quantile, but next to an infinity too."""
    with np.errstate(invalid="ignore"):
        step = high - low
        # Each on its own where their difference is infinite.
        found = np.where(np.isfinite(step), low + step * share, low * (1 - share) + high * share)
    return np.where(low == high, low, found)


def _at(column: Any, place: Any) -> Any:
    return None if column is None else column[place]


def _copied(column: Array | None) -> Any:
    return None if column is None else column.copy()


def _above(bound: float) -> float:
    return max(bound, 0.0) + ROUNDING
