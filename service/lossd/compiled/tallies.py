"""Counts of a run's entries, and the bytes of sums of integers.

:mod:`lossd.metrics.combinations` and :mod:`lossd.exact.integer_sums` define them, and compute the same in NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lossd.compiled.arithmetic import jit
from lossd.compiled.kernels import aot

__all__ = ["pack_sums", "tally"]

SHIFT = 4
BLOCK = 1 << SHIFT
"""Neighbouring cells of which one mark says whether any was counted: most cells of many classes are 0."""


@jit
def _count(cell: int, counts: Any, marks: Any) -> None:
    """Count an entry in a cell, and mark its block."""
    counts[cell] += 1
    marks[cell >> SHIFT] = 1


@aot(
    "int64(int64[::1], int64[::1], int64, boolean[::1], int64, int64[::1], int64[::1], int64, int64, int64[::1], "
    "int64[::1])"
)
def tally(
    key: Any,
    upper: Any,
    factor: int,
    ignored: Any,
    width: int,
    place: Any,
    starts: Any,
    slots: int,
    cells: int,
    found: Any,
    times: Any,
) -> int:
    """Count how many entries of each combination have each key; return how many of these counts are not 0.

    Args:
        key: (R * width,) keys, from 0 to ``cells`` - 1 where the entry counts; (0,) for one entry a row, of key 0.
        upper: (R * width,) what is added to the keys, times ``factor``; (0,) for nothing.
        factor: The factor of ``upper``.
        ignored: (R * width,) the entries that do not count; (0,) if all count.
        width: The entries of a row.
        place: (R,) the combination of each row; those of batch b are b * ``slots`` and the following.
        starts: (B + 1,) the first row of each batch, and R.
        slots: The combinations of a batch.
        cells: The number of keys.
        found: Written: the combination times ``cells`` plus the key of each count, rising; one more is written.
        times: Written: the counts; one more is written.
    """
    size, number = slots * cells, 0
    counts = np.zeros(size + BLOCK, np.int32)
    marks = np.zeros(size // BLOCK + 1, np.uint8)
    for b in range(starts.shape[0] - 1):
        first = b * slots
        if key.shape[0] == 0:
            for i in range(starts[b], starts[b + 1]):
                _count(place[i] - first, counts, marks)
        elif upper.shape[0] == 0 and ignored.shape[0] == 0:
            for i in range(starts[b], starts[b + 1]):
                for j in range(i * width, (i + 1) * width):
                    _count((place[i] - first) * cells + key[j], counts, marks)
        else:
            for i in range(starts[b], starts[b + 1]):
                for j in range(i * width, (i + 1) * width):
                    if ignored.shape[0] == 0 or not ignored[j]:
                        above = factor * upper[j] if upper.shape[0] else 0
                        _count((place[i] - first) * cells + key[j] + above, counts, marks)
        for mark in range(marks.shape[0]):
            if marks[mark]:
                marks[mark] = 0
                for cell in range(mark << SHIFT, (mark + 1) << SHIFT):
                    # Written whatever the count: a branch that half of the cells take costs more.
                    found[number], times[number] = first * cells + cell, counts[cell]
                    number += counts[cell] != 0
                    counts[cell] = 0
    return number


@jit
def _write(numbers: Any, width: int, data: Any, at: int) -> int:
    """Write integers of 1, 2, 4 or 8 bytes, little-endian, and return where they end."""
    if width == 1:  # by itself, so that LLVM makes vector instructions of it
        for k in range(numbers.shape[0]):
            data[at + k] = np.uint8(numbers[k])
    elif width == 2:
        for k in range(numbers.shape[0]):
            data[at + 2 * k], data[at + 2 * k + 1] = np.uint8(numbers[k]), np.uint8(numbers[k] >> 8)
    else:
        for k in range(numbers.shape[0]):
            for byte in range(width):
                data[at + width * k + byte] = np.uint8(numbers[k] >> (8 * byte))
    return at + width * numbers.shape[0]


@jit
def _width(most: int) -> int:
    """Return the bytes of an unsigned integer: 1, 2, 4 or 8."""
    return 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4 if most < 1 << 32 else 8


@aot("void(int64[::1], int64[::1], int64, uint8[::1], int64[::1])")
def pack_sums(index: Any, values: Any, size: int, data: Any, ends: Any) -> None:
    """Write the bytes of the sums of each part.

    Args:
        index: The sums other than 0 of all parts, rising, (m,).
        values: These, (m,).
        size: The number of sums of a part.
        data: Written: the bytes of the parts, one after the other.
        ends: (P,), written: where those of each part end.
    """
    at, first, gaps = 0, 0, np.empty(index.shape[0], np.int64)
    for part in range(ends.shape[0]):
        last = first + int(np.searchsorted(index[first:], (part + 1) * size))
        if first < last:
            gaps[first] = index[first] - part * size
        for k in range(first + 1, last):
            gaps[k] = index[k] - index[k - 1] - 1
        gap, largest = 0, 0
        for k in range(first, last):
            gap = max(gap, gaps[k])
            largest = max(largest, values[k] ^ (values[k] >> 63))  # of a negative one: -1 minus it
        gap_width, width = _width(gap), 1 if largest < 1 << 7 else _width(2 * largest) if largest < 1 << 31 else 8
        for byte in range(4):
            data[at + byte] = np.uint8((last - first) >> (8 * byte))
        data[at + 4], data[at + 5] = gap_width, width
        at = _write(gaps[first:last], gap_width, data, at + 6)
        at = _write(values[first:last], width, data, at)
        ends[part], first = at, last
