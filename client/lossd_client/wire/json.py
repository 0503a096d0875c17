"""JSON: tensors as nested lists, or as objects of dtype, shape and base64 data.

orjson does the text where it is installed (the service requires it); the standard library does it elsewhere, with the
same answers. Numbers that JSON cannot spell travel as the strings "NaN", "Infinity" and "-Infinity", both ways.
"""

from __future__ import annotations

import base64
import binascii
import json as stdlib
import math
from typing import Any, Literal

import numpy as np

from lossd_client.errors import DtypeMismatch, InvalidValue, MalformedBody, ShapeMismatch, TooLarge
from lossd_client.wire.tensor import DTYPES, Tensor, element_count

try:
    import orjson
except ImportError:  # the thin client's base installation has none
    orjson = None  # type: ignore[assignment]

__all__ = ["MEDIA_TYPE", "Form", "dumps", "finite", "loads", "tensor_from_json", "tensor_to_json"]

MEDIA_TYPE = "application/json"
MAX_RANK = 8
Form = Literal["list", "base64"]
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def loads(text: bytes | bytearray | memoryview, *, what: str = "the body") -> Any:
    """The document a JSON text stands for.

    Raises:
        MalformedBody: Not JSON, nested too deeply, or with the bare tokens NaN and Infinity, which JSON lacks.
    """
    try:
        if orjson is not None:
            return orjson.loads(text)
        return stdlib.loads(bytes(text), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"{what} is not JSON: {error}") from None


def _refuse_constant(token: str) -> None:
    raise ValueError(f'{token} is not JSON; write the string "{token}"')


def dumps(document: Any) -> bytes:
    """Compact JSON text. Non-finite floats must have been replaced before (:func:`finite`)."""
    if orjson is not None:
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return stdlib.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def finite(value: Any) -> Any:
    """The same document with every non-finite float as its string; lists and objects are walked."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return value


def tensor_from_json(name: str, value: Any, *, floats: bool, integers: bool) -> tuple[Tensor, Form]:
    """The tensor that a JSON value stands for, and the form it came in.

    A nested list becomes float32 or int64: by ``floats`` and ``integers``, the kinds its receiver takes, or by its
    own numbers where both are taken. A base64 object has the dtype it names.

    Raises:
        MalformedBody: A ragged list, or an object that is not {dtype, shape, data}.
        DtypeMismatch: Entries that are not numbers, or fractions where integers are declared.
        InvalidValue: A number outside the range of float32 or int64.
        ShapeMismatch: An object whose data is longer or shorter than its shape.
    """
    if isinstance(value, dict):
        return _from_base64(name, value), "base64"
    if not isinstance(value, list | int | float | str):
        raise MalformedBody(f"{name} must be a (nested) list of numbers or an object of dtype, shape and data")
    return _from_list(name, value, floats=floats, integers=integers), "list"


def _from_base64(name: str, value: dict[str, Any]) -> Tensor:
    if value.keys() != {"dtype", "shape", "data"}:
        raise MalformedBody(f"{name} must hold exactly dtype, shape and data, found {', '.join(value) or 'nothing'}")
    dtype, shape, text = value["dtype"], value["shape"], value["data"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DtypeMismatch(f"dtype {dtype!r} of {name} is not one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(type(axis) is int and axis >= 0 for axis in shape):
        raise MalformedBody(f"shape of {name} must be a list of integers >= 0")
    if len(shape) > MAX_RANK:
        raise TooLarge(f"{name} has {len(shape)} axes; at most {MAX_RANK} are read")
    try:
        data = base64.b64decode(text if isinstance(text, str) else b"!", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedBody(f"data of {name} is not a base64 string") from None
    expected = element_count(tuple(shape)) * DTYPES[dtype].itemsize
    if len(data) != expected:
        raise ShapeMismatch(f"{name} of dtype {dtype} and shape {shape} has {expected} bytes, its data has {len(data)}")
    return Tensor(dtype, tuple(shape), memoryview(data))


def _from_list(name: str, value: Any, *, floats: bool, integers: bool) -> Tensor:
    probe, rank = value, 0
    while isinstance(probe, list):
        rank += 1
        if rank > MAX_RANK:
            raise TooLarge(f"{name} has more than {MAX_RANK} axes; at most {MAX_RANK} are read")
        probe = probe[0] if probe else None
    try:
        array = np.array(value)
    except ValueError:
        raise MalformedBody(f"{name} is a ragged list: every list on one level must have the same length") from None
    except OverflowError:
        raise InvalidValue(f"{name} holds a number outside the range of float64") from None
    if array.dtype.kind in "US":
        array = _spelled_out(name, value)
    if array.dtype.kind == "u":
        raise InvalidValue(f"{name} holds an integer outside the range of int64")
    if array.dtype.kind not in "bif":
        raise DtypeMismatch(f"{name} must hold numbers only; found {_first_stranger(name, value)}")
    if not floats and array.dtype.kind == "f":
        if array.size == 0:
            array = array.astype(np.int64)
        else:
            at = _index(np.argwhere(array != np.trunc(array)), array)
            raise DtypeMismatch(f"{name} must hold integers; found {array[at]} at {name}{list(at)}")
    if array.dtype.kind == "f" or not integers:
        with np.errstate(over="raise"):
            try:
                return Tensor.of(array.astype(np.float32))
            except FloatingPointError:
                limit = float(np.finfo(np.float32).max)
                at = _index(np.argwhere(np.isfinite(array) & (np.abs(array) > limit)), array)
                raise InvalidValue(
                    f"{array[at]} at {name}{list(at)} does not fit float32; send an object with dtype float64"
                ) from None
    return Tensor.of(array.astype(np.int64, copy=False))


def _index(found: np.ndarray[Any, Any], array: np.ndarray[Any, Any]) -> tuple[int, ...]:
    return tuple(int(i) for i in found[0]) if len(found) else (0,) * array.ndim


def _spelled_out(name: str, value: Any) -> np.ndarray[Any, Any]:
    """The array of a list in which some numbers are spelled as strings."""

    def number(item: Any) -> Any:
        if isinstance(item, list):
            return [number(i) for i in item]
        if isinstance(item, str):
            if item not in _NON_FINITE:
                raise DtypeMismatch(f'{name} must hold numbers or "NaN", "Infinity", "-Infinity"; found "{item[:40]}"')
            return _NON_FINITE[item]
        return item

    try:
        return np.array(number(value))
    except ValueError:
        raise MalformedBody(f"{name} is a ragged list: every list on one level must have the same length") from None


def _first_stranger(name: str, value: Any, at: str = "") -> str:
    if isinstance(value, list):
        for index, item in enumerate(value):
            if found := _first_stranger(name, item, f"{at}[{index}]"):
                return found
        return ""
    if isinstance(value, int | float):
        return "" if abs(value) < 2**63 or isinstance(value, float) else f"the integer {value} at {name}{at}"
    return f"{stdlib.dumps(value)[:40]} at {name}{at}"


def tensor_to_json(tensor: Tensor, form: Form) -> Any:
    """The value to put into a document for :func:`dumps`, in the form asked for."""
    if form == "base64":
        data = base64.b64encode(tensor.data).decode("ascii")
        return {"dtype": tensor.dtype, "shape": list(tensor.shape), "data": data}
    array = tensor.numpy()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return finite(array.tolist())
    if orjson is not None and array.ndim and array.dtype != np.float16:
        return array
    return array.tolist()
