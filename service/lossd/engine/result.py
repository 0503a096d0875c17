"""The answer to one job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lossd.job import Job

__all__ = ["Result", "Timings"]


class Timings(NamedTuple):
    """The durations of a request's stages, in seconds."""

    queue_s: float
    copy_s: float
    compute_s: float


@dataclass(slots=True)
class Result:
    """A job's answer. Its tensors are in the slab until :meth:`release`, which is called exactly once.

    Attributes:
        job: The job.
        text: The JSON object of the answer, without its tensors.
        tensors: Gradients and an unreduced loss by column name, as views into the slab.
        timings: The durations of its stages.
        batch_requests: How many requests shared the batch.
    """

    job: Job
    text: bytes
    tensors: Mapping[str, memoryview]
    timings: Timings
    batch_requests: int
    _release: Callable[[], None] | None

    def release(self) -> None:
        """Release the slab."""
        release, self._release = (
            self._release,
            None,
        )  # it refers to this result: without a cycle, neither waits for the garbage collector
        assert release is not None
        self.tensors = {}
        release()
