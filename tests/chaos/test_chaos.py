"""The short versions; ``make chaos`` runs the long ones."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from chaos.disconnects import leave
from chaos.fleet import fleet, ways_to_die
from chaos.scoring import score
from chaos.service import served
from chaos.soak import KEYS, SETTINGS, soak
from postgres import PostgreSQL, programs

MIB = 1 << 20


def test_clients_that_leave_in_the_middle_take_nothing_with_them() -> None:
    with served() as service:
        left = leave(service, 80)
        assert left.files_after <= left.files_before
        assert left.resident_bytes_after < left.resident_bytes_before + 48 * MIB
        assert service.stop() == 0


def test_in_a_storm_every_request_has_its_answer_and_every_answer_is_right() -> None:
    with served(keys=KEYS, **SETTINGS) as service:
        ledger = soak(service, requests=600, kills=2)
        assert (ledger.wrong, ledger.lost) == ([], []), str(ledger)
        assert ledger.accounted == ledger.sent >= 600
        assert ledger.restarts == ledger.kills == 2
        assert ledger.answered["asks"] > 300
        assert ledger.answered["is refused"] > 18
        assert ledger.left > 18
        assert service.stop() == 0


def test_each_batch_of_a_data_set_counts_once_whatever_is_killed(tmp_path: Path) -> None:
    with served(fronts=2, runs=tmp_path / "runs.db") as service:
        ledger = score([service], batches := 120, kills=3)
        assert ledger.wrong == [], str(ledger)
        assert len(ledger.created.keys() | ledger.repeated.keys()) == batches
        assert ledger.created.total() <= batches < ledger.sent
        assert min(ledger.conflicts["batch-conflict"], ledger.conflicts["duplicate-rows"]) > 0
        assert set(ledger.kills) == {"recorder", "front", "worker"}, str(ledger)
        assert service.stop() == 0


@pytest.mark.skipif(programs() is None, reason="PostgreSQL's programs are not installed")
def test_each_batch_counts_once_in_a_run_that_two_services_share() -> None:
    """A service dies with all its processes, and PostgreSQL crashes."""
    with closing(PostgreSQL()) as server, fleet(2, runs=server.new_schema()) as replicas:
        ways = ways_to_die(replicas, server)
        ledger = score(replicas, batches := 90, 2, {kind: ways[kind] for kind in ("replica", "database")})
        assert ledger.wrong == [], str(ledger)
        assert len(ledger.created.keys() | ledger.repeated.keys()) == batches
        assert ledger.created.total() <= batches < ledger.sent
        assert set(ledger.kills) == {"replica", "database"}, str(ledger)
