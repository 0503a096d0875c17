"""Runs through the client and a real service: scripts that die, scripts that run twice, ranks of a distributed job."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lossd
from lossd.engine import worker_process
from lossd_client import AsyncLossClient, LossClient, RunResult
from lossd_client.errors import (
    BatchConflict,
    DuplicateRows,
    Incomplete,
    InvalidRequest,
    InvalidValue,
    NotComparable,
    OtherTargets,
    RunDiffers,
    RunSealed,
    UnknownRun,
)
from serving import Running, running

Array = np.ndarray[Any, Any]

ROWS, SIZE, CLASSES = 500, 7, 4
METRICS = ["accuracy", "f1", "log_loss", "auroc"]
DEFINITION: dict[str, Any] = {"loss": "cross_entropy", "label_smoothing": 0.1, "metrics": METRICS}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("store") / "runs.db"
    with running(engine="inline", compiled=False, runs=str(path)) as service:
        yield service


@pytest.fixture
def client(service: Running) -> Iterator[LossClient]:
    with LossClient(service.url) as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


def data() -> tuple[Array, Array]:
    random = np.random.default_rng(7)
    target = random.integers(0, CLASSES, ROWS)
    prediction = random.standard_normal((ROWS, CLASSES)) + 1.5 * (target[:, None] == np.arange(CLASSES))
    return prediction.astype(np.float32), target


def loader(pause_s: float = 0.0) -> Iterator[tuple[Array, Array]]:
    prediction, target = data()
    for begin in range(0, ROWS, SIZE):
        time.sleep(pause_s)
        yield prediction[begin : begin + SIZE], target[begin : begin + SIZE]


TOTAL = len(range(0, ROWS, SIZE))


def check_result(result: RunResult) -> None:
    """The result is that of the rows in one run of this process, and its counts are those of one evaluation."""
    run = lossd.Run(**DEFINITION, identity="position", rows=ROWS)
    run.add(*data(), first=0)
    expected = run.result()
    assert (result.loss, result.metrics, result.targets) == (expected.loss, expected.metrics, expected.targets)
    assert result.digest == expected.digest
    options = {**DEFINITION, "outputs": ["loss", "metrics"]}
    whole = lossd.evaluate(options.pop("loss"), *data(), **options)
    assert (result.metrics.accuracy, result.metrics.f1) == (whole.metrics.accuracy, whole.metrics.f1)
    assert result.metrics.auroc == whole.metrics.auroc
    assert result.loss == pytest.approx(whole.loss, rel=1e-6)


def test_a_script_that_is_killed_goes_on(service: Running, client: LossClient, name: str, tmp_path: Path) -> None:
    """It is killed with SIGKILL twice, at any place, and started again: each batch is counted once."""
    script = tmp_path / "score.py"
    script.write_text(
        "import sys; sys.path[:0] = sys.argv[3:]\n"
        "from client.test_runs_against_service import DEFINITION, ROWS, loader\n"
        "from lossd_client import LossClient\n"
        "with LossClient(sys.argv[1]) as lossd:\n"
        "    run = lossd.run(sys.argv[2], rows=ROWS, **DEFINITION)\n"
        "    print('ready', flush=True)\n"
        "    done = run.score(loader(0.02), in_flight=4)\n"
        "    print(done.sent, done.counted_before, done.rows, flush=True)\n"
    )
    before = 0
    for minimum in (TOTAL // 4, TOTAL // 2):
        with _script(script, service.url, name) as process:
            _wait_for_batches(client, name, minimum)
            process.kill()
        counted = len(client.run(name).batches())
        assert before < counted < TOTAL
        before = counted
    with _script(script, service.url, name) as process:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
    sent, counted_before, rows = map(int, output.split()[1:])
    assert (sent + counted_before, rows) == (TOTAL, ROWS)
    assert counted_before >= before, "what was in flight may be counted after the script's death"
    batches = client.run(name).batches()
    assert sorted(batch.batch for batch in batches) == [f"{index:08}" for index in range(TOTAL)]
    check_result(client.run(name).seal())


def _script(script: Path, url: str, name: str) -> subprocess.Popen[str]:
    paths = [str(Path(__file__).parents[1]), *sys.path]
    command = [sys.executable, str(script), url, name, *paths]
    return worker_process.subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # forked: see warm.py


def _wait_for_batches(client: LossClient, name: str, minimum: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if client.run(name).document.counted.batches >= minimum:
                return
        except UnknownRun:
            pass
        time.sleep(0.02)
    raise AssertionError("the script has not counted enough")


def test_two_at_once(service: Running, name: str) -> None:
    def score(errors: list[BaseException]) -> None:
        try:
            with LossClient(service.url) as client:
                assert client.run(name, rows=ROWS, **DEFINITION).score(loader(), in_flight=4).rows == ROWS
        except BaseException as error:  # re-raised below, in the test's own thread
            errors.append(error)

    errors: list[BaseException] = []
    threads = [threading.Thread(target=score, args=[errors]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with LossClient(service.url) as client:
        assert len(client.run(name).batches()) == TOTAL
        check_result(client.run(name).seal())


def test_coroutines_count_the_same(service: Running, name: str) -> None:
    async def score() -> RunResult:
        async with AsyncLossClient(service.url) as client:
            run = await client.run(name, rows=ROWS, **DEFINITION)
            half = list(loader())[: TOTAL // 2]
            assert (await run.score(half, in_flight=3)).sent == len(half)
            done = await run.score(loader(), in_flight=3)
            assert (done.sent, done.counted_before) == (TOTAL - len(half), len(half))
            assert (await run.result()).provisional
            assert [entry.run for entry in await client.runs(sort="-created", limit=1)] == [name]
            return await run.seal(ROWS)

    result = asyncio.run(score())
    assert not result.provisional
    check_result(result)


def test_ranks_share_a_run(service: Running, client: LossClient, name: str) -> None:
    """Each rank scores its rows, known by their ids, in batches of its own order; one of them twice, after a crash."""
    prediction, target = data()

    def rank(number: int) -> list[dict[str, Array]]:
        ids = np.random.default_rng(number).permutation(np.arange(number, ROWS, 3))
        return [
            {"prediction": prediction[part], "target": target[part], "sample_id": part}
            for part in np.array_split(ids, 10)
        ]

    run = client.run(name, rows=ROWS, identity="id", **DEFINITION)
    assert run.score(rank(1)[:4]).sent == 4
    for number in range(3):
        with LossClient(service.url) as rank_client:
            done = rank_client.run(name).score(rank(number))
            assert (done.sent, done.counted_before) == ((6, 4) if number == 1 else (10, 0))
    with pytest.raises(DuplicateRows) as caught:
        run.add(prediction[:1], target[:1], sample_id=[0])
    assert caught.value.rows == [0]
    result = run.seal()
    assert result.counted.rows == ROWS
    expected = lossd.Run(**DEFINITION, identity="id", rows=ROWS)
    expected.add(prediction, target, sample_id=np.arange(ROWS))
    assert (result.loss, result.metrics, result.targets) == (
        expected.result().loss, expected.result().metrics, expected.result().targets,
    )  # fmt: skip


def parts_of(identity: str, bounds: list[tuple[int, int]]) -> list[dict[str, Any]]:
    prediction, target = data()
    parts = [{"prediction": prediction[a:b], "target": target[a:b], "sample_weight": np.ones(b - a)} for a, b in bounds]
    if identity == "id":
        return [{**part, "sample_id": np.arange(a, b)} for part, (a, b) in zip(parts, bounds, strict=True)]
    return [{**part, "first": a} for part, (a, b) in zip(parts, bounds, strict=True)]


@pytest.mark.parametrize("identity", ["id", "position"])
def test_rows_of_other_batches_are_dropped_and_the_others_counted(
    client: LossClient, name: str, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = client.run(name, identity=identity, rows=ROWS, **DEFINITION)  # type: ignore[arg-type]
    bounds = [(0, 60), (100, 220), (300, 301), (40, 400), (40, 400), (0, ROWS)]
    *parts, twice, last = parts_of(identity, bounds)
    dropped = [run.add(**part, on_duplicate="drop").dropped for part in parts]
    assert dropped == [0, 0, 0, 20 + 120 + 1]
    with pytest.raises(DuplicateRows):
        run.add(**twice)
    sent: list[str] = []
    put = type(client._service).put_batch
    monkeypatch.setattr(
        type(client._service), "put_batch", lambda *arguments: (sent.append(arguments[2]), put(*arguments))[1]
    )
    again = run.add(**twice, on_duplicate="drop")
    assert (again.counted.rows, again.dropped, len(sent)) == (0, 360, 1), "one refusal names all rows"
    rest = run.add(**last, on_duplicate="drop")
    assert (rest.counted.rows, rest.dropped, rest.run.rows) == (ROWS - 400, 400, ROWS)
    result = run.seal()
    expected = lossd.Run(**DEFINITION, identity="position", rows=ROWS)
    expected.add(*data(), first=0, sample_weight=np.ones(ROWS))
    assert (result.loss, result.metrics, result.targets) == (
        expected.result().loss, expected.result().metrics, expected.result().targets,
    )  # fmt: skip


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_loader_of_overlapping_batches_is_scored_and_scored_again(
    service: Running, client: LossClient, name: str, asynchronous: bool
) -> None:
    loader = parts_of("id", [(0, 200), (150, 350), (20, 30), (340, ROWS)])

    def score() -> Any:
        if not asynchronous:
            return client.run(name, identity="id", rows=ROWS, **DEFINITION).score(
                loader, on_duplicate="drop", in_flight=1
            )

        async def scored() -> Any:
            async with AsyncLossClient(service.url) as lossd:
                run = await lossd.run(name, identity="id", rows=ROWS, **DEFINITION)
                return await run.score(loader, on_duplicate="drop", in_flight=1)

        return asyncio.run(scored())

    first, second = score(), score()
    assert (first.sent, first.counted_before, first.dropped) == (4, 0, 50 + 10 + 10)
    assert (second.sent, second.counted_before, second.dropped) == (3, 1, 200 + 10 + 160)
    assert client.run(name).seal().counted.rows == ROWS


def test_a_batch_that_cannot_be_cut_is_refused_as_it_is(client: LossClient, name: str) -> None:
    run = client.run(name, loss="ctc", metrics=[], identity="id")
    prediction, target = np.zeros((5, 2, 4), np.float32), np.array([[1, 2], [2, 3]])  # 5 time steps of 2 rows
    lengths = {"input_lengths": np.array([5, 5]), "target_lengths": np.array([2, 2])}
    run.add(prediction, target, sample_id=[1, 2], inputs=lengths)
    with pytest.raises(DuplicateRows, match="before: 2 "):
        run.add(prediction, target, sample_id=[2, 3], inputs=lengths, on_duplicate="drop")
    with pytest.raises(DuplicateRows, match="twice"):
        run.add(prediction, target, sample_id=[5, 5], inputs=lengths, on_duplicate="drop")
    with pytest.raises(TypeError, match="on_duplicate is 'skip'; it is error or drop"):
        run.add(prediction, target, sample_id=[8, 9], inputs=lengths, on_duplicate="skip")  # type: ignore[arg-type]
    assert run.result().counted.rows == 2


def test_counts_equal_those_of_one_evaluation(client: LossClient, name: str) -> None:
    run = client.run(name, task="multiclass", rows=ROWS)
    run.score(loader())
    whole = client.metrics("multiclass", *data())
    assert run.result().metrics == whole
    assert run.result("accuracy").metrics == {"task": "multiclass", "accuracy": whole.accuracy}
    flat = run.seal().flat()
    assert flat["f1.macro"] == whole.f1.macro
    assert all(isinstance(value, float) for value in flat.values())
    [entry] = [entry for entry in client.runs(sort="-f1.macro") if entry.run == name]
    assert entry.summary == flat


def test_a_wrong_definition_fails_at_once(client: LossClient, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.run(name, task="multiclass", limit=1)
    assert caught.value.errors[0]["pointer"] == "/limit"
    client.run(name, task="multiclass", tags={"commit": "a"})
    client.run(name, task="multiclass", tags={"commit": "b"})
    with pytest.raises(RunDiffers) as differs:
        client.run(name, task="multiclass", metrics=["f1"], rows=3)
    assert differs.value.fields == ["/metrics/names", "/dataset/rows"] or set(differs.value.fields) == {
        "/metrics", "/dataset/rows",
    }  # fmt: skip


def test_a_refused_batch_is_named(client: LossClient, name: str) -> None:
    batches = list(loader())
    batches[5] = (batches[5][0], np.full(SIZE, CLASSES))
    run = client.run(name, task="multiclass")
    with pytest.raises(InvalidValue, match=r"^batch 00000005 \(index 5\): "):
        run.score(batches, in_flight=2)
    assert {f"{index:08}" for index in range(5)} <= {batch.batch for batch in run.batches()}
    assert run.score(loader()).counted_before >= 5


def test_another_batch_size_is_refused(client: LossClient, name: str) -> None:
    run = client.run(name, task="multiclass")
    run.score(list(loader())[:3])
    prediction, target = data()
    with pytest.raises(BatchConflict, match="with 7 rows from 0 and has 10 from 0 now"):
        run.score([(prediction[:10], target[:10])])
    with pytest.raises(BatchConflict, match="00000002"):
        run.add(prediction[14:21], target[14:21] * 0, first=14, name="00000002")


def test_seals_are_checked(client: LossClient, name: str) -> None:
    run = client.run(name, task="multiclass", targets=f"t1:{'0' * 32}")
    run.score(list(loader())[1:2])
    with pytest.raises(Incomplete) as caught:
        run.seal(ROWS)
    assert (caught.value.expected, caught.value.counted, caught.value.missing[0]) == (ROWS, SIZE, [SIZE, ROWS])
    with pytest.raises(OtherTargets):
        run.seal()
    run.delete()
    with pytest.raises(UnknownRun):
        run.result()


def test_a_sealed_run_counts_nothing_more(client: LossClient, name: str) -> None:
    """The same script may run again: all of it is counted, and the seal is repeated."""
    for _ in range(2):
        run = client.run(name, rows=ROWS, **DEFINITION)
        run.score(loader())
        check_result(run.seal())
    with pytest.raises(RunSealed):
        run.add(*next(loader()), first=ROWS)


def test_batches_identify_rows(client: LossClient, name: str) -> None:
    """A loss of a formula makes one row of a batch, which a second scoring recognises."""
    formula = {"name": "expression", "formula": "mean((prediction - target)**2)"}
    run = client.run(name, loss=formula, metrics=[], identity="batch")
    batches = [(np.arange(4.0), np.ones(4)), (np.arange(3.0), np.ones(3))]
    assert run.score(batches).sent == 2
    done = client.run(name).score(batches)
    assert (done.sent, done.counted_before) == (0, 2)


# Slices, clusters and comparisons


def test_rows_say_their_slices_by_texts_codes_or_for_a_whole_batch(client: LossClient, name: str) -> None:
    prediction, target = data()
    site = np.where(np.arange(ROWS) % 3 == 0, "A", "B").astype(object)
    site[::5] = None
    codes = np.array([{"A": 0, "B": 1, None: -1}[value] for value in site])
    definition = {"task": "multiclass", "metrics": ["accuracy"], "slices": {"site": ["A", "B"]}}
    results = []
    for way, values in (("texts", site), ("codes", codes), ("list", site.tolist())):
        run = client.run(f"{name}-{way}", **definition)
        run.score(
            {"prediction": prediction[p], "target": target[p], "slices": {"site": values[p]}}
            for p in (slice(0, 300), slice(300, ROWS))
        )
        results.append(run.result())
    right = prediction.argmax(1) == target
    for result in results:
        assert result.digest == results[0].digest
        for code, value in enumerate("AB"):
            assert result.slice(site=value).metrics.accuracy == right[codes == code].mean()
            assert result.slice(site=value).counted.rows == int((codes == code).sum())
    parts = client.run(f"{name}-parts", task="multiclass", metrics=["accuracy"], slices={"site": ["A", "B"]})
    parts.add(prediction[:200], target[:200], first=0, slices={"site": "A"})
    parts.add(prediction[200:], target[200:], first=200, slices={"site": None})
    assert parts.result().slice(site="A").metrics.accuracy == right[:200].mean()
    assert parts.result().slice(site="B").counted.rows == 0
    with pytest.raises(InvalidRequest, match="no value 'C'; its values are A, B"):
        parts.add(prediction, target, first=ROWS, slices={"site": ["C"] * ROWS})
    with pytest.raises(InvalidRequest, match="site"):
        parts.add(prediction, target, first=ROWS)


def test_clusters_widen_intervals_as_in_one_process(client: LossClient, name: str) -> None:
    """Each row three times: as rows they would look like three times as many."""
    prediction, target = (np.repeat(array, 3, axis=0) for array in data())
    clusters = np.repeat(np.arange(ROWS), 3)
    run = client.run(name, task="multiclass", metrics=["accuracy"])
    run.add(prediction, target, first=0, cluster_id=clusters)
    rows = client.run(f"{name}-rows", task="multiclass", metrics=["accuracy"])
    rows.add(prediction, target, first=0)
    here = lossd.Run(task="multiclass", metrics=["accuracy"], identity="position")
    here.add(prediction, target, first=0, cluster_id=clusters)
    interval = run.result().intervals["accuracy"]
    assert interval == here.result().intervals["accuracy"]
    ratio = interval.standard_error / rows.result().intervals["accuracy"].standard_error
    assert 1.3 < ratio < 2.3  # √3, estimated from 64 groups


def test_runs_are_compared(client: LossClient, name: str) -> None:
    prediction, target = data()
    worse = prediction + 2 * np.random.default_rng(8).standard_normal(prediction.shape).astype("f4")
    for run, logits in ((f"{name}-good", prediction), (f"{name}-bad", worse)):
        client.run(run, task="multiclass", metrics=["accuracy", "f1"]).add(logits, target, first=0)
    found = client.compare(f"{name}-bad", f"{name}-good")
    right = [float((logits.argmax(1) == target).mean()) for logits in (worse, prediction)]
    assert (found["accuracy"].baseline, found["accuracy"].value) == tuple(right)
    assert (found["f1.macro"].verdict, found["f1.macro"].better) == ("b", "higher")
    assert found.provisional
    assert found.sentence == str(found)
    assert client.compare(f"{name}-good", f"{name}-bad", classes=True)["f1.per_class.1"].verdict in ("a", "undecided")

    async def async_answers() -> tuple[float | None, dict[str, int]]:
        async with AsyncLossClient(client._service.url) as other:
            again = await other.compare(f"{name}-bad", f"{name}-good")
            run = await other.run(f"{name}-good")
            result = await run.result("f1", level=0.8, slices=False)
            return again["accuracy"].p, result.counted

    p, counted = asyncio.run(async_answers())
    assert p == found["accuracy"].p
    assert counted["rows"] == ROWS
    other = client.run(f"{name}-other", task="multiclass", metrics=["accuracy", "f1"])
    other.add(prediction, (target + 1) % CLASSES, first=0)
    with pytest.raises(NotComparable, match="targets") as caught:
        client.compare(f"{name}-good", f"{name}-other", f"{name}-bad")
    assert [each["run"] for each in caught.value.runs] == [f"{name}-other"]
