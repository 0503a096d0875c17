"""Batches of a run in the engine's memory: the states that a worker returns merge to the run's, to the last bit."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lossd
from lossd.arrangement import arrange
from lossd.compiled.passes import Passes
from lossd.engine.work import answer_in_memory
from lossd.job import Job
from lossd.metrics import METRICS
from lossd.runs import encoding, in_memory
from lossd.runs.counting import counting_job, result_job
from lossd.runs.definition import RunDocument
from lossd.runs.reading import StratumResult
from lossd.runs.report import BatchReport
from lossd.runs.state import RunState
from lossd_client.errors import DefinitionChanged, DuplicateRows, InternalError, InvalidRequest, Problem
from lossd_client.wire import Tensor, json
from runs.drawing import UNWEIGHTED, decomposable, differences, draw, options, rows, splits, tasks

CPU = torch.device("cpu")
Sent = Mapping[str, Any]


def tensors_of(inputs: Sent) -> dict[str, Tensor]:
    return {name: Tensor.of(np.asarray(array)) for name, array in inputs.items()}


def job_of(
    document: RunDocument,
    inputs: Sent,
    first: int | None = None,
    name: str | None = None,
    slices: Mapping[str, str | None] | None = None,
) -> Job:
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors_of(inputs).items()}
    return counting_job(document.plan, document.definition, layout, first=first, name=name, slices=slices)


def shared(jobs: Sequence[Job], sent: Sequence[Sent]) -> tuple[dict[str, Any], bytearray]:
    """Return the manifest and the memory of jobs of one recipe, as the engine lays them out."""
    [text] = {job.recipe.text for job in jobs}
    recipe = jobs[0].recipe
    arrangement = arrange(recipe, sum(job.rows for job in jobs), len(jobs))
    memory, row = bytearray(arrangement.nbytes), 0
    for position, (job, inputs) in enumerate(zip(jobs, sent, strict=True)):
        tensors = tensors_of(inputs)
        for column, offset in zip(recipe.inputs, arrangement.offsets, strict=False):
            data = tensors[column.name].data
            at = offset + column.unit_bytes * (row if column.per_row else position)
            memory[at : at + len(data)] = data
        row += job.rows
    numbers = orjson.loads(orjson.dumps([job.numbers for job in jobs])) if recipe.numbers else []
    rows_of = [job.rows for job in jobs]
    return {"recipe": text, "rows": rows_of, "numbers": numbers, "offsets": arrangement.offsets}, memory


def counted(
    document: RunDocument,
    sent: Sequence[Sent],
    firsts: Sequence[int | None] | None = None,
    names: Sequence[str | None] | None = None,
    slices: Sequence[Mapping[str, str | None] | None] | None = None,
    passes: Passes | None = None,
) -> list[BatchReport | Problem]:
    """Count batches in one message."""
    none = [None] * len(sent)
    columns = zip(sent, firsts or none, names or none, slices or none, strict=True)
    jobs = [job_of(document, *of_batch) for of_batch in columns]
    texts, _ = answer_in_memory(*shared(jobs, sent), CPU, passes)
    return [Problem.from_json(orjson.loads(text)) if failed else BatchReport.decode(text) for failed, text in texts]


def merged(document: RunDocument, reports: Sequence[BatchReport | Problem]) -> RunState:
    state = RunState(document.definition)
    for report in reports:
        assert isinstance(report, BatchReport), report
        state.merge(RunState.decode(zlib.decompress(report.packed)))
    return state


def same(state: RunState, run: lossd.Run) -> bool:
    """Return whether a state has the numbers of a run, but for the names of its batches, which a report lacks."""
    run._state.identity, kept = state.identity, run._state.identity
    found = run.state()
    run._state.identity = kept
    return state.rows == kept.rows and state.encode() == found


@pytest.mark.parametrize("task", tasks())
@settings(max_examples=2)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_states_of_batches_merge_to_the_run_of_all_rows(task: str, passes: Passes, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, weighted = int(rng.integers(1, 60)), task not in UNWEIGHTED and bool(rng.random() < 0.4)
    inputs = draw(task, rng, n, str(rng.choice(["float32", "float64"])), weighted=weighted)
    names = decomposable(task)
    metrics = {**options(task, rng), "names": sorted(rng.choice(names, min(4, len(names)), replace=False).tolist())}
    kind = str(rng.choice(["position", "id", "batch"]))
    document = RunDocument.parse({"task": task, "metrics": metrics, "identity": kind, "dataset": {"rows": n}})
    ids = rng.permutation(5 * n)[:n]
    whole = lossd.Run(task=task, metrics=metrics, identity=kind, rows=n)  # type: ignore[arg-type]
    batches = splits(rng, n, most=8)
    names = [str(first) for first, _ in batches] if kind == "batch" else None
    if names:  # the groups of their rows follow from the names
        for name, (first, last) in zip(names, batches, strict=True):
            whole.add(inputs=rows(inputs, first, last), name=name)
    else:
        whole.add(inputs=inputs, first=0 if kind == "position" else None, sample_id=ids if kind == "id" else None)
    if kind == "id":
        inputs = {**inputs, "sample_id": ids}
    sent = [rows(inputs, first, last) for first, last in batches]
    firsts = [first if kind == "position" else None for first, _ in batches]
    reports = counted(document, sent, firsts, names)
    assert [report.rows for report in reports if isinstance(report, BatchReport)] == [b - a for a, b in batches]
    state = merged(document, reports)
    assert same(state, whole)
    alone = [
        counted(document, [s], [f], None if names is None else [names[i]])[0]
        for i, (s, f) in enumerate(zip(sent, firsts, strict=True))
    ]
    assert alone == reports
    assert counted(document, sent, firsts, names, passes=passes) == reports
    job = result_job(whole.state(), document.plan, document.definition)
    [(failed, text)], _ = answer_in_memory(
        *shared([job], [{"state": np.frombuffer(whole.state(), np.uint8)}]), CPU, None
    )
    assert not failed
    assert list(differences(orjson.loads(text), whole.result().to_dict(), 0.0)) == []


FOCAL = {"loss": {"name": "focal", "gamma": 1.5}, "metrics": ["default", "log_loss"]}
GOOD: Sent = {"prediction": np.array([[0.5, 1.0], [2.0, -1.0]], np.float32), "target": np.array([1, 0])}
WRONG: Sent = {**GOOD, "target": np.array([0, 7])}


@pytest.mark.parametrize("identity", ["position", "batch"])
def test_a_wrong_batch_fails_alone_with_the_error_of_an_evaluation(identity: str) -> None:
    document = RunDocument.parse({**FOCAL, "identity": identity})
    firsts = [0, 2, 4] if identity == "position" else None
    good, wrong, other = counted(document, [GOOD, WRONG, GOOD], firsts, None if firsts else ["a", "b", "c"])
    with pytest.raises(Problem) as refused:
        lossd.evaluate("focal", inputs=WRONG, gamma=1.5)
    assert isinstance(wrong, Problem)
    assert (type(wrong), wrong.detail, wrong.errors) == (
        type(refused.value),
        refused.value.detail,
        refused.value.errors,
    )
    run = lossd.Run(loss="focal", gamma=1.5, metrics=["default", "log_loss"], identity=identity)  # type: ignore[arg-type]
    for first, name in ((0, "a"), (4, "c")):
        run.add(inputs=GOOD, **({"first": first} if firsts else {"name": name}))  # type: ignore[arg-type]
    assert same(merged(document, [good, other]), run)


def test_the_loss_of_a_whole_batch_and_metrics_of_a_batch_are_counted_too() -> None:
    rng = np.random.default_rng(0)
    batches = [{"embedding": rng.normal(size=(n, 4)), "label": np.arange(n) % 3} for n in (6, 9)]
    document = RunDocument.parse({"task": "labelled_embeddings", "scope": "batch"})
    run = lossd.Run(task="labelled_embeddings", scope="batch")
    names = ["a", "b", "c"]
    for inputs, name in zip(batches, names, strict=False):
        run.add(inputs=inputs, name=name)
    assert same(merged(document, counted(document, batches, names=names[:2])), run)
    dice = [{"prediction": rng.normal(size=(4, 3, 5)), "target": rng.integers(0, 3, (4, 5))} for _ in range(3)]
    document = RunDocument.parse({"loss": "dice", "metrics": []})
    run = lossd.Run(loss="dice", metrics=[])
    for inputs, name in zip(dice, names, strict=True):
        run.add(inputs=inputs, name=name)
    assert same(merged(document, counted(document, dice, names=names)), run)


@pytest.mark.parametrize(
    ("body", "inputs", "entries"),
    [
        ({"task": "multiclass"}, {"prediction": (5, 3), "target": [0, 1, 2, 0, 1]}, 5),
        ({"task": "multiclass"}, {"prediction": (5, 3), "target": np.full((5, 3), 1 / 3, np.float32)}, 5),
        ({"loss": "cross_entropy"}, {"prediction": (5, 3), "target": [0, -100, 2, -100, 1]}, 3),
        ({"task": "segmentation"}, {"prediction": (2, 3, 4, 5), "target": np.zeros((2, 4, 5), np.int64)}, 40),
        ({"task": "multilabel"}, {"prediction": (5, 3), "target": np.zeros((5, 3), np.int64)}, 15),
        ({"task": "binary"}, {"prediction": (5,), "target": [0, 1, 0, 1, 1]}, 5),
        ({"task": "regression"}, {"prediction": (5, 2), "target": np.zeros((5, 2), np.float32)}, 10),
        (
            {"loss": "mse", "metrics": []},
            {"prediction": (2, 3), "target": (2, 3), "mask": np.array([[1, 0, 1], [0, 0, 1]])},
            3,
        ),
        ({"loss": "mse", "metrics": []}, {"prediction": (2, 3), "target": (2, 3), "lengths": np.array([1, 3])}, 4),
        ({"loss": "triplet"}, dict.fromkeys(("anchor", "positive", "negative"), (5, 4)), 5),
    ],
    ids=lambda value: None,
)
def test_the_entries_of_a_batch_are_those_that_are_judged(
    body: dict[str, Any], inputs: dict[str, Any], entries: int
) -> None:
    numbers = np.random.default_rng(0)
    sent = {
        name: numbers.random(value, np.float32) if isinstance(value, tuple) else np.array(value)
        for name, value in inputs.items()
    }
    [report] = counted(RunDocument.parse({**body, "identity": "batch"}), [sent], names=["a"])
    assert isinstance(report, BatchReport), report
    assert (report.rows, report.entries) == (len(next(iter(sent.values()))), entries)


def test_the_digest_is_of_the_content_alone() -> None:
    document = RunDocument.parse({**FOCAL, "identity": "position"})

    def digest(inputs: Sent, first: int = 0) -> bytes:
        [report] = counted(document, [inputs], [first])
        assert isinstance(report, BatchReport)
        return report.digest

    once = digest(GOOD)
    assert once == digest({name: GOOD[name] for name in reversed(GOOD)})
    other = RunDocument.parse({**FOCAL, "metrics": ["f1"], "identity": "position"})
    [report] = counted(other, [GOOD], [0])
    assert isinstance(report, BatchReport)
    assert report.digest == once, "a retry is known whatever is counted of it"
    changed = {**GOOD, "prediction": np.nextafter(GOOD["prediction"], 9)}
    wider = {**GOOD, "prediction": GOOD["prediction"].astype(np.float64)}
    assert len({once, digest(GOOD, 1), digest(changed), digest(wider)}) == 4
    by_id = RunDocument.parse({**FOCAL, "identity": "id"})
    first, second = counted(by_id, [{**GOOD, "sample_id": np.array(ids)} for ids in ([3, 4], [4, 3])])
    assert isinstance(first, BatchReport)
    assert isinstance(second, BatchReport)
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("identity", "sent", "first", "message"),
    [
        ("position", GOOD, None, "needs first with every batch"),
        ("position", GOOD, -1, "positions are 0 to"),
        ("position", GOOD, 2**63 - 2, "positions are 0 to"),
        ("position", GOOD, True, "an integer"),
        ("position", {**GOOD, "sample_id": np.array([1, 2])}, 0, "belongs to runs of identity id"),
        ("id", GOOD, None, "needs sample_id with every batch"),
        ("id", {**GOOD, "sample_id": np.array([1, 2])}, 0, "belongs to runs of identity position"),
        ("id", {**GOOD, "sample_id": np.array([1])}, None, "the batch has 2 rows"),
        ("id", {**GOOD, "sample_id": np.array([1.0, 2.0])}, None, "ids are integers"),
        ("id", {**GOOD, "sample_id": np.array([True, False])}, None, "ids are integers"),
        ("batch", GOOD, 0, "belongs to runs of identity position"),
    ],
)
def test_a_batch_says_where_its_rows_are(identity: str, sent: Sent, first: int | None, message: str) -> None:
    document = RunDocument.parse({**FOCAL, "identity": identity})
    with pytest.raises(InvalidRequest, match=message) as refused:
        job_of(document, sent, first)
    assert refused.value.errors


def test_an_id_that_is_twice_in_a_batch_is_refused_with_that_batch() -> None:
    document = RunDocument.parse({**FOCAL, "identity": "id"})
    twice, good = counted(document, [{**GOOD, "sample_id": np.array(ids)} for ids in ([5, 5], [6, 7])])
    assert isinstance(twice, DuplicateRows)
    assert twice.rows == [5]
    assert isinstance(good, BatchReport)


def test_a_result_of_another_definition_or_of_older_metrics_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = lossd.Run(task="binary")
    run.add([1.0, -1.0], [1, 1])
    state = np.frombuffer(run.state(), np.uint8)

    def problem(document: dict[str, Any], data: Any) -> Problem:
        parsed = RunDocument.parse(document)
        job = result_job(data.tobytes(), parsed.plan, parsed.definition)
        [(failed, text)], _ = answer_in_memory(*shared([job], [{"state": data}]), CPU, None)
        assert failed
        return Problem.from_json(orjson.loads(text))

    assert "another definition" in problem({"task": "multiclass"}, state).detail
    assert "damaged" in problem({"task": "binary"}, state[:-1]).detail
    monkeypatch.setitem(METRICS["binary"], "f1", replace(METRICS["binary"]["f1"], version=2))
    assert isinstance(problem({"task": "binary"}, state), DefinitionChanged)


def test_a_baseline_is_read_once_for_many_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a comparison of 32 runs, which the worker makes a pair at a time."""
    numbers = np.random.default_rng(0)
    target = numbers.integers(0, 3, 500)
    runs = [lossd.Run(task="multiclass", metrics=["accuracy", "auroc"], identity="position") for _ in range(5)]
    for run in runs:
        run.add(numbers.random((500, 3), np.float32), target, first=0)
    read: list[int] = []
    original = StratumResult.of.__func__  # type: ignore[attr-defined]

    def counting(cls: type[StratumResult], state: RunState, *further: Any) -> StratumResult:
        read.append(id(state))
        return original(cls, state, *further)

    monkeypatch.setattr(StratumResult, "of", classmethod(counting))
    document = RunDocument.parse({"task": "multiclass", "metrics": ["accuracy", "auroc"], "identity": "position"})
    baseline, *others = [run.state() for run in runs]
    for query in ({}, {"level": 0.9}, {"classes": True}):
        read.clear()
        definitions = [document.definition] * 2
        found = [orjson.loads(in_memory._comparison(definitions, query, [baseline, data])) for data in others]
        assert len(read) == (4 if query == {"classes": True} else 5), "that of the classes was read at first"
        expected = [json.finite(runs[0].compare(run, **query)) for run in runs[1:]]
        assert found == expected


def test_short_states_are_packed_without_compression_and_all_are_streams_of_zlib() -> None:
    for length in (0, 1, 1000, encoding.SHORT_BYTES - 1, encoding.SHORT_BYTES, 1 << 20):
        data = bytes(length)
        packed = encoding.packed(data)
        assert zlib.decompress(packed) == data == encoding.unpacked(packed)
        assert (len(packed) < length) == (length >= encoding.SHORT_BYTES)
        for damaged in (packed[:-1], packed[:-1] + bytes([packed[-1] ^ 1])):
            with pytest.raises(InternalError, match="damaged"):
                encoding.unpacked(damaged)
