"""Send the rows of files to a run; what the run has counted is not read again.

A file is a batch of its name, or several if it is large. The rows of all files have positions in the order of the
files' names. Headers tell how many rows a file has.
"""

from __future__ import annotations

import hashlib
import string
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from lossd.files.array_reader import Array
from lossd.files.sources import Source
from lossd.scoring.blocks import rows_in, rows_of_block
from lossd.scoring.counting import slices_of_batch
from lossd_client import Record, RemoteRun
from lossd_client.errors import (
    BatchConflict,
    DuplicateRows,
    MalformedBody,
    MissingInput,
    NotEvaluable,
    Problem,
    TooLarge,
)

__all__ = ["FileRows", "MeasuredFile", "Sending", "measure"]

CHARACTERS = frozenset(f"{string.ascii_letters}{string.digits}._-")
MOST_CHARACTERS = 150
DIGITS = 32
NO_SLICES: Mapping[str, str] = {}
_REFUSED = (BatchConflict, DuplicateRows, MalformedBody, NotEvaluable, TooLarge)
"""The problems of one file, whatever the others are."""


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows of a file that one request sends.

    Attributes:
        source: The file.
        name: The batch's name.
        first: The position of its first row.
        rows: How many rows it has.
        arrays: The inputs by name; empty before they are read.
        problem: Why the file cannot be read, or None.
    """

    source: Source
    name: str
    first: int
    rows: int
    arrays: Mapping[str, Array] = field(default_factory=dict)
    problem: Problem | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, slots=True)
class MeasuredFile:
    """A file whose headers were read.

    Attributes:
        source: The file.
        first: The position of its first row.
        rows: How many rows it has.
        step: How many rows a batch has; None if the file is one batch.
    """

    source: Source
    first: int
    rows: int
    step: int | None

    def batches(self) -> list[FileRows]:
        """Return its batches without reading them."""
        name = batch_name(self.source.name)
        if self.step is None:
            return [FileRows(self.source, name, self.first, self.rows)]
        return [
            FileRows(self.source, f"{name}~{number}", self.first + begin, min(self.step, self.rows - begin))
            for number, begin in enumerate(range(0, self.rows, self.step))
        ]


def batch_name(file_name: str) -> str:
    """Return the name of a file's batch: the file's name, with ~x and two digits for each byte that a name cannot have.

    A long name is cut, and a digest of the whole name is added.
    """
    escaped = "".join(c if c in CHARACTERS else "".join(f"~x{b:02X}" for b in c.encode()) for c in file_name)
    if len(escaped) <= MOST_CHARACTERS and escaped not in (".", ".."):
        return escaped
    return f"{escaped[:MOST_CHARACTERS]}~h{hashlib.sha256(file_name.encode()).hexdigest()[:DIGITS]}"


def measure(
    sources: Sequence[Source], by_row: Sequence[str], *, whole: bool, block_bytes: int
) -> tuple[list[MeasuredFile], list[tuple[str, Problem]]]:
    """Return the positions of the files' rows, and the name and problem of each file that cannot be read.

    Of .csv files, whose rows no header tells, the content is read.

    Args:
        sources: The files, in the order of their positions.
        by_row: The names of inputs that have a row for each sample.
        whole: Whether each file is one batch, because its rows belong together.
        block_bytes: The most bytes of a batch, unless a row has more.
    """
    found: list[MeasuredFile] = []
    bad: list[tuple[str, Problem]] = []
    first = 0
    for source in sources:
        try:
            with ExitStack() as stack:
                columns = source.open(stack)
                rows = rows_in(columns, by_row)
                if rows is None:
                    raise MissingInput(f"it holds none of the inputs {', '.join(by_row)}, so it has no rows")
                step = None if whole else rows_of_block(columns, by_row, block_bytes)
        except Problem as problem:
            bad.append((source.name, problem))
            continue
        found.append(MeasuredFile(source, first, rows, step))
        first += rows
    return found, bad


class Sending:
    """Files on their way to a run.

    Args:
        run: The run.
        files: The files.
        counted: The batches that the run has counted.
        slices: The values of slices that the rows of all files have.

    Attributes:
        before: How many files were counted before.
        files: How many files are counted whole.
        nbytes: The bytes of the arrays that were sent.
        advance: Shows progress: takes the bytes that were done, the text after the bar, and the text of errors.
    """

    def __init__(
        self,
        run: RemoteRun,
        files: Sequence[MeasuredFile],
        counted: Iterable[Record],
        slices: Mapping[str, str] = NO_SLICES,
    ) -> None:
        self._run = run
        self._slices = slices
        self._batches = {file.source.name: file.batches() for file in files}
        self._started = self._ended = time.monotonic()
        self._rows = 0
        self.recount(counted)
        self.before = self.files
        self._bad: dict[str, Problem] = {}
        self.nbytes = 0
        self.advance: Callable[[int, str, str], None] = lambda *_: None

    @property
    def bad(self) -> list[tuple[str, Problem]]:
        """The name and the problem of each file that was refused."""
        return list(self._bad.items())

    @property
    def nbytes_left(self) -> int:
        """The bytes of the files that are not counted whole."""
        return sum(batches[0].source.nbytes for name, batches in self._batches.items() if self._left[name])

    @property
    def total(self) -> int:
        """How many files there are."""
        return len(self._batches)

    @property
    def seconds(self) -> float:
        """Seconds from the start to the last answer."""
        return self._ended - self._started

    def recount(self, counted: Iterable[Record]) -> None:
        """Take the batches that the run has counted.

        Raises:
            BatchConflict: One of them was counted with other rows.
        """
        self._counted = {entry.batch: entry for entry in counted}
        self._left = {name: sum(not self._check(batch) for batch in batches) for name, batches in self._batches.items()}
        self.files = sum(not left for left in self._left.values())

    def document(self, *, interrupted: bool) -> dict[str, Any]:
        """Return what became of the files, as JSON values."""
        bad = [{"file": name, "title": problem.title, "detail": problem.detail} for name, problem in self.bad]
        return {
            "counted": self.files,
            "of": self.total,
            "before": self.before,
            "bad": bad,
            "bytes": self.nbytes,
            "seconds": round(self.seconds, 6),
            "interrupted": interrupted,
        }

    def to_send(self) -> Generator[FileRows, None, None]:
        """Yield the batches that the run has not counted, with their arrays or the problem of reading them."""
        for name, batches in self._batches.items():
            if self._left[name]:
                yield from self._read(batches)

    def send(self, batch: FileRows) -> Problem | None:
        """Send a batch; return the problem of its file, or None.

        Raises:
            LossdError: The problem is not the file's.
        """
        if batch.problem is not None:
            return batch.problem
        try:
            slices = slices_of_batch(self._slices, batch.arrays)
            self._run.add(inputs=batch.arrays, name=batch.name, first=batch.first, slices=slices)
        except _REFUSED as problem:
            return problem
        return None

    def received(self, batch: FileRows, problem: Problem | None) -> None:
        """Take what :meth:`send` returned."""
        name = batch.source.name
        self._ended = time.monotonic()
        self.nbytes += batch.nbytes
        if problem is None:
            self._rows += batch.rows
            self._left[name] -= 1
            self.files += not self._left[name]
        else:
            self._bad.setdefault(name, problem)
        single = len(self._batches[name]) == 1
        rate = self.nbytes / 1e6 / max(self.seconds, 1e-9)
        text = f"{self.files:,}/{self.total:,} files  {self._rows:,} rows  {rate:>6.1f} MB/s"
        self.advance(batch.source.nbytes if single else batch.nbytes, text, f"{len(self._bad)} bad" * bool(self._bad))

    def _read(self, batches: Sequence[FileRows]) -> Iterator[FileRows]:
        """Yield the batches of a file that are not counted, with their arrays."""
        first, *others = batches
        try:
            with ExitStack() as stack:
                columns = first.source.open(stack)
                for batch in batches:
                    arrays = {name: c.take(batch.rows) if others else c.whole() for name, c in columns.items()}
                    if batch.name not in self._counted:
                        yield _filled(batch, arrays)
        except Problem as problem:
            yield _filled(first, {}, problem)

    def _check(self, batch: FileRows) -> bool:
        """Return whether a batch is counted.

        Raises:
            BatchConflict: It was counted with other rows.
        """
        entry = self._counted.get(batch.name)
        if entry is None:
            return False
        rows, first = entry.counted.rows, entry.get("first")
        if rows != batch.rows or first not in (None, batch.first):
            raise BatchConflict(
                f"{batch.source.name} was counted with {rows} rows from {first}, and has {batch.rows} from "
                f"{batch.first} now: files were changed, added or removed; score the files as another run"
            )
        return True


def _filled(batch: FileRows, arrays: Mapping[str, Array], problem: Problem | None = None) -> FileRows:
    return FileRows(batch.source, batch.name, batch.first, batch.rows, arrays, problem)
