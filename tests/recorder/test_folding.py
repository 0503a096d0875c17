"""Folding: few states, each byte rewritten seldom, and the same state in the end."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from lossd import Run
from lossd.exact.sums import ExactSums
from lossd.recorder import folding
from lossd.recorder.folding import Covered, is_due, merged, oldest_to_fold
from lossd.runs import encoding
from lossd.runs.state import RunState
from lossd_client.errors import DuplicateRows, InternalError, InvalidRequest
from recorder.reports import state


@pytest.mark.parametrize("growth", [0.0, 0.5, 1.0])
def test_a_run_has_few_states_and_rewrites_few_bytes(growth: float) -> None:
    """States of 1000 bytes that grow with a power of their batches: 0 does not grow, 1 is never smaller together."""
    states: list[Covered] = []
    written = new = 0
    batches = 20_000
    for ordinal in range(batches):
        states.append(Covered(ordinal, 1, 1000))
        new += 1000
        if is_due(sum(state.batches == 1 for state in states), 0):
            start = oldest_to_fold(states, sum(state.batches for state in states if state.batches > 1))
            covered = ordinal + 1 - start
            states = [state for state in states if state.ordinal < start]
            states.append(Covered(start, covered, int(1000 * covered**growth)))
            written += states[-1].nbytes
    assert sum(state.batches for state in states) == batches
    folds = [state for state in states if state.batches > 1]
    assert len(folds) <= 1 + math.log2(batches / folding.PENDING)
    assert written <= new * (1 + math.log2(batches / folding.PENDING))


def test_what_is_due() -> None:
    assert is_due(256, 0)
    assert not is_due(255, (32 << 20) - 1)
    assert is_due(2, 32 << 20)
    assert not is_due(1, 64 << 20), "one state is a fold already"


def test_a_large_fold_stays_and_a_small_one_is_merged() -> None:
    singles = [Covered(500 + k, 1, 10) for k in range(4)]
    assert oldest_to_fold([Covered(0, 500, 80), *singles], 500) == 500
    assert oldest_to_fold([Covered(0, 500, 79), *singles], 500) == 0
    assert oldest_to_fold([Covered(0, 400, 10_000), Covered(400, 100, 70), *singles], 500) == 400


def test_states_of_commits_of_all_sizes_are_folded() -> None:
    """A row of many batches before one of few is no fold that stays."""
    rows = [Covered(500, 20, 2000), Covered(520, 1, 100), Covered(521, 3, 300)]
    assert oldest_to_fold([Covered(0, 500, 4800), *rows], 500) == 500
    assert oldest_to_fold([Covered(0, 500, 4799), *rows], 500) == 0


@pytest.mark.parametrize("identity", ["position", "id"])
def test_short_states_are_stored_joined_where_they_are_alike(identity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [tuple(range(3 * k, 3 * k + 3)) for k in range(12)]
    alike = [encoding.packed(state(identity, block)) for block in blocks]
    long = encoding.compressed(state(identity, tuple(range(100, 110))))
    other = encoding.packed(state(identity, (200, 201), task="multiclass"))
    states = [*alike[:5], long, *alike[5:7], other, other, *alike[7:]]
    monkeypatch.setattr(encoding, "MOST_JOINED", 4)
    found = list(encoding.joined(states))
    assert [len(some) for some, _ in found] == [4, 1, 1, 2, 2, 4, 1]
    assert [data for some, _ in found for data in some] == states
    for some, stored in found:
        assert encoding.each_unpacked(stored) == [encoding.unpacked(data) for data in some]
        assert len(stored) < sum(map(len, some)) or len(some) == 1
    whole = merged(stored for _, stored in encoding.joined(alike))
    assert whole.encode() == state(identity, tuple(range(36)))
    assert list(encoding.joined([])) == []


@pytest.mark.parametrize(("row", "row_bytes"), [(64, 1), (64, 1500), (3, 1 << 20), (64, 1 << 20)])
@pytest.mark.parametrize("identity", ["position", "id"])
def test_states_merge_to_the_bytes_of_all_rows_whatever_their_number(
    identity: str, row: int, row_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "ROW", row)
    monkeypatch.setattr(folding, "ROW_BYTES", row_bytes)
    chance = random.Random(3)
    for count in (1, 2, 3, 7, 15, 16, 17, 50):
        blocks = [tuple(range(3 * k, 3 * k + 3)) for k in range(count)]
        chance.shuffle(blocks)
        whole = merged(encoding.packed(state(identity, block)) for block in blocks)
        assert whole.encode() == state(identity, tuple(range(3 * count)))
    with pytest.raises(ValueError, match="no states"):
        merged([])


TASKS: dict[str, dict[str, Any]] = {
    "sums and counts": {"task": "multiclass", "metrics": ["accuracy", "confusion_matrix", "log_loss"]},
    "products and extremes": {"task": "regression", "metrics": ["mae", "r2", "pearson", "max_error"]},
    "tables": {"task": "binary", "metrics": ["auroc", "average_precision"]},
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("groups", [0, 16])
@pytest.mark.parametrize("kind", TASKS)
def test_states_that_are_read_together_are_those_that_are_merged_one_by_one(
    kind: str, groups: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, states, whole = np.random.default_rng(9), [], Run(**TASKS[kind], groups=groups, identity="position")
    for first in range(0, 60, 5):
        shape = (5, 4) if kind == "sums and counts" else (5,)
        prediction = random.normal(size=shape).astype(random.choice([np.float32, np.float64]))
        target = random.normal(size=5) if "extremes" in kind else random.integers(0, 2, 5)
        weight = {"sample_weight": random.uniform(0.5, 2, 5)} if weighted else {}
        run = Run(**TASKS[kind], groups=groups, identity="position")
        for each in (run, whole):
            each.add(prediction, target, first=first, **weight)
        states.append(run.state())
    assert RunState.merged(states).encode() == whole.state()
    damaged = [*states[:-1], states[-1][:-40] + bytes(40)]
    with pytest.raises(InvalidRequest, match="damaged"):
        RunState.merged(damaged)
    with pytest.raises(DuplicateRows):
        RunState.merged([*states, states[3]])
    alike = [data for data in states if RunState.decode(data).facts == RunState.decode(states[0]).facts]
    assert 1 < len(alike) < len(states)
    decode, decoded = ExactSums.decode, []
    monkeypatch.setattr(
        ExactSums, "decode", lambda data, *, count: (decoded.append(data), decode(data, count=count))[1]
    )
    RunState.merged(alike)
    assert kind == "tables" or not decoded, "exact sums of many states are read all at once"


def test_damaged_bytes_are_an_internal_error() -> None:
    stored = encoding.packed(state("position", (0, 1)))
    assert merged([stored]).rows == 2
    for damaged in (b"", stored[:-1], encoding.packed(b"lossdrun"), encoding.packed(state("position", (0, 1))[:-1])):
        with pytest.raises(InternalError, match="damaged"):
            merged([damaged])


def test_damaged_joined_states_are_an_internal_error() -> None:
    [(_, stored)] = encoding.joined([encoding.packed(state("position", (2 * k, 2 * k + 1))) for k in range(3)])
    assert merged([stored]).rows == 6
    for at in range(len(stored)):
        with pytest.raises(InternalError, match=r"damaged|is not the state of a run"):
            merged([stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :]])
    for cut in (stored[:-1], stored[:9], stored + b"x"):
        with pytest.raises(InternalError, match="damaged"):
            merged([cut])
