"""Lists of runs: filters, order by numbers of the result, and pages."""

from __future__ import annotations

import base64
import random
from itertools import product
from typing import Any

import pytest

from lossd.recorder import listing
from lossd.recorder.store import Store
from lossd_client.errors import InvalidRequest
from recorder.conftest import Clock
from recorder.reports import batch, count_one, document


def names(store: Store, owner: str = "", **filters: Any) -> list[str]:
    """The names on all pages, in their order."""
    found: list[str] = []
    after = None
    while True:
        page = store.list(owner, after=after, **filters)
        found += [run["name"] for run in page["runs"]]
        if (after := page["next"]) is None:
            return found


def run(store: Store, name: str, summary: dict[str, float] | None = None, owner: str = "", **fields: Any) -> None:
    made = store.create(owner, name, document(**fields), "d")[0]["id"]
    if summary is not None:
        count_one(store, batch(made, "a", range(4)))
        store.seal(made, store.merged(made)[0]["revision"], None, {}, summary)


def test_a_list_has_ones_own_runs_and_public_ones(store: Store) -> None:
    run(store, "mine", owner="ann")
    run(store, "hidden", owner="bob")
    run(store, "shown", owner="bob", public=True)
    assert sorted(names(store, "ann")) == ["mine", "shown"]
    assert sorted(names(store, "bob")) == ["hidden", "shown"]
    assert names(store, "carl") == ["shown"]


def test_filters(store: Store) -> None:
    run(store, "a", {}, dataset={"name": "mnist", "version": "1"}, tags={"commit": "4f", "who:": "x:y"})
    run(store, "b", dataset={"name": "mnist", "version": "2"}, tags={"commit": "5f"})
    run(store, "c", dataset={"name": "a@b"}, task="multiclass", tags={'"quoted"\\ $.key é': "'"})
    assert names(store, dataset="mnist", sort="name") == ["a", "b"]
    assert names(store, dataset="mnist@2") == ["b"]
    assert names(store, dataset="a@b") == ["c"]
    assert names(store, dataset="mnist@") == []
    assert names(store, task="multiclass") == ["c"]
    assert names(store, status="sealed") == ["a"]
    assert names(store, status="open", sort="name") == ["b", "c"]
    assert names(store, tag="commit:5f") == ["b"]
    assert names(store, tag="commit:") == []
    assert names(store, tag='"quoted"\\ $.key é:\'') == ["c"]
    assert names(store, dataset="mnist", status="open", tag="commit:5f") == ["b"]


def test_what_cannot_be_read_is_pointed_at(store: Store) -> None:
    for name, value in (
        ("status", "deleted"),
        ("tag", "commit"),
        ("dataset", "a\0"),
        ("sort", "\0"),
        ("after", "x"),
        ("after", "W10"),
        ("after", "é"),
        ("after", "WyItY3JlYXRlZCIseyJhIjoxfSwieCJd"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            store.list("", **{name: value})
        assert [fault["pointer"] for fault in caught.value.errors] == [f"/{name}"], value


def test_a_cursor_that_somebody_made_up_is_refused(store: Store) -> None:
    for sort, place, last in (
        ("-created", "10" + "0" * 400, '"a"'),
        ("-created", "[]", '"a"'),
        ("-created", "1", '"\\ud800"'),
        ("-created", "1", '"\\u0000"'),
        ("-created", "1", "7"),
        ("name", '"\\ud800"', '"a"'),
        ("name", "1", '"a"'),
        ("name", "[" * 20_000, '"a"'),
    ):
        after = base64.urlsafe_b64encode(f'["{sort}",{place},{last}]'.encode()).decode().rstrip("=")
        with pytest.raises(InvalidRequest, match="pass the next of the page before"):
            store.list("", sort=sort, after=after)


def test_a_deleted_run_is_no_status_to_filter_by(store: Store) -> None:
    run(store, "a")
    store.delete("", "a")
    assert names(store) == []


def test_a_cursor_belongs_to_its_order(store: Store) -> None:
    for name in "abc":
        run(store, name)
    cursor = store.list("", sort="name", limit=1)["next"]
    with pytest.raises(InvalidRequest, match="with the same sort"):
        store.list("", sort="-name", limit=1, after=cursor)


def test_pages_of_equal_and_absent_numbers_neither_skip_nor_repeat(store: Store) -> None:
    chance = random.Random(1)
    scores: dict[str, float | None] = {}
    for k in range(9):
        scores[f"r{k}"] = score = chance.choice([None, 0.1, 0.1 + 2**-56, 1 / 3, 1, -2.5e-300])
        run(store, f"r{k}", None if score is None else {"f1.macro": score, "other": 1})
    scores["other"] = None
    run(store, "other", {"other": 1})

    def place(name: str, sign: int) -> tuple[bool, float]:
        return scores[name] is None, sign * (scores[name] or 0)

    for limit, (sort, sign) in product((1, 2, 3, 100), (("f1.macro", 1), ("-f1.macro", -1))):
        found = names(store, sort=sort, limit=limit)
        assert sorted(found) == sorted(scores)
        assert [place(name, sign) for name in found] == sorted(place(name, sign) for name in scores)


def test_orders_by_time_and_by_name(store: Store, clock: Clock) -> None:
    for name in ("b", "A", "a", "Z", "_"):
        clock.now += 1
        run(store, name)
    assert names(store, limit=2) == ["_", "Z", "a", "A", "b"], "the latest first"
    assert names(store, sort="created", limit=2) == ["b", "A", "a", "Z", "_"]
    assert names(store, sort="name", limit=2) == ["A", "Z", "_", "a", "b"], "by code points, on every database"
    assert names(store, sort="-name", limit=2) == ["b", "a", "_", "Z", "A"]
    clock.now += 1
    count_one(store, batch(store.find("", "A")["id"], "x", range(4)))
    assert names(store, sort="-touched", limit=2) == ["A", "_", "Z", "a", "b"]


def test_runs_that_come_and_go_between_pages_do_not_move_others(store: Store, clock: Clock) -> None:
    for k in range(8):
        clock.now += 1
        run(store, f"r{k}")
    first = store.list("", sort="created", limit=3)
    store.delete("", "r0")
    store.delete("", "r2")
    store.delete("", "r5")
    clock.now += 1
    run(store, "new")
    second = store.list("", sort="created", limit=10, after=first["next"])
    assert [entry["name"] for entry in second["runs"]] == ["r3", "r4", "r6", "r7", "new"]
    assert second["next"] is None


def test_a_page_of_long_definitions_has_fewer_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcdefg":
        run(store, name, tags={"why": name * (4000 if name in "be" else 1000)})
    monkeypatch.setattr(listing, "MOST_BYTES", 3500)
    pages: list[str] = []
    after = None
    while not pages or after:
        page = store.list("", sort="name", after=after)
        pages.append("".join(entry["name"] for entry in page["runs"]))
        after = page["next"]
    assert pages == ["a", "b", "cd", "e", "fg"], "as many as have room, and one that has none alone"
    assert names(store, sort="name", limit=1) == list("abcdefg")
