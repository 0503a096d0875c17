"""The parts of the protocol's messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lossd_client.wire.tensor import Tensor

__all__ = [
    "BY_DTYPE",
    "DATATYPES",
    "HEADER_LENGTH",
    "MEDIA_TYPE",
    "VERSION",
    "Datatype",
    "Entry",
    "Output",
    "Place",
    "Request",
    "Response",
    "Value",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
MEDIA_TYPE = "application/octet-stream"
"""The media type of messages with binary tensors; other messages are JSON."""

VERSION = "1"

Value = Tensor | list[bytes]
"""The content of a tensor: numbers, or byte strings (BYTES, one axis)."""


@dataclass(frozen=True, slots=True)
class Datatype:
    """An element type of the protocol.

    Attributes:
        name: The protocol's name ("FP32").
        itemsize: Bytes per element; 0 for BYTES, whose elements have their own lengths.
        storage: The NumPy type the bytes are viewed as.
        dtype: The name of the lossd dtype.
    """

    name: str
    itemsize: int
    storage: str
    dtype: str

    @property
    def as_json(self) -> bool:
        """Whether the elements may be written as JSON."""
        return self.name not in ("FP16", "BF16")


DATATYPES: dict[str, Datatype] = {
    d.name: d
    for d in (
        Datatype("BOOL", 1, "|b1", "bool"),
        Datatype("UINT8", 1, "|u1", "uint8"),
        Datatype("UINT16", 2, "<u2", "uint16"),
        Datatype("UINT32", 4, "<u4", "uint32"),
        Datatype("UINT64", 8, "<u8", "uint64"),
        Datatype("INT8", 1, "|i1", "int8"),
        Datatype("INT16", 2, "<i2", "int16"),
        Datatype("INT32", 4, "<i4", "int32"),
        Datatype("INT64", 8, "<i8", "int64"),
        Datatype("FP16", 2, "<f2", "float16"),
        Datatype("FP32", 4, "<f4", "float32"),
        Datatype("FP64", 8, "<f8", "float64"),
        Datatype("BF16", 2, "<u2", "bfloat16"),
        Datatype("BYTES", 0, "|O", "bytes"),
    )
}
"""Every datatype of the protocol, by name."""

BY_DTYPE: dict[str, Datatype] = {d.dtype: d for d in DATATYPES.values() if d.itemsize}
"""The datatype of each lossd dtype."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in shared memory.

    Attributes:
        region: The name of a registered region.
        offset: Its first byte there.
        byte_size: Its bytes; for an output, the most that it may have.
    """

    region: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a message, with the place of its elements.

    Attributes:
        name: A name that is unique in the message.
        datatype: Its type.
        shape: Its axes.
        data: The JSON value that holds the elements; None if they are elsewhere.
        begin: The first byte of the elements, counted from the end of the JSON text.
        end: The end of the elements in bytes; ``begin`` if they are in the JSON.
        place: Where the elements lie in shared memory; None if they are in the message.
        padded: Whether the second axis, of length 1, may have been added: MLServer's codec gives every array two.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: Any
    begin: int
    end: int
    padded: bool = False
    place: Place | None = None

    @property
    def binary(self) -> bool:
        """Whether the elements follow the JSON text."""
        return self.data is None and self.place is None


@dataclass(frozen=True, slots=True)
class Output:
    """A requested output.

    Attributes:
        name: Its name.
        binary: Whether its elements follow the JSON text.
        place: Where its elements go in shared memory; None if they belong in the response.
    """

    name: str
    binary: bool
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """The checked JSON text of a request.

    Attributes:
        id: The client's id, to return with the response; None if it has none.
        parameters: Strings, numbers and booleans by name.
        inputs: The tensors; the binary ones are in the order of their bytes.
        outputs: The requested outputs; None for the default.
        binary: Whether an output is binary unless it says otherwise.
        data_bytes: Bytes after the JSON text.
    """

    id: str | None
    parameters: Mapping[str, str | int | float | bool]
    inputs: tuple[Entry, ...]
    outputs: tuple[Output, ...] | None
    binary: bool
    data_bytes: int


@dataclass(frozen=True, slots=True)
class Response:
    """A decoded response."""

    id: str | None
    model_name: str
    model_version: str
    outputs: Mapping[str, Value]
