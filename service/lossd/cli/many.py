"""``lossd evaluate --batch``: progress while it runs, rows as they come, a table at the end."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.text import Text

import lossd.cli.files as files
import lossd.cli.report as report
from lossd.cli.batch import Evaluate, Outcome, Tally, outcomes
from lossd.cli.plot import write
from lossd.cli.results import document, figures, results_file, text
from lossd_client.errors import Problem

__all__ = ["evaluate_all"]

DONE, FAILED, INTERRUPTED = 0, 1, 130
REDRAWN_PER_S = 5
NAMED_MOST = 5


def evaluate_all(
    directory: Path,
    inputs: Sequence[str],
    evaluate: Evaluate,
    *,
    in_flight: int,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
    title: str,
) -> int:
    """Evaluate all that is in a directory, and report it.

    Args:
        directory: Where the files are.
        inputs: What the loss calls its inputs.
        evaluate: How the inputs of one file, by name, are evaluated.
        in_flight: How many files at a time.
        output: The file that gets a row for each.
        plot: Where to draw the sum of their confusion matrices.
        as_json: Whether to print JSON lines instead of a table.
        title: What was asked.

    Returns:
        The exit status.
    """
    found = files.sources(directory, inputs)
    others = files.others(directory)
    beside = f"{', '.join(others[:NAMED_MOST])}{', ...' if len(others) > NAMED_MOST else ''}"
    if not found:
        there = f", only {beside}" if others else ""
        raise click.UsageError(f"{files.called(directory)} holds no .safetensors, .npz or .npy file{there}")
    if others:
        click.echo(f"left out, as neither .safetensors nor .npz nor .npy: {beside}", err=True)
    tally, rows, interrupted = Tally(), _Rows(as_json=as_json), False
    watched = not (as_json and sys.stdout.isatty())  # the lines show how far it is
    try:
        with results_file(output) as results, _progress(len(found), tally, shown=watched) as advance:
            for outcome in outcomes(found, evaluate, in_flight=in_flight):
                with _uninterrupted():
                    tally.add(outcome)
                    rows.add(outcome)
                    if results is not None:
                        results.add(outcome)
                advance()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        rows.finish(tally, len(found), title)
    if plot is not None and rows.confusion is not None:
        write(plot, "confusion", {"confusion_matrix": rows.confusion.tolist()})
    elif plot is not None and not interrupted:
        raise click.UsageError("of many files only confusion matrices can be drawn, and none has one")
    return INTERRUPTED if interrupted else FAILED if tally.failed else DONE


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends: an outcome that is counted is also written."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if held:
        raise KeyboardInterrupt


class _Rows:
    """What is kept of each outcome for the table, or printed at once as a line of JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._rows: list[tuple[str, Mapping[str, float | None] | str]] = []
        self.confusion: np.ndarray[Any, Any] | None = None

    def add(self, outcome: Outcome) -> None:
        """One more."""
        if self._as_json:
            click.echo(text(document(outcome)))
        evaluation = outcome.evaluation
        if evaluation is None:
            self._rows.append((outcome.source.name, _said(outcome.problem)))
            return
        self._rows.append((outcome.source.name, dict(figures(evaluation))))
        matrix = np.asarray(evaluation.metrics.get("confusion_matrix"))
        if matrix.ndim == 2:  # neither the counts of very many classes nor a matrix for each label
            self._add_matrix(matrix)

    def _add_matrix(self, matrix: np.ndarray[Any, Any]) -> None:
        """Files need not know the same number of classes: the first ones are the same."""
        if self.confusion is not None and len(self.confusion) != len(matrix):
            size = max(len(self.confusion), len(matrix))
            self.confusion, matrix = (np.pad(m, (0, size - len(m))) for m in (self.confusion, matrix))
        self.confusion = matrix if self.confusion is None else self.confusion + matrix

    def finish(self, tally: Tally, total: int, title: str) -> None:
        """All that will come is there."""
        if self._as_json:
            click.echo(text(tally.document(total)))
            return
        console = report.console()
        console.print(title, style="bold", markup=False, highlight=False)
        console.print(report.outcomes(self._rows))
        for index, failure in enumerate(report.failures(self._rows)):
            console.print(failure if index else Text.assemble("\n", failure), soft_wrap=True)
        mean = "" if tally.mean_loss is None else f", mean loss {tally.mean_loss:.6g}"
        short = f" of {total}" if tally.files < total else ""
        failed = f", {tally.failed} failed" if tally.failed else ""
        console.print(
            f"\n{tally.files}{short} files{failed}{mean}; {tally.nbytes / 1e6:.1f} MB in {tally.seconds:.2f} s",
            highlight=False,
        )


def _said(problem: Problem | None) -> str:
    return "" if problem is None else f"{problem.title}: {problem.detail}"


@contextmanager
def _progress(total: int, tally: Tally, *, shown: bool) -> Iterator[Callable[[], None]]:
    """A bar on standard error, where that is a terminal: files, speed, mean loss so far, time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files  {task.fields[rate]:>8.1f} MB/s  mean loss {task.fields[mean]}", markup=False),
        TextColumn("{task.fields[failed]}", style="red", markup=False),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=REDRAWN_PER_S,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not (shown and console.is_terminal),
    )
    with bar:
        task = bar.add_task("", total=total, rate=0.0, mean="–", failed="")

        def advance() -> None:
            mean = "–" if tally.mean_loss is None else f"{tally.mean_loss:.6g}"
            bar.update(
                task, advance=1, rate=tally.mb_per_s, mean=mean, failed=f"{tally.failed} failed" * bool(tally.failed)
            )

        yield advance
