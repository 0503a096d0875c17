"""Recorders that share one PostgreSQL: at the same moment, one after the other, and when one of them is gone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from lossd.recorder import database, folding
from lossd.recorder.store import Limits, Store, StoreError
from lossd_client.errors import Conflict, DuplicateRows, Problem, QuotaExceeded, Unavailable, UnknownRun
from postgres import PostgreSQL
from recorder.reports import batch, count_one, document, state


@pytest.fixture
def url(postgresql: PostgreSQL) -> str:
    return postgresql.new_schema()


def end_sessions(postgresql: PostgreSQL) -> None:
    """End all sessions of the server but the one that asks."""
    postgresql.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")


def new_run(store: Store, name: str = "r", identity: str = "position") -> str:
    made: str = store.create("", name, document(identity), "d")[0]["id"]
    return made


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Do all at the same moment, and return what each returned or raised."""
    start = threading.Barrier(len(works))

    def one(work: Callable[[], Any]) -> Any:
        start.wait()
        try:
            return work()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(one, works))


# At the same moment


@pytest.mark.parametrize("identity", ["position", "id"])
def test_rows_that_recorders_count_at_the_same_moment_count_once(
    opened: Callable[..., Store], identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two recorders count and fold, a third reads; batches overlap, and have the same name or another one."""
    monkeypatch.setattr(folding, "PENDING", 8)
    stores = [opened(), opened()]
    run = new_run(stores[0], identity=identity)
    spans = [(first, first + length) for first in range(0, 96, 4) for length in (4, 6)]
    outcomes: list[list[Any]] = [[], []]

    def count(k: int) -> None:
        mine = random.Random(k).sample(spans, len(spans))
        for at in range(0, len(mine), 3):
            some = [batch(run, f"b{first}-{stop}", range(first, stop), identity) for first, stop in mine[at : at + 3]]
            outcomes[k] += stores[k].count(some)
            stores[k].tidy()

    def read() -> None:
        reader, rows = opened(), 0
        for _ in range(20):
            record, _ = reader.merged(run)
            assert record["rows"] >= rows
            rows = record["rows"]

    assert at_once(lambda: count(0), lambda: count(1), read) == [None] * 3
    made = [
        outcome["batch"]
        for some in outcomes
        for outcome in some
        if not isinstance(outcome, Problem) and outcome["created"]
    ]
    assert len(made) == len(set(made))
    assert {type(each) for some in outcomes for each in some if isinstance(each, Problem)} == {DuplicateRows}
    counted = sorted(row for name in made for row in range(*map(int, name[1:].split("-"))))
    assert counted == sorted(set(counted)), "a row counts once"
    if identity == "id":
        assert stores[0].merged(run)[1] == stores[1].merged(run)[1] == state("id", tuple(counted))
    assert stores[0].find("", "r")["rows"] == stores[0].merged(run)[0]["rows"] == len(counted)
    listed = stores[1].batches(run, limit=1000)["batches"]
    assert sorted(entry["name"] for entry in listed) == sorted(made)


def test_a_run_sealed_at_the_same_moment_is_complete_or_refuses_the_batch(opened: Callable[..., Store]) -> None:
    one, two = opened(), opened()
    for k in range(6):
        run = new_run(one, f"r{k}")
        count_one(one, batch(run, "a", range(4)))
        revision = two.merged(run)[0]["revision"]
        sealed, counted = at_once(
            lambda run=run, revision=revision: one.seal(run, revision, None, {}, {}),
            lambda run=run: count_one(two, batch(run, "b", range(4, 8))),
        )
        assert isinstance(sealed, Conflict) != isinstance(counted, Conflict), (sealed, counted)
        rows = 4 if isinstance(counted, Conflict) else 8
        assert two.merged(run)[1] == one.merged(run)[1] == state("position", tuple(range(rows)))


def test_a_run_deleted_at_the_same_moment_leaves_nothing(opened: Callable[..., Store]) -> None:
    one, two = opened(), opened()
    for _ in range(5):
        run = new_run(one)
        count_one(one, batch(run, "a", range(4)))
        count_one(two, batch(run, "b", range(4, 8)))
        deleted, counted, made = at_once(
            lambda: one.delete("", "r"),
            lambda run=run: count_one(two, batch(run, "c", range(8, 12))),
            lambda: opened().create("", "r", document(), "d")[0],
        )
        assert deleted is None
        assert isinstance(counted, dict | UnknownRun), counted
        if made["id"] != run:
            assert two.find("", "r")["rows"] == 0
            two.delete("", "r")
        for store in (one, two):
            while store.tidy():
                pass
    left = one._run(lambda c: [c.exec_driver_sql(f"SELECT count(*) FROM {t}").scalar() for t in ("batches", "states")])
    assert left == [0, 0]


def test_an_owner_has_no_more_runs_than_it_may_at_the_same_moment(opened: Callable[..., Store]) -> None:
    stores = [opened(runs_per_key=3) for _ in range(3)]
    for k in range(4):
        names = [f"{k}-{n}" for n in range(3)]
        found = at_once(
            *(lambda s=s, n=n: [new_run(s, f"{n}-{i}") for i in range(2)] for s, n in zip(stores, names, strict=True))
        )
        assert any(isinstance(each, QuotaExceeded) for each in found)
        runs = stores[0].list("")["runs"]
        assert len(runs) == 3
        for run in runs:
            stores[0].delete("", run["name"])


def test_a_definition_is_put_while_another_recorder_deletes_the_run(opened: Callable[..., Store]) -> None:
    one, two = opened(), opened()
    for k in range(12):
        new_run(one)
        made, _ = at_once(
            lambda k=k: two.create("", "r", document(tags={"k": str(k)}), "d"), lambda: one.delete("", "r")
        )
        assert isinstance(made, tuple), made
        if made[1]:
            one.delete("", "r")


# One after the other


def test_a_recorder_reads_only_what_another_one_counted_since(
    opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = opened(), opened()
    for identity in ("position", "id", "batch"):
        run = new_run(one, identity, identity)
        for k in range(6):
            count_one((one, two)[k % 2], batch(run, f"b{k}", range(4 * k, 4 * k + 4), identity))
            if k == 1:
                monkeypatch.delattr("lossd.recorder.folding.described")
        if identity != "batch":
            for store in (one, two):
                with pytest.raises(DuplicateRows, match=r"\(counted with b4, b5\)"):
                    count_one(store, batch(run, "x", range(19, 22), identity))
        monkeypatch.undo()


def test_commits_that_a_failover_loses_are_not_remembered(
    opened: Callable[..., Store], postgresql: PostgreSQL, url: str
) -> None:
    """A standby without the last commits becomes the primary: what was counted after them is judged without them."""
    one, two = opened(), opened()
    run = new_run(one)
    count_one(one, batch(run, "a", range(4)))
    with psycopg.connect(url) as connection:
        before = connection.execute("SELECT * FROM runs").fetchone()
    count_one(one, batch(run, "lost", range(4, 8)))
    assert one.merged(run)[1] == state("position", tuple(range(8)))
    with psycopg.connect(url) as connection:
        for table in ("batches", "states"):
            connection.execute(f"DELETE FROM {table} WHERE ordinal = 1")
        connection.execute("DELETE FROM runs")
        places = ", ".join(["%s"] * len(before))
        values = [psycopg.types.json.Json(v) if isinstance(v, dict) else v for v in before]
        connection.execute(f"INSERT INTO runs VALUES ({places})", values)
    end_sessions(postgresql)
    count_one(two, batch(run, "other", range(8, 12)))
    with pytest.raises(DuplicateRows):
        count_one(one, batch(run, "again", range(8, 12)))
    assert count_one(one, batch(run, "lost", range(4, 8)))["created"]
    assert one.merged(run)[1] == two.merged(run)[1] == state("position", tuple(range(12)))


def test_entries_are_unknown_after_a_service_of_an_earlier_version(opened: Callable[..., Store]) -> None:
    """During an update, a service of schema 0001 counts beside a new one, and knows no entries."""
    one = opened()
    run = new_run(one)
    assert one.find("", "r")["entries"] == 0
    assert count_one(one, batch(run, "a", range(4)))["counted"] == {"rows": 4, "entries": 4}
    count_one(opened(), batch(run, "b", range(4, 8)))
    assert one.list("")["runs"][0]["entries"] == one.merged(run)[0]["entries"] == 8
    one._run(lambda c: c.exec_driver_sql("UPDATE batches SET entries = NULL, total_entries = NULL WHERE ordinal = 1"))
    two = opened()
    for store, rows in ((two, range(8, 12)), (one, range(12, 16))):
        assert count_one(store, batch(run, str(rows), rows))["counted"]["entries"] == 4
        assert store.find("", "r")["entries"] is None


# When a recorder or a server is gone


def test_a_run_that_another_recorder_holds_does_not_keep_others_waiting(
    opened: Callable[..., Store], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCAL", database.LOCAL.replace("lock_timeout TO '3s'", "lock_timeout TO '200ms'"))
    store = opened()
    held, free = new_run(store, "held"), new_run(store, "free")
    with psycopg.connect(url) as other:
        other.execute("SELECT 1 FROM runs WHERE name = 'held' FOR UPDATE")
        outcomes = store.count([batch(run, "a", range(4)) for run in (held, free, held)])
        assert [isinstance(outcome, Unavailable) for outcome in outcomes] == [True, False, True]
        assert "another service holds the run" in str(outcomes[0])
        assert outcomes[1]["created"]
    gone = batch("no-such-run", "a", range(4))
    outcomes = store.count(
        [batch(held, "a", range(4)), gone, batch(free, "b", range(4, 8)), batch(held, "a", range(4))]
    )
    assert [isinstance(outcome, UnknownRun) for outcome in outcomes] == [False, True, False, False]
    assert [outcomes[k]["created"] for k in (0, 2, 3)] == [True, True, False]


def test_the_server_frees_what_a_recorder_that_is_gone_holds(opened: Callable[..., Store]) -> None:
    store = opened()
    names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
    settings = [store._run(lambda c, n=name: c.exec_driver_sql(f"SHOW {n}").scalar()) for name in names]
    assert settings == ["3s", "30s", "15s"]
    assert "SET LOCAL tcp_user_timeout TO '10s'" in database.LOCAL


def test_no_lock_is_held_while_states_are_merged(opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = opened(), opened()
    run = new_run(one)
    for k in range(4):
        count_one(one, batch(run, f"b{k}", range(4 * k, 4 * k + 4)))
    monkeypatch.setattr(folding, "PENDING", 4)
    merged, counted = folding.merged, []

    def counting_meanwhile(stored: Any) -> Any:
        k = 4 + len(counted)
        counted.append(count_one(two, batch(run, f"b{k}", range(4 * k, 4 * k + 4))))
        return merged(stored)

    monkeypatch.setattr(folding, "merged", counting_meanwhile)
    record, data = one.merged(run)
    assert (record["rows"], data) == (16, state("position", tuple(range(16)))), "the state is that of the record"
    one.retire()
    one.tidy()
    with pytest.raises(Conflict, match="changed while its result was computed"):
        opened().seal(run, two.find("", "r")["revision"], None, {}, {})
    monkeypatch.undo()
    assert len(counted) == 3
    assert [store.merged(run)[1] for store in (one, two, opened())] == [state("position", tuple(range(28)))] * 3
    states = one._run(lambda c: c.exec_driver_sql("SELECT ordinal, batches FROM states ORDER BY ordinal").all())
    assert [tuple(row) for row in states] == [(0, 5), (5, 1), (6, 1)], "batches counted meanwhile are folded later"


def test_what_a_recorder_that_is_gone_left_is_done_by_another(
    opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "PENDING", 4)
    two, one = opened(), opened()
    run, deleted = new_run(one), new_run(one, "deleted")
    count_one(one, batch(deleted, "a", range(4)))
    for k in range(4):
        count_one(one, batch(run, f"b{k}", range(4 * k, 4 * k + 4)))
    one.delete("", "deleted")
    one.close()
    two.retire()
    while two.tidy():
        pass
    left = two._run(lambda c: [c.exec_driver_sql(f"SELECT count(*) FROM {t}").scalar() for t in ("runs", "states")])
    assert left == [1, 1]


def test_a_server_that_became_a_standby_is_left(opened: Callable[..., Store], postgresql: PostgreSQL) -> None:
    """As behind an address that follows the primary while connections to the former one live on."""
    store = opened()
    run = new_run(store)
    store._run(lambda c: c.exec_driver_sql("SET SESSION default_transaction_read_only = on"))
    assert count_one(store, batch(run, "a", range(4)))["created"], "a new connection reaches the primary"
    postgresql.ask("ALTER ROLE lossd SET default_transaction_read_only = on")
    try:
        store._run(lambda c: c.exec_driver_sql("SET SESSION default_transaction_read_only = on"))
        with pytest.raises((StoreError, Unavailable), match="read-only, a standby perhaps"):
            count_one(store, batch(run, "b", range(4, 8)))
    finally:
        with psycopg.connect(postgresql.url(), autocommit=True) as connection:
            connection.execute("SET SESSION default_transaction_read_only = off")
            connection.execute("ALTER ROLE lossd RESET default_transaction_read_only")
    end_sessions(postgresql)
    assert count_one(store, batch(run, "b", range(4, 8)))["created"]


@pytest.mark.parametrize("servers", ["{folder}/no,{folder}", "/x/no:1,{folder}"], ids=["without ports", "with a port"])
def test_several_servers_are_named_as_libpq_takes_them(postgresql: PostgreSQL, url: str, servers: str) -> None:
    schema = url.rpartition("%3D")[2]
    hosts = servers.format(folder=str(postgresql.folder)).replace("/", "%2F")
    store = Store(f"postgresql://lossd@{hosts}/postgres?options=-csearch_path%3D{schema}", Limits())
    store.open()
    assert (
        store._run(lambda c: c.connection.dbapi_connection.info.get_parameters())["target_session_attrs"]
        == "read-write"
    )
    store.close()
    with pytest.raises(StoreError, match="cannot be read; write postgresql://"):
        Store("postgresql://lossd@a:b/c")


def test_without_a_server_the_store_must_be_opened_again(postgresql: PostgreSQL) -> None:
    """The recorder then refuses requests at once: each of them would wait for a connection of its own."""
    store = Store(postgresql.url().replace("lossd-pg-", "no-lossd-pg-"))
    with pytest.raises(StoreError, match="does not answer"):
        store.find("", "r")
