"""The rows of files in blocks of bounded size, read ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from lossd.files.array_reader import Array, ArrayReader
from lossd.files.sources import Source
from lossd_client.errors import Problem, ShapeMismatch

__all__ = ["BLOCK_BYTES", "Block", "Piece", "blocks", "read_ahead", "rows_in", "rows_of", "rows_of_block"]

BLOCK_BYTES = 8 << 20
BLOCKS_AHEAD = 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Piece:
    """A source, or some of its rows.

    Attributes:
        source: The source.
        begin: The first row.
        end: The row behind the last one; None for the whole source.
    """

    source: Source
    begin: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a source.

    Attributes:
        source: The source.
        arrays: The inputs by name; empty if the source could not be read.
        first: Whether they are the first rows of the piece.
        last: Whether they are its last.
        nbytes: Its share of the bytes of the source's files; all of a source that cannot be read.
        rows: How many rows the piece has; None if that is not known.
        problem: Why it could not be read, or None.
    """

    source: Source
    arrays: dict[str, Array] = field(default_factory=dict)
    first: bool = True
    last: bool = True
    nbytes: int = 0
    rows: int | None = None
    problem: Problem | None = None


def rows_of(source: Source, by_row: Sequence[str]) -> int | None:
    """Return how many rows a source has by its headers; None if the headers do not state it.

    Args:
        source: The source.
        by_row: The names of inputs that have a row for each sample.

    Raises:
        Problem: A file cannot be read.
    """
    if not source.reads_rows:
        return None
    with ExitStack() as stack:
        return rows_in(source.open(stack), by_row)


def rows_in(columns: Mapping[str, ArrayReader], by_row: Sequence[str]) -> int | None:
    """Return how many rows the arrays of a source have; None if none of them has a row for each sample."""
    return next((columns[name].shape[0] for name in by_row if name in columns and columns[name].shape), None)


def blocks(
    pieces: Sequence[Piece], by_row: Sequence[str], *, splits: bool, block_bytes: int
) -> Generator[Block, None, None]:
    """Yield the rows of all pieces in their order, at most so many bytes at a time.

    Args:
        pieces: The pieces.
        by_row: The names of inputs that have a row for each sample.
        splits: Whether a source of such inputs alone can be split.
        block_bytes: The bytes of a block, unless a row has more.
    """
    for piece in pieces:
        source = piece.source
        try:
            with ExitStack() as stack:
                columns = source.open(stack, piece.begin)
                rows = rows_in(columns, by_row)
                step = rows_of_block(columns, by_row, block_bytes) if splits else None
                if piece.end is not None:
                    yield from _split(piece, columns, piece.end, step or piece.end - piece.begin)
                elif step is None:
                    arrays = {name: column.whole() for name, column in columns.items()}
                    yield Block(source, arrays, nbytes=source.nbytes, rows=rows)
                else:
                    assert rows is not None
                    yield from _split(piece, columns, rows, step)
        except Problem as problem:
            yield Block(source, nbytes=source.nbytes if piece.end is None else 0, problem=problem)


def rows_of_block(columns: Mapping[str, ArrayReader], by_row: Sequence[str], block_bytes: int) -> int | None:
    """Return how many rows of a source are read at a time; None if it is read whole.

    Args:
        columns: The source's arrays.
        by_row: The names of inputs that have a row for each sample; a source of other inputs is read whole.
        block_bytes: As for :func:`blocks`.

    Raises:
        ShapeMismatch: The arrays differ in their number of rows.
    """
    nbytes = sum(column.nbytes for column in columns.values())
    if nbytes <= block_bytes or not columns.keys() <= set(by_row):
        return None
    lengths = {name: column.shape[0] if column.shape else 0 for name, column in columns.items()}
    rows = max(lengths.values())
    if set(lengths.values()) != {rows}:
        each = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ShapeMismatch(f"the inputs differ in their number of rows: {each}")
    return max(block_bytes // max(nbytes // rows, 1), 1)


def _split(piece: Piece, columns: Mapping[str, ArrayReader], stop: int, step: int) -> Iterator[Block]:
    total = max(next(column.shape[0] for column in columns.values()), 1)
    for begin in range(piece.begin, stop, step):
        end = min(begin + step, stop)
        arrays = {name: column.take(end - begin) for name, column in columns.items()}
        nbytes = piece.source.nbytes * end // total - piece.source.nbytes * begin // total
        first, last, rows = begin == piece.begin, end == stop, stop - piece.begin
        yield Block(piece.source, arrays, first=first, last=last, nbytes=nbytes, rows=rows)


@contextmanager
def read_ahead(items: Generator[T, None, None], count: int = BLOCKS_AHEAD) -> Iterator[Iterator[T]]:
    """Iterate over the items, of which a thread makes up to ``count`` ahead.

    On leaving, the thread has ended and the generator is closed, also after an error: no file stays open or is read.
    """
    with closing(items), ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[T | None]] = deque(pool.submit(next, items, None) for _ in range(count))

        def ahead() -> Iterator[T]:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, items, None))
                yield item

        try:
            yield ahead()
        finally:
            for future in waiting:
                future.cancel()
