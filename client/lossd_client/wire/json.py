"""JSON: tensors as nested lists, or as objects of dtype, shape and base64 data.

orjson encodes and decodes the text if it is installed (the service requires it), else the standard library, with the
same results. NaN and infinities, which JSON lacks, are the strings "NaN", "Infinity" and "-Infinity" in both
directions.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json as stdlib
import math
import re
from collections.abc import Mapping
from functools import cache
from itertools import compress
from typing import Any, Literal

import numpy as np

from lossd_client.errors import DtypeMismatch, InvalidValue, MalformedBody, ShapeMismatch
from lossd_client.wire.nested import EXACT_IN_FLOAT32, SPELLED, flatten, numbers, place, singles
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
    "escaped",
    "finite",
    "loads",
    "most_bytes",
    "numbers_text",
    "numeric",
    "shortest",
    "tensor_from_json",
    "tensor_text",
]

MEDIA_TYPE = "application/json"
MAX_DEPTH = 32
Form = Literal["list", "base64"]

_EXACT_IN_FLOAT64 = 2.0**53  # float64 represents every integer up to here

# The encoder holds the GIL: so many numbers at a time take a millisecond or two.
_BLOCK = 1 << 14

# The most bytes of a number of each dtype and the comma after it; "-Infinity" in quotes takes 12.
_MOST_BYTES = {"float64": 26, "float32": 18, "bfloat16": 18, "float16": 14, "int64": 21}


def escaped(text: bytes) -> bytes:
    """Return a JSON text without line breaks as a JSON string. Of its characters, only quotes and backslashes change.

    This takes a third of the time of decoding and :func:`dumps`.
    """
    return b'"%b"' % text.replace(b"\\", rb"\\").replace(b'"', rb"\"")


def loads(text: bytes | bytearray | memoryview, *, what: str = "the body", tokens: bool = False) -> Any:
    """Return the document in a JSON text; integers beyond 64 bits become floats.

    The parser limits the depth of nesting to some hundreds of levels: see :func:`check_depth`.

    Args:
        text: The text, in UTF-8.
        what: The text's name in errors.
        tokens: Whether to read the bare tokens NaN, Infinity and -Infinity, which JSON lacks, as numbers.

    Raises:
        MalformedBody: The text is not JSON in UTF-8, nests beyond the parser's limit, or has such tokens unasked.
    """
    try:
        if orjson is not None and not (tokens and _may_have_tokens(text)):
            return orjson.loads(text)
        return _stdlib_loads(str(text, "utf-8"), tokens=tokens)
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"{what} is not JSON: {_mistake(error) or error}") from None


# Other languages' words for what JSON spells differently or lacks: Python's json.dumps(float("nan")) writes NaN.
_FOREIGN = re.compile(
    r"(?P<number>[-+]?(?:nan|inf(?:inity)?))\b|(?P<word>None|True|False|undefined)\b|(?P<quote>')", re.I
)
_WORDS = {"none": "null", "undefined": "null", "true": "true", "false": "false"}


def _mistake(error: Exception) -> str:
    """Return the token at which the parser stopped and what to write instead; empty if the token is not a known one."""
    if not isinstance(error, stdlib.JSONDecodeError):
        return ""
    # The parser may already have read the sign of a number.
    start = error.pos - (error.doc[error.pos - 1 : error.pos] in ("-", "+"))
    found = _FOREIGN.match(error.doc, start)
    if found is None:
        return ""
    token, place = found.group(), f"line {error.lineno} column {error.colno - error.pos + start}"
    if found["number"]:
        return f"{token} at {place}; {_token_remedy(token)}"
    return f"{token} at {place}; write {_WORDS[token.lower()] if found['word'] else 'strings in double quotes'}"


def _token_remedy(token: str) -> str:
    sign, name = "-" * token.startswith("-"), "NaN" if "nan" in token.lower() else "Infinity"
    string = name if name == "NaN" else sign + name
    return f'in a tensor, write the string "{string}"; anything else takes finite numbers only'


def _may_have_tokens(text: bytes | bytearray | memoryview) -> bool:
    """Return whether the text may hold NaN or Infinity; a false positive costs only time."""
    searched = bytes(text) if isinstance(text, memoryview) else text
    return b"NaN" in searched or b"Infinity" in searched


def _stdlib_loads(text: str, *, tokens: bool = False) -> Any:
    """Parse with the standard library, and accept only what orjson accepts."""
    constant = float if tokens else _refuse_constant
    document = stdlib.loads(text, parse_constant=constant, parse_int=_integer, parse_float=_float)
    if "\\ud" in text or "\\uD" in text:
        # The parser accepts half a surrogate pair, which is no character; the encoder refuses it.
        stdlib.dumps(document, ensure_ascii=False).encode()
    return document


def _refuse_constant(token: str) -> None:
    raise ValueError(f"{token}; {_token_remedy(token)}")


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
    """Check that a document without its tensors can be walked by recursion.

    Raises:
        MalformedBody: Lists and objects nest more than ``limit`` deep.
    """
    level = [document] if isinstance(document, list | dict) else []
    for _ in range(limit):
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
        level = [child for child in level if isinstance(child, list | dict)]
        if not level:
            return
    raise MalformedBody(f"{what} nests lists and objects more than {limit} deep")


def dumps(document: Any) -> bytes:
    """Return compact JSON text. Non-finite floats must have been replaced by :func:`finite`."""
    if orjson is not None:
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return stdlib.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=_numpy).encode()


def _numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return shortest(np.asarray(value))
    raise TypeError(f"{type(value).__name__} is not JSON")


def finite(value: Any) -> Any:
    """Return the document with every non-finite float as its string, on every level."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return value


