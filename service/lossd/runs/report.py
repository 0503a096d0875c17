"""What a worker reports of a batch of a run: the digest of its content, its rows, and its state."""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["BatchReport"]

HEAD = struct.Struct("<32sQ")


class BatchReport(NamedTuple):
    """A batch as a worker evaluated it.

    Attributes:
        digest: The SHA-256 of the batch's content, 32 bytes.
        rows: The batch's rows.
        packed: The bytes of its :class:`~lossd.runs.state.RunState`, zlib'ed.
    """

    digest: bytes
    rows: int
    packed: bytes

    def encode(self) -> bytes:
        """Return the digest, the rows (uint64, little-endian) and the state."""
        return HEAD.pack(self.digest, self.rows) + self.packed

    @classmethod
    def decode(cls, data: bytes) -> BatchReport:
        """Return what :meth:`encode` wrote.

        Raises:
            ValueError: The bytes are too few.
        """
        if len(data) < HEAD.size:
            raise ValueError(f"the report of a batch has at least {HEAD.size} bytes, found {len(data)}")
        digest, rows = HEAD.unpack_from(data)
        return cls(digest, rows, data[HEAD.size :])
