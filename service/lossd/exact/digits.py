"""The digits of exact sums: their places, their sums, and the bytes in which they are kept.

A digit has a place, the index of its sum, and a value. The bytes begin with a header. The digits other than 0 follow,
in the order of places, then of sums.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.exact.integers import DIGIT

__all__ = [
    "HEADER",
    "MAGIC",
    "MOST_PLACE",
    "NON_FINITE",
    "VERSION",
    "Part",
    "by_place",
    "check_digits",
    "grouped",
    "size_of",
    "united",
]

Array = npt.NDArray[Any]
Part = tuple[Array, Array]
"""Indices of sums, and a digit of each."""

MOST_PLACE = 201
"""The highest place of 2**64 products of three."""

NON_FINITE = (208, 224, 240)
"""The places from which NaN, infinity and -infinity are counted, as numbers of their own."""

# Which bytes are places.
_PLACES = np.zeros(256, bool)
_PLACES[: MOST_PLACE + 1] = True
for _place in NON_FINITE:
    _PLACES[_place : _place + 2] = True

HEADER = struct.Struct("<4sIQQ")
MAGIC, VERSION = b"esum", 1


def size_of(data: bytes | memoryview, count: int) -> int:
    """Return the number of digits in the bytes of ``count`` sums.

    Raises:
        ValueError: The header is wrong.
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
    return int(size)


def check_digits(places: Array, index: Array, digits: Array, count: int, ends: Array) -> None:
    """Check digits in the form that ``encode`` writes; those of several sums end at ``ends``.

    Raises:
        ValueError: A digit is 0, out of order, at no place or of no sum.
    """
    if not (_PLACES[places].all() and index.max() < count and digits.all()):
        raise ValueError("a digit of exact sums is 0, at no place or of no sum")
    order = (places.astype(np.int64) << DIGIT) + index
    rising = order[1:] > order[:-1]
    rising[ends[(ends > 0) & (ends < len(order))] - 1] = True
    if not rising.all():
        raise ValueError("the digits of exact sums are not in order")


def by_place(places: Array, index: Array, digits: Array, count: int) -> dict[int, list[Part]]:
    """Return the sums of the digits of equal places and indices, by place."""
    found = {}
    for place in np.flatnonzero(np.bincount(places)).tolist():
        here = places == place
        indices, part = index[here], digits[here]
        if 4 * len(indices) < count:
            found[place] = [grouped(indices, part)]
            continue
        totals = np.zeros(count, np.int64)
        np.add.at(totals, indices, part)
        used = np.flatnonzero(totals)
        found[place] = [(used, totals[used])]
    return found


def grouped(index: Array, digits: Array) -> Part:
    """Return the sums of the digits of equal indices, by rising index."""
    if (index[1:] > index[:-1]).all():
        return index, digits
    order = np.argsort(index, kind="stable")
    index = index[order]
    starts = starts_of(index)
    return index[starts], np.add.reduceat(digits[order], starts)


def starts_of(index: Array) -> Array:
    """Return where each run of equal entries starts."""
    starts = np.ones(len(index), bool)
    np.not_equal(index[1:], index[:-1], out=starts[1:])
    return np.flatnonzero(starts)


def united(parts: list[Part], count: int) -> Part:
    """Return the sums of the digits of equal indices, below ``count``; each part's indices rise."""
    if len(parts) == 1:
        return parts[0]
    index, digits = parts[0]
    others = parts[1:]
    if all(np.array_equal(index, indices) for indices, _ in others):
        return index, sum((part for _, part in others), digits)
    if 4 * sum(len(indices) for indices, _ in parts) < count:
        return grouped(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    totals = np.zeros(count, np.int64)
    for indices, part in parts:
        totals[indices] += part
    index = np.flatnonzero(totals)
    return index, totals[index]
