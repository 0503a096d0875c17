"""Comparisons over HTTP, with a real recorder: the answer, and every refusal."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lossd.api import create_app
from lossd.caches import CACHES
from lossd.configuration.settings import Settings
from lossd.metrics.registry import METRICS
from serving import ALICE, BOB, Running, asking, keeping_runs

DEFINITION = {"task": "binary", "metrics": ["accuracy", "f1", "auroc"], "identity": "position"}
ROWS = 2000

_numbers = itertools.count()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with keeping_runs(tmp_path_factory.mktemp("runs"), of_two=True) as service:
        yield service


@pytest.fixture(scope="module")
def http(service: Running) -> Iterator[httpx.Client]:
    with asking(service, ALICE) as http:
        yield http


@pytest.fixture(scope="module")
def bob(service: Running) -> Iterator[httpx.Client]:
    with asking(service, BOB) as http:
        yield http


def truth(rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2, rows)


def logits(noise: float, rows: int = ROWS, seed: int = 2) -> np.ndarray:
    """A model's logits: the less noise, the better. Models share the noise that is the data set's own."""
    data_noise, model_noise = np.random.default_rng(3).normal(size=rows), np.random.default_rng(seed).normal(size=rows)
    return (2.0 * truth(rows) - 1 + data_noise + noise * model_noise).astype("f4")


def counted(
    http: httpx.Client,
    prediction: np.ndarray,
    target: np.ndarray | None = None,
    *,
    seal: bool = True,
    **definition: Any,
) -> str:
    """Return the name of a new run of these rows."""
    name = f"run-{next(_numbers)}"
    target = truth(len(prediction)) if target is None else target
    answer = http.put(f"/v1/runs/{name}", json={**DEFINITION, **definition})
    assert answer.status_code == 201, answer.text
    for first in range(0, len(prediction), 500):
        part = slice(first, first + 500)
        inputs = {"prediction": prediction[part].tolist(), "target": target[part].tolist()}
        put = http.put(f"/v1/runs/{name}/batches/{first}", json={"first": first, "inputs": inputs})
        assert put.status_code == 201, put.text
    if seal:
        sealed = http.post(f"/v1/runs/{name}/seal")
        assert sealed.status_code == 200, sealed.text
    return name


def compare(http: httpx.Client, *runs: str, **query: Any) -> httpx.Response:
    return http.get("/v1/compare", params=[*(("run", run) for run in runs), *query.items()])


def refused(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["type"] == f"/problems/{slug}"
    return dict(document)


@pytest.fixture(scope="module")
def good(http: httpx.Client) -> str:
    return counted(http, logits(0.3))


@pytest.fixture(scope="module")
def bad(http: httpx.Client) -> str:
    return counted(http, logits(2.0))


# Refusals


@pytest.mark.parametrize(
    ("query", "culprit"),
    [
        ("", "run"),
        ("run=a", "run"),
        ("run=a&run=b&metric=f1", "metric"),
        ("run=a&run=b&level=0.5", "level"),
        ("run=a&run=b&level=1", "level"),
        ("run=a&run=b&level=NaN", "level"),
        ("run=a&run=b&level=0.9&level=0.9", "level"),
        ("run=a&run=b&classes=maybe", "classes"),
        ("run=a&run=b%20c", "b c"),
        ("run=a&run=b&run=c&owner=x&owner=y", "owner"),
        ("&".join(f"run=r{i}" for i in range(33)), "run"),
    ],
)
def test_a_wrong_question_is_refused(http: httpx.Client, query: str, culprit: str) -> None:
    assert culprit in refused(http.get(f"/v1/compare?{query}"), 422, "invalid-request")["detail"]


def test_a_run_is_not_compared_with_itself(http: httpx.Client, good: str) -> None:
    detail = refused(compare(http, good, good), 422, "invalid-request")["detail"]
    assert good in detail
    assert "named twice" in detail


def test_unknown_runs_and_those_of_other_keys_are_not_found(http: httpx.Client, bob: httpx.Client, good: str) -> None:
    refused(compare(http, good, "nobody"), 404, "unknown-run")
    mine = counted(bob, logits(0.3), seal=False)
    refused(compare(bob, mine, good), 404, "unknown-run")
    refused(compare(http, good, mine), 404, "unknown-run")


def test_only_reading_is_allowed(http: httpx.Client) -> None:
    answer = http.post("/v1/compare", json={})
    refused(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET, HEAD"


def test_a_run_without_rows_is_named(http: httpx.Client, good: str) -> None:
    empty = f"run-{next(_numbers)}"
    http.put(f"/v1/runs/{empty}", json=DEFINITION)
    for runs in ((good, empty), (empty, good)):
        problem = refused(compare(http, *runs), 409, "not-comparable")
        assert empty in problem["detail"]
        assert "has counted no rows; send its batches" in problem["detail"]
        assert [(each["run"], each["differs"]) for each in problem["runs"]] == [(empty, ["rows"])]


def alone(scenario: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]], folder: Path) -> None:
    """Run a scenario against an application of its own, in this process."""

    async def run() -> None:
        app = create_app(Settings(engine="inline", compiled=False, runs=str(folder / "runs.db")))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as http:
                await scenario(http)

    asyncio.run(run())


def test_runs_of_other_versions_of_a_metric_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def sealed(http: httpx.AsyncClient, name: str) -> None:
        inputs = {"prediction": [2.0, -1.0], "target": [1, 1]}
        assert (await http.put(f"/v1/runs/{name}", json=DEFINITION)).status_code == 201
        await http.put(f"/v1/runs/{name}/batches/a", json={"first": 0, "inputs": inputs})
        assert (await http.post(f"/v1/runs/{name}/seal")).status_code == 200

    async def before(http: httpx.AsyncClient) -> None:
        await sealed(http, "old")

    async def after(http: httpx.AsyncClient) -> None:
        await sealed(http, "new")
        for runs in ("run=old&run=new", "run=new&run=old"):
            problem = refused(await http.get(f"/v1/compare?{runs}"), 409, "not-comparable")
            assert [(each["run"], each["differs"]) for each in problem["runs"]] == [("old", ["versions"])]
            assert "old" in problem["detail"]
            assert "count the rows in another run" in problem["detail"]
        refused(await http.get("/v1/runs/old?level=0.9"), 409, "definition-changed")
        assert (await http.get("/v1/runs/old")).status_code == 200

    alone(before, tmp_path)
    changed = dataclasses.replace(METRICS["binary"]["accuracy"], version=2)
    monkeypatch.setitem(METRICS["binary"], "accuracy", changed)
    for name in ("run_documents", "run_countings"):  # the upgraded service is another process
        CACHES[name].clear()
    alone(after, tmp_path)
    for name in ("run_documents", "run_countings"):
        CACHES[name].clear()


def test_a_service_without_runs_compares_none() -> None:
    async def scenario() -> None:
        app = create_app(Settings(engine="inline", compiled=False, runs="off"))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http,
        ):
            problem = refused(await http.get("/v1/compare?run=a&run=b"), 404, "not-found")
            assert "runs is off" in problem["detail"]

    asyncio.run(scenario())


# What may differ


def test_runs_of_other_targets_are_not_compared(http: httpx.Client, good: str) -> None:
    target = truth()
    target[7] = 1 - target[7]
    other = counted(http, logits(0.3), target)
    problem = refused(compare(http, good, other), 409, "not-comparable")
    assert problem["differs"] == ["targets"]
    assert problem["runs"][0]["run"] == other
    assert "score both on the same data" in problem["detail"]


def test_runs_of_other_rows_are_compared_unpaired_only(http: httpx.Client, good: str) -> None:
    fewer = counted(http, logits(0.3)[:1500])
    problem = refused(compare(http, good, fewer), 409, "not-comparable")
    assert problem["differs"] == ["rows"]
    assert "2000" in problem["detail"]
    assert "1500" in problem["detail"]
    answer = compare(http, good, fewer, unpaired="true")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["paired"], answer.json()["rows"]) == (False, 2000)
    assert [run["rows"] for run in answer.json()["runs"]] == [2000, 1500]


@pytest.mark.parametrize(
    ("definition", "pointer"),
    [
        ({"metrics": {"names": ["accuracy"], "threshold": 0.6}}, "/metrics/threshold"),
        ({"task": "multilabel", "metrics": ["accuracy"]}, "/task"),
        ({"identity": "batch"}, "/identity"),
    ],
)
def test_runs_of_other_definitions_are_not_compared_even_unpaired(
    http: httpx.Client, good: str, definition: dict[str, Any], pointer: str
) -> None:
    name = f"run-{next(_numbers)}"
    document = {**DEFINITION, **definition}
    assert http.put(f"/v1/runs/{name}", json=document).status_code == 201
    sent: dict[str, Any] = {"inputs": {"prediction": [1.0, 2.0], "target": [1, 0]}}
    if document["task"] == "multilabel":
        sent["inputs"] = {"prediction": [[1.0, 2.0]], "target": [[1, 0]]}
    if document["identity"] == "position":
        sent["first"] = 0
    put = http.put(f"/v1/runs/{name}/batches/a", json=sent)
    assert put.status_code == 201, put.text
    for unpaired in ("false", "true"):
        problem = refused(compare(http, good, name, unpaired=unpaired), 409, "not-comparable")
        assert pointer in problem["differs"]
        assert pointer in problem["detail"]


def test_every_run_that_stands_apart_is_named(http: httpx.Client, good: str, bad: str) -> None:
    target = 1 - truth()
    other, fewer = counted(http, logits(0.3), target), counted(http, logits(0.3)[:500])
    problem = refused(compare(http, good, other, bad, fewer), 409, "not-comparable")
    assert [(each["run"], each["differs"]) for each in problem["runs"]] == [(other, ["targets"]), (fewer, ["rows"])]
    assert all(each["owner"] == "alice" and each["detail"] for each in problem["runs"])
    assert compare(http, good, bad).status_code == 200


def test_a_public_run_is_compared_with_ones_own(http: httpx.Client, bob: httpx.Client, good: str) -> None:
    public = counted(http, logits(1.0), public=True)
    mine = counted(bob, logits(0.3))
    answer = compare(bob, public, mine)
    assert answer.status_code == 200, answer.text
    assert [run["owner"] for run in answer.json()["runs"]] == ["alice", "bob"]
    named = bob.get(f"/v1/compare?run={public}&owner=alice&run={mine}&owner=")
    assert named.json() == answer.json()
    refused(bob.get(f"/v1/compare?run={public}&run={mine}&owner=bob"), 404, "unknown-run")


def test_a_metric_that_was_not_counted_is_named(http: httpx.Client, good: str, bad: str) -> None:
    for metrics, culprit in (("log_loss", "log_loss"), ("acuracy", "acuracy")):
        answer = compare(http, good, bad, metrics=metrics)
        assert answer.status_code in (404, 422), answer.text
        assert culprit in answer.json()["detail"]
    found = compare(http, good, bad, metrics="precision")  # made of the same counts
    assert list(found.json()["comparisons"][0]["metrics"]) == ["precision"]


# Freshness


def test_an_answer_has_a_tag_that_changes_with_each_run(http: httpx.Client, good: str) -> None:
    other = counted(http, logits(0.9)[:1500], seal=False, dataset={"rows": 2000})
    first = compare(http, good, other, unpaired="true")
    assert first.status_code == 200, first.text
    [_, entry] = first.json()["runs"]
    assert (entry["status"], entry["provisional"]) == ("open", True)
    assert first.json()["comparisons"][0]["sentence"].endswith(f"provisional, as {other} is open")
    query = [("run", good), ("run", other), ("unpaired", "true")]
    tag = {"if-none-match": first.headers["etag"]}
    again = http.get("/v1/compare", params=query, headers=tag)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert http.get("/v1/compare", params=[*query, ("classes", "true")], headers=tag).status_code == 200
    rest = {"prediction": logits(0.9)[1500:].tolist(), "target": truth()[1500:].tolist()}
    assert http.put(f"/v1/runs/{other}/batches/rest", json={"first": 1500, "inputs": rest}).status_code == 201
    changed = http.get("/v1/compare", params=query, headers=tag)
    assert changed.status_code == 200
    assert changed.headers["etag"] != first.headers["etag"]
    assert changed.json()["runs"][1]["rows"] == 2000
    before_seal = changed.json()["comparisons"][0]["metrics"]
    assert http.post(f"/v1/runs/{other}/seal").status_code == 200
    sealed = http.get("/v1/compare", params=query)
    assert sealed.json()["comparisons"][0]["metrics"] == before_seal
    assert not sealed.json()["runs"][1]["provisional"]


def test_head_answers_as_get_without_a_body(http: httpx.Client, good: str, bad: str) -> None:
    query = [("run", good), ("run", bad)]
    head, get = http.head("/v1/compare", params=query), http.get("/v1/compare", params=query)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == get.headers["etag"]


# The answer

T63 = 1.9983405425207415
"""Student's t at 97.5 % with 63 degrees of freedom (R: qt(0.975, 63))."""


