"""The safetensors format: an 8-byte little-endian header length, a JSON header, the tensors' bytes.

Format: https://github.com/huggingface/safetensors#format. Reading is strict: the tensors' ranges must cover the data
exactly, without overlap or gap, and each must have the size of its shape and dtype. The header can be read before the
data has arrived. Encoded data starts on a 64-byte boundary.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lossd_client.errors import MalformedBody, TooLarge
from lossd_client.wire import json
from lossd_client.wire.quoting import quoted
from lossd_client.wire.tensor import (
    DTYPES,
    DTYPES_BY_CODE,
    Tensor,
    check_tensor_count,
    element_count,
    read_shape,
)

__all__ = ["MEDIA_TYPE", "PREFIX_BYTES", "Entry", "Header", "decode", "encode", "header_bytes", "read_header"]

MEDIA_TYPE = "application/vnd.safetensors"
PREFIX_BYTES = 8
MAX_HEADER_BYTES = 1 << 20
ALIGNMENT = 64
_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}


class Entry(NamedTuple):
    """One tensor of a header, with its range in bytes from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: entries in the order of their bytes, which cover 0 to ``data_bytes`` exactly."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    data_bytes: int


def header_bytes(prefix: bytes | bytearray | memoryview, *, limit: int = MAX_HEADER_BYTES) -> int:
    """Return the length of the JSON header from the first 8 bytes.

    Raises:
        MalformedBody: There are fewer than 8 bytes, or the length is under 2.
        TooLarge: The length is over ``limit``, by default 1 MiB.
    """
    if len(prefix) < PREFIX_BYTES:
        raise MalformedBody(
            f"a safetensors body starts with 8 bytes of header length, this one ends after {len(prefix)}"
        )
    (length,) = _LENGTH.unpack_from(prefix)
    if length > limit:
        raise TooLarge(f"the safetensors header is said to be {length} bytes long; at most {limit} are read")
    if length < 2:
        raise MalformedBody(f"the safetensors header is said to be {length} bytes long; no JSON object is that short")
    return int(length)


def read_header(text: bytes | bytearray | memoryview) -> Header:
    """Return the header in a JSON text.

    Raises:
        MalformedBody: The text is not a header whose entries cover its data exactly.
    """
    text = bytes(text)
    if not text.startswith(b"{"):
        raise MalformedBody("the safetensors header does not start with {")
    document = json.loads(text, what="the safetensors header")
    has_metadata = _METADATA in document
    metadata = document.pop(_METADATA, {})
    if not _strings(metadata):
        raise MalformedBody("__metadata__ in the safetensors header must map strings to strings")
    check_tensor_count(len(document))
    entries = sorted((_entry(name, fields) for name, fields in document.items()), key=lambda e: (e.begin, e.end))
    position = 0
    for entry in entries:
        if entry.begin != position:
            fault = "overlaps the tensor before it" if entry.begin < position else "leaves a gap before it"
            raise MalformedBody(
                f"data_offsets of {quoted(entry.name)} start at {entry.begin}: it {fault} (at {position})"
            )
        position = entry.end
    # JSON parsers silently drop one of two equal names. So count the header's strings: an entry has five (its name,
    # three keys, the dtype), metadata has one and a pair for each item. More quotes in the text show a dropped name.
    strings = 5 * len(entries) + (1 + 2 * len(metadata) if has_metadata else 0)
    plain = text.replace(b"\\\\", b"")
    if plain.count(b'"') - plain.count(b'\\"') != 2 * strings:
        raise MalformedBody("the safetensors header holds a name or a key twice")
    return Header(tuple(entries), metadata, position)


def _entry(name: str, fields: Any) -> Entry:
    label = quoted(name)
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise MalformedBody(f"the header's entry {label} must hold exactly dtype, shape and data_offsets")
    code, offsets = fields["dtype"], fields["data_offsets"]
    dtype = DTYPES_BY_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        known = ", ".join(DTYPES_BY_CODE)
        raise MalformedBody(f"dtype {quoted(code)} of {label} is not one lossd reads ({known})")
    shape = read_shape(label, fields["shape"])
    begin, end = offsets if isinstance(offsets, list) and len(offsets) == 2 else (None, None)
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end < 2**63:
        raise MalformedBody(f"data_offsets of {label} must be [begin, end] with 0 <= begin <= end")
    size = element_count(shape) * dtype.itemsize
    if end - begin != size:
        raise MalformedBody(
            f"{label} of dtype {dtype.code} and shape {list(shape)} has {size} bytes, its data_offsets span "
            f"{end - begin}"
        )
    return Entry(name, dtype.name, shape, begin, end)


def _strings(document: Any) -> bool:
    return isinstance(document, dict) and all(isinstance(value, str) for value in document.values())


def decode(
    body: bytes | bytearray | memoryview, *, max_header_bytes: int = MAX_HEADER_BYTES
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors, as views of ``body``, and its metadata.

    Raises:
        MalformedBody: Bytes are missing, left over or misplaced.
        TooLarge: The header is over ``max_header_bytes``, or a tensor has more than 8 axes.
    """
    view = memoryview(body)
    start = PREFIX_BYTES + header_bytes(view[:PREFIX_BYTES], limit=max_header_bytes)
    if len(view) < start:
        raise MalformedBody(f"the body ends inside the safetensors header: {len(view)} of {start} bytes")
    header = read_header(view[PREFIX_BYTES:start])
    if len(view) != start + header.data_bytes:
        raise MalformedBody(f"the header describes {header.data_bytes} bytes of tensors, {len(view) - start} follow it")
    data = view[start:]
    return {e.name: Tensor(e.dtype, e.shape, data[e.begin : e.end]) for e in header.entries}, dict(header.metadata)


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """Return a file in pieces: prefix with header, then each tensor's own memory, uncopied."""
    ordered = sorted(tensors.items(), key=lambda item: -DTYPES[item[1].dtype].itemsize)
    head = encode_header(((name, t.dtype, t.shape, len(t.data)) for name, t in ordered), metadata)
    return [head, *(t.data for _, t in ordered if len(t.data))]


def encode_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """Return prefix and header for tensors (name, dtype, shape, bytes) that follow in this order."""
    return header_of(encode_entries(tensors), json.dumps(dict(metadata)) if metadata else b"")


def encode_entries(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """Return the entries of a header for tensors (name, dtype, shape, bytes), to use in :func:`header_of`."""
    document: dict[str, Any] = {}
    position = 0
    for name, dtype, shape, size in tensors:
        if name == _METADATA:
            raise ValueError("a tensor cannot be named __metadata__")
        document[name] = {
            "dtype": DTYPES[dtype].code,
            "shape": shape,
            "data_offsets": (position, position + size),
        }
        position += size
    return json.dumps(document)[1:-1]


def header_of(entries: bytes, metadata: bytes) -> bytes:
    """Return prefix and header, made of encoded entries and the JSON object of the metadata; either may be empty."""
    parts = [b'"__metadata__":%b' % metadata] if metadata else []
    text = b"{%b}" % b",".join((*parts, entries) if entries else parts)
    padding = -(len(text) + PREFIX_BYTES) % ALIGNMENT
    return b"".join((_LENGTH.pack(len(text) + padding), text, b" " * padding))
