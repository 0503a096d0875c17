"""Who has waited so long that somebody should look: known without a timer for each of thousands that wait a moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["LongWaits"]

LONG_S = 0.1


class LongWaits:
    """Those who wait, in two generations: the older one is called when the next begins.

    Whoever is called has waited for ``LONG_S`` at least, and for twice that at most, a look more or less.
    """

    def __init__(self) -> None:
        self._young: dict[Any, Callable[[], None]] = {}
        self._old: dict[Any, Callable[[], None]] = {}
        self._next_s = 0.0

    def add(self, who: Any, call: Callable[[], None]) -> None:
        """Call this, once, if whoever it is waits long."""
        self._young[who] = call

    def remove(self, who: Any) -> None:
        """It waits no more."""
        if self._young.pop(who, None) is None:
            self._old.pop(who, None)

    def check(self, now: float) -> None:
        """Call those who have waited long.

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