def numeric(value: Any) -> Any:
    """Return the document with "NaN", "Infinity" and "-Infinity" as floats: the inverse of :func:`finite`."""
    if isinstance(value, str):
        return SPELLED.get(value, value)
    if isinstance(value, list):
        return [numeric(item) for item in value]
    if isinstance(value, dict):
        return {key: numeric(item) for key, item in value.items()}
    return value


def tensor_from_json(name: str, value: Any, *, floats: bool, integers: bool) -> tuple[Tensor, Form]:
    """Return the tensor in a JSON value, and the value's form.

    An array of int64, or of float64 below 2**24 in size, stands for the list of its numbers.

    A nested list becomes float32 or int64: the kind that ``floats`` and ``integers`` allow, or the kind of its numbers
    if both are allowed. Floats become float64 if the list has an integer that float32 cannot represent. A base64 object
    has the dtype it names.

    Raises:
        MalformedBody: The list is ragged, or the object is not {dtype, shape, data}.
        DtypeMismatch: An entry is no number, or a float and only integers are allowed.
        InvalidValue: A number is outside the range of float32 or int64.
        ShapeMismatch: The object's data does not have the size of its shape.
        TooLarge: The tensor has more than 8 axes.
    """
    if len(name) > 60 or not name.isprintable():
        name = quoted(name)
    if isinstance(value, dict):
        return _from_base64(name, value), "base64"
    if isinstance(value, np.ndarray):
        return _from_array(name, value, floats=floats, integers=integers), "list"
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


def _from_array(name: str, value: np.ndarray[Any, Any], *, floats: bool, integers: bool) -> Tensor:
    if value.dtype.kind == "i" and integers:
        return Tensor.of(value)
    if floats and max(-int(value.min()), int(value.max())) < EXACT_IN_FLOAT32:
        return Tensor.of(value.astype(np.float32))
    return _from_list(name, value.tolist(), floats=floats, integers=integers)


def _from_list(name: str, value: Any, *, floats: bool, integers: bool) -> Tensor:
    shape, entries = flatten(name, value)
    if not integers and (narrow := singles(shape, entries)) is not None:
        return Tensor.of(narrow)
    array = numbers(name, shape, entries, floats=floats, integers=integers, spelled=True)
    if array.dtype.kind == "i":
        return Tensor.of(array)
    with np.errstate(over="raise"):
        try:
            narrow = array.astype(np.float32)
            return Tensor.of(array if _rounds_integers(name, narrow, array, entries) else narrow)
        except FloatingPointError:
            flat = array.reshape(-1)
            at = int(np.argmax(np.isfinite(flat) & (np.abs(flat) > np.finfo(np.float32).max)))
            raise InvalidValue(
                f"{flat[at]} at {place(name, shape, at)} does not fit float32; send an object with dtype float64"
            ) from None


