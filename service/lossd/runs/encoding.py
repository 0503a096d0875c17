"""The bytes of a run: what another process needs to go on.

``lossdrun``, the version (uint16), the length of the description (uint32), the description (JSON, keys sorted), then
the parts in the order of their names, each after the length of its name (uint16), its name and its length (uint64).
The SHA-256 of all of it, 32 bytes, comes last: it finds damage, and does not prove who wrote the bytes. All numbers
are little-endian. What is stored or sent of it is packed: a stream of zlib's format, compressed if it is long.

Short states that begin with the same description are stored joined: ``ST``, the length of what they begin with, which
is all up to the end of the description, and their number (uint32 each), these bytes, the length of the rest of each
state (uint32 each), and the rests.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from lossd.caches import memoized
from lossd_client.errors import InternalError, InvalidRequest

__all__ = [
    "SHORT_BYTES",
    "Template",
    "compressed",
    "decode",
    "decode_alike",
    "description",
    "digest",
    "each_unpacked",
    "encode",
    "is_current",
    "joined",
    "packed",
    "reading",
    "text_of",
    "unpacked",
]

MAGIC, VERSION, FIRST = b"lossdrun", 2, 1
"""Version 1 is of before there were groups; it is read, and not written."""

HEAD = struct.Struct("<8sHI")
NAME, LENGTH = struct.Struct("<H"), struct.Struct("<Q")
CHECKSUM_BYTES = 32

LEVEL = 1
"""zlib's: a higher one takes three times as long for a tenth of the bytes."""

SHORT_BYTES = 16 << 10
"""Shorter bytes are not compressed until they are folded: that takes longer than what SQLite does with a batch."""

BEFORE, BEHIND = struct.Struct("<3sHH"), struct.Struct(">I")
"""What zlib has around bytes that it does not compress: one block (RFC 1951), and their checksum (RFC 1950)."""

PLAIN = b"\x78\x01\x01"
"""What packed bytes begin with that are not compressed."""

JOINED, JOINED_HEAD = b"ST", struct.Struct("<2sII")
"""What joined states begin with; zlib's streams do not."""

MOST_JOINED = 256


def text_of(described: Mapping[str, Any]) -> bytes:
    """Return the same text for the same description."""
    return orjson.dumps(described, option=orjson.OPT_SORT_KEYS)


class Template:
    """What the bytes of states with the same description have in common. It makes them with a few copies.

    Args:
        text: The text of the description.
        names: The names of the parts.

    Attributes:
        text: The same text.
    """

    def __init__(self, text: bytes, names: Iterable[str]) -> None:
        self.text = text
        self._head = HEAD.pack(MAGIC, VERSION, len(text)) + text
        self._names = [(name, NAME.pack(len(name.encode())) + name.encode()) for name in sorted(names)]

    def encode(self, parts: Mapping[str, bytes]) -> bytes:
        """Return the same bytes for the same text and the same parts."""
        pieces = [self._head]
        for name, before in self._names:
            data = parts[name]
            pieces += before, LENGTH.pack(len(data)), data
        body = b"".join(pieces)
        return body + hashlib.sha256(body).digest()


def encode(text: bytes, parts: Mapping[str, bytes]) -> bytes:
    """Return the same bytes for the same text of a description and parts."""
    return Template(text, parts).encode(parts)


def decode(data: bytes) -> tuple[Mapping[str, Any], dict[str, bytes], int]:
    """Return the description, which is shared and must not be changed, the parts and the version.

    Raises:
        InvalidRequest: The bytes are damaged, or of another version.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise InvalidRequest("this is not the state of a run: it does not begin with lossdrun")
    _check(data)
    body = data[:-CHECKSUM_BYTES]
    _, version, length = HEAD.unpack_from(body)
    if version not in (FIRST, VERSION):
        raise InvalidRequest(f"the state of the run has version {version}; this lossd reads up to version {VERSION}")
    with reading():
        return description(body[HEAD.size : HEAD.size + length]), dict(_parts(body, HEAD.size + length)), version


def decode_alike(
    many: Sequence[bytes],
) -> tuple[Mapping[str, Any], dict[str, list[bytes]], int, list[bytes]]:
    """Return the description, the parts and the version of the first state and of those like it, and the other states.

    A state is like the first if its description, its version and the names of its parts are the same; each name has the
    list of their parts. The states of a run's batches mostly are, and take a third of the time of :func:`decode` then.
    Errors are those of :func:`decode`.
    """
    described, first, version = decode(many[0])
    parts = {name: [data] for name, data in first.items()}
    if len(many) == 1:
        return described, parts, version, []
    head = many[0][: HEAD.size + HEAD.unpack_from(many[0])[2]]
    names = [NAME.pack(len(name.encode())) + name.encode() for name in first]
    others = []
    for data in many[1:]:
        found, at, end = [], len(head), len(data) - CHECKSUM_BYTES
        if data.startswith(head):
            for name in names:
                behind = at + len(name) + LENGTH.size
                if behind > end or not data.startswith(name, at):
                    break
                at = behind + LENGTH.unpack_from(data, behind - LENGTH.size)[0]
                found.append(data[behind:at])
        if len(found) != len(names) or at != end:
            others.append(data)
            continue
        _check(data)
        for part, column in zip(found, parts.values(), strict=True):
            column.append(part)
    return described, parts, version, others


def is_current(data: bytes) -> bool:
    """Return whether bytes are of the version that :func:`encode` writes, and so those of their state."""
    return HEAD.unpack_from(data)[:2] == (MAGIC, VERSION)


@memoized("run_descriptions", lambda text, described: 20 * len(text))
def description(text: bytes) -> Mapping[str, Any]:
    """Return the description of its text, shared by the batches of a run; it must not be changed."""
    described: Mapping[str, Any] = orjson.loads(text)
    return described


def digest(data: bytes) -> str:
    """Return the digest of a run's bytes: ``s2:`` and 32 hexadecimal digits."""
    return f"s{VERSION}:{hashlib.sha256(data).hexdigest()[:32]}"


