"""What ``lossd score`` does alike with and without a run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lossd.cli.files import Source
    from lossd.request.plan import Plan
    from lossd_client.errors import Problem

__all__ = [
    "DONE",
    "INTERRUPTED",
    "REFUSED",
    "by_row",
    "drawn_metrics",
    "left_out",
    "plan_of",
    "refuse",
    "sources_in",
    "write_table",
]

DONE, REFUSED, INTERRUPTED = 0, 1, 130
MAX_NAMES = 5


def plan_of(task: str | None, loss: str | None, parameters: Mapping[str, Any], metrics: Mapping[str, Any]) -> Plan:
    """Return the checked request, so that a fault is told once, not for every file.

    Raises:
        Problem: The loss, a parameter or a metric is invalid.
    """
    from lossd.request.planning import make_plan

    if loss is None:
        return make_plan({"task": task, "metrics": metrics})
    of_task = {"task": task} if task is not None else {}
    request = {"loss": {"name": loss, **parameters}, "outputs": ["loss", "metrics"], "metrics": {**metrics, **of_task}}
    return make_plan(request)


def drawn_metrics(plot: Path | None, kind: str | None, plan: Plan) -> tuple[str, list[str]]:
    """Return the kind of picture, and the metrics that are computed for it alone."""
    if plot is None:
        return "", []
    from lossd.cli.plot import kind_for, metrics_of

    kind = kind_for(plan.task, kind, loss=None)
    return kind, [name for name in metrics_of(kind, plan.task) if name not in plan.metrics]


def sources_in(directory: Path, plan: Plan) -> list[Source]:
    """Return the sources in a directory, and name the files that are left out on standard error."""
    import lossd.cli.files as files

    found = files.sources(directory, [entry.name for entry in plan.inputs], tables=True)
    others = files.others(directory, found)
    names = files.listed(others)
    if not found:
        only = f", only {names}" if others else ""
        raise click.UsageError(
            f"{files.printable(directory)} holds no .safetensors, .npz, .npy, .csv or .parquet file{only}"
        )
    if others:
        click.echo(f"left out, as they hold no inputs: {names}", err=True)
    return found


def by_row(plan: Plan) -> list[str]:
    """Return the inputs that have a row for each sample."""
    return [entry.name for entry in plan.inputs if all(each.pattern[:1] == ("N",) for each in entry.types)]


def refuse(bad: Sequence[tuple[str, Problem]], total: int) -> int:
    """Say on standard error why there is no score; return the exit status."""
    for line in left_out(bad):
        click.echo(line, err=True)
    remedy = "; mend them, or leave them out with --skip-bad" if len(bad) < total else ""
    click.echo(f"no score: {len(bad)} of {total} files are bad{remedy}", err=True)
    return REFUSED


def left_out(bad: Sequence[tuple[str, Problem]]) -> list[str]:
    """Return a line for each of the first bad files, and how many more there are."""
    lines = [f"{name}: {problem.title}: {problem}" for name, problem in bad[:MAX_NAMES]]
    return [*lines, f"... and {len(bad) - MAX_NAMES} more"] if len(bad) > MAX_NAMES else lines


def write_table(path: Path, document: Mapping[str, Any]) -> None:
    """Write the score: JSON, or a row of the numbers that fit into a cell."""
    from lossd.cli.results import figures, text

    if path.suffix == ".json":
        path.write_text(text(document) + "\n")
        return
    row = {"files": document["files"]["counted"], "rows": document["counted"]["rows"], "targets": document["targets"]}
    row |= dict(figures(document.get("loss"), document["metrics"]))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, row)
        table.writeheader()
        table.writerow(row)
