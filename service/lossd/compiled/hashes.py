"""Hashes of rows, for runs: their groups, and the fingerprint of their targets.

:mod:`lossd.runs.rows.grouping` and :mod:`lossd.runs.rows.fingerprint` define them, and compute the same in NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lossd.compiled.arithmetic import jit
from lossd.compiled.kernels import aot
from lossd.compiled.memory import load

__all__ = ["add_words", "place_rows", "sum_hashes"]

# Numba makes a float64 of a uint64 and a Python integer.
GOLDEN, FIRST, SECOND = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
SIZE, INFINITY, NAN, INEXACT = map(np.uint64, ((1 << 63) - 1, 0x7FF << 52, 0x7FF8 << 48, 0x434 << 52))
ZERO, ONE, S27, S29, S30, S31, S32 = map(np.uint64, (0, 1, 27, 29, 30, 31, 32))
LOW = np.uint64((1 << 32) - 1)

STRIP = 512
"""Numbers whose words are made together: their bits stay in the processor's cache."""


@jit
def _final(x: Any) -> Any:
    """Return what splitmix64's finaliser makes of a uint64."""
    x ^= x >> S30
    x *= FIRST
    x ^= x >> S27
    x *= SECOND
    return x ^ (x >> S31)


@aot("void(uint64[::1], uint64[::1], int64[::1], uint64, boolean, int64[::1])")
def place_rows(keys: Any, firsts: Any, starts: Any, groups: Any, apart: bool, found: Any) -> None:
    """Find the group of each row.

    Args:
        keys: (R,) the rows' keys; (0,) if they count up from those of ``firsts``.
        firsts: (B,) the key of the first row of each batch; (0,) with ``keys``.
        starts: (B + 1,) the first row of each batch, and R.
        groups: How many groups there are, a power of two.
        apart: Whether the groups of all batches are numbered one after the other.
        found: (R,), written.
    """
    for b in range(starts.shape[0] - 1):
        before = b * np.int64(groups) if apart else 0
        if keys.shape[0]:
            for i in range(starts[b], starts[b + 1]):
                found[i] = before + np.int64(_final(keys[i] + GOLDEN) & (groups - ONE))
        else:
            begin, first = starts[b], firsts[b] + GOLDEN
            for i in range(starts[b + 1] - begin):
                found[begin + i] = before + np.int64(_final(first + np.uint64(i)) & (groups - ONE))


@jit
def _word(x: Any) -> Any:
    """Return the word of a float64, given its bits."""
    size = x & SIZE
    x = NAN if size > INFINITY else ZERO if size == ZERO else x
    x ^= x >> S32
    x *= GOLDEN
    return x ^ (x >> S29)


@jit
def _read(integers: Any, floats: Any, words: int, first: int, numbers: Any, width: int) -> None:
    """Read some numbers, the first of several, as float64."""
    if words:
        for j in range(width):
            numbers[j] = load(floats, first + j, words)
    else:
        for j in range(width):
            numbers[j] = np.float64(integers[first + j])


@jit
def _largest(bits: Any, width: int) -> Any:
    """Return the bits of the largest size of some numbers."""
    largest = ZERO
    for j in range(width):
        largest = max(largest, bits[j] & SIZE)
    return largest


@aot("boolean(int64[::1], float32[::1], int64, int64, int64, uint64[:,::1], uint64[:,::1])")
def add_words(integers: Any, floats: Any, words: int, entries: int, begin: int, keys: Any, lanes: Any) -> bool:
    """Add the value of a tensor, or of some of its columns, to each lane of the fingerprint.

    Args:
        integers: (R * entries,) the tensor, if it is of int64; else (0,).
        floats: (R * entries * words,) the tensor, see :mod:`lossd.compiled.memory`; (0,) if it is of int64.
        words: The float32 words of a number; 0 if the tensor is of int64.
        entries: The entries of a row.
        begin: The first column.
        keys: (2, J) the factors of the columns.
        lanes: (2, R), counted up.

    Returns:
        Whether float64 represents all integers; if not, the lanes are not to be used.
    """
    rows, columns = lanes.shape[1], keys.shape[1]
    numbers = np.empty(STRIP)
    bits, largest = numbers.view(np.uint64), ZERO
    if entries == 1:  # one loop over the rows takes a third of the time
        first, second = keys[0, 0], keys[1, 0]
        for start in range(0, rows, STRIP):
            width = min(STRIP, rows - start)
            _read(integers, floats, words, start, numbers, width)
            if words == 0:
                largest = max(largest, _largest(bits, width))
            for j in range(width):
                x = _word(bits[j])
                lanes[0, start + j] += x * first
                lanes[1, start + j] += x * second
        return bool(largest < INEXACT)
    for i in range(rows):
        low, high = ZERO, ZERO
        for start in range(0, columns, STRIP):
            width = min(STRIP, columns - start)
            _read(integers, floats, words, i * entries + begin + start, numbers, width)
            if words == 0:
                largest = max(largest, _largest(bits, width))
            for j in range(width):
                x = _word(bits[j])
                low += x * keys[0, start + j]
                high += x * keys[1, start + j]
        lanes[0, i] += low
        lanes[1, i] += high
    return bool(largest < INEXACT)


@aot("void(uint64[:,::1], uint64[::1], int64[::1], uint64[::1], int64[::1], uint64[:,::1])")
def sum_hashes(lanes: Any, seeds: Any, firsts: Any, keys: Any, starts: Any, sums: Any) -> None:
    """Add up the hashes of each batch's rows modulo 2**128.

    Args:
        lanes: (2, R) the values of the tensors without their seeds; changed.
        seeds: (2,) the sum of the seeds.
        firsts: (B,) the position of the first row of each batch, if rows are identified by position; else (0,).
        keys: (2,) the factors of the position.
        starts: (B + 1,) the first row of each batch, and R.
        sums: (B, 2), written: the low half and the high half.
    """
    numbers = np.empty(STRIP)
    bits = numbers.view(np.uint64)
    for b in range(starts.shape[0] - 1):
        lower, upper, high = ZERO, ZERO, ZERO
        for start in range(starts[b], starts[b + 1], STRIP):
            width = min(STRIP, starts[b + 1] - start)
            if firsts.shape[0]:
                first = firsts[b] + start - starts[b]
                for j in range(width):
                    numbers[j] = np.float64(first + j)
                for j in range(width):
                    x = _word(bits[j])
                    lanes[0, start + j] += x * keys[0]
                    lanes[1, start + j] += x * keys[1]
            for j in range(width):
                x = _final(lanes[0, start + j] + seeds[0])
                lower += x & LOW
                upper += x >> S32
                high += _final(lanes[1, start + j] + seeds[1])
        carried = upper + (lower >> S32)  # of the low half: no sum of fewer than 2**31 rows wraps around
        sums[b, 0] = (carried << S32) | (lower & LOW)
        sums[b, 1] = high + (carried >> S32)
