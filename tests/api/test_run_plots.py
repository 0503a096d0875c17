"""Pictures of runs over HTTP, with a real recorder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest

from serving import asking, keeping_runs

_numbers = itertools.count()


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with keeping_runs(tmp_path_factory.mktemp("runs")) as service, asking(service) as http:
        yield http


def counted(http: httpx.Client, task: str, metrics: list[str], rows: int = 200, **definition: Any) -> str:
    """Return the path of a new run of this task."""
    path = f"/v1/runs/run-{next(_numbers)}"
    document = {"task": task, "metrics": metrics, "identity": "position", **definition}
    answer = http.put(path, json=document)
    assert answer.status_code == 201, answer.text
    if rows:
        generator = np.random.default_rng(5)
        target = generator.integers(0, 2, rows)
        shape = (rows, 2) if task == "multiclass" else (rows,)
        prediction = generator.normal(size=shape)
        inputs: dict[str, Any] = {"prediction": prediction.tolist(), "target": target.tolist()}
        if task == "regression":
            inputs["target"] = prediction.tolist()
        inputs |= {f"slice.{name}": (np.arange(rows) % 2).tolist() for name in definition.get("slices", {})}
        put = http.put(f"{path}/batches/a", json={"first": 0, "inputs": inputs})
        assert put.status_code == 201, put.text
    return path


def refused(answer: httpx.Response, status: int, slug: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.json()["type"] == f"/problems/{slug}"
    return str(answer.json()["detail"])


@pytest.mark.parametrize(
    ("kind", "task", "metrics", "title"),
    [
        ("roc", "binary", ["roc_curve", "auroc"], "ROC curve"),
        ("pr", "binary", ["pr_curve", "average_precision"], "Precision over recall"),
        ("reliability", "binary", ["reliability", "ece"], "Reliability"),
        ("confusion", "multiclass", ["confusion_matrix"], "Confusion matrix"),
    ],
)
def test_a_run_is_drawn(http: httpx.Client, kind: str, task: str, metrics: list[str], title: str) -> None:
    path = counted(http, task, metrics)
    answer = http.get(f"{path}/plot.svg", params={"kind": kind})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    picture = ElementTree.fromstring(answer.content)
    assert picture.findtext("{http://www.w3.org/2000/svg}title") == title
    again = http.get(f"{path}/plot.svg", params={"kind": kind}, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_what_cannot_be_drawn_is_told(http: httpx.Client) -> None:
    path = counted(http, "regression", ["mae"])
    detail = refused(http.get(f"{path}/plot.svg?kind=roc"), 422, "invalid-request")
    assert detail == "kind is roc; pictures of a run of regression are slices"
    assert "no slices; declare them" in refused(http.get(f"{path}/plot.svg?kind=slices"), 422, "not-evaluable")
    assert "kind" in refused(http.get(f"{path}/plot.svg"), 422, "invalid-request")
    assert "kind" in refused(http.get(f"{path}/plot.svg?kind=curve"), 422, "invalid-request")
    empty = counted(http, "binary", ["roc_curve"], rows=0)
    assert "no rows" in refused(http.get(f"{empty}/plot.svg?kind=roc"), 422, "not-evaluable")
    wrong = http.get(f"{empty}/plot.svg?kind=roc&metric=f1")
    assert "belongs to pictures of slices" in refused(wrong, 422, "invalid-request")
    refused(http.get("/v1/runs/nobody/plot.svg?kind=roc"), 404, "unknown-run")


def test_a_curve_of_targets_of_one_kind_is_told(http: httpx.Client) -> None:
    path = counted(http, "binary", ["roc_curve"], rows=0)
    http.put(f"{path}/batches/a", json={"first": 0, "inputs": {"prediction": [1.0, 2.0], "target": [1, 1]}})
    detail = refused(http.get(f"{path}/plot.svg?kind=roc"), 422, "not-evaluable")
    assert "all targets are of one kind" in detail
