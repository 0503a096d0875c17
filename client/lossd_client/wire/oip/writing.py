"""Write messages: the body in pieces, with each tensor's own memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from lossd_client.errors import DtypeMismatch
from lossd_client.wire import json
from lossd_client.wire.oip.elements import LENGTH
from lossd_client.wire.oip.messages import BY_DTYPE, VERSION, Place, Value
from lossd_client.wire.tensor import Tensor

__all__ = ["elements", "encode_request", "encode_response"]

ALIGNMENT = 64
_TOKENS = {"NaN": b"NaN", "Infinity": b"Infinity", "-Infinity": b"-Infinity"}
_NULLS = {**_TOKENS, "NaN": b"null"}
NOWHERE: Mapping[str, Place] = MappingProxyType({})
"""No output is in shared memory."""


def encode_request(
    inputs: Mapping[str, Value],
    *,
    parameters: Mapping[str, str | int | float | bool] | None = None,
    outputs: Sequence[str] | None = None,
    id: str | None = None,  # noqa: A002  (the protocol's word)
) -> tuple[list[bytes | memoryview], int]:
    """Return a request with binary tensors, as the body's pieces and the length of the JSON text.

    The request also asks for binary outputs.

    Args:
        inputs: The inputs by name.
        parameters: The request's parameters.
        outputs: The requested outputs; None for the default.
        id: An id that the response returns.
    """
    described, pieces = [], []
    for name, value in inputs.items():
        piece = elements(value)
        described.append(_describe_binary(name, value, len(piece)))
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
    undefined: Collection[str] = (),
    places: Mapping[str, Place] = NOWHERE,
) -> tuple[list[bytes | memoryview], int | None]:
    """Return a response, as the body's pieces and the length of the JSON text; None if no bytes follow it.

    Args:
        model_name: The name of the model.
        outputs: Name, value, and whether it is binary, for each output.
        id: The request's id.
        undefined: The outputs in which NaN means an undefined number; JSON has null for it.
        places: The outputs that the caller has written to shared memory, and the most bytes of each there.

    Raises:
        DtypeMismatch: A FP16 or BF16 output is not binary.
    """
    described: list[bytes] = []
    pieces: list[bytes | memoryview] = []
    for name, value, binary in outputs:
        if places and (place := places.get(name)) is not None:
            described.append(_describe(name, value, _place(place, len(elements(value)))))
        elif binary:
            piece = elements(value)
            described.append(_describe_binary(name, value, len(piece)))
            if len(piece):
                pieces.append(piece)
        else:
            described.append(_describe(name, value, b'"data":' + _json_list(name, value, name in undefined)))
    fields = {"model_name": model_name, "model_version": VERSION}
    head = json.dumps(fields if id is None else {"id": id, **fields})
    text = head[:-1] + b',"outputs":[' + b",".join(described) + b"]}"
    if not pieces:
        return [text], None
    text = _aligned(text)
    return [text, *pieces], len(text)


def _describe_binary(name: str, value: Value, nbytes: int) -> bytes:
    """Return the description of a tensor whose bytes follow the text."""
    if isinstance(value, Tensor):
        return _described(name, BY_DTYPE[value.dtype].name, value.shape, nbytes)
    return _describe(name, value, _binary(nbytes))


@lru_cache(maxsize=1024)
def _described(name: str, datatype: str, shape: tuple[int, ...], nbytes: int) -> bytes:
    """Return the description of binary numbers. It is cached, because most messages have the same."""
    return b"%b,%b}" % (_layout(name, datatype, shape), _binary(nbytes))


def _describe(name: str, value: Value, rest: bytes) -> bytes:
    datatype, shape = (
        (BY_DTYPE[value.dtype].name, value.shape) if isinstance(value, Tensor) else ("BYTES", (len(value),))
    )
    return b"%b,%b}" % (_layout(name, datatype, shape), rest)


def _layout(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    return json.dumps({"name": name, "datatype": datatype, "shape": list(shape)})[:-1]


def _binary(nbytes: int) -> bytes:
    return b'"parameters":{"binary_data_size":%d}' % nbytes


def _place(place: Place, nbytes: int) -> bytes:
    where = {"shared_memory_region": place.region, "shared_memory_byte_size": nbytes}
    return b'"parameters":' + json.dumps(where | ({"shared_memory_offset": place.offset} if place.offset else {}))


def elements(value: Value) -> bytes | memoryview:
    """Return the bytes of a tensor's elements."""
    if isinstance(value, Tensor):
        return value.data
    return b"".join(LENGTH.pack(len(element)) + element for element in value)


def _json_list(name: str, value: Value, nulls: bool) -> bytes:
    """Return the elements as a flat JSON list, with bare tokens for non-finite numbers, or null for NaN."""
    if not isinstance(value, Tensor):
        try:
            return json.dumps([element.decode() for element in value])
        except UnicodeDecodeError:
            raise DtypeMismatch(f"{name} holds bytes that are not UTF-8; ask for it as binary data") from None
    if not BY_DTYPE[value.dtype].as_json:
        raise DtypeMismatch(f"{name} is {value.dtype}, which JSON has no numbers for; ask for it as binary data")
    return json.numbers_text(value.numpy().reshape(-1), _NULLS if nulls else _TOKENS)


def _aligned(text: bytes) -> bytes:
    """Return the JSON text padded with spaces, so that the tensors start on a boundary that processors read fast."""
    return text + b" " * (-len(text) % ALIGNMENT)
