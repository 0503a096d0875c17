"""Which rows a run has counted, each exactly once: by position, by id, or by batch.

The three classes have the same methods. ``check`` returns how many rows a batch would add, and raises if one of them
was counted before. ``add`` counts them. ``extend`` counts a batch that is an identity of its own. ``merge`` adds the
rows of another run. ``missing`` lists the gaps. ``bounds`` are the lowest and the highest row. ``encode`` returns the
same bytes for the same rows, whatever the order, the batches and the merges. A method that raises changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from lossd_client.errors import DuplicateRows, Fault, InvalidRequest, TooLarge
from lossd_client.wire import Tensor
from lossd_client.wire.quoting import quoted

__all__ = ["Batches", "Identity", "Ids", "Positions", "content_digest", "decode", "new"]

Array = np.ndarray[Any, Any]

MAX_BYTES = 1 << 28
"""The memory that the identity of a run may take: 256 MiB, which hold the ids 0 to 10⁹, or 16 million random ones."""

MAX_NAMED = 10
MAX_RANGES = 1000
MAX_NAME_BYTES = 1024
IDS = "/inputs/sample_id"
LAST_POSITION = np.iinfo(np.int64).max

RANGE_BYTES = WORD_BYTES = 16
DIGEST_BYTES = 32
RANGE = struct.Struct("<qq")
WORD_BITS = 64
_SHIFT, _BIT = 6, np.int64(63)
_BITS_OF_BYTE = np.array([value.bit_count() for value in range(256)], np.uint8)
_FULL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


BEFORE, NEW_ONLY = "the run has counted these rows before", "send only rows that it has not counted"
TWICE, ONCE = "the batch holds these rows twice", "send each row once"
BOTH, APART = "both runs counted these rows", "merge runs of different rows"


class Positions:
    """Rows by position: a batch holds the rows first, first + 1, ...; kept as sorted ranges that do not touch.

    Args:
        max_bytes: The most bytes that the ranges may take, 16 each.
    """

    kind: ClassVar[str] = "position"

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self.rows = 0
        self._max_bytes = max_bytes
        self._starts, self._stops = array("q"), array("q")

    @property
    def stop(self) -> int:
        """The position behind the last counted row; 0 without rows."""
        return self._stops[-1] if self._stops else 0

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The lowest and the highest counted position; None without rows."""
        return (self._starts[0], self._stops[-1] - 1) if self._starts else None

    @property
    def nbytes(self) -> int:
        """The bytes that the ranges take."""
        return len(self._starts) * RANGE_BYTES

    def check(self, first: int, count: int) -> int:
        """Return ``count``, the rows that the batch of the positions first to first + count - 1 would add.

        Raises:
            DuplicateRows: One of them was counted before.
            InvalidRequest: A position is negative, or beyond 64 bits.
            TooLarge: The batch leaves a gap, and the ranges would take too many bytes.
        """
        if first < 0 or count < 0 or first + count > LAST_POSITION:
            detail = f"first is {first} for {count} rows; positions are 0 to 2^63 - 2"
            raise InvalidRequest(detail, errors=[Fault(pointer="/first", detail=detail)])
        index = bisect_right(self._stops, first)
        overlaps = []
        while count and index < len(self._starts) and self._starts[index] < first + count:
            overlaps.append(range(max(self._starts[index], first), min(self._stops[index], first + count)))
            index += 1
        if overlaps:
            raise _duplicate_positions(BEFORE, overlaps, NEW_ONLY, "/first")
        if (len(self._starts) + 1) * RANGE_BYTES > self._max_bytes:
            self._check_bytes(len(self._starts) + (not self._touches(index, first, count)))
        return count

    def add(self, first: int, count: int) -> int:
        """Count a batch; return how many rows it added; errors are those of :meth:`check`."""
        if not self.check(first, count):
            return 0
        index = bisect_right(self._stops, first)
        after_one = index > 0 and self._stops[index - 1] == first
        before_one = index < len(self._starts) and self._starts[index] == first + count
        if after_one and before_one:
            self._stops[index - 1] = self._stops.pop(index)
            self._starts.pop(index)
        elif after_one:
            self._stops[index - 1] = first + count
        elif before_one:
            self._starts[index] = first
        else:
            self._starts.insert(index, first)
            self._stops.insert(index, first + count)
        self.rows += count
        return count

    def extend(self, batch: Positions) -> None:
        """Count the rows of a batch; errors are those of :meth:`check`."""
        ranges = [(start, stop - start) for start, stop in zip(batch._starts, batch._stops, strict=True)]
        for first, count in ranges:
            self.check(first, count)
        for first, count in ranges:
            self.add(first, count)

    def merge(self, other: Positions) -> None:
        """Add the rows of another run.

        Raises:
            DuplicateRows: Both counted a row.
            TooLarge: The ranges would take too many bytes.
        """
        if len(self._starts) == len(other._starts) == 1 and self._stops[0] == other._starts[0]:
            self._stops[0] = other._stops[0]  # batches in their order: NumPy takes 20 times as long
            self.rows += other.rows
            return
        starts = np.concatenate([np.asarray(self._starts), np.asarray(other._starts)])
        order = np.argsort(starts, kind="stable")
        starts, stops = starts[order], np.concatenate([np.asarray(self._stops), np.asarray(other._stops)])[order]
        before = np.maximum.accumulate(stops)[:-1]  # each row is in one range of each run, so two overlap at most
        if (twice := np.flatnonzero(starts[1:] < before)).size:
            lasts = np.minimum(stops[1:], before)
            raise _duplicate_positions(BOTH, [range(starts[at + 1], lasts[at]) for at in twice.tolist()], APART)
        apart = starts[1:] > stops[:-1]
        kept = np.flatnonzero(np.concatenate([[True], apart]))[: len(starts)]
        self._check_bytes(len(kept))
        self._starts = array("q", starts[kept].tobytes())
        self._stops = array("q", np.append(stops[:-1][apart], stops[-1:]).tobytes())
        self.rows += other.rows

    def missing(self, expected: int | None = None, *, limit: int = MAX_RANGES) -> list[range]:
        """Return the first ranges of positions that were not counted.

        Args:
            expected: The number of rows of the data set; None for the position behind the last counted row.
            limit: The most ranges to return.
        """
        runs = zip(self._starts, self._stops, strict=True)
        return _gaps(runs, self.stop if expected is None else expected, limit)

    def encode(self) -> bytes:
        """Return the canonical bytes: ``P1``, then the starts and the lengths of the ranges as int64."""
        starts, stops = (np.asarray(bounds, "<i8") for bounds in (self._starts, self._stops))
        return b"".join((b"P1", starts.tobytes(), (stops - starts).tobytes()))

    @classmethod
    def _decoded(cls, data: memoryview, max_bytes: int) -> Positions:
        identity = cls(max_bytes=max_bytes)
        if len(data) == RANGE_BYTES:  # a batch; NumPy takes ten times as long for one range
            first, count = RANGE.unpack(data)
            if not 0 <= first < first + count <= LAST_POSITION:
                raise _damaged("a range of positions is empty or beyond 64 bits")
            identity.add(first, count)
            return identity
        starts, lengths = _halves(data, identity._check_bytes)
        if not ((starts >= 0) & (lengths > 0) & (lengths <= LAST_POSITION - starts)).all():
            raise _damaged("a range of positions is empty or beyond 64 bits")
        stops = starts + lengths
        if not (starts[1:] > stops[:-1]).all():
            raise _damaged("its ranges of positions touch or are out of order")
        identity._starts, identity._stops = array("q", starts.tobytes()), array("q", stops.tobytes())
        identity.rows = sum(lengths.tolist())
        return identity

    def _touches(self, index: int, first: int, count: int) -> bool:
        """Return whether a batch extends a range, of which ``index`` is the first behind it."""
        return (index > 0 and self._stops[index - 1] == first) or (
            index < len(self._starts) and self._starts[index] == first + count
        )

    def _check_bytes(self, ranges: int) -> None:
        if ranges * RANGE_BYTES > self._max_bytes:
            raise TooLarge(
                f"{ranges} ranges of rows need more than {self._max_bytes} bytes; send batches in the order of their "
                "rows, so that ranges grow together"
            )


