"""Runs are copied from one database to another with all that they have counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lossd.cli import main
from lossd.recorder.copying import copy
from lossd.recorder.database import StoreError
from lossd.recorder.store import NewBatch, Store
from lossd.runs.definition import RunDocument
from lossd.runs.run import Run
from recorder.reports import report_of

DOCUMENT = RunDocument.parse({"task": "binary", "metrics": {"names": ["accuracy"]}, "identity": "position"})


def report(first: int, seed: int = 0) -> bytes:
    """Return what a worker reports of two rows."""
    numbers = np.random.default_rng(seed)
    run = Run(task="binary", metrics={"names": ["accuracy"]}, identity="position")
    run.add(numbers.standard_normal(2), numbers.integers(0, 2, 2), first=first)
    return report_of(bytes([seed]) * 32, 2, run.state())


def filled(path: Path | str, names: dict[tuple[str, str], int]) -> dict[tuple[str, str], tuple[dict[str, Any], bytes]]:
    """Make a database with runs of so many batches; return each record and merged state."""
    store = Store(str(path))
    store.open()
    found = {}
    for (owner, name), count in names.items():
        record, _ = store.create(owner, name, DOCUMENT.to_dict(), DOCUMENT.digest)
        for index in range(count):
            outcome = store.count([NewBatch(record["id"], f"b{index}", report(2 * index, index % 7), "cpu", "1")])
            assert isinstance(outcome[0], dict), outcome
        found[owner, name] = store.merged(record["id"])
    store.close()
    return found


def kept(path: Path | str) -> dict[tuple[str, str], tuple[dict[str, Any], bytes]]:
    store = Store(str(path))
    store.open()
    runs = store.list("a")["runs"] + store.list("b")["runs"]
    found = {(r["owner"], r["name"]): store.merged(store.find(r["owner"], r["name"])["id"]) for r in runs}
    store.close()
    return found


def test_a_copy_has_every_run_and_counts_what_comes_next(tmp_path: Path, url: str) -> None:
    before = filled(tmp_path / "from.db", {("a", "one"): 5, ("a", "two"): 0, ("b", "one"): 3})
    copied = list(copy(str(tmp_path / "from.db"), url))
    assert {(run.owner, run.name, run.batches, run.before) for run in copied} == {
        ("a", "one", 5, False), ("a", "two", 0, False), ("b", "one", 3, False),
    }  # fmt: skip
    assert kept(url) == before == kept(tmp_path / "from.db")
    store = Store(url)
    store.open()
    run = before["a", "one"][0]["id"]
    [again, new] = store.count(
        [NewBatch(run, "b4", report(8, 4), "cpu", "1"), NewBatch(run, "b5", report(10, 5), "cpu", "1")]
    )
    assert isinstance(again, dict)
    assert isinstance(new, dict)
    assert (again["created"], new["created"], new["run"]) == (False, True, {"rows": 12, "batches": 6})
    store.close()


def test_a_second_copy_goes_on(tmp_path: Path, url: str) -> None:
    filled(tmp_path / "from.db", {("a", "one"): 2, ("b", "two"): 1})
    copies = copy(str(tmp_path / "from.db"), url)
    next(copies)
    copies.close()  # interrupted
    found = list(copy(str(tmp_path / "from.db"), url))
    assert sorted(run.before for run in found) == [False, True]
    assert kept(url) == kept(tmp_path / "from.db")


def test_a_run_of_the_same_name_is_not_overwritten(tmp_path: Path, url: str) -> None:
    filled(tmp_path / "from.db", {("a", "one"): 2})
    other = filled(url, {("a", "one"): 1})
    with pytest.raises(StoreError, match="both databases have a run one of a; delete one of them"):
        list(copy(str(tmp_path / "from.db"), url))
    assert kept(url) == other


def test_the_command_says_what_it_copied(tmp_path: Path, url: str) -> None:
    filled(tmp_path / "from.db", {("a", "one"): 2})
    command = ["runs", "copy", str(tmp_path / "from.db"), url]
    assert CliRunner().invoke(main, command).stderr.endswith("one: 2 batches\n1 run copied\n")
    assert CliRunner().invoke(main, command).stderr.endswith("0 runs copied, 1 copied before\n")
    refused = CliRunner().invoke(main, ["runs", "copy", "mysql://x/y", url])
    assert refused.exit_code == 2
    assert "mysql:// is not a database of lossd" in refused.stderr
