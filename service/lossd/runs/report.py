"""What a worker reports of a batch of a run: the digest of its content, its rows, and its state."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

__all__ = ["BatchReport"]

HEAD, CHECKSUM = struct.Struct("<32sQQII"), struct.Struct("<I")


class BatchReport(NamedTuple):
    """A batch as a worker evaluated it.

    Attributes:
        digest: The digest of the batch's content, 32 bytes.
        rows: The batch's rows.
        entries: How many entries of its rows are judged.
        described: The description in its state, which says what other batches must have in common with it.
        identity: The bytes of the rows that it counts. Both are in the state too; the recorder need not unpack that.
        packed: The bytes of its :class:`~lossd.runs.state.RunState`, as :func:`lossd.runs.encoding.packed` makes them.
    """

    digest: bytes
    rows: int
    entries: int
    described: bytes
    identity: bytes
    packed: bytes

    def encode(self) -> bytes:
        """Return the report as bytes.

        They are the digest, the rows and the entries (uint64 each), the lengths of the description and of the identity
        (uint32 each), the description, the identity, the state, and the CRC-32 of all that (uint32). Numbers are
        little-endian.
        """
        head = HEAD.pack(self.digest, self.rows, self.entries, len(self.described), len(self.identity))
        body = b"".join((head, self.described, self.identity, self.packed))
        return body + CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def decode(cls, data: bytes) -> BatchReport:
        """Return what :meth:`encode` wrote.

        Raises:
            ValueError: The bytes are damaged.
        """
        end = len(data) - CHECKSUM.size
        if end < HEAD.size or CHECKSUM.unpack_from(data, end) != (zlib.crc32(memoryview(data)[:end]),):
            raise ValueError("the report of a batch is damaged: its checksum differs")
        digest, rows, entries, *lengths = HEAD.unpack_from(data)
        behind = HEAD.size + lengths[0]
        last = behind + lengths[1]
        return cls(digest, rows, entries, data[HEAD.size : behind], data[behind:last], data[last:end])
