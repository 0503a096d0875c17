"""What happens to accepted requests when workers die, deadlines pass and clients leave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from gate import Gate
from lossd.engine import worker_process
from lossd.engine.worker_process import Backoff, WorkerProcess
from lossd_client import wire
from lossd_client.wire import safetensors
from serving import Running
from serving import running as serving

running = partial(serving, mortal=True, compiled=False)  # compiled: what is not needed here takes time to load


def body_of(request: str, **arrays) -> bytes:
    tensors = {name: wire.Tensor.of(array) for name, array in arrays.items()}
    return b"".join(bytes(piece) for piece in safetensors.encode(tensors, {"request": request}))


def request_for(seed: int, rows: int = 64) -> tuple[bytes, float]:
    """A focal request and its loss, computed here in NumPy."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, 10)).astype(np.float32)
    target = rng.integers(0, 10, rows)
    shifted = logits.astype(np.float64)
    log_p = (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))[np.arange(rows), target]
    expected = float(np.mean(-((1 - np.exp(log_p)) ** 2) * log_p))
    return body_of('{"loss":{"name":"focal","gamma":2.0}}', prediction=logits, target=target), expected


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    """For tests after which the worker is the same and nothing is held."""
    with running() as service:
        yield service
        assert service.engine.stats.restarts == 0


HEADERS = {"Content-Type": safetensors.MEDIA_TYPE, "Accept": "application/json"}


def test_a_killed_worker_loses_no_accepted_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gate = Gate(tmp_path, monkeypatch)
    gate.open()
    with running() as service:
        outcomes: list[tuple[int, float, float]] = []
        refused: list[int] = []
        ready: list[bool] = []
        stop = threading.Event()

        async def load() -> None:
            async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:

                async def one_client(first_seed: int) -> None:
                    seed = first_seed
                    while not stop.is_set():
                        body, expected = request_for(seed)
                        seed += 100
                        response = await http.post("/v1/evaluate", content=body, headers=HEADERS)
                        if response.status_code != 200:
                            refused.append(response.status_code)
                            continue
                        outcomes.append((seed, response.json()["loss"], expected))

                await asyncio.gather(*(one_client(c) for c in range(16)))

        thread = threading.Thread(target=lambda: asyncio.run(load()))
        thread.start()
        for kill in range(3):
            time.sleep(0.1)
            before = len(outcomes)
            gate.shut()
            os.kill(service.engine.workers[0].pid, signal.SIGKILL)
            service.wait_until(lambda e: not e.ready)
            ready.append(httpx.get(f"{service.url}/health/ready").status_code == 200)
            gate.open()
            service.wait_until(lambda e, n=kill: e.ready and e.stats.restarts == n + 1)
            end = time.monotonic() + 20
            while len(outcomes) < before + 20 and time.monotonic() < end:
                time.sleep(0.01)
        stop.set()
        thread.join(timeout=60)
        assert not thread.is_alive()
        assert ready == [False] * 3
        assert httpx.get(f"{service.url}/health/ready").status_code == 200
        assert "lossd_worker_restarts_total 3.0" in httpx.get(f"{service.url}/metrics").text
        assert refused == []
        assert len(outcomes) > 3 * 20
        for _, loss, expected in outcomes:
            assert loss == pytest.approx(expected, rel=1e-5)
        assert service.engine.in_progress == 0
        assert service.engine.pool.in_use == 0
        assert service.engine.budget.held_bytes == 0


def test_a_request_that_kills_every_worker_is_given_up_and_its_neighbours_are_answered(monkeypatch):
    """A batch whose worker dies twice is split; only the request that goes on killing is answered with a 500."""
    with running() as service:
        engine = service.engine
        worker = engine.workers[0]
        good, expected = request_for(1)
        bad, _ = request_for(2, rows=63)
        original = worker.send

        def send(batch):
            deadly = any(t.job.rows == 63 for t in batch.tickets)
            if deadly:
                os.kill(worker.pid, signal.SIGSTOP)  # so that it does not answer before it is killed
            original(batch)
            if deadly:
                os.kill(worker.pid, signal.SIGKILL)

        monkeypatch.setattr(worker, "send", send)

        async def post() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:
                bodies = [good, good, bad, good]
                return await asyncio.gather(*(http.post("/v1/evaluate", content=b, headers=HEADERS) for b in bodies))

        responses = asyncio.run(post())
        assert [r.status_code for r in responses] == [200, 200, 500, 200]
        assert "workers died" in responses[2].json()["detail"]
        assert responses[0].json()["loss"] == pytest.approx(expected, rel=1e-5)
        assert engine.in_progress == 0
        assert engine.pool.in_use == 0