class Ids:
    """Rows by id, any int64: a sparse bitmap of one word for 64 neighbouring ids.

    A word takes 16 bytes with its number. Consecutive ids thus take a quarter of a byte each, and random ones 16 bytes.
    The words are kept in a few sorted segments, each at least twice as long as the next, so that a small batch copies
    little. A word is in one segment only.

    Args:
        max_bytes: The most bytes that the words may take, 16 each.
    """

    kind: ClassVar[str] = "id"

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self.rows = 0
        self._max_bytes = max_bytes
        self._segments: list[tuple[Array, Array]] = []

    def check(self, ids: Array) -> int:
        """Return how many rows the batch of these ids would add: all, (N,) integers.

        Raises:
            DuplicateRows: One of them was counted before, or is twice in the batch.
            InvalidRequest: They are no vector of integers, or one is beyond int64.
            TooLarge: The words would take too many bytes.
        """
        self._find(*_words(ids))
        return len(ids)

    def add(self, ids: Array) -> int:
        """Count a batch; return how many rows it added; errors are those of :meth:`check`."""
        keys, words = _words(ids)
        self._insert(keys, words, self._find(keys, words))
        self.rows += len(ids)
        return len(ids)

    def extend(self, batch: Ids) -> None:
        """Count the rows of a batch; errors are those of :meth:`check`."""
        self._merge(batch, merging=False)

    def merge(self, other: Ids) -> None:
        """Add the rows of another run.

        Raises:
            DuplicateRows: Both counted a row.
            TooLarge: The words would take too many bytes.
        """
        self._merge(other, merging=True)

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The lowest and the highest counted id; None without rows."""
        keys, words = self._whole()
        if not len(keys):
            return None
        lowest = int(words[0])
        return (int(keys[0]) << _SHIFT) + (lowest & -lowest).bit_length() - 1, self._last(keys, words)

    @property
    def nbytes(self) -> int:
        """The bytes that the words take."""
        return WORD_BYTES * sum(len(keys) for keys, _ in self._segments)

    def missing(self, expected: int | None = None, *, limit: int = MAX_RANGES) -> list[range]:
        """Return the first ranges of ids that were not counted, if the ids are 0 to ``expected`` - 1.

        Args:
            expected: The number of rows of the data set.
            limit: The most ranges to return.

        Returns:
            An empty list if ``expected`` is None or an id is outside: ids then need not be consecutive.
        """
        keys, words = self._whole()
        if expected is None or (len(keys) and (keys[0] < 0 or self._last(keys, words) >= expected)):
            return []
        return _gaps(_runs(keys, words), expected, limit)

    def encode(self) -> bytes:
        """Return the canonical bytes: ``I1``, the differences of the words' numbers, the words; 64 bits each."""
        keys, words = self._whole()
        return b"I1" + np.diff(keys, prepend=0).astype("<i8").tobytes() + words.astype("<u8").tobytes()

    @classmethod
    def _decoded(cls, data: memoryview, max_bytes: int) -> Ids:
        identity = cls(max_bytes=max_bytes)
        differences, signed = _halves(data, identity._check_bytes)
        keys, words = np.cumsum(differences), signed.view(np.uint64)
        reach = np.int64(1) << (WORD_BITS - 1 - _SHIFT)
        # A sum that overflows is followed by a smaller number, so the order shows it.
        if not ((differences[1:] > 0).all() and (keys[1:] > keys[:-1]).all() and (words != 0).all()):
            raise _damaged("its ids are out of order, or a word of them is empty")
        if len(keys) and not -reach <= keys[0] <= keys[-1] < reach:
            raise _damaged("an id is beyond int64")
        identity._segments = [(keys, words.copy())] if len(keys) else []
        identity.rows = int(_BITS_OF_BYTE[words.view(np.uint8)].sum(dtype=np.int64))
        return identity

    def holds(self, ids: Array) -> bool:
        """Return whether one of the ids, (N,) integers without repetition, was counted."""
        keys, words = _words(ids)
        for own_keys, own_words in self._segments:
            at, found = _find(own_keys, keys)
            if (own_words[at[found]] & words[found]).any():
                return True
        return False

    def _merge(self, other: Ids, *, merging: bool) -> None:
        keys, words = other._whole()
        self._insert(keys, words, self._find(keys, words, merging=merging))
        self.rows += other.rows

    def _find(self, keys: Array, words: Array, *, merging: bool = False) -> list[tuple[Array, Array]]:
        """Return for each segment where each key would stand, and whether it stands there; raise as :meth:`check`."""
        places = [_find(own_keys, keys) for own_keys, _ in self._segments]
        twice = np.zeros_like(words)
        fresh = len(keys)
        for (_, own_words), (at, found) in zip(self._segments, places, strict=True):
            twice[found] = own_words[at[found]] & words[found]
            fresh -= int(found.sum())
        if (both := np.flatnonzero(twice)).size:
            raise _duplicate_ids(keys[both], twice[both], merging=merging)
        self._check_bytes(sum(len(own_keys) for own_keys, _ in self._segments) + fresh)
        return places

    def _insert(self, keys: Array, words: Array, places: list[tuple[Array, Array]]) -> None:
        fresh = np.ones(len(keys), bool)
        for (_, own_words), (at, found) in zip(self._segments, places, strict=True):
            own_words[at[found]] |= words[found]
            fresh &= ~found
        if not fresh.any():
            return
        self._segments.append((keys[fresh], words[fresh]))
        while len(self._segments) > 1 and len(self._segments[-2][0]) < 2 * len(self._segments[-1][0]):
            self._join()

    def _join(self) -> None:
        """Make one segment of the last two."""
        keys, words = (np.concatenate(parts) for parts in zip(*self._segments[-2:], strict=True))
        order = np.argsort(keys, kind="stable")  # two sorted halves: NumPy's stable sort merges them
        self._segments[-2:] = [(keys[order], words[order])]

    def _whole(self) -> tuple[Array, Array]:
        """Return all words' numbers, increasing, and the words."""
        while len(self._segments) > 1:
            self._join()
        return self._segments[0] if self._segments else (np.empty(0, np.int64), np.empty(0, np.uint64))

    @staticmethod
    def _last(keys: Array, words: Array) -> int:
        return (int(keys[-1]) << _SHIFT) + int(words[-1]).bit_length() - 1

    def _check_bytes(self, words: int) -> None:
        if words * WORD_BYTES > self._max_bytes:
            raise TooLarge(
                f"{words} words of ids need more than {self._max_bytes} bytes; ids that are far apart take 16 bytes "
                "a row: number the rows from 0, or identify them by position"
            )


