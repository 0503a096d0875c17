"""Finds requests that have waited long, without a timer for each of thousands that wait briefly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["LongWaits"]

LONG_S = 0.1


class LongWaits:
    """The requests that wait, in two generations. The older one is called back when the next begins.

    A callback comes after ``LONG_S`` at least, and after about twice that at most.
    """

    def __init__(self) -> None:
        self._young: dict[Any, Callable[[], None]] = {}
        self._old: dict[Any, Callable[[], None]] = {}
        self._next_s = 0.0

    def add(self, who: Any, call: Callable[[], None]) -> None:
        """Call back, once, if this key waits long."""
        self._young[who] = call

    def remove(self, who: Any) -> None:
        """Forget a key."""
        if self._young.pop(who, None) is None:
            self._old.pop(who, None)

    def check(self, now: float) -> None:
        """Call back for all keys that have waited long.

        Args:
            now: The monotonic clock.
        """
        if now < self._next_s:
            return
        self._next_s = now + LONG_S
        calls = list(self._old.values())
        self._old, self._young = self._young, {}
        for call in calls:
            call()
