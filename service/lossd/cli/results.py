"""Results of many evaluations, a row each: as JSON lines, as CSV, as a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lossd_client.wire import json

if TYPE_CHECKING:
    from lossd.cli.batch import Outcome
    from lossd_client import Evaluation

__all__ = ["ResultsFile", "document", "figures", "results_file", "text"]

AVERAGES = ("macro", "micro", "weighted")


def document(outcome: Outcome) -> dict[str, Any]:
    """An outcome as an object: what was answered, or what was wrong."""
    known: dict[str, Any] = {"file": outcome.source.name, "bytes": outcome.nbytes, "seconds": round(outcome.seconds, 6)}
    if outcome.problem is not None:
        return {**known, "error": {"title": outcome.problem.title, "detail": outcome.problem.detail}}
    import lossd.cli.report as report

    assert outcome.evaluation is not None
    return {**known, **report.document(outcome.evaluation)}


def text(of: Mapping[str, Any]) -> str:
    """An object on one line."""
    return json.dumps(json.finite(dict(of))).decode()


def figures(evaluation: Evaluation) -> Iterator[tuple[str, float | None]]:
    """The numbers of an answer that fit into a cell: the loss, and metrics with their averages, ``f1.macro``."""
    if isinstance(evaluation.loss, int | float):
        yield "loss", evaluation.loss
    for name, value in evaluation.metrics.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{average}", value[average]) for average in AVERAGES if average in value)
        elif isinstance(value, int | float | None) and name != "task":
            yield name, value


class ResultsFile:
    """A file that grows by a row for each outcome, so that what is done is there whatever happens."""

    def __init__(self, path: Path) -> None:
        self._as_csv = path.suffix == ".csv"
        self._file = path.open("w", newline="" if self._as_csv else None)
        self._table: Any = None
        self._early: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """One more; failures before the first answer wait for it, since it says which columns there are."""
        if not self._as_csv:
            self._file.write(text(document(outcome)) + "\n")
        else:
            if self._table is None and outcome.evaluation is not None:
                self._begin([name for name, _ in figures(outcome.evaluation)])
            if self._table is None:
                self._early.append(outcome)
            else:
                self._table.writerow(_row(outcome))
        self._file.flush()

    def close(self) -> None:
        """The last is there."""
        if self._as_csv and self._table is None:
            self._begin([])
        self._file.close()

    def _begin(self, names: Iterable[str]) -> None:
        columns = ["file", "bytes", "seconds", *names, "numerator", "denominator", "error"]
        self._table = csv.DictWriter(self._file, dict.fromkeys(columns), extrasaction="ignore")
        self._table.writeheader()
        self._table.writerows(map(_row, self._early))


def _row(outcome: Outcome) -> dict[str, Any]:
    known = {"file": outcome.source.name, "bytes": outcome.nbytes, "seconds": round(outcome.seconds, 6)}
    if outcome.problem is not None:
        return {**known, "error": str(outcome.problem)}
    evaluation = outcome.evaluation
    assert evaluation is not None
    return {**known, **dict(figures(evaluation)), **(evaluation.reduction._asdict() if evaluation.reduction else {})}


@contextmanager
def results_file(path: Path | None) -> Iterator[ResultsFile | None]:
    """The file of that name, .csv or .jsonl; none where there is no name."""
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
