"""The Open Inference Protocol (KServe V2, Triton's HTTP): a JSON text, then the binary tensors' bytes.

Specification: https://github.com/kserve/open-inference-protocol, with Triton's extension for binary tensors. How long
the JSON is, a header of the message says (:data:`HEADER_LENGTH`); which tensors follow it, and how long each is, the
JSON says. Bare NaN and Infinity tokens are part of this protocol's JSON. Reading is split in two, so that a service can
act on the JSON while the tensors still arrive.
"""

from __future__ import annotations

import json as stdlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossd_client.errors import DtypeMismatch, InvalidValue, MalformedBody, ShapeMismatch, TooLarge
from lossd_client.wire import json
from lossd_client.wire.tensor import DTYPES, MAX_RANK, Tensor, element_count

__all__ = [
    "BY_DTYPE",
    "DATATYPES",
    "HEADER_LENGTH",
    "MEDIA_TYPE",
    "VERSION",
    "Datatype",
    "Entry",
    "Output",
    "Request",
    "Response",
    "Value",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
    "header_length",
    "read_elements",
    "read_request",
    "read_tensor",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
MEDIA_TYPE = "application/octet-stream"
"""Of messages with binary tensors; those without are JSON."""

VERSION = "1"
ALIGNMENT = 64
_LENGTH = struct.Struct("<I")

Value = Tensor | list[bytes]
"""What a tensor of the protocol holds: numbers, or (BYTES, one axis) strings of bytes."""


@dataclass(frozen=True, slots=True)
class Datatype:
    """An element type of the protocol.

    Attributes:
        name: The protocol's name ("FP32").
        itemsize: Bytes per element; 0 where each has its own length (BYTES).
        storage: The NumPy type the bytes are viewed as.
        dtype: The lossd dtype its elements are read as: its own, or int64 where lossd has none.
    """

    name: str
    itemsize: int
    storage: str
    dtype: str

    @property
    def widened(self) -> bool:
        """Whether reading converts, so that the bytes on the wire are not those of the tensor."""
        return self.dtype not in DTYPES or DTYPES[self.dtype].storage != self.storage

    @property
    def as_json(self) -> bool:
        """Whether its elements may be written as JSON."""
        return self.name not in ("FP16", "BF16")


DATATYPES: dict[str, Datatype] = {
    d.name: d
    for d in (
        Datatype("BOOL", 1, "|b1", "bool"),
        Datatype("UINT8", 1, "|u1", "uint8"),
        Datatype("UINT16", 2, "<u2", "int64"),
        Datatype("UINT32", 4, "<u4", "int64"),
        Datatype("UINT64", 8, "<u8", "int64"),
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

BY_DTYPE: dict[str, Datatype] = {d.dtype: d for d in DATATYPES.values() if not d.widened}
"""The datatypes lossd's own dtypes travel as."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a message: what it is, and where its elements are.

    Attributes:
        name: Unique in the message.
        datatype: Its type.
        shape: Its axes.
        data: The JSON value that holds the elements; None where they are binary.
        begin: Where they begin, in bytes after the JSON text.
        end: Where they end; ``begin`` where they are in the JSON.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: Any
    begin: int
    end: int

    @property
    def binary(self) -> bool:
        """Whether the elements follow the JSON text."""
        return self.data is None


@dataclass(frozen=True, slots=True)
class Output:
    """One output that is asked for, and whether as bytes after the JSON text."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class Request:
    """The JSON text of a request, checked.

    Attributes:
        id: The client's, to be sent back; None where it has none.
        parameters: Strings, numbers and booleans by name.
        inputs: The tensors, those that are binary in the order of their bytes.
        outputs: What is asked for; None for the default.
        binary: Whether outputs that say nothing about it are binary.
        data_bytes: How many bytes follow the JSON text.
    """

    id: str | None
    parameters: Mapping[str, str | int | float | bool]
    inputs: tuple[Entry, ...]
    outputs: tuple[Output, ...] | None
    binary: bool
    data_bytes: int


@dataclass(frozen=True, slots=True)
class Response:
    """A response, decoded."""

    id: str | None
    model_name: str
    model_version: str
    outputs: Mapping[str, Value]


# Reading


def header_length(value: str | bytes | None, size: int | None) -> int | None:
    """The length of the JSON text that the message's header states; None where the whole message is JSON.

    Args:
        value: The header's value, None where there is none.
        size: The length of the message after decompression, where it is known.

    Raises:
        MalformedBody: No number, or more than the message has.
    """
    if value is None:
        return None
    if not value.isdigit() or len(value) > 19:
        raise MalformedBody(f"{HEADER_LENGTH} must be the length of the JSON text in bytes")
    length = int(value)
    if size is not None and length > size:
        raise MalformedBody(f"{HEADER_LENGTH} is {length}, the body has only {size} bytes")
    return length


def read_request(text: bytes | bytearray | memoryview) -> Request:
    """The JSON text of a request, checked, without its binary tensors.

    Raises:
        MalformedBody, DtypeMismatch, ShapeMismatch, TooLarge: What is not as the protocol has it.
    """
    document = _object(json.loads(text, tokens=True), "the request", ("id", "parameters", "inputs", "outputs"))
    parameters = _parameters(document, "the request")
    for name, value in parameters.items():
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise MalformedBody(
                f"parameter {name} must be a string, a finite number or a boolean; write others as JSON text"
            )
    binary = _flag(parameters, "binary_data_output", default=False, what="the request")
    inputs, data_bytes = _entries(document.get("inputs"), "input")
    outputs = document.get("outputs") or None
    if outputs is not None:
        outputs = tuple(_output(entry, binary) for entry in _list(outputs, "outputs"))
        _unique([output.name for output in outputs], "output")
    return Request(_id(document), parameters, inputs, outputs, binary, data_bytes)


def decode_request(body: bytes | bytearray | memoryview, length: int | None) -> tuple[Request, dict[str, Value]]:
    """A whole request, its inputs over its own memory where that can be.

    Args:
        body: After decompression.
        length: Of the JSON text, None for all of it: see :func:`header_length`.
    """
    text, data = _split(body, length)
    request = read_request(text)
    _check_size(data, request.data_bytes)
    return request, {entry.name: _value(entry, data) for entry in request.inputs}


def decode_response(body: bytes | bytearray | memoryview, length: int | None) -> Response:
    """A whole response; arguments and errors are those of :func:`decode_request`."""
    text, data = _split(body, length)
    known = ("id", "model_name", "model_version", "parameters", "outputs")
    document = _object(json.loads(text, what="the response", tokens=True), "the response", known)
    entries, data_bytes = _entries(document.get("outputs"), "output")
    _check_size(data, data_bytes)
    outputs = {entry.name: _value(entry, data) for entry in entries}
    name, version = document.get("model_name"), document.get("model_version", VERSION)
    return Response(_id(document), str(name), str(version), outputs)


def read_tensor(entry: Entry, data: memoryview) -> Tensor:
    """The tensor of numbers that an entry describes.

    Args:
        entry: Of :func:`read_request`.
        data: The bytes after the JSON text.

    Raises:
        MalformedBody, DtypeMismatch, InvalidValue, ShapeMismatch: The JSON value is not what datatype and shape say.
    """
    datatype = entry.datatype
    if not datatype.itemsize:
        raise DtypeMismatch(f"{entry.name} is BYTES, which are no numbers")
    if not entry.binary:
        return _tensor_from_json(entry)
    own = data[entry.begin : entry.end]
    if not datatype.widened:
        return Tensor(datatype.dtype, entry.shape, own)
    return _widened(entry, np.frombuffer(own, datatype.storage).reshape(entry.shape))


def read_elements(entry: Entry, data: memoryview) -> list[bytes]:
    """The strings of a BYTES entry, row-major, whatever its shape; JSON strings as UTF-8.

    Raises:
        MalformedBody: Lengths that do not fit the bytes.
        DtypeMismatch: JSON that is no string.
        ShapeMismatch: More or fewer than the shape says.
    """
    if entry.binary:
        elements = _split_elements(entry.name, data[entry.begin : entry.end])
    else:
        flat = [entry.data]
        for _ in range(MAX_RANK):
            flat = [child for item in flat for child in (item if isinstance(item, list) else [item])]
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
        if len(data) - at < _LENGTH.size:
            raise MalformedBody(f"{name} ends inside the length of its string {len(elements)}")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if size > len(data) - at:
            raise MalformedBody(f"string {len(elements)} of {name} is {size} bytes long, {len(data) - at} are left")
        elements.append(bytes(data[at : at + size]))
        at += size
    return elements


def _value(entry: Entry, data: memoryview) -> Value:
    return read_tensor(entry, data) if entry.datatype.itemsize else read_elements(entry, data)


def _split(body: bytes | bytearray | memoryview, length: int | None) -> tuple[memoryview, memoryview]:
    view = memoryview(body)
    if length is None:
        return view, view[:0]
    if length > len(view):
        raise MalformedBody(f"the body ends inside its JSON text: {len(view)} of {length} bytes")
    return view[:length], view[length:]


def _check_size(data: memoryview, described: int) -> None:
    if len(data) != described:
        raise MalformedBody(f"the JSON text describes {described} bytes of binary tensors, {len(data)} follow it")


def _entries(value: Any, what: str) -> tuple[tuple[Entry, ...], int]:
    """The tensors that a message lists, and how many bytes of them are binary."""
    entries, at = [], 0
    for item in _list(value, f"{what}s"):
        entry = _entry(item, what, at)
        at = entry.end
        entries.append(entry)
    _unique([entry.name for entry in entries], what)
    return tuple(entries), at


def _entry(value: Any, what: str, begin: int) -> Entry:
    document = _object(value, f"an {what}", ("name", "shape", "datatype", "parameters", "data"))
    name = _name(document, what)
    datatype = DATATYPES.get(str(document.get("datatype")))
    if datatype is None:
        raise DtypeMismatch(f"datatype {document.get('datatype')!r} of {name} is not one of {', '.join(DATATYPES)}")
    shape = document.get("shape")
    if not isinstance(shape, list) or not all(type(axis) is int and 0 <= axis < 2**63 for axis in shape):
        raise MalformedBody(f"shape of {name} must be a list of integers from 0 to 2**63 - 1")
    if len(shape) > MAX_RANK:
        raise TooLarge(f"{name} has {len(shape)} axes; at most {MAX_RANK} are read")
    parameters = _parameters(document, name)
    _known(parameters, ("binary_data_size",), name)
    size, data = parameters.get("binary_data_size"), document.get("data")
    if size is None:
        if data is None:
            raise MalformedBody(f"{name} has neither data nor the parameter binary_data_size")
        return Entry(name, datatype, tuple(shape), data, begin, begin)
    if data is not None:
        raise MalformedBody(f"{name} has both data and the parameter binary_data_size")
    if type(size) is not int or size < 0:
        raise MalformedBody(f"binary_data_size of {name} must be a number of bytes")
    needed = element_count(tuple(shape)) * datatype.itemsize
    if datatype.itemsize and size != needed:
        raise ShapeMismatch(
            f"{name} of {datatype.name} and shape {shape} has {needed} bytes, binary_data_size is {size}"
        )
    return Entry(name, datatype, tuple(shape), None, begin, begin + size)


def _output(value: Any, binary: bool) -> Output:
    document = _object(value, "an output", ("name", "parameters"))
    name = _name(document, "output")
    parameters = _parameters(document, name)
    _known(parameters, ("binary_data",), name)
    return Output(name, _flag(parameters, "binary_data", default=binary, what=name))


def _known(parameters: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for name in parameters:
        if name not in known:
            raise MalformedBody(
                f"{what} has the parameter {name}, which is not read there; known is {', '.join(known)}, and a loss's "
                "own parameters belong to the request"
            )


def _object(value: Any, what: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedBody(f"{what} must be a JSON object")
    for key in value:
        if key not in known:
            raise MalformedBody(f"{what} has the unknown field {key}; known are {', '.join(known)}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise MalformedBody(f"{what} must be a list")
    return value


def _parameters(document: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise MalformedBody(f"parameters of {what} must be an object")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool, what: str) -> bool:
    flag = parameters.get(name, default)
    if not isinstance(flag, bool):
        raise MalformedBody(f"{name} of {what} must be true or false")
    return flag


def _name(document: Mapping[str, Any], what: str) -> str:
    name = document.get("name")
    if not isinstance(name, str) or not name:
        raise MalformedBody(f"every {what} needs a name, a string")
    return name


def _id(document: Mapping[str, Any]) -> str | None:
    given = document.get("id")
    if given is not None and not isinstance(given, str):
        raise MalformedBody("id must be a string")
    return given


def _unique(names: Sequence[str], what: str) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise MalformedBody(f"the {what} {twice} is listed twice")


def _tensor_from_json(entry: Entry) -> Tensor:
    """The tensor of a nested or a flat list."""
    name, datatype = entry.name, entry.datatype
    if not datatype.as_json:
        raise MalformedBody(f"{name} is {datatype.name}, which JSON has no numbers for; send it as binary data")
    try:
        array = np.array(entry.data)
    except (ValueError, OverflowError):
        raise MalformedBody(f"data of {name} is ragged: lists of one level must be equally long") from None
    if not array.size:
        array = array.astype(datatype.storage)
    if array.dtype.kind not in "biuf":
        raise DtypeMismatch(f"data of {name} must be numbers")
    kind = np.dtype(datatype.storage).kind
    if kind in "biu" and array.dtype.kind == "f":
        raise DtypeMismatch(f"{name} is {datatype.name}: its data must be integers")
    if array.shape != entry.shape and not (array.ndim <= 1 and array.size == element_count(entry.shape)):
        raise ShapeMismatch(f"{name} has shape {list(entry.shape)}, its data {list(array.shape)}")
    if kind in "biu" and array.size:
        low, high = (0, 1) if kind == "b" else (np.iinfo(datatype.storage).min, np.iinfo(datatype.storage).max)
        if int(array.min()) < low or int(array.max()) > high:
            raise InvalidValue(f"{name} is {datatype.name}: its data must be from {low} to {high}")
    with np.errstate(over="raise"):
        try:
            array = array.astype(datatype.storage).reshape(entry.shape)
        except FloatingPointError:
            raise InvalidValue(f"data of {name} has a number that does not fit {datatype.name}") from None
    return _widened(entry, array) if datatype.widened else Tensor.of(array)


def _widened(entry: Entry, array: np.ndarray[Any, Any]) -> Tensor:
    """Unsigned integers as int64, which holds what lossd has a use for."""
    if entry.datatype.name == "UINT64" and array.size and array.max() >= 2**63:
        raise InvalidValue(f"{entry.name} holds {array.max()}; integers below 2**63 are read")
    return Tensor.of(array.astype(np.int64))


# Writing


def encode_request(
    inputs: Mapping[str, Value],
    *,
    parameters: Mapping[str, str | int | float | bool] | None = None,
    outputs: Sequence[str] | None = None,
    id: str | None = None,  # noqa: A002  (the protocol's word)
) -> tuple[list[bytes | memoryview], int]:
    """A request with its tensors binary, both ways: the body's pieces, and the length of the JSON text.

    Args:
        inputs: By name.
        parameters: Of the request.
        outputs: What is asked for; the default where None.
        id: To be sent back.
    """
    described, pieces = [], []
    for name, value in inputs.items():
        piece = _bytes(value)
        described.append(_describe(name, value, b'"parameters":{"binary_data_size":%d}' % len(piece)))
        pieces.append(piece)
    fields: dict[str, Any] = {} if id is None else {"id": id}
    fields["parameters"] = {**(parameters or {}), "binary_data_output": True}
    if outputs is not None:
        fields["outputs"] = [{"name": name} for name in outputs]
    text = _aligned(json.dumps(fields)[:-1] + b',"inputs":[' + b",".join(described) + b"]}")
    return [text, *(piece for piece in pieces if len(piece))], len(text)


def encode_response(
    model_name: str,
    outputs: Sequence[tuple[str, Value, bool]],
    *,
    id: str | None = None,  # noqa: A002
) -> tuple[list[bytes | memoryview], int | None]:
    """A response: the body's pieces, each tensor's own memory, and the length of the JSON text where bytes follow it.

    Args:
        model_name: Whose answer it is.
        outputs: Names and values, and whether each is to be binary.
        id: The request's.

    Raises:
        DtypeMismatch: FP16 or BF16 that is not to be binary.
    """
    described: list[bytes] = []
    pieces: list[bytes | memoryview] = []
    for name, value, binary in outputs:
        if binary:
            piece = _bytes(value)
            described.append(_describe(name, value, b'"parameters":{"binary_data_size":%d}' % len(piece)))
            if len(piece):
                pieces.append(piece)
        else:
            described.append(_describe(name, value, b'"data":' + _listed(name, value)))
    fields = {"model_name": model_name, "model_version": VERSION}
    head = json.dumps(fields if id is None else {"id": id, **fields})
    text = head[:-1] + b',"outputs":[' + b",".join(described) + b"]}"
    if not pieces:
        return [text], None
    text = _aligned(text)
    return [text, *pieces], len(text)


def _describe(name: str, value: Value, rest: bytes) -> bytes:
    if isinstance(value, Tensor):
        datatype, shape = BY_DTYPE[value.dtype].name, list(value.shape)
    else:
        datatype, shape = "BYTES", [len(value)]
    return json.dumps({"name": name, "datatype": datatype, "shape": shape})[:-1] + b"," + rest + b"}"


def _bytes(value: Value) -> bytes | memoryview:
    if isinstance(value, Tensor):
        return value.data
    return b"".join(_LENGTH.pack(len(element)) + element for element in value)


def _listed(name: str, value: Value) -> bytes:
    """The elements as a flat JSON list, with the bare tokens for what is not finite."""
    if not isinstance(value, Tensor):
        try:
            return json.dumps([element.decode() for element in value])
        except UnicodeDecodeError:
            raise DtypeMismatch(f"{name} holds bytes that are not UTF-8; ask for it as binary data") from None
    if not BY_DTYPE[value.dtype].as_json:
        raise DtypeMismatch(f"{name} is {value.dtype}, which JSON has no numbers for; ask for it as binary data")
    array = value.numpy().reshape(-1)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return stdlib.dumps(json.shortest(array), separators=(",", ":")).encode()
    return json.dumps(array)


def _aligned(text: bytes) -> bytes:
    """The JSON text with spaces after it, so that the tensors start where processors like them to."""
    return text + b" " * (-len(text) % ALIGNMENT)
