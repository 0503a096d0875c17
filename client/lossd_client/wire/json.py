"""JSON: tensors as nested lists, or as objects of dtype, shape and base64 data.

orjson does the text where it is installed (the service requires it); the standard library does it elsewhere, with the
same answers. Numbers that JSON cannot spell travel as the strings "NaN", "Infinity" and "-Infinity", both ways.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json as stdlib
import math
import re
from typing import Any, Literal

import numpy as np

from lossd_client.errors import DtypeMismatch, InvalidValue, MalformedBody, ShapeMismatch
from lossd_client.wire.nested import SPELLED, flatten, numbers, place
from lossd_client.wire.quoting import quoted
from lossd_client.wire.tensor import DTYPES, Tensor, element_count, read_shape

try:
    import orjson
except ImportError:  # the thin client's base installation has none
    orjson = None  # type: ignore[assignment]

__all__ = [
    "MAX_DEPTH",
    "MEDIA_TYPE",
    "Form",
    "check_depth",
    "dumps",
    "finite",
    "loads",
    "numeric",
    "shortest",
    "tensor_from_json",
    "tensor_to_json",
]

MEDIA_TYPE = "application/json"
MAX_DEPTH = 32
Form = Literal["list", "base64"]

_HELD = 2.0**24  # up to here, float32 holds every integer


def loads(text: bytes | bytearray | memoryview, *, what: str = "the body", tokens: bool = False) -> Any:
    """The document a JSON text stands for; integers beyond 64 bits become floats.

    How deep it may nest is the parser's own limit, some hundreds of levels: see :func:`check_depth`.

    Args:
        text: In UTF-8.
        what: What errors call it.
        tokens: Whether the bare tokens NaN, Infinity and -Infinity, which JSON lacks, are numbers.

    Raises:
        MalformedBody: Not JSON in UTF-8, nested beyond the parser's limit, or with tokens that are not to be read.
    """
    try:
        if orjson is not None and not (tokens and _has_tokens(text)):
            return orjson.loads(text)
        return _stdlib_loads(str(text, "utf-8"), tokens=tokens)
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"{what} is not JSON: {_mistake(error) or error}") from None


# What other languages write where JSON has another word, or none: Python's json.dumps(float("nan")) writes NaN.
_FOREIGN = re.compile(
    r"(?P<number>[-+]?(?:nan|inf(?:inity)?))\b|(?P<word>None|True|False|undefined)\b|(?P<quote>')", re.I
)
_WORDS = {"none": "null", "undefined": "null", "true": "true", "false": "false"}


def _mistake(error: Exception) -> str:
    """What was written where the parser stopped, and what to write instead; nothing where that is not known."""
    if not isinstance(error, stdlib.JSONDecodeError):
        return ""
    # Of a number, the parser may have read the sign.
    start = error.pos - (error.doc[error.pos - 1 : error.pos] in ("-", "+"))
    found = _FOREIGN.match(error.doc, start)
    if found is None:
        return ""
    token, place = found.group(), f"line {error.lineno} column {error.colno - error.pos + start}"
    if found["number"]:
        return f"{token} at {place}; {_spell(token)}"
    return f"{token} at {place}; write {_WORDS[token.lower()] if found['word'] else 'strings in double quotes'}"


def _spell(token: str) -> str:
    sign, name = "-" * token.startswith("-"), "NaN" if "nan" in token.lower() else "Infinity"
    string = name if name == "NaN" else sign + name
    return f'in a tensor, write the string "{string}"; anything else takes finite numbers only'


def _has_tokens(text: bytes | bytearray | memoryview) -> bool:
    """Whether the text may hold NaN or Infinity; a string that does costs speed, nothing else."""
    searched = bytes(text) if isinstance(text, memoryview) else text
    return b"NaN" in searched or b"Infinity" in searched


def _stdlib_loads(text: str, *, tokens: bool = False) -> Any:
    """The standard library's parser, held to what orjson accepts."""
    constant = float if tokens else _refuse_constant
    document = stdlib.loads(text, parse_constant=constant, parse_int=_integer, parse_float=_float)
    if "\\ud" in text or "\\uD" in text:
        # Half a surrogate pair is no character; the encoder refuses what the parser let through.
        stdlib.dumps(document, ensure_ascii=False).encode()
    return document


def _refuse_constant(token: str) -> None:
    raise ValueError(f"{token}; {_spell(token)}")


def _integer(digits: str) -> int | float:
    if len(digits) > 20:
        return _float(digits)
    value = int(digits)
    return value if -(2**63) <= value < 2**64 else float(value)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:40]} is infinity as a double")
    return value


def check_depth(document: Any, *, limit: int = MAX_DEPTH, what: str = "the body") -> None:
    """Make sure that a document (tensors aside, which have their own limit) can be walked by recursion.

    Raises:
        MalformedBody: Lists and objects nested more than ``limit`` deep.
    """
    level = [document] if isinstance(document, list | dict) else []
    for _ in range(limit):
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
        level = [child for child in level if isinstance(child, list | dict)]
        if not level:
            return
    raise MalformedBody(f"{what} nests lists and objects more than {limit} deep")


