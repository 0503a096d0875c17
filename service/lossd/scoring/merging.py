"""Merge the states of chunks into one run: each chunk once, in whatever order they come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lossd.files.sources import Source
from lossd.runs.state import Measured, RunState
from lossd.scoring.chunks import Chunk, Extent
from lossd.scoring.counting import progress_text
from lossd_client.errors import InvalidRequest, Problem

if TYPE_CHECKING:
    from lossd import Run
    from lossd.scoring.work import ChunkResult, Part

__all__ = ["Merging"]


@dataclass(slots=True)
class _Total:
    """What can be counted together, and the names of its files."""

    state: RunState
    files: list[str] = field(default_factory=list)


class Merging:
    """The files counted so far, by the outcomes of chunks.

    A file of several chunks is counted when all of them are there. Files that cannot be counted with the file of the
    lowest position are bad files, as if all had been counted in their order.

    Args:
        sources: The sources, in the order of their positions.
        extents: How much each holds; one that cannot be read is a bad file.
        chunks: The chunks of the others.
        definition: The state of the run without rows, as bytes.
    """

    def __init__(
        self, sources: Sequence[Source], extents: Sequence[Extent], chunks: Sequence[Chunk], definition: bytes
    ) -> None:
        self.total = len(sources)
        self.nbytes = sum(s.nbytes for s, extent in zip(sources, extents, strict=True) if extent.problem is not None)
        self.counted_rows = 0
        self._order = {source.name: number for number, source in enumerate(sources)}
        self._bad = {
            source.name: extent.problem
            for source, extent in zip(sources, extents, strict=True)
            if extent.problem is not None
        }
        self._waiting = {chunk.id: chunk for chunk in chunks}
        self._left = Counter(chunk.pieces[0].source.name for chunk in chunks if chunk.pieces[0].end is not None)
        self._bad_from: dict[str, int] = {}
        self._definition = definition
        self._totals: list[_Total] = []
        self._of_file: dict[str, _Total] = {}
        self._started = time.monotonic()

    @property
    def files(self) -> int:
        """How many files are counted."""
        return len(self._winner.files) if self._totals else 0

    @property
    def seconds(self) -> float:
        """Seconds since this began."""
        return time.monotonic() - self._started

    @property
    def bad(self) -> list[tuple[str, Problem]]:
        """The name and the problem of each bad file, in the order of the files."""
        found = dict(self._bad)
        for total in self._totals:
            if total is not self._winner:
                found |= dict.fromkeys(total.files, _difference(self._winner.state, total.state))
        return sorted(found.items(), key=lambda item: self._order[item[0]])

    @property
    def text(self) -> str:
        """The number of files and rows counted so far, as text."""
        return progress_text(self.files, self.total, self.counted_rows, self.nbytes, self.seconds)

    @property
    def run(self) -> Run:
        """The run of all files that are counted."""
        from lossd import Run

        return Run.from_state(self._winner.state.encode())

    def expects(self, chunk: str) -> bool:
        """Return whether the outcome of a chunk has not been added."""
        return chunk in self._waiting

    def add(self, outcome: ChunkResult) -> None:
        """Count the outcome of a chunk, unless it was counted before."""
        chunk = self._waiting.pop(outcome.chunk, None)
        if chunk is None:
            return
        self.nbytes += outcome.nbytes
        if chunk.pieces[0].end is None:
            self._bad |= dict(outcome.bad)
            for part in outcome.parts:
                self._merge(RunState.decode(part.state), part.files)
            return
        name, begin = chunk.pieces[0].source.name, chunk.pieces[0].begin
        if outcome.bad and begin <= self._bad_from.get(name, begin):  # the problem of the first bad rows is told
            self._bad[name], self._bad_from[name] = outcome.bad[0][1], begin
        self._add_piece(name, outcome.parts)

    def _add_piece(self, name: str, parts: Sequence[Part]) -> None:
        """Add a piece of a file, and count the file if that was its last one."""
        of_file = self._of_file.setdefault(name, _Total(RunState.decode(self._definition)))
        for part in parts:
            if name not in self._bad:
                try:
                    of_file.state.merge(RunState.decode(part.state))
                except InvalidRequest as problem:
                    self._bad[name] = problem
        self._left[name] -= 1
        if not self._left[name]:
            del self._of_file[name]
            if name not in self._bad:
                self._merge(of_file.state, [name])

    def _merge(self, state: RunState, files: Sequence[str]) -> None:
        """Add the state of files to the state that it fits."""
        self.counted_rows += state.rows
        for total in self._totals:
            try:
                total.state.merge(state)
            except InvalidRequest:
                continue
            break
        else:
            total = _Total(state)
            self._totals.append(total)
        total.files += files

    @property
    def _winner(self) -> _Total:
        """The total that holds the file of the lowest position."""
        return min(self._totals, key=lambda total: min(self._order[name] for name in total.files))


def _difference(winner: RunState, other: RunState) -> Problem:
    """Return the problem of a state that cannot be counted with another."""
    try:
        winner.check(Measured(other.facts, other.totals, other.by_slot, other.fingerprint, other.grouping))
    except InvalidRequest as problem:
        return problem
    raise AssertionError("states that fit were not merged")
