"""Read a directory's files ahead in a thread, and count their rows in a run; a file counts as a whole or not at all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from lossd.cli.column import Array, Column
from lossd.cli.files import Source
from lossd_client.errors import Problem, ShapeMismatch

if TYPE_CHECKING:
    from lossd import Run

__all__ = ["BLOCK_BYTES", "Block", "Counting", "blocks", "read_ahead", "rows_in", "rows_of", "rows_of_block"]

BLOCK_BYTES = 8 << 20
BLOCKS_AHEAD = 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a source.

    Attributes:
        source: The source.
        arrays: The inputs by name; empty if the source could not be read.
        first: Whether they are the source's first rows.
        last: Whether they are its last.
        problem: Why it could not be read, or None.
    """

    source: Source
    arrays: dict[str, Array] = field(default_factory=dict)
    first: bool = True
    last: bool = True
    problem: Problem | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of its files that are read with it; all of a small source's, or of one that cannot be read."""
        return self.source.nbytes if self.first and self.last else sum(array.nbytes for array in self.arrays.values())


def rows_of(source: Source, inputs: Sequence[str]) -> int | None:
    """Return how many rows a source has by its headers; None if only its content tells, or nothing does.

    Args:
        source: The source.
        inputs: The names of inputs that have a row for each sample.

    Raises:
        Problem: A file cannot be read.
    """
    if not source.reads_rows:
        return None
    with ExitStack() as stack:
        return rows_in(source.open(stack), inputs)


def rows_in(columns: Mapping[str, Column], inputs: Sequence[str]) -> int | None:
    """Return how many rows the arrays of a source have; None if none of them has a row for each sample."""
    return next((columns[name].shape[0] for name in inputs if name in columns and columns[name].shape), None)


def blocks(sources: Sequence[Source], inputs: Sequence[str], *, block_bytes: int) -> Iterator[Block]:
    """Yield the rows of all sources in their order, at most so many bytes at a time.

    Args:
        sources: The sources.
        inputs: The names of all inputs, each with a row for each sample; empty if a source cannot be split.
        block_bytes: The bytes of a block, unless a row has more.
    """
    for source in sources:
        try:
            with ExitStack() as stack:
                columns = source.open(stack)
                step = rows_of_block(columns, inputs, block_bytes)
                if step is None:
                    yield Block(source, {name: column.whole() for name, column in columns.items()})
                else:
                    yield from _split(source, columns, step)
        except Problem as problem:
            yield Block(source, problem=problem)


def rows_of_block(columns: Mapping[str, Column], inputs: Sequence[str], block_bytes: int) -> int | None:
    """Return how many rows of a source are read at a time; None if it is read whole.

    Args:
        columns: The source's arrays.
        inputs: As for :func:`blocks`.
        block_bytes: As for :func:`blocks`.

    Raises:
        ShapeMismatch: The arrays differ in their number of rows.
    """
    nbytes = sum(column.nbytes for column in columns.values())
    if nbytes <= block_bytes or not columns.keys() <= set(inputs):
        return None
    lengths = {name: column.shape[0] if column.shape else 0 for name, column in columns.items()}
    rows = max(lengths.values())
    if set(lengths.values()) != {rows}:
        each = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ShapeMismatch(f"the inputs differ in their number of rows: {each}")
    return max(block_bytes // max(nbytes // rows, 1), 1)


def _split(source: Source, columns: Mapping[str, Column], step: int) -> Iterator[Block]:
    rows = next(column.shape[0] for column in columns.values())
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        arrays = {name: column.take(end - begin) for name, column in columns.items()}
        yield Block(source, arrays, first=begin == 0, last=end == rows)


def read_ahead(items: Iterator[T], count: int = BLOCKS_AHEAD) -> Iterator[T]:
    """Yield the items, of which a thread makes up to ``count`` ahead."""
    pool = ThreadPoolExecutor(1)
    try:
        waiting: deque[Future[T | None]] = deque(pool.submit(next, items, None) for _ in range(count))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(slots=True)
class Counting:
    """The files counted so far.

    Attributes:
        start: Returns an empty run.
        total: How many files there are.
        rows: The rows that the headers of each source tell, by its name.
        run: The run.
        files: How many files were counted.
        counted_rows: How many rows they have.
        bad: The name and the problem of each file that was not.
        nbytes: The bytes of the files that were read.
        started: When the first file was started, on the monotonic clock.
    """

    start: Callable[[], Run]
    total: int
    rows: dict[str, int | None]
    run: Run = field(init=False)
    files: int = 0
    counted_rows: int = 0
    bad: list[tuple[str, Problem]] = field(default_factory=list)
    nbytes: int = 0
    started: float = 0.0
    _position: int = 0
    _part: Run | None = None
    _part_rows: int = 0

    def __post_init__(self) -> None:
        self.run = self.start()
        self.started = time.monotonic()

    @property
    def text(self) -> str:
        """What is counted so far, for a person."""
        rate = self.nbytes / 1e6 / max(self.seconds, 1e-9)
        return f"{self.files}/{self.total} files  {self.counted_rows:,} rows  {rate:>6.1f} MB/s"

    @property
    def seconds(self) -> float:
        """Seconds since the first file was started."""
        return time.monotonic() - self.started

    def add(self, block: Block) -> None:
        """Count a block.

        The blocks of a file are counted in a run of their own, which joins the run with the last block. So a file
        with a bad row leaves no rows behind.
        """
        self.nbytes += block.nbytes
        name = block.source.name
        if self.bad and self.bad[-1][0] == name:  # an earlier block of the file was refused
            return
        if block.first:
            self._part, self._part_rows = None, 0
        try:
            if block.problem is not None:
                raise block.problem
            run = self.run
            if not (block.first and block.last):
                run = self._part = self._part or self.start()
            first = self._position + self._part_rows
            self._part_rows += run.add(inputs=block.arrays, first=first)
            if block.last and self._part is not None:
                self.run.merge(self._part)
        except Problem as problem:
            self.bad.append((name, problem))
            self._position += self.rows.get(name) or 0
            return
        if block.last:
            self.files += 1
            self.counted_rows += self._part_rows
            self._position += self._part_rows
