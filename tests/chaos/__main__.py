"""The long versions, with their figures: ``make chaos``, or from the folder tests, ``python -m chaos``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import click
import torch

from chaos import fairness, soak
from chaos.attacks import AT_ONCE, ATTACKS, Attacked, attacked
from chaos.disconnects import leave
from chaos.fleet import fleet, ways_to_die
from chaos.probes import Waits
from chaos.scoring import score
from chaos.service import Service, memory_bytes, served
from postgres import PostgreSQL, programs

MIB = 1 << 20
ATTACKER, PROBER = "attacker", "prober"
KEYS = soak.KEYS | {name: f"{name}-key-of-a-test-{name}" for name in (ATTACKER, PROBER)}
PAIR = KEYS[ATTACKER], KEYS[PROBER]
MOST_WAIT_S = 1.0
"""The most CPU time that health, or another key's small request, waits for."""

SIZES = {"small": 64, "medium": 4096}


@click.command()
@click.option("--seconds", default=600.0, show_default=True, help="Of the soak; the kinds of attack share them.")
@click.option("--requests", default=20_000, show_default=True, help="Of the soak, at least.")
@click.option("--kills", default=10, show_default=True, help="Workers killed during the soak.")
@click.option("--stops", default=10, show_default=True, help="Workers stopped for a while during the soak.")
@click.option("--attack", "attacks", multiple=True, type=click.Choice([*ATTACKS]), help="Kinds; by default all.")
@click.option("--alone-seconds", default=5.0, show_default=True, help="Of each kind of attack without the soak.")
@click.option("--batches", default=10_000, show_default=True, help="Of the data set that is scored.")
@click.option("--scoring-kills", default=30, show_default=True, help="Recorders, fronts and workers killed meanwhile.")
@click.option("--leavers", default=1000, show_default=True, help="Clients that leave in the middle.")
@click.option("--share-seconds", default=5.0, show_default=True, help="Of each part of a round of fairness.")
@click.option("--seed", default=0, show_default=True, help="Of what is left to chance.")
def main(
    seconds: float, requests: int, kills: int, stops: int, attacks: tuple[str, ...], alone_seconds: float,
    batches: int, scoring_kills: int, leavers: int, share_seconds: float, seed: int,
) -> None:  # fmt: skip
    """Soak and attack, score, leave, and be greedy; exit with 1 where anything is wrong, lost, late or too large."""
    torch.set_num_threads(1)
    kinds = attacks or tuple(ATTACKS)
    passed = [_attack(kinds, alone_seconds)] if alone_seconds else []
    passed += [_soak(kinds, seconds, requests, kills, stops, seed)] if seconds else []
    passed += _score(batches, scoring_kills, seed) if batches else []
    passed += [_share_runs(batches, scoring_kills, seed)] if batches else []
    passed += [_leave(leavers, seed)] if leavers else []
    if share_seconds:
        _share(share_seconds)
    sys.exit(not all(passed))


def _attack(kinds: Sequence[str], seconds: float) -> bool:
    """Attack a service that serves nobody else, so that a wait has one cause."""
    click.echo(f"attacks: {AT_ONCE} connections of one key at a time, {seconds:g} s of each kind")
    with served(keys=KEYS, **soak.SETTINGS) as service:
        within = _Within(service)
        for one in attacked(service, *PAIR, seconds, kinds):
            within.tell(one)
        service.wait_until_idle(60)
        return within.report() and service.stop() == 0


def _soak(kinds: Sequence[str], seconds: float, requests: int, kills: int, stops: int, seed: int) -> bool:
    click.echo(f"soak: {seconds:g} s, {requests} requests at least, {kills} kills, {stops} stops, seed {seed}")
    with served(keys=KEYS, **soak.SETTINGS) as service, ThreadPoolExecutor(1) as beside:
        within, found = _Within(service), []

        def attack() -> None:
            found.append(beside.submit(list, attacked(service, *PAIR, seconds / len(kinds), kinds)))

        ledger = soak.soak(service, requests, kills, seed, stops=stops, seconds=seconds, begun=attack)
        for one in found[0].result():
            within.tell(one, ledger)
        status = service.stop()
    click.echo(f"{ledger}\nexit      {status}\n")
    served_all = not ledger.wrong and not ledger.lost and ledger.accounted == ledger.sent
    return within.report() and served_all and status == 0


