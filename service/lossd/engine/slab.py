"""Shared memory in which a batch is written where it will be read.

A slab is an anonymous file in memory that the front and a worker both map. Requests' tensors are copied, or streamed
from the socket, into the slab's columns; the worker reads them there, writes the answers beside them, and the front
sends those from the same place. Nothing is concatenated, pickled or copied in between.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass

from lossd.job import Job, Recipe
from lossd_client.errors import QueueFull

__all__ = ["Arrangement", "Lease", "Slab", "SlabPool", "arrange"]

ALIGNMENT = 64
MAX_REQUESTS = 512


class Slab:
    """One piece of shared memory.

    Attributes:
        id: Unique in this process; how messages name it.
        size: Bytes.
        fd: The anonymous file, to be mapped elsewhere.
        view: Its memory.
    """

    __slots__ = ("fd", "id", "mapping", "size", "view")

    def __init__(self, id: int, size: int) -> None:  # noqa: A002  (it is the slab's id)
        self.id = id
        self.size = size
        self.fd = os.memfd_create(f"lossd-slab-{id}", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.mapping = mmap.mmap(self.fd, size)
        self.view = memoryview(self.mapping)

    def close(self) -> None:
        """Give the memory back, as soon as the last view into it is gone."""
        os.close(self.fd)
        self.view.release()
        with contextlib.suppress(BufferError):  # a view is still alive somewhere: the mapping goes with it
            self.mapping.close()


class SlabPool:
    """Slabs by size, reused: touching fresh memory costs more than filling it.

    Args:
        cache_bytes: Memory kept for reuse; slabs beyond it are closed when they come back.
        on_close: Called with the id of each slab that is closed.
    """

    def __init__(self, cache_bytes: int, on_close: Callable[[int], None] = lambda _: None) -> None:
        self.cache_bytes = cache_bytes
        self.on_close = on_close
        self.cached_bytes = 0
        self.in_use = 0
        self._free: dict[int, list[Slab]] = {}
        self._next_id = 0

    def take(self, nbytes: int) -> Slab:
        """A slab of at least that many bytes; sizes are powers of two, untouched pages cost nothing."""
        size = max(1 << 16, 1 << (nbytes - 1).bit_length())
        self.in_use += 1
        if free := self._free.get(size):
            self.cached_bytes -= size
            return free.pop()
        self._next_id += 1
        return Slab(self._next_id, size)

    def give(self, slab: Slab) -> None:
        """Take a slab back that nothing refers to any more."""
        self.in_use -= 1
        if self.cached_bytes + slab.size > self.cache_bytes:
            self.on_close(slab.id)
            slab.close()
            return
        self.cached_bytes += slab.size
        self._free.setdefault(slab.size, []).append(slab)

    def close(self) -> None:
        """Close every slab that is not in use."""
        for slabs in self._free.values():
            for slab in slabs:
                slab.close()
        self._free.clear()
        self.cached_bytes = 0


class Lease:
    """A slab shared by the requests of a batch; it goes back when the last of them lets go."""

    __slots__ = ("holders", "pool", "slab")

    def __init__(self, pool: SlabPool, slab: Slab) -> None:
        self.pool = pool
        self.slab = slab
        self.holders = 0

    def release(self) -> None:
        """One holder less."""
        self.holders -= 1
        if self.holders == 0:
            self.pool.give(self.slab)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where a recipe's columns lie in a slab, and how much fits.

    Attributes:
        offsets: Bytes from the slab's start, per column.
        rows: Capacity in rows.
        requests: Capacity in requests.
        nbytes: Bytes used when full.
    """

    offsets: tuple[int, ...]
    rows: int
    requests: int
    nbytes: int


def arrange(recipe: Recipe, rows: int, requests: int) -> Arrangement:
    """Columns for that many rows and requests, one after the other, each on a 64-byte boundary."""
    offsets, at = [], 0
    for column in recipe.columns:
        offsets.append(at)
        size = column.unit_bytes * (rows if column.per_row else requests)
        at += -(-size // ALIGNMENT) * ALIGNMENT
    return Arrangement(tuple(offsets), rows, requests, at)


def arrange_shared(recipe: Recipe, budget_bytes: int) -> Arrangement:
    """Columns for as many requests as a budget holds."""
    usable = budget_bytes - ALIGNMENT * len(recipe.columns)
    most = max(1, min(MAX_REQUESTS, budget_bytes // recipe.text_bytes))  # the answers are as long as they are
    if not recipe.row_bytes:
        requests = min(most, usable // recipe.request_bytes)
        return arrange(recipe, requests, requests)
    requests = min(most, max(1, usable // (2 * recipe.request_bytes))) if recipe.request_bytes else most
    rows = (usable - requests * recipe.request_bytes) // recipe.row_bytes
    return arrange(recipe, rows, requests)


@dataclass(slots=True)
class Budget:
    """The bytes that requests in progress hold, and the most they may.

    Attributes:
        limit_bytes: The setting ``queue_bytes``.
        held_bytes: Held now.
        rate_bytes_per_s: How fast they have been released lately, for a truthful Retry-After.
    """

    limit_bytes: int
    held_bytes: int = 0
    rate_bytes_per_s: float = 0.0

    def admit(self, job: Job) -> None:
        """Count a request in.

        Raises:
            QueueFull: With the seconds after which there will be room.
        """
        if self.held_bytes + job.nbytes > self.limit_bytes:
            missing = self.held_bytes + job.nbytes - self.limit_bytes
            wait_s = missing / self.rate_bytes_per_s if self.rate_bytes_per_s else 1.0
            raise QueueFull(
                f"{self.held_bytes} bytes of work are in progress and this request needs {job.nbytes}; at most "
                f"{self.limit_bytes} are held at a time (setting queue_bytes)",
                retry_after_s=min(60.0, max(0.1, wait_s)),
            )
        self.held_bytes += job.nbytes

    def release(self, nbytes: int) -> None:
        """Count a request out."""
        self.held_bytes -= nbytes

    def observe(self, nbytes: int, seconds: float) -> None:
        """Learn how fast batches go through: a moving average."""
        rate = nbytes / max(seconds, 1e-6)
        self.rate_bytes_per_s = rate if not self.rate_bytes_per_s else 0.9 * self.rate_bytes_per_s + 0.1 * rate
