"""Long JSON texts, read and written beside the event loop.

Python's interpreter is taken in turns, so that what takes a thread long keeps the loop waiting for milliseconds only.
One thread does them all, one after the other: more would not be faster, and would hold the objects of more texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["INLINE_BYTES", "beside"]

INLINE_BYTES = 256 << 10
"""Texts up to this length take the loop about a millisecond."""

T = TypeVar("T")

_threads = ThreadPoolExecutor(1, "lossd-texts")


async def beside(nbytes: int, function: Callable[[], T]) -> T:
    """Call a function that reads or writes a text, in the thread where that is long.

    Args:
        nbytes: The text's length, or about that.
        function: What needs no event loop.
    """
    if nbytes <= INLINE_BYTES:
        return function()
    return await asyncio.get_running_loop().run_in_executor(_threads, function)
