"""Read messages: the JSON text first, then the tensors after it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lossd_client.errors import DtypeMismatch, MalformedBody, ShapeMismatch
from lossd_client.wire import json
from lossd_client.wire.oip.elements import read_elements, read_tensor
from lossd_client.wire.oip.messages import (
    DATATYPES,
    HEADER_LENGTH,
    VERSION,
    Entry,
    Output,
    Place,
    Request,
    Response,
    Value,
)
from lossd_client.wire.quoting import quoted
from lossd_client.wire.tensor import check_tensor_count, element_count, read_shape

__all__ = ["decode_request", "decode_response", "header_length", "read_request"]

MAX_NAME = 256
SHARED = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
"""The parameters of a tensor in shared memory."""
REQUEST_FIELDS = ("model_name", "model_version", "id", "parameters", "inputs", "outputs")
"""The known fields of a request. The path has the model's name; KServe's SDK repeats it."""
IGNORED_PARAMETERS = ("content_type", "headers")
"""Parameters that MLServer's codecs add to a request, its inputs and outputs."""
MLSERVER_ARRAY = "np"
"""The content_type of MLServer's NumpyCodec, which writes NaN as null and gives an array of one axis a second one."""


def header_length(value: str | bytes | None, size: int | None) -> int | None:
    """Return the length of the JSON text from the HTTP header; None if the whole message is JSON.

    Args:
        value: The header's value; None if the header is absent.
        size: The length of the decompressed message, if known.

    Raises:
        MalformedBody: The value is no number, or more than the message's length.
    """
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()) or len(value) > 19:
        raise MalformedBody(f"{HEADER_LENGTH} must be the length of the JSON text in bytes")
    length = int(value)
    if size is not None and length > size:
        raise MalformedBody(f"{HEADER_LENGTH} is {length}, the body has only {size} bytes")
    return length


def read_request(text: bytes | bytearray | memoryview) -> Request:
    """Return the checked JSON text of a request, without its binary tensors.

    Raises:
        MalformedBody, DtypeMismatch, ShapeMismatch, TooLarge: The text violates the protocol.
    """
    document = _object(json.loads(text, tokens=True), "the request", REQUEST_FIELDS)
    parameters = _parameters(document, "the request")
    for name, value in parameters.items():
        if name in IGNORED_PARAMETERS:
            continue
        if not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
            raise MalformedBody(
                f"parameter {quoted(name)} must be a string, a finite number or a boolean; write others as JSON text"
            )
    binary = _flag(parameters, "binary_data_output", default=False, what="the request")
    inputs, data_bytes = _entries(document.get("inputs"), "input")
    listed = [] if document.get("outputs") is None else _list(document["outputs"], "outputs")
    check_tensor_count(len(listed))
    outputs = tuple(_output(entry, binary) for entry in listed)
    _unique([output.name for output in outputs], "output")
    return Request(_id(document), parameters, inputs, outputs or None, binary, data_bytes)


def decode_request(body: bytes | bytearray | memoryview, length: int | None) -> tuple[Request, dict[str, Value]]:
    """Return a complete request and its inputs, which share the body's memory if possible.

    Args:
        body: The decompressed body.
        length: The length of the JSON text, None for all of it: see :func:`header_length`.
    """
    text, data = _split(body, length)
    request = read_request(text)
    _check_size(data, request.data_bytes)
    return request, {entry.name: _value(entry, data) for entry in request.inputs}


def decode_response(body: bytes | bytearray | memoryview, length: int | None) -> Response:
    """Return a complete response; arguments and errors are those of :func:`decode_request`."""
    text, data = _split(body, length)
    known = ("id", "model_name", "model_version", "parameters", "outputs")
    document = _object(json.loads(text, what="the response", tokens=True), "the response", known)
    entries, data_bytes = _entries(document.get("outputs"), "output")
    _check_size(data, data_bytes)
    outputs = {entry.name: _value(replace(entry, data=_defined(entry.data)), data) for entry in entries}
    name, version = document.get("model_name"), document.get("model_version", VERSION)
    return Response(_id(document), str(name), str(version), outputs)


