"""Reads and writes long JSON texts in a thread, so that they do not block the event loop.

Python switches between threads, so that a long text in a thread delays the loop by milliseconds only. One thread
handles all texts, one after the other: more threads would not be faster, and would hold the objects of more texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lossd_client.errors import TooLarge
from lossd_client.wire import json

__all__ = ["INLINE_BYTES", "MAX_REQUEST_BYTES", "in_thread", "small_document"]

INLINE_BYTES = 256 << 10
"""A text up to this length takes about a millisecond, and is handled in the loop."""

MAX_REQUEST_BYTES = 512 << 10
"""The most bytes of a JSON text without tensors."""

MAX_BRACKETS = 4096

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


def small_document(text: bytes | bytearray, what: str) -> Any:
    """Return the document in a JSON text without tensors, whose depth is checked.

    Args:
        text: The text.
        what: Its name in errors.

    Raises:
        TooLarge: It has too many lists and objects.
        MalformedBody: It is not JSON, or nests too deep.
    """
    brackets = text.count(b"[") + text.count(b"{")
    if brackets > MAX_BRACKETS:  # walking them takes longer than parsing
        raise TooLarge(f"{what} has {brackets} lists and objects beside its tensors; at most {MAX_BRACKETS} are read")
    document = json.loads(text, what=what)
    if brackets > json.MAX_DEPTH:  # fewer brackets cannot nest deeper
        json.check_depth(document, what=what)
    return document