class _Within:
    """Whether attacks stay within the limits: waits in CPU time, and memory beside that of the idle service.

    During the soak, waits are told but not limited: 96 other clients are served meanwhile, and workers are killed.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.idle_bytes = self.most_bytes = memory_bytes(service.process.pid)
        self.passed = True

    def tell(self, one: Attacked, ledger: soak.Ledger | None = None) -> None:
        disturbed = [] if ledger is None else ledger.disturbed
        waits = Waits.of(one.probes, disturbed)
        self.most_bytes = max(self.most_bytes, one.most_bytes)
        self.passed &= not waits.faults
        if ledger is None:
            self.passed &= max(waits.health_cpu_s, waits.small_cpu_s) < MOST_WAIT_S
        else:
            self.passed &= ledger.answered_within(one.span) > 0
        answered = "" if ledger is None else f", {ledger.answered_within(one.span)} good answers to other keys"
        click.echo(one.describe(disturbed) + answered)

    def report(self) -> bool:
        """Print the memory, and return whether all was within the limits."""
        most_bytes = self.idle_bytes + 1.2 * soak.BUDGET_BYTES
        click.echo(
            f"memory    {self.idle_bytes / MIB:.0f} MiB idle, {self.most_bytes / MIB:.0f} at most, "
            f"{most_bytes / MIB:.0f} allowed\n"
        )
        return self.passed and self.most_bytes <= most_bytes


def _score(batches: int, kills: int, seed: int) -> list[bool]:
    """Score a data set in a run of SQLite, and of PostgreSQL if its programs are installed."""
    with ExitStack() as stack:
        places = {"SQLite": str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "runs.db")}
        if programs() is not None:
            places["PostgreSQL"] = stack.enter_context(closing(PostgreSQL())).new_schema()
        passed = []
        for name, place in places.items():
            click.echo(f"scoring: {batches} batches in {name}, {kills} kills, seed {seed}")
            with served(fronts=2, runs=place) as service:
                ledger = score([service], batches, kills, seed=seed)
                status = service.stop()
            click.echo(f"{ledger}\nexit      {status}\n")
            passed.append(not ledger.wrong and status == 0)
    return passed


def _share_runs(batches: int, kills: int, seed: int) -> bool:
    """Score a data set in a run that two services share, in a PostgreSQL."""
    if programs() is None:
        click.echo("shared scoring: PostgreSQL's programs are not installed\n")
        return True
    with closing(PostgreSQL()) as server, fleet(2, runs=server.new_schema()) as replicas:
        click.echo(f"shared scoring: {batches} batches by two services in one PostgreSQL, {kills} kills, seed {seed}")
        ledger = score(replicas, batches, kills, ways_to_die(replicas, server), seed=seed)
    click.echo(f"{ledger}\n")
    return not ledger.wrong


def _leave(leavers: int, seed: int) -> bool:
    click.echo(f"leaving: {leavers} clients, in the middle of bodies and answers")
    with served() as service:
        left = leave(service, leavers, seed)
    click.echo(
        f"files     {left.files_before} before, {left.files_after} after\n"
        f"memory    {left.resident_bytes_before / MIB:.0f} MiB before, {left.resident_bytes_after / MIB:.0f} after\n"
        "held      nothing: no request, no byte, no slab\n"
    )
    return left.files_after <= left.files_before


def _share(seconds: float) -> None:
    click.echo("shares: a greedy client with 64 connections beside a modest one with 2")
    with served(keys=fairness.KEYS) as service:
        for modest, modest_rows in SIZES.items():
            for greedy, greedy_rows in SIZES.items():
                shares = fairness.measure(service, modest_rows, greedy_rows, seconds)
                click.echo(
                    f"{modest} beside {greedy}: p99 {shares.alone.p99_ms} ms alone, {shares.beside.p99_ms} beside it, "
                    f"{shares.ratio:.1f} times; {shares.alone.per_second:.0f} requests/s alone, "
                    f"{shares.beside.per_second:.0f} beside it, the greedy one {shares.greedy.per_second:.0f}"
                )


if __name__ == "__main__":
    main()
