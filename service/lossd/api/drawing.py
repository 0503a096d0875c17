"""Draws pictures in processes of their own, one at a time.

Drawing thus does not block the event loop, and its libraries take no memory of this process.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lossd_client.errors import NotEvaluable, QueueFull, Unavailable

__all__ = ["POLICY", "BoundedQueue", "Drawer"]

WAITING = 8
DRAWING_S = 30.0
NOTHING = 3
"""The exit status of a process that has nothing to draw, and says so on its standard error."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The Content-Security-Policy of a picture."""


class BoundedQueue:
    """A mutual exclusion that a limited number may wait for.

    Args:
        limit: How many may wait or work.
        name: What they make, for the error.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._semaphore = asyncio.Semaphore(1)
        self._limit = limit
        self._waiting = 0
        self._name = name

    @asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Wait until no other block runs, then run the block.

        Raises:
            QueueFull: Too many wait.
        """
        if self._waiting >= self._limit:
            raise QueueFull(f"{self._limit} {self._name} are waiting to be made, the most allowed", retry_after_s=2.0)
        self._waiting += 1
        try:
            async with self._semaphore:
                yield
        finally:
            self._waiting -= 1


class Drawer:
    """Draws one picture after the other."""

    def __init__(self) -> None:
        self._queue = BoundedQueue(WAITING, "images")

    async def draw(self, kind: str, document: bytes, form: str, theme: str) -> bytes:
        """Return a picture.

        Args:
            kind: A kind of :mod:`lossd.pictures.plots`.
            document: The JSON of what is drawn.
            form: svg or png.
            theme: auto, light or dark.

        Raises:
            QueueFull: Too many pictures wait.
            NotEvaluable: There is nothing to draw; the detail says why.
            Unavailable: It took too long.
        """
        async with self._queue.wait():
            drawing = asyncio.ensure_future(asyncio.to_thread(_draw, kind, document, form, theme))
            try:
                return await asyncio.shield(drawing)
            finally:
                await asyncio.wait([drawing])  # the next image waits for this process, even if all clients left


def _draw(kind: str, document: bytes, form: str, theme: str) -> bytes:
    command = [sys.executable, "-P", "-m", "lossd.pictures.plots", kind, form, theme]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    try:
        run = subprocess.run(command, input=document, capture_output=True, env=environment, timeout=DRAWING_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the picture was not drawn within {DRAWING_S:g} s", retry_after_s=DRAWING_S) from None
    error = run.stderr.decode(errors="replace")
    if run.returncode == NOTHING:
        raise NotEvaluable(error.strip())
    if run.returncode:
        raise RuntimeError(f"drawing ended with {run.returncode}: {error[-2000:]}")
    return run.stdout
