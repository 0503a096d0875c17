"""Two services and a client with both addresses: what it sees when one goes, under load. Every answer is compared."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chaos.service import Service, processes, served
from deployment import network
from lossd_client import AsyncLossClient, Evaluation, LossClient

SOON_S = 30.0
"""The longest that a call may take; it may take 60 s."""
STALL_S = 2.0
PAUSE_S, LONG_PAUSE_S = 0.01, 0.15
"""Between two requests of a thread: all are busy when a service goes, and some ask thereafter."""
PLAIN = {"runs": "off", "engine": "inline"}
SMALL, LARGE = (64, 10), (1, 21, 288, 288)
"""The large one has 7 MB: more than the sockets of both sides hold."""
KEYS = [(SMALL, 0), (SMALL, 1), (SMALL, 2), (SMALL, 3), (LARGE, 0), (LARGE, 1)]
"""The questions that are asked at a time: of this shape, with this seed."""
GAMMA = 2.0


@dataclass(frozen=True)
class Question:
    """A request for the mean focal loss, and its right answer in float64."""

    prediction: np.ndarray[Any, Any]
    target: np.ndarray[Any, Any]
    loss: float
    gradient: np.ndarray[Any, Any]

    def is_answered_by(self, answer: Evaluation) -> bool:
        assert answer.loss is not None
        close = np.abs(answer.gradient - self.gradient).max() <= 1e-5 * self.scale
        return bool(close) and abs(answer.loss - self.loss) <= 1e-5 * self.loss

    @cached_property
    def scale(self) -> np.float32:
        """The largest entry of the gradient."""
        largest: np.float32 = np.abs(self.gradient).max()
        return largest


@cache
def question(shape: tuple[int, ...], seed: int) -> Question:
    """The mean of -(1 - p)^γ log p over all positions, and its derivative by each score."""
    random = np.random.default_rng(seed)
    prediction = random.standard_normal(shape, dtype=np.float32)
    target = random.integers(0, shape[1], (shape[0], *shape[2:]))
    powers = np.exp(prediction.astype(np.float64))
    every = powers / powers.sum(1, keepdims=True)
    at = np.expand_dims(target, 1)
    p = np.take_along_axis(every, at, 1)
    by_p = GAMMA * (1 - p) ** (GAMMA - 1) * np.log(p) - (1 - p) ** GAMMA / p
    gradient = -by_p * p * every  # of p by a score: p (1 - p) for its own class, -p q for a class of probability q
    np.put_along_axis(gradient, at, by_p * p * (1 - p), 1)
    loss = float((-((1 - p) ** GAMMA) * np.log(p)).mean())
    return Question(prediction, target, loss, (gradient / target.size).astype(np.float32))


@dataclass
class Load:
    """What became of the requests: how many were answered rightly, by shape; what else happened; the longest time."""

    right: Counter[tuple[int, ...]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    pause_s: float = PAUSE_S
    stopped: bool = False

    def ask(self, client: LossClient, shape: tuple[int, ...], seed: int) -> None:
        """Ask until the load is stopped."""
        case = question(shape, seed)
        while not self.stopped:
            begin = time.monotonic()
            try:
                if not case.is_answered_by(client.evaluate("focal", case.prediction, case.target, gamma=GAMMA)):
                    self.faults.append("a wrong answer")
            except Exception as error:
                self.faults.append(f"{error!r} after {time.monotonic() - begin:.1f} s")
            self.right[shape] += 1
            self.longest_s = max(self.longest_s, time.monotonic() - begin)
            time.sleep(self.pause_s)

    def wait_for(self, small: int, large: int) -> None:
        """Wait until so many more requests have ended."""
        goal = {SMALL: self.right[SMALL] + small, LARGE: self.right[LARGE] + large}
        end = time.monotonic() + 60
        while any(self.right[shape] < count for shape, count in goal.items()):
            assert time.monotonic() < end, self
            time.sleep(0.02)


@contextmanager
def two_services() -> Iterator[tuple[Service, Service]]:
    with served(**PLAIN) as first, served(**PLAIN) as second:
        yield first, second


@contextmanager
def under_load(first: Service, second: Service) -> Iterator[Load]:
    """Four small and two large requests at a time, until the block ends; no answer is missing, wrong or late."""
    load = Load()
    for key in KEYS:
        question(*key)
    with LossClient([first.url, second.url], stall_s=STALL_S) as client:
        threads = [threading.Thread(target=load.ask, args=(client, *key), daemon=True) for key in KEYS]
        for thread in threads:
            thread.start()
        try:
            load.wait_for(10, 2)
            yield load
            load.wait_for(10, 3)
        finally:
            load.stopped = True
            for thread in threads:
                thread.join()
    assert load.faults == []
    assert load.longest_s < SOON_S


def evaluations(service: Service) -> float:
    """How many requests a service has answered."""
    return sum(value for name, value in service.metrics().items() if name.startswith("lossd_requests_total"))


def kill(service: Service) -> None:
    for process in processes(service.process.pid):
        os.kill(process, signal.SIGKILL)
    service.process.wait()


def test_one_is_killed_and_comes_back() -> None:
    with two_services() as (first, second), ExitStack() as stack, under_load(first, second) as load:
        kill(first)
        load.pause_s = LONG_PAUSE_S
        load.wait_for(10, 2)
        again = stack.enter_context(served(port=first.port, **PLAIN))
        before, end = evaluations(again), time.monotonic() + 20
        while evaluations(again) < before + 10:
            assert time.monotonic() < end, "it gets no requests again"
            time.sleep(0.1)


def test_one_shuts_down() -> None:
    with two_services() as (first, second), under_load(first, second) as load:
        first.process.send_signal(signal.SIGTERM)
        load.pause_s = LONG_PAUSE_S
        load.wait_for(10, 2)
        assert first.process.wait(30) == 0


@pytest.mark.skipif(bool(network.missing()), reason=network.missing())
def test_one_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossd_client.calls.PROBE_S", 1.0)
    machine = network.Machine(2)
    try:
        with ExitStack() as stack:
            second = stack.enter_context(served(**PLAIN))  # starts the process that others are forked from: not there
            with pytest.MonkeyPatch.context() as environment:
                environment.setenv("PYTHONPATH", machine.python_path(tmp_path))
                first = stack.enter_context(served(host=machine.address, **PLAIN))
            with under_load(first, second) as load:
                machine.cut()
                load.pause_s = LONG_PAUSE_S
                time.sleep(2 * STALL_S)
                load.wait_for(10, 2)
    finally:
        machine.close()


def test_the_async_client_sees_one_killed() -> None:
    right: Counter[tuple[tuple[int, ...], int]] = Counter()

    async def ask(client: AsyncLossClient, shape: tuple[int, ...], seed: int, until: asyncio.Event) -> None:
        case = question(shape, seed)
        while not until.is_set():
            assert case.is_answered_by(await client.evaluate("focal", case.prediction, case.target, gamma=GAMMA))
            right[shape, seed] += 1
            await asyncio.sleep(5 * PAUSE_S)

    async def each_is_answered(more: int, asks: list[asyncio.Task[None]]) -> None:
        goal = {key: right[key] + more for key in KEYS}
        while any(right[key] < count for key, count in goal.items()) and not any(task.done() for task in asks):
            await asyncio.sleep(0.02)

    async def main(first: Service, second: Service) -> None:
        until = asyncio.Event()
        async with AsyncLossClient([first.url, second.url]) as client:
            asks = [asyncio.create_task(ask(client, *key, until)) for key in KEYS]
            await each_is_answered(1, asks)
            await asyncio.to_thread(kill, first)
            await each_is_answered(2, asks)
            until.set()
            await asyncio.gather(*asks)

    with two_services() as (first, second):
        asyncio.run(main(first, second))