def groups(rows: int = ROWS) -> np.ndarray:
    """The group of each position: splitmix64 (S. Vigna) modulo 64, in Python's integers."""

    def mixed(x: int) -> int:
        mask = (1 << 64) - 1
        z = (x + 0x9E3779B97F4A7C15) & mask
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return (z ^ (z >> 31)) % 64

    return np.array([mixed(position) for position in range(rows)])


def left_out(prediction: np.ndarray, rows: int = ROWS) -> tuple[float, np.ndarray]:
    """The accuracy of all rows, and that of all rows but each group's."""
    right, group = (prediction > 0) == truth(rows), groups(rows)
    return float(right.mean()), np.array([right[group != g].mean() for g in range(64)])


def test_a_better_model_is_told_from_a_worse_one(http: httpx.Client, good: str, bad: str) -> None:
    answer = compare(http, bad, good)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["level"], document["paired"], document["groups"], document["rows"]) == (0.95, True, 64, ROWS)
    assert [run["run"] for run in document["runs"]] == [bad, good]
    [comparison] = document["comparisons"]
    found = comparison["metrics"]["accuracy"]
    values, leave_outs = zip(left_out(logits(2.0)), left_out(logits(0.3)), strict=True)
    difference = values[1] - values[0]
    spread = leave_outs[1] - leave_outs[0]
    error = float(np.sqrt(63 / 64 * ((spread - spread.mean()) ** 2).sum()))
    assert (found["baseline"], found["value"]) == values
    assert found["difference"] == pytest.approx(difference, rel=1e-12)
    assert found["standard_error"] == pytest.approx(error, rel=1e-9)
    assert found["low"] == pytest.approx(difference - T63 * error, rel=1e-9)
    assert found["high"] == pytest.approx(difference + T63 * error, rel=1e-9)
    assert (found["better"], found["verdict"]) == ("higher", "b")
    assert found["p"] <= found["p_holm"] < 0.001
    assert comparison["sentence"].startswith(f"{good} is better than {bad} in accuracy (+")
    [reversed_] = compare(http, good, bad).json()["comparisons"]
    assert reversed_["metrics"]["accuracy"]["verdict"] == "a"
    assert reversed_["metrics"]["accuracy"]["difference"] == -found["difference"]
    assert f"{bad} is worse than {good}" in reversed_["sentence"]