def _rounds_integers(name: str, narrow: np.ndarray[Any, Any], array: np.ndarray[Any, Any], entries: list[Any]) -> bool:
    """Return whether float32 changes a number that was written as an integer; decimals are rounded anyway.

    Raises:
        InvalidValue: Float64 changes one too.
    """
    large = np.abs(array) > EXACT_IN_FLOAT32
    if not large.any():
        return False
    far = (np.abs(array) >= _EXACT_IN_FLOAT64).reshape(-1).tolist()
    integers = [entry for entry in compress(entries, far) if type(entry) is int]
    if list(map(int, map(float, integers))) != integers:
        at = next(i for i, entry in enumerate(entries) if type(entry) is int and int(float(entry)) != entry)
        raise InvalidValue(
            f"{entries[at]} at {place(name, array.shape, at)} has more digits than float64, which losses are computed "
            "in; subtract an offset first"
        )
    rounded = large & (narrow != array) & np.isfinite(array)
    return int in set(map(type, compress(entries, rounded.reshape(-1).tolist())))


def tensor_text(tensor: Tensor, form: Form) -> bytes:
    """Return the JSON text of a tensor in a form; floats have the fewest digits that round-trip."""
    if form == "base64":
        fields = dumps({"dtype": tensor.dtype, "shape": list(tensor.shape)})
        return b'%b,"data":"%b"}' % (fields[:-1], base64.b64encode(tensor.data))
    return numbers_text(tensor.numpy(), {"NaN": b'"NaN"', "Infinity": b'"Infinity"', "-Infinity": b'"-Infinity"'})


def numbers_text(array: np.ndarray[Any, Any], spelled: Mapping[str, bytes]) -> bytes:
    """Return the JSON text of numbers, as lists nested like the array's axes.

    Args:
        array: An array of any dtype in :data:`~lossd_client.wire.tensor.DTYPES`.
        spelled: The texts of NaN, Infinity and -Infinity.
    """
    if array.size <= _BLOCK:
        return _block(array, spelled)
    rows = _BLOCK // (array.size // len(array))
    if not rows:
        return b"[%b]" % b",".join(numbers_text(row, spelled) for row in array)
    starts = range(0, len(array), rows)
    return b"[%b]" % b",".join(_block(array[start : start + rows], spelled)[1:-1] for start in starts)


def _block(array: np.ndarray[Any, Any], spelled: Mapping[str, bytes]) -> bytes:
    if orjson is None or not array.ndim:
        tokens = stdlib.dumps(shortest(array), separators=(",", ":")).encode()
        return _TOKEN.sub(lambda token: spelled[token.group().decode()], tokens)
    if array.dtype == np.float16:  # orjson does not write its shortest digits
        array = _float16_as_float64()[array.view(np.uint16)]
    text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    if array.dtype.kind != "f" or (finite_entries := np.isfinite(array)).all():
        return text
    # orjson writes null for each non-finite number, and for nothing else.
    nonfinite = array[~finite_entries]
    words = np.array([spelled["NaN"], spelled["Infinity"], spelled["-Infinity"]], object)
    pieces = text.split(b"null")
    parts = [b""] * (2 * len(pieces) - 1)
    parts[::2] = pieces
    parts[1::2] = words[np.where(np.isnan(nonfinite), 0, np.where(nonfinite > 0, 1, 2))].tolist()
    return b"".join(parts)


_TOKEN = re.compile(rb"NaN|-?Infinity")


@cache
def _float16_as_float64() -> np.ndarray[Any, Any]:
    """Return every float16 by its bits, as the float64 of the fewest digits that round-trip."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    return numbers.astype(np.str_).astype(np.float64)


def most_bytes(dtype: str, shape: tuple[int, ...], form: Form) -> int:
    """Return an upper bound of the bytes of :func:`tensor_text` for a float or int64 tensor, from dtype and shape."""
    if form == "base64":
        return 128 + 4 * element_count(shape) * DTYPES[dtype].itemsize // 3
    brackets = sum(3 * element_count(shape[:axis]) for axis in range(len(shape)))
    return _MOST_BYTES[dtype] * element_count(shape) + brackets


def shortest(array: np.ndarray[Any, Any]) -> Any:
    """Return the entries as Python numbers; narrow floats have the fewest digits that round-trip, as in orjson."""
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        array = array.astype(np.str_).astype(np.float64)
    return array.tolist()