class Batches:
    """Rows by batch: each named batch counts once, and is known by the digest of its content.

    A batch without a name is counted whenever it is added. Nothing tells it from another.

    Args:
        max_bytes: The most bytes that names and digests may take.
    """

    kind: ClassVar[str] = "batch"

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self.rows = 0
        self._max_bytes = max_bytes
        self._bytes = 0
        self._unnamed_rows = 0
        self._named: dict[str, tuple[bytes, int]] = {}

    def check(self, count: int, name: str | None = None, digest: bytes | None = None) -> int:
        """Return how many rows a batch would add: 0 if the same one was counted before, else ``count``.

        Args:
            count: The batch's rows.
            name: The batch's name, 1 to 1024 bytes; None for a batch without a name.
            digest: What :func:`content_digest` returns; required with a name.

        Raises:
            InvalidRequest: A batch of that name has another digest; the detail names both. Or the name is too long.
            TooLarge: Names and digests would take too many bytes.
        """
        if name is None:
            return count
        if digest is None or len(digest) != DIGEST_BYTES:
            raise ValueError("a batch with a name needs the digest of its content, 32 bytes")
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            detail = (
                f"the batch's name {quoted(name)} has {len(name.encode())} bytes; it may have 1 to {MAX_NAME_BYTES}"
            )
            raise InvalidRequest(detail, errors=[Fault(pointer="/name", detail=detail)])
        if name in self._named:
            before, _ = self._named[name]
            if before == digest:
                return 0
            detail = (
                f"the batch {quoted(name)} was counted with other content, of digest {before.hex()}; this one has "
                f"{digest.hex()}: give it another name"
            )
            raise InvalidRequest(detail, errors=[Fault(pointer="/name", detail=detail)])
        self._check_bytes(self._bytes + _batch_bytes(name))
        return count

    def add(self, count: int, name: str | None = None, digest: bytes | None = None) -> int:
        """Count a batch; return how many rows it added; arguments and errors are those of :meth:`check`."""
        added = self.check(count, name, digest)
        if name is None:
            self._unnamed_rows += count
        elif name not in self._named:
            assert digest is not None
            self._named[name] = (digest, count)
            self._bytes += _batch_bytes(name)
        self.rows += added
        return added

    bounds: ClassVar[None] = None

    @property
    def nbytes(self) -> int:
        """The bytes that names and digests take."""
        return self._bytes

    def extend(self, batch: Batches) -> None:
        """Count the rows of a batch; errors are those of :meth:`merge`."""
        self.merge(batch)

    def merge(self, other: Batches) -> None:
        """Add the batches of another run.

        Raises:
            DuplicateRows: Both counted a batch of that name, with the same content or not.
            TooLarge: Names and digests would take too many bytes.
        """
        if twice := sorted(self._named.keys() & other._named.keys()):
            raise _duplicate(
                "both runs counted these batches", twice[:MAX_NAMED], len(twice), "merge runs of different batches"
            )
        self._check_bytes(self._bytes + other._bytes)
        self._named |= other._named
        self._bytes += other._bytes
        self._unnamed_rows += other._unnamed_rows
        self.rows += other.rows

    def missing(self, expected: int | None = None, *, limit: int = MAX_RANGES) -> list[range]:
        """Return an empty list: batches do not tell which rows are missing, only ``rows`` tells how many."""
        return []

    def encode(self) -> bytes:
        """Return the canonical bytes: ``B1``, the rows without a name, then each batch in the order of the names.

        A batch is the length of its name (uint16), the name in UTF-8, its digest (32 bytes) and its rows (int64).
        """
        parts = [b"B1", struct.pack("<q", self._unnamed_rows)]
        for name, (digest, count) in sorted((name.encode(), batch) for name, batch in self._named.items()):
            parts += [struct.pack("<H", len(name)), name, digest, struct.pack("<q", count)]
        return b"".join(parts)

    @classmethod
    def _decoded(cls, data: memoryview, max_bytes: int) -> Batches:
        identity = cls(max_bytes=max_bytes)
        last = b""
        try:
            (unnamed,) = struct.unpack_from("<q", data)
            if unnamed < 0:
                raise _damaged("it counts a negative number of rows")
            identity.add(unnamed)
            offset = 8
            while offset < len(data):
                (length,) = struct.unpack_from("<H", data, offset)
                offset += 2
                name = bytes(data[offset : offset + length])
                digest = bytes(data[offset + length : offset + length + DIGEST_BYTES])
                offset += length + DIGEST_BYTES
                (count,) = struct.unpack_from("<q", data, offset)
                offset += 8
                if name <= last or count < 0:
                    raise _damaged("its batches are out of order, or one has a negative number of rows")
                identity.add(count, name.decode(), digest)
                last = name
        except (struct.error, UnicodeDecodeError):
            raise _damaged("its list of batches is cut off, or a name is not UTF-8") from None
        return identity

    def _check_bytes(self, nbytes: int) -> None:
        if nbytes > self._max_bytes:
            raise TooLarge(f"the names of the batches need more than {self._max_bytes} bytes; send larger batches")


