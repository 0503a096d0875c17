"""Rows by id, kept as a sparse bitmap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from lossd.runs.rows.row_sets import (
    APART,
    BEFORE,
    BOTH,
    LAST_POSITION,
    MAX_BYTES,
    MAX_LISTED,
    MAX_RANGES,
    NEW_ONLY,
    Array,
    damaged,
    duplicate,
    gaps,
    halves,
)
from lossd_client.errors import DuplicateRows, Fault, InvalidRequest, TooLarge

__all__ = ["IDS", "Ids"]

IDS = "/inputs/sample_id"
TWICE, ONCE = "the batch holds these rows twice", "send each row once"

WORD_BYTES, WORD_BITS = 16, 64
_SHIFT, _BIT = 6, np.int64(63)
_BITS_OF_BYTE = np.array([value.bit_count() for value in range(256)], np.uint8)
_FULL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


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
        return gaps(_runs(keys, words), expected, limit)

    def encode(self) -> bytes:
        """Return the canonical bytes: ``I1``, the differences of the words' numbers, the words; 64 bits each."""
        keys, words = self._whole()
        return b"I1" + np.diff(keys, prepend=0).astype("<i8").tobytes() + words.astype("<u8").tobytes()

    @classmethod
    def decoded(cls, data: memoryview, max_bytes: int) -> Ids:
        """Return the rows of their canonical bytes without the magic; errors are those of ``identity.decode``."""
        identity = cls(max_bytes=max_bytes)
        differences, signed = halves(data, identity._check_bytes)
        keys, words = np.cumsum(differences), signed.view(np.uint64)
        reach = np.int64(1) << (WORD_BITS - 1 - _SHIFT)
        # A sum that overflows is followed by a smaller number, so the order shows it.
        if not ((differences[1:] > 0).all() and (keys[1:] > keys[:-1]).all() and (words != 0).all()):
            raise damaged("its ids are out of order, or a word of them is empty")
        if len(keys) and not -reach <= keys[0] <= keys[-1] < reach:
            raise damaged("an id is beyond int64")
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
        raise duplicate(TWICE, rows[:MAX_LISTED].tolist(), len(rows), ONCE, pointer=IDS)
    if not len(ordered):
        return keys, bits
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[begins], np.bitwise_or.reduceat(bits, begins)


def _find(held: Array, keys: Array) -> tuple[Array, Array]:
    """Return where in ``held`` each key would stand, and whether it stands there; both increase."""
    at = np.searchsorted(held, keys)
    return at, held[np.minimum(at, len(held) - 1)] == keys


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


def _duplicate_ids(keys: Array, words: Array, *, merging: bool) -> DuplicateRows:
    listed = _ids(keys[:MAX_LISTED], words[:MAX_LISTED])[:MAX_LISTED].tolist()
    count = int(_BITS_OF_BYTE[words.view(np.uint8)].sum(dtype=np.int64))
    if merging:
        return duplicate(BOTH, listed, count, APART)
    return duplicate(BEFORE, listed, count, NEW_ONLY, pointer=IDS)
