"""``lossd score``."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import lossd.cli.known as known
from lossd.cli.options import METRIC_OPTION, LossCommand, as_text, metric_options
from lossd.cli.plot import KINDS, Image, write

if TYPE_CHECKING:
    from lossd import Run
    from lossd.cli.counting import Counting
    from lossd.cli.files import Source
    from lossd.request.plan import Plan
    from lossd_client.errors import Problem

__all__ = ["COMMANDS"]

EXAMPLES = """
lossd score predictions/ --task multiclass --metrics default,auroc
lossd score predictions/ --task binary --plot roc.svg --json
lossd score predictions/ --loss focal --gamma 2 --output score.csv
"""

DONE, REFUSED, INTERRUPTED = 0, 1, 130
MAX_NAMES = 5
DRAWN = [kind for kind in KINDS if kind != "curve"]


class _Table(click.Path):
    """A file for the score, .json or .csv."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        path = Path(str(super().convert(value, param, ctx)))
        if path.suffix not in (".json", ".csv"):
            self.fail(f"{value} must end in .json or .csv", param, ctx)
        return path


@click.command(cls=LossCommand, examples=EXAMPLES)
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--task",
    metavar="NAME",
    shell_complete=known.tasks,
    help="The task whose metrics are computed, such as multiclass. [default: the loss's]",
)
@click.option(
    "--loss",
    metavar="NAME",
    shell_complete=known.losses,
    help="A loss to compute too. With --help, its parameters are shown too.",
)
@click.option(
    "--metrics",
    metavar="NAMES",
    shell_complete=known.metrics,
    help="Only these metrics, comma-separated, instead of the task's default ones; default stands for those.",
)
@METRIC_OPTION
@click.option("--skip-bad", is_flag=True, help="Score the other files if one cannot be read or is refused.")
@click.option("--plot", type=Image(), help="File for a picture of the metrics of all rows: .svg or .png.")
@click.option("--plot-kind", type=click.Choice(DRAWN), help="Which picture, if the task has several.")
@click.option("--output", type=_Table(), help="File for the score: .json, or .csv with a row of the metrics.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of tables.")
@click.pass_context
def score(
    ctx: click.Context,
    /,
    directory: Path,
    task: str | None,
    loss: str | None,
    metrics: str | None,
    options: tuple[str, ...],
    skip_bad: bool,
    plot: Path | None,
    plot_kind: str | None,
    output: Path | None,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Score the files of a directory as one data set.

    The score is exact: neither the order of the files nor the split of the rows changes a bit. The files are
    .safetensors, .npz and .parquet (if pyarrow is installed), which hold the inputs by name, or .npy and .csv files
    whose names differ only in the input's name, as in 7_prediction.npy and 7_target.npy. The parameters of a loss are
    options too. Memory is bounded, whatever the size of the files.

    Exit status: 0 all is scored, 1 a file or the request was refused, 2 wrong usage, 130 interrupted; the score is then
    that of the files counted so far.
    """
    if loss is None and task is None:
        raise click.UsageError("name a task with --task, or a loss with --loss")
    chosen = {name: value for name, value in parameters.items() if value is not None}
    wanted = metric_options(metrics, options) or {}
    plan = _plan(task, loss, chosen, wanted)
    kind, drawn = _drawn(plot, plot_kind, plan)
    found = _sources(directory, plan)
    rows, bad = _rows(found, plan)
    if bad and not skip_bad:
        ctx.exit(_refuse(bad, len(found)))

    expected = None if None in rows.values() else sum(count or 0 for count in rows.values())

    def start() -> Run:
        from lossd import Run

        of_run = {**wanted, "names": [*wanted.get("names", ["default"]), *drawn]}
        return Run(task=task, loss=loss, metrics=of_run, identity="position", rows=expected, **chosen)

    from lossd.cli.counting import Counting

    counting = Counting(start, len(found), rows)
    show_progress = not (as_json and sys.stdout.isatty())
    interrupted = not _count(counting, found, plan, shown=show_progress)
    if not counting.files or (counting.bad and not skip_bad and not interrupted):
        status = _refuse(counting.bad, len(found))
        ctx.exit(INTERRUPTED if interrupted else status)
    for line in _left_out(counting.bad):
        click.echo(line, err=True)
    if interrupted:
        click.echo(f"interrupted: the score is that of {counting.files} of {len(found)} files", err=True)
    from lossd.cli.results import text
    from lossd_client.wire import json

    result = counting.run.result()
    document = _document(json.numeric(result.to_dict()), counting, drawn, interrupted=interrupted)
    if output is not None:
        _write(output, document)
    if as_json:
        click.echo(text(document))
    else:
        import lossd.cli.report as report

        report.console().print(report.score(document, title=f"{loss or task} {as_text(chosen)}".strip()))
    if plot is not None:
        write(plot, kind, result.metrics)
    ctx.exit(INTERRUPTED if interrupted else REFUSED if counting.bad else DONE)


def _plan(task: str | None, loss: str | None, parameters: Mapping[str, Any], metrics: Mapping[str, Any]) -> Plan:
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


def _drawn(plot: Path | None, kind: str | None, plan: Plan) -> tuple[str, list[str]]:
    """Return the kind of picture, and the metrics that are computed for it alone."""
    if plot is None:
        return "", []
    from lossd.cli.plot import kind_for, metrics_of

    kind = kind_for(plan.task, kind, loss=None)
    return kind, [name for name in metrics_of(kind, plan.task) if name not in plan.metrics]


def _sources(directory: Path, plan: Plan) -> list[Source]:
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


def _rows(found: Sequence[Source], plan: Plan) -> tuple[dict[str, int | None], list[tuple[str, Problem]]]:
    """Return the rows of each source by its headers, and the name and problem of each that cannot be read."""
    from lossd.cli.counting import rows_of
    from lossd_client.errors import Problem

    inputs, rows, bad = _by_row(plan), dict[str, int | None](), []
    for source in found:
        try:
            rows[source.name] = rows_of(source, inputs)
        except Problem as problem:
            rows[source.name] = None
            bad.append((source.name, problem))
    return rows, bad


def _by_row(plan: Plan) -> list[str]:
    """Return the inputs that have a row for each sample."""
    return [entry.name for entry in plan.inputs if all(each.pattern[:1] == ("N",) for each in entry.types)]


def _count(counting: Counting, found: Sequence[Source], plan: Plan, *, shown: bool) -> bool:
    """Count the sources in a run, with progress; return False if Ctrl-C ended it."""
    from lossd.cli.counting import BLOCK_BYTES, blocks, read_ahead
    from lossd.cli.progress import progress, uninterrupted

    by_row = _by_row(plan) if plan.loss is None or plan.loss.kind == "rows" else []
    try:
        with progress(sum(source.nbytes for source in found), shown=shown) as advance:
            for block in read_ahead(blocks(found, by_row, block_bytes=BLOCK_BYTES)):
                with uninterrupted():
                    counting.add(block)
                advance(block.nbytes, counting.text, f"{len(counting.bad)} bad" * bool(counting.bad))
    except KeyboardInterrupt:
        return False
    return True


def _refuse(bad: Sequence[tuple[str, Problem]], total: int) -> int:
    """Say on standard error why there is no score; return the exit status."""
    for line in _left_out(bad):
        click.echo(line, err=True)
    remedy = "; mend them, or leave them out with --skip-bad" if len(bad) < total else ""
    click.echo(f"no score: {len(bad)} of {total} files are bad{remedy}", err=True)
    return REFUSED


def _left_out(bad: Sequence[tuple[str, Problem]]) -> list[str]:
    lines = [f"{name}: {problem.title}: {problem}" for name, problem in bad[:MAX_NAMES]]
    return [*lines, f"... and {len(bad) - MAX_NAMES} more"] if len(bad) > MAX_NAMES else lines


def _document(
    result: Mapping[str, Any], counting: Counting, drawn: Sequence[str], *, interrupted: bool
) -> dict[str, Any]:
    """Return the result with what became of the files, without the metrics that were computed to be drawn."""
    shown = {name: value for name, value in result["metrics"].items() if name not in drawn}
    files = {
        "counted": counting.files,
        "of": counting.total,
        "bad": [{"file": name, "title": problem.title, "detail": problem.detail} for name, problem in counting.bad],
        "bytes": counting.nbytes,
        "seconds": round(counting.seconds, 6),
        "interrupted": interrupted,
    }
    return {**result, "metrics": shown, "files": files}


def _write(path: Path, document: Mapping[str, Any]) -> None:
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


COMMANDS = (score,)