Identity = Positions | Ids | Batches
"""Which rows were counted, in one of the three ways."""

_KINDS: Mapping[str, type[Positions] | type[Ids] | type[Batches]] = {cls.kind: cls for cls in (Positions, Ids, Batches)}
_BY_MAGIC: Mapping[bytes, Callable[[memoryview, int], Identity]] = {
    b"P1": Positions._decoded,
    b"I1": Ids._decoded,
    b"B1": Batches._decoded,
}


def new(kind: str, *, max_bytes: int = MAX_BYTES) -> Identity:
    """Return an empty identity.

    Args:
        kind: position, id or batch.
        max_bytes: The most bytes that it may take.

    Raises:
        InvalidRequest: There is no such kind.
    """
    if kind not in _KINDS:
        detail = f"identity is {quoted(kind)}; it is one of {', '.join(_KINDS)}"
        raise InvalidRequest(detail, errors=[Fault(pointer="/identity", detail=detail)])
    return _KINDS[kind](max_bytes=max_bytes)


def decode(data: bytes, *, max_bytes: int = MAX_BYTES) -> Identity:
    """Return the identity of its bytes, which may come from anybody.

    Raises:
        InvalidRequest: The bytes are not canonical: no ``encode`` returns them.
        TooLarge: The identity takes too many bytes.
    """
    view = memoryview(data)
    reader = _BY_MAGIC.get(bytes(view[:2]))
    if reader is None:
        raise _damaged(f"it begins with {bytes(view[:2])!r}, not with {', '.join(map(repr, _BY_MAGIC))}")
    return reader(view[2:], max_bytes)


