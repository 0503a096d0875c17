"""Exact sums of float64: integers that are added without rounding and rounded once, when they are read.

A sum is an integer in units of 2**-3250, so that it holds every float64 and every product of three. It is written in
digits of 32 bits, each from -2**31 to 2**31 - 1. Every integer has one such form, so the state depends on what was
added, and not on its order, on how it was split or on how the parts were merged. Only digits other than 0 are stored.

Values enter in blocks. Added to and subtracted from a large enough power of two, a float64 is rounded to a multiple of
a digit's unit. The sum of such multiples is exact in float64 while it stays below 2**53 units. What is left of each
value is smaller than the unit, and is treated in the same way until nothing is left: two or three steps for most data.

A single sum, which most batches contribute several of, is one Python integer. Few values are added to it as integers
too: that takes a fifth of the time of the arrays.

References:
    S. M. Rump, T. Ogita, S. Oishi, Accurate Floating-Point Summation Part I: Faithful Rounding, SIAM J. Sci. Comput.
        31(1), 2008, doi:10.1137/050645671: the extraction of leading bits.
    R. M. Neal, Fast Exact Summation Using Small and Large Superaccumulators, 2015, arXiv:1505.05571.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.exact.digits import (
    HEADER,
    MAGIC,
    MOST_PLACE,
    NON_FINITE,
    VERSION,
    Part,
    by_place,
    check_digits,
    grouped,
    size_of,
    starts_of,
    united,
)
from lossd.exact.integers import DIGIT, MOST, UNIT, digits_of, integer_of, number_of
from lossd.exact.products import exact_product, outside_of
from lossd_client.exact import ratio

__all__ = ["ExactSums", "total"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Index = Array | int
"""The sum of each value, or of all."""

LOWEST, LEAST_PLACE = -1074, (UNIT - 1074) // DIGIT
"""The exponent of the smallest float64, and the place of its digit."""

BLOCK = 1 << 14
"""Values in a block, few enough for a core's cache; as many as there are sums, if that is more."""

MANY_SUMS = 1 << 16
"""Up to so many sums are added to at a time, because each step has a result for each of them."""

MOST_SUMS = 1 << 40
"""More sums than there are."""

MOST_HELD = 1 << 20
"""Values that wait at most."""

HELD = MOST
"""Fewer values wait for more, because a step takes 10 µs whatever their number."""

STEPS = 512
"""Totals of up to 2**53 units that an int64 holds."""

FEW_SUMS = 1 << 12
"""Up to so many sums keep their latest totals as arrays of all sums, which are quicker to add to than digits."""

HUGE, TO_HUGE = 2.0**900, 512
"""Larger values are added times 2**-TO_HUGE, because the power of two that rounds them would be infinite."""


