"""Nested lists of numbers in JSON: their shape, their entries, and the place of a fault.

Each level is flattened by a loop in C, so nothing recurses, however deep the lists are. NumPy receives a list only
after all its entries are known to be numbers: one long string would make every entry of its array as long.
"""

from __future__ import annotations

import struct
from itertools import chain
from typing import Any, Literal

import numpy as np

from lossd_client.errors import DtypeMismatch, InvalidValue, MalformedBody, TooLarge
from lossd_client.wire.quoting import quoted
from lossd_client.wire.tensor import MAX_RANK, element_count

__all__ = ["EXACT_IN_FLOAT32", "SPELLED", "flatten", "numbers", "place", "singles"]

EXACT_IN_FLOAT32 = 2.0**24
"""Float32 represents every integer up to here."""

SPELLED = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""The numbers that JSON lacks, by their strings."""

_NUMBERS = frozenset((int, float, bool))
_EXACT = 2.0**53  # a float up to here is the integer that its digits say
_STORAGE = {"q": "<i8", "Q": "<u8", "d": "<f8", "f": "<f4"}


def flatten(name: str, value: Any) -> tuple[tuple[int, ...], list[Any]]:
    """Return the shape of a nested list, and its entries in row-major order; :func:`numbers` checks the entries.

    Raises:
        MalformedBody: Lists of one level differ in length.
        DtypeMismatch: A level has lists and other values.
        TooLarge: The lists nest more than 8 levels deep.
    """
    shape: tuple[int, ...] = ()
    level = [value]
    while level and type(level[0]) is list:
        kinds, lengths = set(map(type, level)), {len(level[0])}
        if len(kinds) > 1:
            raise _wrong_type(name, shape, level, frozenset((list,)))
        lengths.update(map(len, level))
        if len(lengths) > 1:
            at = next(i for i, item in enumerate(level) if len(item) != len(level[0]))
            raise MalformedBody(
                f"{name} is ragged: {place(name, shape, at)} has {len(level[at])} entries, the one before it "
                f"{len(level[0])}"
            )
        if len(shape) == MAX_RANK:
            raise TooLarge(f"{name} has more than {MAX_RANK} axes; at most {MAX_RANK} are read")
        shape = (*shape, len(level[0]))
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return shape, level


def numbers(
    name: str,
    shape: tuple[int, ...],
    entries: list[Any],
    *,
    floats: bool,
    integers: bool,
    spelled: bool,
    unsigned: bool = False,
) -> np.ndarray[Any, Any]:
    """Return the entries as float64 or int64, as ``floats`` and ``integers`` allow; int64 if both fit.

    Args:
        name: The list's name in errors.
        shape: The shape from :func:`flatten`.
        entries: The entries from :func:`flatten`.
        floats: Whether floats are allowed.
        integers: Whether integers are allowed.
        spelled: Whether the strings in :data:`SPELLED` count as numbers.
        unsigned: Whether integers are those of uint64 in place of int64.

    Raises:
        MalformedBody: A list is among the numbers.
        DtypeMismatch: Another entry is no number, or a float and only integers are allowed.
        InvalidValue: An integer is beyond float64, or beyond int64 or uint64 and only integers are allowed.
    """
    if integers and (entries or not floats):
        try:
            return _packed("Q" if unsigned else "q", entries, shape)
        except struct.error:
            if not floats:
                raise _no_integers(name, shape, entries, spelled=spelled, unsigned=unsigned) from None
    try:
        return _packed("d", entries, shape)
    except struct.error:
        if spelled:
            entries = _numeric(entries)
        if not _NUMBERS.issuperset(map(type, entries)):
            raise _wrong_type(name, shape, entries, _NUMBERS, spelled=spelled) from None
    try:
        return _packed("d", entries, shape)
    except struct.error:
        raise InvalidValue(f"{name} holds an integer beyond float64") from None


def singles(shape: tuple[int, ...], entries: list[Any]) -> np.ndarray[Any, Any] | None:
    """Return the entries as float32; None if one is no number, or may be an integer that float32 cannot represent.

    Args:
        shape: The shape from :func:`flatten`.
        entries: The entries from :func:`flatten`.
    """
    try:
        array = _packed("f", entries, shape)
    except (struct.error, OverflowError):  # a word, or a number beyond float32
        return None
    far = array.size and (array.max() >= EXACT_IN_FLOAT32 or array.min() <= -EXACT_IN_FLOAT32)
    return None if far else array


def _numeric(entries: list[Any]) -> list[Any]:
    """Return the entries with the strings of :data:`SPELLED` as numbers."""
    try:
        return list(map(SPELLED.get, entries, entries))  # a loop of C
    except TypeError:  # a list among the entries cannot be hashed
        return [SPELLED.get(entry, entry) if type(entry) is str else entry for entry in entries]


def _packed(code: Literal["q", "Q", "d", "f"], entries: list[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    # The fastest way from a list to memory. Any entry but a bool or a number of that kind is an error.
    return np.frombuffer(struct.pack(f"{len(entries)}{code}", *entries), _STORAGE[code]).reshape(shape)


def _wrong_type(
    name: str, shape: tuple[int, ...], level: list[Any], allowed: frozenset[type], *, spelled: bool = True
) -> MalformedBody | DtypeMismatch:
    """Return the error for the first item of a level whose type is not allowed."""
    kinds = list(map(type, level))
    at = min(kinds.index(kind) for kind in set(kinds) - allowed)
    item, where = level[at], place(name, shape, at)
    if kinds[at] is list:
        return MalformedBody(f"{name} is ragged: there is a list at {where}, a number before it")
    if list in allowed and (kinds[at] in _NUMBERS or (kinds[at] is str and item in SPELLED)):
        return MalformedBody(f"{name} is ragged: there is a number at {where}, a list before it")
    known = ', or "NaN", "Infinity", "-Infinity"' if spelled else ""
    return DtypeMismatch(f"{name} must hold numbers{known}; found {quoted(item)} at {where}")


def _no_integers(
    name: str, shape: tuple[int, ...], entries: list[Any], *, spelled: bool, unsigned: bool
) -> MalformedBody | DtypeMismatch | InvalidValue:
    """Return the error for entries that are not all integers of int64, or of uint64."""
    if spelled:
        entries = _numeric(entries)
    kinds = set(map(type, entries))
    if not kinds <= _NUMBERS:
        return _wrong_type(name, shape, entries, _NUMBERS, spelled=False)
    if float in kinds:
        at = list(map(type, entries)).index(float)
        found = entries[at]
        hint = f"; write it as {found:.0f}" if found.is_integer() and abs(found) < _EXACT else ""
        return DtypeMismatch(f"{name} must hold integers; found {quoted(found)} at {place(name, shape, at)}{hint}")
    low, high, dtype = (0, 2**64, "uint64") if unsigned else (-(2**63), 2**63, "int64")
    at = next(i for i, entry in enumerate(entries) if not low <= entry < high)
    return InvalidValue(f"{quoted(entries[at])} at {place(name, shape, at)} is outside the range of {dtype}")


def place(name: str, shape: tuple[int, ...], at: int) -> str:
    """Return the name and the index of the entry at a row-major position, for errors."""
    if not shape:
        return name
    index = []
    for axis in range(len(shape)):
        step, at = divmod(at, element_count(shape[axis + 1 :]))
        index.append(step)
    return f"{name}[{', '.join(map(str, index))}]"
