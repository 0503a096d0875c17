"""Counting: every name once, every row once, on both databases, whatever the order, the groups and the crashes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lossd.recorder import folding
from lossd.recorder.store import NewBatch, Store
from lossd.runs import encoding
from lossd.runs.state import RunState
from lossd_client.errors import (
    BatchConflict,
    Conflict,
    DefinitionChanged,
    DuplicateRows,
    Incomplete,
    InternalError,
    InvalidRequest,
    Problem,
    QuotaExceeded,
    RunSealed,
    StorageFull,
    UnknownRun,
)
from recorder.reports import batch, count_one, document, report, report_of, state

LENGTH = 4


@dataclass
class Model:
    """What the store must answer: a set of names and a set of rows for each run."""

    identity: str
    sealed: bool = False
    batches: dict[str, tuple[bytes, dict[str, Any]]] = field(default_factory=dict)
    counted: dict[int, str] = field(default_factory=dict)
    rows: int = 0

    def count(self, new: NewBatch, numbers: list[int]) -> dict[str, Any] | type[Problem]:
        if new.name in self.batches:
            digest, outcome = self.batches[new.name]
            return {**outcome, "created": False} if digest == new.report[:32] else BatchConflict
        if self.sealed:
            return RunSealed
        if self.identity != "batch" and any(number in self.counted for number in numbers):
            return DuplicateRows
        self.counted |= dict.fromkeys(numbers, new.name)
        self.rows += len(numbers)
        run = {"rows": self.rows, "batches": len(self.batches) + 1}
        outcome = {
            "batch": new.name,
            "created": True,
            "counted": {"rows": len(numbers), "entries": len(numbers)},
            "run": run,
        }
        self.batches[new.name] = new.report[:32], outcome
        return outcome


SENT = st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9), st.integers(1, LENGTH), st.integers(0, 1))
STEPS = st.one_of(
    st.lists(SENT, min_size=1, max_size=6),
    st.sampled_from(["tidy", "reopen", "seal 0", "seal 1", "delete 2", "fail"]),
)


class _Crash(Exception):  # noqa: N818  (no error of the store)
    """Ends a transaction before its commit."""


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=2, max_size=12))
def test_the_store_counts_as_a_set_of_names_and_rows_does(
    opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, steps: list[list[tuple[int, ...]] | str]
) -> None:
    """Three runs, one of each identity; batches of one call follow each other; folds come after three batches."""
    monkeypatch.setattr(folding, "PENDING", 3)
    tried = _Tried(opened)
    try:
        for step in steps:
            tried.do(step)
            tried.check()
    finally:
        tried.store.close()


class _Tried:
    """A store beside its model."""

    def __init__(self, opened: Callable[..., Store]) -> None:
        self.opened, self.store = opened, opened()
        self.models: dict[str, tuple[Model, str]] = {}
        for number in range(3):
            self.create(number)

    def create(self, number: int) -> None:
        identity, name = ("position", "id", "batch")[number], f"r{number}"
        with suppress(UnknownRun):
            self.store.delete("", name)
        record, created = self.store.create("", name, document(identity), "d")
        assert created
        self.models[name] = Model(identity), record["id"]

    def do(self, step: list[tuple[int, ...]] | str) -> None:
        if isinstance(step, list):
            self.count(step)
        elif step == "tidy":
            while self.store.tidy():
                pass
        elif step == "reopen":
            self.store.close()
            self.store = self.opened()
        elif step == "fail":
            _, run = self.models["r0"]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("lossd.recorder.faults.reach", _crash)
                with suppress(_Crash):  # a sealed run writes nothing
                    self.store.count([batch(run, "lost", list(range(1000, 1004)))])
        elif step.startswith("seal"):
            self.seal(f"r{step[-1]}")
        else:
            self.create(2)

    def count(self, step: list[tuple[int, ...]]) -> None:
        sent = []
        for number, name, block, length, content in step:
            model, run = self.models[f"r{number}"]
            numbers = list(range(block * LENGTH, block * LENGTH + length))
            if model.identity == "id":  # some of a neighbouring block too
                numbers = [2 * row for row in numbers]
            sent.append((model, batch(run, f"b{name}", numbers, model.identity, content), numbers))
        expected = [model.count(new, numbers) for model, new, numbers in sent]
        outcomes = self.store.count([new for _, new, _ in sent])
        for (model, _, numbers), want, found in zip(sent, expected, outcomes, strict=True):
            if isinstance(want, dict):
                assert found == want
            else:
                assert type(found) is want
            if isinstance(found, DuplicateRows):
                counted = sorted(row for row in numbers if row in model.counted)
                assert set(found.rows) <= set(counted)
                assert set(found.batches) == {model.counted[row] for row in found.rows}

    def seal(self, name: str) -> None:
        model, run = self.models[name]
        record, _ = self.store.merged(run)
        gaps = model.identity == "position" and sorted(model.counted) != list(range(model.rows))
        if not model.sealed and (gaps or not model.rows):
            with pytest.raises(Incomplete):
                self.store.seal(run, record["revision"], None, {}, {})
        else:
            model.sealed = True
            assert self.store.seal(run, record["revision"], None, {"x": 1}, {})["status"] == "sealed"

    def check(self) -> None:
        for name, (model, run) in self.models.items():
            record, data = self.store.merged(run)
            found = self.store.find("", name)
            assert found == record
            assert (found["rows"], found["batches"]) == (model.rows, len(model.batches))
            listed = {entry["name"]: entry["digest"] for entry in self.store.batches(run, None, 1000)["batches"]}
            assert listed == {key: digest.hex() for key, (digest, _) in model.batches.items()}
            if not model.batches:
                assert data == b""
            elif model.identity == "id":
                assert data == state("id", tuple(sorted(model.counted)))
            else:
                assert RunState.decode(data).rows == model.rows


def _crash(_point: str) -> None:
    raise _Crash


@pytest.mark.parametrize("identity", ["position", "id", "batch"])
def test_any_order_groups_folds_and_restarts_give_the_bytes_of_one_batch(
    opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, identity: str
) -> None:
    monkeypatch.setattr(folding, "PENDING", 5)
    chance = random.Random(1)
    store = opened()
    run = store.create("", "r", document(identity), "d")[0]["id"]
    bounds = sorted({0, 300, *(chance.randrange(300) for _ in range(60))})
    blocks = [range(first, stop) for first, stop in pairwise(bounds)]
    chance.shuffle(blocks)
    while blocks:
        some, blocks = blocks[:7], blocks[7:]
        outcomes = store.count([batch(run, f"b{rows[0]}", rows, identity) for rows in some])
        assert all(isinstance(outcome, dict) and outcome["created"] for outcome in outcomes)
        if chance.random() < 0.5:
            store.merged(run)
        if chance.random() < 0.5:
            store.tidy()
        if chance.random() < 0.3:
            store.close()
            store = opened()
    assert store.merged(run)[1] == state(identity, tuple(range(300)))


def test_a_repeated_batch_gets_its_first_answer_and_counts_once(store: Store) -> None:
    run = store.create("", "r", document(), "d")[0]["id"]
    first = count_one(store, batch(run, "a", range(4)))
    assert first == {
        "batch": "a",
        "created": True,
        "counted": {"rows": 4, "entries": 4},
        "run": {"rows": 4, "batches": 1},
    }
    count_one(store, batch(run, "b", range(4, 6)))
    assert count_one(store, batch(run, "a", range(4))) == {**first, "created": False}
    assert store.find("", "r")["rows"] == 6


def test_other_data_under_a_name_names_both_digests(store: Store) -> None:
    run = store.create("", "r", document(), "d")[0]["id"]
    first, second = report("position", range(4)), report("position", range(4), 1)
    count_one(store, NewBatch(run, "a", first, "cpu", "1"))
    with pytest.raises(BatchConflict, match=f"{first[:32].hex()}.*{second[:32].hex()}"):
        count_one(store, NewBatch(run, "a", second, "cpu", "1"))


def test_duplicate_rows_name_the_rows_and_their_batches(store: Store) -> None:
    run = store.create("", "r", document(), "d")[0]["id"]
    store.count([batch(run, "a", range(4)), batch(run, "b", range(4, 8)), batch(run, "c", range(20, 30))])
    with pytest.raises(DuplicateRows) as caught:
        count_one(store, batch(run, "x", range(2, 22)))
    assert caught.value.rows == [2, 3, 4, 5, 6, 7, 20, 21]
    assert caught.value.count == 8
    assert caught.value.batches == ["a", "b", "c"]
    assert "counted with a, b, c" in caught.value.detail
    assert store.find("", "r")["rows"] == 18


def test_duplicate_ids_name_their_batches_after_a_restart(opened: Callable[..., Store]) -> None:
    store = opened()
    run = store.create("", "r", document("id"), "d")[0]["id"]
    store.count([batch(run, "odd", range(1, 200, 2), "id"), batch(run, "even", range(0, 100, 2), "id")])
    store.close()
    store = opened()
    with pytest.raises(DuplicateRows) as caught:
        count_one(store, batch(run, "x", [-5, 44, 120, 151], "id"))
    assert (caught.value.rows, caught.value.batches) == ([44, 151], ["even", "odd"])


def test_a_batch_overlaps_one_of_the_same_call(store: Store) -> None:
    run = store.create("", "r", document("id"), "d")[0]["id"]
    one, two = store.count([batch(run, "a", [1, 2, 3], "id"), batch(run, "b", [3, 4], "id")])
    assert isinstance(one, dict)
    assert isinstance(two, DuplicateRows)
    assert (two.rows, two.batches) == ([3], ["a"])


def test_batches_that_do_not_add_up_are_refused(store: Store) -> None:
    run = store.create("", "r", document("batch"), "d")[0]["id"]
    count_one(store, batch(run, "a", range(4), "batch", task="multiclass", classes=3))
    with pytest.raises(InvalidRequest, match="3 classes, found 4"):
        count_one(store, batch(run, "b", range(4), "batch", task="multiclass", classes=4))
    with pytest.raises(InvalidRequest, match="another definition"):
        count_one(store, batch(run, "b", range(4), "batch"))
    assert store.find("", "r")["batches"] == 1


def test_a_batch_of_another_version_of_a_metric_is_refused(opened: Callable[..., Store]) -> None:
    store = opened()
    run = store.create("", "r", document("batch"), "d")[0]["id"]
    count_one(store, batch(run, "a", range(4), "batch"))
    described, parts, _ = encoding.decode(state("batch", (4, 5)))
    later = encoding.encode(encoding.text_of({**described, "metrics": {**described["metrics"], "auroc": 99}}), parts)
    report_of_later = report_of(b"x" * 32, 2, later)
    for _ in range(2):
        with pytest.raises(DefinitionChanged, match="start another run"):
            count_one(store, NewBatch(run, "b", report_of_later, "cpu", "2"))
        store.close()
        store = opened()
    assert count_one(store, batch(run, "b", range(4, 6), "batch"))["created"]


def test_a_report_that_contradicts_itself_is_refused(store: Store) -> None:
    run = store.create("", "r", document("position"), "d")[0]["id"]
    with pytest.raises(InternalError):
        count_one(store, batch(run, "a", range(4), "id"))
    whole = report("position", range(4))
    damaged = [b"", whole[:40], whole[:-3], whole[:32] + b"\x05" + whole[33:], whole[:60] + b"\0\0\0" + whole[63:]]
    for data in damaged:
        with pytest.raises(Problem):
            count_one(store, NewBatch(run, "a", data, "cpu", "1"))
    assert store.find("", "r")["batches"] == 0


def test_a_refused_batch_does_not_hurt_its_neighbours(store: Store) -> None:
    runs = [store.create("", name, document(), "d")[0]["id"] for name in ("r", "s")]
    sent = [batch(run, f"b{k}", range(4 * k, 4 * k + 4)) for k in range(3) for run in runs]
    sent.insert(2, batch("gone", "b", range(4)))
    sent.insert(4, batch(runs[0], "x", range(2, 4)))
    found = [type(outcome) for outcome in store.count(sent)]
    assert found == [dict, dict, UnknownRun, dict, DuplicateRows, dict, dict, dict]
    assert [store.find("", name)["rows"] for name in ("r", "s")] == [12, 12]


def test_thousands_of_names_are_looked_up_in_one_call(store: Store) -> None:
    run = store.create("", "r", document("batch"), "d")[0]["id"]
    data = report("batch", range(2))
    sent = [NewBatch(run, f"b{k}", data, "cpu", "1") for k in range(2500)]
    assert all(isinstance(outcome, dict) and outcome["created"] for outcome in store.count(sent))
    assert not any(isinstance(outcome, dict) and outcome["created"] for outcome in store.count(sent))
    assert store.find("", "r")["rows"] == 5000


def test_a_run_over_its_bytes_says_how_many_remain(opened: Callable[..., Store]) -> None:
    store = opened(run_bytes=2000)
    run = store.create("", "r", document(), "d")[0]["id"]
    outcomes = store.count([batch(run, f"b{k}", range(4 * k, 4 * k + 4)) for k in range(10)])
    assert isinstance(outcomes[0], dict)
    assert isinstance(outcomes[-1], QuotaExceeded)
    assert re.search(r"the run r may have 2000 bytes; \d+ are used, \d+ remain", outcomes[-1].detail)
    assert 0 < store.find("", "r")["bytes"] <= 2000


def test_an_owner_over_its_bytes_frees_them_by_deleting(opened: Callable[..., Store]) -> None:
    store = opened(runs_bytes_per_key=4000)
    runs = [store.create("ann", name, document(), "d")[0]["id"] for name in ("r", "s")]
    other = store.create("bob", "r", document(), "d")[0]["id"]
    sent = [batch(run, f"b{k}", range(4 * k, 4 * k + 4)) for k in range(10) for run in runs]
    outcomes = [store.count([new])[0] for new in sent]
    assert isinstance(outcomes[0], dict)
    assert isinstance(outcomes[-1], QuotaExceeded)
    assert "your runs together may have 4000 bytes" in outcomes[-1].detail
    count_one(store, batch(other, "b", range(4)))
    store.delete("ann", "s")
    count_one(store, batch(runs[0], "more", range(1000, 1004)))


def test_a_sealed_run_counts_nothing_more(store: Store) -> None:
    run = store.create("", "r", document(), "d")[0]["id"]
    first = count_one(store, batch(run, "a", range(4)))
    store.seal(run, store.merged(run)[0]["revision"], 4, {}, {})
    assert count_one(store, batch(run, "a", range(4))) == {**first, "created": False}
    with pytest.raises(RunSealed):
        count_one(store, batch(run, "b", range(4, 8)))
    with pytest.raises(BatchConflict):
        count_one(store, batch(run, "a", range(4), content=1))


def test_recorders_that_share_a_database_count_each_row_once(url: str, opened: Callable[..., Store]) -> None:
    if not url.startswith("postgresql"):
        pytest.skip("one recorder has an SQLite file")
    one, two = opened(), opened()
    run = one.create("", "r", document(), "d")[0]["id"]
    for k in range(20):
        store, other = (one, two) if k % 3 else (two, one)
        assert count_one(store, batch(run, f"b{k}", range(4 * k, 4 * k + 4)))["created"]
        assert not count_one(other, batch(run, f"b{k}", range(4 * k, 4 * k + 4)))["created"]
        with pytest.raises(DuplicateRows):
            count_one(other, batch(run, f"x{k}", range(4 * k + 3, 4 * k + 5)))
        if k % 4 == 0:
            assert one.merged(run)[1] == two.merged(run)[1] == state("position", tuple(range(4 * k + 4)))
    record, _ = one.merged(run)
    two.seal(run, record["revision"], None, {}, {})
    with pytest.raises(Conflict):
        count_one(one, batch(run, "late", range(80, 84)))


def test_a_full_disk_counts_nothing_and_is_over_when_there_is_room(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    store.open()
    run = store.create("", "r", document(), "d")[0]["id"]
    count_one(store, batch(run, "a", range(4)))
    store._run(lambda c: c.exec_driver_sql("PRAGMA max_page_count = 1").close())  # the size it has
    k = 0
    with suppress(StorageFull):
        while k < 400:
            k += 1
            store.count([batch(run, f"b{k}", range(4 * k, 4 * k + 4))])
    assert store.find("", "r")["batches"] == k
    with pytest.raises(StorageFull, match="no room"):
        store.count([batch(run, f"b{k}", range(4 * k, 4 * k + 4))])
    store._run(lambda c: c.exec_driver_sql("PRAGMA max_page_count = 1000000").close())
    assert count_one(store, batch(run, f"b{k}", range(4 * k, 4 * k + 4)))["created"]
    assert store.merged(run)[1] == state("position", tuple(range(4 * k + 4)))
    store.close()


def test_a_commit_takes_six_statements_and_unpacks_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "runs.db"))
    store.open()
    run = store.create("", "r", document(), "d")[0]["id"]
    count_one(store, batch(run, "a", range(4)))
    second, third = batch(run, "b", range(4, 8)), batch(run, "c", range(8, 12))
    statements: list[str] = []
    store._run(lambda connection: connection.connection.dbapi_connection.set_trace_callback(statements.append))
    statements.clear()
    monkeypatch.delattr("zlib.decompress")
    store.count([second, third])
    kinds = [text.split(" ", 1)[0].strip() for text in statements]
    assert kinds == ["BEGIN", "SELECT", "SELECT", *["INSERT"] * 3, "UPDATE", "COMMIT"], "one row has both states"
    (update,) = (text for text in statements if text.startswith("UPDATE"))
    assert "common" not in update, "what all batches have in common is written once"
    monkeypatch.undo()
    assert store.merged(run)[1] == state("position", tuple(range(12)))
    store.close()
