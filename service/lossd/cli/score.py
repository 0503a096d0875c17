"""``lossd score``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import lossd.cli.known as known
from lossd.cli.executing import On
from lossd.cli.options import (
    CACERT,
    METRIC_OPTION,
    AddressType,
    LossCommand,
    SliceValuesType,
    TagType,
    as_text,
    metric_options,
    option_name,
)
from lossd.cli.plot import KINDS, Image, write
from lossd.cli.progress import load_torch
from lossd.cli.scoring import (
    DONE,
    INTERRUPTED,
    REFUSED,
    about_rows,
    by_row,
    check_slices,
    drawn_metrics,
    left_out,
    plan_of,
    refuse,
    sources_in,
    write_table,
)
from lossd.cli.wording import counted, say

if TYPE_CHECKING:
    from lossd import Run
    from lossd.files.sources import Source
    from lossd.scoring.chunks import Extent
    from lossd.scoring.counting import FileCounting
    from lossd.scoring.merging import Merging
    from lossd_client.errors import Problem

__all__ = ["COMMANDS"]

EXAMPLES = """
lossd score predictions/ --task multiclass --metrics default,auroc
lossd score predictions/ --task binary --plot roc.svg --json
lossd score predictions/ --loss focal --gamma 2 --output score.csv
lossd score predictions/ --task multiclass --run resnet50-v3 --dataset imagenet-val@2 --seal
lossd score site-a/ --task binary --slices site=A,B --slice site=A
lossd score 's3://bucket/predictions/*.parquet' --task binary --on ray --resume ledger
"""

IN_FLIGHT = 4
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
@click.argument("paths", nargs=-1, required=True)
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
@click.option(
    "--slices",
    "declared",
    type=SliceValuesType(),
    metavar="NAME=VALUE,...",
    multiple=True,
    help="A slice and its values, which are scored too: site=A,B. Files may hold the rows' codes as slice.site.",
)
@click.option(
    "--slice",
    "of_all",
    type=TagType(),
    metavar="NAME=VALUE",
    multiple=True,
    help="The value of a slice that the rows of all files have.",
)
@click.option("--crossed", metavar="NAME,NAME", multiple=True, help="Slices whose combinations are scored too.")
@click.option(
    "--groups",
    type=click.Choice(["0", "16", "32", "64"]),
    help="The number of groups of rows for the intervals; 0 for no intervals. [default: 64]",
)
@click.option(
    "--on",
    type=On(),
    metavar="processes[:N]|ray[=ADDRESS]|dask=ADDRESS",
    help="Where to score: processes of this machine, or the workers of a Ray or a Dask cluster. The score is the same. "
    "[default: this process]",
)
@click.option(
    "--resume",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="LEDGER",
    help="File that keeps finished chunks: after an interruption, the same command continues.",
)
@click.option("--skip-bad", is_flag=True, help="Score the other files if one cannot be read or is refused.")
@click.option("--plot", type=Image(), help="File for a picture of the metrics of all rows: .svg or .png.")
@click.option("--plot-kind", type=click.Choice(DRAWN), help="Which picture, if the task has several.")
@click.option("--output", type=_Table(), help="File for the score: .json, or .csv with a row of the metrics.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of tables.")
@click.option(
    "--run",
    metavar="NAME",
    help="Keep the score as a run of this name; after an interruption, the same command continues. If the run exists, "
    "--task and --loss may be left out.",
)
@click.option(
    "--url",
    type=AddressType(),
    help="With --run: the service that keeps the run, with the key in LOSSD_API_KEY if it is set. [default: this "
    "user's store]",
)
@CACERT
@click.option("--dataset", metavar="NAME", help="With --run: the data set, as name@version or name.")
@click.option("--rows", type=click.IntRange(0), help="With --run: the number of rows of the data set.")
@click.option("--targets", metavar="t1:HEX", help="With --run: the fingerprint that the targets must have.")
@click.option(
    "--tag", "tags", type=TagType(), metavar="NAME=VALUE", multiple=True, help="With --run: a tag, such as a commit."
)
@click.option("--public", is_flag=True, help="With --run: let other keys read the run.")
@click.option("--seal", is_flag=True, help="With --run: check that no row is missing, and freeze the score.")
@click.option(
    "--in-flight", type=click.IntRange(1, 256), help="With --run: how many batches to send at a time. [default: 4]"
)
@click.pass_context
def score(
    ctx: click.Context,
    /,
    paths: tuple[str, ...],
    task: str | None,
    loss: str | None,
    metrics: str | None,
    options: tuple[str, ...],
    declared: tuple[tuple[str, list[str]], ...],
    of_all: tuple[tuple[str, str], ...],
    crossed: tuple[str, ...],
    groups: str | None,
    on: tuple[str, str | None] | None,
    resume: Path | None,
    skip_bad: bool,
    plot: Path | None,
    plot_kind: str | None,
    output: Path | None,
    as_json: bool,
    run: str | None,
    url: str | None,
    seal: bool,
    in_flight: int | None,
    **further: Any,
) -> None:
    """Score files as one data set.

    The score is exact: neither the order of the files nor the split of the rows changes a bit. The files are
    .safetensors, .npz and .parquet (if pyarrow is installed), which hold the inputs by name, or .npy, .csv and .png
    files whose names differ only in the input's name, as in 7_prediction.npy and 7_target.png. The parameters of a loss
    are options too. Memory is bounded, whatever the size of the files.

    The files are those of directories, files, patterns such as 'runs/*/*.npz', and URLs that fsspec reads, such as
    s3://bucket/predictions. Rows have positions in the order of the files' directories and names.

    With --on the files are divided into chunks. Processes of this machine, or the workers of a Ray or a Dask cluster,
    evaluate them; each chunk counts once, even if a worker dies. --resume keeps finished chunks in a file, and --run
    keeps the score. After an interruption the same command continues, and reads only what was not counted before.

    Exit status: 0 all is scored, 1 a file or the request was refused, 2 wrong usage, 3 no answer from the service or
    the workers, 130 interrupted; the score is then that of the files counted so far.
    """
    of_run = {name: further.pop(name) for name in ("dataset", "rows", "targets", "tags", "public")}
    chosen = {name: value for name, value in further.items() if value is not None}
    if run is None:
        run_options = {**of_run, "url": url, "seal": seal, "in_flight": in_flight}
        _check_alone({"tag" if name == "tags" else name: value for name, value in run_options.items()})
    strata: dict[str, Any] = {
        "slices": dict(declared) or None,
        "crossed": [names.split(",") for names in crossed] or None,
        "groups": None if groups is None else int(groups),
    }
    defined = any(of_run.values()) or any(value is not None for value in strata.values())
    if loss is None and task is None and (run is None or chosen or metrics or options or defined):
        raise click.UsageError("name a task with --task, or a loss with --loss")
    if run is not None and (on or resume):
        raise click.UsageError(
            "--on and --resume: not with --run, which sends each batch to the service that keeps the run, and goes on "
            "by itself; leave them out, or score without --run"
        )
    if run is not None:
        from lossd.cli.run_score import score_run

        subject = {name: value for name, value in (("task", task), ("loss", loss)) if value is not None}
        definition = {**subject, "metrics": metric_options(metrics, options), "parameters": chosen, **of_run, **strata}
        definition |= {"tags": dict(of_run["tags"]), "public": of_run["public"] or None}
        status = score_run(
            run,
            paths,
            definition,
            slices=dict(of_all),
            url=url,
            seal=seal,
            skip_bad=skip_bad,
            in_flight=in_flight or IN_FLIGHT,
            plot=plot,
            plot_kind=plot_kind,
            output=output,
            as_json=as_json,
        )
        ctx.exit(status)
    requested = metric_options(metrics, options) or {}
    plan = plan_of(task, loss, chosen, requested)
    kind, drawn = drawn_metrics(plot, plot_kind, plan)
    check_slices(dict(declared), dict(of_all))
    beside = about_rows(name for name, _ in declared)
    found = sources_in(paths, plan, beside)
    inputs, splits = [*by_row(plan), *beside], plan.loss is None or plan.loss.kind == "rows"
    elsewhere = on is not None or resume is not None
    extents: list[Extent] = []
    if elsewhere:
        from lossd.scoring.chunks import source_sizes

        found = [source.absolute() for source in found]
        extents = source_sizes(found, inputs, rows=None if by_row(plan) else 1)
        rows, bad = _stated_rows(found, extents)
    else:
        rows, bad = _rows(found, inputs)
    if bad and not skip_bad:
        ctx.exit(refuse(bad, len(found)))

    expected = None if None in rows.values() else sum(count or 0 for count in rows.values())

    def start() -> Run:
        load_torch()
        from lossd import Run

        all_metrics = {**requested, "names": [*requested.get("names", ["default"]), *drawn]}
        declared = {name: value for name, value in strata.items() if value is not None}
        return Run(task=task, loss=loss, metrics=all_metrics, identity="position", rows=expected, **declared, **chosen)

    show_progress = not (as_json and sys.stdout.isatty())
    counting: FileCounting | Merging
    if elsewhere:
        from lossd.cli.executing import score_chunks

        counting, interrupted = score_chunks(
            found, extents, start().state(), inputs, splits=splits, slices=dict(of_all), on=on, resume=resume,
            shown=show_progress,
        )  # fmt: skip
    else:
        from lossd.scoring.counting import FileCounting

        counting = FileCounting(start, len(found), rows, dict(of_all))
        interrupted = not _count(counting, found, inputs, splits=splits, shown=show_progress)
    if not counting.files or (counting.bad and not skip_bad and not interrupted):
        status = refuse(counting.bad, len(found))
        ctx.exit(INTERRUPTED if interrupted else status)
    for line in left_out(counting.bad):
        say(line)
    if interrupted:
        again = ""
        if elsewhere:
            again = "; the same command continues" if resume else "; with --resume LEDGER a command can be continued"
        say(f"interrupted: this is the score of {counted(counting.files, len(found), 'file')}{again}")
    from lossd.cli.results import text
    from lossd_client.wire import json

    result = counting.run.result()
    document = _document(json.numeric(result.to_dict()), counting, drawn, interrupted=interrupted)
    if output is not None:
        write_table(output, document)
    if as_json:
        click.echo(text(document))
    else:
        import lossd.cli.fitting as fitting
        import lossd.cli.report as report

        fitting.console().print(report.score(document, title=f"{loss or task} {as_text(chosen)}".strip()))
    if plot is not None:
        write(plot, kind, result.metrics)
    ctx.exit(INTERRUPTED if interrupted else REFUSED if counting.bad else DONE)


def _check_alone(options: Mapping[str, Any]) -> None:
    """Check that no option of a run is given without a run.

    Raises:
        UsageError: One is given.
    """
    names = [option_name(name) for name, value in options.items() if value not in (None, ()) and value is not False]
    if names:
        raise click.UsageError(f"{', '.join(names)}: only with a run; name it with --run")


def _rows(found: Sequence[Source], inputs: Sequence[str]) -> tuple[dict[str, int | None], list[tuple[str, Problem]]]:
    """Return the rows of each source by its headers, and the name and problem of each that cannot be read."""
    from lossd.scoring.blocks import rows_of
    from lossd_client.errors import Problem

    rows, bad = dict[str, int | None](), []
    for source in found:
        try:
            rows[source.name] = rows_of(source, inputs)
        except Problem as problem:
            rows[source.name] = None
            bad.append((source.name, problem))
    return rows, bad


def _stated_rows(
    found: Sequence[Source], extents: Sequence[Extent]
) -> tuple[dict[str, int | None], list[tuple[str, Problem]]]:
    """Return what :func:`_rows` does, given how much each source holds."""
    pairs = list(zip(found, extents, strict=True))
    bad = [(source.name, extent.problem) for source, extent in pairs if extent.problem is not None]
    return {source.name: extent.rows if extent.stated else None for source, extent in pairs}, bad


def _count(
    counting: FileCounting, found: Sequence[Source], inputs: Sequence[str], *, splits: bool, shown: bool
) -> bool:
    """Count the sources in a run, with progress; return False if Ctrl-C ended it.

    Args:
        counting: The run.
        found: The sources.
        inputs: The names of inputs that have a row for each sample.
        splits: Whether a source of such inputs alone can be split.
        shown: Whether progress is shown.
    """
    from lossd.cli.progress import progress, uninterrupted
    from lossd.scoring.blocks import BLOCK_BYTES, Piece, blocks, read_ahead

    reading = blocks([Piece(source) for source in found], inputs, splits=splits, block_bytes=BLOCK_BYTES)
    try:
        with progress(sum(source.nbytes for source in found), shown=shown) as advance, read_ahead(reading) as ahead:
            for block in ahead:
                with uninterrupted():
                    counting.add(block)
                advance(block.nbytes, counting.text, f"{len(counting.bad)} bad" * bool(counting.bad))
    except KeyboardInterrupt:
        return False
    return True


def _document(
    result: Mapping[str, Any], counting: FileCounting | Merging, drawn: Sequence[str], *, interrupted: bool
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


COMMANDS = (score,)
