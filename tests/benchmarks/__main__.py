"""Measure lossd and its peers: ``make bench``, or from the folder tests, ``python -m benchmarks COMMAND``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import beside_inline, comparison, goals, gpu, page, report
from benchmarks.checks import CHECKS, Check, losses_of
from benchmarks.environments import CACHE
from benchmarks.findings import Finding
from benchmarks.targets import TARGETS
from benchmarks.workloads import WORKLOADS

WIDTH = 120


@dataclass(frozen=True)
class Bench:
    """How to measure, and where the figures go.

    Attributes:
        rounds: Counted rounds; one to warm up comes before.
        seconds: Of each round.
        output: The file that keeps every round.
        console: Where tables and progress go.
    """

    rounds: int
    seconds: float
    output: Path
    console: Console

    @contextmanager
    def steps(self, total: int) -> Iterator[comparison.Step]:
        """How far a measurement is, on a terminal."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task("", total=total)
            yield lambda what: progress.update(task, description=what, advance=1)

    def compare(self, targets: tuple[str, ...], workloads: tuple[str, ...], connections: tuple[int, ...]) -> bool:
        """Every workload by every target; whether what was required was met."""
        absent: dict[str, str] = {}
        found: list[comparison.Cell] = []
        built = [WORKLOADS[letter] for letter in workloads]
        total = len(targets) * (
            1 + len(built) + (self.rounds + 1) * sum(len(connections or w().connections) for w in built)
        )
        with self.steps(total) as step, comparison.started(targets, absent, step) as running:
            for build in built:
                workload = build()
                counts = connections or workload.connections
                options = {"rounds": self.rounds, "seconds": self.seconds, "step": step}
                for cell in comparison.cells(running, workload, absent, connections=counts, **options):
                    self.console.print(report.of_cell(cell, headings=not found))
                    found.append(cell)
        for who, why in absent.items():
            self.console.print(f"not measured: {who}: {why}", style="red")
        present = [name for name in targets if name not in absent]
        verdicts = goals.of_comparison(found)
        part = {"cells": found, "absent": absent, "versions": report.versions_of(present)}
        return self.conclude("comparison", part, verdicts)

    def check(self, name: str, check: Check) -> bool:
        """One of the checks of lossd alone; whether what was required was met."""
        with self.steps(check.steps(self.rounds)) as step:
            return self.tell(name, check.measure(self.rounds, self.seconds, step))

    def tell(self, name: str, found: Finding) -> bool:
        """Print and keep a finding; whether what was required was met."""
        self.console.print(report.of_rows(found.headings, found.rows))
        for who, why in found.absent.items():
            self.console.print(f"not measured: {who}: {why}", style="red")
        part = {"headings": found.headings, "rows": found.rows, "absent": found.absent}
        part |= {"generator": found.generator} if found.generator else {}
        return self.conclude(name, part, found.verdicts)

    def conclude(self, name: str, part: dict[str, Any], verdicts: list[goals.Verdict]) -> bool:
        """Print the verdicts and keep the part."""
        about = report.about(self.rounds, self.seconds)
        report.keep(self.output, name, about | part | {"verdicts": [asdict(verdict) for verdict in verdicts]})
        self.console.print()
        if verdicts:
            self.console.print(report.of_verdicts(verdicts))
            self.console.print()
        return all(verdict.met for verdict in verdicts)


def listed(_: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """Names separated by commas; among the targets is lossd always."""
    names = tuple(filter(None, value.split(",")))
    known = {"targets": TARGETS, "workloads": WORKLOADS, "losses": beside_inline.names()}[parameter.name or ""]
    if unknown := [name for name in names if name not in known]:
        raise click.BadParameter(f"{', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(dict.fromkeys((comparison.OURS, *names))) if parameter.name == "targets" else names


@click.group()
@click.option("--rounds", default=5, show_default=True, help="Counted rounds; one to warm up comes before.")
@click.option("--seconds", default=3.0, show_default=True, help="Of each round; wrk takes whole ones.")
@click.option("--output", type=click.Path(path_type=Path), default=CACHE / "report.json", help="Keeps every round.")
@click.option("--page", "write_page", is_flag=True, help="Then write the pages' tables anew.")
@click.pass_context
def main(context: click.Context, rounds: int, seconds: float, output: Path, write_page: bool) -> None:
    """Measure lossd and its peers. Exits with 1 where something required is missed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    console = Console()
    context.obj = Bench(rounds, seconds, output, console if console.is_terminal else Console(width=WIDTH))


@main.result_callback()
@click.pass_obj
def conclude(bench: Bench, passed: bool, write_page: bool, **_: Any) -> None:
    bench.console.print(f"every round: {bench.output}")
    if write_page:
        page.write(report.read(bench.output))
        bench.console.print(f"written: {', '.join(map(str, page.PAGES))}")
    sys.exit(not passed)


targets = click.option("--targets", default=",".join(TARGETS), callback=listed, show_default=True, help="Whom.")
workloads = click.option(
    "--workloads", default=",".join(WORKLOADS), callback=listed, show_default=True, help="With what."
)


@main.command()
@targets
@workloads
@click.option("--connections", multiple=True, type=int, help="How many at a time; by default what suits the workload.")
@click.pass_obj
def compare(bench: Bench, targets: tuple[str, ...], workloads: tuple[str, ...], connections: tuple[int, ...]) -> bool:
    """Lossd beside its peers."""
    return bench.compare(targets, workloads, connections)


@main.command("all")
@targets
@workloads
@click.pass_obj
def everything(bench: Bench, targets: tuple[str, ...], workloads: tuple[str, ...]) -> bool:
    """The comparison, then every check."""
    passed = [bench.compare(targets, workloads, ())]
    for name, check in CHECKS.items():
        bench.console.rule(check.title, align="left")
        passed.append(bench.check(name, check))
    return all(passed)


@main.command("gpu", help=gpu.measure.__doc__)
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, or cpu to try it.")
@click.option("--out", type=click.Path(path_type=Path), help="A file for this measurement alone.")
@click.pass_obj
def on_gpu(bench: Bench, device: str, out: Path | None) -> bool:
    if out is not None:
        bench = replace(bench, output=out)
    with bench.steps(1 + sum(2 + len(w().connections) * (bench.rounds + 1) for w in WORKLOADS.values())) as step:
        return bench.tell("gpu", gpu.measure(device, bench.rounds, bench.seconds, step))


@main.command("page")
@click.pass_obj
def rewrite(bench: Bench) -> bool:
    """Measure nothing; write the tables of the pages anew from all that --output keeps."""
    page.write(report.read(bench.output))
    return True


@main.command("losses", help=CHECKS["losses"].measure.__doc__)
@click.option("--losses", default=",".join(beside_inline.names()), callback=listed, help="Which; by default every one.")
@click.pass_obj
def some_losses(bench: Bench, losses: tuple[str, ...]) -> bool:
    return bench.check("losses", losses_of(losses))


for _name, _check in CHECKS.items():
    if _name not in main.commands:
        main.command(_name, help=_check.measure.__doc__)(click.pass_obj(partial(Bench.check, name=_name, check=_check)))

if __name__ == "__main__":
    main(prog_name="benchmarks")
