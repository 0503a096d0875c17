"""A tensor on the wire: dtype, shape, bytes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lossd_client.errors import MalformedBody, TooLarge

__all__ = [
    "DTYPES",
    "DTYPES_BY_CODE",
    "MAX_RANK",
    "MAX_TENSORS",
    "Dtype",
    "Tensor",
    "check_tensor_count",
    "element_count",
    "read_shape",
]

assert sys.byteorder == "little", "the wire is little-endian, so the machine must be too"

MAX_RANK = 8
"""The most axes a tensor on the wire may have."""

MAX_TENSORS = 1024
"""The most tensors a message may have."""

Kind = Literal["float", "integer"]


@dataclass(frozen=True, slots=True)
class Dtype:
    """An element type.

    Attributes:
        name: The name in requests, which is also NumPy's and torch's ("float32").
        code: The name in safetensors ("F32").
        itemsize: Bytes per element.
        kind: ``float`` or ``integer``; bool counts as integer.
        storage: The NumPy type of the bytes; uint16 for bfloat16, which NumPy lacks.
    """

    name: str
    code: str
    itemsize: int
    kind: Kind
    storage: str


DTYPES: dict[str, Dtype] = {
    d.name: d
    for d in (
        Dtype("float64", "F64", 8, "float", "<f8"),
        Dtype("float32", "F32", 4, "float", "<f4"),
        Dtype("float16", "F16", 2, "float", "<f2"),
        Dtype("bfloat16", "BF16", 2, "float", "<u2"),
        Dtype("int64", "I64", 8, "integer", "<i8"),
        Dtype("int32", "I32", 4, "integer", "<i4"),
        Dtype("int16", "I16", 2, "integer", "<i2"),
        Dtype("int8", "I8", 1, "integer", "|i1"),
        Dtype("uint64", "U64", 8, "integer", "<u8"),
        Dtype("uint32", "U32", 4, "integer", "<u4"),
        Dtype("uint16", "U16", 2, "integer", "<u2"),
        Dtype("uint8", "U8", 1, "integer", "|u1"),
        Dtype("bool", "BOOL", 1, "integer", "|b1"),
    )
}
"""Every dtype of the wire, by name."""

DTYPES_BY_CODE: dict[str, Dtype] = {d.code: d for d in DTYPES.values()}
# A table, because NumPy composes a dtype's name anew for each access.
_NAMES = {np.dtype(d.storage): d.name for d in DTYPES.values() if d.name != "bfloat16"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor without a name, in memory of any alignment.

    Attributes:
        dtype: A key of :data:`DTYPES`.
        shape: Its axes; ``()`` is a scalar.
        data: Its elements, row-major, little-endian; a flat buffer of bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @staticmethod
    def of(array: np.ndarray[Any, Any], dtype: str | None = None) -> Tensor:
        """Return a tensor over an array's memory; copy only if it is not contiguous or not little-endian.

        Args:
            array: Any array of a dtype in :data:`DTYPES`; for bfloat16 its uint16 bits with ``dtype`` given, or an
                array of the ``ml_dtypes`` type.
            dtype: The wire's name for the elements; the default is the array's own.
        """
        name = dtype or _NAMES.get(array.dtype) or array.dtype.name
        if name not in DTYPES:
            known = ", ".join(DTYPES)
            raise TypeError(f"dtype {name} cannot be sent; convert to one of {known}")
        if array.dtype.itemsize != DTYPES[name].itemsize:
            raise TypeError(f"an array of {array.dtype.name} does not hold the bits of {name}")
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        flat = np.ascontiguousarray(array).reshape(-1)
        return Tensor(name, tuple(array.shape), flat.view(np.uint8).data)

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return the elements as an array over the same memory; bfloat16 is widened to float32, exactly."""
        flat = np.frombuffer(self.data, dtype=DTYPES[self.dtype].storage)
        if self.dtype == "bfloat16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        return flat.reshape(self.shape)


def element_count(shape: tuple[int, ...]) -> int:
    """Return the product of the axes as a Python integer, which cannot overflow."""
    count = 1
    for axis in shape:
        count *= axis
    return count


def read_shape(name: str, value: Any) -> tuple[int, ...]:
    """Return the shape in a JSON value.

    Raises:
        MalformedBody: The value is no list of axes, or has 2**60 elements or more.
        TooLarge: There are more than 8 axes.
    """
    if isinstance(value, list) and len(value) > MAX_RANK:
        raise TooLarge(f"{name} has {len(value)} axes; at most {MAX_RANK} are read")
    count = 1
    for axis in value if isinstance(value, list) else (None,):
        if type(axis) is not int or not 0 <= axis < 2**63:
            raise MalformedBody(f"shape of {name} must be a list of integers from 0 to 2**63 - 1")
        count *= axis or 1  # NumPy and torch multiply only the other axes when they check for overflow
    if count >= 2**60:
        raise MalformedBody(f"{name} has shape {value}: more elements than any memory holds")
    return tuple(value)


def check_tensor_count(count: int) -> None:
    """Check that a message has no more than :data:`MAX_TENSORS` tensors.

    Raises:
        TooLarge: It has more.
    """
    if count > MAX_TENSORS:
        raise TooLarge(f"there are {count} tensors; at most {MAX_TENSORS} are read")
