"""What happens to accepted requests when workers die, deadlines pass and clients leave."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time

import httpx
import numpy as np
import pytest

from lossd_client import wire
from lossd_client.wire import safetensors
from serving import running


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


HEADERS = {"Content-Type": safetensors.MEDIA_TYPE, "Accept": "application/json"}


def test_a_killed_worker_loses_no_accepted_request():
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
            time.sleep(0.3)
            before = len(outcomes)
            os.kill(service.engine.workers[0].pid, signal.SIGKILL)
            service.wait_until(lambda e: not e.ready)
            ready.append(httpx.get(f"{service.url}/health/ready").status_code == 200)
            service.wait_until(lambda e, n=kill: e.ready and e.stats.restarts == n + 1)
            end = time.monotonic() + 20
            while len(outcomes) < before + 50 and time.monotonic() < end:
                time.sleep(0.01)
        stop.set()
        thread.join(timeout=60)
        assert not thread.is_alive()
        assert ready == [False] * 3
        assert httpx.get(f"{service.url}/health/ready").status_code == 200
        assert "lossd_worker_restarts_total 3.0" in httpx.get(f"{service.url}/metrics").text
        assert refused == []
        assert len(outcomes) > 150
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
            original(batch)
            if any(t.job.rows == 63 for t in batch.tickets):
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


def test_a_passed_deadline_is_answered_and_its_work_dropped():
    with running() as service:
        service.wait_until(lambda e: e.ready)
        os.kill(service.engine.workers[0].pid, signal.SIGSTOP)
        try:
            body, _ = request_for(3)
            headers = {**HEADERS, "X-Request-Timeout-Ms": "150"}
            begin = time.monotonic()
            response = httpx.post(f"{service.url}/v1/evaluate", content=body, headers=headers)
            waited = time.monotonic() - begin
            queued = httpx.post(f"{service.url}/v1/evaluate", content=body, headers=headers)
        finally:
            os.kill(service.engine.workers[0].pid, signal.SIGCONT)
        assert response.status_code == queued.status_code == 504
        assert response.json()["type"] == "/problems/deadline-exceeded"
        assert 0.14 < waited < 1.0
        service.wait_until(lambda e: e.in_progress == 0)
        assert service.engine.stats.batches == 1, "the request that was still queued must not have been evaluated"
        assert service.engine.pool.in_use == 0


@pytest.mark.parametrize(
    "part", [0.0, 0.5, 1.0], ids=["before the tensors", "inside a tensor", "waiting for the answer"]
)
@pytest.mark.parametrize("rows", [64, 40_000], ids=["small", "streamed"])
def test_a_client_that_leaves_frees_what_it_held(part, rows):
    with running() as service:
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
def test_a_body_that_does_not_arrive_in_time_is_given_up(rows):
    with running() as service:
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


def test_before_the_first_worker_is_there_work_is_refused_politely():
    with running(ready=False) as service:
        body, _ = request_for(7)
        response = httpx.post(f"{service.url}/v1/evaluate", content=body, headers=HEADERS)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert httpx.get(f"{service.url}/health/live").status_code == 200
        service.wait_until(lambda e: e.ready)
        assert httpx.post(f"{service.url}/v1/evaluate", content=body, headers=HEADERS).status_code == 200


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
