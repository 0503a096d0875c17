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
    T. J. Dekker, A Floating-Point Technique for Extending the Available Precision, 1971, doi:10.1007/BF01397083: the
        product of two float64 as two float64.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.runs.integers import DIGIT, MOST, UNIT, digits_of, integer_of, number_of
from lossd_client.exact import ratio

__all__ = ["ExactSums", "root", "rounded", "second_moment", "total"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Part = tuple[Array, Array]
Index = Array | int
"""The sum of each value, or of all."""

LOWEST, LEAST_PLACE = -1074, (UNIT - 1074) // DIGIT
"""The exponent of the smallest float64, and the place of its digit."""

MOST_PLACE = 201
"""The highest place of 2**64 products of three."""

NON_FINITE = (208, 224, 240)
"""The places from which NaN, infinity and -infinity are counted, as numbers of their own."""

# Which bytes are places.
_PLACES = np.zeros(256, bool)
_PLACES[: MOST_PLACE + 1] = True
for _place in NON_FINITE:
    _PLACES[_place : _place + 2] = True

BLOCK = 1 << 14
"""Values in a block, few enough for a core's cache; as many as there are sums, if that is more."""

MANY_SUMS = 1 << 16
"""Up to so many sums are added to at a time, because each step has a result for each of them."""

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

SAFE = 2.0**-300, 2.0**300
"""Between these, no product of three and no rounding error of it leaves the range of float64."""

HEADER = struct.Struct("<4sIQQ")
MAGIC, VERSION = b"esum", 1


class ExactSums:
    """Sums of float64, kept exactly; NaN, infinity and -infinity are counted apart, and -0 is 0.

    A used sum takes three or four digits of 16 bytes for most data, an unused one nothing. There may be 2**64 values.

    Args:
        count: The number of sums, below 2**32.
    """

    __hash__ = None  # type: ignore[assignment]  # it changes
    __slots__ = ("_digits", "_held", "_number", "_steps", "_totals", "_waiting", "count")

    def __init__(self, count: int = 1) -> None:
        if not 0 <= count < 1 << 32:
            raise ValueError(f"count must be from 0 to 2**32 - 1, found {count}")
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

    def add(self, values: npt.ArrayLike, index: npt.ArrayLike | None = None) -> None:
        """Add values to sums.

        Args:
            values: The values, (N,) or any shape.
            index: The sum of each value, as many integers from 0 to ``count`` - 1; or one integer for all, which is
                several times as fast; None where there is one sum.

        Raises:
            ValueError: The index is missing, has another size or names no sum.
        """
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
        arrays = np.broadcast_arrays(*(np.asarray(factor, np.float64) for factor in factors))
        flat = [np.ravel(array) for array in arrays]
        of = self._checked(index, flat[0].size)
        for first in range(0, flat[0].size, BLOCK):
            part = slice(first, first + BLOCK)
            pieces = [factor[part] for factor in flat]
            if factors[1] is factors[0]:
                pieces[1] = pieces[0]  # of a square, the factor is split once
            self._enter_products(pieces, _at(of, part))

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

    def moved(self, index: npt.ArrayLike, count: int) -> ExactSums:
        """Return ``count`` sums, of which sum ``index[k]`` contains sum k of these.

        Args:
            index: (self.count,) integers from 0 to ``count`` - 1; equal ones add sums up.
            count: The number of sums of the result.

        Raises:
            ValueError: The index has another size or names no sum.
        """
        answer = ExactSums(count)
        to = np.broadcast_to(answer._checked(index, self.count), self.count)
        self._settle()
        answer._deposit({place: [_grouped(to[of], digits)] for place, (of, digits) in self._placed().items()})
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
        # The bytes of each integer, of which the highest digit is the sign, a block of sums at a time.
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
        self._settle()
        if not self._digits:
            own = list(digits_of(self._number))
            head = HEADER.pack(MAGIC, VERSION, self.count, len(own)) + bytes(place for place, _ in own)
            return head + bytes(4 * len(own)) + struct.pack(f"<{len(own)}i", *(digit for _, digit in own))
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
        if len(data) < HEADER.size:
            raise ValueError(f"exact sums have at least {HEADER.size} bytes, found {len(data)}")
        magic, version, found, size = HEADER.unpack_from(data)
        if (magic, version) != (MAGIC, VERSION):
            raise ValueError(f"no exact sums of version {VERSION}: they start with {bytes(data[:8])!r}")
        if found != count:
            raise ValueError(f"expected {count} exact sums, found {found}")
        if len(data) != HEADER.size + 9 * size:
            raise ValueError(f"{size} digits of exact sums have {HEADER.size + 9 * size} bytes, found {len(data)}")
        answer = cls(count)
        if size == 0:
            return answer
        if count == 1 and data[HEADER.size + size - 1] <= MOST_PLACE:
            answer._number = number_of(bytes(data[HEADER.size :]), size)
            return answer
        places = np.frombuffer(data, np.uint8, size, HEADER.size)
        index = np.frombuffer(data, "<u4", size, HEADER.size + size).astype(np.int64)
        digits = np.frombuffer(data, "<i4", size, HEADER.size + 5 * size).astype(np.int64)
        if not (_PLACES[places].all() and index.max() < count and digits.all()):
            raise ValueError("a digit of exact sums is 0, at no place or of no sum")
        order = (places.astype(np.int64) << DIGIT) + index
        if not (order[1:] > order[:-1]).all():
            raise ValueError("the digits of exact sums are not in order")
        ends = [*(np.flatnonzero(places[1:] != places[:-1]) + 1).tolist(), size]
        first = 0
        for end in ends:
            place, part = int(places[first]), digits[first:end]
            if count == 1 and place <= MOST_PLACE:
                answer._number += int(part[0]) << DIGIT * place
            else:
                answer._digits[place] = index[first:end], part
            first = end
        if places[-1] >= NON_FINITE[0] and any((answer._signs(place) < 0).any() for place in NON_FINITE):
            raise ValueError("exact sums contain a negative number of values that are not finite")
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
            index = np.concatenate([np.broadcast_to(of, len(values)) for of, values in self._waiting])
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
            used, own = np.unique(index[these], return_inverse=True)
            few = ExactSums(len(used))
            few._spread(values[these], own if len(used) > 1 else 0)
            few._settle()
            for place, (of, digits) in few._placed().items():
                parts.setdefault(place, []).append((used[of], digits))
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
        of = np.broadcast_to(index, len(values))
        kinds = (np.isnan(values), values == np.inf, values == -np.inf)
        parts = {}
        for first, kind in zip(NON_FINITE, kinds, strict=True):
            if kind.any():
                parts[first] = [_grouped(of[kind], np.ones(np.count_nonzero(kind), np.int64))]
        self._deposit(parts)

    def _enter_products(self, factors: list[Floats], index: Index) -> None:
        outside = _outside(factors)
        if outside is not None:
            self._enter_far_products([factor[outside] for factor in factors], _at(index, outside))
            factors = [np.where(outside, 0.0, factor) for factor in factors]
        for term in _products(factors):
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
        terms = _products([mantissa for mantissa, _ in pairs])
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
        self._number += sign * other._number
        if self.count > FEW_SUMS:
            self._deposit({place: [(index, sign * digits)] for place, (index, digits) in other._digits.items()})
            return
        for place, (index, digits) in other._digits.items():
            totals = np.zeros(self.count, np.int64)
            totals[index] = sign * digits
            self._gain(place, totals)

    def _deposit(self, parts: dict[int, list[Part]]) -> None:
        """Add digits of any size, of rising sums, and carry from the lowest place on, once."""
        while parts:
            place = min(parts)
            if self.count == 1 and place < NON_FINITE[0]:
                self._number += sum(int(digit) for _, part in parts.pop(place) for digit in part) << DIGIT * place
                continue
            before = self._digits.pop(place, None)
            index, digits = _united([*parts.pop(place), *([] if before is None else [before])], self.count)
            carry = (digits + (1 << DIGIT - 1)) >> DIGIT
            digits = digits - (carry << DIGIT)
            if (carried := carry != 0).any():
                parts.setdefault(place + 1, []).append((index[carried], carry[carried]))
            if (kept := digits != 0).any():
                self._digits[place] = index[kept], digits[kept]

    def _placed(self) -> dict[int, Part]:
        """Return all digits by place, those of a single sum among them."""
        one = np.zeros(1, np.int64)
        own = {place: (one, np.array([digit])) for place, digit in digits_of(self._number)}
        return {**own, **self._digits}

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


def rounded(value: Fraction) -> float:
    """Return the nearest float64; infinite beyond float64."""
    return ratio(value.numerator, value.denominator)


def root(value: Fraction) -> float:
    """Return the float64 nearest to the square root of a number that is not negative."""
    numerator, denominator = value.numerator, value.denominator
    # 60 bits of the root, and one that says whether there are more: enough to round to 53.
    shift = 60 - (numerator.bit_length() - denominator.bit_length()) // 2
    square, left = divmod(numerator << 2 * max(shift, 0), denominator << 2 * max(-shift, 0))
    found = math.isqrt(square)
    found = 2 * found + (left > 0 or found**2 != square)
    return ratio(found << max(-shift - 1, 0), 1 << max(shift + 1, 0))


def second_moment(count: Fraction | int, sums: tuple[Fraction, Fraction], products: Fraction) -> Fraction:
    """Return the sum of (x - mean x)(y - mean y), without the cancellation that rounded sums would have.

    Args:
        count: How many pairs there are, or the sum of their weights; not 0.
        sums: The sums of x and of y, times the weights.
        products: The sum of xy, times the weights.
    """
    return products - sums[0] * sums[1] / Fraction(count)


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


def _grouped(index: Array, digits: Array) -> Part:
    """Return the sums of the digits of equal indices, by rising index."""
    if not index.size:
        return index, digits
    order = np.argsort(index, kind="stable")
    index = index[order]
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    return index[starts], np.add.reduceat(digits[order], starts)


def _united(parts: list[Part], count: int) -> Part:
    """Return the sums of the digits of equal indices, below ``count``; each part's indices rise."""
    index, digits = parts[0]
    others = parts[1:]
    if all(np.array_equal(index, of) for of, _ in others):
        return index, sum((part for _, part in others), digits)
    if 4 * sum(len(of) for of, _ in parts) < count:
        return _grouped(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    totals = np.zeros(count, np.int64)
    for of, part in parts:
        totals[of] += part
    index = np.flatnonzero(totals)
    return index, totals[index]


def _outside(factors: list[Floats]) -> Array | None:
    """Return which products have a factor beyond ``SAFE``, other than 0; None if there is none."""
    outside = None
    for number, factor in enumerate(factors):
        if any(factor is before for before in factors[:number]) or not factor.size:
            continue
        size = np.abs(factor)
        if SAFE[0] <= np.minimum.reduce(size) and np.maximum.reduce(size) <= SAFE[1]:
            continue
        beyond = ~(((size >= SAFE[0]) & (size <= SAFE[1])) | (size == 0))
        outside = beyond if outside is None else outside | beyond
    return outside if outside is not None and outside.any() else None


def _products(factors: list[Floats]) -> list[Floats]:
    """Return arrays whose sum is the product of two or three factors, exactly; within ``SAFE``."""
    terms = _two_product(factors[0], factors[1])
    for factor in factors[2:]:
        terms = [part for term in terms for part in _two_product(term, factor)]
    return terms


def _two_product(x: Floats, y: Floats) -> list[Floats]:
    """Return the product, and its rounding error unless it has none."""
    product = x * y
    x_high, x_low = _halves(x)
    y_high, y_low = (x_high, x_low) if y is x else _halves(y)
    if not (x_low.any() or y_low.any()):  # 26 bits times 26 bits, such as numbers of single precision
        return [product]
    return [product, x_low * y_low - (((product - x_high * y_high) - x_low * y_high) - x_high * y_low)]


def _halves(x: Floats) -> tuple[Floats, Floats]:
    """Return the upper 26 bits of each mantissa, and the rest."""
    scaled = x * 134217729.0  # 2**27 + 1
    high = scaled - (scaled - x)
    return high, x - high
