"""Runs in the store: create, find, seal, delete, retention and quotas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lossd.recorder import folding
from lossd.recorder.store import Store
from lossd.runs.state import RunState
from lossd_client.errors import (
    Conflict,
    DefinitionChanged,
    DuplicateRows,
    Incomplete,
    InternalError,
    InvalidRequest,
    OtherTargets,
    QuotaExceeded,
    RunDiffers,
    RunSealed,
    UnknownBatch,
    UnknownRun,
)
from recorder.conftest import Clock
from recorder.reports import batch, count_one, document, state

DAY = 86400


def sealed(store: Store, run: str, rows: int | None = None, **summary: float) -> dict[str, Any]:
    record, _ = store.merged(run)
    return store.seal(run, record["revision"], rows, {"metrics": {"accuracy": 0.5}}, summary)


# Creating and finding


def test_creating_again_opens_the_same_run(store: Store, clock: Clock) -> None:
    body = document(dataset={"name": "mnist", "version": "2", "rows": 10}, tags={"commit": "4f1c"})
    record, created = store.create("ann", "r", body, "d" * 64)
    assert created
    assert record["document"] == body
    assert {name: record[name] for name in ("owner", "name", "status", "task", "dataset", "dataset_version")} == {
        "owner": "ann", "name": "r", "status": "open", "task": "binary", "dataset": "mnist", "dataset_version": "2"
    }  # fmt: skip
    assert (record["rows"], record["batches"], record["bytes"], record["revision"]) == (0, 0, 0, 0)
    assert record["created"] == record["touched"] == clock.now
    clock.now += 5
    assert store.create("ann", "r", body, "d" * 64) == (record, False)


def test_creating_again_sets_tags_and_public(store: Store) -> None:
    store.create("ann", "r", document(tags={"a": "1"}), "d")
    record, created = store.create("ann", "r", document(tags={"b": "2"}, public=True), "d")
    assert (created, record["tags"], record["public"]) == (False, {"b": "2"}, True)
    assert record["document"]["tags"] == {"b": "2"}
    assert record["revision"] == 1, "an ETag of the run must change"
    assert store.find("bob", "r")["tags"] == {"b": "2"}


def test_another_definition_is_named_field_by_field(store: Store) -> None:
    store.create("", "r", document(dataset={"rows": 10}, **{"a/b": 1}), "d")
    with pytest.raises(RunDiffers) as caught:
        store.create("", "r", document("id", dataset={"rows": 11}, **{"a/b": 2}), "e")
    assert sorted(caught.value.fields) == ["/a~1b", "/dataset/rows", "/identity"]
    assert all(field in caught.value.detail for field in caught.value.fields)


def test_an_equal_document_of_another_digest_has_changed_metrics(store: Store) -> None:
    store.create("", "r", document(), "d")
    with pytest.raises(DefinitionChanged):
        store.create("", "r", document(tags={"x": "y"}), "e")


def test_owners_have_names_of_their_own(store: Store) -> None:
    mine, _ = store.create("ann", "r", document(), "d")
    theirs, created = store.create("bob", "r", document("id"), "e")
    assert created
    assert store.find("ann", "r")["id"] == mine["id"]
    assert store.find("bob", "r")["id"] == theirs["id"]
    for owner in ("", "carl"):
        with pytest.raises(UnknownRun):
            store.find(owner, "r")
    with pytest.raises(UnknownRun):
        store.find("ann", "r", "bob")
    with pytest.raises(UnknownRun):
        store.delete("carl", "r")


def test_a_public_run_is_found_behind_ones_own(store: Store, clock: Clock) -> None:
    theirs, _ = store.create("bob", "r", document(public=True), "d")
    clock.now += 1
    store.create("carl", "r", document(public=True), "d")
    assert store.find("ann", "r")["id"] == theirs["id"], "the oldest"
    mine, _ = store.create("ann", "r", document(), "d")
    assert store.find("ann", "r")["id"] == mine["id"]
    assert store.find("ann", "r", "bob")["id"] == theirs["id"]


@pytest.mark.parametrize("body", [document(tags={"a\0": "b"}), document(dataset={"name": "a\0"})])
def test_a_nul_character_is_refused_because_postgresql_cannot_keep_it(store: Store, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="NUL"):
        store.create("", "r", body, "d")


def test_an_owner_has_as_many_runs_as_it_may(opened: Callable[..., Store]) -> None:
    store = opened(runs_per_key=2)
    for name in ("a", "b"):
        store.create("ann", name, document(), "d")
    with pytest.raises(QuotaExceeded, match="you may have 2 runs, and have 2"):
        store.create("ann", "c", document(), "d")
    store.create("ann", "a", document(), "d")
    store.create("bob", "c", document(), "d")
    store.delete("ann", "a")
    store.create("ann", "c", document(), "d")


# Sealing


def test_sealing_keeps_the_result_and_may_be_repeated(opened: Callable[..., Store], clock: Clock) -> None:
    store = opened()
    run = store.create("", "r", document(), "d")[0]["id"]
    store.count([batch(run, f"b{k}", range(4 * k, 4 * k + 4)) for k in range(5)])
    clock.now += 7
    record = sealed(store, run, 20, **{"f1.macro": 0.5, "nothing": math.nan, "all": math.inf})
    assert (record["status"], record["sealed"], record["rows"]) == ("sealed", clock.now, 20)
    assert record["result"] == {"metrics": {"accuracy": 0.5}}
    assert record["summary"] == {"f1.macro": 0.5}
    clock.now += 1
    assert store.seal(run, 0, 20, {"other": 1}, {}) == store.seal(run, 0, None, {}, {}) == record
    with pytest.raises(RunSealed, match="20 rows, not 21"):
        store.seal(run, 0, 21, {}, {})
    assert "result" not in store.list("")["runs"][0]
    store.close()
    store = opened()
    assert store.find("", "r") == store.merged(run)[0] == record
    assert store.merged(run)[1] == state("position", tuple(range(20)))


def test_a_result_of_an_earlier_revision_is_not_kept(store: Store) -> None:
    run = store.create("", "r", document(), "d")[0]["id"]
    count_one(store, batch(run, "a", range(4)))
    record, _ = store.merged(run)
    count_one(store, batch(run, "b", range(4, 8)))
    with pytest.raises(Conflict, match=r"^the run changed") as caught:
        store.seal(run, record["revision"], None, {}, {})
    assert type(caught.value) is Conflict
    assert sealed(store, run)["rows"] == 8


def test_missing_rows_are_ranges(store: Store) -> None:
    run = store.create("", "r", document(dataset={"rows": 40}), "d")[0]["id"]
    with pytest.raises(Incomplete, match="no row was counted"):
        sealed(store, run)
    store.count([batch(run, "a", range(4, 8)), batch(run, "b", range(12, 36))])
    with pytest.raises(Incomplete, match="28 of 40 rows: the rows 0 to 3, 8 to 11, 36 to 39 are missing") as caught:
        sealed(store, run)
    found = caught.value
    assert (found.expected, found.counted, found.missing) == (40, 28, [[0, 4], [8, 12], [36, 40]])
    assert store.find("", "r")["status"] == "open"
    store.count([batch(run, "c", range(4)), batch(run, "d", range(8, 12))])
    with pytest.raises(Incomplete, match="there are more than the data set has"):
        sealed(store, run, 32)
    assert sealed(store, run, 36)["rows"] == 36, "the seal's number counts"


@pytest.mark.parametrize("identity", ["id", "batch"])
def test_without_positions_the_number_of_rows_counts(store: Store, identity: str) -> None:
    run = store.create("", "r", document(identity), "d")[0]["id"]
    count_one(store, batch(run, "a", range(1000, 1004), identity))
    with pytest.raises(Incomplete, match="4 of 5 rows: 1 are missing"):
        sealed(store, run, 5)
    assert sealed(store, run)["rows"] == 4


def test_consecutive_ids_tell_which_are_missing(store: Store) -> None:
    run = store.create("", "r", document("id"), "d")[0]["id"]
    count_one(store, batch(run, "a", [0, 1, 4], "id"))
    with pytest.raises(Incomplete) as caught:
        sealed(store, run, 6)
    assert caught.value.missing == [[2, 4], [5, 6]]


def test_other_targets_than_the_definition_names_are_not_sealed(store: Store) -> None:
    right = RunState.decode(state("position", tuple(range(8)))).targets
    run = store.create("", "r", document(dataset={"targets": right}), "d")[0]["id"]
    count_one(store, batch(run, "a", range(4)))
    wrong = RunState.decode(state("position", tuple(range(4)))).targets
    with pytest.raises(OtherTargets, match=f"{wrong}.*{right}"):
        sealed(store, run)
    count_one(store, batch(run, "b", range(4, 8)))
    assert sealed(store, run)["status"] == "sealed"


# Deleting


def test_a_deleted_run_is_gone_at_once_and_its_rows_later(
    opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossd.recorder.store.PIECE", 3)
    store = opened()
    run = store.create("", "r", document(), "d")[0]["id"]
    store.count([batch(run, f"b{k}", range(4 * k, 4 * k + 4)) for k in range(8)])
    store.delete("", "r")
    with pytest.raises(UnknownRun):
        store.find("", "r")
    with pytest.raises(UnknownRun):
        store.merged(run)
    with pytest.raises(UnknownRun):
        store.batches(run)
    with pytest.raises(UnknownBatch):
        store.batch(run, "b0")
    with pytest.raises(UnknownRun):
        store.seal(run, 1, None, {}, {})
    with pytest.raises(UnknownRun):
        store.delete("", "r")
    assert isinstance(store.count([batch(run, "b0", range(4))])[0], UnknownRun)
    assert store.list("")["runs"] == []
    again = store.create("", "r", document(), "d")[0]["id"]
    count_one(store, batch(again, "b0", range(4)))
    assert store.tidy()
    store.close()
    store = opened()
    assert store.tidy()
    assert not store.tidy()
    assert _tables(store, run) == (0, 0, 0)
    assert store.merged(again)[1] == state("position", tuple(range(4)))


def test_a_deleted_run_that_was_folded_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "PENDING", 3)
    monkeypatch.setattr("lossd.recorder.store.PIECE", 2)
    run = store.create("", "r", document(), "d")[0]["id"]
    store.count([batch(run, f"b{k}", range(4 * k, 4 * k + 4)) for k in range(7)])
    assert not store.tidy()
    count_one(store, batch(run, "last", range(1000, 1004)))
    store.delete("", "r")
    while store.tidy():
        pass
    assert _tables(store, run) == (0, 0, 0)


def _tables(store: Store, run: str) -> tuple[int, ...]:
    """How many rows of a run each table has."""
    queries = [f"SELECT count(*) FROM {table} WHERE run = '{run}'" for table in ("batches", "states")]
    queries.append(f"SELECT count(*) FROM runs WHERE id = '{run}'")
    return tuple(int(store._run(lambda c, q=query: c.exec_driver_sql(q).scalar())) for query in queries)


def test_runs_end_after_their_time(opened: Callable[..., Store], clock: Clock) -> None:
    store = opened(keep_open_days=30, keep_days=100)
    runs = {name: store.create("", name, document(), "d")[0]["id"] for name in ("idle", "busy", "sealed")}
    count_one(store, batch(runs["sealed"], "a", range(4)))
    sealed(store, runs["sealed"])
    clock.now += 29 * DAY
    count_one(store, batch(runs["busy"], "a", range(4)))
    assert store.retire() == 0
    clock.now += 2 * DAY
    assert store.retire() == 1
    assert sorted(run["name"] for run in store.list("")["runs"]) == ["busy", "sealed"]
    clock.now += 100 * DAY
    assert store.retire() == 2
    assert store.retire() == 0
    while store.tidy():
        pass
    assert _tables(store, runs["sealed"]) == (0, 0, 0)


def test_runs_are_kept_without_a_limit(opened: Callable[..., Store], clock: Clock) -> None:
    store = opened(keep_open_days=None)
    store.create("", "r", document(), "d")
    clock.now += 10_000 * DAY
    assert store.retire() == 0


# Folding


def test_folding_keeps_the_state_and_frees_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "PENDING", 16)
    run = store.create("", "r", document(), "d")[0]["id"]
    for k in range(100):
        count_one(store, batch(run, f"b{k}", range(4 * k, 4 * k + 4)))
        while store.tidy():
            pass
    assert _tables(store, run)[1] < 16 + 8, "100 batches are a few states"
    record, data = store.merged(run)
    assert data == state("position", tuple(range(400)))
    stored = store._run(lambda c: c.exec_driver_sql(f"SELECT sum(nbytes) FROM states WHERE run = '{run}'").scalar())
    batches = 100 * 256 + sum(len(f"b{k}") for k in range(100))
    assert record["bytes"] == int(stored) + batches


def test_a_fold_that_was_due_before_a_restart_is_made_after_it(
    opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "PENDING", 3)
    store = opened()
    run = store.create("", "r", document(), "d")[0]["id"]
    store.count([batch(run, f"b{k}", range(4 * k, 4 * k + 4)) for k in range(3)])
    store.close()
    store = opened()
    assert not store.tidy()
    assert _tables(store, run) == (3, 1, 1)


def test_a_damaged_state_does_not_keep_others_from_being_folded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "PENDING", 2)
    runs = [store.create("", name, document(), "d")[0]["id"] for name in "ab"]
    for run in runs:
        for k in range(2):
            store.count([batch(run, f"b{k}", range(4 * k, 4 * k + 4))])
    damage = f"UPDATE states SET state = batches.digest FROM batches WHERE states.run = '{runs[0]}'"
    store._run(lambda c: c.exec_driver_sql(damage).close())
    with pytest.raises(InternalError, match="damaged"):
        store.tidy()
    assert not store.tidy()
    assert (_tables(store, runs[0])[1], _tables(store, runs[1])[1]) == (2, 1)


def test_many_runs_share_little_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossd.recorder.counting.MOST_KNOWN", 2)
    monkeypatch.setattr("lossd.recorder.counting.IDENTITY_BYTES", 0)
    monkeypatch.setattr("lossd.recorder.states.MERGED_BYTES", 0)
    runs = [store.create("", f"r{k}", document("id"), "d")[0]["id"] for k in range(4)]
    for block in range(3):
        store.count([batch(run, f"b{block}", range(4 * block, 4 * block + 4), "id") for run in runs])
        for run in runs:
            assert store.merged(run)[1] == state("id", tuple(range(4 * block + 4)))
            with pytest.raises(DuplicateRows):
                count_one(store, batch(run, "again", [4 * block], "id"))
    assert len(store._counter._known) == len(store._states._known) == 1


def test_batches_are_listed_as_they_were_counted(store: Store, clock: Clock) -> None:
    run = store.create("", "r", document(), "d")[0]["id"]
    names = [f"{9 - k}" for k in range(7)]
    for k, name in enumerate(names):
        clock.now += 1
        count_one(store, batch(run, name, range(4 * k, 4 * k + 4)))
    found, after = [], None
    while True:
        page = store.batches(run, after, 3)
        found += page["batches"]
        if (after := page["next"]) is None:
            break
    assert [entry["name"] for entry in found] == names
    assert [entry["counted_at"] for entry in found] == [clock.now - 6 + k for k in range(7)]
    assert found[2] == store.batch(run, "7")
    expected = {"name": "7", "rows": 4, "first": 8, "last": 11, "device": "cpu", "build": "1.0"}
    assert {name: found[2][name] for name in expected} == expected
    assert found[2]["run"] == {"rows": 12, "batches": 3}
    for wrong in ("x", "-1", "٣", "9" * 30):
        with pytest.raises(InvalidRequest, match="after"):
            store.batches(run, wrong)


def test_a_summary_of_an_open_run_is_never_replaced_by_an_older_one(store: Store) -> None:
    run = store.create("", "r", document(), "d")[0]["id"]
    assert (store.find("", "r")["summary"], store.find("", "r")["summarized"]) == (None, None)
    for first in (0, 4):
        count_one(store, batch(run, f"b{first}", range(first, first + 4)))
    before = store.find("", "r")
    done = store.summarize(run, 8, 2, {"accuracy": 0.5, "auroc": math.nan, "loss": "Infinity"})
    assert (done["summary"], done["summarized"]) == ({"accuracy": 0.5}, {"rows": 8, "batches": 2})
    for rows, batches in ((4, 1), (8, 2), (12, 3)):  # one late, one twice, one of another run of that name
        assert store.summarize(run, rows, batches, {"accuracy": 0.25}) == done
    assert done == {**before, "summary": done["summary"], "summarized": done["summarized"]}, "nothing else changed"
    final = sealed(store, run, accuracy=0.75)
    assert (final["summary"], final["summarized"]) == ({"accuracy": 0.75}, {"rows": 8, "batches": 2})
    assert store.summarize(run, 8, 2, {"accuracy": 0.5})["summary"] == {"accuracy": 0.75}
    store.delete("", "r")
    with pytest.raises(UnknownRun):
        store.summarize(run, 8, 2, {})
