"""Reads and writes long JSON texts in a thread, so that they do not block the event loop.

Python switches between threads, so that a long text in a thread delays the loop by milliseconds only. One thread
handles all texts, one after the other: more threads would not be faster, and would hold the objects of more texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["INLINE_BYTES", "in_thread"]

INLINE_BYTES = 256 << 10
"""A text up to this length takes about a millisecond, and is handled in the loop."""

T = TypeVar("T")

_thread = ThreadPoolExecutor(1, "lossd-texts")


async def in_thread(nbytes: int, function: Callable[[], T]) -> T:
    """Call a function that reads or writes a text; in the thread if the text is long.

    Args:
        nbytes: The text's length, or an estimate.
        function: Must not use the event loop.
    """
    if nbytes <= INLINE_BYTES:
        return function()
    return await asyncio.get_running_loop().run_in_executor(_thread, function)
