"""Reads the nested lists of numbers of a JSON body into arrays, without an object for each number.

simdjson writes the numbers of a list into memory, in about half the time that it takes to make objects with orjson and
to pack these. It flattens lists of any depth and refuses some numbers that orjson accepts, so only plain rectangular
lists are read here. Everything else is left to :mod:`lossd_client.wire.json`, which also words the errors.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import orjson

from lossd_client.wire.nested import EXACT_IN_FLOAT32
from lossd_client.wire.tensor import MAX_RANK, MAX_TENSORS, element_count

try:
    import simdjson
except ImportError:  # there is no wheel for this Python or this platform
    simdjson = None  # type: ignore[assignment]

__all__ = ["LEAST_BYTES", "read"]

LEAST_BYTES = 16 << 10
"""The length of a text from which on it is read faster here."""

MAX_FIELDS = 64
"""The most fields of a request: simdjson looks for each from the first one on."""

_KINDS = (("i", np.int64), ("d", np.float64))

Array = np.ndarray[Any, Any]


def read(text: bytes | bytearray | memoryview) -> dict[str, Any] | None:
    """Return the document of a request, with its inputs as arrays.

    Args:
        text: A JSON text.

    Returns:
        The document. An input is an array of int64 if all its numbers are integers, else of float64 with numbers below
        2**24 in size. None if the text is no such request, or if orjson may read it differently.
    """
    text = bytes(text)
    if simdjson is None or b"\\u005" in text:  # an escaped bracket would not be counted below
        return None
    try:
        document: Any = simdjson.Parser().parse(text)
    except (ValueError, RuntimeError):
        return None
    if not isinstance(document, simdjson.Object) or len(document) > MAX_FIELDS:
        return None
    names = list(document.keys())
    inputs = document["inputs"] if "inputs" in names else None
    if not isinstance(inputs, simdjson.Object) or len(inputs) > MAX_TENSORS:
        return None
    fields = {name: _plain(document[name]) for name in names if name != "inputs"}
    arrays = {name: _array(inputs[name]) for name in list(inputs.keys())}
    if len(names) != len(fields) + 1 or len(arrays) != len(inputs):  # a name twice
        return None
    try:
        lists = orjson.dumps(fields).count(b"[")
    except TypeError:  # they nest some hundreds of levels deep
        return None
    for array in arrays.values():
        if array is None:
            return None
        lists += sum(element_count(array.shape[:axis]) for axis in range(array.ndim))
    # There are more lists if one is among the numbers of another, which has been flattened.
    return {**fields, "inputs": arrays} if _count_lists(text) == lists else None


def _count_lists(text: bytes) -> int:
    # A quarter of the time of bytes.count.
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord("[")))


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Object):
        return value.as_dict()
    return value.as_list() if isinstance(value, simdjson.Array) else value


def _array(value: Any) -> Array | None:
    """Return the numbers of a nested list; None if it is ragged or empty, or if :func:`_numbers` returns None."""
    shape: tuple[int, ...] = ()
    level = [value]
    while isinstance(level[0], simdjson.Array):
        length = len(level[0])
        if not length or len(shape) == MAX_RANK or set(map(type, level)) != {simdjson.Array}:
            return None
        if set(map(len, level)) != {length}:
            return None
        shape = (*shape, length)
        level = list(chain.from_iterable(level)) if isinstance(level[0][0], simdjson.Array) else [None]
    numbers = _numbers(value) if shape else None
    return None if numbers is None or len(numbers) != element_count(shape) else numbers.reshape(shape)


def _numbers(value: Any) -> Array | None:
    """Return all numbers in a list; None if it holds something else, or a number that float32 or int64 may not hold."""
    for code, dtype in _KINDS:
        try:
            numbers = np.frombuffer(value.as_buffer(of_type=code), dtype)
        except TypeError:  # floats among the integers, or no number
            continue
        except ValueError:  # an integer beyond int64
            return None
        if code == "d" and not (numbers.min() > -EXACT_IN_FLOAT32 and numbers.max() < EXACT_IN_FLOAT32):
            return None
        return numbers
    return None
