"""The elements of one tensor, binary or in the JSON text."""

from __future__ import annotations

import struct

import numpy as np

from lossd_client.errors import DtypeMismatch, InvalidValue, MalformedBody, ShapeMismatch
from lossd_client.wire.nested import flatten, numbers
from lossd_client.wire.oip.messages import Entry
from lossd_client.wire.tensor import Tensor, element_count

__all__ = ["LENGTH", "read_elements", "read_tensor"]

LENGTH = struct.Struct("<I")
"""The length that precedes each string of a BYTES tensor."""


def read_tensor(entry: Entry, data: memoryview) -> Tensor:
    """Return the tensor of numbers that an entry describes.

    Args:
        entry: An entry from :func:`read_request`.
        data: The bytes after the JSON text.

    Raises:
        MalformedBody, DtypeMismatch, InvalidValue, ShapeMismatch: The JSON value does not fit datatype or shape.
    """
    datatype = entry.datatype
    if not datatype.itemsize:
        raise DtypeMismatch(f"{entry.name} is BYTES, not numbers")
    if entry.place is not None:
        raise MalformedBody(f"{entry.name} is in shared memory, not in the message")
    if not entry.binary:
        return _tensor_from_json(entry)
    return Tensor(datatype.dtype, entry.shape, data[entry.begin : entry.end])


def _tensor_from_json(entry: Entry) -> Tensor:
    """Return the tensor in a nested or a flat list."""
    name, datatype = entry.name, entry.datatype
    if not datatype.as_json:
        raise MalformedBody(f"{name} is {datatype.name}, which JSON has no numbers for; send it as binary data")
    kind = np.dtype(datatype.storage).kind
    shape, entries = flatten(f"data of {name}", entry.data)
    if shape != entry.shape and not (len(shape) <= 1 and len(entries) == element_count(entry.shape)):
        raise ShapeMismatch(f"{name} has shape {list(entry.shape)}, its data {list(shape)}")
    array = numbers(
        f"data of {name}", shape, entries, floats=kind == "f", integers=kind != "f", spelled=False,
        unsigned=datatype.dtype == "uint64",
    )  # fmt: skip
    if kind != "f" and array.size:
        low, high = (0, 1) if kind == "b" else (np.iinfo(datatype.storage).min, np.iinfo(datatype.storage).max)
        if int(array.min()) < low or int(array.max()) > high:
            raise InvalidValue(f"{name} is {datatype.name}: its data must be from {low} to {high}")
    with np.errstate(over="raise"):
        try:
            array = array.astype(datatype.storage).reshape(entry.shape)
        except FloatingPointError:
            raise InvalidValue(f"data of {name} has a number that does not fit {datatype.name}") from None
    return Tensor.of(array)


def read_elements(entry: Entry, data: memoryview) -> list[bytes]:
    """Return the strings of a BYTES entry in row-major order, whatever its shape; JSON strings are UTF-8.

    Raises:
        MalformedBody: The strings' lengths do not fit the bytes.
        DtypeMismatch: A JSON element is no string.
        ShapeMismatch: The number of strings does not fit the shape.
    """
    if entry.binary:
        elements = _split_elements(entry.name, data[entry.begin : entry.end])
    else:
        _, flat = flatten(f"data of {entry.name}", entry.data)
        if not all(isinstance(child, str) for child in flat):
            raise DtypeMismatch(f"{entry.name} is BYTES: its data must be strings")
        elements = [child.encode() for child in flat]
    if len(elements) != element_count(entry.shape):
        raise ShapeMismatch(f"{entry.name} has shape {list(entry.shape)}, its data has {len(elements)} strings")
    return elements


def _split_elements(name: str, data: memoryview) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        if len(data) - at < LENGTH.size:
            raise MalformedBody(f"{name} ends inside the length of its string {len(elements)}")
        (size,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        if size > len(data) - at:
            raise MalformedBody(f"string {len(elements)} of {name} is {size} bytes long, {len(data) - at} are left")
        elements.append(bytes(data[at : at + size]))
        at += size
    return elements
