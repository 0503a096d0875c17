"""Every metric of ``/metrics``, read before and after requests with known effects."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from lossd import __version__
from lossd.api.observability.telemetry import COUNTED_TOGETHER
from lossd.configuration.keys import fresh_key, key_line
from serving import Running, running

ALICE, BOB = fresh_key(), fresh_key()
MSE = {
    "loss": {"name": "mse"},
    "inputs": {"prediction": [1.0, 2.0, 3.0], "target": [3.0, 1.0, 2.0]},
    "outputs": ["loss"],
}
BATCH_BYTES = 2 * 3 * 4  # of one such request: two float32 inputs and nothing back

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"{key_line('alice', ALICE)}\n{key_line('bob', BOB)}\n")
    with running(mortal=True, api_keys_file=file, metrics_public=True) as service:
        yield service


@pytest.fixture
def http(service: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, headers={"X-API-Key": ALICE}, timeout=30) as http:
        yield http


def scrape(http: httpx.Client) -> Samples:
    page = http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(page.text))
    assert all(family.documentation for family in families)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def added(before: Samples, after: Samples, name: str, **labels: str) -> float:
    return value(after, name, **labels) - value(before, name, **labels)


def test_an_answer_is_counted_by_loss_by_client_and_in_every_stage(http: httpx.Client) -> None:
    before = scrape(http)
    for _ in range(3):
        assert http.post("/v1/evaluate", json=MSE).is_success
    assert http.post("/v1/evaluate", json=MSE, headers={"X-API-Key": BOB}).is_success
    after = scrape(http)
    assert added(before, after, "lossd_requests_total", loss="mse", outcome="ok") == 4
    assert added(before, after, "lossd_client_requests_total", client="alice", outcome="ok") == 3
    assert added(before, after, "lossd_client_requests_total", client="bob", outcome="ok") == 1
    for stage in ("parse", "queue", "copy", "compute", "encode", "total"):
        assert added(before, after, "lossd_request_seconds_count", stage=stage) == 4
        assert added(before, after, "lossd_request_seconds_bucket", stage=stage, le="+Inf") == 4
    spent = {
        stage: added(before, after, "lossd_request_seconds_sum", stage=stage)
        for stage in ("parse", "queue", "compute", "encode", "total")
    }
    total = spent.pop("total")
    assert all(seconds > 0 for seconds in spent.values())
    assert sum(spent.values()) <= total < 60


def test_many_answers_and_a_refusal_are_counted_once_each(service: Running, http: httpx.Client) -> None:
    """Answers are counted together, whenever there are enough of them and when the counts are read."""
    request_count = COUNTED_TOGETHER + 3
    before = scrape(http)
    with httpx.Client(base_url=service.url, headers={"X-API-Key": BOB}, timeout=30) as bob:
        assert [bob.post("/v1/evaluate", json=MSE).status_code for _ in range(request_count)] == [200] * request_count
        assert bob.post("/v1/evaluate", json={**MSE, "outputs": ["los"]}).status_code == 422
    for _ in range(2):
        after = scrape(http)
        assert added(before, after, "lossd_requests_total", loss="mse", outcome="ok") == request_count
        assert added(before, after, "lossd_client_requests_total", client="bob", outcome="ok") == request_count
        assert added(before, after, "lossd_request_seconds_count", stage="total") == request_count
        assert added(before, after, "lossd_request_seconds_bucket", stage="copy", le="0.0001") == request_count
        assert added(before, after, "nv_inference_request_success", model="mse", version="1") == request_count
        assert added(before, after, "lossd_request_seconds_sum", stage="compute") > 0


def test_batches_are_counted_by_their_requests_and_their_bytes(http: httpx.Client) -> None:
    before = scrape(http)
    for _ in range(2):
        assert http.post("/v1/evaluate", json=MSE).is_success
    after = scrape(http)
    assert added(before, after, "lossd_batch_requests_count") == added(before, after, "lossd_batch_bytes_count") == 2
    assert added(before, after, "lossd_batch_requests_sum") == 2
    assert added(before, after, "lossd_batch_requests_bucket", le="1") == 2
    assert added(before, after, "lossd_batch_bytes_sum") == pytest.approx(2 * BATCH_BYTES, abs=64)
    assert added(before, after, "lossd_batch_bytes_bucket", le="1024") == 2
    assert added(before, after, "lossd_batch_bytes_bucket", le="+Inf") == 2


REFUSALS = [
    ({"X-API-Key": "nobody's"}, MSE, "", "", "unauthorized"),
    ({"X-API-Key": BOB}, {"loss": {"name": "mse"}, "inputs": {}}, "mse", "bob", "missing-input"),
    ({"X-API-Key": BOB}, {"loss": {"name": "x"}, "inputs": {}}, "", "bob", "unknown-loss"),
]


@pytest.mark.parametrize(("headers", "body", "loss", "client", "outcome"), REFUSALS)
def test_a_refusal_is_counted_by_its_reason_and_by_whose_it_is(
    headers: dict[str, str], body: object, loss: str, client: str, outcome: str, http: httpx.Client
) -> None:
    before = scrape(http)
    assert not http.post("/v1/evaluate", json=body, headers=headers).is_success
    after = scrape(http)
    assert added(before, after, "lossd_requests_total", loss=loss, outcome=outcome) == 1
    assert added(before, after, "lossd_client_requests_total", client=client, outcome=outcome) == 1
    assert added(before, after, "lossd_request_seconds_count", stage="total") == 0


def test_caches_are_counted(http: httpx.Client) -> None:
    plan = {**MSE, "outputs": ["loss"], "metrics": {"beta": 0.625}}  # asked for by no other test
    before = scrape(http)
    for _ in range(4):
        assert http.post("/v1/evaluate", json=plan).is_success
    after = scrape(http)
    assert added(before, after, "lossd_cache_misses_total", cache="plans") == 1
    assert added(before, after, "lossd_cache_hits_total", cache="plans") == 3
    assert value(after, "lossd_cache_bytes", cache="plans") > 0
    assert value(after, "lossd_cache_bytes", cache="templates") >= 0


def test_what_is_in_progress_is_there_while_it_is(service: Running, http: httpx.Client) -> None:
    quiet = scrape(http)
    assert value(quiet, "lossd_queue_requests") == value(quiet, "lossd_queue_bytes") == 0
    service.engine.budget.admit("alice", 1234)
    try:
        busy = scrape(http)
    finally:
        service.engine.budget.release("alice", 1234)
    assert (value(busy, "lossd_queue_requests"), value(busy, "lossd_queue_bytes")) == (1, 1234)
    assert ("lossd_slabs_in_use", frozenset()) in busy


def test_busy_time_of_front_and_worker_and_the_backlog(service: Running, http: httpx.Client) -> None:
    before = scrape(http)
    for _ in range(10):
        assert http.post("/v1/evaluate", json=MSE).is_success
    after = scrape(http)
    compute_s = added(before, after, "lossd_request_seconds_sum", stage="compute")
    assert 0 < compute_s <= added(before, after, "lossd_worker_busy_seconds_total", worker="0")
    assert added(before, after, "lossd_front_busy_seconds_total") > 0
    assert value(after, "lossd_backlog_seconds") == 0.0
    assert ("lossd_backlog_seconds", frozenset()) in after


def test_memory_of_the_front_of_its_worker_and_of_a_gpu(service: Running, http: httpx.Client) -> None:
    samples = scrape(http)
    (vitals,) = service.engine.vitals
    resident = value(samples, "lossd_worker_resident_bytes", worker="0", device="cpu")
    stated = re.search(r"^VmRSS:\s*(\d+) kB", Path(f"/proc/{vitals.pid}/status").read_text(), re.MULTILINE)
    assert stated is not None
    assert resident == pytest.approx(int(stated[1]) * 1024, rel=0.2)
    assert 10e6 < value(samples, "process_resident_memory_bytes") < 20e9
    assert value(samples, "process_open_fds") > 5
    assert not [name for name, _ in samples if name == "lossd_device_memory_bytes"], "there is no GPU"
    # A worker notes the memory of its GPU in the page that it shares with the front.
    service.engine.workers[0]._heartbeat.note_memory(5 << 30, 70 << 30, 80 << 30)  # type: ignore[attr-defined]
    samples = scrape(http)
    for state, size in (("reserved", 5 << 30), ("free", 70 << 30), ("total", 80 << 30)):
        assert value(samples, "lossd_device_memory_bytes", worker="0", device="cpu", state=state) == size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_s_memory_is_noted_by_its_worker() -> None:
    with running(device="cuda") as service, httpx.Client(base_url=service.url, timeout=60) as http:
        assert http.post("/v1/evaluate", json=MSE).is_success
        service.wait_until(lambda engine: engine.vitals[0].device_memory is not None)
        samples = scrape(http)
    reserved, free, total = (
        value(samples, "lossd_device_memory_bytes", worker="0", device="cuda", state=state)
        for state in ("reserved", "free", "total")
    )
    assert 0 < reserved < total
    assert 0 < free < total


def test_a_worker_that_died_is_counted_and_readiness_is_told(service: Running, http: httpx.Client) -> None:
    before = scrape(http)
    assert value(before, "lossd_ready") == 1
    (vitals,) = service.engine.vitals
    assert vitals.pid is not None
    os.kill(vitals.pid, 9)
    service.wait_until(lambda engine: engine.ready and engine.vitals[0].pid not in (None, vitals.pid))
    after = scrape(http)
    assert added(before, after, "lossd_worker_restarts_total") == 1
    assert http.post("/v1/evaluate", json=MSE).is_success


def test_what_triton_s_dashboards_read(http: httpx.Client) -> None:
    before = scrape(http)
    assert http.post("/v1/evaluate", json=MSE).is_success
    assert http.post("/v1/evaluate", json={"loss": {"name": "mse"}, "inputs": {}}).status_code == 422
    after = scrape(http)
    model = {"model": "mse", "version": "1"}
    for name in ("request_success", "request_failure", "count", "exec_count"):
        assert added(before, after, f"nv_inference_{name}", **model) == 1
    for name in ("request_duration_us", "compute_infer_duration_us"):
        assert added(before, after, f"nv_inference_{name}", **model) > 0
    assert value(after, "lossd_build_info", version=__version__) == 1
