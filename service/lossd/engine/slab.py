"""Shared memory in which the front writes a batch and the worker reads it, without a copy between them.

A slab is an anonymous file in memory that the front and a worker both map. Requests' tensors are copied, or streamed
from the socket, into the slab's columns; the worker reads them there, writes the answers beside them, and the front
sends those from the same place. Nothing is concatenated, pickled or copied in between.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable

from lossd.configuration.machine import files

__all__ = ["Lease", "Slab", "SlabPool"]

MAX_IDLE = 256  # slabs kept for reuse

# Each slab is two open files. All of them may take a quarter of the files, so that connections are still accepted.
SLABS_PER_FILE = 1 / 8


class Slab:
    """One piece of shared memory.

    Attributes:
        id: Its number in messages, unique in this process.
        size: Its size in bytes.
        fd: The anonymous file, which the worker maps.
        view: Its memory.
    """

    __slots__ = ("fd", "id", "mapping", "size", "view")

    def __init__(self, id: int, size: int) -> None:  # noqa: A002  (it is the slab's id)
        self.id = id
        self.size = size
        self.fd = os.memfd_create(f"lossd-slab-{id}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self.mapping = mmap.mmap(self.fd, size)
        except OSError:
            os.close(self.fd)
            raise
        self.view = memoryview(self.mapping)

    def close(self) -> None:
        """Release the memory as soon as the last view of it is gone."""
        os.close(self.fd)
        self.view.release()
        with contextlib.suppress(BufferError):  # a view still exists: the mapping ends with it,
            self.mapping.close()
        del self.mapping  # not with this object, which may wait for the garbage collector


class SlabPool:
    """Reuses slabs, by size, because touching fresh memory costs more than filling it.

    Args:
        cache_bytes: The most memory kept for reuse; slabs beyond it are closed when they are returned.
        on_close: Called with the id of each slab that is closed.
    """

    def __init__(self, cache_bytes: int, on_close: Callable[[int], None] = lambda _: None) -> None:
        self.cache_bytes = cache_bytes
        self.on_close = on_close
        self.cached_bytes = 0
        self.in_use = 0
        self._free: dict[int, list[Slab]] = {}
        self._idle: dict[int, Slab] = {}  # the same by id, longest unused first
        self._next_id = 0
        self._most = files() * SLABS_PER_FILE

    def take(self, nbytes: int) -> Slab:
        """Return a slab of at least that many bytes. Sizes are powers of two; untouched pages cost nothing.

        Raises:
            OSError: There is no memory or file descriptor left, even after the idle slabs were closed.
        """
        size = max(1 << 16, 1 << (nbytes - 1).bit_length())
        if free := self._free.get(size):
            slab = free.pop()
            del self._idle[slab.id]
            self.cached_bytes -= size
        else:
            self._next_id += 1
            try:
                slab = self._new(size)
            except OSError:
                self._close_idle()
                slab = self._new(size)
        self.in_use += 1
        return slab

    def _new(self, size: int) -> Slab:
        if self.in_use + len(self._idle) >= self._most:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return Slab(self._next_id, size)

    def give(self, slab: Slab) -> None:
        """Take back a slab that nothing refers to. Slabs that were idle longest are closed to make room."""
        self.in_use -= 1
        if slab.size > self.cache_bytes:
            self._close(slab)
            return
        while self.cached_bytes + slab.size > self.cache_bytes or len(self._idle) >= MAX_IDLE:
            oldest = next(iter(self._idle.values()))
            del self._idle[oldest.id]
            self._free[oldest.size].remove(oldest)
            self.cached_bytes -= oldest.size
            self._close(oldest)
        self.cached_bytes += slab.size
        self._free.setdefault(slab.size, []).append(slab)
        self._idle[slab.id] = slab

    def close(self) -> None:
        """Close every idle slab, and from now on each slab that is returned."""
        self.cache_bytes = 0
        self._close_idle()

    def _close_idle(self) -> None:
        for slab in self._idle.values():
            self._close(slab)
        self._free.clear()
        self._idle.clear()
        self.cached_bytes = 0

    def _close(self, slab: Slab) -> None:
        self.on_close(slab.id)
        slab.close()


class Lease:
    """A slab shared by the requests of a batch; it is returned when the last of them releases it."""

    __slots__ = ("holders", "pool", "slab")

    def __init__(self, pool: SlabPool, slab: Slab) -> None:
        self.pool = pool
        self.slab = slab
        self.holders = 0

    def release(self) -> None:
        """Release the slab for one request."""
        self.holders -= 1
        if self.holders == 0:
            self.pool.give(self.slab)
