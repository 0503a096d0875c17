"""Keep several calls in flight, and draw the items of the next ones meanwhile."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

__all__ = ["call_each", "call_each_async"]

T = TypeVar("T")
R = TypeVar("R")


def call_each(call: Callable[[T], R], items: Iterable[T], received: Callable[[T, R], None], *, in_flight: int) -> None:
    """Call a function with each item, in threads.

    An item is drawn when there is a place for it, so at most ``in_flight`` items are held.

    Args:
        call: The function, which threads call.
        items: The items, drawn in the caller's thread.
        received: Takes each item and what the call returned, in the caller's thread, as calls end.
        in_flight: The most calls at a time.

    Raises:
        Exception: The first error of a call, of ``items`` or of ``received``, after the calls in flight have ended.
    """
    pending: dict[concurrent.futures.Future[R], T] = {}

    def gather() -> None:
        for done in concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED).done:
            item = pending.pop(done)
            received(item, done.result())

    with concurrent.futures.ThreadPoolExecutor(in_flight) as pool:
        for item in items:
            pending[pool.submit(call, item)] = item
            while len(pending) >= in_flight:
                gather()
        while pending:
            gather()


async def call_each_async(
    call: Callable[[T], Awaitable[R]],
    items: Iterable[T],
    received: Callable[[T, R], None],
    *,
    in_flight: int,
    finish: bool = False,
) -> None:
    """Call a coroutine function with each item, in tasks.

    Args:
        call: The coroutine function.
        items: As for :func:`call_each`.
        received: As for :func:`call_each`.
        in_flight: As for :func:`call_each`.
        finish: Whether calls in flight end before an error is raised; if not, they are cancelled.

    Raises:
        Exception: As for :func:`call_each`.
    """
    pending: dict[asyncio.Future[R], T] = {}

    async def gather() -> None:
        for done in (await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED))[0]:
            item = pending.pop(done)
            received(item, done.result())

    try:
        for item in items:
            pending[asyncio.ensure_future(call(item))] = item
            await asyncio.sleep(0)  # drawing the next item may take long: this task starts first
            while len(pending) >= in_flight:
                await gather()
        while pending:
            await gather()
    except Exception:
        if finish:
            await asyncio.gather(*pending, return_exceptions=True)
        raise
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
