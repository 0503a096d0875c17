"""Runs through the client: what it sends, what it does not send again, and what its errors say."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from client.fake import FakeService, Reply, Request, problem
from client.fake_runs import FakeRuns, reply
from lossd_client import AsyncLossClient, AsyncRemoteRun, LossClient, RemoteRun, RunScore
from lossd_client.errors import (
    BatchConflict,
    Incomplete,
    InvalidRequest,
    RunDiffers,
    ShapeMismatch,
    Unavailable,
    UnknownRun,
    UnreadableAnswer,
)
from lossd_client.run_batches import RunBatch, name_of_ids, without

Runs = Callable[..., Any]

ROWS = [4, 4, 3, 4, 1, 4, 2, 4, 4, 1]
"""The rows of each batch of :func:`loader`."""


@pytest.fixture
def fake(service: FakeService) -> FakeRuns:
    return FakeRuns(service)


@pytest.fixture(params=["sync", "async"])
def on_run(request: pytest.FixtureRequest, service: FakeService) -> Runs:
    """Call a method of a run of either client."""

    def sync(method: str, *arguments: Any, run: dict[str, Any], **options: Any) -> Any:
        with LossClient(service.url) as lossd:
            return getattr(lossd.run(**run), method)(*arguments, **options)

    async def coroutine(method: str, *arguments: Any, run: dict[str, Any], **options: Any) -> Any:
        async with AsyncLossClient(service.url) as lossd:
            return await getattr(await lossd.run(**run), method)(*arguments, **options)

    def call(method: str, *arguments: Any, run: dict[str, Any] | None = None, **options: Any) -> Any:
        run = {"name": "r", "task": "binary"} | (run or {})
        if request.param == "sync":
            return sync(method, *arguments, run=run, **options)
        return asyncio.run(coroutine(method, *arguments, run=run, **options))

    return call


def batch(index: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(ROWS[index], float(index)), np.ones(ROWS[index], np.int64)


def loader() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return (batch(index) for index in range(len(ROWS)))


def name(index: int) -> str:
    return f"{index:08}"


# The definition


def test_a_definition_is_sent_at_once(fake: FakeRuns, service: FakeService) -> None:
    with LossClient(service.url) as lossd:
        run = lossd.run(
            "resnet50-v3", task="multiclass", metrics=["default", "auroc"], dataset="imagenet-val@2", rows=50_000,
            targets="t1:00", tags={"commit": "4f1c"}, public=True, limit=1 << 16,
        )  # fmt: skip
    assert (run.name, run.identity) == ("resnet50-v3", "position")
    assert fake.runs["resnet50-v3"]["definition"] == {
        "task": "multiclass",
        "metrics": {"names": ["default", "auroc"]},
        "dataset": {"name": "imagenet-val", "version": "2", "rows": 50_000, "targets": "t1:00"},
        "identity": "position",
        "limit": 1 << 16,
        "tags": {"commit": "4f1c"},
        "public": True,
    }


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ({"loss": "focal", "gamma": 3.0}, {"loss": {"name": "focal", "gamma": 3.0}}),
        ({"loss": {"name": "mse"}, "metrics": []}, {"loss": {"name": "mse"}, "metrics": {"names": []}}),
        ({"loss": "bce", "task": "binary"}, {"loss": {"name": "bce"}, "metrics": {"task": "binary"}}),
        ({"task": "binary", "metrics": "auroc"}, {"task": "binary", "metrics": {"names": ["auroc"]}}),
        ({"task": "binary", "rows": 7}, {"task": "binary", "dataset": {"rows": 7}}),
        ({"task": "binary", "dataset": {"name": "a@b"}}, {"task": "binary", "dataset": {"name": "a@b"}}),
        ({"task": "binary", "scope": "batch"}, {"task": "binary", "scope": "batch"}),
        ({"loss": "focal", "class_weight": np.ones(2)}, {"loss": {"name": "focal", "class_weight": [1.0, 1.0]}}),
    ],
)
def test_definitions(arguments: dict[str, Any], sent: dict[str, Any], fake: FakeRuns, service: FakeService) -> None:
    with LossClient(service.url) as lossd:
        lossd.run("r", identity="batch", **arguments)
    assert fake.runs["r"]["definition"] == {**sent, "identity": "batch"}


def test_a_name_alone_opens_a_run(on_run: Runs, fake: FakeRuns) -> None:
    with pytest.raises(UnknownRun):
        on_run("result", run={"task": None})
    on_run("add", [1.0], [1], sample_id=[7], run={"identity": "id"})
    on_run("add", [1.0], [1], sample_id=[8], run={"task": None})
    assert len(fake.counted["r"]) == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"rows": 5}, "name either a loss, or a task"),
        ({"task": "binary", "gamma": 2}, "gamma: without a loss"),
        ({"task": "binary", "owner": "x"}, "can only be read"),
        ({"task": "binary", "rows": 5, "dataset": {"rows": 6}}, "rows are given twice: 6 and 5"),
    ],
)
def test_contradictions_are_told_before_anything_is_sent(
    arguments: dict[str, Any], match: str, fake: FakeRuns, service: FakeService
) -> None:
    with LossClient(service.url) as lossd, pytest.raises(TypeError, match=match):
        lossd.run("r", **arguments)
    assert service.requests == []


@pytest.mark.parametrize("wrong", ["", "a/b", "..", ".", "é", "x" * 201, "a b", "a?b"])
def test_names_that_no_path_carries_are_refused(wrong: str, fake: FakeRuns, service: FakeService) -> None:
    with LossClient(service.url) as lossd:
        with pytest.raises(InvalidRequest, match="is not the name of a run"):
            lossd.run(wrong, task="binary")
        run = lossd.run("r", task="binary")
        if wrong:
            with pytest.raises(InvalidRequest, match="is not the name of a batch"):
                run.add([1.0], [1], first=0, name=wrong)
    assert fake.sent == []


def test_another_definition_is_an_error(on_run: Runs, fake: FakeRuns) -> None:
    on_run("batches")
    with pytest.raises(RunDiffers):
        on_run("batches", run={"task": "multiclass"})


# Batches


def test_a_batch_is_sent_as_it_is_given(on_run: Runs, fake: FakeRuns, service: FakeService) -> None:
    answer = on_run("add", [0.5, 1.5], [1, 0], first=40, inputs={"sample_weight": [1.0, 2.0]})
    request = service.requests[-1]
    assert (request.method, request.path) == ("PUT", "/v1/runs/r/batches/row-40")
    assert request.document == {"first": 40}
    assert {n: t.numpy().tolist() for n, t in request.tensors.items()} == {
        "prediction": [0.5, 1.5], "target": [1, 0], "sample_weight": [1.0, 2.0],
    }  # fmt: skip
    assert (answer.batch, answer.counted.rows, answer.run) == ("row-40", 2, {"rows": 2, "batches": 1})
    assert int(request.headers["X-Request-Timeout-Ms"]) <= 60_000


def test_ids_name_their_batch(on_run: Runs, fake: FakeRuns, service: FakeService) -> None:
    for ids in ([5, 9], np.array([5, 9], np.int32), torch.tensor([5, 9])):
        on_run("add", [0.5, 1.5], [1, 0], sample_id=ids, run={"identity": "id"}, name=None)
    on_run("add", [0.5, 1.5], [1, 0], sample_id=[9, 5], run={"identity": "id"})
    names = [request.path.rpartition("/")[2] for request in service.requests if request.path.count("/") == 5]
    assert len(set(names[:3])) == 1
    assert len(set(names)) == 2
    assert service.requests[-1].tensors["sample_id"].numpy().tolist() == [9, 5]


@pytest.mark.parametrize(("identity", "needed"), [("position", "first"), ("id", "sample_id"), ("batch", "name")])
def test_a_batch_needs_a_name(identity: str, needed: str, on_run: Runs, fake: FakeRuns) -> None:
    with pytest.raises(InvalidRequest, match=f"identity {identity} needs {needed} with every batch"):
        on_run("add", [1.0], [1], run={"identity": identity})
    on_run("add", [1.0], [1], name="a", first=0, run={"name": "other"})


@pytest.mark.parametrize("replies", [[None, None], [problem(503, "unavailable", headers={"Retry-After": "0"})] * 5])
def test_a_batch_is_sent_again_after_a_lost_connection(
    replies: list[Reply | None], on_run: Runs, fake: FakeRuns, service: FakeService
) -> None:
    on_run("batches")
    service.replies.append(None)  # the PUT of the definition too
    service.replies.extend([])
    counted = fake.answer

    def lossy(request: Request) -> Reply:
        if request.path.endswith("row-0") and replies_left:
            counted(request)  # it was counted, and the answer was lost
            return replies_left.pop() or Reply(200, announce=True, missing=10)
        return counted(request)

    replies_left = list(replies)
    service.default = lossy
    assert on_run("add", [1.0], [1], first=0).counted.rows == 1
    assert len(fake.counted["r"]) == 1
    assert fake.sent.count("row-0") == len(replies) + 1


def test_a_deletion_whose_answer_was_lost_has_succeeded(on_run: Runs, fake: FakeRuns, service: FakeService) -> None:
    def lossy(request: Request) -> Reply:
        answer = fake.answer(request)
        return Reply(204, announce=True, missing=10) if request.method == "DELETE" and answer.status == 204 else answer

    service.default = lossy
    on_run("delete")
    assert fake.runs == {}
    with pytest.raises(UnknownRun):
        on_run("delete", run={"task": None})


# Scoring a loader


def test_a_loader_is_scored(on_run: Runs, fake: FakeRuns, service: FakeService) -> None:
    done = on_run("score", loader(), in_flight=3)
    assert (done.sent, done.counted_before, done.rows) == (len(ROWS), 0, sum(ROWS))
    assert done.seconds > 0
    counted = fake.counted["r"]
    assert sorted(counted) == [name(index) for index in range(len(ROWS))]
    firsts = [0, *np.cumsum(ROWS).tolist()]
    assert [(counted[name(i)]["first"], counted[name(i)]["counted"]["rows"]) for i in range(len(ROWS))] == list(
        zip(firsts[:-1], ROWS, strict=True)
    )


@pytest.mark.parametrize("identity", ["position", "batch", "id"])
def test_what_is_counted_is_not_sent_again(identity: str, on_run: Runs, fake: FakeRuns, service: FakeService) -> None:
    def batches() -> list[Any]:
        parts = []
        for index in range(len(ROWS)):
            prediction, target = batch(index)
            ids = {"sample_id": np.arange(ROWS[index]) + 10 * index} if identity == "id" else {}
            parts.append({"prediction": prediction, "target": target, **ids})
        return parts

    run = {"identity": identity}
    stop = iter(range(6))
    fake.refuse = lambda name, request: None if next(stop, None) is not None else problem(422, "shape-mismatch")
    with pytest.raises(ShapeMismatch):
        on_run("score", batches(), run=run, in_flight=1)
    assert len(fake.counted["r"]) == 6
    fake.refuse = lambda name, request: None
    fake.sent.clear()
    service.requests.clear()
    done = on_run("score", batches(), run=run)
    assert (done.sent, done.counted_before, done.rows) == (4, 6, sum(ROWS))
    assert len(fake.sent) == 4
    assert len(fake.counted["r"]) == len(ROWS)
    lists = [request for request in service.requests if request.path.startswith("/v1/runs/r/batches?")]
    assert len(lists) == 2, "6 batches are two pages of three"


def test_two_at_once_count_each_batch_once(on_run: Runs, fake: FakeRuns, service: FakeService) -> None:
    threads = [threading.Thread(target=lambda: on_run("score", loader(), in_flight=2)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fake.counted["r"]) == [name(index) for index in range(len(ROWS))]
    assert fake.runs["r"]["status"] == "open"


@pytest.mark.parametrize("rows", [[4, 4], [4, 4, 3, 3, 1, 4, 2, 4, 4, 1], [8, 8, 8, 7]])
def test_a_loader_of_other_batches_is_refused(rows: list[int], on_run: Runs, fake: FakeRuns) -> None:
    """The name stands for other rows: a loader of another batch size, or in another order."""
    on_run("score", loader())
    fake.sent.clear()
    batches = [(np.ones(n), np.ones(n, np.int64)) for n in rows]
    if rows == [4, 4]:  # a part of the loader
        assert on_run("score", batches).counted_before == 2
        return
    with pytest.raises(BatchConflict, match=r"batch 0000000\d of the run r was counted with 4 rows .*same batch size"):
        on_run("score", batches)
    assert fake.sent == []


def test_other_data_under_a_name_are_refused(on_run: Runs, fake: FakeRuns) -> None:
    on_run("add", *batch(3), name=name(3), first=11)
    fake.counted["r"].clear()  # as if another process had counted it after this one asked
    fake.refuse = lambda n, request: problem(409, "batch-conflict", "other data") if n == name(3) else None
    with pytest.raises(BatchConflict, match=r"batch 00000003 \(index 3\): other data"):
        on_run("score", loader())


def test_a_refused_batch_stops_the_scoring(on_run: Runs, fake: FakeRuns, service: FakeService) -> None:
    """Those in flight end and count; no more than they are drawn."""
    drawn = []

    def batches() -> Iterator[Any]:
        for index in range(100):
            drawn.append(index)
            yield np.full(2, float(index)), np.ones(2, np.int64)

    def refused(n: str, request: Request) -> Reply | None:
        return problem(422, "shape-mismatch", "wrong") if n == name(5) else None

    def late(request: Request) -> Reply:
        if request.path > f"/v1/runs/r/batches/{name(5)}":
            time.sleep(0.3)
        return fake.answer(request)

    fake.refuse, service.default = refused, late
    with pytest.raises(ShapeMismatch, match=r"^batch 00000005 \(index 5\): wrong") as caught:
        on_run("score", batches(), in_flight=3)
    assert caught.value.detail == "batch 00000005 (index 5): wrong"
    assert caught.value.request_id
    assert len(drawn) <= 5 + 3
    assert set(fake.counted["r"]) >= {name(index) for index in range(5)}
    assert len(fake.counted["r"]) == len(drawn) - 1


@pytest.mark.parametrize("in_flight", [1, 3])
def test_no_more_than_so_many_are_held(in_flight: int, on_run: Runs, fake: FakeRuns, service: FakeService) -> None:
    drawn = answered = most_held = 0
    lock = threading.Lock()

    def batches() -> Iterator[Any]:
        nonlocal drawn, most_held
        for index in range(len(ROWS)):
            with lock:
                drawn += 1
                most_held = max(most_held, drawn - answered)
            yield batch(index)

    def slow(request: Request) -> Reply:
        nonlocal answered
        time.sleep(0.02)
        answer = fake.answer(request)
        with lock:
            answered += request.path.count("/") == 5
        return answer

    service.default = slow
    on_run("score", batches(), in_flight=in_flight)
    assert most_held == in_flight


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ((np.ones(2), np.ones(2), np.ones(2)), "batch 0 of the loader: 3 inputs without names"),
        ({}, "batch 0 of the loader: there are no inputs"),
        ((np.float64(1.0), 1), "target has no axis of rows"),
        ({"prediction": np.ones(2), "sample_id": [1, 2]}, "sample_id belongs to runs of identity id"),
    ],
)
def test_batches_without_rows_are_refused(inputs: Any, match: str, on_run: Runs, fake: FakeRuns) -> None:
    with pytest.raises(TypeError, match=match):
        on_run("score", [inputs])


def test_ids_are_needed_where_they_identify(on_run: Runs, fake: FakeRuns) -> None:
    with pytest.raises(TypeError, match="needs the input sample_id"):
        on_run("score", loader(), run={"identity": "id"})
    wrong = {"prediction": np.ones(2), "target": np.ones(2), "sample_id": np.ones(2)}
    with pytest.raises(TypeError, match="sample_id must hold integers, not float64"):
        on_run("score", [wrong], run={"identity": "id"})


def test_the_target_tells_the_rows(on_run: Runs, fake: FakeRuns) -> None:
    """The first axis of a prediction may count time steps."""
    inputs = {"prediction": np.zeros((7, 2, 3)), "target": np.ones((2, 1), np.int64)}
    fake.counted.setdefault("r", {})
    with pytest.raises(
        InvalidRequest, match=r"batch 00000000 \(index 0\) has 7 rows for the service and 2 by its first"
    ):
        on_run("score", [inputs])


def test_torch_loaders_are_scored(on_run: Runs, fake: FakeRuns) -> None:
    """One with a length, and one of a dataset that has none."""

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            return iter([(torch.tensor(0.5), torch.tensor(1))] * 5)

    sized = torch.utils.data.TensorDataset(torch.ones(5), torch.ones(5, dtype=torch.int64))
    for number, dataset in enumerate((Stream(), sized)):
        loaded = torch.utils.data.DataLoader(dataset, batch_size=2)
        done = on_run("score", loaded, run={"name": f"r{number}"})
        assert (done.sent, done.rows) == (3, 5)


def test_progress_says_what_was_counted_before(
    on_run: Runs, fake: FakeRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    on_run("score", [batch(0), batch(1)])
    assert capsys.readouterr().err == ""
    on_run("score", [batch(index) for index in range(len(ROWS))], progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "10/10 batches" in captured.err
    assert "2 counted before" in captured.err


# The result


def test_a_result(on_run: Runs, fake: FakeRuns) -> None:
    assert on_run("result").metrics == {}
    assert on_run("result").loss is None
    on_run("score", loader())
    result = on_run("result")
    assert result.provisional
    assert (result.loss, result.metrics.f1.macro, result.metrics.log_loss) == (0.5, 0.25, math.inf)
    assert (result.counted.rows, result.missing) == (sum(ROWS), [[1, 2]])
    assert (result.targets, result.digest, result.signature) == ("t1:cd", "s1:ab", "lossd 1|binary")
    assert result.flat() == {"loss": 0.5, "accuracy": 0.5, "f1.macro": 0.25}
    assert "provisional=True" in repr(result)
    sealed = on_run("seal", sum(ROWS))
    assert not sealed.provisional
    assert sealed.metrics == result.metrics
    assert on_run("seal").document == sealed.document


def test_an_incomplete_run_is_not_sealed(on_run: Runs, fake: FakeRuns) -> None:
    on_run("score", loader())
    with pytest.raises(Incomplete):
        on_run("seal", 50)


def test_metrics_of_a_result_are_chosen(on_run: Runs, fake: FakeRuns, service: FakeService) -> None:
    on_run("result", ["f1", "accuracy"])
    assert service.requests[-1].path == "/v1/runs/r?metrics=f1%2Caccuracy"


def test_flat_names_suit_mlflow() -> None:
    """MLflow takes letters, digits, and _ - . / and space in the names of metrics."""
    from lossd_client.run_messages import RunResult

    metrics = {"task": "x", "recall@1": 1, "nested": {"a": {"b": 2.0}}, "none": None, "list": [1.0], "nan": "NaN"}
    result = RunResult.of({"run": "r", "status": "open", "result": {"metrics": metrics}})
    assert result.flat() == {"recall_at_1": 1.0, "nested.a.b": 2.0}
    assert result.flat(lists=True) == {"recall_at_1": 1.0, "nested.a.b": 2.0, "list.0": 1.0}


def test_lists_are_read_to_their_end(fake: FakeRuns, service: FakeService) -> None:
    with LossClient(service.url) as lossd:
        for index in range(8):
            lossd.run(f"r{index}", task="binary")
        assert [run.run for run in lossd.runs()] == [f"r{index}" for index in range(8)]
        assert [run.run for run in lossd.runs(limit=4)] == [f"r{index}" for index in range(4)]
        lossd.runs(dataset="a@1", sort="-f1.macro", status="sealed", tag="commit:1", task="binary")
    assert "dataset=a%401&task=binary&status=sealed&tag=commit%3A1&sort=-f1.macro" in service.requests[-1].path


def test_no_run_is_busy_for_ever(on_run: Runs, fake: FakeRuns, service: FakeService) -> None:
    on_run("batches")
    fake.refuse = lambda n, request: problem(503, "unavailable", headers={"Retry-After": "0"})
    with pytest.raises(Unavailable, match=r"batch 00000000 \(index 0\)"):
        on_run("score", loader(), timeout_s=0.3, in_flight=1)


@pytest.mark.parametrize(
    "document", [{}, {"run": "r", "status": "open", "identity": "id", "counted": 3}, {"run": None}]
)
def test_an_answer_of_another_program_is_told(
    document: dict[str, Any], on_run: Runs, fake: FakeRuns, service: FakeService
) -> None:
    service.default = lambda request: reply(document)
    with pytest.raises(UnreadableAnswer, match="is it lossd"):
        on_run("result")


def test_lists_of_another_program_end(on_run: Runs, fake: FakeRuns, service: FakeService) -> None:
    def endless(request: Request) -> Reply:
        return reply({"batches": [], "next": "again"}) if "/batches?" in request.path else fake.answer(request)

    service.default = endless
    assert on_run("batches") == []
    service.default = lambda request: reply({"next": None}) if "/batches?" in request.path else fake.answer(request)
    with pytest.raises(UnreadableAnswer, match="the answer has no batches"):
        on_run("batches")


def test_both_clients_have_the_same_methods() -> None:
    for one, other in ((LossClient, AsyncLossClient), (RemoteRun, AsyncRemoteRun)):
        public = [name for name in vars(one) if not name.startswith("_")]
        assert public == [name for name in vars(other) if not name.startswith("_")]
        for method in public:
            mine, theirs = (inspect.signature(getattr(kind, method)) for kind in (one, other))
            assert mine.parameters == theirs.parameters


def test_a_score_is_a_record_of_numbers() -> None:
    assert RunScore(sent=1, counted_before=2, rows=3, seconds=0.5).rows == 3


def test_cancelled_scoring_ends(fake: FakeRuns, service: FakeService) -> None:
    """Cancellation does not wait for what is in flight."""
    entered = threading.Event()

    def hangs(request: Request) -> Reply:
        if request.path.count("/") == 5:
            entered.set()
            time.sleep(5)
        return fake.answer(request)

    service.default = hangs

    async def cancel() -> float:
        async with AsyncLossClient(service.url) as lossd:
            run = await lossd.run("r", task="binary")
            task = asyncio.ensure_future(run.score(loader(), in_flight=2))
            await asyncio.to_thread(entered.wait, 10)
            begin = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return time.monotonic() - begin

    assert asyncio.run(cancel()) < 3


# What is left of a batch


def test_the_rest_of_a_batch_has_the_rest_of_everything_that_belongs_to_its_rows() -> None:
    whole = RunBatch(
        name="00000003",
        inputs={
            "prediction": [[0.0], [1.0], [2.0], [3.0], [4.0]],
            "target": np.arange(5),
            "cluster_id": torch.arange(5),
        },
        rows=5,
        first=10,
        sample_id=None,
        index=3,
        slices={"site": "A", "sex": ["f", "m", None, "f", "m"], "age": None},
    )
    left, right = without(whole, [9, 12, 13, 15]) or []
    assert [(piece.name, piece.first, piece.rows) for piece in (left, right)] == [
        ("rows-10-11", 10, 2),
        ("rows-14-14", 14, 1),
    ]
    assert left.inputs["prediction"] == [[0.0], [1.0]]
    assert right.inputs["target"].tolist() == right.inputs["cluster_id"].tolist() == [4]
    assert left.slices == {"site": "A", "sex": ["f", "m"], "age": None}
    assert without(whole, range(10, 15)) == []
    assert without(whole, [9]) is None, "to send it again would be refused again"
    by_id = dataclasses.replace(whole, first=None, sample_id=[7, 3, 5, 9, 1])
    (rest,) = without(by_id, [3, 9]) or []
    assert (rest.name, rest.sample_id.tolist(), rest.slices["sex"]) == (
        name_of_ids([7, 5, 1]),
        [7, 5, 1],
        ["f", None, "m"],
    )
    assert without(dataclasses.replace(by_id, sample_id=[7, 3, 3, 9, 1]), [9]) is None
    assert without(dataclasses.replace(by_id, inputs={**by_id.inputs, "scale": 1.0}), [9]) is None