def content_digest(inputs: Mapping[str, Tensor], fields: Mapping[str, Any] | None = None) -> bytes:
    """Return the SHA-256 digest of a batch: 32 bytes.

    It covers the fields, and each input's name, dtype, shape and bytes. It does not depend on the order of either, nor
    on the wire format, because the inputs are decoded.

    Args:
        inputs: The inputs by name.
        fields: The batch's other fields, of JSON's types.
    """
    described = {name: [tensor.dtype, *tensor.shape] for name, tensor in inputs.items()}
    head = json.dumps([fields or {}, described], sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(struct.pack("<Q", len(head)) + head)
    for name in sorted(inputs):
        digest.update(inputs[name].data)
    return digest.digest()


def _words(ids: Array) -> tuple[Array, Array]:
    """Return the numbers of the words that hold the ids, increasing, and the words.

    Raises:
        DuplicateRows, InvalidRequest: As :meth:`Ids.check`.
    """
    detail = ""
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        detail = f"sample_id is {ids.dtype} of shape {ids.shape}; ids are a vector of integers, one a row"
    elif ids.dtype.kind == "u" and len(ids) and ids.max() > LAST_POSITION:
        detail = f"sample_id {ids.max()} is beyond int64"
    if detail:
        raise InvalidRequest(detail, errors=[Fault(pointer=IDS, detail=detail)])
    ordered = np.sort(ids.astype(np.int64))
    keys, bits = ordered >> _SHIFT, np.uint64(1) << (ordered & _BIT).astype(np.uint64)
    if (again := ordered[1:][ordered[1:] == ordered[:-1]]).size:
        rows = np.unique(again)
        raise _duplicate(TWICE, rows[:MAX_NAMED].tolist(), len(rows), ONCE, pointer=IDS)
    if not len(ordered):
        return keys, bits
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[begins], np.bitwise_or.reduceat(bits, begins)


def _find(own: Array, keys: Array) -> tuple[Array, Array]:
    """Return where in ``own`` each key would stand, and whether it stands there; both increase."""
    at = np.searchsorted(own, keys)
    return at, own[np.minimum(at, len(own) - 1)] == keys


def _ids(keys: Array, words: Array) -> Array:
    """Return the ids in words, increasing."""
    word, bit = np.nonzero(np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little"))
    return (keys[word] << _SHIFT) + bit


def _runs(keys: Array, words: Array, block: int = 4096) -> Iterator[tuple[int, int]]:
    """Yield ranges of counted ids, (first, behind the last), in their order; neighbours may touch."""
    for begin in range(0, len(keys), block):
        some, held = keys[begin : begin + block], words[begin : begin + block]
        if some[-1] - some[0] == len(some) - 1 and (held == _FULL).all():
            yield int(some[0]) << _SHIFT, (int(some[-1]) + 1) << _SHIFT
            continue
        ids = _ids(some, held)
        breaks = np.flatnonzero(np.diff(ids) > 1)
        starts, stops = np.append(ids[:1], ids[breaks + 1]), np.append(ids[breaks], ids[-1]) + 1
        yield from zip(starts.tolist(), stops.tolist(), strict=True)


def _gaps(runs: Iterable[tuple[int, int]], end: int, limit: int) -> list[range]:
    """Return the first ranges from 0 to ``end`` that increasing runs leave out."""
    gaps: list[range] = []
    position = 0
    for start, stop in runs:
        if start >= end or len(gaps) >= limit:
            break
        if start > position:
            gaps.append(range(position, start))
        position = stop
    if position < end and len(gaps) < limit:
        gaps.append(range(position, end))
    return gaps


def _duplicate_positions(what: str, overlaps: Sequence[range], remedy: str, pointer: str = "") -> DuplicateRows:
    named = [row for overlap in overlaps[:MAX_NAMED] for row in overlap[:MAX_NAMED]][:MAX_NAMED]
    return _duplicate(what, named, sum(map(len, overlaps)), remedy, pointer=pointer)


def _duplicate_ids(keys: Array, words: Array, *, merging: bool) -> DuplicateRows:
    named = _ids(keys[:MAX_NAMED], words[:MAX_NAMED])[:MAX_NAMED].tolist()
    count = int(_BITS_OF_BYTE[words.view(np.uint8)].sum(dtype=np.int64))
    if merging:
        return _duplicate(BOTH, named, count, APART)
    return _duplicate(BEFORE, named, count, NEW_ONLY, pointer=IDS)


def _duplicate(
    what: str, rows: Sequence[int] | Sequence[str], count: int, remedy: str, *, pointer: str = ""
) -> DuplicateRows:
    """Return the error of rows that were counted before, or that stand twice in a batch.

    Args:
        what: What is wrong.
        rows: The first of them: positions, ids, or names of batches.
        count: How many there are.
        remedy: What to do.
        pointer: The place in the request.
    """
    shown = ", ".join(quoted(row) if isinstance(row, str) else str(row) for row in rows)
    more = f", ... ({count} in all)" if count > len(rows) else ""
    detail = f"{what}: {shown}{more}; {remedy}"
    errors = [Fault(pointer=pointer, detail=detail)] if pointer else ()
    return DuplicateRows(detail, rows=rows, count=count, errors=errors)


def _batch_bytes(name: str) -> int:
    return len(name.encode()) + DIGEST_BYTES + 8


def _halves(data: memoryview, check: Callable[[int], None]) -> tuple[Array, Array]:
    """Return two vectors of int64, as many as ``check`` allows."""
    count, rest = divmod(len(data), 16)
    if rest:
        raise _damaged("it is cut off")
    check(count)
    numbers = np.frombuffer(data, "<i8").astype(np.int64)
    return numbers[:count], numbers[count:]


def _damaged(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the record of the counted rows is damaged: {reason}")
