"""Hashes of rows, for runs: their groups, and the fingerprint of their targets.

:mod:`lossd.runs.rows.grouping` and :mod:`lossd.runs.rows.fingerprint` define them, and compute the same in NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lossd.compiled.arithmetic import jit
from lossd.compiled.kernels import aot

__all__ = ["add_words", "group_keys", "sum_hashes"]

# Numba makes a float64 of a uint64 and a Python integer.
GOLDEN, FIRST, SECOND = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
SIZE, INFINITY, NAN, INEXACT = map(np.uint64, ((1 << 63) - 1, 0x7FF << 52, 0x7FF8 << 48, 0x434 << 52))
ZERO, ONE, S27, S29, S30, S31, S32 = map(np.uint64, (0, 1, 27, 29, 30, 31, 32))


@jit
def _final(x: Any) -> Any:
    """Return what splitmix64's finaliser makes of a uint64."""
    x ^= x >> S30
    x *= FIRST
    x ^= x >> S27
    x *= SECOND
    return x ^ (x >> S31)


@aot("void(uint64[::1], uint64, int64[::1])")
def group_keys(keys: Any, groups: Any, found: Any) -> None:
    """Find the group of each row.

    Args:
        keys: (R,) the rows' keys.
        groups: How many groups there are, a power of two.
        found: (R,), written.
    """
    for i in range(keys.shape[0]):
        found[i] = _final(keys[i] + GOLDEN) & (groups - ONE)


@jit
def _word(x: Any) -> Any:
    """Return the word of a float64, given its bits."""
    size = x & SIZE
    x = NAN if size > INFINITY else ZERO if size == ZERO else x
    x ^= x >> S32
    x *= GOLDEN
    return x ^ (x >> S29)


@aot("boolean(uint64[:,::1], boolean, uint64[:,::1], uint64[:,::1])")
def add_words(bits: Any, whole: bool, keys: Any, lanes: Any) -> bool:
    """Add the value of a tensor to each lane of the fingerprint.

    Args:
        bits: (R, J) the bits of float64.
        whole: Whether they were integers.
        keys: (2, J) the factors of the entries.
        lanes: (R, 2), counted up.

    Returns:
        Whether float64 represents all integers; if not, the lanes are not to be used.
    """
    rows, entries = bits.shape
    largest = ZERO
    if whole:
        for i in range(rows):
            for j in range(entries):
                largest = max(largest, bits[i, j] & SIZE)
    if largest >= INEXACT:
        return False
    for i in range(rows if entries > 1 else 0):
        low, high = ZERO, ZERO
        for j in range(entries):
            x = _word(bits[i, j])
            low += x * keys[0, j]
            high += x * keys[1, j]
        lanes[i, 0] += low
        lanes[i, 1] += high
    if entries == 1:  # one loop over the rows takes a third of the time
        first, second = keys[0, 0], keys[1, 0]
        for i in range(rows):
            x = _word(bits[i, 0])
            lanes[i, 0] += x * first
            lanes[i, 1] += x * second
    return True


@aot("void(uint64[:,::1], uint64[::1], int64[::1], uint64[:,::1])")
def sum_hashes(lanes: Any, seeds: Any, starts: Any, sums: Any) -> None:
    """Add up the hashes of each batch's rows modulo 2**128.

    Args:
        lanes: (R, 2) the values of the tensors without their seeds.
        seeds: (2,) the sum of the seeds.
        starts: (B + 1,) the first row of each batch, and R.
        sums: (B, 2), written: the low half and the high half.
    """
    for b in range(starts.shape[0] - 1):
        low, high = ZERO, ZERO
        for i in range(starts[b], starts[b + 1]):
            x = _final(lanes[i, 0] + seeds[0])
            low += x
            high += _final(lanes[i, 1] + seeds[1]) + (ONE if low < x else ZERO)
        sums[b, 0], sums[b, 1] = low, high
