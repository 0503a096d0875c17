"""``lossd evaluate --batch``: progress while it runs, a row for each outcome, a table at the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.text import Text

import lossd.cli.fitting as fitting
import lossd.cli.report as report
import lossd.files.sources as files
from lossd.cli.batch import EvaluateFile, FileOutcome, FileTotals, outcomes
from lossd.cli.progress import progress, uninterrupted
from lossd.cli.results import document, figures, results_file, text
from lossd.cli.wording import counted, in_commands, say
from lossd_client.errors import Problem

__all__ = ["evaluate_all"]

DONE, FAILED, INTERRUPTED = 0, 1, 130


def evaluate_all(
    directory: Path,
    inputs: Sequence[str],
    evaluate: EvaluateFile,
    *,
    in_flight: int,
    output: Path | None,
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
        as_json: Whether to print JSON lines instead of a table.
        title: The loss and its parameters, for the report.

    Returns:
        The exit status.
    """
    places = [*directory.iterdir()]
    found = files.sources(places, inputs)
    others = files.unused_files(places, found)
    other_names = files.names_of(others)
    if not found:
        only = f", only {other_names}" if others else ""
        raise click.UsageError(
            f"{files.printable_path(directory)} holds no .safetensors, .npz, .npy, .csv or .png file of inputs{only}"
        )
    if others:
        say(f"left out, as their kind or name is not that of an input: {other_names}")
    tally, rows, interrupted = FileTotals(), _Rows(as_json=as_json), False
    show_progress = not (as_json and sys.stdout.isatty())  # JSON lines on a terminal already show progress
    try:
        with results_file(output) as results, progress(len(found), shown=show_progress) as advance:
            for outcome in outcomes(found, evaluate, in_flight=in_flight):
                with uninterrupted():  # every counted outcome is also written
                    tally.add(outcome)
                    rows.add(outcome)
                    if results is not None:
                        results.add(outcome)
                mean = "" if tally.mean_loss is None else f"  mean loss {tally.mean_loss:.6g}"
                line = f"{tally.files}/{len(found)} files  {tally.mb_per_s:>6.1f} MB/s{mean}"
                advance(1, line, f"{tally.failed} failed" * bool(tally.failed))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        rows.finish(tally, len(found), title)
    return INTERRUPTED if interrupted else FAILED if tally.failed else DONE


class _Rows:
    """The rows of the final table; with ``as_json`` each outcome is printed at once as a line of JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._rows: list[tuple[str, Mapping[str, float | None] | str]] = []

    def add(self, outcome: FileOutcome) -> None:
        """Add an outcome."""
        if self._as_json:
            click.echo(text(document(outcome)))
        evaluation = outcome.evaluation
        if evaluation is None:
            self._rows.append((outcome.source.name, _reason(outcome.problem)))
            return
        self._rows.append((outcome.source.name, dict(figures(evaluation.loss, evaluation.metrics))))

    def finish(self, tally: FileTotals, total: int, title: str) -> None:
        """Print the table, or the last line of JSON."""
        if self._as_json:
            click.echo(text(tally.document(total)))
            return
        console = fitting.console()
        console.print(title, style="bold", markup=False, highlight=False)
        console.print(report.outcomes(self._rows))
        for index, failure in enumerate(report.failures(self._rows)):
            console.print(failure if index else Text.assemble("\n", failure), soft_wrap=not console.is_terminal)
        mean = "" if tally.mean_loss is None else f", mean loss {tally.mean_loss:.6g}"
        files_done = counted(tally.files, total if tally.files < total else None, "file")
        failed = f", {tally.failed} failed" if tally.failed else ""
        console.print(
            f"\n{files_done}{failed}{mean}; {tally.nbytes / 1e6:.1f} MB in {tally.seconds:.2f} s",
            highlight=False,
        )


def _reason(problem: Problem | None) -> str:
    return "" if problem is None else f"{problem.title}: {in_commands(problem.detail)}"