@pytest.mark.timed
def test_a_passed_deadline_is_answered_and_its_work_dropped(service):
    before = service.engine.stats.batches
    os.kill(service.engine.workers[0].pid, signal.SIGSTOP)
    try:
        body, _ = request_for(3)
        headers = {**HEADERS, "X-Request-Timeout-Ms": "150"}
        with httpx.Client(base_url=service.url) as http:
            assert http.get("/health/live").status_code == 200
            begin = time.monotonic()
            response = http.post("/v1/evaluate", content=body, headers=headers)
            waited = time.monotonic() - begin
            queued = http.post("/v1/evaluate", content=body, headers=headers)
    finally:
        os.kill(service.engine.workers[0].pid, signal.SIGCONT)
    assert response.status_code == queued.status_code == 504
    assert response.json()["type"] == "/problems/deadline-exceeded"
    assert 0.14 < waited < 1.0
    service.wait_until(lambda e: e.in_progress == 0)
    assert service.engine.stats.batches == before + 1, "the request that was still queued must not have been evaluated"
    assert service.engine.pool.in_use == 0


@pytest.mark.parametrize(
    "part", [0.0, 0.5, 1.0], ids=["before the tensors", "inside a tensor", "waiting for the answer"]
)
@pytest.mark.parametrize("rows", [64, 40_000], ids=["small", "streamed"])
def test_a_client_that_leaves_frees_what_it_held(service, part, rows):
    body, _ = request_for(4, rows=rows)
    head = f"POST /v1/evaluate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += "".join(f"{k}: {v}\r\n" for k, v in HEADERS.items()) + "\r\n"
    header_end = 8 + safetensors.header_bytes(body[:8])
    sent = header_end + int((len(body) - header_end) * part)
    if part == 1.0:
        os.kill(service.engine.workers[0].pid, signal.SIGSTOP)
    try:
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(head.encode() + body[:sent])
            if part == 1.0:
                service.wait_until(lambda e: e.in_progress == 1)
            time.sleep(0.2)
        time.sleep(0.2)
    finally:
        os.kill(service.engine.workers[0].pid, signal.SIGCONT)
    service.wait_until(lambda e: e.in_progress == 0)
    assert service.engine.pool.in_use == 0
    assert service.engine.budget.held_bytes == 0
    body, expected = request_for(5)
    response = httpx.post(f"{service.url}/v1/evaluate", content=body, headers=HEADERS)
    assert response.json()["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows", [1000, 40_000], ids=["gathered", "streamed"])
