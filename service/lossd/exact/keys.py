"""Numbers as unsigned 64-bit integers of the same order; their leading bits are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "BITS",
    "HIGHEST",
    "LOWEST",
    "NEGATIVE_ZERO",
    "cut",
    "fitting_bits",
    "keys_of",
    "narrow",
    "starts_of",
    "values_of",
    "widened",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

BITS = 64
NEGATIVE_ZERO = (1 << 63) - 1
LOWEST, HIGHEST = (1 << 52) - 1, (1 << 64) - (1 << 52)
"""The integers of -0, -infinity and infinity."""


def keys_of(values: Floats) -> Array:
    """Return the integers of float64 numbers, of the same order: the bits, all of them flipped below 0."""
    values = values + 0.0  # -0 becomes 0
    flipped = (values.view(np.int64) >> 63).view(np.uint64) | np.uint64(1 << 63)
    return values.view(np.uint64) ^ flipped


def values_of(keys: Array) -> Floats:
    """Return the float64 numbers of integers."""
    flipped = ((keys >> np.uint64(63)) - np.uint64(1)) | np.uint64(1 << 63)
    values: Floats = (keys ^ flipped).view(np.float64)
    return values


def cut(keys: Array, bits: int) -> Array:
    """Return integers with all but the leading bits 0."""
    return keys & np.uint64((1 << BITS) - (1 << BITS - bits))


def narrow(keys: Array, bits: int) -> Array:
    """Return integers cut to their leading bits, as 32 bits if these are enough: they are sorted twice as fast."""
    keys = cut(keys, bits)
    return (keys >> np.uint64(32)).astype(np.uint32) if bits <= 32 else keys


def widened(keys: Array) -> Array:
    """Return the integers of 64 bits that :func:`narrow` was given, cut."""
    return keys.astype(np.uint64) << np.uint64(32) if keys.dtype == np.uint32 else keys


def starts_of(ordered: Array) -> Array:
    """Return the places of the first of each value among ordered integers."""
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return np.flatnonzero(first)


def fitting_bits(keys: Array, bits: int, limit: int) -> int:
    """Return the most leading bits, at most ``bits``, with which rising keys have at most ``limit`` distinct values."""
    if len(keys) <= limit:
        return bits
    differing = keys[1:] ^ keys[:-1]
    differing = differing & ~(differing >> np.uint64(1))  # the highest bit stays, and rounding cannot carry beyond it
    # The exponent of a float64, which is biased by 1023, is the place of its highest bit.
    needed = BITS + 1023 - (differing.astype(np.float64).view(np.int64) >> 52)
    different = 1 + np.cumsum(np.bincount(needed, minlength=BITS + 1))
    return int(np.flatnonzero(different <= limit)[-1])
