"""``lossd runs``: the runs that a service, or this user's store, keeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

import lossd.cli.known as known
from lossd.cli.help import Group
from lossd.cli.options import CACERT, AddressType, LevelType, TagType
from lossd.cli.wording import counted, say

if TYPE_CHECKING:
    from lossd_client import RunResult

__all__ = ["COMMANDS"]

LIST = """
lossd runs
lossd runs --dataset imagenet-val@2 --sort -f1.macro
lossd runs show resnet50-v3
lossd runs --url https://loss.example --json
"""
SHOW = """
lossd runs show resnet50-v3
lossd runs show resnet50-v3 --metrics f1,accuracy --level 0.99 --json
"""
SEAL = """
lossd runs seal resnet50-v3 --rows 50000
"""
DELETE = """
lossd runs delete resnet50-v3 --yes
"""

COPY = """
lossd runs copy ~/.local/share/lossd/runs.db postgresql://lossd@db.example/lossd
"""

_URL = click.option(
    "--url",
    type=AddressType(),
    help="The service that keeps the runs, with the key in LOSSD_API_KEY if it is set. [default: this user's store]",
)


def URL(command: Callable[..., Any]) -> Callable[..., Any]:  # noqa: N802  (an option like the others)
    """Add --url and --cacert to a command."""
    return _URL(CACERT(command))


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


@click.group(cls=Group, invoke_without_command=True, examples=LIST, short_help="List the kept scores of data sets.")
@URL
@click.option("--dataset", metavar="NAME", help="Only runs on this data set, as name@version or name.")
@click.option("--task", metavar="NAME", shell_complete=known.tasks, help="Only runs of this task.")
@click.option("--status", type=click.Choice(["open", "sealed"]), help="Only runs of this status.")
@click.option("--tag", type=TagType(), metavar="NAME=VALUE", help="Only runs with this tag.")
@click.option("--sort", metavar="METRIC", help="Order by a metric, such as f1.macro; -f1.macro for the highest first.")
@AS_JSON
@click.pass_context
def runs(ctx: click.Context, /, url: str | None, tag: tuple[str, str] | None, as_json: bool, **filters: Any) -> None:
    """List the runs: the scores that lossd score --run and clients have counted, the latest first.

    Exit status: 0 done, 1 a request was refused, 2 wrong usage, 3 no answer from the service.
    """
    if ctx.invoked_subcommand is not None:
        return
    from lossd.cli.local_service import connected

    with connected(url) as client:
        found = client.runs(tag=None if tag is None else ":".join(tag), **filters)
    if as_json:
        click.echo(json.dumps({"runs": found}))
        return
    if not found:
        filtered = any(value is not None for name, value in [*filters.items(), ("tag", tag)] if name != "sort")
        none = "there are no runs; lossd score --run NAME keeps one"
        say("no run matches; lossd runs lists all runs" if filtered else none)
        return
    import lossd.cli.fitting as fitting
    import lossd.cli.report as report

    fitting.console().print(report.runs(found))
    sort = (filters["sort"] or "").removeprefix("-")
    if sort and not any(sort in (run.get("summary") or {}) for run in found):
        say(f"no run has the metric {sort}; these are not sorted")


@runs.command(examples=SHOW, short_help="Show the score of a run.")
@click.argument("name")
@URL
@click.option("--metrics", metavar="NAMES", shell_complete=known.metrics, help="Only these metrics, comma-separated.")
@click.option("--level", type=LevelType(), help="The level of the intervals. [default: 0.95]")
@click.option("--owner", metavar="NAME", help="The owner of a public run.")
@AS_JSON
@click.pass_context
def show(
    ctx: click.Context,
    name: str,
    *,
    url: str | None,
    metrics: str | None,
    level: float | None,
    owner: str | None,
    as_json: bool,
) -> None:
    """Show the run NAME: its score so far, or its final score, with intervals and slices."""
    with _client(ctx, url) as client:
        result = client.run(name, owner=owner).result(metrics, level=level)
    _report(result, as_json=as_json)


@runs.command(examples=SEAL, short_help="Check a run and freeze its score.")
@click.argument("name")
@URL
@click.option(
    "--rows", type=click.IntRange(0), help="The number of rows of the data set, to check that none is missing."
)
@AS_JSON
@click.pass_context
def seal(ctx: click.Context, name: str, url: str | None, rows: int | None, as_json: bool) -> None:
    """Seal the run NAME: check that it is complete, and freeze its score.

    A run that is sealed counts nothing more. If rows are missing, the run stays open and the exit status is 1.
    """
    with _client(ctx, url) as client:
        result = client.run(name).seal(rows)
    _report(result, as_json=as_json)


@runs.command(examples=DELETE, short_help="Delete a run.")
@click.argument("name")
@URL
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def delete(ctx: click.Context, name: str, url: str | None, yes: bool) -> None:
    """Delete the run NAME with all that it has counted.

    On a terminal the command asks first; elsewhere it needs --yes.
    """
    with _client(ctx, url) as client:
        run = client.run(name)
        if not yes:
            if not _asks():
                raise click.UsageError("there is no terminal to ask; delete with --yes")
            counts = run.document.counted
            held = f"{counted(counts.rows, None, 'row')} in {counted(counts.batches, None, 'batch')}"
            click.confirm(f"delete {name}, with {held}?", abort=True)
        run.delete()
    say(f"{name} is deleted")


@runs.command(examples=COPY, short_help="Copy all runs to another database.")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def copy(source: str, target: str) -> None:
    """Copy all runs from the database FROM to the database TO: files, or postgresql://user@host/database.

    Stop the service that keeps the runs first. Runs that were copied before are left as they are.
    """
    from lossd.recorder.copying import copy as copied
    from lossd.recorder.database import StoreError

    new = before = 0
    try:
        for run in copied(source, target):
            new, before = new + (not run.before), before + run.before
            if not run.before:
                say(f"{run.name}: {counted(run.batches, None, 'batch')}")
    except StoreError as error:
        raise click.UsageError(str(error)) from None
    say(f"{counted(new, None, 'run')} copied" + f", {before:,} copied before" * bool(before))


def _asks() -> bool:
    """Return whether somebody can answer a question."""
    return sys.stdin.isatty()


def _client(ctx: click.Context, url: str | None) -> Any:
    """Return the context of a client; the address may be given before the subcommand too."""
    from lossd.cli.local_service import connected

    assert ctx.parent is not None
    return connected(url or ctx.parent.params["url"])


def _report(result: RunResult, *, as_json: bool) -> None:
    import lossd.cli.fitting as fitting
    import lossd.cli.report as report
    from lossd.cli.results import run_document, text

    if as_json:
        click.echo(text(result.document))
        return
    document = result.document
    title = document.loss.name if document.get("loss") else document.task
    fitting.console().print(report.score(run_document(result), title=title), crop=False)


COMMANDS = (runs,)
