"""An engine without a process: batches are evaluated in this one, in a thread beside the event loop.

For embedding lossd in another server, as a replica of a distributed one, and for tests. Same batching, same memory
layout, same answers as the process engine; a crash of torch takes the front with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from lossd.engine import Engine
from lossd.engine.batcher import Batch
from lossd.engine.frames import Reply, decode_answers
from lossd_client.errors import InternalError

if TYPE_CHECKING:
    from lossd.settings import Settings

__all__ = ["InlineEngine"]


class InlineEngine(Engine):
    """An engine whose batches are evaluated here, one at a time."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._running: Batch | None = None
        self._executor: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        """Load torch and begin."""
        import torch

        from lossd import compiled
        from lossd.failures import unusable

        await super().start()
        if (why := unusable(torch.device(self.settings.device))) is not None:
            self.on_failure(why)
        if self.settings.compiled and self.settings.device == "cpu":
            compiled.prepare(self.settings.threads)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="lossd-inline")
        await self.loop.run_in_executor(self._executor, torch.set_num_threads, self.settings.threads)

    async def stop(self) -> None:
        """Finish what was accepted."""
        await super().stop()
        if self._executor is not None:
            self._executor.shutdown()

    @property
    def ready(self) -> bool:
        """Whether it was started and is not draining."""
        return self._executor is not None and not self.draining

    def _dispatch(self) -> None:
        if self._running is None and (batch := self._next_batch()) is not None:
            self._running = batch
            assert self._executor is not None
            future = self.loop.run_in_executor(self._executor, self._evaluate, batch)
            future.add_done_callback(lambda done: self._evaluated(batch, done))

    def _under_way(self) -> Sequence[Batch]:
        return [self._running] if self._running is not None else []

    def _forget(self, slab_id: int) -> None:
        pass  # the pool's own mapping is the only one

    def _evaluate(self, batch: Batch) -> tuple[Reply, float]:
        import torch

        from lossd.engine.worker import answer

        begin = time.perf_counter()
        reply = answer(batch.manifest(), batch.lease.slab.mapping, torch.device(self.settings.device))
        return reply, time.perf_counter() - begin

    def _evaluated(self, batch: Batch, done: asyncio.Future[tuple[Reply, float]]) -> None:
        self._running = None
        self._dispatch()
        if (error := done.exception()) is not None:
            self._fail(batch, InternalError(f"the evaluation failed: {error}"))
            return
        reply, compute_s = done.result()
        self._resolve(batch, decode_answers(reply), reply.copy_ns / 1e9, compute_s)
