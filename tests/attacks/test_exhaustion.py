"""Requests within every limit that are together too many, too varied or too costly."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import torch

from evaluating import layout
from fuzz.mutations import as_json, as_oip, as_safetensors
from lossd.api import curves, evaluate
from lossd.api.runs import comparisons, definitions, results
from lossd.arrangement import arrange_shared
from lossd.caches import CACHES
from lossd.engine import remote_worker as link
from lossd.job import MAX_PAIRS
from lossd.losses import REGISTRY
from lossd.metrics import METRICS
from lossd.request.planning import make_plan
from lossd_client.errors import PROBLEMS
from losses.case import Case
from losses.cases import CASES
from serving import Running, running

from .test_work import pieces

MSE = {"name": "mse"}


@pytest.mark.timed
def test_a_large_json_text_keeps_nobody_waiting_for_seconds() -> None:
    """A quarter of the default limit, in the form that takes the parser longest; health is asked for meanwhile."""
    with running(max_json_bytes=4 << 20) as service:
        unit, limit = b"[1],", int(service.settings.max_json_bytes)
        body = b'{"loss":{"name":"mse"},"inputs":{"prediction":[' + unit * (limit // len(unit) - 30) + b"[1]]}}"
        begin = time.monotonic()
        orjson.loads(body)
        parsing_s = time.monotonic() - begin  # about an eighth of a second where nothing else runs
        pauses: list[float] = []
        done = threading.Event()

        def watch() -> None:
            with httpx.Client(base_url=service.url, timeout=30) as http:
                while not done.is_set():
                    begin = time.monotonic()
                    http.get("/health/live")
                    pauses.append(time.monotonic() - begin)
                    time.sleep(0.02)

        watcher = threading.Thread(target=watch)
        watcher.start()
        headers = {"Content-Type": "application/json"}
        refused = httpx.post(f"{service.url}/v1/evaluate", content=body, headers=headers, timeout=60)
        done.set()
        watcher.join()
        assert len(body) > limit - 1024
        assert refused.status_code == 422
        assert max(pauses) < 1 + 4 * parsing_s


def test_bodies_that_are_gathered_count_before_they_are_whole(service: Running) -> None:
    """Connections that send all but the end of a body hold what the queue may hold, together, and no more."""
    budget, connections = service.engine.budget, []
    size = int(service.settings.max_json_bytes) - 1
    head = b"POST /v1/evaluate HTTP/1.1\r\nHost: lossd\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n" % size
    try:
        for _ in range(budget.limit_bytes // size + 10):
            connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
            connection.sendall(head + b" " * (size - 1))
            connections.append(connection)
        refused = [c for c in connections[-9:] if c.recv(12) == b"HTTP/1.1 429"]
        assert len(refused) == 9
        assert budget.limit_bytes - 2 * size < budget.gathered_bytes <= budget.limit_bytes
    finally:
        for connection in connections:
            connection.close()
    service.wait_until(lambda engine: not engine.budget.gathered_bytes)


def test_no_function_keeps_what_clients_send_but_in_bytes() -> None:
    """Another kind of cache is met only where the operator, or the code, says what it holds."""
    files = {
        "api/catalogue.py", "api/explorer/__init__.py", "api/inference/models.py",
        "api/manual/contents.py", "api/pages.py", "api/search.py", "cli/serve.py", "evaluation/device_errors.py",
        "losses/guides/__init__.py", "losses/perceptual.py", "request/fields.py", "runs/statistics/student.py",
    }  # fmt: skip
    root = Path(evaluate.__file__).parents[1]
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"@(lru_)?cache\b|lru_cache\(", path.read_text())
    }
    assert found <= files
    theirs = ("passes", "run_countings", "run_descriptions", "fingerprint_")  # of workers and of the recorder
    limits = {name: cache.limit_bytes for name, cache in CACHES.items() if not name.startswith(theirs)}
    limits |= {"curves": curves.CACHED_BYTES, "run_results": results.CACHED_BYTES}
    limits |= {"run_definitions": definitions.CACHED_BYTES, "run_comparisons": comparisons.CACHED_BYTES}
    assert sum(limits.values()) <= 128 << 20


def weighted(i: int, classes: int) -> dict[str, Any]:
    return {"loss": {"name": "cross_entropy", "class_weight": [i, *[1] * (classes - 1)]}, "outputs": ["loss"]}


def summed(i: int, terms: int) -> dict[str, Any]:
    mse = {"loss": "mse"}
    return {
        "loss": {"name": "weighted_sum", "terms": [{**mse, "weight": i}, *[mse] * (terms - 1)]},
        "outputs": ["loss"],
    }


def ask(request: dict[str, Any], shape: tuple[int, int], query: bytes = b"") -> None:
    """Read a request's header, and lay its answer out, as the route does."""
    target = ("I64", shape[:1], 8) if "class_weight" in request["loss"] else ("F32", shape, 4)
    sizes = [4 * shape[0] * shape[1], target[2] * int(np.prod(target[1]))]
    header = {
        "__metadata__": {"request": json.dumps(request)},
        "prediction": {"dtype": "F32", "shape": shape, "data_offsets": [0, sizes[0]]},
        "target": {"dtype": target[0], "shape": target[1], "data_offsets": [sizes[0], sum(sizes)]},
    }
    checked = evaluate._checked(json.dumps(header).encode(), query)
    evaluate._layout(checked.job.recipe, checked.job.rows)


