"""Rows by batch, each named batch once."""

from __future__ import annotations

import struct
from typing import ClassVar

from lossd.runs.rows.content import DIGEST_BYTES
from lossd.runs.rows.row_sets import MAX_BYTES, MAX_NAMED, MAX_RANGES, damaged, duplicate
from lossd_client.errors import BatchConflict, Fault, InvalidRequest, TooLarge
from lossd_client.wire.quoting import quoted

__all__ = ["Batches", "check_same"]

MAX_NAME_BYTES = 1024


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
            digest: What :func:`~lossd.runs.rows.content.content_digest` returns; required with a name.

        Raises:
            BatchConflict: A batch of that name was counted with another digest.
            InvalidRequest: The name is too long.
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
            check_same(name, self._named[name][0], digest)
            return 0
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
            raise duplicate(
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
    def decoded(cls, data: memoryview, max_bytes: int) -> Batches:
        """Return the rows of their canonical bytes without the magic; errors are those of ``identity.decode``."""
        identity = cls(max_bytes=max_bytes)
        last = b""
        try:
            (unnamed,) = struct.unpack_from("<q", data)
            if unnamed < 0:
                raise damaged("it counts a negative number of rows")
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
                    raise damaged("its batches are out of order, or one has a negative number of rows")
                identity.add(count, name.decode(), digest)
                last = name
        except (struct.error, UnicodeDecodeError):
            raise damaged("its list of batches is cut off, or a name is not UTF-8") from None
        return identity

    def _check_bytes(self, nbytes: int) -> None:
        if nbytes > self._max_bytes:
            raise TooLarge(f"the names of the batches need more than {self._max_bytes} bytes; send larger batches")


def check_same(name: str, before: bytes, digest: bytes) -> None:
    """Check that a batch that was counted before has the same content.

    Args:
        name: The batch's name.
        before: The digest of the batch that was counted under this name.
        digest: The digest of this batch.

    Raises:
        BatchConflict: The digests differ; the detail has both.
    """
    if before != digest:
        raise BatchConflict(
            f"the batch {quoted(name)} was counted with other data: its digest was {before.hex()}, and is now "
            f"{digest.hex()}; give other data another name"
        )


def _batch_bytes(name: str) -> int:
    return len(name.encode()) + DIGEST_BYTES + 8
