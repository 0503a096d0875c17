"""Divide files into chunks: the same ones for the same files, in any process and any order.

A chunk is some whole files, or some rows of a large one. It states what to read and the position of its first row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import lossd.scoring.blocks as reading
from lossd.files.places import Remote
from lossd.files.sources import Source
from lossd.scoring.blocks import Piece, rows_in, rows_of_block
from lossd_client.errors import Problem

__all__ = ["Chunk", "Extent", "chunks_of", "source_sizes", "usual_bytes"]

LEAST_BYTES, MOST_BYTES = 4 << 20, 256 << 20
CHUNKS = 256
MOST_FILES = 512
REQUESTS = 32
"""How many headers are asked for at a time, if files lie behind a network."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much a source holds.

    Attributes:
        rows: The rows, or None if nothing tells them.
        nbytes: The bytes of its arrays.
        stated: Whether headers tell the rows.
        splits: Whether some of its rows can be read without the others.
        ends: The numbers of rows after which it is best split; empty for any.
        problem: Why it cannot be read, or None.
    """

    rows: int | None = None
    nbytes: int = 0
    stated: bool = False
    splits: bool = False
    ends: Sequence[int] = ()
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one worker evaluates at a time.

    Attributes:
        id: The digest of what it holds: equal for equal files, rows and positions.
        pieces: Whole sources, or one piece of a source.
        rows: The rows of each piece, or None if nothing tells them.
        first: The position of its first row.
        nbytes: The bytes of its arrays.
    """

    id: str
    pieces: tuple[Piece, ...]
    rows: tuple[int | None, ...]
    first: int
    nbytes: int

    @property
    def text(self) -> str:
        """What it holds, for a person."""
        piece, *others = self.pieces
        rows = "" if piece.end is None else f" rows {piece.begin} to {piece.end - 1} of"
        return f"{rows} {piece.source.name}".strip() + (f" to {others[-1].source.name}" if others else "")


def source_sizes(sources: Sequence[Source], by_row: Sequence[str], *, rows: int | None) -> list[Extent]:
    """Return how much each source holds, by its headers; of .csv files the content is read.

    Args:
        sources: The sources.
        by_row: The names of inputs that have a row for each sample.
        rows: The rows of a source that has none of these inputs.
    """
    measure = partial(_measured, by_row=by_row, rows=rows)
    if not any(isinstance(place, Remote) for source in sources for place in source.paths.values()):
        return [*map(measure, sources)]
    with ThreadPoolExecutor(REQUESTS) as pool:
        return [*pool.map(measure, sources)]


def usual_bytes(total: int) -> int:
    """Return the bytes of a chunk, given those of all files: 256 chunks, unless they would be small or large."""
    return min(max(total // CHUNKS, LEAST_BYTES), MOST_BYTES)


def chunks_of(
    sources: Sequence[Source], extents: Sequence[Extent], *, splits: bool, chunk_bytes: int | None = None
) -> list[Chunk]:
    """Return the chunks of the sources that can be read.

    Args:
        sources: The sources, in the order of their positions.
        extents: How much each holds.
        splits: Whether the rows of a source are independent, so that it may be split.
        chunk_bytes: About how many bytes of arrays a chunk has. [default: :func:`usual_bytes`]
    """
    chunk_bytes = chunk_bytes or usual_bytes(sum(extent.nbytes for extent in extents))
    found: list[Chunk] = []
    together: list[tuple[Piece, Extent]] = []
    first = held = 0

    def close() -> None:
        nonlocal first, held
        if together:
            found.append(_chunk([piece for piece, _ in together], [extent.rows for _, extent in together], first, held))
            first += sum(extent.rows or 0 for _, extent in together)
            together.clear()
            held = 0

    for source, extent in zip(sources, extents, strict=True):
        if extent.problem is not None:
            continue
        if splits and extent.splits and extent.rows and extent.nbytes > chunk_bytes:
            close()
            row_bytes = max(extent.nbytes // extent.rows, 1)
            bounds = [*_bounds(extent, max(chunk_bytes // row_bytes, 1), max(reading.BLOCK_BYTES // row_bytes, 1))]
            for begin, end in zip([0, *bounds], bounds, strict=False):
                piece = Piece(source, begin, end) if len(bounds) > 1 else Piece(source)
                found.append(_chunk([piece], [end - begin], first + begin, (end - begin) * row_bytes))
            first += extent.rows
            continue
        if held + extent.nbytes > chunk_bytes or len(together) >= MOST_FILES:
            close()
        together.append((Piece(source), extent))
        held += extent.nbytes
    close()
    return found


def _measured(source: Source, by_row: Sequence[str], rows: int | None) -> Extent:
    try:
        with ExitStack() as stack:
            columns = source.open(stack)
            found = rows_in(columns, by_row)
            nbytes = sum(column.nbytes for column in columns.values())
            seeks = all(column.seeks for column in columns.values())
            try:
                splits = seeks and rows_of_block(columns, by_row, 0) is not None
            except Problem:  # of different lengths: its evaluation is refused
                splits = False
            ends = next((column.ends for column in columns.values() if column.ends), ())
    except Problem as problem:
        return Extent(problem=problem)
    return Extent(rows if found is None else found, nbytes, source.reads_rows and found is not None, splits, ends)


def _bounds(extent: Extent, step: int, block: int) -> Iterator[int]:
    """Yield the numbers of rows after which a source is split; the last is that of all its rows.

    Args:
        extent: How much the source holds.
        step: The least rows of a piece.
        block: The rows of a block. A piece is whole blocks, so that it has the blocks of the whole source.
    """
    rows, last = extent.rows or 0, 0
    step = -(-step // block) * block
    for end in extent.ends or range(step, rows, step):
        if end - last >= step and end < rows:
            yield (last := end)
    yield rows


def _chunk(pieces: Sequence[Piece], rows: Sequence[int | None], first: int, nbytes: int) -> Chunk:
    held = [[piece.source.version, piece.begin, piece.end] for piece in pieces]
    digest = hashlib.sha256(json.dumps([first, rows, held]).encode()).hexdigest()[:32]
    return Chunk(digest, tuple(pieces), tuple(rows), first, nbytes)
