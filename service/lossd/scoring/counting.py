"""Count the blocks of files in a run of this process; a file counts as a whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lossd.scoring.blocks import Block
from lossd_client.errors import Problem

if TYPE_CHECKING:
    from lossd import Run

__all__ = ["SLICE", "FileCounting", "progress_text", "slices_of_batch"]

SLICE = "slice."


def slices_of_batch(of_all: Mapping[str, str], arrays: Container[str]) -> dict[str, str]:
    """Return the values of slices that hold for a whole batch: those of all files whose codes are not among arrays."""
    return {name: value for name, value in of_all.items() if f"{SLICE}{name}" not in arrays}


def progress_text(files: int, total: int, rows: int, nbytes: int, seconds: float) -> str:
    """Return how far a score is, for a person: the counted files of all, their rows, and the bytes read a second."""
    return f"{files}/{total} files  {rows:,} rows  {nbytes / 1e6 / max(seconds, 1e-9):>6.1f} MB/s"


@dataclass(slots=True)
class FileCounting:
    """The files counted so far.

    Attributes:
        start: Returns an empty run.
        total: How many files there are.
        rows: The rows that the headers of each source tell, by its name.
        slices: The values of slices that the rows of all files have.
        position: The position of the next row.
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
    slices: Mapping[str, str] = field(default_factory=dict)
    position: int = 0
    run: Run = field(init=False)
    files: int = 0
    counted_rows: int = 0
    bad: list[tuple[str, Problem]] = field(default_factory=list)
    nbytes: int = 0
    started: float = 0.0
    _part: Run | None = None
    _part_rows: int = 0

    def __post_init__(self) -> None:
        self.run = self.start()
        self.started = time.monotonic()

    @property
    def text(self) -> str:
        """The number of files and rows counted so far, as text."""
        return progress_text(self.files, self.total, self.counted_rows, self.nbytes, self.seconds)

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
            first = self.position + self._part_rows
            slices = slices_of_batch(self.slices, block.arrays)
            self._part_rows += run.add(inputs=block.arrays, first=first, slices=slices)
            if block.last and self._part is not None:
                self.run.merge(self._part)
        except Problem as problem:
            self.bad.append((name, problem))
            self.position += self.rows.get(name) or block.rows or 0
            return
        if block.last:
            self.files += 1
            self.counted_rows += self._part_rows
            self.position += self._part_rows