@pytest.mark.parametrize(
    ("attack", "times"),
    [
        (lambda i: ask(weighted(i, 50_000), (1, 50_000)), 2),
        (lambda i: ask(weighted(i, 2_000), (1, 2_000)), 40),
        (lambda i: ask(summed(i, 64), (1, 1)), 5),
        (lambda i: ask({"loss": {"name": "mse"}, "outputs": ["loss"]}, (1, 1), b"x" * 20_000 + b"%d" % i), 300),
    ],
    ids=["long weights", "weights", "terms", "queries"],
)
def test_what_is_kept_for_the_next_request_is_bounded_in_bytes(attack: Callable[[int], None], times: int) -> None:
    """What is told of an entry's size is not less than it takes: memory is measured, not what the caches say."""
    for cache in CACHES.values():
        cache.clear()
    attack(10**6)
    gc.collect()
    tracemalloc.start()
    try:
        for i in range(times):
            attack(i)
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    stated_bytes = sum(cache.nbytes for cache in CACHES.values())
    assert stated_bytes <= sum(cache.limit_bytes for cache in CACHES.values())
    assert grown <= stated_bytes + (256 << 10)


def test_curves_are_kept_with_their_addresses() -> None:
    async def flood() -> int:
        kept = curves._SharedCache()

        async def make() -> bytes:
            return b"{}"

        for i in range(1000):
            await kept.get(("mse", "x" * 16_000 + str(i)), make)
        assert len(kept._tasks) == len(kept._waiting) == 0
        return kept._answers.nbytes

    tracemalloc.start()
    try:
        kept_bytes = asyncio.run(flood())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes <= curves.CACHED_BYTES
    assert peak <= 1.2 * curves.CACHED_BYTES


def test_labels_of_counters_are_losses_and_problems_whatever_is_asked(service: Running, http: httpx.Client) -> None:
    for i in range(10):
        strange = f"strange{i}"
        http.post("/v1/evaluate", json={"loss": {"name": strange}, "inputs": {}})
        http.post("/v1/evaluate", json={"task": strange, "inputs": {}})
        http.post(f"/v2/models/{strange}/infer", content=b"{}")
        http.post(f"/v1/{strange}")
        http.request(f"M{i}", "/v1/evaluate")
    page = http.get("/metrics").text
    assert "strange" not in page
    known = {*REGISTRY, *(f"metrics.{task}" for task in METRICS), ""}
    labels = re.findall(r'^lossd_requests_total\{loss="(.*?)",outcome="(.*?)"\}', page, re.MULTILINE)
    assert labels
    assert {loss for loss, _ in labels} <= known
    assert {outcome for _, outcome in labels} <= {*PROBLEMS, "ok", "disconnected"}


def test_as_many_shapes_as_one_likes_leave_no_memory_behind(service: Running, http: httpx.Client) -> None:
    """Each recipe has its own slabs; those of recipes that nobody asks for any more go back or serve others."""
    pool = service.engine.pool
    for columns in range(1, 120):
        row = np.zeros((1, columns), np.float32)
        sent = as_safetensors({"loss": MSE, "outputs": ["loss"]}, prediction=row, target=row)
        assert http.post(sent.path, content=sent.body, headers=sent.headers).status_code == 200
    assert pool.in_use == 0
    assert pool.cached_bytes <= pool.cache_bytes
    assert sum(map(len, pool._free.values())) < 50


