"""What ``lossd score`` does alike with and without a run."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lossd.cli.wording import counted, in_commands, say

if TYPE_CHECKING:
    from lossd.files.sources import Source
    from lossd.request.plan import Plan
    from lossd_client.errors import Problem

__all__ = [
    "DONE",
    "INTERRUPTED",
    "REFUSED",
    "about_rows",
    "by_row",
    "check_slices",
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


def sources_in(paths: Sequence[str], plan: Plan, about_rows: Sequence[str]) -> list[Source]:
    """Return the sources that paths name, and name the files that are left out on standard error.

    Args:
        paths: Directories, files, patterns and URLs.
        plan: The plan of the request.
        about_rows: The names of the inputs that say something about rows beside what is evaluated.
    """
    import lossd.files.sources as files
    from lossd.files.places import Unlisted, listed

    try:
        places = [place for path in paths for place in listed(path)]
    except Unlisted as error:
        raise click.UsageError(str(error)) from None
    found = files.sources(places, [*(entry.name for entry in plan.inputs), *about_rows], tables=True)
    others = files.unused_files(places, found)
    names = files.names_of(others)
    if not found:
        only = f", only {names}" if others else ""
        named = files.names_of([files.printable_path(path) for path in paths])
        raise click.UsageError(f"{named}: no .safetensors, .npz, .npy, .csv, .png or .parquet file{only}")
    if others:
        say(f"left out, as they hold no inputs: {names}")
    return found


def about_rows(slices: Iterable[str]) -> list[str]:
    """Return the names of the inputs about rows: clusters, and the codes of slices."""
    from lossd.scoring.counting import SLICE

    return ["cluster_id", *(f"{SLICE}{name}" for name in slices)]


def check_slices(declared: Mapping[str, Sequence[str]], of_all: Mapping[str, str]) -> None:
    """Check the values of slices that all files have.

    Raises:
        UsageError: A slice or a value is not declared.
    """
    for name, value in of_all.items():
        if name not in declared:
            known = f"the slices are {', '.join(declared)}" if declared else f"declare it: --slices {name}={value},..."
            raise click.UsageError(f"--slice {name}={value}: there is no slice {name}; {known}")
        if value not in declared[name]:
            raise click.UsageError(f"--slice {name}={value}: the values of {name} are {', '.join(declared[name])}")


def by_row(plan: Plan) -> list[str]:
    """Return the inputs that have a row for each sample."""
    return [entry.name for entry in plan.inputs if all(each.pattern[:1] == ("N",) for each in entry.types)]


def refuse(bad: Sequence[tuple[str, Problem]], total: int) -> int:
    """Say on standard error why there is no score; return the exit status."""
    for line in left_out(bad):
        say(line)
    remedy = "; fix them, or leave them out with --skip-bad" if len(bad) < total else ""
    say(f"no score: {counted(len(bad), total, 'file')} cannot be scored{remedy}")
    return REFUSED


def left_out(bad: Sequence[tuple[str, Problem]]) -> list[str]:
    """Return a line for each of the first bad files, and how many more there are."""
    lines = [f"{name}: {problem.title}: {in_commands(str(problem))}" for name, problem in bad[:MAX_NAMES]]
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
