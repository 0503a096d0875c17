"""A single exact sum as one Python integer in units of 2**-3250, and its digits."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DIGIT", "MOST", "UNIT", "digits_of", "integer_of", "number_of"]

Array = npt.NDArray[Any]

DIGIT = 32
"""Bits of a digit."""

UNIT = 3250
"""Sums are in units of 2**-UNIT: at most 2**-3222, the smallest product of three, and 2**-1074 starts a digit."""

MOST, WINDOW, HALF = 1 << 11, 24, 27
"""By how many bits the halves of mantissas are shifted: 27 + 24 bits of ``MOST`` values add up in an int64."""

HALF_DIGIT = 1 << DIGIT - 1


def integer_of(values: Array) -> int:
    """Return the sum of up to ``MOST`` finite float64 in units of 2**-UNIT.

    The mantissas are integers of 53 bits. Both halves of them, shifted by up to ``WINDOW`` bits, add up in int64.
    """
    if not values.size:
        return 0
    mantissas, exponents = np.frexp(values)
    whole = (mantissas * 2.0**53).astype(np.int64)
    lowest = int(exponents.min())
    shifts = exponents - lowest
    if int(shifts.max()) <= WINDOW:
        return _shifted(whole, shifts) << UNIT - 53 + lowest
    windows = shifts // (WINDOW + 1)
    total = 0
    for window in np.unique(windows).tolist():
        these = windows == window
        first = window * (WINDOW + 1)
        total += _shifted(whole[these], shifts[these] - first) << UNIT - 53 + lowest + first
    return total


def _shifted(whole: Array, shifts: Array) -> int:
    """Return the sum of integers of 53 bits, each shifted by up to ``WINDOW`` bits."""
    upper, lower = whole >> HALF, whole & (1 << HALF) - 1
    return (int((upper << shifts).sum()) << HALF) + int((lower << shifts).sum())


def digits_of(number: int) -> Iterator[tuple[int, int]]:
    """Yield the place and the digit of each digit other than 0 of an integer, the lowest first."""
    place = 0
    while number:
        empty = ((number & -number).bit_length() - 1) // DIGIT
        place, number = place + empty, number >> DIGIT * empty
        digit = ((number + HALF_DIGIT) & (1 << DIGIT) - 1) - HALF_DIGIT
        if digit:
            yield place, digit
        place, number = place + 1, (number - digit) >> DIGIT


def number_of(data: bytes, size: int) -> int:
    """Return the integer of the digits of a single sum: places (uint8), zeros (uint32) and digits (int32).

    Raises:
        ValueError: They are not in the form that ``encode`` writes.
    """
    places, digits = data[:size], struct.unpack_from(f"<{size}i", data, 5 * size)
    if any(data[size : 5 * size]) or 0 in digits:
        raise ValueError("a digit of exact sums is 0, at no place or of no sum")
    if any(place >= behind for place, behind in itertools.pairwise(places)):
        raise ValueError("the digits of exact sums are not in order")
    return sum(digit << DIGIT * place for place, digit in zip(places, digits, strict=True))
