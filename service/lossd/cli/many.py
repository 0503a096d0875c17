"""``lossd evaluate --batch``: progress while it runs, a row for each outcome, a table at the end."""

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
from lossd.cli.batch import Evaluate, FileOutcome, Tally, outcomes
from lossd.cli.plot import write
from lossd.cli.results import document, figures, results_file, text
from lossd_client.errors import Problem

__all__ = ["evaluate_all"]

DONE, FAILED, INTERRUPTED = 0, 1, 130
REDRAWN_PER_S = 5
MAX_NAMES = 5


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
    """Evaluate all files of a directory, and report the outcomes.

    Args:
        directory: The directory.
        inputs: The names of the loss's inputs.
        evaluate: Evaluates the inputs of one file, by name.
        in_flight: How many files are evaluated at a time.
        output: The file that gets a row for each outcome.
        plot: The file for a picture of the summed confusion matrices.
        as_json: Whether to print JSON lines instead of a table.
        title: The loss and its parameters, for the report.

    Returns:
        The exit status.
    """
    found = files.sources(directory, inputs)
    others = files.others(directory, found)
    other_names = f"{', '.join(others[:MAX_NAMES])}{', ...' if len(others) > MAX_NAMES else ''}"
    if not found:
        only = f", only {other_names}" if others else ""
        raise click.UsageError(
            f"{files.printable(directory)} holds no .safetensors, .npz, .npy or .csv file of inputs{only}"
        )
    if others:
        click.echo(f"left out, as no .safetensors, .npz or .npy, nor .csv of an input: {other_names}", err=True)
    tally, rows, interrupted = Tally(), _Rows(as_json=as_json), False
    show_progress = not (as_json and sys.stdout.isatty())  # JSON lines on a terminal already show progress
    try:
        with results_file(output) as results, _progress(len(found), tally, shown=show_progress) as advance:
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
        raise click.UsageError("only confusion matrices of many files can be drawn, and no file has one")
    return INTERRUPTED if interrupted else FAILED if tally.failed else DONE


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Defer Ctrl-C until the block ends, so that every counted outcome is also written."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signals: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: signals.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if signals:
        raise KeyboardInterrupt


class _Rows:
    """The rows of the final table; with ``as_json`` each outcome is printed at once as a line of JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._rows: list[tuple[str, Mapping[str, float | None] | str]] = []
        self.confusion: np.ndarray[Any, Any] | None = None

    def add(self, outcome: FileOutcome) -> None:
        """Add an outcome."""
        if self._as_json:
            click.echo(text(document(outcome)))
        evaluation = outcome.evaluation
        if evaluation is None:
            self._rows.append((outcome.source.name, _reason(outcome.problem)))
            return
        self._rows.append((outcome.source.name, dict(figures(evaluation))))
        matrix = np.asarray(evaluation.metrics.get("confusion_matrix"))
        if matrix.ndim == 2:  # not a count of classes, nor a matrix for each label
            self._add_matrix(matrix)

    def _add_matrix(self, matrix: np.ndarray[Any, Any]) -> None:
        """Add a confusion matrix; matrices of fewer classes have the first ones."""
        if self.confusion is not None and len(self.confusion) != len(matrix):
            size = max(len(self.confusion), len(matrix))
            self.confusion, matrix = (np.pad(m, (0, size - len(m))) for m in (self.confusion, matrix))
        self.confusion = matrix if self.confusion is None else self.confusion + matrix

    def finish(self, tally: Tally, total: int, title: str) -> None:
        """Print the table, or the last line of JSON."""
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


def _reason(problem: Problem | None) -> str:
    return "" if problem is None else f"{problem.title}: {problem.detail}"


@contextmanager
def _progress(total: int, tally: Tally, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error if it is a terminal: files, rate, mean loss so far, time left."""
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
