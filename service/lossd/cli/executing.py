"""``lossd score --on`` and ``--resume``: chunks are evaluated elsewhere, and kept in a ledger."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lossd.cli.wording import counted, say

if TYPE_CHECKING:
    from lossd.files.sources import Source
    from lossd.scoring.chunks import Chunk, Extent
    from lossd.scoring.executors import Executor
    from lossd.scoring.ledger import Ledger
    from lossd.scoring.merging import Merging
    from lossd.scoring.work import Scorer

__all__ = ["On", "score_chunks"]

UNANSWERED = 3


class On(click.ParamType[tuple[str, str | None]]):
    """Where files are scored: processes[:N], ray[=ADDRESS] or dask=ADDRESS."""

    name = "on"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str | None]:
        """Return the kind of executor, and the number of processes or the address of the cluster."""
        text = str(value)
        kind, colon, count = text.partition(":")
        if kind == "processes":
            if colon and not (count.isdecimal() and int(count)):
                self.fail(f"{text!r} is not processes:N, with N processes", param, ctx)
            return kind, count or None
        kind, equals, address = text.partition("=")
        if kind not in ("ray", "dask") or (equals and not address):
            self.fail(f"{text!r} is not processes, processes:N, ray, ray=ADDRESS or dask=ADDRESS", param, ctx)
        if kind == "dask" and not address:
            self.fail("dask needs the address of the scheduler: dask=tcp://HOST:8786", param, ctx)
        return kind, address or None


def _executor(on: tuple[str, str | None] | None) -> Executor:
    """Return the executor of chunks; None for this process.

    Raises:
        Failed: A package is missing.
    """
    from lossd.scoring.executors import Here, Processes

    kind, of_kind = on or ("here", None)
    if kind == "processes":
        from lossd.configuration.machine import cores

        return Processes(int(of_kind) if of_kind else max(int(cores()), 1))
    if kind == "ray":
        from lossd.scoring.ray_tasks import RayTasks

        return RayTasks(of_kind)
    if kind == "dask":
        from lossd.scoring.dask_tasks import DaskTasks

        assert of_kind is not None
        return DaskTasks(of_kind)
    return Here()


def score_chunks(
    sources: Sequence[Source],
    extents: Sequence[Extent],
    definition: bytes,
    by_row: Sequence[str],
    *,
    splits: bool,
    slices: Mapping[str, str],
    on: tuple[str, str | None] | None,
    resume: Path | None,
    shown: bool,
) -> tuple[Merging, bool]:
    """Return the counted sources, and whether Ctrl-C ended the count.

    Args:
        sources: The sources, with absolute paths.
        extents: How much each holds.
        definition: The state of the run without rows, as bytes.
        by_row: The names of inputs that have a row for each sample.
        splits: Whether the rows of a source are independent.
        slices: The values of slices that the rows of all files have.
        on: Where chunks are evaluated; None for this process.
        resume: The ledger, or None.
        shown: Whether progress is shown.

    Raises:
        Exit: There is no executor, or a chunk cannot be evaluated.
        UsageError: The ledger cannot be used.
    """
    from lossd.scoring.chunks import chunks_of
    from lossd.scoring.executors import Failed
    from lossd.scoring.ledger import Ledger, Refused
    from lossd.scoring.merging import Merging
    from lossd.scoring.work import Scorer, versions

    chunks = chunks_of(sources, extents, splits=splits)
    merging = Merging(sources, extents, chunks, definition)
    scorer = Scorer(definition, tuple(by_row), splits, slices, versions())
    try:
        with Ledger(resume, definition, {"slice": slices, **versions()}) if resume else nullcontext() as ledger:
            whole = _count(chunks, merging, scorer, _executor(on), ledger, shown=shown)
    except Refused as error:
        raise click.UsageError(str(error)) from None
    except Failed as error:
        say(str(error))
        kept = f"they are in {resume}: the same command continues" if resume else "--resume LEDGER would keep them"
        say(f"no score: {counted(merging.files, merging.total, 'file')} counted; {kept}")
        raise click.exceptions.Exit(UNANSWERED) from None
    return merging, not whole


def _count(
    chunks: Sequence[Chunk], merging: Merging, scorer: Scorer, executor: Executor, ledger: Ledger | None, *, shown: bool
) -> bool:
    """Count chunks, with progress; return False if Ctrl-C ended it.

    Args:
        chunks: The chunks.
        merging: What is counted.
        scorer: Evaluates a chunk.
        executor: Where chunks are evaluated.
        ledger: What was finished before, and what is finished now; None for none.
        shown: Whether progress is shown.

    Raises:
        Failed: A chunk cannot be evaluated.
    """
    from lossd.cli.progress import progress, uninterrupted

    by_id = {chunk.id: chunk for chunk in chunks}
    total = sum(chunk.nbytes for chunk in chunks)
    try:
        # Ray prints to standard output what becomes of its nodes; that is the answer's alone.
        with redirect_stdout(sys.stderr), progress(total, shown=shown) as advance:
            for outcome in ledger.finished(by_id) if ledger is not None else ():
                merging.add(outcome)
                advance(by_id[outcome.chunk].nbytes, merging.text, "")
            if before := merging.files:
                say(f"{counted(before, merging.total, 'file')} counted before")
            missing = [chunk for chunk in chunks if merging.expects(chunk.id)]
            with closing(executor.map(scorer, missing)) as outcomes:
                for outcome in outcomes:
                    if not merging.expects(outcome.chunk):  # done twice, after a worker was taken for dead
                        continue
                    with uninterrupted():
                        if ledger is not None:
                            ledger.add(outcome)
                        merging.add(outcome)
                    advance(by_id[outcome.chunk].nbytes, merging.text, f"{len(merging.bad)} bad" * bool(merging.bad))
    except KeyboardInterrupt:
        return False
    return True
