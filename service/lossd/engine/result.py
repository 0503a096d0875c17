"""The answer to one job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lossd.job import Job

__all__ = ["Result", "Timings"]


class Timings(NamedTuple):
    """How long a request's stages took, in seconds."""

    queue_s: float
    copy_s: float
    compute_s: float


@dataclass(slots=True)
class Result:
    """A job's answer. Its tensors lie in the slab: :meth:`release` when they have been sent, exactly once.

    Attributes:
        job: What was asked.
        text: The answer's JSON object, without its tensors.
        tensors: Gradients and an unreduced loss by column name, as views into the slab.
        timings: Stage durations.
        batch_requests: How many requests shared the batch.
    """

    job: Job
    text: bytes
    tensors: Mapping[str, memoryview]
    timings: Timings
    batch_requests: int
    _release: Callable[[], None] | None

    def release(self) -> None:
        """Let go of the slab."""
        release, self._release = self._release, None  # it refers to this result: a circle would be garbage
        assert release is not None
        self.tensors = {}
        release()