def test_a_body_that_does_not_arrive_in_time_is_given_up(service, rows):
    body, _ = request_for(9, rows=rows)
    head = f"POST /v1/evaluate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nX-Request-Timeout-Ms: 300\r\n"
    head += "".join(f"{k}: {v}\r\n" for k, v in HEADERS.items()) + "\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.settimeout(10)
        connection.sendall(head.encode() + body[: len(body) // 2])
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 504")
    service.wait_until(lambda e: e.in_progress == 0)
    assert service.engine.pool.in_use == 0


def test_work_beyond_the_queue_is_refused_with_the_time_to_come_back():
    body, expected = request_for(6)
    with running(queue_bytes=3 * 64 * 10 * 4) as service:
        os.kill(service.engine.workers[0].pid, signal.SIGSTOP)
        try:
            first = threading.Thread(
                target=httpx.post,
                args=(f"{service.url}/v1/evaluate",),
                kwargs={"content": body, "headers": HEADERS},
            )
            first.start()
            service.wait_until(lambda e: e.in_progress == 1)
            response = httpx.post(f"{service.url}/v1/evaluate", content=body, headers=HEADERS)
        finally:
            os.kill(service.engine.workers[0].pid, signal.SIGCONT)
        first.join(timeout=20)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert "queue_bytes" in response.json()["detail"]
        again = httpx.post(f"{service.url}/v1/evaluate", content=body, headers=HEADERS)
        assert again.json()["loss"] == pytest.approx(expected, rel=1e-5)


def test_stopping_finishes_what_was_accepted():
    answers: list[int] = []
    body, _ = request_for(8)

    def post() -> None:
        answers.append(httpx.post(f"{service.url}/v1/evaluate", content=body, headers=HEADERS, timeout=30).status_code)

    with running() as service:
        pid = service.engine.workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        clients = [threading.Thread(target=post) for _ in range(6)]
        for client in clients:
            client.start()
        service.wait_until(lambda e: e.in_progress == 6)
        threading.Timer(0.5, os.kill, (pid, signal.SIGCONT)).start()  # by then the server is stopping
    for client in clients:
        client.join(timeout=30)
    assert answers == [200] * 6
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


FAULTY = Path(__file__).with_name("faulty_worker.py")


class Faults:
    """Workers that fail where they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
        self.monkeypatch = monkeypatch
        self.place = place

    def inject(self, faults: dict[int, str]) -> None:
        """What happens to a batch whose first request has so many rows."""
        self.monkeypatch.setattr(worker_process, "COMMAND", (sys.executable, str(FAULTY)))
        self.monkeypatch.setenv("LOSSD_TEST_FAULTS", json.dumps(faults))
        self.monkeypatch.setenv("LOSSD_TEST_PLACE", str(self.place))

    def evaluated(self) -> list[list[int]]:
        """The rows of each batch that was begun, by whichever worker."""
        path = self.place / "evaluated"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Faults:
    return Faults(monkeypatch, tmp_path)


def post(service: Running, rows: int, seed: int = 1, timeout_ms: int | None = None) -> httpx.Response:
    """Ask, and check an answer there is against what is computed here."""
    body, expected = request_for(seed, rows)
    headers = HEADERS if timeout_ms is None else {**HEADERS, "X-Request-Timeout-Ms": str(timeout_ms)}
    response = httpx.post(f"{service.url}/v1/evaluate", content=body, headers=headers, timeout=60)
    if response.status_code == 200:
        assert response.json()["loss"] == pytest.approx(expected, rel=1e-5)
    return response


def all_at_once(service: Running, rows: list[int]) -> list[httpx.Response]:
    """Ask for them so that they come into one batch, in this order: the worker is stopped until all are there."""
    pid = service.engine.workers[0].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(len(rows) + 1) as threads:
            answers = []
            for seed, n in enumerate([7, *rows]):
                answers.append(threads.submit(post, service, n, seed))
                service.wait_until(lambda e: e.in_progress == len(answers))
            os.kill(pid, signal.SIGCONT)
            return [answer.result() for answer in answers][1:]
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def assert_nothing_is_held(service: Running) -> None:
    service.wait_until(lambda e: e.in_progress == 0)
    engine = service.engine
    assert (engine.pool.in_use, engine.budget.held_bytes, len(engine.batcher)) == (0, 0, 0)


def test_a_worker_that_hangs_is_replaced_and_its_work_done_by_the_next(faults):
    faults.inject({63: "once hang"})
    with running(worker_timeout_ms=600) as service:
        hung = service.engine.workers[0].pid
        assert post(service, 63).status_code == 200
        assert service.engine.stats.restarts == 1
        assert service.engine.workers[0].pid != hung
        assert faults.evaluated() == [[63], [63]]
        assert_nothing_is_held(service)


def test_a_worker_that_is_stopped_before_it_reads_its_work_is_replaced():
    with running(worker_timeout_ms=600) as service:
        os.kill(service.engine.workers[0].pid, signal.SIGSTOP)
        assert post(service, 64).status_code == 200
        assert service.engine.stats.restarts == 1


def test_a_slow_worker_is_not_killed(faults):
    faults.inject({63: "plod"})
    with running(worker_timeout_ms=600) as service:
        begin = time.monotonic()
        assert post(service, 63).status_code == 200
        assert time.monotonic() - begin > 2.5
        assert service.engine.stats.restarts == 0


def test_an_unwanted_evaluation_ends_after_the_timeout(faults):
    faults.inject({63: "plod on"})
    with running(worker_timeout_ms=600) as service:
        assert post(service, 63, timeout_ms=300).status_code == 504
        assert post(service, 64).status_code == 200
        assert service.engine.stats.restarts == 0, "what consists of many operations ends between two of them"
        assert faults.evaluated() == [[63], [64]]
        assert_nothing_is_held(service)


@pytest.mark.parametrize("fault", ["hang", "plod on"])
def test_an_unwanted_evaluation_ends_within_seconds_if_another_client_waits(faults, fault):
    """By itself where it consists of many operations, else with its worker; whoever waits is answered by the next."""
    faults.inject({63: fault})
    with running() as service:
        assert service.settings.worker_timeout_ms >= 60_000, "the time for one that is waited for is long"
        assert post(service, 63, timeout_ms=300).status_code == 504
        with ThreadPoolExecutor(2) as threads:
            waiting = [threads.submit(post, service, rows, timeout_ms=30_000) for rows in (64, 65)]
            assert [answer.result().status_code for answer in waiting] == [200, 200]
        assert service.engine.stats.restarts == (fault == "hang")
        assert faults.evaluated().count([63]) == 1
        assert_nothing_is_held(service)


def test_a_batch_is_finished_while_one_of_its_clients_waits(faults):
    """One of two in a batch gives up, and somebody else waits behind them."""
    faults.inject({63: "plod"})
    with running() as service:
        pid = service.engine.workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(4) as threads:
            first = threads.submit(post, service, 7)
            service.wait_until(lambda e: e.in_progress == 1)
            hasty = threads.submit(post, service, 63, 2, 2000)  # the evaluation takes 2.5 s
            service.wait_until(lambda e: e.in_progress == 2)
            patient = threads.submit(post, service, 62, 3)
            service.wait_until(lambda e: e.in_progress == 3)
            os.kill(pid, signal.SIGCONT)
            service.wait_until(lambda e: len(faults.evaluated()) == 2)
            behind = threads.submit(post, service, 64)
            assert [answer.result().status_code for answer in (first, hasty, patient, behind)] == [200, 504, 200, 200]
        assert service.engine.stats.restarts == 0
        assert faults.evaluated() == [[7], [63, 62], [64]]
        assert_nothing_is_held(service)


def test_a_worker_that_ends_slowly_stops_nobody_else(monkeypatch):
    """The kernel may take seconds to end a process, such as one with much memory on a GPU."""
    may_end, reaping = threading.Event(), threading.Event()
    reap = WorkerProcess.reap

    def reap_slowly(process: WorkerProcess, *, patience_s: float = 0.0) -> int:
        reaping.set()
        assert may_end.wait(20), "nothing else was served meanwhile"
        return reap(process, patience_s=patience_s)

    monkeypatch.setattr(WorkerProcess, "reap", reap_slowly)
    with running() as service:
        os.kill(service.engine.workers[0].pid, signal.SIGKILL)
        assert reaping.wait(10)
        assert httpx.get(f"{service.url}/health/live", timeout=10).status_code == 200
        assert httpx.get(f"{service.url}/health/ready", timeout=10).status_code == 503
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(post, service, 64)
            service.wait_until(lambda e: e.in_progress == 1)
            assert service.engine.stats.restarts == 0, "the next worker needs the memory of this one"
            may_end.set()
            assert waiting.result().status_code == 200
        assert service.engine.stats.restarts == 1


def test_a_service_that_stops_while_a_worker_ends_starts_no_other(monkeypatch):
    may_end = threading.Event()
    reap, starts = WorkerProcess.reap, []
    start = WorkerProcess.start
    monkeypatch.setattr(WorkerProcess, "start", lambda process: starts.append(1) or start(process))
    monkeypatch.setattr(
        WorkerProcess, "reap", lambda process, *, patience_s: may_end.wait(10) and reap(process, patience_s=patience_s)
    )
    with running() as service:
        pid = service.engine.workers[0].pid
        os.kill(pid, signal.SIGKILL)
        service.wait_until(lambda e: not e.ready)
        threading.Timer(0.3, may_end.set).start()  # by then the service is stopping
    assert starts == [1]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_broken_device_ends_its_worker_and_the_next_answers(faults):
    faults.inject({63: "once break"})
    with running() as service:
        assert post(service, 63).status_code == 200
        assert service.engine.stats.restarts == 1
        assert_nothing_is_held(service)


def test_a_request_that_breaks_every_device_is_given_up(faults):
    faults.inject({63: "break"})
    with running() as service:
        answers = all_at_once(service, [63, 62])
        assert [r.status_code for r in answers] == [500, 200]
        assert "workers died" in answers[0].json()["detail"]
        assert_nothing_is_held(service)


def test_a_batch_that_exhausts_memory_is_evaluated_in_parts(faults):
    faults.inject({20: "out of memory"})
    with running() as service:
        assert {r.status_code for r in all_at_once(service, [20] * 6)} == {200}
        assert faults.evaluated() == [[7], [20] * 6, [20] * 3, [20] * 3]
        assert service.engine.stats.restarts == 0


def test_a_request_that_exhausts_memory_is_refused_and_its_neighbours_are_answered(faults):
    faults.inject({20: "out of memory", 65: "out of memory"})
    with running() as service:
        answers = all_at_once(service, [20, 65])
        assert [r.status_code for r in answers] == [200, 413]
        problem = answers[1].json()
        assert problem["type"] == "/problems/too-large"
        inputs_and_gradient = 65 * (2 * 10 * 4 + 8)
        assert f"focal on this request's {inputs_and_gradient} bytes" in problem["detail"]
        assert "more memory than cpu has" in problem["detail"]
        assert "20.00 MiB" in problem["detail"]
        assert_nothing_is_held(service)


def test_a_request_is_not_blamed_for_deaths_that_its_neighbour_caused(faults):
    """Two batches are under way, and the worker dies of the first as often as it may."""
    faults.inject({63: "crash"})
    with running() as service:
        worker = service.engine.workers[0]
        worker.depth, pid = 2, worker.pid
        os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(2) as threads:
            bad = threads.submit(post, service, 63)
            service.wait_until(lambda e: len(worker.batches) == 1)  # the next request can no longer join this batch
            good = threads.submit(post, service, 64)
            service.wait_until(lambda e: len(worker.batches) == 2)
            os.kill(pid, signal.SIGCONT)
            assert bad.result().status_code == 500
            assert good.result().status_code == 200
        assert faults.evaluated() == [[63], [63], [63], [64]]
        service.wait_until(lambda e: e.stats.restarts == 3)  # the last worker may still be ending
        assert_nothing_is_held(service)


@pytest.mark.timed
def test_a_deadline_that_passes_while_the_work_is_queued_again_is_kept(faults, monkeypatch):
    faults.inject({63: "crash"})
    monkeypatch.setattr(Backoff, "delay_s", lambda self: 1.5)
    with running() as service:
        begin = time.monotonic()
        response = post(service, 63, timeout_ms=500)
        assert response.status_code == 504
        assert 0.45 < time.monotonic() - begin < 1.4
        service.wait_until(lambda e: e.ready)
        assert post(service, 64).status_code == 200
        assert faults.evaluated() == [[63], [64]], "what was queued again must be dropped when its deadline has passed"
        assert_nothing_is_held(service)


def test_a_client_that_leaves_while_its_work_is_queued_again_frees_what_it_held(faults, monkeypatch):
    faults.inject({63: "crash"})
    monkeypatch.setattr(Backoff, "delay_s", lambda self: 1.5)
    with running() as service:
        body, _ = request_for(1, 63)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{service.url}/v1/evaluate", content=body, headers=HEADERS, timeout=0.5)
        service.wait_until(lambda e: e.ready)
        assert_nothing_is_held(service)
        assert faults.evaluated() == [[63]]
