"""What an engine counts, and the state of its workers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from lossd.compiled.passes import CompileProgress
from lossd.engine.batcher import Batch

__all__ = ["BATCH_BYTES", "BATCH_SIZES", "Load", "Stats", "Vitals"]

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
BATCH_BYTES = tuple(1 << bits for bits in range(10, 32, 2))


class Vitals(NamedTuple):
    """The state of one worker.

    Attributes:
        device: Its device.
        pid: Its process id; None if it has no process of its own.
        device_memory: Bytes of the device's memory: held by the worker, free, and in all; None if they are unknown.
        compiled: The progress of its compiled passes.
    """

    device: str
    pid: int | None
    device_memory: tuple[int, int, int] | None
    compiled: CompileProgress


class Load(NamedTuple):
    """How busy a front and its workers are; to decide whether more are needed.

    Attributes:
        front_busy_s: CPU seconds of the front's event loop since the engine started, without polling for answers.
        worker_busy_s: Seconds that each worker of this engine was busy, by its index. The values continue when a worker
            is restarted. The engine of one of several fronts has none: the parent has the workers.
        backlog_s: About how many seconds the workers take for the requests that wait for an answer; 0 without any.
    """

    front_busy_s: float
    worker_busy_s: Mapping[int, float]
    backlog_s: float


@dataclass(slots=True)
class Stats:
    """The counters of an engine.

    Attributes:
        restarts: The number of workers started in place of dead ones.
        batches: The number of evaluated batches.
        batch_sizes: The number of batches with up to 1, 2, 4 … 512 requests.
        batch_requests: The number of requests in these batches.
        batch_bytes: The bytes of these batches.
        batch_weights: The number of batches of up to 1 KiB, 4 KiB … 1 GiB, and of more.
        executions: The number of batches by model, see :func:`lossd.job.model_name`.
    """

    restarts: int = 0
    batches: int = 0
    batch_sizes: list[int] = field(default_factory=lambda: [0] * len(BATCH_SIZES))
    batch_requests: int = 0
    batch_bytes: int = 0
    batch_weights: list[int] = field(default_factory=lambda: [0] * (len(BATCH_BYTES) + 1))
    executions: dict[str, int] = field(default_factory=dict)

    def count(self, batch: Batch) -> None:
        """Count an evaluated batch."""
        size = len(batch.tickets)
        self.batches += 1
        self.batch_requests += size
        nbytes = batch.nbytes
        self.batch_bytes += nbytes
        self.batch_weights[bisect_left(BATCH_BYTES, nbytes)] += 1
        self.batch_sizes[min((size - 1).bit_length(), len(BATCH_SIZES) - 1)] += 1
        model = batch.recipe.model
        self.executions[model] = self.executions.get(model, 0) + 1