def test_many_recipes_at_once_are_each_answered(service: Running) -> None:
    async def post() -> list[int]:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:
            inputs = {"prediction": [[1.0] * 3], "target": [0]}
            losses = [{"name": "cross_entropy", "class_weight": [i, 1, 1]} for i in range(1, 101)]
            sent = [as_json({"loss": loss, "inputs": inputs}) for loss in losses]
            answers = await asyncio.gather(*(http.post(s.path, content=s.body, headers=s.headers) for s in sent))
        return [answer.status_code for answer in answers]

    assert set(asyncio.run(post())) == {200}


def test_a_recipe_longer_than_the_worker_s_socket_takes_at_once_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SOCKET_BYTES", 4096)
    scores, target = np.zeros((1, 20_000), np.float32), np.array([3])
    with running() as service, httpx.Client(base_url=service.url, timeout=30) as http:
        for weight in (1.0, 0.25):
            request = {"loss": {"name": "cross_entropy", "class_weight": [weight] * 20_000}, "outputs": ["loss"]}
            sent = as_safetensors(request, prediction=scores, target=target)
            answer = http.post(sent.path, content=sent.body, headers={**sent.headers, "Accept": "application/json"})
            assert answer.json()["loss"] == pytest.approx(np.log(20_000), rel=1e-5)
        assert service.engine.stats.restarts == 0


def test_pairs_of_a_batch_are_bounded_as_those_of_a_request() -> None:
    plan = make_plan({"loss": {"name": "nt_xent"}, "outputs": ["loss"]})
    for rows in (64, 1024, 4096, 8192):
        recipe = plan.job(dict.fromkeys(("first", "second"), ("float32", (rows, 1)))).recipe
        assert recipe.pairs == 4 * rows**2
        arrangement = arrange_shared(recipe, 8 << 20)
        assert arrangement is not None
        most = arrangement.requests
        assert most >= 1
        assert most * recipe.pairs <= MAX_PAIRS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_memory_grows_with_the_samples_and_as_their_square_only_where_pairs_are_counted(case: Case) -> None:
    parameters = case.parameters[0]
    few = 6 if case.name == "perceptual" else 48  # whose rows are images
    many = 8 * few
    inputs = {rows: case.inputs(parameters, n=rows) for rows in (few, many)}
    if "label" in inputs[few]:  # the tables have a few labels that fit together
        inputs = {rows: {**tensors, "label": torch.arange(rows) % 7} for rows, tensors in inputs.items()}
    request = {"loss": {"name": case.name, **parameters}, "outputs": ["loss"]}
    plan = make_plan(json.loads(json.dumps(request)))
    pairs = {rows: plan.job(layout(tensors)).recipe.pairs for rows, tensors in inputs.items()}
    least = max(tensor.nbytes for tensor in inputs[many].values())
    largest = {rows: max(pieces(request, tensors)) for rows, tensors in inputs.items()}
    if pairs[many]:
        assert pairs[many] >= 32 * pairs[few] or case.name == "multilabel_margin"
        assert largest[many] <= 8 * pairs[many] + 64 * least
    else:
        assert largest[many] <= 24 * max(largest[few], least // 8)


def test_the_body_of_a_repository_index_is_bounded(http: httpx.Client) -> None:
    answer = http.post("/v2/repository/index", content=b" " * (513 << 10))
    assert answer.status_code == 413
    assert answer.json().keys() == {"error"}


def test_a_thousand_names_of_which_the_last_is_twice_are_compared_once(http: httpx.Client) -> None:
    inputs = [{"name": str(i), "shape": [0], "datatype": "FP32", "data": []} for i in range(900)]
    begin = time.process_time()  # of the front, which runs in this process
    answer = http.post("/v2/models/mse/infer", content=json.dumps({"inputs": [*inputs, inputs[-1]]}).encode())
    assert time.process_time() - begin < 2
    assert answer.json() == {"error": "the input 899 is listed twice"}


def test_a_series_of_a_thousand_inputs_is_planned_in_no_time(http: httpx.Client) -> None:
    row = np.zeros((1, 1), np.float32)
    arrays = {f"{name}.{i}": row for i in range(500) for name in ("prediction", "target")}
    sent = as_oip("feature_matching", {}, **arrays)
    begin = time.process_time()
    answer = http.post(sent.path, content=sent.body, headers=sent.headers)
    assert time.process_time() - begin < 5
    assert answer.status_code in (200, 400, 413)
