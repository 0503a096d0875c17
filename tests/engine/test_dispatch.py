"""Which batch is sent to which worker, and when. The workers of these tests only record what they are sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from lossd.configuration.settings import Settings
from lossd.engine.batcher import WORTH_REQUESTS, Batch
from lossd.engine.process import ProcessEngine
from lossd.engine.remote_worker import RemoteWorker
from lossd.job import Job
from lossd.request.planning import make_plan


class Noting(RemoteWorker):
    """A worker that keeps what it is sent until somebody lets it finish."""

    def send(self, batch: Batch) -> None:
        self.batches[batch.id] = batch

    def finish(self) -> int:
        """The oldest batch is done: how many requests it had."""
        batch = self.batches.pop(next(iter(self.batches)))
        self.engine.dispatch()
        self.engine.resolve(batch, [b"{}"] * len(batch.tickets), 0.0, 0.0)
        return len(batch.tickets)

    @property
    def sizes(self) -> list[int]:
        return [len(batch.tickets) for batch in self.batches.values()]


def job(width: int = 3) -> Job:
    plan = make_plan({"loss": {"name": "mse"}, "outputs": ["loss", "gradient"]})
    return plan.job(dict.fromkeys(("prediction", "target"), ("float32", (2, width))))


def submit(engine: ProcessEngine, count: int, width: int = 3) -> None:
    one_job = job(width)
    data = {column.name: memoryview(bytes(column.unit_bytes * one_job.rows)) for column in one_job.recipe.inputs}
    for _ in range(count):
        engine.submit(one_job, data, time.monotonic() + 60).add_done_callback(lambda done: done.result().release())


def with_engine(devices: str, story: Callable) -> None:
    async def tell() -> None:
        engine = ProcessEngine(Settings(device="cpu"))
        engine.loop = asyncio.get_running_loop()
        engine.workers = [Noting(engine, device) for device in devices.split(",")]
        for worker in engine.workers:
            worker.ready = True
        await story(engine, *engine.workers)
        assert not engine.in_progress
        engine.pool.close()

    asyncio.run(tell())


def test_requests_that_arrive_together_share_a_batch():
    async def story(engine: ProcessEngine, worker: Noting) -> None:
        submit(engine, WORTH_REQUESTS - 1)
        assert worker.sizes == []
        await asyncio.sleep(0)
        assert worker.sizes == [WORTH_REQUESTS - 1]
        worker.finish()
        await asyncio.sleep(0)

    with_engine("cpu", story)


def test_a_batch_of_enough_requests_is_sent_before_the_rest_is_read():
    async def story(engine: ProcessEngine, worker: Noting) -> None:
        submit(engine, WORTH_REQUESTS)
        assert worker.sizes == [WORTH_REQUESTS]
        worker.finish()
        await asyncio.sleep(0)

    with_engine("cpu", story)


def test_a_busy_worker_gets_one_batch_ahead_and_no_more():
    async def story(engine: ProcessEngine, worker: Noting) -> None:
        submit(engine, WORTH_REQUESTS)
        submit(engine, WORTH_REQUESTS - 1)
        await asyncio.sleep(0)
        assert worker.sizes == [WORTH_REQUESTS], "the second may still grow"
        submit(engine, 1)
        assert worker.sizes == [WORTH_REQUESTS, WORTH_REQUESTS]
        submit(engine, 2 * WORTH_REQUESTS)
        await asyncio.sleep(0)
        assert worker.sizes == [WORTH_REQUESTS, WORTH_REQUESTS], "the third grows until there is room"
        worker.finish()
        assert worker.sizes == [WORTH_REQUESTS, 2 * WORTH_REQUESTS]
        assert [worker.finish(), worker.finish()] == [WORTH_REQUESTS, 2 * WORTH_REQUESTS]
        await asyncio.sleep(0)

    with_engine("cpu", story)


def test_a_free_worker_is_preferred_to_a_busy_one_with_room():
    async def story(engine: ProcessEngine, first: Noting, second: Noting) -> None:
        submit(engine, WORTH_REQUESTS)
        submit(engine, WORTH_REQUESTS, width=4)
        assert (first.sizes, second.sizes) == ([WORTH_REQUESTS], [WORTH_REQUESTS])
        second.ready = False
        submit(engine, WORTH_REQUESTS, width=5)
        assert (first.sizes, second.sizes) == ([WORTH_REQUESTS] * 2, [WORTH_REQUESTS])
        second.ready = True
        assert [first.finish(), first.finish(), second.finish()] == [WORTH_REQUESTS] * 3
        await asyncio.sleep(0)

    with_engine("cpu,cpu", story)


def test_several_devices_share_the_queued_batches():
    async def story(engine: ProcessEngine, first: Noting, second: Noting) -> None:
        for width in (3, 4, 5, 6):
            submit(engine, 1, width=width)
        await asyncio.sleep(0)
        assert (first.sizes, second.sizes) == ([1, 1], [1, 1])
        assert [first.finish(), first.finish(), second.finish(), second.finish()] == [1] * 4
        await asyncio.sleep(0)

    with_engine("cuda:0,cuda:1", story)