def test_two_models_of_the_same_kind_are_undecided(http: httpx.Client, good: str) -> None:
    twin = counted(http, logits(0.3, seed=9))
    [comparison] = compare(http, good, twin).json()["comparisons"]
    assert {each["verdict"] for each in comparison["metrics"].values()} == {"undecided"}
    assert "cannot be told apart" in comparison["sentence"]
    copy = counted(http, logits(0.3))
    [same] = compare(http, good, copy).json()["comparisons"]
    assert same["metrics"]["accuracy"]["difference"] == 0.0
    assert same["metrics"]["accuracy"]["p"] == 1.0
    assert same["metrics"]["accuracy"]["verdict"] == "undecided"


def test_pairing_narrows_the_interval(http: httpx.Client, good: str) -> None:
    """Both models share most of what is hard, so that their difference is known better than their scores."""
    other = counted(http, logits(0.6))
    paired, unpaired = (
        compare(http, good, other, **query).json()["comparisons"][0]["metrics"]["accuracy"]
        for query in ({}, {"unpaired": "true"})
    )
    assert paired["difference"] == unpaired["difference"]
    assert paired["standard_error"] < 0.8 * unpaired["standard_error"]


def test_a_level_widens_intervals_and_raises_the_bar(http: httpx.Client, good: str, bad: str) -> None:
    [wide], [narrow] = (compare(http, bad, good, level=level).json()["comparisons"] for level in (0.999, 0.6))
    assert wide["metrics"]["f1"]["low"] < narrow["metrics"]["f1"]["low"]
    assert wide["metrics"]["f1"]["p"] == narrow["metrics"]["f1"]["p"]
    assert "99.9 % interval" in wide["sentence"]