def _defined(data: Any) -> Any:
    """Return the elements with NaN for null, which stands for an undefined number in JSON."""
    if isinstance(data, list) and None in data:
        return [math.nan if element is None else element for element in data]
    return data


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
    """Return the tensors that a message lists, and their number of binary bytes."""
    entries, at = [], 0
    items = _list(value, f"{what}s")
    check_tensor_count(len(items))
    for item in items:
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
        raise DtypeMismatch(
            f"datatype {quoted(document.get('datatype'))} of {name} is not one of {', '.join(DATATYPES)}"
        )
    shape = read_shape(name, document.get("shape"))
    parameters = _parameters(document, name)
    _known(parameters, ("binary_data_size", *SHARED), name)
    size, data = parameters.get("binary_data_size"), document.get("data")
    padded = False
    if parameters.get("content_type") == MLSERVER_ARRAY:
        data, padded = _defined(data), len(shape) == 2 and shape[1] == 1
    needed = element_count(shape) * datatype.itemsize
    place = _place(parameters, name)
    if place is not None:
        if data is not None or size is not None:
            raise MalformedBody(f"{name} is in shared memory, and has data or the parameter binary_data_size too")
        if datatype.itemsize and place.byte_size != needed:
            raise ShapeMismatch(
                f"{name} of {datatype.name} and shape {list(shape)} has {needed} bytes, shared_memory_byte_size is "
                f"{place.byte_size}"
            )
        return Entry(name, datatype, shape, None, begin, begin, padded, place)
    if size is None:
        if data is None:
            raise MalformedBody(f"{name} has neither data nor the parameter binary_data_size")
        return Entry(name, datatype, shape, data, begin, begin, padded)
    if data is not None:
        raise MalformedBody(f"{name} has both data and the parameter binary_data_size")
    if type(size) is not int or size < 0:
        raise MalformedBody(f"binary_data_size of {name} must be a number of bytes")
    if datatype.itemsize and size != needed:
        raise ShapeMismatch(
            f"{name} of {datatype.name} and shape {list(shape)} has {needed} bytes, binary_data_size is {size}"
        )
    return Entry(name, datatype, shape, None, begin, begin + size, padded)


def _output(value: Any, binary: bool) -> Output:
    document = _object(value, "an output", ("name", "parameters"))
    name = _name(document, "output")
    parameters = _parameters(document, name)
    _known(parameters, ("binary_data", *SHARED), name)
    place = _place(parameters, name)
    binary = _flag(parameters, "binary_data", default=binary, what=name) and place is None
    return Output(name, binary, place)


def _place(parameters: Mapping[str, Any], what: str) -> Place | None:
    """Return where a tensor lies in shared memory; None if it does not."""
    region, size, offset = map(parameters.get, SHARED)
    if region is None and size is None and offset is None:
        return None
    if not isinstance(region, str) or not 0 < len(region) <= MAX_NAME:
        raise MalformedBody(f"shared_memory_region of {what} must be the name of a registered region")
    return Place(region, _bytes(offset or 0, SHARED[2], what), _bytes(size, SHARED[1], what))


def _bytes(value: Any, name: str, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise MalformedBody(f"{name} of {what} must be a number of bytes")
    return value


def _known(parameters: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for name in parameters:
        if name not in known and name not in IGNORED_PARAMETERS:
            raise MalformedBody(
                f"{what} has the parameter {quoted(name)}, which is unknown there; known is {', '.join(known)}; a "
                "loss's own parameters belong to the request"
            )


def _object(value: Any, what: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedBody(f"{what} must be a JSON object")
    for key in value:
        if key not in known:
            raise MalformedBody(f"{what} has the unknown field {quoted(key)}; known are {', '.join(known)}")
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
    flag = parameters.get(name)
    if flag is None:
        return default
    if not isinstance(flag, bool):
        raise MalformedBody(f"{name} of {what} must be true or false")
    return flag


def _name(document: Mapping[str, Any], what: str) -> str:
    name = document.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise MalformedBody(f"every {what} needs a name: a string of 1 to {MAX_NAME} printable characters")
    return name


def _id(document: Mapping[str, Any]) -> str | None:
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise MalformedBody("id must be a string")
    return request_id


def _unique(names: Sequence[str], what: str) -> None:
    if len(set(names)) != len(names):
        duplicate, _ = Counter(names).most_common(1)[0]
        raise MalformedBody(f"the {what} {duplicate} is listed twice")
