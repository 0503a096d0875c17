"""The time that a worker has been busy, in shared memory. It continues from one worker process to the next."""

from __future__ import annotations

import mmap
import time

__all__ = ["BusyTime"]


class BusyTime:
    """Nanoseconds that a worker was not waiting for work, measured by the worker and read by the process that keeps it.

    One word holds both the sum and the state, so that it is written and read atomically. If it is not negative, the
    worker waits, and the word is the sum. If it is negative, the worker is busy, and the word is the sum minus the
    monotonic clock's time at which the worker became busy. The sum is always the smaller of the two, because it began
    after the clock.

    Args:
        fd: The anonymous file of the word; -1 for memory of this process and its forks.
    """

    def __init__(self, fd: int = -1) -> None:
        self._word = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("q")

    def begin(self) -> None:
        """Note that there is work, unless that is noted already."""
        if (word := self._word[0]) >= 0:
            self._word[0] = word - time.monotonic_ns()

    def end(self) -> None:
        """Note that there is none, or that the worker has ended."""
        if (word := self._word[0]) < 0:
            self._word[0] = word + time.monotonic_ns()

    @property
    def seconds(self) -> float:
        """The time so far in seconds, the present work included."""
        word = self._word[0]
        return (word if word >= 0 else word + time.monotonic_ns()) / 1e9
