"""Without a worker, requests on every route wait for one, until their deadlines and within the limits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gate import Gate
from lossd.api import create_app
from lossd.configuration.preflight import StartError
from lossd.configuration.settings import Settings
from lossd.engine import Engine, create_engine, inline
from lossd.engine.inline import InlineEngine
from lossd.engine.process import ProcessEngine
from lossd.engine.worker_process import MAX_STARTS, Backoff
from serving import Running, running

MSE = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0, 4.0], "target": [3.0, 3.0]}}
OIP = {
    "inputs": [
        {"name": "prediction", "shape": [2], "datatype": "FP32", "data": [1.0, 4.0]},
        {"name": "target", "shape": [2], "datatype": "FP32", "data": [3.0, 3.0]},
    ]
}
DOORS: dict[str, tuple[str, str, Any, Callable[[Any], float]]] = {
    "v1": ("POST", "/v1/evaluate", MSE, lambda document: document["loss"]),
    "v2": ("POST", "/v2/models/mse/infer", OIP, lambda document: document["outputs"][0]["data"][0]),
    "curve": (
        "GET",
        "/v1/losses/mse/curve.json?points=5&low=-2&high=2",
        None,
        lambda document: document["series"][0]["loss"][0],
    ),
}
RIGHT = {"v1": 2.5, "v2": 2.5, "curve": 4.0}


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(tmp_path, monkeypatch)


def ask(service: Running, door: str, timeout_ms: int | None = None) -> httpx.Response:
    method, path, body, _ = DOORS[door]
    headers = {} if timeout_ms is None else {"X-Request-Timeout-Ms": str(timeout_ms)}
    return httpx.request(method, service.url + path, json=body, headers=headers, timeout=60)


def let_go(service: Running) -> None:
    """Nothing is held any more, though no worker has come."""
    service.wait_until(lambda e: (e.in_progress, e.budget.held_bytes, e.pool.in_use, len(e.batcher)) == (0, 0, 0, 0))


@pytest.mark.parametrize("engine", ["process", "inline"])
@pytest.mark.parametrize("door", DOORS)
def test_a_request_waits_for_the_first_worker(
    door: str, engine: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_load = threading.Event()
    monkeypatch.setattr("lossd.engine.inline._load", lambda *_: may_load.wait(60) and None)
    with running(ready=False, compiled=False, engine=engine) as service, ThreadPoolExecutor(1) as pool:
        answer: Future[httpx.Response] = pool.submit(ask, service, door)
        service.wait_until(lambda e: e.in_progress >= 1)
        time.sleep(0.3)
        assert not answer.done()
        gate.open()
        may_load.set()
        response = answer.result()
        assert response.status_code == 200, response.text
        assert DOORS[door][3](response.json()) == pytest.approx(RIGHT[door])
        let_go(service)


@pytest.mark.parametrize("door", DOORS)
def test_a_request_waits_for_a_worker_until_its_deadline(door: str, gate: Gate) -> None:
    with running(ready=False, compiled=False) as service:
        begin = time.monotonic()
        response = ask(service, door, timeout_ms=400)
        assert response.status_code == 504, response.text
        assert time.monotonic() - begin >= 0.39
        let_go(service)
        gate.open()
        service.wait_until(lambda e: e.ready)
        assert ask(service, door).status_code == 200, "what was given up for one is not kept from others"


def test_the_default_deadline_is_a_setting(gate: Gate) -> None:
    with running(ready=False, compiled=False, request_timeout_ms=300) as service:
        responses = {door: ask(service, door) for door in DOORS}
        assert {door: answer.status_code for door, answer in responses.items()} == dict.fromkeys(DOORS, 504)
        assert "the service is starting" in responses["v1"].json()["detail"]


@pytest.mark.parametrize("door", DOORS)
def test_a_request_is_dropped_if_its_client_leaves_before_the_first_worker(door: str, gate: Gate) -> None:
    method, path, body, _ = DOORS[door]
    with running(ready=False, compiled=False) as service:
        with pytest.raises(httpx.ReadTimeout):
            httpx.request(method, service.url + path, json=body, timeout=httpx.Timeout(30, read=0.5))
        let_go(service)


def test_a_shared_curve_is_kept_if_one_of_two_clients_leaves(gate: Gate) -> None:
    with running(ready=False, compiled=False) as service, ThreadPoolExecutor(1) as pool:
        stays = pool.submit(ask, service, "curve")
        service.wait_until(lambda e: e.in_progress >= 1)
        assert ask(service, "curve", timeout_ms=200).status_code == 504
        gate.open()
        assert stays.result().status_code == 200


def test_the_limits_hold_before_the_first_worker(gate: Gate) -> None:
    with running(ready=False, compiled=False, queue_requests=2) as service, ThreadPoolExecutor(2) as pool:
        held = [pool.submit(ask, service, "v1") for _ in range(2)]
        service.wait_until(lambda e: e.in_progress == 2)
        refused = ask(service, "v1")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        gate.open()
        assert [answer.result().status_code for answer in held] == [200, 200]


def test_health_says_that_no_worker_is_ready(gate: Gate) -> None:
    with running(ready=False, compiled=False) as service, httpx.Client(base_url=service.url) as http:
        for path, field in (("/health/ready", "detail"), ("/v2/health/ready", "error")):
            response = http.get(path)
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert response.json()[field].startswith("the service is starting: no worker is ready yet")
        assert http.get("/health/live").status_code == 200
        states = http.post("/v2/repository/index").json()
        assert "the service is starting" in states[0]["reason"]
        gate.open()
        service.wait_until(lambda e: e.ready)
        assert http.get("/health/ready").status_code == 200


def test_requests_are_refused_if_no_worker_starts_until_one_does(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "delay_s", lambda self: 0.05)
    with running(ready=False, compiled=False, mortal=True) as service, ThreadPoolExecutor(1) as pool:
        held = pool.submit(ask, service, "v1")
        service.wait_until(lambda e: e.in_progress == 1)
        gate.open(status=3)
        for response in (held.result(), ask(service, "v1"), httpx.get(f"{service.url}/health/ready")):
            assert response.status_code == 503
            assert f"no worker can be started after {MAX_STARTS} attempts" in response.json()["detail"]
            assert "ended with status 3" in response.json()["detail"]
            assert int(response.headers["retry-after"]) >= 1
        let_go(service)
        gate.open()
        service.wait_until(lambda e: e.ready)
        assert ask(service, "v1").json()["loss"] == 2.5


def test_a_worker_whose_process_cannot_be_made_is_tried_again(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    from lossd.engine import worker_process

    monkeypatch.setattr(worker_process, "COMMAND", ("/nowhere/python",))
    monkeypatch.setattr(Backoff, "delay_s", lambda self: 0.05)
    with running(ready=False, compiled=False, mortal=True) as service:
        service.wait_until(lambda e: e.fault is not None)
        assert "/nowhere/python" in ask(service, "v1").json()["detail"]


def lifespan(engine: Engine, settings: Settings, while_started: Callable[[], None] = lambda: None) -> None:
    """Start an application that waits until it is ready, and stop it."""

    async def run() -> None:
        app = create_app(settings, engine, wait_ready=True)
        async with app.router.lifespan_context(app):
            while_started()

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["process", "inline", "lazy"])
def test_a_startup_that_waits_returns_when_a_worker_is_ready(
    kind: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, may_load, ready = inline._load, threading.Event(), []

    def load_later(*arguments: Any) -> str | None:
        may_load.wait()
        return load(*arguments)

    monkeypatch.setattr(inline, "_load", load_later)
    settings = Settings(threads=1, compiled=False, runs="off")  # type: ignore[arg-type]
    engine = ProcessEngine(settings) if kind == "process" else InlineEngine(settings, lazy=kind == "lazy")
    with ThreadPoolExecutor(1) as pool:
        startup = pool.submit(lifespan, engine, settings, lambda: ready.append(engine.ready))
        time.sleep(0.3)
        assert not ready
        assert not startup.done()
        gate.open()
        may_load.set()
        startup.result(timeout=60)
    assert ready == [True]


@pytest.mark.parametrize("kind", ["process", "inline"])
def test_a_startup_that_waits_raises_why_no_worker_can_start(kind: str) -> None:
    settings = Settings(device="cuda:77", engine=kind, compiled=False, runs="off")  # type: ignore[arg-type]
    with pytest.raises(StartError, match=r"cuda:77.*device"):
        lifespan(create_engine(settings), settings)


def test_a_startup_that_waits_raises_how_workers_end(gate: Gate) -> None:
    gate.open(status=9)
    settings = Settings(compiled=False, runs="off")  # type: ignore[arg-type]
    engine = ProcessEngine(settings)
    with pytest.raises(StartError, match=r"the worker on cpu ended 3 times before it was ready.*with status 9"):
        lifespan(engine, settings)
    assert engine.workers[0].pid is None, "nothing is left behind"
