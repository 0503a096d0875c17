"""Evaluate a chunk in whatever process it was sent to, and return its states as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import torch

import lossd.scoring.blocks as reading
from lossd import __version__
from lossd.runs.run import Run
from lossd.scoring.blocks import Piece
from lossd.scoring.chunks import Chunk
from lossd.scoring.counting import FileCounting
from lossd_client.errors import Problem

__all__ = ["ChunkResult", "OtherVersion", "Part", "Scorer", "versions"]

_ONE = Lock()
"""One evaluation at a time: the threads of a process would share torch's, and wait for each other."""


class OtherVersion(Exception):  # noqa: N818  (as in lossd_client.errors)
    """Another lossd or torch is installed where a chunk is evaluated."""


@dataclass(frozen=True, slots=True)
class Part:
    """Files of a chunk that can be counted together.

    Attributes:
        files: The names of the files.
        rows: How many rows they have in the chunk.
        state: The state of a run of these rows, as bytes.
    """

    files: tuple[str, ...]
    rows: int
    state: bytes


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What became of a chunk.

    Attributes:
        chunk: The chunk's id.
        parts: What was counted: one part, unless files differ in what they have in common.
        bad: The name and the problem of each file that was refused.
        nbytes: The bytes that were read.
    """

    chunk: str
    parts: tuple[Part, ...]
    bad: tuple[tuple[str, Problem], ...]
    nbytes: int


def versions() -> dict[str, str]:
    """Return the versions that decide the bits of a state."""
    return {"lossd": __version__, "torch": torch.__version__}


@dataclass(frozen=True, slots=True)
class Scorer:
    """Evaluates chunks. It can be sent to other processes.

    Attributes:
        definition: The state of the run without rows, as bytes.
        by_row: The names of inputs that have a row for each sample.
        splits: Whether a file may be evaluated in blocks.
        slices: The values of slices that the rows of all files have.
        versions: The versions that the result shall be of.
    """

    definition: bytes
    by_row: Sequence[str]
    splits: bool
    slices: Mapping[str, str]
    versions: Mapping[str, str]

    def __call__(self, chunk: Chunk) -> ChunkResult:
        """Return what became of a chunk.

        Raises:
            OtherVersion: This process has another lossd or torch.
        """
        if (found := versions()) != self.versions:
            here, there = (", ".join(f"{name} {v}" for name, v in each.items()) for each in (self.versions, found))
            raise OtherVersion(f"a worker has {there}, and this command {here}: install the same on all machines")
        with _ONE:
            torch.set_num_threads(1)
            counted, part = self._counted(chunk.pieces, chunk.rows, chunk.first)
            parts, bad, first = [part] if part.files else [], [], chunk.first
            problems = dict(counted.bad)
            for piece, rows in zip(chunk.pieces, chunk.rows, strict=True):
                name = piece.source.name
                if name in problems:  # it may fit the files of other chunks
                    alone, part = self._counted([piece], [rows], first)
                    parts += [part] if part.files else []
                    bad += alone.bad
                first += rows or 0
        return ChunkResult(chunk.id, tuple(parts), tuple(bad), counted.nbytes)

    def _counted(self, pieces: Sequence[Piece], rows: Sequence[int | None], first: int) -> tuple[FileCounting, Part]:
        named = {piece.source.name: count for piece, count in zip(pieces, rows, strict=True)}
        counting = FileCounting(lambda: Run.from_state(self.definition), len(pieces), named, self.slices, first)
        found = reading.blocks(pieces, self.by_row, splits=self.splits, block_bytes=reading.BLOCK_BYTES)
        with reading.read_ahead(found) as ahead:
            for block in ahead:
                counting.add(block)
        files = tuple(name for name in named if name not in dict(counting.bad))
        if counting.counted_rows != (announced := sum(named[name] or 0 for name in files)):
            raise RuntimeError(
                f"{counting.counted_rows} rows of {', '.join(files)} were counted, headers tell {announced}"
            )
        return counting, Part(files, counting.counted_rows, counting.run.state() if files else b"")
