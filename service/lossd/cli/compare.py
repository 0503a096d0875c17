"""``lossd compare``: whether a run is better than another one, and a gate for pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import lossd.cli.known as known
from lossd.cli.gates import Gate, GateResult, Margin, judged
from lossd.cli.help import Command
from lossd.cli.options import CACERT, AddressType, LevelType

if TYPE_CHECKING:
    from lossd_client import Comparison

__all__ = ["COMMANDS"]

EXAMPLES = """
lossd compare main candidate
lossd compare main candidate --metrics f1,accuracy --classes --slices
lossd compare main candidate --not-worse f1.macro:0.002 --better accuracy
lossd compare main candidate other --json --url https://loss.example
"""

NOT_PROVEN = 4
OF_A_CLASS = ".per_class."


@click.command(cls=Command, examples=EXAMPLES, short_help="Compare runs with a baseline.")
@click.argument("baseline")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--metrics",
    metavar="NAMES",
    shell_complete=known.metrics,
    help="Only these metrics, comma-separated. [default: those of the runs' definition]",
)
@click.option("--classes", is_flag=True, help="Compare the metrics of single classes too.")
@click.option("--slices", is_flag=True, help="Compare the runs on each slice too.")
@click.option("--level", type=LevelType(), help="The level of the intervals. [default: 0.95]")
@click.option(
    "--unpaired",
    is_flag=True,
    help="Compare runs of different rows too, as independent samples; this is less sensitive.",
)
@click.option(
    "--not-worse",
    "gates",
    type=Margin(),
    metavar="METRIC:MARGIN",
    multiple=True,
    help="Exit with 4 unless the interval proves that RUN is worse by no more than the margin.",
)
@click.option(
    "--better",
    metavar="METRIC",
    multiple=True,
    help="Exit with 4 unless the interval proves that RUN is better.",
)
@click.option(
    "--owner", "owners", metavar="NAME", multiple=True, help="The owner of public runs: once, or once for each run."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option(
    "--url",
    type=AddressType(),
    help="The service that keeps the runs, with the key in LOSSD_API_KEY if it is set. [default: this user's store]",
)
@CACERT
@click.pass_context
def compare(
    ctx: click.Context,
    baseline: str,
    runs: tuple[str, ...],
    *,
    metrics: str | None,
    classes: bool,
    slices: bool,
    level: float | None,
    unpaired: bool,
    gates: tuple[Gate, ...],
    better: tuple[str, ...],
    owners: tuple[str, ...],
    as_json: bool,
    url: str | None,
) -> None:
    """Compare each RUN with the run BASELINE, on the same rows and labels.

    The comparison is paired and needs no predictions. A difference has an interval; the verdict is undecided if chance
    may have made it. With --not-worse and --better the command is a gate: it fails unless the intervals prove the
    condition.

    Exit status: 0 done and all gates proven, 1 the runs cannot be compared or are unknown, 2 wrong usage, 3 no answer
    from the service, 4 a gate is not proven.
    """
    from lossd.cli.local_service import connected
    from lossd_client import Comparison

    all_gates = [*gates, *(Gate(name, None) for name in better)]
    if metrics is not None:  # a gate's metric is compared in any case
        metrics = ",".join(dict.fromkeys([*metrics.split(","), *(gate.metric.partition(".")[0] for gate in all_gates)]))
    with connected(url) as client:
        first, *others = runs
        found = client.compare(
            baseline,
            first,
            *others,
            owner=(owners[0] if len(owners) == 1 else list(owners)) if owners else None,
            metrics=metrics,
            classes=classes or any(OF_A_CLASS in gate.metric for gate in all_gates),
            slices=slices,
            level=level,
            unpaired=unpaired,
        )
    comparisons: list[Comparison] = [found] if isinstance(found, Comparison) else found.comparisons
    outcomes = [judged(each, all_gates) for each in comparisons]
    _show(comparisons, outcomes, as_json=as_json)
    if failed := [outcome for every in outcomes for outcome in every if not outcome.proven]:
        for outcome in failed if as_json else ():
            click.echo(str(outcome), err=True)
        ctx.exit(NOT_PROVEN)


def _show(comparisons: list[Comparison], outcomes: list[list[GateResult]], *, as_json: bool) -> None:
    """Print comparisons with what became of their gates."""
    if as_json:
        from lossd.cli.results import text

        document = dict(comparisons[0].document)
        if gates := [outcome.document() for every in outcomes for outcome in every]:
            document["gates"] = gates
        click.echo(text(document))
        return
    import lossd.cli.comparison as tables
    import lossd.cli.fitting as fitting

    console = fitting.console()
    for position, (each, every) in enumerate(zip(comparisons, outcomes, strict=True)):
        if position:
            console.print()
        console.print(tables.comparison(each, every), crop=False)


COMMANDS = (compare,)
