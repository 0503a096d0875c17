"""Evaluate chunks on the workers of a Dask cluster.

References:
    Dask distributed, Resilience: a task whose worker dies is run again by another, at most
        ``distributed.scheduler.allowed-failures`` times.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING
from uuid import uuid4

from lossd.scoring.chunks import Chunk
from lossd.scoring.executors import Failed, died, failed

try:
    from distributed import Client, as_completed
    from distributed.scheduler import KilledWorker
except ModuleNotFoundError as missing:
    raise Failed(f"--on dask needs the package {missing.name}: pip install 'lossd[dask]'") from None

if TYPE_CHECKING:
    from lossd.scoring.work import ChunkResult

__all__ = ["DaskTasks"]

AHEAD = 4
"""How many chunks are in flight for each thread of the workers."""

RETRIES = 3
"""How often a chunk is tried again whose evaluation raises an error that is no file's, such as one of the network."""


class DaskTasks:
    """Evaluates chunks on a Dask cluster.

    Args:
        address: The scheduler's address, such as ``tcp://10.0.0.1:8786``.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def map(
        self, function: Callable[[Chunk], ChunkResult], chunks: Sequence[Chunk]
    ) -> Generator[ChunkResult, None, None]:
        """Yield the outcome of each chunk, as they come.

        Raises:
            Failed: The scheduler cannot be reached, or a chunk has no outcome.
        """
        logging.getLogger("distributed").setLevel(logging.ERROR)  # it logs each worker that it loses
        try:
            client = Client(self._address, set_as_default=False)
        except (OSError, ValueError) as error:
            raise Failed(f"Dask's scheduler cannot be reached at {self._address}: {error}") from None
        with client:
            yield from _mapped(client, function, chunks)


def _mapped(client: Client, function: Callable[[Chunk], ChunkResult], chunks: Sequence[Chunk]) -> Iterator[ChunkResult]:
    name, waiting = f"lossd-score-{uuid4().hex}", iter(chunks)
    ahead = AHEAD * max(sum(client.nthreads().values()), 1)
    chunk_of = {chunk.id: chunk for chunk in chunks}

    def submitted(count: int) -> list[object]:
        return [
            client.submit(_run, function, chunk, key=f"{name}-{chunk.id}", retries=RETRIES, pure=False)
            for chunk in islice(waiting, count)
        ]

    finished = as_completed(submitted(ahead), loop=client.loop)
    for future in finished:
        chunk = chunk_of[future.key.rpartition("-")[2]]
        try:
            outcome: ChunkResult = future.result()
        except KilledWorker as error:
            raise died(chunk, error.allowed_failures + 1) from error
        except Exception as error:
            raise failed(chunk, error) from error
        finished.update(submitted(1))
        yield outcome


def _run(function: Callable[[Chunk], ChunkResult], chunk: Chunk) -> ChunkResult:
    return function(chunk)
