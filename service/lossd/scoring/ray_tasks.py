"""Evaluate chunks as tasks of a Ray cluster.

References:
    Ray, Task fault tolerance: a task is run again if its worker or its node dies.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from lossd.scoring.chunks import Chunk
from lossd.scoring.executors import Failed, died, failed

try:
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError
except ModuleNotFoundError as missing:
    raise Failed(f"--on ray needs the package {missing.name}: pip install 'lossd[ray]'") from None

if TYPE_CHECKING:
    from lossd.scoring.work import ChunkResult

__all__ = ["RayTasks"]

AHEAD = 4
"""How many chunks are in flight for each core: enough that none waits, few enough that answers need little memory."""

RETRIES = 20
"""How often a chunk is tried again: nodes may die as often as they like, but a chunk that ends its process must end."""

CONNECT_S = 10.0
LOOKS_S = 1.0
"""How often the number of cores is looked at: a cluster may grow."""


class RayTasks:
    """Evaluates chunks as Ray's core tasks of one core each.

    Args:
        address: The cluster's address; None for Ray's choice: ``RAY_ADDRESS``, a cluster of this machine, or a new one.

    Raises:
        Failed: The cluster cannot be reached.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address

    def map(
        self, function: Callable[[Chunk], ChunkResult], chunks: Sequence[Chunk]
    ) -> Generator[ChunkResult, None, None]:
        """Yield the outcome of each chunk, as they come.

        Raises:
            Failed: The cluster cannot be reached, or a chunk has no outcome.
        """
        begun = not ray.is_initialized()
        if begun:
            try:
                _check_port(self._address)
                ray.init(self._address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, ValueError, RuntimeError) as error:
                raise Failed(f"Ray cannot be reached at {self._address or 'its usual address'}: {error}") from None
        try:
            yield from _mapped(function, chunks)
        finally:
            if begun:
                ray.shutdown()


def _check_port(address: str | None) -> None:
    """Check that something listens at an address, because Ray tries it for minutes.

    Raises:
        OSError: Nothing does.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), CONNECT_S).close()


def _mapped(function: Callable[[Chunk], ChunkResult], chunks: Sequence[Chunk]) -> Iterator[ChunkResult]:
    task = ray.remote(_run).options(num_cpus=1, max_retries=RETRIES)
    shared, waiting = ray.put(function), iter(chunks)
    running: dict[Any, Chunk] = {}
    try:
        while True:
            room = AHEAD * max(int(ray.cluster_resources().get("CPU", 1)), 1) - len(running)
            running |= {task.remote(shared, chunk): chunk for chunk in islice(waiting, max(room, 0))}
            if not running:
                return
            finished, _ = ray.wait([*running], timeout=LOOKS_S)
            for reference in finished:
                chunk = running.pop(reference)
                try:
                    outcome: ChunkResult = ray.get(reference)
                except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
                    raise died(chunk, RETRIES + 1) from error
                except Exception as error:  # what the task raised, or why it could not be run
                    raise failed(chunk, getattr(error, "cause", None) or error) from error
                yield outcome
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _run(function: Callable[[Chunk], ChunkResult], chunk: Chunk) -> ChunkResult:
    return function(chunk)
