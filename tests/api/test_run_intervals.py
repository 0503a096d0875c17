"""Intervals and slices of a run over HTTP, with a real recorder: of open and of sealed runs, and in lists."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from serving import asking, keeping_runs

ROWS = 1500
DEFINITION = {
    "task": "binary",
    "metrics": ["accuracy", "auroc"],
    "identity": "position",
    "slices": {"site": ["A", "B"], "sex": ["f", "m"]},
    "crossed": [["site", "sex"]],
}

_numbers = itertools.count()


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with keeping_runs(tmp_path_factory.mktemp("runs")) as service, asking(service) as http:
        yield http


@pytest.fixture(params=["open", "sealed"])
def run(request: pytest.FixtureRequest, http: httpx.Client) -> str:
    """The path of a run of two batches; the first is of site A."""
    path = f"/v1/runs/run-{next(_numbers)}"
    answer = http.put(path, json=DEFINITION)
    assert answer.status_code == 201, answer.text
    generator = np.random.default_rng(6)
    for first, site in ((0, "A"), (1000, "B")):
        rows = 1000 if site == "A" else ROWS - 1000
        target = generator.integers(0, 2, rows)
        inputs = {
            "prediction": (2.0 * target - 1 + generator.normal(size=rows)).tolist(),
            "target": target.tolist(),
            "slice.sex": (np.arange(rows) % 2).tolist(),
        }
        sent = {"first": first, "slices": {"site": site}, "inputs": inputs}
        put = http.put(f"{path}/batches/{site}", json=sent)
        assert put.status_code == 201, put.text
    if request.param == "sealed":
        assert http.post(f"{path}/seal").status_code == 200
    return path


def result(http: httpx.Client, path: str, **query: Any) -> dict[str, Any]:
    answer = http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["result"])


def test_a_result_has_intervals_and_slices(http: httpx.Client, run: str) -> None:
    found = result(http, run)
    assert (found["level"], found["groups"]) == (0.95, 64)
    for name in ("accuracy", "auroc"):
        interval, value = found["intervals"][name], found["metrics"][name]
        assert interval["low"] < value < interval["high"]
        assert interval["standard_error"] > 0
    slices = [each["slice"] for each in found["slices"]]
    assert slices == [
        {"sex": "f"}, {"sex": "m"}, {"site": "A"}, {"site": "B"},
        {"site": "A", "sex": "f"}, {"site": "A", "sex": "m"}, {"site": "B", "sex": "f"}, {"site": "B", "sex": "m"},
    ]  # fmt: skip
    assert [each["counted"]["rows"] for each in found["slices"]] == [750, 750, 1000, 500, 500, 500, 250, 250]
    of_sites = {each["slice"]["site"]: each["metrics"]["accuracy"] for each in found["slices"][2:4]}
    single = [each["metrics"]["accuracy"] for each in found["slices"][:4]]
    assert found["worst"]["accuracy"]["value"] == min(single)
    assert found["gap"]["accuracy"] == pytest.approx(max(single) - min(single))
    assert found["metrics"]["accuracy"] == pytest.approx((2 * of_sites["A"] + of_sites["B"]) / 3)


def test_a_level_is_computed_from_the_state(http: httpx.Client, run: str) -> None:
    plain, wide = result(http, run), result(http, run, level=0.999)
    assert wide["level"] == 0.999
    assert wide["metrics"] == plain["metrics"]
    assert wide["intervals"]["accuracy"]["low"] < plain["intervals"]["accuracy"]["low"]
    assert wide["intervals"]["accuracy"]["standard_error"] == plain["intervals"]["accuracy"]["standard_error"]
    assert wide["slices"][0]["intervals"]["auroc"]["low"] < plain["slices"][0]["intervals"]["auroc"]["low"]
    assert result(http, run, level=0.95) == plain
    assert wide["digest"] == plain["digest"]


def test_metrics_beside_the_definition_are_computed_from_the_state(http: httpx.Client, run: str) -> None:
    found = result(http, run, metrics="f1,roc_curve")
    assert {"f1", "roc_curve"} <= found["metrics"].keys()
    assert "accuracy" not in found["metrics"]
    assert "f1" in found["intervals"]
    assert "auroc" not in found["intervals"]
    of_definition = result(http, run, metrics="accuracy")
    assert "auroc" not in {**of_definition["metrics"], **of_definition["intervals"], **of_definition["gap"]}
    assert "auroc" not in of_definition["slices"][0]["metrics"]
    answer = http.get(run, params={"metrics": "log_loss"})
    assert answer.status_code == 422, answer.text
    assert "log_loss" in answer.json()["detail"]


def test_slices_are_left_out_if_asked(http: httpx.Client, run: str) -> None:
    for query in ({}, {"level": 0.9}, {"metrics": "f1"}):
        found = result(http, run, slices="false", **query)
        assert not {"slices", "worst", "gap"} & found.keys()
        assert found["intervals"]


@pytest.mark.parametrize("level", ["0.5", "1", "nan", "much", "-1"])
def test_levels_are_checked(http: httpx.Client, run: str, level: str) -> None:
    answer = http.get(run, params={"level": level})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == "/level"


def test_the_list_has_intervals_and_can_be_sorted_by_their_ends(http: httpx.Client, run: str) -> None:
    found = result(http, run)  # the summary of an open run is that of the latest result
    entries = {entry["run"]: entry for entry in http.get("/v1/runs?sort=-accuracy.low").json()["runs"]}
    entry = entries[run.rpartition("/")[2]]
    assert entry["summary"]["accuracy"] == found["metrics"]["accuracy"]
    interval = found["intervals"]["accuracy"]
    assert entry["intervals"]["accuracy"] == [interval["low"], interval["high"]]
    assert not [name for name in entry["summary"] if name.endswith((".low", ".high"))]


def test_slices_are_drawn(http: httpx.Client, run: str) -> None:
    picture = http.get(f"{run}/plot.svg?kind=slices&metric=accuracy&level=0.9")
    assert picture.status_code == 200, picture.text
    assert "site=A, sex=f" in picture.text
    assert "accuracy, 90 % intervals" in picture.text
    wrong = http.get(f"{run}/plot.svg?kind=slices&metric=accuracy.macro")
    assert wrong.status_code == 422
    assert "accuracy.macro" in wrong.json()["detail"]
    curve = http.get(f"{run}/plot.svg?kind=roc")  # not in the definition, but of what was counted
    assert curve.status_code == 200, curve.text
