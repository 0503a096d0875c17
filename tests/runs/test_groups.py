"""Groups and slices: what is counted without a group, or of a slice, is what a run of those rows alone counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lossd
from lossd.compiled.passes import Passes
from lossd.metrics.registry import TASKS
from lossd.runs.definition import RunDocument
from lossd.runs.rows.grouping import groups_of_keys
from lossd.runs.rows.strata import strata_of
from lossd.runs.state import RunState
from lossd_client.errors import BatchConflict, InvalidRequest, Problem
from runs.drawing import UNWEIGHTED, Inputs, decomposable, draw, options, splits, tasks
from runs.test_counting import counted, merged
from runs.test_counting import rows as rows_of

SLICES = {"site": ["A", "B"], "sex": ["f", "m", "x"]}
CROSSED = [["sex", "site"]]


def splitmix64(key: int) -> int:
    """As published by Sebastiano Vigna, https://prng.di.unimi.it/splitmix64.c, in Python's integers."""
    z = (key + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_group_is_splitmix64_of_the_key(passes: Passes) -> None:
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the first output of the published generator with seed 0
    keys = [0, 1, 2**63 - 1, 2**31, 77]
    assert groups_of_keys(np.array(keys)).tolist() == [splitmix64(key) % 64 for key in keys]
    assert groups_of_keys(np.array([-1], np.int32)).tolist() == [splitmix64(2**64 - 1) % 64]
    assert groups_of_keys(np.array([2**64 - 5], np.uint64)).tolist() == [splitmix64(2**64 - 5) % 64]
    for groups in (16, 32, 64):
        numbers = np.array(keys)[::2]
        expected = [splitmix64(key) % groups for key in keys[::2]]
        assert groups_of_keys(numbers, groups).tolist() == expected
        assert groups_of_keys(numbers, groups, passes.counting).tolist() == expected


def numbers(state: RunState, stratum: int, groups: int, position: int) -> dict[str, Any]:
    """Return what metrics read of one set of rows, but for what cannot be without a group: the largest numbers."""
    found: dict[str, Any] = {}
    for key, total in state.totals.items():
        read = total.read(stratum, groups)
        if total.kind == "sums":
            found[key] = repr(read.numbers(None)[position].tolist())  # NaN equals no NaN
        elif total.kind == "products":
            part = slice(position * read.each, (position + 1) * read.each)
            found[key] = (
                read.counted[position],
                read._finite[part],
                [read._other.get(k) for k in range(part.start, part.stop)],
            )
        elif total.kind == "tables":
            found[key] = [read.table(position, column).encode() for column in range(len(read.columns))]
    return found


def picked(inputs: Inputs, these: Any) -> dict[str, Any]:
    return {name: array[these] for name, array in inputs.items()}


@pytest.mark.parametrize("task", tasks())
@settings(max_examples=2)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_left_of_a_stratum_without_a_group_is_a_run_of_those_rows(task: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, weighted = int(rng.integers(1, 90)), task not in UNWEIGHTED and bool(rng.random() < 0.4)
    inputs, metrics = draw(task, rng, n, "float32", weighted=weighted), options(task, rng)
    ids = rng.permutation(10 * n)[:n]
    site, sex = rng.integers(-1, 2, n), rng.integers(-1, 3, n)
    held = int(rng.choice([16, 32, 64]))

    def run(**more: Any) -> lossd.Run:
        return lossd.Run(task=task, metrics=metrics, identity="id", **more)

    sliced, parts = run(groups=held, slices=SLICES, crossed=CROSSED), []
    for first, last in splits(rng, n, most=5):
        these = slice(first, last)
        one = run(groups=held, slices=SLICES, crossed=CROSSED)
        slices: dict[str, Any] = {"site": site[these], "sex": [[*SLICES["sex"], None][code] for code in sex[these]]}
        if len(set(site[these].tolist())) == 1:
            slices["site"] = [*SLICES["site"], None][site[first]]
        one.add(inputs=picked(inputs, these), sample_id=ids[these], slices=slices)
        parts.append(one)
    for part in rng.permutation(len(parts)).tolist():
        sliced.merge(lossd.Run.from_state(parts[part].state()))
    group, strata = groups_of_keys(ids), strata_of(sliced._state.definition)
    assert len(strata) == 1 + 3 + 2 + 6
    codes = {"site": site, "sex": sex}
    for number, stratum in enumerate(rng.permutation(len(strata))[:4].tolist()):
        inside = np.ones(n, bool)
        for name, value in strata[stratum].items():
            inside &= codes[name] == SLICES[name].index(value)
        assert (
            sliced._state.rows_by_group(stratum).tolist() == np.bincount(group[inside] % held, minlength=held).tolist()
        )
        groups = int(rng.choice([g for g in (16, 32, 64) if g <= held]))
        left_out = int(rng.integers(groups)) if number % 2 else None  # by turns the whole stratum
        these = inside if left_out is None else inside & (group % groups != left_out)
        if not these.any():
            continue
        alone = run(groups=0)
        alone.add(inputs=picked(inputs, these), sample_id=ids[these])
        position = 0 if left_out is None else 1 + left_out
        found, expected = numbers(sliced._state, stratum, groups, position), numbers(alone._state, 0, 0, 0)
        assert found == expected
        for key, total in alone._state.totals.items():
            if total.kind == "largest" and left_out is None:
                assert np.array_equal(
                    sliced._state.totals[key].read(stratum, 0).numbers(None), total.read(0, 0).numbers(None)
                )


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "gan"])
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_tables_that_are_cut_are_the_same_however_rows_are_split(task: str, seed: int) -> None:
    """The limit of 64 is below the number of values, so tables of points and by group are cut at different times."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 120))
    weighted = task not in UNWEIGHTED and bool(rng.random() < 0.3)
    inputs = draw(task, rng, n, str(rng.choice(["float32", "float64", "float16"])), weighted=weighted)
    names = [name for name in ("auroc", "error_quantiles") if name in decomposable(task)]
    limit = int(rng.choice([4, 16, 64, 200]))

    def run() -> lossd.Run:
        return lossd.Run(task=task, metrics=names, identity="position", limit=limit, slices={"site": ["A", "B"]})

    site = rng.integers(-1, 2, n)
    whole, parts = run(), []
    whole.add(inputs=inputs, first=0, slices={"site": site})
    for first, last in splits(rng, n, most=12):
        parts.append(run())
        parts[-1].add(inputs=rows_of(inputs, first, last), first=first, slices={"site": site[first:last]})
    while len(parts) > 1:
        other = parts.pop(int(rng.integers(len(parts))))
        parts[int(rng.integers(len(parts)))].merge(other if rng.random() < 0.5 else lossd.Run.from_state(other.state()))
    assert parts[0].state() == whole.state()


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_worker_counts_slices_and_clusters_as_a_run_in_this_process(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, kind = int(rng.integers(1, 60)), str(rng.choice(["position", "id", "batch"]))
    inputs = {**draw("multiclass", rng, n), "cluster_id": rng.integers(-5, 5, n)}
    codes, by_batch = rng.integers(-1, 3, n), bool(rng.random() < 0.5)
    definition = {"task": "multiclass", "metrics": ["default", "log_loss"], "identity": kind}
    document = RunDocument.parse({**definition, "slices": SLICES, "crossed": CROSSED})
    whole = lossd.Run(
        task="multiclass",
        metrics=["default", "log_loss"],
        identity=kind,
        slices=SLICES,
        crossed=CROSSED,  # type: ignore[arg-type]
    )
    ids = rng.permutation(5 * n)[:n]
    sent, firsts, names, values = [], [], [], []
    for first, last in splits(rng, n, most=8):
        these = slice(first, last)
        value = str(rng.choice(["A", "B"]))
        batch = picked(inputs, these)
        place: dict[str, Any] = {
            "position": {"first": first},
            "id": {"sample_id": ids[these]},
            "batch": {"name": str(first)},
        }[kind]
        whole.add(inputs=batch, slices={"site": value, "sex": codes[these]}, **place)
        batch["slice.sex"] = codes[these].astype(np.int8)
        if kind == "id":
            batch["sample_id"] = ids[these]
        if not by_batch:
            batch["slice.site"] = np.full(last - first, SLICES["site"].index(value))
        sent.append(batch)
        firsts.append(first if kind == "position" else None)
        names.append(str(first) if kind == "batch" else None)
        values.append({"site": value} if by_batch else None)
    state = merged(document, counted(document, sent, firsts, names, values))
    assert {key: total.encode() for key, total in state.totals.items()} == {
        key: total.encode() for key, total in whole._state.totals.items()
    }
    assert state.by_slot.encode() == whole._state.by_slot.encode()
    assert (state.targets, state.pairing) == (whole._state.targets, whole._state.pairing)
    assert state.pairing is not None


def test_clusters_stay_whole() -> None:
    run = lossd.Run(task="binary", identity="position")
    cluster = np.repeat(np.arange(10), 30)
    run.add(np.ones(300, np.float32), np.ones(300), first=0, cluster_id=cluster)
    used = run._state.rows_by_group(0)
    assert used.tolist() == np.bincount(groups_of_keys(cluster), minlength=64).tolist()


def test_pairing_tells_other_groups_of_the_same_targets() -> None:
    def pairing(names: Sequence[str | None], **more: Any) -> tuple[str | None, str | None]:
        run = lossd.Run(task="binary", identity="batch" if names else "position")
        for number, name in enumerate(names or [None, None]):
            place = {"name": name} if names else {"first": 2 * number}
            run.add([0.5, 1.0], [number, 1], **place, **more)  # type: ignore[arg-type]
        return run._state.targets, run._state.pairing

    one, other = pairing(["a", "b"]), pairing(["a", "c"])
    assert one[0] == other[0]
    assert one[1] != other[1]
    assert pairing(["b", "a"])[1] != one[1], "the batches' labels are exchanged"
    assert pairing([])[1] is None, "positions say the groups"
    assert pairing([], cluster_id=[1, 2])[1] != pairing([], cluster_id=[1, 3])[1]


def raise_problem(reports: Sequence[Any]) -> None:
    [report] = reports
    if isinstance(report, Problem):
        raise report


GOOD: Mapping[str, Any] = {"prediction": np.array([0.5, 1.0]), "target": np.array([1, 0])}


@pytest.mark.parametrize(
    ("slices", "more", "pointer", "message"),
    [
        ({"site": "A"}, {}, "/slices", 'does not say the slice sex .* "slices": {"sex": value}'),
        (
            {"site": "A", "sex": "f", "age": "old"},
            {},
            "/slices/age",
            "'age', which is not a slice of the run; .* sex, site",
        ),
        (
            {"site": "C", "sex": "f"},
            {},
            "/slices/site",
            "'C' is not a value of the slice site; its values are 'A', 'B'",
        ),
        ({"site": "A", "sex": "f"}, {"slice.sex": np.array([0, 1])}, "/slices/sex", "said twice"),
        ({"site": "A"}, {"slice.sex": np.array([0, 3])}, "/inputs/slice.sex", "the code 3; .* codes are 0 to 2"),
        ({"site": "A"}, {"slice.sex": np.array([0, -2])}, "/inputs/slice.sex", "the code -2"),
        ({"site": "A"}, {"slice.sex": np.array([0.0, 1.0])}, "/inputs/slice.sex", "codes of slices are integers"),
        ({"site": "A"}, {"slice.sex": np.array([0])}, "/inputs/slice.sex", "the batch has 2 rows"),
        ({"site": "A", "sex": "f"}, {"slice.age": np.array([0, 0])}, "/inputs/slice.age", "is of no slice of the run"),
        ({"site": "A", "sex": "f"}, {"cluster_id": np.array([0])}, "/inputs/cluster_id", "the batch has 2 rows"),
        ({"site": "A", "sex": "f"}, {"cluster_id": np.array([True, False])}, "/inputs/cluster_id", "are integers"),
    ],
)
def test_what_a_batch_says_of_its_rows_is_checked(
    slices: dict[str, str | None], more: dict[str, Any], pointer: str, message: str
) -> None:
    run = lossd.Run(task="binary", slices=SLICES)
    with pytest.raises(InvalidRequest, match=message) as refused:
        run.add(inputs={**GOOD, **more}, slices=slices)
    assert [fault["pointer"] for fault in refused.value.errors] == [pointer]
    document = RunDocument.parse({"task": "binary", "slices": SLICES})
    with pytest.raises(InvalidRequest, match=message) as refused:
        raise_problem(counted(document, [{**GOOD, **more}], slices=[slices]))
    assert [fault["pointer"] for fault in refused.value.errors] == [pointer]


def test_texts_that_are_no_values_and_rows_without_a_slice() -> None:
    run = lossd.Run(task="binary", slices={"site": ["A", "B"]})
    with pytest.raises(InvalidRequest, match="the slice site has no value 'C'"):
        run.add(inputs=GOOD, slices={"site": ["A", "C"]})
    run.add(inputs=GOOD, slices={"site": None})
    run.add(inputs=GOOD, slices={"site": ["B", None]})
    assert [int(run._state.rows_by_group(stratum).sum()) for stratum in range(3)] == [4, 0, 1]


def test_all_batches_have_clusters_or_none() -> None:
    run = lossd.Run(task="binary")
    run.add(inputs=GOOD)
    with pytest.raises(InvalidRequest, match="this batch has cluster_id, unlike") as refused:
        run.add(inputs=GOOD, cluster_id=[1, 2])
    assert refused.value.errors[0]["pointer"] == "/inputs/cluster_id"


def test_a_batch_is_known_by_its_slices_and_clusters_too() -> None:
    run = lossd.Run(task="binary", slices={"site": ["A", "B"]})
    assert run.add(inputs=GOOD, name="a", slices={"site": "A"}, cluster_id=[1, 2]) == 2
    assert run.add(inputs=GOOD, name="a", slices={"site": "A"}, cluster_id=[1, 2]) == 0
    for change in ({"slices": {"site": "B"}}, {"cluster_id": [1, 3]}):
        with pytest.raises(BatchConflict, match="counted with other data"):
            run.add(inputs=GOOD, name="a", **{"slices": {"site": "A"}, "cluster_id": [1, 2], **change})  # type: ignore[arg-type]


def test_every_task_is_drawn() -> None:
    assert set(tasks()) == {task for task in TASKS if decomposable(task)}
