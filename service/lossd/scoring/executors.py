"""Where chunks are evaluated: in this process, or in processes of this machine."""

from __future__ import annotations

import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from threading import Thread
from typing import TYPE_CHECKING, Protocol

from lossd.scoring.chunks import Chunk

if TYPE_CHECKING:
    from lossd.scoring.work import ChunkResult

__all__ = ["TRIES", "Executor", "Failed", "Here", "Processes", "died", "failed"]

TRIES = 3
"""How often a chunk is tried whose process dies."""


class Failed(Exception):  # noqa: N818  (as in lossd_client.errors)
    """Chunks cannot be evaluated: there is no cluster, or a chunk ends whatever evaluates it."""


class Executor(Protocol):
    """The interface of the places that evaluate chunks."""

    def map(
        self, function: Callable[[Chunk], ChunkResult], chunks: Sequence[Chunk]
    ) -> Generator[ChunkResult, None, None]:
        """Yield the outcome of each chunk, in any order; what runs is ended when the iterator is closed.

        Raises:
            Failed: A chunk has no outcome.
        """
        ...


class Here:
    """Evaluates chunks in this process, one after the other."""

    def map(
        self, function: Callable[[Chunk], ChunkResult], chunks: Sequence[Chunk]
    ) -> Generator[ChunkResult, None, None]:
        """Yield the outcome of each chunk."""
        for chunk in chunks:
            yield function(chunk)


class Processes:
    """Evaluates chunks in processes of this machine, of which each has a pool of its own.

    So if one dies, it is known which chunk it had. That chunk is tried again in a new process.

    Args:
        count: How many processes.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._context = get_context("forkserver")  # which has imported torch: processes start in milliseconds
        self._context.set_forkserver_preload(["lossd.scoring.work"])

    def map(
        self, function: Callable[[Chunk], ChunkResult], chunks: Sequence[Chunk]
    ) -> Generator[ChunkResult, None, None]:
        """Yield the outcome of each chunk, as they come.

        Raises:
            Failed: A chunk has ended three processes.
        """
        ends, open_while_needed = Pipe(duplex=False)
        pools = [self._pool(ends) for _ in range(min(self._count, len(chunks)))]
        waiting, tries, free = deque(chunks), Counter[str](), [*range(len(pools))]
        running: dict[Future[ChunkResult], tuple[int, Chunk]] = {}
        try:
            while waiting or running:
                while waiting and free:
                    number, chunk = free.pop(), waiting.popleft()
                    try:
                        running[pools[number].submit(function, chunk)] = number, chunk
                    except BrokenProcessPool:  # its process died while it had nothing to do
                        pools[number] = self._pool(ends)
                        free.append(number)
                        waiting.appendleft(chunk)
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    number, chunk = running.pop(future)
                    free.append(number)
                    try:
                        outcome = future.result()
                    except BrokenProcessPool:
                        tries[chunk.id] += 1
                        if tries[chunk.id] == TRIES:
                            raise died(chunk, TRIES) from None
                        pools[number].shutdown(wait=False)
                        pools[number] = self._pool(ends)
                        waiting.appendleft(chunk)
                        continue
                    except Exception as error:
                        raise failed(chunk, error) from error
                    yield outcome
        finally:
            open_while_needed.close()  # which ends the processes, whatever they do
            for pool in pools:
                pool.shutdown(cancel_futures=True)
            ends.close()

    def _pool(self, ends: Connection) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self._context, _begin, (ends,))


def died(chunk: Chunk, tries: int) -> Failed:
    """Return the error of a chunk whose process dies at every try."""
    return Failed(
        f"the process that scored {chunk.text} died {tries} times, by lack of memory or a crash; score these files "
        "alone to see why, or leave them out"
    )


def failed(chunk: Chunk, error: BaseException) -> Failed:
    """Return the error of a chunk whose evaluation failed for another reason than a bad file."""
    return Failed(f"{chunk.text} cannot be scored: {type(error).__name__}: {error}")


def _begin(ends: Connection) -> None:
    """Let a new process leave Ctrl-C to its parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(ends,), daemon=True).start()


def _end_with(ends: Connection) -> None:
    ends.poll(None)  # until the other end is closed
    os._exit(0)
