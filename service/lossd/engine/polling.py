"""A front that waits for one answer looks for it before it sleeps: to be woken takes as long as many are computed."""

from __future__ import annotations

import asyncio
import os
import time

__all__ = ["Polling"]


class Polling:
    """Keeps the event loop turning while the one answer that is waited for is due soon, as the last one was.

    The loop goes on reading whatever else comes.

    Args:
        longest_s: What counts as soon; 0 to sleep always.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._sent_s: float | None = None
        self._took_s = 0.0
        self._turning = False

    def sent(self, *, alone: bool) -> None:
        """A batch is on its way.

        Args:
            alone: Whether the answer to its one request is all that is waited for.
        """
        self._sent_s = time.monotonic() if alone else None
        if alone and self._took_s < self._longest_s and not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def answered(self) -> None:
        """An answer has come."""
        if self._sent_s is not None:
            self._took_s = time.monotonic() - self._sent_s
            self._sent_s = None

    def _turn(self) -> None:
        if self._sent_s is not None and time.monotonic() - self._sent_s < self._longest_s:
            os.sched_yield()  # others may have the processor
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._turning = False
