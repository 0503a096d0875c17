"""Whatever becomes of a request, the memory it held comes back: slabs, their files, and its part of the budget."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from lossd.configuration.settings import Settings
from lossd.engine import Engine
from lossd.engine.inline import InlineEngine
from lossd.engine.process import ProcessEngine
from lossd.request.planning import make_plan
from lossd_client import wire
from lossd_client.errors import Unavailable
from lossd_client.wire import safetensors
from serving import Running, running


def files() -> int:
    """How many slabs this process has open; each by two descriptors, since a mapping keeps its own."""
    slabs = set()
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if "lossd-slab" in os.readlink(fd):
                slabs.add(fd.stat().st_ino)
    return len(slabs)


OTHERS = [0]  # slabs of services that other modules keep running


@pytest.fixture(autouse=True)
def _every_file_is_closed_in_the_end() -> Iterator[None]:
    OTHERS[0] = files()
    yield
    assert files() == OTHERS[0]


def assert_nothing_is_held(service: Running) -> None:
    leave(service, SMALL, 1.0, 10**7)  # by the time that this is answered, those who left have been noticed

    def nothing(engine: Engine) -> bool:
        kept = sum(map(len, engine.pool._free.values()))
        held = (engine.in_progress, engine.pool.in_use, engine.budget.held_bytes, len(engine.batcher))
        return (*held, files() - OTHERS[0]) == (0, 0, 0, 0, kept)

    service.wait_until(nothing)


def request(rows: int) -> bytes:
    """As HTTP; answered with a gradient as large as the prediction."""
    prediction, target = np.zeros((2, rows, 16), np.float32)
    tensors = {"prediction": wire.Tensor.of(prediction), "target": wire.Tensor.of(target)}
    body = b"".join(bytes(piece) for piece in safetensors.encode(tensors, {"request": '{"loss":{"name":"mse"}}'}))
    head = f"POST /v1/evaluate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return f"{head}Content-Type: {safetensors.MEDIA_TYPE}\r\n\r\n".encode() + body


SMALL, STREAMED = 64, 60_000


def leave(service: Running, rows: int, sent: float, read: int) -> None:
    """Send part of a request, read that much of the answer, and go."""
    data = request(rows)
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection, suppress(ConnectionError):
        if read < len(data):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(data[: int(len(data) * sent)])
        while read > 0 and (chunk := connection.recv(min(read, 1 << 20))):
            read -= len(chunk)


LEAVING = {"in the upload": (0.5, 0), "before the answer": (1.0, 0), "in the answer": (1.0, 2000)}


def test_leaving_clients_leak_nothing():
    """One service for all of them: each begins with nothing held, and its end is the same."""
    with running(compiled=False) as service:
        for rows in (SMALL, STREAMED):
            for when, (sent, read) in LEAVING.items():
                for _ in range(3):
                    leave(service, rows, sent, read)
                try:
                    assert_nothing_is_held(service)
                except AssertionError as error:
                    raise AssertionError(f"{when}, {rows} rows") from error


def test_dying_workers_leak_nothing():
    """Everything at once, for as long as it takes to lose three workers."""
    chance = random.Random(0)
    with running(mortal=True, compiled=False, cache_bytes=16 << 20, idle_timeout_ms=2000) as service:
        end = time.monotonic() + 60

        def one(seed: int) -> None:
            generator = random.Random(seed)
            while time.monotonic() < end:
                rows = generator.choice([1, SMALL, 1000, STREAMED])
                leave(service, rows, *generator.choice([(0.1, 0), (0.9, 0), (1.0, 0), (1.0, 500), (1.0, 10**7)]))

        with ThreadPoolExecutor(6) as threads:
            clients = [threads.submit(one, seed) for seed in range(6)]
            for kill in range(3):
                service.wait_until(lambda e, n=kill: e.ready and e.stats.restarts == n)
                time.sleep(chance.uniform(0.1, 0.6))
                os.kill(service.engine.workers[0].pid, signal.SIGKILL)
            end = time.monotonic()
            for client in clients:
                client.result()
        service.wait_until(lambda e: e.ready)
        assert_nothing_is_held(service)


def test_a_service_that_ends_with_a_stopped_worker_leaks_nothing():
    with ThreadPoolExecutor(3) as threads, running(compiled=False, drain_timeout_ms=200) as service:
        os.kill(service.engine.workers[0].pid, signal.SIGSTOP)
        for _ in range(3):
            threads.submit(leave, service, SMALL, 1.0, 10)
        service.wait_until(lambda e: e.in_progress == 3)
        leave(service, STREAMED, 0.5, 0)
    engine = service.engine
    assert (engine.in_progress, engine.pool.in_use, engine.budget.held_bytes) == (0, 0, 0)


@pytest.mark.parametrize("kind", [ProcessEngine, InlineEngine])
def test_a_stopped_engine_answers_the_waiting_requests(kind: type[Engine]):
    job = make_plan({"loss": {"name": "mse"}}).job(dict.fromkeys(("prediction", "target"), ("float32", (2, 3))))
    tensors = {name: memoryview(bytes(24)) for name in ("prediction", "target")}

    async def stopped() -> Engine:
        engine = kind(Settings(threads=1, compiled=False, drain_timeout_ms=0))
        await engine.start()
        engine.dispatch = lambda: None  # type: ignore[method-assign]  # nothing is ever sent
        engine._check_available = lambda: None  # type: ignore[method-assign]
        waiting = engine.submit(job, tensors, time.monotonic() + 60)
        abandoned = engine.upload(job, time.monotonic() + 60)
        with pytest.raises(ValueError, match="structures"):
            engine.submit(job, {**tensors, "target": memoryview(bytes(23))}, time.monotonic() + 60)
        await engine.stop()
        with pytest.raises(Unavailable):
            await waiting
        abandoned.abandon()
        return engine

    engine = asyncio.run(stopped())
    assert (engine.in_progress, engine.pool.in_use, engine.budget.held_bytes) == (0, 0, 0)
