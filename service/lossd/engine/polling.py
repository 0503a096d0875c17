"""Polls for the one answer that a front waits for, because waking up takes as long as many answers take to compute."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

__all__ = ["Polling"]


class Polling:
    """Keeps the event loop running while one answer is expected soon, because the last one came soon.

    The loop handles all other events meanwhile.

    Args:
        longest_s: The longest time to poll; 0 to never poll.
        in_progress: Returns the number of requests in progress.

    Attributes:
        cpu_s: CPU seconds of the event loop's thread in turns in which nothing happened.
    """

    def __init__(self, longest_s: float, in_progress: Callable[[], int] = lambda: 1) -> None:
        self._longest_s = longest_s
        self._in_progress = in_progress
        self.cpu_s = 0.0
        # The thread's CPU time and the number of requests at the last turn; None if something happened since.
        self._last: tuple[float, int] | None = None
        self._sent_s: float | None = None
        self._took_s = 0.0
        self._turning = False

    def sent(self, *, alone: bool) -> None:
        """Note that a batch was sent.

        Args:
            alone: Whether its one request is the only one in progress.
        """
        self._sent_s = time.monotonic() if alone else None
        self._last = None
        if alone and self._took_s < self._longest_s and not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def answered(self) -> None:
        """Note that an answer has arrived."""
        self._last = None
        if self._sent_s is not None:
            self._took_s = time.monotonic() - self._sent_s
            self._sent_s = None

    def _turn(self) -> None:
        cpu_s, requests = time.thread_time(), self._in_progress()
        if self._last is not None and self._last[1] == requests:
            self.cpu_s += cpu_s - self._last[0]
        self._last = cpu_s, requests
        if self._sent_s is not None and time.monotonic() - self._sent_s < self._longest_s:
            os.sched_yield()  # another process may run
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._turning = False
