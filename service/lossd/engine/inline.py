"""An engine that evaluates batches in this process, in a thread beside the event loop.

It is for lossd embedded in another server, for replicas of a distributed service, and for tests. Batching, memory
layout and answers are those of the process engine; a crash of torch ends the front too.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from lossd.compiled.passes import Passes
from lossd.engine.batcher import Batch
from lossd.engine.busy_time import BusyTime
from lossd.engine.engine import Engine
from lossd.engine.protocol import Reply, decode_answers
from lossd.engine.statistics import Vitals
from lossd_client.errors import InternalError

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["InlineEngine"]


class InlineEngine(Engine):
    """Evaluates batches in this process, one at a time.

    Args:
        settings: The sizes and limits.
        lazy: Whether to load torch with the first request, not at the start.
    """

    def __init__(self, settings: Settings, *, lazy: bool = False) -> None:
        super().__init__(settings)
        self._lazy = lazy
        self._loading: asyncio.Future[str | None] | None = None
        self._running = False
        self._executor: ThreadPoolExecutor | None = None
        self._loaded = False
        self._passes = Passes(settings.threads)
        self._busy = BusyTime()

    async def start(self) -> None:
        """Begin to load torch in the thread that will evaluate."""
        await super().start()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="lossd-inline")
        if not self._lazy:
            self._begin_loading()

    def _begin_loading(self) -> None:
        assert self._executor is not None
        self._loading = self.loop.run_in_executor(self._executor, _load, self.settings, self._passes)
        self._loading.add_done_callback(self._was_loaded)

    async def stop(self) -> None:
        """Finish the accepted requests."""
        await super().stop()
        if self._executor is not None:
            await asyncio.to_thread(self._executor.shutdown)  # it waits for the evaluation

    @property
    def _has_worker(self) -> bool:
        return self._loaded

    def _was_loaded(self, done: asyncio.Future[str | None]) -> None:
        error = done.exception()
        why = done.result() if error is None else f"torch cannot be loaded: {error}"
        if why is not None:
            self._report_fault(why)
            self.on_failure(why)
            return
        gc.collect()
        gc.freeze()  # the application froze its modules before torch was loaded
        self._loaded = True
        self.worker_ready()

    @property
    def vitals(self) -> Sequence[Vitals]:
        """The state of this process as a worker."""
        return [Vitals(self.settings.device, None, None, self._passes.progress)]

    @property
    def _worker_busy_s(self) -> Mapping[int, float]:
        return {0: self._busy.seconds}

    def dispatch(self) -> None:
        """Evaluate the next batch, unless one is being evaluated."""
        if self._loading is None:
            self._begin_loading()
        if self._loaded and not self._running and (batch := self._next_batch()) is not None:
            self._running = True
            assert self._executor is not None
            future = self.loop.run_in_executor(self._executor, self._evaluate, batch)
            future.add_done_callback(lambda done: self._evaluated(batch, done))

    def _forget(self, slab_id: int) -> None:
        pass  # the pool's own mapping is the only one

    def _evaluate(self, batch: Batch) -> Reply:
        import torch

        from lossd.engine.work import answer_in_memory

        self._busy.begin()
        try:
            texts, compute_ns = answer_in_memory(
                batch.manifest(), batch.lease.slab.mapping, torch.device(self.settings.device), self._passes
            )
        finally:
            self._busy.end()
        return Reply(batch.id, 0, compute_ns, texts)

    def _evaluated(self, batch: Batch, done: asyncio.Future[Reply]) -> None:
        self._running = False
        self.dispatch()
        if (error := done.exception()) is not None:
            self._fail(batch, InternalError(f"the evaluation failed: {error}"))
            return
        reply = done.result()
        self.resolve(batch, decode_answers(reply), reply.copy_ns / 1e9, reply.compute_ns / 1e9)


def _load(settings: Settings, passes: Passes) -> str | None:
    """Load torch and the passes; return why the device cannot be used, if it cannot."""
    import torch

    from lossd.evaluation.device_errors import unusable

    if (why := unusable(torch.device(settings.device))) is not None:
        return why
    if settings.compiled and settings.device == "cpu":
        passes.prepare()
    torch.set_num_threads(settings.threads)
    return None
