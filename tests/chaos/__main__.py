"""The long versions, with their figures: ``make chaos``, or from the folder tests, ``python -m chaos``."""

from __future__ import annotations

import sys

import click
import torch

from chaos import attacks, fairness, soak
from chaos.disconnects import leave
from chaos.service import served

MIB = 1 << 20
SIZES = {"small": 64, "medium": 4096}


@click.command()
@click.option("--requests", default=20_000, show_default=True, help="Of the soak.")
@click.option("--kills", default=10, show_default=True, help="Workers killed during the soak.")
@click.option("--leavers", default=1000, show_default=True, help="Clients that leave in the middle.")
@click.option("--seconds", default=5.0, show_default=True, help="Of each part of a round of fairness.")
@click.option("--attack-seconds", default=30.0, show_default=True, help="Of each kind of attack; 0 for none.")
@click.option("--seed", default=0, show_default=True, help="Of what is left to chance.")
def main(requests: int, kills: int, leavers: int, seconds: float, attack_seconds: float, seed: int) -> None:
    """Soak, attack, leave and be greedy; exit with 1 where anything is wrong or lost."""
    torch.set_num_threads(1)
    passed = [_soak(requests, kills, seed)] if requests else []
    passed += [_attack(attack_seconds)] if attack_seconds else []
    passed += [_leave(leavers, seed)] if leavers else []
    if seconds:
        _share(seconds)
    sys.exit(not all(passed))


def _soak(requests: int, kills: int, seed: int) -> bool:
    click.echo(f"soak: {requests} requests, {kills} kills, seed {seed}")
    with served(keys=soak.KEYS, **soak.SETTINGS) as service:
        ledger = soak.soak(service, requests, kills, seed)
        status = service.stop()
    click.echo(f"{ledger}\nexit      {status}\n")
    return not ledger.wrong and not ledger.lost and ledger.accounted == ledger.sent and status == 0


def _attack(seconds: float) -> bool:
    click.echo(f"attacks: {attacks.AT_ONCE} connections of one key at a time, {seconds:g} s of each kind")
    with served(keys=soak.KEYS) as service:
        _, attacker, other = soak.KEYS.values()
        waits = attacks.attacked(service.port, attacker, other, seconds, click.echo)
        service.wait_until_idle(60)
        click.echo(f"memory    {service.resident_bytes() / MIB:.0f} MiB of the front\n")
    return not any(each.failed for each in waits)


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
