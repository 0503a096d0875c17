"""Lets pytriton's processes start on Python 3.11.7 and newer: put on their PYTHONPATH.

Triton's Python stub brings an interpreter older than the standard library it finds. That library asks its locks how
often they are held (``_recursion_count``), which the stub's interpreter does not know yet.
"""

from __future__ import annotations

import threading
from multiprocessing import resource_tracker


class CountingLock:
    """A reentrant lock that knows how often its holder has taken it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._count = 0

    def __enter__(self) -> CountingLock:
        self._lock.acquire()
        self._count += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        self._lock.release()

    def _recursion_count(self) -> int:
        return self._count


if not hasattr(threading.RLock(), "_recursion_count"):
    resource_tracker._resource_tracker._lock = CountingLock()  # type: ignore[attr-defined]
