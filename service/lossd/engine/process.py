"""The engine with worker processes, one a device. When one dies, its batches are queued again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lossd.engine.batcher import Batch
from lossd.engine.engine import Engine
from lossd.engine.polling import Polling
from lossd.engine.remote_worker import RemoteWorker
from lossd.engine.statistics import Vitals
from lossd.engine.worker_process import MAX_STARTS
from lossd_client.errors import InternalError

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["ProcessEngine"]

MAX_DEATHS = 3


class ProcessEngine(Engine):
    """An engine whose batches are evaluated by worker processes.

    Args:
        settings: The sizes and limits.
        addresses: The sockets of workers that another process keeps, one a device; None to start them here.
    """

    def __init__(self, settings: Settings, addresses: Sequence[str] | None = None) -> None:
        super().__init__(settings)
        devices = settings.device.split(",")
        places: Sequence[str | None] = addresses or [None] * len(devices)
        # Several fronts that poll would take the processor from each other and from the worker.
        self.polling = Polling(settings.poll_us / 1e6 if settings.fronts == 1 else 0.0, lambda: self.in_progress)
        self.workers = [RemoteWorker(self, device, at) for device, at in zip(devices, places, strict=True)]

    async def start(self) -> None:
        """Start the workers. Each is ready some seconds later."""
        await super().start()
        for worker in self.workers:
            worker.connect()

    async def stop(self) -> None:
        """Finish the accepted requests, then end the workers."""
        await super().stop()
        workers = self._links
        await asyncio.gather(*(worker.end() for worker in workers))
        for worker in workers:
            for batch in worker.batches.values():
                for ticket in batch.tickets:
                    self._done_with(ticket)
            worker.batches.clear()

    @property
    def vitals(self) -> Sequence[Vitals]:
        """The state of each worker."""
        return [Vitals(worker.device, worker.pid, worker.memory, worker.compiled) for worker in self.workers]

    @property
    def _has_worker(self) -> bool:
        return any(worker.ready for worker in self.workers)

    @property
    def _worker_busy_s(self) -> Mapping[int, float]:
        seconds = ((index, worker.busy_s) for index, worker in enumerate(self.workers))
        return {index: busy_s for index, busy_s in seconds if busy_s is not None}

    @property
    def _polled_s(self) -> float:
        return self.polling.cpu_s

    def worker_start_failed(self) -> None:
        """Note that a worker ended before it was ready; after too many failures of all, report the fault."""
        if all(worker.failed_starts >= MAX_STARTS for worker in self.workers):
            ends = " and ".join(f"the one on {worker.device} {worker.last_end}" for worker in self.workers)
            self._report_fault(
                f"no worker can be started after {MAX_STARTS} attempts: {ends}; the service's log says why"
            )

    @property
    def _links(self) -> list[RemoteWorker]:
        """The workers and their lanes."""
        return [*self.workers, *(worker.lane for worker in self.workers if worker.lane is not None)]

    def dispatch(self) -> None:
        """Send queued batches to the workers that are free."""
        while self.batcher and (worker := self._next_worker()) is not None:
            if (batch := self._next_batch()) is None:  # all clients of the queued requests left
                break
            worker.send(batch)
            self.polling.sent(alone=self.in_progress == 1)
        for worker in self.workers:
            if (lane := worker.lane) is not None and (worker.engaged or not worker.ready):
                while lane.free and (batch := self._next_batch(short=True)) is not None:
                    lane.send(batch)

    def _next_worker(self) -> RemoteWorker | None:
        """Return the least busy worker, if it is free, or if it has room and the next batch is worth sending."""
        worker = min(self.workers, key=lambda worker: len(worker.batches) if worker.ready else sys.maxsize)
        return worker if worker.free or (worker.has_room and self.batcher.worth_going) else None

    def _forget(self, slab_id: int) -> None:
        for worker in self._links:
            worker.forget(slab_id)

    def recover(self, batches: Sequence[Batch], suspects: Sequence[Batch]) -> None:
        """Queue the batches of a dead worker again. A request that keeps killing workers is isolated, then refused.

        Args:
            batches: The batches that the worker had.
            suspects: Those that may have killed it.
        """
        again: deque[Batch] = deque()
        now = time.monotonic()
        for batch in batches:
            if batch in suspects and batch.tickets:
                self.batcher.charge(batch, now - batch.tickets[0].sent, again=True)
            batch.deaths += batch in suspects
            if batch.deaths <= 1 or batch not in suspects:
                again.append(batch)
            elif len(batch.tickets) > 1:
                again.extend(batch.singles())
            elif batch.deaths < MAX_DEATHS:
                again.append(batch)
            else:
                self._fail(
                    batch, InternalError(f"{batch.deaths} workers died evaluating this request; it was given up")
                )
        self.batcher.requeue(again)
