"""Results of many evaluations, a row each: JSON lines, CSV or a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lossd_client.wire import json

if TYPE_CHECKING:
    from lossd.cli.batch import FileOutcome
    from lossd_client import RunResult

__all__ = ["ResultsFile", "document", "figures", "results_file", "run_document", "text"]


def document(outcome: FileOutcome) -> dict[str, Any]:
    """Return an outcome as a JSON object, with its result or its error."""
    fields: dict[str, Any] = {
        "file": outcome.source.name,
        "bytes": outcome.nbytes,
        "seconds": round(outcome.seconds, 6),
    }
    if outcome.problem is not None:
        return {**fields, "error": {"title": outcome.problem.title, "detail": outcome.problem.detail}}
    import lossd.cli.report as report

    assert outcome.evaluation is not None
    return {**fields, **report.document(outcome.evaluation)}


def run_document(result: RunResult) -> dict[str, Any]:
    """Return the result of a run as a JSON object."""
    return {
        "run": result.run,
        "status": "open" if result.provisional else "sealed",
        **({} if result.loss is None else {"loss": result.loss}),
        "metrics": result.metrics,
        "counted": result.counted,
        "missing": result.missing,
        "level": result.level,
        "intervals": result.intervals,
        "bounds": result.bounds,
        "slices": result.slices,
        "worst": result.worst,
        "gap": result.gap,
        "targets": result.targets,
        "digest": result.digest,
        "signature": result.signature,
        "warnings": result.warnings,
    }


def text(document: Mapping[str, Any]) -> str:
    """Return a JSON object on one line."""
    return json.dumps(json.finite(dict(document))).decode()


def figures(loss: Any, metrics: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield the numbers of an answer that fit into a cell: the loss, and metrics with fields such as ``f1.macro``."""
    if isinstance(loss, int | float):
        yield "loss", loss
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            numbers = {field: entry for field, entry in value.items() if isinstance(entry, int | float | None)}
            yield from ((f"{name}.{field}", entry) for field, entry in numbers.items())
        elif isinstance(value, int | float | None) and name != "task":
            yield name, value


class ResultsFile:
    """A file that gets a row for each outcome at once, so that no result is lost if the command ends early."""

    def __init__(self, path: Path) -> None:
        self._as_csv = path.suffix == ".csv"
        self._file = path.open("w", newline="" if self._as_csv else None)
        self._table: Any = None
        self._early: list[FileOutcome] = []

    def add(self, outcome: FileOutcome) -> None:
        """Write an outcome's row.

        The first answer determines the columns of a CSV file, so earlier failures wait for it.
        """
        if not self._as_csv:
            self._file.write(text(document(outcome)) + "\n")
        else:
            if self._table is None and outcome.evaluation is not None:
                self._begin([name for name, _ in figures(outcome.evaluation.loss, outcome.evaluation.metrics)])
            if self._table is None:
                self._early.append(outcome)
            else:
                self._table.writerow(_row(outcome))
        self._file.flush()

    def close(self) -> None:
        """Write the remaining rows, and close the file."""
        if self._as_csv and self._table is None:
            self._begin([])
        self._file.close()

    def _begin(self, names: Iterable[str]) -> None:
        columns = ["file", "bytes", "seconds", *names, "numerator", "denominator", "error"]
        self._table = csv.DictWriter(self._file, dict.fromkeys(columns), extrasaction="ignore")
        self._table.writeheader()
        self._table.writerows(map(_row, self._early))


def _row(outcome: FileOutcome) -> dict[str, Any]:
    fields = {"file": outcome.source.name, "bytes": outcome.nbytes, "seconds": round(outcome.seconds, 6)}
    if outcome.problem is not None:
        return {**fields, "error": str(outcome.problem)}
    evaluation = outcome.evaluation
    assert evaluation is not None
    return {
        **fields,
        **dict(figures(evaluation.loss, evaluation.metrics)),
        **(evaluation.reduction._asdict() if evaluation.reduction else {}),
    }


@contextmanager
def results_file(path: Path | None) -> Iterator[ResultsFile | None]:
    """Open the results file, .csv or .jsonl; yield None without a path."""
    if path is None:
        yield None
        return
    if path.suffix not in (".csv", ".jsonl"):
        raise click.BadParameter(f"{path} must end in .csv or .jsonl", param_hint="--output")
    file = ResultsFile(path)
    try:
        yield file
    finally:
        file.close()