def test_several_runs_are_each_compared_with_the_first(http: httpx.Client, good: str, bad: str) -> None:
    twin = counted(http, logits(0.3, seed=9))
    document = compare(http, bad, good, twin).json()
    assert [run["run"] for run in document["runs"]] == [bad, good, twin]
    assert [each["run"] for each in document["comparisons"]] == [good, twin]
    assert document["comparisons"][0] == compare(http, bad, good).json()["comparisons"][0]
    assert document["runs"][0] == compare(http, bad, twin).json()["runs"][0]


def test_an_open_run_answers_what_it_answers_sealed(http: httpx.Client, good: str) -> None:
    other = counted(http, logits(1.0), seal=False)
    before = compare(http, good, other, classes="true").json()
    assert http.post(f"/v1/runs/{other}/seal").status_code == 200
    after = compare(http, good, other, classes="true").json()
    assert before["comparisons"][0]["metrics"] == after["comparisons"][0]["metrics"]
    assert before["runs"][1]["intervals"] == after["runs"][1]["intervals"]


def test_classes_and_slices_are_compared_if_asked(http: httpx.Client) -> None:
    generator = np.random.default_rng(4)
    target, site = generator.integers(0, 3, ROWS), generator.integers(0, 2, ROWS)
    definition = {"task": "multiclass", "metrics": ["accuracy", "f1"], "identity": "position"}
    names = []
    for noise in (1.5, 0.6):
        prediction = np.eye(3)[target] * 2 + noise * generator.normal(size=(ROWS, 3))
        name = f"run-{next(_numbers)}"
        names.append(name)
        http.put(f"/v1/runs/{name}", json={**definition, "slices": {"site": ["A", "B"]}})
        inputs = {"prediction": prediction.tolist(), "target": target.tolist(), "slice.site": site.tolist()}
        put = http.put(f"/v1/runs/{name}/batches/a", json={"first": 0, "inputs": inputs})
        assert put.status_code == 201, put.text
    plain = compare(http, *names).json()["comparisons"][0]
    assert "f1.macro" in plain["metrics"]
    assert not [name for name in plain["metrics"] if "per_class" in name]
    assert plain["slices"] == []
    found = compare(http, *names, classes="true", slices="true", metrics="f1").json()["comparisons"][0]
    assert {"f1.per_class.0", "f1.per_class.1", "f1.per_class.2", "f1.macro"} <= found["metrics"].keys()
    assert "accuracy" not in found["metrics"]
    assert [each["slice"] for each in found["slices"]] == [{"site": "A"}, {"site": "B"}]
    assert [each["rows"] for each in found["slices"]] == [int((site == code).sum()) for code in (0, 1)]
    assert found["slices"][1]["metrics"]["f1.macro"]["verdict"] == "b"
    assert found["metrics"]["f1.macro"]["p_holm"] >= plain["metrics"]["f1.macro"]["p_holm"]  # more was asked
    assert "per_class" not in found["sentence"]
