"""Where chunks are evaluated: in this process, or in processes of this machine."""

from __future__ import annotations

import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import TYPE_CHECKING, Protocol, cast

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
    """Evaluates chunks in processes of this machine, of which each has a connection of its own.

    So if one dies, it is known which chunk it had, even if it died while it sent the outcome. That chunk is tried
    again in a new process.

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
        waiting, tries = deque(chunks), Counter[str]()
        free, running, processes = list[Connection](), dict[Connection, Chunk](), list[BaseProcess]()

        def start() -> None:
            ours, theirs = Pipe()
            process = self._context.Process(target=_serve, args=(function, theirs, ends))
            process.start()
            theirs.close()  # only the process has it now: when the process dies, reading from ours ends
            processes.append(process)
            free.append(ours)

        try:
            for _ in range(min(self._count, len(chunks))):
                start()
            while waiting or running:
                while waiting and free:
                    connection, chunk = free.pop(), waiting.popleft()
                    try:
                        connection.send(chunk)
                    except OSError:  # its process died while it had nothing to do
                        connection.close()
                        start()
                        waiting.appendleft(chunk)
                    else:
                        running[connection] = chunk
                for connection in cast("list[Connection]", wait(list(running))):
                    chunk = running.pop(connection)
                    try:
                        outcome = connection.recv()
                    except (EOFError, OSError):
                        connection.close()
                        tries[chunk.id] += 1
                        if tries[chunk.id] == TRIES:
                            raise died(chunk, TRIES) from None
                        start()
                        waiting.appendleft(chunk)
                        continue
                    free.append(connection)
                    if isinstance(outcome, Failed):
                        raise outcome
                    yield outcome
        finally:
            open_while_needed.close()  # which ends the processes, whatever they do
            for process in processes:
                process.join()
            for connection in (ends, *free, *running):
                connection.close()


def died(chunk: Chunk, tries: int) -> Failed:
    """Return the error of a chunk whose process dies at every try."""
    return Failed(
        f"the process that scored {chunk.text} died {tries} times, by lack of memory or a crash; score these files "
        "alone to see why, or leave them out"
    )


def failed(chunk: Chunk, error: BaseException) -> Failed:
    """Return the error of a chunk whose evaluation failed for another reason than a bad file."""
    return Failed(f"{chunk.text} cannot be scored: {type(error).__name__}: {error}")


def _serve(function: Callable[[Chunk], ChunkResult], connection: Connection, ends: Connection) -> None:
    """Evaluate the chunks that the parent sends, leave Ctrl-C to it, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(ends,), daemon=True).start()
    with suppress(EOFError, BrokenPipeError):  # the parent has ended
        while True:
            chunk = connection.recv()
            try:
                outcome: ChunkResult | Failed = function(chunk)
            except Exception as error:
                outcome = failed(chunk, error)
            connection.send(outcome)


def _end_with(ends: Connection) -> None:
    ends.poll(None)  # until the other end is closed
    os._exit(0)
