"""``lossd score --run``: files become batches of a run, which a store keeps."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lossd.cli.local_service import connected
from lossd.cli.options import as_text
from lossd.cli.progress import progress
from lossd.cli.results import run_document, text
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
from lossd.cli.sending import MeasuredFile, Sending, measure
from lossd.cli.wording import counted, say
from lossd.scoring.blocks import BLOCK_BYTES, read_ahead
from lossd_client import LossClient, RemoteRun
from lossd_client.concurrent_calls import call_each

if TYPE_CHECKING:
    from lossd.request.plan import Plan

__all__ = ["score_run"]


def score_run(
    name: str,
    paths: Sequence[str],
    definition: Mapping[str, Any],
    *,
    slices: Mapping[str, str],
    url: str | None,
    seal: bool,
    skip_bad: bool,
    in_flight: int,
    plot: Path | None,
    plot_kind: str | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """Count files in a run, and report its score.

    Args:
        name: The run's name.
        paths: Directories, files, patterns and URLs.
        definition: The arguments of :meth:`LossClient.run`; without ``task`` and ``loss``, the run exists.
        slices: The values of slices that the rows of all files have.
        url: The address of the service that keeps the run; None for this user's store.
        seal: Whether to seal the run.
        skip_bad: Whether to score the other files if one is refused.
        in_flight: The most batches that are sent at a time.
        plot: The file for a picture, or None.
        plot_kind: The kind of picture, or None.
        output: The file for the score, or None.
        as_json: Whether to print JSON instead of tables.

    Returns:
        The exit status.
    """
    with connected(url) as client:
        run = None if definition.keys() & {"task", "loss"} else client.run(name)
        subject = definition if run is None else _defined(run)
        plan = plan_of(subject.get("task"), subject.get("loss"), subject["parameters"], subject["metrics"] or {})
        kind, drawn = drawn_metrics(plot, plot_kind, plan)
        if drawn:
            raise click.UsageError(
                f"--plot draws metrics that the run does not count; add them: --metrics default,{','.join(drawn)}"
            )
        declared = subject.get("slices") or {}
        check_slices(declared, slices)
        files = _measured(paths, plan, about_rows(declared))
        if files is None:
            return REFUSED
        run = run or _opened(client, name, definition)
        if run.identity != "position":
            raise click.UsageError(f"the run {name} tells rows apart by {run.identity}; files have positions")
        sending = Sending(run, files, run.batches(), slices)
        if sending.before:
            say(f"{counted(sending.before, sending.total, 'file')} counted before")
        interrupted = not _send(sending, in_flight, shown=not (as_json and sys.stdout.isatty()))
        if interrupted:  # what was in flight is counted too
            sending.recount(run.batches())
        if not sending.files or (sending.bad and not skip_bad and not interrupted):
            return refuse(sending.bad, sending.total)
        for line in left_out(sending.bad):
            say(line)
        if interrupted:
            say(f"interrupted with {counted(sending.files, sending.total, 'file')} counted; the same command continues")
        rows = sum(file.rows for file in files)
        result = run.seal(rows) if seal and not interrupted else run.result()
    document = {**run_document(result), "files": sending.document(interrupted=interrupted)}
    if output is not None:
        write_table(output, document)
    if as_json:
        click.echo(text(document))
    else:
        import lossd.cli.fitting as fitting
        import lossd.cli.report as report

        title = f"{subject.get('loss') or subject['task']} {as_text(subject['parameters'])}".strip()
        fitting.console().print(report.score(document, title=title), crop=False)
    if plot is not None:
        from lossd.cli.plot import write

        write(plot, kind, result.metrics)
    return INTERRUPTED if interrupted else REFUSED if sending.bad else DONE


def _defined(run: RemoteRun) -> dict[str, Any]:
    """Return task, loss, parameters, metrics and slices of a run that exists."""
    document = run.document
    loss = dict(document.get("loss") or {})
    named = {"loss": loss.pop("name")} if loss else {"task": document.task}
    return {**named, "parameters": loss, "metrics": document.get("metrics"), "slices": document.get("slices")}


def _opened(client: LossClient, name: str, definition: Mapping[str, Any]) -> RemoteRun:
    fields = dict(definition)
    parameters = fields.pop("parameters")
    return client.run(name, **fields, **parameters)


def _measured(paths: Sequence[str], plan: Plan, beside: Sequence[str]) -> list[MeasuredFile] | None:
    """Return the files with the positions of their rows; None if one cannot be read, which is said."""
    found = sources_in(paths, plan, beside)
    whole = plan.loss is not None and plan.loss.kind != "rows"
    files, bad = measure(found, [*by_row(plan), *beside], whole=whole, block_bytes=BLOCK_BYTES)
    if not bad:
        return files
    for line in left_out(bad):
        say(line)
    say(
        f"nothing was sent: {counted(len(bad), len(found), 'file')} cannot be read, so their rows and the positions of "
        "later files are unknown; fix these files, or move them away"
    )
    return None


def _send(sending: Sending, in_flight: int, *, shown: bool) -> bool:
    """Send what the run has not counted, with progress; return False if Ctrl-C ended it."""
    try:
        with progress(sending.nbytes_left, shown=shown) as advance, read_ahead(sending.to_send()) as batches:
            sending.advance = advance
            call_each(sending.send, batches, sending.received, in_flight=in_flight)
    except KeyboardInterrupt:
        return False
    return True
