"""Runs over HTTP, with a real recorder: every answer that a run, a batch and a seal can get."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import itertools
import json
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import lossd
from lossd.api import create_app
from lossd.api.runs.entrance import Entrance
from lossd.caches import CACHES
from lossd.configuration.settings import Settings
from lossd.metrics.registry import METRICS
from lossd.recorder.client import Recorder
from lossd.runs.definition import RunDocument
from lossd_client.errors import DeadlineExceeded, Problem, StorageFull, Unavailable
from lossd_client.wire import Tensor, safetensors
from serving import ALICE, BOB, Running, asking, keeping_runs, running

BINARY = {"task": "binary", "metrics": ["accuracy", "f1", "auroc"], "identity": "position"}
SEED = 20240601

_numbers = itertools.count()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with keeping_runs(
        tmp_path_factory.mktemp("runs"),
        of_two=True,
        metrics_public=True,
        runs_per_key=300,
        run_bytes=200_000,
        stream_bytes=4096,
        max_body_bytes=4 << 20,
    ) as service:
        yield service


@pytest.fixture(scope="module")
def http(service: Running) -> Iterator[httpx.Client]:
    with asking(service, ALICE) as http:
        yield http


@pytest.fixture(scope="module")
def bob(service: Running) -> Iterator[httpx.Client]:
    with asking(service, BOB) as http:
        yield http


@pytest.fixture
def path(http: httpx.Client) -> str:
    """The path of a new run of rows by position."""
    return new_run(http, BINARY)


def new_run(http: httpx.Client, definition: Mapping[str, Any], name: str | None = None) -> str:
    path = f"/v1/runs/{name or f'run-{next(_numbers)}'}"
    answer = http.put(path, json=definition)
    assert answer.status_code == 201, answer.text
    return path


def drawn(rows: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Logits, some of them equal, and labels."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=rows).round(1).astype("f4"), generator.integers(0, 2, rows)


def batch(first: int | None, prediction: Any, target: Any, **inputs: Any) -> dict[str, Any]:
    sent = {"prediction": np.asarray(prediction).tolist(), "target": np.asarray(target).tolist()}
    sent |= {name: np.asarray(value).tolist() for name, value in inputs.items()}
    return {"inputs": sent, **({} if first is None else {"first": first})}


def binary(first: int | None, prediction: Any, target: Any) -> dict[str, Any]:
    """The same batch as a safetensors file: the arguments of a request."""
    metadata = {} if first is None else {"request": json.dumps({"first": first})}
    tensors = {"prediction": Tensor.of(np.asarray(prediction)), "target": Tensor.of(np.asarray(target))}
    content = b"".join(safetensors.encode(tensors, metadata))
    return {"content": content, "headers": {"content-type": safetensors.MEDIA_TYPE}}


def refused(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["type"] == f"/problems/{slug}"
    return dict(document)


def counted(http: httpx.Client, path: str) -> dict[str, int]:
    found = http.get(path).json()["counted"]
    assert found["entries"] == found["rows"]
    return {name: found[name] for name in ("rows", "batches")}


# Definitions


def test_a_run_is_created_once(http: httpx.Client) -> None:
    path = f"/v1/runs/run-{next(_numbers)}"
    definition = {**BINARY, "dataset": {"name": "d", "version": "2", "rows": 4}, "tags": {"commit": "4f1c"}}
    first = http.put(path, json=definition)
    assert first.status_code == 201
    assert first.headers["location"] == path
    again = http.put(path, json=definition)
    assert again.status_code == 200
    assert "location" not in again.headers
    entry = first.json()
    assert again.json()["digest"] == entry["digest"]
    assert entry["run"] == path.rpartition("/")[2]
    assert (entry["owner"], entry["status"], entry["public"]) == ("alice", "open", False)
    assert entry["dataset"] == {"name": "d", "version": "2", "rows": 4}
    assert entry["tags"] == {"commit": "4f1c"}
    assert entry["counted"] == {"rows": 0, "entries": 0, "batches": 0}
    assert entry["created"].endswith("Z")
    assert entry["sealed"] is None


def test_the_same_definition_in_other_words_opens_the_run(http: httpx.Client) -> None:
    path = new_run(http, {"loss": "mse", "metrics": ["mae"]})
    answer = http.put(path, json={"loss": {"name": "mse", "reduction": "mean"}, "metrics": {"names": ["mae"]}})
    assert answer.status_code == 200


def test_another_definition_is_refused_and_the_fields_are_named(http: httpx.Client, path: str) -> None:
    problem = refused(http.put(path, json={**BINARY, "identity": "id", "limit": 99}), 409, "run-differs")
    assert sorted(problem["fields"]) == ["/identity", "/limit"]
    assert http.get(path).json()["identity"] == "position"


def test_tags_and_public_are_no_part_of_the_definition(http: httpx.Client, path: str) -> None:
    before = http.get(path)
    answer = http.put(path, json={**BINARY, "tags": {"commit": "77"}, "public": True})
    assert answer.status_code == 200
    after = http.get(path)
    assert after.json()["tags"] == {"commit": "77"}
    assert after.json()["digest"] == before.json()["digest"]
    assert after.headers["etag"] != before.headers["etag"]


@pytest.mark.parametrize(
    ("definition", "pointer"),
    [
        ({**BINARY, "slices": {"site": ["A", "A"]}}, "/slices/site"),
        ({**BINARY, "sliced": {}}, "/sliced"),
        ({**BINARY, "identity": "row"}, "/identity"),
        ({**BINARY, "limit": 1}, "/limit"),
        ({**BINARY, "dataset": {"rows": -1}}, "/dataset/rows"),
        ({**BINARY, "dataset": {"targets": "t1:9"}}, "/dataset/targets"),
        ({**BINARY, "tags": {str(i): "" for i in range(65)}}, "/tags"),
        ({**BINARY, "tags": {"a": "b" * 1001}}, "/tags/a"),
        ({**BINARY, "tags": {"a" * 201: "b"}}, None),
        ({"task": "binary", "metrics": ["f2"]}, None),
        ({}, None),
    ],
)
def test_a_bad_definition_is_refused(http: httpx.Client, definition: Any, pointer: str | None) -> None:
    path = f"/v1/runs/run-{next(_numbers)}"
    answer = http.put(path, json=definition)
    assert answer.status_code in (404, 422), answer.text
    if pointer is not None:
        assert pointer in [fault["pointer"] for fault in answer.json()["errors"]]
    refused(http.get(path), 404, "unknown-run")


@pytest.mark.parametrize(
    ("sent", "status", "slug"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "malformed-body"),
        ({"content": b"[" * 100, "headers": {"content-type": "application/json"}}, 400, "malformed-body"),
        ({"content": b"[]", "headers": {"content-type": "application/json"}}, 422, "invalid-request"),
        ({"content": b"{}"}, 415, "unsupported-media-type"),
        ({"data": {"task": "binary"}}, 415, "unsupported-media-type"),
        ({"json": {"task": "b" * (512 << 10)}}, 413, "too-large"),
        ({"json": {"task": [[0]] * 4096}}, 413, "too-large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_body_of_a_definition_is_refused(http: httpx.Client, sent: Any, status: int, slug: str) -> None:
    refused(http.put(f"/v1/runs/run-{next(_numbers)}", **sent), status, slug)


def test_a_compressed_definition_is_limited_as_if_it_were_not(http: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    good = gzip.compress(json.dumps(BINARY).encode())
    assert http.put(f"/v1/runs/run-{next(_numbers)}", content=good, headers=headers).status_code == 201
    bad = gzip.compress(b" " * (8 << 20))
    refused(http.put(f"/v1/runs/run-{next(_numbers)}", content=bad, headers=headers), 413, "too-large")


@pytest.mark.parametrize("name", ["a%20b", "%C3%A4", "a" * 201, "%2e", "%2e%2e", "a%2Cb", "%00"])
@pytest.mark.parametrize("what", ["run", "batch"])
def test_names_are_checked(service: Running, http: httpx.Client, path: str, name: str, what: str) -> None:
    target = f"/v1/runs/{name}" if what == "run" else f"{path}/batches/{name}"
    body = BINARY if what == "run" else batch(0, [1.0], [1])
    # httpx would remove dots from the path.
    url = httpx.URL(service.url).copy_with(raw_path=target.encode())
    for method in ("GET", "PUT"):
        problem = refused(http.send(http.build_request(method, url, json=body)), 422, "invalid-request")
        assert what in problem["detail"]


def test_names_of_every_allowed_kind_are_kept_apart(http: httpx.Client) -> None:
    names = [f"{next(_numbers)}{rest}" for rest in ("-a.B_c~9", "...", "~", "-", "a" * 190)]
    for name in names:
        new_run(http, BINARY, name)
    assert {name for name in names if http.get(f"/v1/runs/{name}").json()["run"] == name} == set(names)


# Batches: every line of the table of states and errors


def test_a_batch_is_counted_once(http: httpx.Client, path: str) -> None:
    first = http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    assert first.status_code == 201
    assert first.json() == {"batch": "a", "counted": {"rows": 2, "entries": 2}, "run": {"rows": 2, "batches": 1}}
    http.put(f"{path}/batches/b", json=batch(2, [2.0], [1]))
    again = http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    assert again.status_code == 200
    assert again.json() == first.json()  # as it was then
    assert counted(http, path) == {"rows": 3, "batches": 2}


def test_json_safetensors_and_gzip_are_the_same_data(http: httpx.Client, path: str) -> None:
    prediction, target = drawn(3000)  # over stream_bytes
    sent = binary(0, prediction, target)
    assert http.put(f"{path}/batches/a", **sent).status_code == 201
    assert http.put(f"{path}/batches/a", json=batch(0, prediction, target)).status_code == 200
    headers = {**sent["headers"], "content-encoding": "gzip"}
    squeezed = {"content": gzip.compress(sent["content"]), "headers": headers}
    assert http.put(f"{path}/batches/a", **squeezed).status_code == 200

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(sent["content"]), 1000):
            yield sent["content"][start : start + 1000]

    assert http.put(f"{path}/batches/a", content=pieces(), headers=sent["headers"]).status_code == 200
    assert counted(http, path) == {"rows": 3000, "batches": 1}


@pytest.mark.parametrize(
    "other", [batch(0, [2.0, -1.5], [1, 1]), batch(0, [2.0, -1.0], [1, 0]), batch(1, [2.0, -1.0], [1, 1])]
)
def test_other_data_under_a_name_is_refused(http: httpx.Client, path: str, other: Any) -> None:
    http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    digest = http.get(f"{path}/batches/a").json()["digest"]
    problem = refused(http.put(f"{path}/batches/a", json=other), 409, "batch-conflict")
    assert digest in problem["detail"]
    assert len([word for word in problem["detail"].split() if len(word.strip(",;")) == 64]) == 2
    assert counted(http, path) == {"rows": 2, "batches": 1}


def test_of_many_at_once_under_one_name_one_is_counted(service: Running, path: str) -> None:
    def put(value: float) -> httpx.Response:
        with httpx.Client(base_url=service.url, headers={"X-API-Key": ALICE}, timeout=60) as http:
            return http.put(f"{path}/batches/a", json=batch(0, [value], [1]))

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(put, [1.0] * 32))
    assert sorted(answer.status_code for answer in answers) == [200] * 31 + [201]
    assert len({answer.text for answer in answers}) == 1
    with ThreadPoolExecutor(2) as pool:
        assert {answer.status_code for answer in pool.map(put, [1.0, 2.0])} == {200, 409}


def test_batches_that_differ_in_their_position_alone_are_checked_once(http: httpx.Client, path: str) -> None:
    for number in range(5):
        sent = binary(10 * number, [float(number), -1.0], [1, 1])
        assert http.put(f"{path}/batches/{number}", **sent).status_code == 201
        assert http.get(f"{path}/batches/{number}").json()["first"] == 10 * number
    before = CACHES["batch_headers"].hits
    other = binary(2**63 - 2, [1.0, 2.0], [1, 0])
    refused(http.put(f"{path}/batches/far", **other), 422, "invalid-request")
    problem = refused(http.put(f"{path}/batches/9", **binary(41, [1.0, 2.0], [1, 0])), 409, "duplicate-rows")
    assert problem["rows"] == [41]
    assert CACHES["batch_headers"].hits > before
    again = new_run(http, {**BINARY, "identity": "batch"})
    refused(http.put(f"{again}/batches/a", **binary(0, [1.0, 2.0], [1, 0])), 422, "invalid-request")


@pytest.mark.parametrize(
    "request_text",
    ['{"first": %d, "first": 50}', '{"first": %d, "\\u0066irst": 50}', '{"slices": {}, "first":  %d}', '{"first":%d }'],
)
def test_a_position_in_unusual_words_is_read_as_json_reads_it(http: httpx.Client, request_text: str) -> None:
    for first in (0, 4, 10**18):
        path = new_run(http, BINARY)
        text = request_text % first
        tensors = {name: Tensor.of(np.ones(2, "f4")) for name in ("prediction", "target")}
        content = b"".join(safetensors.encode(tensors, {"request": text}))
        sent = {"content": content, "headers": {"content-type": safetensors.MEDIA_TYPE}}
        assert http.put(f"{path}/batches/a", **sent).status_code == 201
        assert http.get(f"{path}/batches/a").json()["first"] == json.loads(text)["first"]


def test_rows_that_were_counted_are_refused_and_named(http: httpx.Client, path: str) -> None:
    http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    problem = refused(http.put(f"{path}/batches/b", json=batch(1, [2.0, -1.0], [1, 1])), 409, "duplicate-rows")
    assert (problem["rows"], problem["count"], problem["batches"]) == ([1], 1, ["a"])
    refused(http.get(f"{path}/batches/b"), 404, "unknown-batch")
    assert counted(http, path) == {"rows": 2, "batches": 1}


def test_rows_have_ids(http: httpx.Client) -> None:
    path = new_run(http, {**BINARY, "identity": "id"})
    assert http.put(f"{path}/batches/a", json=batch(None, [1.0, 2.0], [1, 0], sample_id=[7, -3])).status_code == 201
    problem = refused(
        http.put(f"{path}/batches/b", json=batch(None, [1.0, 2.0], [1, 0], sample_id=[8, -3])), 409, "duplicate-rows"
    )
    assert problem["rows"] == [-3]
    for wrong in ([1.5, 2.5], [1], [[1, 2]], None):
        answer = http.put(f"{path}/batches/c", json=batch(None, [1.0, 2.0], [1, 0], sample_id=wrong))
        assert answer.status_code == 422, answer.text
    for body, word in ((batch(0, [1.0], [1]), "first"), (batch(None, [1.0], [1]), "sample_id")):
        problem = refused(http.put(f"{path}/batches/c", json=body), 422, "invalid-request")
        assert word in problem["detail"]


@pytest.mark.parametrize(
    ("body", "slug"),
    [
        (batch(None, [1.0], [1]), "invalid-request"),
        (batch(-1, [1.0], [1]), "invalid-request"),
        ({**batch(0, [1.0], [1]), "first": True}, "invalid-request"),
        ({**batch(0, [1.0], [1]), "first": 0.0}, "invalid-request"),
        ({**batch(0, [1.0], [1]), "first": 2**63}, "invalid-request"),
        ({**batch(0, [1.0], [1]), "slices": {"site": "A"}}, "invalid-request"),
        ({**batch(0, [1.0], [1]), "loss": "mse"}, "invalid-request"),
        (batch(0, [1.0], [2]), "invalid-value"),
        (batch(0, [1.0, 2.0], [1]), "shape-mismatch"),
        (batch(0, [1.0], ["one"]), "dtype-mismatch"),
        (batch(0, [1.0], [1], sample_id=[1]), "invalid-request"),
        (batch(0, [1.0], [1], weights=[1]), "unknown-input"),
        ({"first": 0, "inputs": {"prediction": [1.0]}}, "missing-input"),
        ({"first": 0}, "invalid-request"),
        ([], "invalid-request"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_batch_is_refused_as_a_whole(http: httpx.Client, path: str, body: Any, slug: str) -> None:
    answer = http.put(f"{path}/batches/a", json=body)
    assert (answer.status_code, answer.json()["type"]) == (422, f"/problems/{slug}"), answer.text
    assert http.head(f"{path}/batches/a").status_code == 404
    assert counted(http, path) == {"rows": 0, "batches": 0}


def test_slices_and_clusters_are_counted_of_json_and_safetensors(http: httpx.Client) -> None:
    slices = {"site": ["A", "B"], "sex": ["f", "m"]}
    path = new_run(http, {**BINARY, "metrics": ["accuracy"], "slices": slices, "crossed": [["site", "sex"]]})
    options = {"first": 0, "slices": {"site": "A"}}
    beside = {"slice.sex": [0, 1, -1], "cluster_id": [7, 7, 8]}
    first = {**batch(None, [1.0, -1.0, 1.0], [1, 1, 1], **beside), **options}
    assert http.put(f"{path}/batches/a", json=first).status_code == 201
    tensors = {
        name: Tensor.of(np.asarray(value, np.float32)) for name, value in (("prediction", [1.0]), ("target", [0.0]))
    }
    tensors |= {"slice.sex": Tensor.of(np.array([1], np.int8)), "cluster_id": Tensor.of(np.array([9]))}
    request = json.dumps({"first": 3, "slices": {"site": None}})
    content = b"".join(safetensors.encode(tensors, {"request": request}))
    headers = {"content-type": safetensors.MEDIA_TYPE}
    assert http.put(f"{path}/batches/b", content=content, headers=headers).status_code == 201
    assert http.put(f"{path}/batches/a", json=first).status_code == 200
    other = {**first, "slices": {"site": "B"}}
    refused(http.put(f"{path}/batches/a", json=other), 409, "batch-conflict")
    found = http.get(path).json()
    assert (found["groups"], found["slices"], found["crossed"]) == (64, slices, [["site", "sex"]])
    counted_of = {json.dumps(entry["slice"]): entry["counted"]["rows"] for entry in found["result"]["slices"]}
    assert counted_of['{"site": "A"}'] == 3
    assert (counted_of['{"sex": "f"}'], counted_of['{"sex": "m"}']) == (1, 2)
    assert counted_of['{"site": "A", "sex": "m"}'] == 1
    for change, pointer in (
        ({"slices": {"site": "C"}}, "/slices/site"),
        ({"slices": {}}, "/slices"),
        ({"slices": {"site": "A", "age": "old"}}, "/slices/age"),
        ({"inputs": {**first["inputs"], "slice.sex": [0, 1, 2]}}, "/inputs/slice.sex"),
        ({"inputs": {**first["inputs"], "slice.sex": [0, 1]}}, "/inputs/slice.sex"),
        ({"inputs": {**first["inputs"], "cluster_id": [1, 2]}}, "/inputs/cluster_id"),
    ):
        problem = http.put(f"{path}/batches/c", json={**first, "first": 4, **change})
        assert problem.status_code == 422, problem.text
        assert problem.json()["errors"][0]["pointer"].startswith(pointer), problem.text


def test_slices_that_cannot_fit_are_refused_with_what_to_leave_out(http: httpx.Client) -> None:
    definition = {**BINARY, "metrics": ["auroc"], "slices": {"site": [str(number) for number in range(1000)]}}
    problem = refused(http.put("/v1/runs/much", json=definition), 403, "quota-exceeded")
    assert "groups 16" in problem["detail"]


def test_a_batch_of_other_classes_is_refused(http: httpx.Client) -> None:
    path = new_run(http, {"task": "multiclass", "metrics": ["accuracy"], "identity": "position"})
    assert http.put(f"{path}/batches/a", json=batch(0, [[1.0, 2.0, 3.0]], [1])).status_code == 201
    problem = refused(http.put(f"{path}/batches/b", json=batch(1, [[1.0, 2.0]], [1])), 422, "invalid-request")
    assert "3 classes" in problem["detail"]
    assert counted(http, path) == {"rows": 1, "batches": 1}


def test_a_batch_whose_deadline_passes_is_unknown_and_can_be_sent_again(http: httpx.Client, path: str) -> None:
    body = batch(0, *drawn(2000))
    late = http.put(f"{path}/batches/a", json=body, headers={"X-Request-Timeout-Ms": "1"})
    refused(late, 504, "deadline-exceeded")
    known = http.head(f"{path}/batches/a").status_code
    assert http.put(f"{path}/batches/a", json=body).status_code == {404: 201, 200: 200}[known]
    assert counted(http, path) == {"rows": 2000, "batches": 1}


def test_limits_of_bodies_hold(http: httpx.Client, path: str) -> None:
    prediction, target = drawn(1 << 20)
    refused(http.put(f"{path}/batches/a", **binary(0, prediction, target)), 413, "too-large")
    refused(
        http.put(f"{path}/batches/a", content=b"a", headers={"content-type": "text/csv"}), 415, "unsupported-media-type"
    )
    refused(http.put(f"{path}/batches/a?request=1", json=batch(0, [1.0], [1])), 422, "invalid-request")
    fields = {f"field{number}": 1 for number in range(1025)}
    for answer in (
        http.put(f"{path}/batches/a", json={**batch(0, [1.0], [1]), "slices": fields}),
        http.post(f"{path}/seal", json=fields),
    ):
        refused(answer, 422, "invalid-request")
        assert "may have 1024 fields" in answer.json()["detail"]
    sent = binary(0, *drawn(10))
    refused(http.put(f"{path}/batches/a", content=sent["content"][:-1], headers=sent["headers"]), 400, "malformed-body")


def test_a_sealed_run_counts_nothing_more(http: httpx.Client, path: str) -> None:
    http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    assert http.post(f"{path}/seal").status_code == 200
    refused(http.put(f"{path}/batches/b", json=batch(2, [2.0], [1])), 409, "run-sealed")
    assert http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1])).status_code == 200
    refused(http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.5], [1, 1])), 409, "batch-conflict")


def test_batches_are_found_and_listed(http: httpx.Client, path: str) -> None:
    for number in range(5):
        http.put(f"{path}/batches/b{number}", json=batch(2 * number, [2.0, -1.0], [1, 1]))
    one = http.get(f"{path}/batches/b3").json()
    assert (one["batch"], one["counted"], one["first"]) == ("b3", {"rows": 2, "entries": 2}, 6)
    assert one["run"] == {"rows": 8, "batches": 4}
    assert len(one["digest"]) == 64
    head = http.head(f"{path}/batches/b3")
    assert (head.status_code, head.content) == (200, b"")
    assert http.head(f"{path}/batches/b9").status_code == 404
    seen, after = [], None
    while True:
        page = http.get(f"{path}/batches", params={"limit": 2, **({"after": after} if after else {})}).json()
        seen += [entry["batch"] for entry in page["batches"]]
        after = page["next"]
        if after is None:
            break
    assert seen == [f"b{number}" for number in range(5)]
    assert one in http.get(f"{path}/batches").json()["batches"]


# Results


def test_the_result_is_that_of_one_evaluation_in_any_order_and_split(http: httpx.Client) -> None:
    prediction, target = drawn(500)
    whole = lossd.evaluate("bce_with_logits", prediction, target.astype("f4"), metrics=["accuracy", "f1", "auroc"])
    results = []
    for seed in (1, 2):
        path = new_run(
            http, {"loss": "bce_with_logits", "metrics": ["accuracy", "f1", "auroc"], "identity": "position"}
        )
        cuts = np.sort(np.random.default_rng(seed).choice(np.arange(1, 500), 7, replace=False))
        pieces = list(zip([0, *cuts], [*cuts, 500], strict=True))
        for first, last in np.random.default_rng(seed).permutation(pieces):
            sent = binary(int(first), prediction[first:last], target[first:last].astype("f4"))
            assert http.put(f"{path}/batches/{first}", **sent).status_code == 201
        results.append(http.get(path).json()["result"])
        assert http.post(f"{path}/seal", json={"rows": 500}).json()["result"] == {**results[-1], "provisional": False}
    assert results[0] == results[1]
    metrics = results[0]["metrics"]
    assert metrics["accuracy"] == whole.metrics.accuracy
    assert metrics["f1"] == whole.metrics.f1
    assert metrics["auroc"] == whole.metrics.auroc
    assert results[0]["loss"] == pytest.approx(float(whole.loss), rel=1e-6)


def test_a_result_is_provisional_until_the_seal(http: httpx.Client) -> None:
    path = new_run(http, {**BINARY, "dataset": {"name": "d", "rows": 4}})
    empty = http.get(path).json()
    assert (empty["result"], empty["missing"], empty["status"]) == (None, [[0, 4]], "open")
    http.put(f"{path}/batches/a", json=batch(1, [2.0, -1.0], [1, 0]))
    some = http.get(path).json()
    assert some["missing"] == [[0, 1], [3, 4]]
    assert some["result"]["provisional"] is True
    assert some["result"]["metrics"]["accuracy"] == 1.0
    assert some["signature"].startswith("lossd ")
    problem = refused(http.post(f"{path}/seal"), 409, "incomplete")
    assert (problem["expected"], problem["counted"], problem["missing"]) == (4, 2, [[0, 1], [3, 4]])
    http.put(f"{path}/batches/b", json=batch(0, [2.0], [1]))
    http.put(f"{path}/batches/c", json=batch(3, [2.0], [0]))
    sealed = http.post(f"{path}/seal")
    assert sealed.status_code == 200
    final = sealed.json()
    assert (final["status"], final["missing"], final["result"]["provisional"]) == ("sealed", [], False)
    assert final["result"]["metrics"]["accuracy"] == 0.75
    assert final["summary"]["accuracy"] == 0.75
    assert final["summary"]["f1"] == final["result"]["metrics"]["f1"]
    assert http.post(f"{path}/seal").json() == final
    assert http.get(path).json() == final
    assert http.get(path).headers["etag"] == sealed.headers["etag"]


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        ({"rows": 3}, 409, "incomplete"),
        ({"rows": 1}, 409, "incomplete"),
        ({"rows": "2"}, 422, "invalid-request"),
        ({"row": 2}, 422, "invalid-request"),
        ([2], 422, "invalid-request"),
    ],
)
def test_a_seal_of_other_rows_is_refused(http: httpx.Client, path: str, body: Any, status: int, slug: str) -> None:
    http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    refused(http.post(f"{path}/seal", json=body), status, slug)
    assert http.get(path).json()["status"] == "open"


def test_a_seal_may_not_contradict_the_definition_or_itself(http: httpx.Client, path: str) -> None:
    declared = new_run(http, {**BINARY, "dataset": {"name": "d", "rows": 2}})
    for each in (declared, path):
        http.put(f"{each}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    problem = refused(http.post(f"{declared}/seal", json={"rows": 3}), 422, "invalid-request")
    assert problem["errors"][0]["pointer"] == "/rows"
    assert http.post(f"{path}/seal", json={"rows": 2}).status_code == 200
    assert http.post(f"{path}/seal", json={"rows": 2}).status_code == 200
    refused(http.post(f"{path}/seal", json={"rows": 3}), 409, "run-sealed")


def test_an_empty_run_is_not_sealed(http: httpx.Client, path: str) -> None:
    refused(http.post(f"{path}/seal"), 409, "incomplete")
    refused(http.post("/v1/runs/never-there/seal"), 404, "unknown-run")


def test_a_seal_takes_no_form(http: httpx.Client, path: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = http.post(f"{path}/seal", content=b'{"rows": 1}', headers={"content-type": kind})
        refused(answer, 415, "unsupported-media-type")
        refused(http.post(f"{path}/seal", headers={"content-type": kind}), 415, "unsupported-media-type")
    refused(http.post(f"{path}/seal", content=b'{"rows": 1}'), 415, "unsupported-media-type")


def test_pinned_targets_are_demanded(http: httpx.Client) -> None:
    right = new_run(http, BINARY)
    http.put(f"{right}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    targets = http.get(right).json()["result"]["targets"]
    pinned = {**BINARY, "dataset": {"name": "d", "targets": targets}}
    same, other = new_run(http, pinned), new_run(http, pinned)
    http.put(f"{same}/batches/a", json=batch(0, [0.5, 0.5], [1, 1]))
    http.put(f"{other}/batches/a", json=batch(0, [2.0, -1.0], [1, 0]))
    assert http.post(f"{same}/seal").status_code == 200
    refused(http.post(f"{other}/seal"), 409, "other-targets")
    assert http.get(other).json()["status"] == "open"


def test_metrics_are_chosen(http: httpx.Client, path: str) -> None:
    http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    chosen = http.get(path, params={"metrics": "auroc, accuracy"}).json()["result"]["metrics"]
    assert chosen == {"task": "binary", "accuracy": 0.5, "auroc": None, "undefined": {"auroc": [1]}}
    assert "undefined" not in http.get(path, params={"metrics": "accuracy"}).json()["result"]["metrics"]
    problem = refused(http.get(path, params={"metrics": "accuracy,f2"}), 422, "invalid-request")
    assert "no metric named 'f2'; there are tp, fp, fn, tn, accuracy" in problem["detail"]
    problem = refused(http.get(path, params={"metrics": "accuracy,log_loss"}), 422, "invalid-request")
    counted, _, answers = problem["detail"].partition("; it can answer ")
    assert counted == "the run has not counted what log_loss is made of"
    assert {"accuracy", "f1", "auroc", "roc_curve"} <= set(answers.split(", "))
    assert http.get(path).json()["result"]["readable"] == answers.split(", ")


def test_a_client_that_has_the_result_is_told_so(http: httpx.Client, path: str) -> None:
    http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    tag = http.get(path).headers["etag"]
    for stated in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        answer = http.get(path, headers={"if-none-match": stated})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert http.head(path, headers={"if-none-match": tag}).status_code == 304
    assert http.get(path, headers={"if-none-match": '"other"'}).status_code == 200
    http.put(f"{path}/batches/b", json=batch(2, [2.0], [1]))
    after = http.get(path, headers={"if-none-match": tag})
    assert after.status_code == 200
    assert http.post(f"{path}/seal").headers["etag"] != after.headers["etag"]


def test_a_result_is_computed_once_for_a_state(service: Running, http: httpx.Client, path: str) -> None:
    http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    http.get(path)
    before = service.engine.stats.batch_requests
    assert http.get(path).json()["result"]["metrics"]["accuracy"] == 0.5
    assert service.engine.stats.batch_requests == before


def test_an_answer_checks_the_definition_once(http: httpx.Client, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    CACHES["run_documents"].clear()
    parse, checked = RunDocument.parse.__func__, []

    def parsed(cls: type[RunDocument], document: Any) -> RunDocument:
        checked.extend(["tags"] if "tags" in document else [])  # the worker's document of a state has none
        found: RunDocument = parse(cls, document)
        return found

    monkeypatch.setattr(RunDocument, "parse", classmethod(parsed))
    assert http.get(path).json()["result"]["metrics"]["accuracy"] == 0.5
    assert len(checked) == 1
    http.put(f"{path}/batches/b", json=batch(2, [2.0], [1]))
    assert http.get(path).json()["result"]["metrics"]["accuracy"] == 2 / 3
    assert len(checked) == 1


def test_the_list_has_the_latest_result_of_an_open_run_and_says_what_it_is_of(
    http: httpx.Client, bob: httpx.Client
) -> None:
    dataset = f"open-{next(_numbers)}"
    paths = [new_run(http, {**BINARY, "dataset": {"name": dataset}, "public": True}) for _ in range(3)]
    worse, better, unread = (path.rpartition("/")[2] for path in paths)
    for path, right in zip(paths, (2, 3, 4), strict=True):
        http.put(f"{path}/batches/a", json=batch(0, [1.0] * right + [-1.0] * (4 - right), [1] * 4))

    def listed() -> list[tuple[str, Any, Any]]:
        found = http.get("/v1/runs", params={"dataset": dataset, "sort": "-accuracy"}).json()["runs"]
        return [(run["run"], (run["summary"] or {}).get("accuracy"), run["summary_of"]) for run in found]

    assert [entry[1:] for entry in listed()] == [(None, None)] * 3
    read = http.get(paths[0])
    assert read.json()["summary"]["accuracy"] == 0.5
    bob.get(f"{paths[1]}?owner=alice")
    http.get(f"{paths[2]}?metrics=accuracy")  # a part of a result is no summary
    once = {"rows": 4, "batches": 1}
    assert listed() == [(better, 0.75, once), (worse, 0.5, once), (unread, None, None)]
    assert http.get(paths[0], headers={"if-none-match": read.headers["etag"]}).status_code == 304
    http.put(f"{paths[0]}/batches/b", json=batch(4, [1.0] * 8, [1] * 8))
    assert listed() == [(better, 0.75, once), (worse, 0.5, once), (unread, None, None)]
    http.get(paths[0])
    assert listed()[0] == (worse, 10 / 12, {"rows": 12, "batches": 2})
    sealed = http.post(f"{paths[1]}/seal").json()
    assert (sealed["summary"]["accuracy"], sealed["summary_of"]) == (0.75, once)
    assert listed()[1] == (better, 0.75, once)


def test_undefined_and_infinite_numbers_are_written_as_in_an_evaluation(http: httpx.Client) -> None:
    path = new_run(http, {"task": "regression", "metrics": ["mae", "mse", "r2"]})
    http.put(f"{path}/batches/a", **binary(None, [1e308, 1.0], [-1e308, 1.0]))
    metrics = http.get(path).json()["result"]["metrics"]
    assert metrics["mae"] == "Infinity"
    sealed = http.post(f"{path}/seal").json()
    assert sealed["result"]["metrics"] == metrics
    assert "mae" not in sealed["summary"]


# Deleting


def test_a_deleted_run_is_gone_and_its_name_is_free(http: httpx.Client, path: str) -> None:
    http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    answer = http.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    for gone in (
        http.get(path), http.delete(path), http.post(f"{path}/seal"), http.get(f"{path}/batches"),
        http.get(f"{path}/batches/a"), http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1])),
    ):  # fmt: skip
        refused(gone, 404, "unknown-run")
    assert http.put(path, json={"task": "regression", "metrics": ["mae"]}).status_code == 201
    assert http.put(f"{path}/batches/a", json=batch(None, [2.0], [1.0])).status_code == 201
    assert http.get(path).json()["result"]["metrics"]["mae"] == 1.0


# Owners


def test_the_runs_of_another_key_are_not_there(http: httpx.Client, bob: httpx.Client, path: str) -> None:
    http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    never = f"/v1/runs/{'x' * len(path.rpartition('/')[2])}"

    def reply(method: str, run: str, rest: str, **sent: Any) -> tuple[Any, ...]:
        answer = bob.request(method, run + rest, headers={"x-request-id": "me"}, **sent)
        name = run.rpartition("/")[2]
        headers = {key: value for key, value in answer.headers.items() if key not in ("date", "connection")}
        return answer.status_code, answer.content.replace(name.encode(), b"NAME"), headers

    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "", {}), ("HEAD", "", {}), ("DELETE", "", {}), ("POST", "/seal", {}), ("GET", "/batches", {}),
        ("GET", "/batches/a", {}), ("HEAD", "/batches/a", {}), ("GET", "?owner=alice", {}),
        ("GET", "/batches?owner=alice", {}), ("GET", "/batches/a?owner=alice", {}),
        ("PUT", "/batches/a", {"json": batch(0, [2.0, -1.0], [1, 1])}),
        ("PUT", "/batches/a", {"json": {"first": "no"}}),
    ]  # fmt: skip
    for method, rest, sent in requests:
        found = reply(method, path, rest, **sent)
        assert found[0] == 404
        assert found == reply(method, never, rest, **sent), (method, rest)
    assert path.rpartition("/")[2] not in [entry["run"] for entry in bob.get("/v1/runs?limit=1000").json()["runs"]]
    # A run of the same name is Bob's own.
    assert bob.put(path, json={"task": "regression"}).status_code == 201
    assert bob.delete(path).status_code == 204
    assert counted(http, path) == {"rows": 2, "batches": 1}


def test_a_public_run_is_read_by_others_and_written_by_its_owner(http: httpx.Client, bob: httpx.Client) -> None:
    path = new_run(http, {**BINARY, "public": True})
    http.put(f"{path}/batches/a", json=batch(0, [2.0, -1.0], [1, 1]))
    mine = http.get(path).json()
    assert bob.get(path).json() == mine
    assert bob.get(f"{path}?owner=alice").json() == mine
    assert bob.get(f"{path}/batches?owner=alice").json() == http.get(f"{path}/batches").json()
    assert bob.head(f"{path}/batches/a").status_code == 200
    refused(bob.get(f"{path}?owner=bob"), 404, "unknown-run")
    assert mine["run"] in [entry["run"] for entry in bob.get("/v1/runs?limit=1000").json()["runs"]]
    refused(bob.put(f"{path}/batches/b", json=batch(2, [2.0], [1])), 404, "unknown-run")
    refused(bob.post(f"{path}/seal"), 404, "unknown-run")
    refused(bob.delete(path), 404, "unknown-run")
    refused(bob.delete(f"{path}?owner=alice"), 422, "invalid-request")
    assert http.get(path).json() == mine
    # Of the same name, one's own run comes first.
    assert bob.put(path, json={"task": "regression"}).status_code == 201
    assert bob.get(path).json()["owner"] == "bob"
    assert bob.get(f"{path}?owner=alice").json() == mine


def test_quotas_are_refused_in_words(http: httpx.Client, bob: httpx.Client) -> None:
    path = new_run(bob, {"task": "binary", "metrics": ["auroc"]})
    generator = np.random.default_rng(SEED)
    scores, labels = generator.normal(size=200_000).astype("f4"), generator.integers(0, 2, 200_000)
    problem = refused(bob.put(f"{path}/batches/a", **binary(None, scores, labels)), 403, "quota-exceeded")
    assert "200000" in problem["detail"]
    assert counted(bob, path) == {"rows": 0, "batches": 0}


# Lists


def test_runs_are_listed_filtered_and_sorted(http: httpx.Client) -> None:
    dataset, names = f"list-{next(_numbers)}", []
    for right in (1, 3, 2):
        path = new_run(http, {**BINARY, "dataset": {"name": dataset, "version": "1"}, "tags": {"right": str(right)}})
        names.append(path.rpartition("/")[2])
        http.put(f"{path}/batches/a", json=batch(0, [1.0] * right + [-1.0] * (4 - right), [1] * 4))
        http.post(f"{path}/seal")
    names.append(new_run(http, {**BINARY, "dataset": {"name": dataset}}).rpartition("/")[2])

    def listed(**params: str) -> list[str]:
        page = http.get("/v1/runs", params={"dataset": dataset, **params}).json()
        return [entry["run"] for entry in page["runs"]]

    assert listed() == names[::-1]
    assert listed(sort="-accuracy") == [names[1], names[2], names[0], names[3]]
    assert listed(sort="accuracy", status="sealed") == [names[0], names[2], names[1]]
    assert listed(status="open") == [names[3]]
    assert listed(tag="right:3") == [names[1]]
    assert listed(task="regression") == []
    assert listed(dataset=f"{dataset}@1", sort="created") == names[:3]
    page = http.get("/v1/runs", params={"dataset": dataset, "limit": "3"}).json()
    assert len(page["runs"]) == 3
    assert listed(limit="3", after=page["next"]) == [names[0]]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "status=closed", "colour=red", "task=a&task=b", "after=%00", "tag=a"]
)
def test_a_bad_query_is_refused(http: httpx.Client, query: str) -> None:
    refused(http.get(f"/v1/runs?{query}"), 422, "invalid-request")


@pytest.mark.parametrize(
    ("target", "query"),
    [("", "metric=a"), ("/batches", "limit=x"), ("/batches/a", "limit=1"), ("/batches", "sort=name")],
)
def test_a_bad_query_of_a_run_is_refused(http: httpx.Client, path: str, target: str, query: str) -> None:
    refused(http.get(f"{path}{target}?{query}"), 422, "invalid-request")


# HTTP


@pytest.mark.parametrize(
    ("target", "method", "allow"),
    [
        ("", "POST", "GET, HEAD"),
        ("/a", "POST", "DELETE, GET, HEAD, PUT"),
        ("/a/seal", "GET", "POST"),
        ("/a/batches", "PUT", "GET, HEAD"),
        ("/a/batches/b", "DELETE", "GET, HEAD, PUT"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(http: httpx.Client, target: str, method: str, allow: str) -> None:
    answer = http.request(method, f"/v1/runs{target}")
    refused(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == allow


@pytest.mark.parametrize(
    "target", ["/", "x", "/a/", "/a/b", "/a/batches/b/c", "/a/batches/b/", "//batches/b", "/a/seal/b"]
)
def test_other_paths_are_not_served(http: httpx.Client, target: str) -> None:
    for method in ("GET", "PUT"):
        assert http.request(method, f"/v1/runs{target}").status_code in (404, 415, 422)


def test_keys_are_needed(service: Running, path: str) -> None:
    with httpx.Client(base_url=service.url, timeout=30) as http:
        for method, target in (("GET", ""), ("PUT", "/batches/a"), ("DELETE", ""), ("POST", "/seal")):
            refused(http.request(method, path + target), 401, "unauthorized")
        refused(http.get("/v1/runs"), 401, "unauthorized")


def test_answers_are_compressed_and_ids_returned(http: httpx.Client, path: str) -> None:
    for number in range(20):
        http.put(f"{path}/batches/{number}", json=batch(number, [2.0], [1]))
    answer = http.get(f"{path}/batches", headers={"accept-encoding": "gzip", "x-request-id": "me"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["x-request-id"] == "me"
    assert len(answer.json()["batches"]) == 20


def test_what_happened_is_counted(http: httpx.Client) -> None:
    def read() -> dict[str, float]:
        families = text_string_to_metric_families(http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return {
            f"{s.name} {' '.join(s.labels.values())}".strip(): s.value
            for s in samples
            if s.name.startswith(("lossd_run", "lossd_recorder"))
        }

    before = read()
    path = new_run(http, BINARY)
    for value in (1.0, 1.0, 2.0):
        http.put(f"{path}/batches/a", json=batch(0, [value], [1]))
    http.post(f"{path}/seal")
    http.post(f"{path}/seal")
    http.delete(path)
    after = read()
    changed = {name: after[name] - value for name, value in before.items() if after[name] != value}
    recorded = changed.pop("lossd_recorder_seconds_count")
    assert recorded >= 8
    assert {name: n for name, n in changed.items() if not name.startswith("lossd_recorder")} == {
        "lossd_runs_total created": 1, "lossd_runs_total sealed": 1, "lossd_runs_total deleted": 1,
        "lossd_run_batches_total counted": 1, "lossd_run_batches_total again": 1,
        "lossd_run_batches_total refused": 1,
    }  # fmt: skip


def test_the_log_names_run_and_batch(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    name = f"{next(_numbers)}-{'x' * 100}"
    path = new_run(http, BINARY, name)
    with caplog.at_level("WARNING", "lossd.access"):
        assert http.put(f"{path}/batches/part-7", json=batch(0, [2.0], [1])).status_code == 201
        refused(http.put(f"{path}/batches/part-8", json=batch(0, [2.0], [1])), 409, "duplicate-rows")
        refused(http.put(f"{path}/batches/a%0Ab", json=batch(0, [2.0], [1])), 422, "invalid-request")
    lines = [record.msg for record in caplog.records if record.name == "lossd.access"]
    assert [line["status"] for line in lines] == [409, 422]
    assert {line["run"] for line in lines} == {f"{name[:60]}..."}
    assert [line.get("batch") for line in lines] == ["part-8", None]
    assert not any("\n" in str(line) for line in lines)


def test_201_is_in_the_database(http: httpx.Client, service: Running, path: str) -> None:
    assert service.settings.runs is not None
    file = Path(service.settings.runs.get_secret_value())
    for number in range(10):
        assert http.put(f"{path}/batches/n{number}", json=batch(number, [2.0], [1])).status_code == 201
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
            rows = database.execute("SELECT count(*) FROM batches WHERE name = ?", (f"n{number}",)).fetchone()
        assert rows[0] >= 1


def test_a_service_without_runs_says_so() -> None:
    with running(engine="inline", compiled=False, runs="off") as service, httpx.Client(base_url=service.url) as http:
        for method, target in (("GET", ""), ("PUT", "/a"), ("PUT", "/a/batches/b"), ("POST", "/a/seal"), ("GET", "/a")):
            problem = refused(http.request(method, f"/v1/runs{target}"), 404, "not-found")
            assert "keeps no runs" in problem["detail"]


# A front beside others


def alone(scenario: Callable[[httpx.AsyncClient, Recorder], Coroutine[Any, Any, None]], folder: Path) -> None:
    """Run a scenario with an application on no server, and with its recorder, as another front asks it."""

    async def run() -> None:
        settings = Settings(engine="inline", compiled=False, access_log="none", threads=1, runs=str(folder / "runs.db"))
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            assert isinstance(app.runs, Entrance)
            transport = httpx.ASGITransport(app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as http:
                await scenario(http, app.runs.recorder)

    asyncio.run(run())


async def recreated(recorder: Recorder, definition: Mapping[str, Any] | None) -> None:
    """Delete the run a, and create it by another definition, as another front does."""
    deadline = time.monotonic() + 30
    await recorder.ask("delete", deadline, owner="", name="a")
    if definition is not None:
        document = RunDocument.parse(definition)
        arguments = {"document": document.to_dict(), "digest": document.digest, "task": document.plan.task}
        await recorder.ask("create", deadline, owner="", name="a", **arguments)


def test_a_run_that_another_front_replaced_is_looked_up_again(tmp_path: Path) -> None:
    async def scenario(http: httpx.AsyncClient, recorder: Recorder) -> None:
        run, path = "/v1/runs/a", "/v1/runs/a/batches/b"
        regression = {"task": "regression", "metrics": ["mae"], "identity": "position"}
        body = batch(0, [2.0, -1.0], [1, 1])
        await http.put(run, json=BINARY)
        assert (await http.put(path, json=body)).status_code == 201
        await recreated(recorder, BINARY)
        assert (await http.put(path, json=body)).status_code == 201  # in the new run
        await recreated(recorder, regression)
        answer = await http.put(path, json=body)
        refused(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert (await http.get(run)).json()["counted"]["batches"] == 0
        assert (await http.put(path, json=body)).status_code == 201
        assert (await http.get(run)).json()["result"]["metrics"]["mae"] == 1.5
        await recreated(recorder, {"task": "multiclass", "metrics": ["accuracy"]})
        fits = batch(None, [[1.0, 2.0]], [1])
        refused(await http.put(path, json=fits), 503, "unavailable")  # the old run would refuse it
        assert (await http.put(path, json=fits)).status_code == 201
        refused(await http.put(path, json=batch(None, [[1.0, 2.0]], [2])), 422, "invalid-value")
        await recreated(recorder, None)
        refused(await http.put(path, json=fits), 404, "unknown-run")

    alone(scenario, tmp_path)


def test_a_seal_waits_for_batches_that_arrive_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: httpx.AsyncClient, recorder: Recorder) -> None:
        ask, run, arriving = recorder.ask, "/v1/runs/a", iter(range(1, 4))

        async def meanwhile(op: str, *rest: Any, **arguments: Any) -> Any:
            if op == "seal" and (first := next(arriving, None)) is not None:
                put = await http.put(f"{run}/batches/{first}", json=batch(first, [2.0], [1]))
                assert put.status_code == 201
            return await ask(op, *rest, **arguments)

        monkeypatch.setattr(recorder, "ask", meanwhile)
        await http.put(run, json=BINARY)
        await http.put(f"{run}/batches/0", json=batch(0, [-2.0], [1]))
        sealed = await http.post(f"{run}/seal")
        assert sealed.status_code == 200
        assert sealed.json()["counted"] == {"rows": 4, "entries": 4, "batches": 4}
        assert sealed.json()["result"]["metrics"]["accuracy"] == 0.75
        run, arriving = "/v1/runs/b", iter(range(1, 1000))
        await http.put(run, json=BINARY)
        await http.put(f"{run}/batches/0", json=batch(0, [-2.0], [1]))
        refused(await http.post(f"{run}/seal"), 503, "unavailable")
        assert (await http.get(run)).json()["status"] == "open"

    alone(scenario, tmp_path)


def test_a_metric_that_changed_ends_an_open_run_and_leaves_a_sealed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = batch(0, [2.0, -1.0], [1, 1])
    before: dict[str, Any] = {}

    async def first(http: httpx.AsyncClient, recorder: Recorder) -> None:
        for run in ("open", "sealed"):
            await http.put(f"/v1/runs/{run}", json=BINARY)
            await http.put(f"/v1/runs/{run}/batches/a", json=body)
        before.update((await http.post("/v1/runs/sealed/seal")).json())

    async def upgraded(http: httpx.AsyncClient, recorder: Recorder) -> None:
        refused(await http.put("/v1/runs/open/batches/b", json=batch(2, [1.0], [1])), 409, "definition-changed")
        refused(await http.put("/v1/runs/open", json=BINARY), 409, "definition-changed")
        refused(await http.post("/v1/runs/open/seal"), 409, "definition-changed")
        read = await http.get("/v1/runs/open")
        assert read.status_code == 200
        assert (read.json()["result"], read.json()["counted"]) == (None, {"rows": 2, "entries": 2, "batches": 1})
        assert "definition of a metric" in read.json()["problem"]
        assert (await http.get("/v1/runs/sealed")).json() == before
        assert (await http.post("/v1/runs/sealed/seal")).json() == before
        refused(await http.put("/v1/runs/sealed/batches/b", json=batch(2, [1.0], [1])), 409, "run-sealed")

    alone(first, tmp_path)
    CACHES["run_documents"].clear()  # the upgraded service is another process
    changed = dataclasses.replace(METRICS["binary"]["accuracy"], version=2)
    monkeypatch.setitem(METRICS["binary"], "accuracy", changed)
    alone(upgraded, tmp_path)
    CACHES["run_documents"].clear()  # its digests are of the changed metric


def test_a_recorder_that_fails_promises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: httpx.AsyncClient, recorder: Recorder) -> None:
        begin = recorder.begin
        fault: Problem | None = None

        def failing(op: str, *rest: Any, **arguments: Any) -> asyncio.Future[Any]:
            if fault is None:
                return begin(op, *rest, **arguments)
            failed = asyncio.get_running_loop().create_future()
            failed.set_exception(fault)
            return failed

        monkeypatch.setattr(recorder, "begin", failing)
        await http.put("/v1/runs/a", json=BINARY)
        assert (await http.put("/v1/runs/a/batches/first", json=batch(1, [2.0], [1]))).status_code == 201
        body = batch(0, [2.0], [1])
        for fault in (Unavailable("gone", retry_after_s=3.0), StorageFull("full"), DeadlineExceeded("late")):
            answer = await http.put("/v1/runs/a/batches/0", json=body)
            refused(answer, fault.status, fault.slug)
            assert answer.headers.get("retry-after") == ("3" if fault.retry_after_s else None)
            evaluated = await http.post(
                "/v1/evaluate", json={"loss": "mse", "inputs": {"prediction": [1], "target": [1]}}
            )
            assert evaluated.status_code == 200
        fault = None
        assert (await http.put("/v1/runs/a/batches/0", json=body)).status_code == 201

    alone(scenario, tmp_path)


def test_a_page_of_another_site_may_not_write(tmp_path: Path) -> None:
    async def scenario(http: httpx.AsyncClient, recorder: Recorder) -> None:
        for method, target in (("PUT", ""), ("PUT", "/batches/b"), ("DELETE", ""), ("POST", "/seal"), ("GET", "")):
            foreign = {"origin": "https://another.example"}
            refused(await http.request(method, f"/v1/runs/a{target}", headers=foreign), 403, "forbidden")
            cross = {"sec-fetch-site": "cross-site"}
            refused(await http.request(method, f"/v1/runs/a{target}", headers=cross), 403, "forbidden")

    alone(scenario, tmp_path)