class ExactSums:
    """Sums of float64, kept exactly; NaN, infinity and -infinity are counted apart, and -0 is 0.

    A used sum takes three or four digits of 16 bytes for most data, an unused one nothing. There may be 2**64 values.

    Args:
        count: The number of sums, below 2**40; below 2**32 of sums that are to have bytes.
    """

    __hash__ = None  # type: ignore[assignment]  # it changes
    __slots__ = ("_digits", "_encoded", "_held", "_number", "_steps", "_totals", "_waiting", "count")

    def __init__(self, count: int = 1) -> None:
        if not 0 <= count < MOST_SUMS:
            raise ValueError(f"count must be from 0 to 2**40 - 1, found {count}")
        self.count = count
        # Place to the sums that have a digit there, rising, and the digits, int64; those of a single sum count what is
        # not finite only.
        self._digits: dict[int, Part] = {}
        # The single sum, in units of 2**-UNIT.
        self._number = 0
        # Place to a total of each sum, (count,) int64, not yet in the digits; and how many were added up.
        self._totals: dict[int, Array] = {}
        self._steps = 0
        # Values that wait until there are enough of them for so many sums, with their indices.
        self._waiting: list[tuple[Index, Floats]] = []
        self._held = 0
        # The bytes of the sums, if they are known.
        self._encoded: bytes | None = None

    def add(self, values: npt.ArrayLike, index: npt.ArrayLike | None = None) -> None:
        """Add values to sums.

        Args:
            values: The values, (N,) or any shape.
            index: The sum of each value, as many integers from 0 to ``count`` - 1; or one integer for all, which is
                several times as fast; None where there is one sum.

        Raises:
            ValueError: The index is missing, has another size or names no sum.
        """
        self._encoded = None
        flat = np.ravel(np.asarray(values, np.float64))
        self._enter(flat, self._checked(index, flat.size))

    def add_products(self, *factors: npt.ArrayLike, index: npt.ArrayLike | None = None) -> None:
        """Add the products of two or three factors, exactly, whatever their magnitude.

        A product whose factors are not all finite is NaN or infinite as in IEEE 754; all others are finite.

        Args:
            factors: Two or three arrays that broadcast to (N,) or any shape.
            index: As for :meth:`add`.

        Raises:
            ValueError: As for :meth:`add`.
        """
        if not 2 <= len(factors) <= 3:
            raise ValueError(f"products have two or three factors, found {len(factors)}")
        self._encoded = None
        arrays = np.broadcast_arrays(*(np.asarray(factor, np.float64) for factor in factors))
        flat = [np.ravel(array) for array in arrays]
        indices = self._checked(index, flat[0].size)
        for first in range(0, flat[0].size, BLOCK):
            part = slice(first, first + BLOCK)
            pieces = [factor[part] for factor in flat]
            if factors[1] is factors[0]:
                pieces[1] = pieces[0]  # of a square, the factor is split once
            self._enter_products(pieces, _at(indices, part))

    def merge(self, other: ExactSums) -> None:
        """Add each sum of ``other`` to the sum of the same index.

        Raises:
            ValueError: ``other`` has another number of sums.
        """
        self._combine(other, 1)

    def subtract(self, other: ExactSums) -> None:
        """Subtract each sum of ``other``, and its counts of NaN and infinities, as if they had never been added.

        Raises:
            ValueError: ``other`` has another number of sums.
        """
        self._combine(other, -1)

    def moved(self, *maps: npt.ArrayLike, count: int, cells: int = 1) -> ExactSums:
        """Return ``count`` sums, to which sums of these are added up.

        Args:
            maps: (self.count / cells,) integers each, which say to which ``cells`` sums as many of these are added, in
                order: number k to number ``map[k]``; -1 for none. Equal ones add sums up.
            count: The number of sums of the result.
            cells: How many sums, one after the other, move together.

        Raises:
            ValueError: A map has another size or names no sum.
        """
        answer = ExactSums(count)
        self._settle()
        parts: dict[int, list[Part]] = {}
        for sequence in maps:
            to = np.asarray(sequence)
            if len(to) * cells != self.count or (len(to) and not -1 <= to.min() <= to.max() < count / cells):
                raise ValueError(f"a map has {self.count // cells} integers from -1 to {count // cells - 1}")
            for place, (index, digits) in self._placed().items():
                target = to[index // cells]
                kept = target >= 0
                parts.setdefault(place, []).append(grouped((target * cells + index % cells)[kept], digits[kept]))
        answer._deposit(parts)
        return answer

    def split(self, parts: int) -> list[ExactSums]:
        """Return as many neighbouring sums in each of several parts, whose bytes are made together; one part is these.

        These sums are not to change afterwards.
        """
        self._settle()
        if parts == 1:
            return [self]
        count = self.count // parts
        answers = [ExactSums(count) for _ in range(parts)]
        placed = sorted(self._placed().items())
        if not placed:
            return answers
        index = np.concatenate([indices for _, (indices, _) in placed])
        part = index // count
        index = index - part * count
        digits = np.concatenate([digits for _, (_, digits) in placed])
        places = np.repeat([place for place, _ in placed], [len(indices) for _, (indices, _) in placed])
        order = np.argsort(part, kind="stable")
        index, digits, places = index[order], digits[order], places[order]
        columns = places.astype(np.uint8), index.astype("<u4"), digits.astype("<i4")
        bounds = np.searchsorted(part[order], np.arange(parts + 1)).tolist()
        first = 0
        for end in [*starts_of(part[order] * 256 + places)[1:].tolist(), len(order)]:
            answers[int(part[order[first]])]._place(int(places[first]), index[first:end], digits[first:end])
            first = end
        for answer, first, last in zip(answers, bounds, bounds[1:], strict=False):
            header = HEADER.pack(MAGIC, VERSION, count, last - first)
            answer._encoded = b"".join([header, *(column[first:last].tobytes() for column in columns)])
        return answers

    def without_groups(self, first: int, held: int, cells: int, groups: int) -> ExactSums:
        """Return the sums of all groups, and of all groups but one: 1 + groups times ``cells`` sums.

        Args:
            first: The first sum of group 0.
            held: The number of groups, of ``cells`` sums each; a multiple of ``groups``.
            cells: The number of sums of a group.
            groups: How many groups there are to be: number g has those that are g modulo ``groups``; 0 for no sums
                without a group.
        """
        self._settle()
        answer = ExactSums((1 + groups) * cells)
        parts: dict[int, list[Part]] = {}
        for place, (index, digits) in self._placed().items():
            part = slice(*np.searchsorted(index, (first, first + held * cells)))
            group, cell = np.divmod(index[part] - first, cells)
            apart = np.zeros((max(groups, 1), cells), np.int64)
            np.add.at(apart, (group % max(groups, 1), cell), digits[part])
            whole = apart.sum(0, keepdims=True)
            flat = np.concatenate([whole, whole - apart] if groups else [whole]).ravel()
            used = np.flatnonzero(flat)
            parts[place] = [(used, flat[used])]
        answer._deposit(parts)
        return answer

    def copy(self) -> ExactSums:
        """Return sums that change independently of these."""
        answer = ExactSums(self.count)
        answer.merge(self)
        return answer

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExactSums):
            return NotImplemented
        return self.encode() == other.encode()

    def __repr__(self) -> str:
        return f"ExactSums({self.sums()})"

    # Reading

    def integers(self) -> tuple[list[int], int]:
        """Return integers and a number of bits: sum k, without NaN and infinities, is ``integers[k] / 2**bits``.

        The bits are as few as these sums need, up to whole digits.
        """
        self._settle()
        parts = {place: part for place, part in self._placed().items() if place < NON_FINITE[0]}
        lowest = min([UNIT // DIGIT, *parts])
        # The bytes of each integer, a block of sums at a time. The highest digit is the sign.
        width = max([lowest, *parts]) - lowest + 2
        rows = max(1, MOST_HELD // width)
        answer: list[int] = []
        for first in range(0, self.count, rows):
            block = np.zeros((min(rows, self.count - first), width), np.int64)
            for place, (index, digits) in parts.items():
                these = slice(*np.searchsorted(index, (first, first + rows)))
                block[index[these] - first, place - lowest] = digits[these]
            for column in range(width - 1):
                block[:, column + 1] += block[:, column] >> DIGIT
            data, size = block.astype("<u4").tobytes(), 4 * width
            answer += [int.from_bytes(data[at : at + size], "little", signed=True) for at in range(0, len(data), size)]
        return answer, UNIT - DIGIT * lowest

    def fraction(self, k: int = 0) -> Fraction:
        """Return one sum, without NaN and infinities."""
        self._settle()
        number = self._number
        for place, (index, digits) in self._digits.items():
            at = np.searchsorted(index, k)
            if place < NON_FINITE[0] and at < len(index) and index[at] == k:
                number += int(digits[at]) << DIGIT * place
        return Fraction(number, 1 << UNIT)

    @property
    def non_finite(self) -> Array:
        """How many NaN, infinities and -infinities each sum contains, (count, 3) int64."""
        self._settle()
        answer = np.zeros((self.count, len(NON_FINITE)), np.int64)
        for place, (index, digits) in self._digits.items():
            for column, first in enumerate(NON_FINITE):
                if first <= place < first + 2:
                    answer[index, column] += digits << DIGIT * (place - first)
        return answer

    @property
    def signs(self) -> Array:
        """The sign of each sum, without NaN and infinities, (count,) int64: -1, 0 or 1."""
        return self._signs(0)

    def sums(self) -> Floats:
        """Return each sum rounded once to float64, (count,).

        NaN if it contains NaN or both infinities; infinite if it contains one of them or is beyond float64.
        """
        numerators, bits = self.integers()
        return self._with_non_finite(ratio(numerator, 1 << bits) for numerator in numerators)

    def means(self, counts: npt.ArrayLike | ExactSums) -> Floats:
        """Return each sum over a count, rounded once to float64, (count,); NaN over 0.

        Args:
            counts: Integers that broadcast to (count,); or sums of weights, as many as these, all finite.
        """
        numerators, bits = self.integers()
        if isinstance(counts, ExactSums):
            denominators, beneath = counts.integers()
        else:
            denominators, beneath = np.broadcast_to(np.asarray(counts), self.count).tolist(), 0
        pairs = zip(numerators, denominators, strict=True)
        means = self._with_non_finite(ratio(n << beneath, d << bits) for n, d in pairs)
        means[[d == 0 for d in denominators]] = np.nan
        return means

    # Bytes

    def encode(self) -> bytes:
        """Return the sums as bytes, equal for equal sums: 24 bytes, and 9 for each digit other than 0.

        The header is the magic ``esum``, the version, the number of sums and of digits, little-endian as all that
        follows: the place of each digit (uint8), its sum (uint32) and the digit (int32), in the order of place and sum.
        """
        if self._encoded is not None:
            return self._encoded
        self._settle()
        if not self._digits:
            placed = list(digits_of(self._number))
            head = HEADER.pack(MAGIC, VERSION, self.count, len(placed)) + bytes(place for place, _ in placed)
            return head + bytes(4 * len(placed)) + struct.pack(f"<{len(placed)}i", *(digit for _, digit in placed))
        parts = sorted(self._placed().items())
        none = np.zeros(0, np.int64)
        places = np.concatenate([none, *(np.full(len(index), place) for place, (index, _) in parts)])
        columns = (
            places.astype(np.uint8),
            np.concatenate([none, *(index for _, (index, _) in parts)]).astype("<u4"),
            np.concatenate([none, *(digits for _, (_, digits) in parts)]).astype("<i4"),
        )
        header = HEADER.pack(MAGIC, VERSION, self.count, len(places))
        return b"".join([header, *(column.tobytes() for column in columns)])

    @classmethod
    def decode(cls, data: bytes | memoryview, *, count: int) -> ExactSums:
        """Return the sums that :meth:`encode` wrote.

        Args:
            data: Bytes, trusted in nothing.
            count: The number of sums that there must be.

        Raises:
            ValueError: The bytes are not those of as many sums, in the form that ``encode`` writes.
        """
        size = size_of(data, count)
        answer = cls(count)
        if size == 0:
            return answer
        if count == 1 and data[HEADER.size + size - 1] <= MOST_PLACE:
            answer._number = number_of(bytes(data[HEADER.size :]), size)
            return answer
        places = np.frombuffer(data, np.uint8, size, HEADER.size)
        index = np.frombuffer(data, "<u4", size, HEADER.size + size).astype(np.int64)
        digits = np.frombuffer(data, "<i4", size, HEADER.size + 5 * size).astype(np.int64)
        check_digits(places, index, digits, count, np.array([size]))
        ends = [*(np.flatnonzero(places[1:] != places[:-1]) + 1).tolist(), size]
        first = 0
        for end in ends:
            place, part = int(places[first]), digits[first:end]
            answer._place(place, index[first:end], part)
            first = end
        if places[-1] >= NON_FINITE[0] and any((answer._signs(place) < 0).any() for place in NON_FINITE):
            raise ValueError("exact sums contain a negative number of values that are not finite")
        return answer

    @classmethod
    def merged(cls, many: Sequence[bytes | memoryview], *, count: int) -> ExactSums:
        """Return the sum of sums that :meth:`encode` wrote.

        The result is that of decoding each and merging them. All are read at once, which takes a tenth of the time if
        they are small. Arguments and errors are those of :meth:`decode`.
        """
        if len(many) == 1:
            return cls.decode(many[0], count=count)
        answer = cls(count)
        sized = [(data, size_of(data, count)) for data in many]
        columns = [
            b"".join([data[HEADER.size + first * size : HEADER.size + last * size] for data, size in sized])
            for first, last in ((0, 1), (1, 5), (5, 9))
        ]
        places = np.frombuffer(columns[0], np.uint8)
        if not len(places):
            return answer
        if places.max() >= NON_FINITE[0]:  # counts whose signs are checked one by one
            for data in many:
                answer.merge(cls.decode(data, count=count))
            return answer
        index, digits = (
            np.frombuffer(column, dtype).astype(np.int64)
            for column, dtype in zip(columns[1:], ("<u4", "<i4"), strict=True)
        )
        check_digits(places, index, digits, count, np.cumsum([size for _, size in sized]))
        answer._deposit(by_place(places, index, digits, count))
        return answer

    # Adding

    def _checked(self, index: npt.ArrayLike | None, size: int) -> Index:
        """Return the index as (size,) int64, or as one integer."""
        if index is None:
            if self.count != 1:
                raise ValueError(f"index must say to which of {self.count} sums each value belongs")
            return 0
        flat = np.ravel(np.asarray(index))
        if flat.size != size and np.ndim(index):
            raise ValueError(f"index must have one integer for each of {size} values, found {flat.size}")
        if flat.dtype.kind not in "iub" and flat.size:
            raise ValueError(f"index must be integers, found {flat.dtype}")
        flat = flat.astype(np.int64, copy=False)
        if flat.size and not 0 <= flat.min() <= flat.max() < self.count:
            raise ValueError(f"index must be from 0 to {self.count - 1}, found {flat.min()} to {flat.max()}")
        return 0 if self.count == 1 else flat if np.ndim(index) else int(flat[0])

    def _enter(self, values: Floats, index: Index) -> None:
        """Add values at once, or hold copies until there are enough."""
        enough = HELD if isinstance(index, int) else max(HELD, min(self.count, MOST_HELD))
        if len(values) >= enough:
            if self.count == 1 and values.min() == values.max() and math.isfinite(values[0]):  # the sizes of rows
                self._number += integer_of(values[:1]) * len(values)
            else:
                self._add_up(values, index)
            return
        self._waiting.append((index if isinstance(index, int) else index.copy(), values.copy()))
        self._held += len(values)
        if self._held >= max(HELD, min(self.count, MOST_HELD)):
            self._enter_waiting()

    def _enter_waiting(self) -> None:
        if not self._waiting:
            return
        values = np.concatenate([values for _, values in self._waiting])
        index: Index = 0
        if self.count > 1:
            index = np.concatenate([np.broadcast_to(indices, len(values)) for indices, values in self._waiting])
        self._waiting, self._held = [], 0
        if self.count == 1 and len(values) < HELD:
            finite = np.isfinite(values)
            if not finite.all():
                self._count_non_finite(values[~finite], 0)
                values = values[finite]
            self._number += integer_of(values)
            return
        self._add_up(values, index)

    def _add_up(self, values: Floats, index: Index) -> None:
        """Add values to all sums together; or, if there are many sums, to a few neighbouring ones at a time."""
        if isinstance(index, int) or self.count <= min(MANY_SUMS, 4 * len(values)):
            self._spread(values, index)
            return
        order = np.argsort(index, kind="stable")
        parts: dict[int, list[Part]] = {}
        for first in range(0, len(order), MANY_SUMS):
            these = order[first : first + MANY_SUMS]
            used, group = np.unique(index[these], return_inverse=True)
            few = ExactSums(len(used))
            few._spread(values[these], group if len(used) > 1 else 0)
            few._settle()
            for place, (indices, digits) in few._placed().items():
                parts.setdefault(place, []).append((used[indices], digits))
        self._deposit(parts)

    def _spread(self, values: Floats, index: Index, exponent: int = 0) -> None:
        """Add values times two to the exponent, a multiple of ``DIGIT``, block by block."""
        length = BLOCK if isinstance(index, int) else max(BLOCK, self.count)
        for first in range(0, len(values), length):
            part = slice(first, first + length)
            self._spread_block(values[part], _at(index, part), exponent)
        if self.count > FEW_SUMS:
            self._settle_totals()

    def _spread_block(self, rest: Floats, index: Index, exponent: int) -> None:
        largest = _largest(rest)
        if not largest < math.inf:
            finite = np.isfinite(rest)
            self._count_non_finite(rest[~finite], _at(index, ~finite))
            rest = np.where(finite, rest, 0.0)
            largest = _largest(rest)
        if largest > HUGE:
            huge = np.abs(rest) > HUGE
            self._spread_block(np.where(huge, rest * 2.0**-TO_HUGE, 0.0), index, exponent + TO_HUGE)
            rest = np.where(huge, 0.0, rest)
            largest = _largest(rest)
        headroom = max(2, (len(rest) - 1).bit_length()) - 53
        offset = UNIT + exponent
        least = max(0, LEAST_PLACE + exponent // DIGIT)
        while largest > 0:
            # The lowest place in whose units the sum of so many values stays below 2**53.
            place = max(least, -(-(math.frexp(largest)[1] + headroom + offset) // DIGIT))
            unit = DIGIT * place - offset
            rounder = math.ldexp(1.5, unit + 52)
            multiples = rest + rounder
            multiples -= rounder
            rest = rest - multiples
            if isinstance(index, int):
                self._gain_one(place, index, int(math.ldexp(float(np.add.reduce(multiples)), -unit)))
            else:
                totals = np.bincount(index, multiples, self.count)
                self._gain(place, _times_two_to(totals, -unit).astype(np.int64))
            largest = _largest(rest)

    def _gain(self, place: int, totals: Array) -> None:
        before = self._totals.get(place)
        self._totals[place] = totals if before is None else before + totals
        self._count_step()

    def _gain_one(self, place: int, k: int, total: int) -> None:
        if self.count > FEW_SUMS:
            self._deposit({place: [(np.array([k]), np.array([total]))]})
            return
        if place not in self._totals:
            self._totals[place] = np.zeros(self.count, np.int64)
        self._totals[place][k] += total
        self._count_step()

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps == STEPS:
            self._settle_totals()

    def _count_non_finite(self, values: Floats, index: Index) -> None:
        indices = np.broadcast_to(index, len(values))
        kinds = (np.isnan(values), values == np.inf, values == -np.inf)
        parts = {}
        for first, kind in zip(NON_FINITE, kinds, strict=True):
            if kind.any():
                parts[first] = [grouped(indices[kind], np.ones(np.count_nonzero(kind), np.int64))]
        self._deposit(parts)

    def _enter_products(self, factors: list[Floats], index: Index) -> None:
        outside = outside_of(factors)
        if outside is not None:
            self._enter_far_products([factor[outside] for factor in factors], _at(index, outside))
            factors = [np.where(outside, 0.0, factor) for factor in factors]
        for term in exact_product(factors):
            self._enter(term, index)

    def _enter_far_products(self, factors: list[Floats], index: Index) -> None:
        """Add products of factors of any magnitude: those of their mantissas, times powers of two."""
        finite = np.logical_and.reduce([np.isfinite(factor) for factor in factors])
        if not finite.all():
            # A finite factor of an infinity has only a sign: 1e-300 times 1e-300 would be 0.
            signs = [np.where(np.isfinite(factor), np.sign(factor), factor)[~finite] for factor in factors]
            with np.errstate(invalid="ignore"):
                self._count_non_finite(np.multiply.reduce(signs), _at(index, ~finite))
        pairs = [np.frexp(np.where(finite, factor, 0.0)) for factor in factors]
        exponents = np.add.reduce([exponent for _, exponent in pairs], dtype=np.int64)
        terms = exact_product([mantissa for mantissa, _ in pairs])
        for digits in np.unique(exponents // DIGIT).tolist():
            these = exponents // DIGIT == digits
            for term in terms:
                self._spread(np.ldexp(term[these], exponents[these] % DIGIT), _at(index, these), DIGIT * digits)

    # The digits

    def _settle(self) -> None:
        """Bring all that was added into the digits."""
        self._enter_waiting()
        self._settle_totals()

    def _settle_totals(self) -> None:
        self._steps = 0
        if not self._totals:
            return
        parts = {}
        for place, totals in self._totals.items():
            index = np.flatnonzero(totals)
            parts[place] = [(index, totals[index])]
        self._totals = {}
        self._deposit(parts)

    def _combine(self, other: ExactSums, sign: int) -> None:
        if other.count != self.count:
            raise ValueError(f"expected {self.count} exact sums, found {other.count}")
        other._settle()
        self._encoded = None
        self._number += sign * other._number
        if self.count > MANY_SUMS:
            self._deposit({place: [(index, sign * digits)] for place, (index, digits) in other._digits.items()})
            return
        for place, (index, digits) in other._digits.items():
            if place not in self._totals:
                self._totals[place] = np.zeros(self.count, np.int64)
            self._totals[place][index] += digits if sign > 0 else -digits  # each index stands once
        self._count_step()

    def _deposit(self, parts: dict[int, list[Part]]) -> None:
        """Add digits of any size, of rising sums, and carry from the lowest place on, once."""
        while parts:
            place = min(parts)
            if self.count == 1 and place < NON_FINITE[0]:
                self._number += sum(int(digit) for _, part in parts.pop(place) for digit in part) << DIGIT * place
                continue
            before = self._digits.pop(place, None)
            index, digits = united([*parts.pop(place), *([] if before is None else [before])], self.count)
            carry = (digits + (1 << DIGIT - 1)) >> DIGIT
            digits = digits - (carry << DIGIT)
            if carry.any():
                carried = carry != 0
                parts.setdefault(place + 1, []).append((index[carried], carry[carried]))
            kept = digits != 0
            if kept.all():
                if kept.size:
                    self._digits[place] = index, digits
            elif kept.any():
                self._digits[place] = index[kept], digits[kept]

    def _place(self, place: int, index: Array, digits: Array) -> None:
        """Set the digits of a place at which there are none."""
        if self.count == 1 and place <= MOST_PLACE:
            self._number += int(digits[0]) << DIGIT * place
        else:
            self._digits[place] = index, digits

    def _placed(self) -> dict[int, Part]:
        """Return all digits by place, those of a single sum among them."""
        one = np.zeros(1, np.int64)
        digits = {place: (one, np.array([digit])) for place, digit in digits_of(self._number)}
        return {**digits, **self._digits}

    def _signs(self, first: int) -> Array:
        """Return the sign of the numbers whose lowest place is ``first``: that of their highest digit."""
        self._settle()
        last = NON_FINITE[0] - 1 if first == 0 else first + 2
        signs = np.zeros(self.count, np.int64)
        if first == 0 and self.count == 1:
            signs[0] = (self._number > 0) - (self._number < 0)
        for place in sorted(self._digits):
            if first <= place <= last:
                index, digits = self._digits[place]
                signs[index] = np.sign(digits)
        return signs

    def _with_non_finite(self, finite: Iterable[float]) -> Floats:
        values = np.fromiter(finite, np.float64, self.count)
        if any(place >= NON_FINITE[0] for place in self._digits):
            nan, above, below = (self.non_finite > 0).T
            values[above], values[below] = np.inf, -np.inf
            values[nan | (above & below)] = np.nan
        return values


def total(values: npt.ArrayLike) -> float:
    """Return the sum of an array, rounded once; NaN of both infinities, infinite beyond float64."""
    sums = ExactSums()
    sums.add(values)
    return float(sums.sums()[0])


def _at(index: Index, place: slice | Array) -> Index:
    """Return the index of some of the values."""
    return index if isinstance(index, int) else index[place]


def _largest(values: Floats) -> float:
    """Return the largest size; NaN if there is NaN, 0 of nothing."""
    return float(np.maximum(np.maximum.reduce(values), -np.minimum.reduce(values))) if values.size else 0.0


def _times_two_to(values: Array, exponent: int) -> Array:
    """Return what np.ldexp does, faster where the power is a float64."""
    power = math.ldexp(1.0, exponent) if exponent < 1024 else math.inf
    return values * power if power < math.inf else np.ldexp(values, exponent)