def packed(data: bytes) -> bytes:
    """Return the bytes of a few batches as they are sent to the recorder and stored."""
    if len(data) >= SHORT_BYTES:
        return compressed(data)
    head = BEFORE.pack(PLAIN, len(data), len(data) ^ 0xFFFF)
    return b"".join((head, data, BEHIND.pack(zlib.adler32(data))))


def compressed(data: bytes) -> bytes:
    """Return bytes as they are stored for long."""
    return zlib.compress(data, LEVEL)


def unpacked(stored: bytes) -> bytes:
    """Return the bytes that :func:`packed` or :func:`compressed` had.

    Raises:
        InternalError: They are damaged.
    """
    try:
        return zlib.decompress(stored)
    except zlib.error as error:
        raise InternalError(f"the state of a batch is damaged: {error}") from error


def joined(states: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], bytes]]:
    """Yield neighbouring states of those given, and the bytes in which they are stored.

    Args:
        states: States as :func:`packed` makes them.
    """
    start = 0
    while start < len(states):
        head = _head(states[start])
        stop = start + 1
        while head and stop < min(len(states), start + MOST_JOINED) and states[stop].startswith(head, BEFORE.size):
            if not states[stop].startswith(PLAIN):
                break
            stop += 1
        some = states[start:stop]
        yield some, _join(some, head) if len(some) > 1 else some[0]
        start = stop


def _head(packed: bytes) -> bytes:
    """Return what the bytes of a packed state begin with, up to the end of the description; empty if they are long."""
    if not packed.startswith(PLAIN) or packed[BEFORE.size : BEFORE.size + len(MAGIC)] != MAGIC:
        return b""
    _, _, length = HEAD.unpack_from(packed, BEFORE.size)
    return packed[BEFORE.size : BEFORE.size + HEAD.size + length]


def _join(states: Sequence[bytes], head: bytes) -> bytes:
    behind = BEFORE.size + len(head)
    rests = [data[behind : -BEHIND.size] for data in states]
    lengths = struct.pack(f"<{len(rests)}I", *map(len, rests))
    return b"".join((JOINED_HEAD.pack(JOINED, len(head), len(rests)), head, lengths, *rests))


def each_unpacked(stored: bytes) -> list[bytes]:
    """Return the bytes of each state that is stored in some bytes: one, or several that were joined.

    Raises:
        InternalError: They are damaged.
    """
    if not stored.startswith(JOINED):
        return [unpacked(stored)]
    try:
        _, length, count = JOINED_HEAD.unpack_from(stored)
        at = JOINED_HEAD.size + length
        head = stored[JOINED_HEAD.size : at]
        lengths = struct.unpack_from(f"<{count}I", stored, at)
    except struct.error as error:
        raise InternalError(f"the states of some batches are damaged: {error}") from error
    at += 4 * count
    states = []
    for length in lengths:
        states.append(head + stored[at : at + length])
        at += length
    if at != len(stored):
        raise InternalError("the states of some batches are damaged: they have another length than their head says")
    return states


@contextmanager
def reading() -> Iterator[None]:
    """Raise InvalidRequest for whatever damaged bytes lead to."""
    try:
        yield
    except InvalidRequest:
        raise
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, struct.error, AssertionError) as error:
        raise InvalidRequest(f"the state of the run is damaged: {error}") from error


def _check(data: bytes) -> None:
    """Check the checksum at the end of a state.

    Raises:
        InvalidRequest: It differs.
    """
    body = memoryview(data)[:-CHECKSUM_BYTES]
    if len(data) < HEAD.size + CHECKSUM_BYTES or hashlib.sha256(body).digest() != data[-CHECKSUM_BYTES:]:
        raise InvalidRequest("the state of the run is damaged: its checksum differs")


def _parts(body: bytes, at: int) -> Iterator[tuple[str, bytes]]:
    while at < len(body):
        (name_length,) = NAME.unpack_from(body, at)
        at += NAME.size
        name = body[at : at + name_length].decode()
        at += name_length
        (length,) = LENGTH.unpack_from(body, at)
        at += LENGTH.size
        if at + length > len(body):
            raise ValueError(f"the part {name} is cut off")
        yield name, body[at : at + length]
        at += length
