"""Nested lists of numbers, as JSON has them: their shape, their entries in a row, and the place of what is wrong.

Levels are taken apart one after the other, each in a loop of C, so that nothing recurses, however deep. NumPy is given
no list before all its entries are known to be numbers: for one long string it would make every entry as long.
"""

from __future__ import annotations

import struct
from itertools import chain
from typing import Any, Literal

import numpy as np

from lossd_client.errors import DtypeMismatch, InvalidValue, MalformedBody, TooLarge
from lossd_client.wire.quoting import quoted
from lossd_client.wire.tensor import MAX_RANK, element_count

__all__ = ["SPELLED", "flatten", "numbers", "place"]

SPELLED = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""The numbers that JSON has no other spelling for."""

_NUMBERS = frozenset((int, float, bool))
_EXACT = 2.0**53  # floats up to here are the integers that they look like
_STORAGE = {"q": "<i8", "d": "<f8"}


def flatten(name: str, value: Any) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of a nested list and its entries, row-major; what they are, :func:`numbers` finds out.

    Raises:
        MalformedBody: Lists of one level that differ in length.
        DtypeMismatch: Something else among them.
        TooLarge: More than 8 levels.
    """
    shape: tuple[int, ...] = ()
    level = [value]
    while level and type(level[0]) is list:
        kinds, lengths = set(map(type, level)), {len(level[0])}
        if len(kinds) > 1:
            raise _stranger(name, shape, level, frozenset((list,)))
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
    name: str, shape: tuple[int, ...], entries: list[Any], *, floats: bool, integers: bool, spelled: bool
) -> np.ndarray[Any, Any]:
    """The entries as float64 or int64, by ``floats`` and ``integers``, the kinds that will do; int64 where both do.

    Args:
        name: What errors call the list.
        shape: Of :func:`flatten`.
        entries: Likewise.
        floats: Whether floats will do.
        integers: Whether integers will do.
        spelled: Whether the strings of :data:`SPELLED` are numbers.

    Raises:
        MalformedBody: A list among numbers.
        DtypeMismatch: Anything else that is no number, or a float where only integers will do.
        InvalidValue: An integer beyond int64 where only integers will do, or beyond float64.
    """
    if integers and (entries or not floats):
        try:
            return _packed("q", entries, shape)
        except struct.error:
            if not floats:
                raise _no_integers(name, shape, entries, spelled=spelled) from None
    try:
        return _packed("d", entries, shape)
    except struct.error:
        if spelled:
            entries = _numeric(entries)
        if not _NUMBERS.issuperset(map(type, entries)):
            raise _stranger(name, shape, entries, _NUMBERS, spelled=spelled) from None
    try:
        return _packed("d", entries, shape)
    except struct.error:
        raise InvalidValue(f"{name} holds an integer beyond float64") from None


def _numeric(entries: list[Any]) -> list[Any]:
    """The entries, with the numbers that strings of :data:`SPELLED` stand for."""
    try:
        return list(map(SPELLED.get, entries, entries))  # a loop of C
    except TypeError:  # lists among them, which nothing can be looked up by
        return [SPELLED.get(entry, entry) if type(entry) is str else entry for entry in entries]


def _packed(code: Literal["q", "d"], entries: list[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    # The fastest way from a list to memory; anything but a number of that kind is an error, bool apart.
    return np.frombuffer(struct.pack(f"{len(entries)}{code}", *entries), _STORAGE[code]).reshape(shape)


def _stranger(
    name: str, shape: tuple[int, ...], level: list[Any], welcome: frozenset[type], *, spelled: bool = True
) -> MalformedBody | DtypeMismatch:
    """What is wrong with the first of a level's items that is of no welcome type."""
    kinds = list(map(type, level))
    at = min(kinds.index(kind) for kind in set(kinds) - welcome)
    item, where = level[at], place(name, shape, at)
    if kinds[at] is list:
        return MalformedBody(f"{name} is ragged: there is a list at {where}, a number before it")
    if list in welcome and (kinds[at] in _NUMBERS or (kinds[at] is str and item in SPELLED)):
        return MalformedBody(f"{name} is ragged: there is a number at {where}, a list before it")
    known = ', or "NaN", "Infinity", "-Infinity"' if spelled else ""
    return DtypeMismatch(f"{name} must hold numbers{known}; found {quoted(item)} at {where}")


def _no_integers(
    name: str, shape: tuple[int, ...], entries: list[Any], *, spelled: bool
) -> MalformedBody | DtypeMismatch | InvalidValue:
    """What is wrong with entries that are not all integers of int64."""
    if spelled:
        entries = _numeric(entries)
    kinds = set(map(type, entries))
    if not kinds <= _NUMBERS:
        return _stranger(name, shape, entries, _NUMBERS, spelled=False)
    if float in kinds:
        at = list(map(type, entries)).index(float)
        found = entries[at]
        hint = f"; write it as {found:.0f}" if found.is_integer() and abs(found) < _EXACT else ""
        return DtypeMismatch(f"{name} must hold integers; found {quoted(found)} at {place(name, shape, at)}{hint}")
    at = next(i for i, entry in enumerate(entries) if not -(2**63) <= entry < 2**63)
    return InvalidValue(f"{quoted(entries[at])} at {place(name, shape, at)} is outside the range of int64")


def place(name: str, shape: tuple[int, ...], at: int) -> str:
    """How errors call the entry at a place in the row of entries of a shape."""
    if not shape:
        return name
    index = []
    for axis in range(len(shape)):
        step, at = divmod(at, element_count(shape[axis + 1 :]))
        index.append(step)
    return f"{name}[{', '.join(map(str, index))}]"
