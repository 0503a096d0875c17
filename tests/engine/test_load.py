"""How busy fronts and workers are, and how long the work that waits takes: bounds by clocks and by what answers say."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from lossd.engine import Engine, busy_time, polling
from lossd.engine.backlog import Backlog
from lossd.engine.batcher import REQUEST_NS, Batch, Ticket
from lossd.engine.busy_time import BusyTime
from lossd.engine.polling import Polling
from lossd.job import Job
from lossd.request.planning import make_plan
from serving import Running, running

MSE = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0, 2.0], "target": [3.0, 1.0]}}
ROWS = 800


def pairs(rows: int) -> dict[str, object]:
    """A small body that takes a worker milliseconds: it compares every pair of rows."""
    embeddings = [[float(row % 7), float(row % 11), 1.0] for row in range(rows)]
    return {
        "loss": {"name": "supcon"},
        "inputs": {"embedding": embeddings, "label": [row % 5 for row in range(rows)]},
        "outputs": ["loss"],
    }


def computed_s(answer: httpx.Response) -> float:
    """The time that the worker took, as an answer says."""
    assert answer.is_success, answer.text
    return sum(float(ms) for ms in re.findall(r"(?:copy|compute);dur=([\d.]+)", answer.headers["server-timing"])) / 1e3


@pytest.fixture(scope="module", params=["process", "inline"])
def service(request: pytest.FixtureRequest) -> Iterator[Running]:
    with running(mortal=True, engine=request.param, compiled=False) as service:
        httpx.post(f"{service.url}/v1/evaluate", json=pairs(8), timeout=60)
        yield service


def worker_busy_s(service: Running) -> float:
    ((index, seconds),) = service.engine.load.worker_busy_s.items()
    assert index == 0
    return seconds


def is_at_rest(engine: Engine) -> bool:
    before = engine.load.worker_busy_s
    time.sleep(0.05)
    return engine.load.worker_busy_s == before


def test_a_worker_is_busy_while_it_evaluates_and_not_between(service: Running) -> None:
    before, began = worker_busy_s(service), time.monotonic()
    with httpx.Client(base_url=service.url, timeout=60) as http:
        evaluated_s = 0.0
        for _ in range(20):
            evaluated_s += computed_s(http.post("/v1/evaluate", json=pairs(200)))
            time.sleep(0.02)
    service.wait_until(lambda engine: engine.in_progress == 0)
    busy_s, wall_s = worker_busy_s(service) - before, time.monotonic() - began
    assert evaluated_s - 0.0002 <= busy_s <= wall_s - 20 * 0.02  # an answer rounds its times


@pytest.mark.timed
def test_a_worker_that_always_has_work_is_busy_all_the_time(service: Running) -> None:
    body = pairs(ROWS)
    with ThreadPoolExecutor(3) as pool, httpx.Client(base_url=service.url, timeout=60) as http:
        evaluate = [pool.submit(lambda: computed_s(http.post("/v1/evaluate", json=body))) for _ in range(12)]
        service.wait_until(lambda engine: engine.in_progress == 3)
        before, began = worker_busy_s(service), time.monotonic()
        service.wait_until(lambda engine: sum(one.done() for one in evaluate) >= 8)
        busy_s, wall_s = worker_busy_s(service) - before, time.monotonic() - began
        for one in evaluate:
            one.result()
    assert 0.5 * wall_s <= busy_s <= wall_s  # a client may need its time to send the next


def test_a_long_evaluation_counts_before_it_ends(service: Running) -> None:
    before = worker_busy_s(service)
    with ThreadPoolExecutor(1) as pool:
        evaluation = pool.submit(lambda: httpx.post(f"{service.url}/v1/evaluate", json=pairs(2000), timeout=60))
        service.wait_until(
            lambda engine: next(iter(engine.load.worker_busy_s.values())) > before + 0.01 or evaluation.done()
        )
        assert not evaluation.done()
        seen = [worker_busy_s(service) for _ in range(100)]
        assert seen == sorted(seen)
        assert evaluation.result().is_success


def test_the_backlog_is_nothing_at_rest_and_grows_with_the_work_that_waits(service: Running) -> None:
    assert service.engine.load.backlog_s == 0.0
    held = threading.Event()
    if service.settings.engine == "process":
        pid = service.engine.workers[0].pid  # type: ignore[attr-defined]
        os.kill(pid, signal.SIGSTOP)
    else:
        service.engine._executor.submit(held.wait)  # type: ignore[attr-defined]
    backlogs = []
    try:
        with ThreadPoolExecutor(8) as pool:
            try:
                for count in range(1, 4):
                    pool.submit(httpx.post, f"{service.url}/v1/evaluate", json=MSE, timeout=60)
                    service.wait_until(lambda engine, count=count: engine.in_progress == count)
                backlogs.append(service.engine.load.backlog_s)
                for count in range(4, 7):
                    pool.submit(httpx.post, f"{service.url}/v1/evaluate", json=pairs(ROWS), timeout=60)
                    service.wait_until(lambda engine, count=count: engine.in_progress == count)
                    backlogs.append(service.engine.load.backlog_s)
            finally:
                held.set()
                if service.settings.engine == "process":
                    os.kill(pid, signal.SIGCONT)
    finally:
        service.wait_until(lambda engine: engine.in_progress == 0)
    small_s, *large_s = backlogs
    steps = [after - before for before, after in zip(backlogs, large_s, strict=False)]
    assert 0 < 30 * small_s < large_s[0]
    assert steps == [pytest.approx(steps[0])] * 3, "equal requests add equal parts"
    assert service.engine.load.backlog_s == 0.0


def test_short_batches_beside_a_long_one_take_no_further_time_of_the_worker() -> None:
    with running(compiled=False) as service:
        worker = service.engine.workers[0]  # type: ignore[attr-defined]
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=service.url, timeout=60) as http:
            before, began = worker_busy_s(service), time.monotonic()
            long = pool.submit(httpx.post, f"{service.url}/v1/evaluate", json=pairs(2200), timeout=60)
            service.wait_until(lambda engine: (worker.lane is not None and worker.lane.ready) or long.done())
            beside = 0
            while not long.done():
                computed_s(http.post("/v1/evaluate", json=pairs(300)))
                beside += not long.done()
            assert computed_s(long.result()) > 0
        service.wait_until(is_at_rest)
        assert worker_busy_s(service) - before <= time.monotonic() - began
        assert beside, "none was answered beside the long one"


def test_a_restarted_worker_continues_its_counter() -> None:
    with running(mortal=True, compiled=False) as service:
        httpx.post(f"{service.url}/v1/evaluate", json=pairs(400), timeout=60)
        with ThreadPoolExecutor(1) as pool:
            before = worker_busy_s(service)
            evaluation = pool.submit(httpx.post, f"{service.url}/v1/evaluate", json=pairs(2000), timeout=60)
            service.wait_until(lambda engine: engine.load.worker_busy_s[0] > before)
            seen = [worker_busy_s(service)]
            os.kill(service.engine.workers[0].pid, signal.SIGKILL)  # type: ignore[attr-defined]
            while not evaluation.done():
                seen.append(worker_busy_s(service))
                time.sleep(0.002)
            assert evaluation.result().is_success
        assert service.engine.stats.restarts == 1
        assert before < seen[0]
        assert seen == sorted(seen)
        service.wait_until(is_at_rest)  # the dead one is not busy for ever


def test_a_front_is_busy_with_requests_and_not_with_polling() -> None:
    clock = [0.0]

    async def ask(looking: Polling) -> None:
        for _ in range(3):
            looking.sent(alone=True)
            for _ in range(5):
                await asyncio.sleep(0)  # a turn
            clock[0] += 1.0  # reads the answer
            looking.answered()
            clock[0] += 1.0  # writes it
            await asyncio.sleep(0)

    def turn() -> None:
        clock[0] += 0.001

    looking = Polling(10.0, lambda: 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polling.time, "thread_time", lambda: clock[0])
        patch.setattr(polling.os, "sched_yield", turn)
        asyncio.run(ask(looking))
    assert clock[0] - looking.cpu_s == pytest.approx(6.0, abs=3 * 0.002)


def test_requests_that_arrive_while_a_front_polls_count() -> None:
    clock, in_progress = [0.0], [1]

    async def ask(looking: Polling) -> None:
        looking.sent(alone=True)
        for _ in range(4):
            await asyncio.sleep(0)
        clock[0] += 1.0  # reads another request
        in_progress[0] = 2
        for _ in range(4):
            await asyncio.sleep(0)
        looking.answered()
        await asyncio.sleep(0)

    def turn() -> None:
        clock[0] += 0.001

    looking = Polling(10.0, lambda: in_progress[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polling.time, "thread_time", lambda: clock[0])
        patch.setattr(polling.os, "sched_yield", turn)
        asyncio.run(ask(looking))
    assert clock[0] - looking.cpu_s == pytest.approx(1.0, abs=0.003)


def test_the_front_counts_its_event_loop_alone(service: Running) -> None:
    before_s, process_s = service.engine.load.front_busy_s, time.process_time()
    with httpx.Client(base_url=service.url, timeout=60) as http:
        for _ in range(50):
            computed_s(http.post("/v1/evaluate", json=MSE))
    busy_s = service.engine.load.front_busy_s - before_s
    assert 50 * 20e-6 < busy_s < time.process_time() - process_s  # the client is in this process too


def test_busy_time_continues_where_another_process_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5_000_000_000]
    monkeypatch.setattr(busy_time.time, "monotonic_ns", lambda: now[0])
    fd = os.memfd_create("busy")
    os.ftruncate(fd, 4096)
    try:
        keeper, worker, next_worker = BusyTime(fd), BusyTime(fd), BusyTime(fd)
    finally:
        os.close(fd)
    worker.begin()
    now[0] += 1_000_000_000
    assert keeper.seconds == 1.0
    worker.begin()
    worker.end()
    worker.end()
    now[0] += 1_000_000_000
    assert keeper.seconds == 1.0
    worker.begin()
    now[0] += 500_000_000
    keeper.end()  # it died
    now[0] += 1_000_000_000
    next_worker.begin()
    now[0] += 250_000_000
    assert keeper.seconds == 1.75


def test_the_backlog_corrects_estimates_by_the_times_of_batches() -> None:
    loop = asyncio.new_event_loop()
    shapes = dict.fromkeys(("prediction", "target"), ("float32", (1000, 3)))
    job = Job(make_plan({"loss": {"name": "mse"}}).job(shapes).recipe, 1000)

    def ticket() -> Ticket:
        return Ticket(job, loop.create_future(), 0.0, None)  # type: ignore[arg-type]

    try:
        estimate_s = (job.work_ns + REQUEST_NS) / 1e9
        backlog, three = Backlog(), [ticket() for _ in range(3)]
        assert backlog.seconds([], 1) == 0.0
        assert backlog.seconds(three, 1) == pytest.approx(3 * estimate_s)
        batch = Batch(job.recipe, None, None, [ticket(), ticket()], 2000, 2 * job.work_ns)  # type: ignore[arg-type]
        for _ in range(60):
            backlog.observe(batch, 0.5)
        assert backlog.seconds(three, 1) == pytest.approx(0.75, rel=1e-3)
        assert backlog.seconds(three, 2) == pytest.approx(0.375, rel=1e-3)
        three[0].future.cancel()
        assert backlog.seconds(three, 1) == pytest.approx(0.5, rel=1e-3)
    finally:
        loop.close()
