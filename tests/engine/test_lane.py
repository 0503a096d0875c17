"""A lane for short batches beside a long one: which requests use it, and when it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from chaos.bodies import HEADERS, safetensors_body
from lossd.cost import Cost, PairCost, Shapes
from lossd.engine import remote_worker
from lossd.engine.process import ProcessEngine
from serving import Running, running

ROWS = 1500


def triplets(rows: int) -> bytes:
    return safetensors_body(
        {"loss": {"name": "mined_triplet", "mining": "all"}, "outputs": ["loss"]},
        embedding=np.random.default_rng(0).standard_normal((rows, 1)).astype("f4"),
        label=np.arange(rows) % 7,
    )


LONG = triplets(ROWS)
SHORT = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0, 2.0], "target": [1.0, 4.0]}}


@pytest.fixture
def service() -> Iterator[Running]:
    with running(compiled=False) as service:
        yield service


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as clients:
        yield clients


def worker_of(service: Running) -> remote_worker.RemoteWorker:
    assert isinstance(service.engine, ProcessEngine)
    return service.engine.workers[0]


def long(service: Running, clients: ThreadPoolExecutor, body: bytes = LONG) -> Future[httpx.Response]:
    """A long request, whose evaluation has begun."""
    answer = clients.submit(httpx.post, f"{service.url}/v1/evaluate", content=body, headers=HEADERS, timeout=100)
    service.wait_until(lambda _: worker_of(service).batches)
    return answer


def short(service: Running) -> float:
    answer = httpx.post(f"{service.url}/v1/evaluate", json=SHORT, timeout=100)
    assert answer.status_code == 200, answer.text
    loss: float = answer.json()["loss"]
    return loss


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_short_request_is_answered_before_an_earlier_long_one(service: Running, clients: ThreadPoolExecutor) -> None:
    worker = worker_of(service)
    waited = long(service, clients)
    service.wait_until(lambda _: worker.lane is not None and worker.lane.ready)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)  # what is long is not done before what is short, however busy the machine is
    try:
        for _ in range(5):
            assert short(service) == 2.0
        assert not waited.done()
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    assert waited.result().status_code == 200
    assert service.engine.stats.restarts == 0


def test_two_long_requests_are_evaluated_one_after_the_other(service: Running, clients: ThreadPoolExecutor) -> None:
    waited = [long(service, clients), long(service, clients)]
    assert short(service) == 2.0
    assert [answer.result().content for answer in waited] == [waited[0].result().content] * 2
    assert service.engine.stats.executions == {"mined_triplet": 2, "mse": 1}


def test_what_took_long_has_a_lane_the_next_time_though_its_estimate_is_short(
    service: Running, clients: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = PairCost.cost

    def too_low(pairs: PairCost, shapes: Shapes) -> Cost:
        scratch_bytes, work_ns = stated(pairs, shapes)
        return Cost(scratch_bytes, work_ns // 20)

    monkeypatch.setattr(PairCost, "cost", too_low)
    body = triplets(ROWS + 1)  # no estimate of it is kept
    assert long(service, clients, body).result().status_code == 200
    assert worker_of(service).lane is None
    waited = long(service, clients, body)
    for _ in range(5):
        assert short(service) == 2.0
    assert not waited.done()
    assert waited.result().status_code == 200


def test_a_lane_ends_when_it_is_not_needed(
    service: Running, clients: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_worker, "LINGER_S", 0.0)
    worker = worker_of(service)
    for _ in range(2):
        waited = long(service, clients)
        service.wait_until(lambda _: worker.lane is not None and worker.lane.ready)
        assert worker.lane is not None
        pid = worker.lane.pid
        assert pid is not None
        assert pid != worker.pid
        assert waited.result().status_code == 200
        service.wait_until(lambda _, pid=pid: worker.lane is None and not is_running(pid))
        assert short(service) == 2.0


def test_no_answer_is_lost_if_a_lane_is_killed(service: Running, clients: ThreadPoolExecutor) -> None:
    worker = worker_of(service)
    waited = long(service, clients)
    service.wait_until(lambda _: worker.lane is not None and worker.lane.ready)
    assert worker.lane is not None
    assert worker.lane.pid is not None
    os.kill(worker.lane.pid, signal.SIGSTOP)
    others = [clients.submit(short, service) for _ in range(4)]
    service.wait_until(lambda _: worker.lane is not None and worker.lane.batches)
    os.kill(worker.lane.pid, signal.SIGKILL)
    assert [other.result() for other in others] == [2.0] * 4
    assert waited.result().status_code == 200


def test_a_service_that_ends_leaves_no_lane(clients: ThreadPoolExecutor) -> None:
    with running(compiled=False) as service:
        worker = worker_of(service)
        waited = long(service, clients)
        service.wait_until(lambda _: worker.lane is not None and worker.lane.ready)
        assert worker.lane is not None
        pid = worker.lane.pid
        assert pid is not None
        assert waited.result().status_code == 200
    end = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < end
        time.sleep(0.01)
