"""Requests expire at their deadlines, and waiting requests cost nothing until then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from lossd.configuration.settings import Settings
from lossd.engine.deadlines import SLACK, Deadlines
from lossd.engine.process import ProcessEngine
from lossd.request.planning import make_plan
from lossd_client.errors import DeadlineExceeded, Unavailable

PLAN = make_plan({"loss": {"name": "mse"}, "outputs": ["loss"]})
JOB = PLAN.job(dict.fromkeys(("prediction", "target"), ("float32", (2, 3))))
DATA = {column.name: memoryview(bytes(column.unit_bytes * JOB.rows)) for column in JOB.recipe.inputs}


class CountingFuture(asyncio.Future[Any]):
    """A future that counts how often any of its kind was asked whether it is done."""

    checks = 0

    def done(self) -> bool:
        CountingFuture.checks += 1
        return super().done()


@dataclass(eq=False)
class Request:
    """A request, as far as deadlines are concerned."""

    deadline: float


def with_engine(story: Callable[[ProcessEngine], Awaitable[None]]) -> None:
    """Run a story with an engine that has no worker and sweeps only when it is told."""

    async def run() -> None:
        engine = ProcessEngine(Settings(device="cpu", queue_requests=20_000))
        engine.loop = asyncio.get_running_loop()
        await story(engine)
        engine.pool.close()

    asyncio.run(run())


def sweep(engine: ProcessEngine) -> None:
    engine._sweep()
    assert engine._sweeper is not None
    engine._sweeper.cancel()


def test_ten_thousand_waiting_requests_are_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(engine: ProcessEngine) -> None:
        monkeypatch.setattr(type(engine.loop), "create_future", lambda loop: CountingFuture(loop=loop), raising=True)
        deadline = time.monotonic() + 600
        futures = [engine.submit(JOB, DATA, deadline) for _ in range(10_000)]
        sweep(engine)
        CountingFuture.checks = 0
        for _ in range(40):
            sweep(engine)
        assert CountingFuture.checks == 0
        assert len(engine.batcher) == 10_000
        for future in futures:
            engine.drop(future)
        sweep(engine)
        assert (engine.in_progress, len(engine.batcher), engine.pool.in_use) == (0, 0, 0)
        monkeypatch.undo()

    with_engine(story)


def test_each_request_is_refused_at_its_own_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(engine: ProcessEngine) -> None:
        now = time.monotonic()

        def sweep_after(seconds: float) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(time, "monotonic", lambda: now + seconds)
                sweep(engine)

        late, early, latest = (engine.submit(JOB, DATA, now + wait) for wait in (200, 50, 6000))
        sweep_after(49)
        assert not early.done()
        sweep_after(51)
        assert isinstance(early.exception(), DeadlineExceeded)
        assert not late.done()
        sweep_after(201)
        assert isinstance(late.exception(), DeadlineExceeded)
        assert not latest.done()
        engine.drop(latest)
        sweep(engine)
        assert (engine.in_progress, engine.pool.in_use) == (0, 0)

    with_engine(story)


def test_a_fault_refuses_every_request_that_waits() -> None:
    async def story(engine: ProcessEngine) -> None:
        futures = [engine.submit(JOB, DATA, time.monotonic() + 60) for _ in range(3)]
        engine._report_fault("no worker can be started")
        sweep(engine)
        assert [type(future.exception()) for future in futures] == [Unavailable] * 3
        assert (engine.in_progress, engine.pool.in_use) == (0, 0)

    with_engine(story)


def test_removed_requests_are_not_kept() -> None:
    deadlines, waiting = Deadlines(), Request(1e9)
    deadlines.add(waiting)  # type: ignore[arg-type]
    for number in range(100_000):
        request = Request(1e6 + number)
        deadlines.add(request)  # type: ignore[arg-type]
        deadlines.remove(request)  # type: ignore[arg-type]
        if number % 500 == 0:
            deadlines.tidy()
    assert list(deadlines) == [waiting]
    assert len(deadlines._heap) <= 2 + SLACK + 500
    assert list(deadlines.take_expired(2e9)) == [waiting]


def test_a_request_expires_once_and_in_order() -> None:
    deadlines = Deadlines()
    requests = [Request(float(number * 7 % 10)) for number in range(10)]
    for request in requests:
        deadlines.add(request)  # type: ignore[arg-type]
    deadlines.remove(requests[3])  # its deadline is 1
    assert [request.deadline for request in deadlines.take_expired(4.0)] == [0.0, 2.0, 3.0, 4.0]
    assert list(deadlines.take_expired(4.0)) == []
    assert len(deadlines) == 9, "an expired request is in progress until it is removed"