def dumps(document: Any) -> bytes:
    """Compact JSON text. Non-finite floats must have been replaced before (:func:`finite`)."""
    if orjson is not None:
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return stdlib.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=_numpy).encode()


def _numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return shortest(np.asarray(value))
    raise TypeError(f"{type(value).__name__} is not JSON")


def finite(value: Any) -> Any:
    """The same document with every non-finite float as its string; lists and objects are walked."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return value


def numeric(value: Any) -> Any:
    """The same document with the strings "NaN", "Infinity" and "-Infinity" as floats: undoes :func:`finite`."""
    if isinstance(value, str):
        return SPELLED.get(value, value)
    if isinstance(value, list):
        return [numeric(item) for item in value]
    if isinstance(value, dict):
        return {key: numeric(item) for key, item in value.items()}
    return value


def tensor_from_json(name: str, value: Any, *, floats: bool, integers: bool) -> tuple[Tensor, Form]:
    """The tensor that a JSON value stands for, and the form it came in.

    A nested list becomes float32 or int64: by ``floats`` and ``integers``, the kinds its receiver takes, or by its
    own numbers where both are taken. One of floats with an integer that float32 does not hold becomes float64. A base64
    object has the dtype it names.

    Raises:
        MalformedBody: A ragged list, or an object that is not {dtype, shape, data}.
        DtypeMismatch: Entries that are not numbers, or floats where integers are declared.
        InvalidValue: A number outside the range of float32 or int64.
        ShapeMismatch: An object whose data is longer or shorter than its shape.
        TooLarge: More than 8 axes.
    """
    if len(name) > 60 or not name.isprintable():
        name = quoted(name)
    if isinstance(value, dict):
        return _from_base64(name, value), "base64"
    if not isinstance(value, list | int | float | str):
        raise MalformedBody(f"{name} must be a (nested) list of numbers or an object of dtype, shape and data")
    return _from_list(name, value, floats=floats, integers=integers), "list"


def _from_base64(name: str, value: dict[str, Any]) -> Tensor:
    if value.keys() != {"dtype", "shape", "data"}:
        raise MalformedBody(f"{name} must hold exactly dtype, shape and data, found {_keys(value)}")
    dtype, text = value["dtype"], value["data"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DtypeMismatch(f"dtype {quoted(dtype)} of {name} is not one of {', '.join(DTYPES)}")
    shape = read_shape(name, value["shape"])
    try:
        data = base64.b64decode(text if isinstance(text, str) else b"!", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedBody(f"data of {name} is not a base64 string") from None
    expected = element_count(shape) * DTYPES[dtype].itemsize
    if len(data) != expected:
        raise ShapeMismatch(
            f"{name} of dtype {dtype} and shape {list(shape)} has {expected} bytes, its data has {len(data)}"
        )
    return Tensor(dtype, shape, memoryview(data))


def _keys(value: dict[str, Any]) -> str:
    shown = [quoted(key) for key in itertools.islice(value, 5)]
    return ", ".join(shown) + (", ..." if len(value) > len(shown) else "") or "nothing"


def _from_list(name: str, value: Any, *, floats: bool, integers: bool) -> Tensor:
    shape, entries = flatten(name, value)
    array = numbers(name, shape, entries, floats=floats, integers=integers, spelled=True)
    if array.dtype.kind == "i":
        return Tensor.of(array)
    with np.errstate(over="raise"):
        try:
            narrow = array.astype(np.float32)
            return Tensor.of(array if _rounds_integers(narrow, array, entries) else narrow)
        except FloatingPointError:
            flat = array.reshape(-1)
            at = int(np.argmax(np.isfinite(flat) & (np.abs(flat) > np.finfo(np.float32).max)))
            raise InvalidValue(
                f"{flat[at]} at {place(name, shape, at)} does not fit float32; send an object with dtype float64"
            ) from None


def _rounds_integers(narrow: np.ndarray[Any, Any], array: np.ndarray[Any, Any], entries: list[Any]) -> bool:
    """Whether numbers that were written as integers differ in float32; decimals are rounded anyway."""
    if (np.abs(narrow) < _HELD).all():
        return False
    changed = np.flatnonzero((narrow != array).reshape(-1)).tolist()
    return any(type(entries[at]) is int for at in changed)


def tensor_to_json(tensor: Tensor, form: Form) -> Any:
    """The value to put into a document for :func:`dumps`, in the form asked for."""
    if form == "base64":
        data = base64.b64encode(tensor.data).decode("ascii")
        return {"dtype": tensor.dtype, "shape": list(tensor.shape), "data": data}
    array = tensor.numpy()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return finite(shortest(array))
    if orjson is not None and array.ndim and array.dtype != np.float16:
        return array
    return shortest(array)


def shortest(array: np.ndarray[Any, Any]) -> Any:
    """The entries as Python numbers; narrow floats by the fewest digits that lead back to them, as orjson has it."""
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        array = array.astype(np.str_).astype(np.float64)
    return array.tolist()
