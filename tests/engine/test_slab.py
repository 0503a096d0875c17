"""Slabs are kept for the next request, those used last above all."""

from __future__ import annotations

import errno
import os

import pytest

from lossd.engine import slab as slabs_module
from lossd.engine.slab import MAX_IDLE, SlabPool

KIB = 1 << 10


def test_a_returned_slab_is_used_again() -> None:
    pool = SlabPool(1 << 20)
    first = pool.take(100 * KIB)
    pool.give(first)
    assert pool.take(100 * KIB) is first
    assert pool.in_use == 1
    assert pool.cached_bytes == 0
    pool.give(first)
    pool.close()


def test_the_slab_unused_for_longest_is_closed_first() -> None:
    closed: list[int] = []
    pool = SlabPool(256 * KIB, closed.append)
    slabs = [pool.take(64 * KIB) for _ in range(3)]
    large = pool.take(128 * KIB)
    for slab in (*slabs, large):
        pool.give(slab)
    assert closed == [slabs[0].id]
    assert pool.cached_bytes == 256 * KIB
    assert pool.take(128 * KIB) is large
    pool.give(large)
    pool.close()
    assert pool.cached_bytes == 0


def test_the_number_of_idle_slabs_is_limited() -> None:
    closed: list[int] = []
    pool = SlabPool(1 << 30, closed.append)
    slabs = [pool.take(1) for _ in range(MAX_IDLE + 1)]
    for slab in slabs:
        pool.give(slab)
    assert closed == [slabs[0].id]
    pool.close()


def test_slabs_leave_files_for_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is two files: of 80 they may have 20."""
    monkeypatch.setattr(slabs_module, "files", lambda: 80)
    closed: list[int] = []
    pool = SlabPool(1 << 30, closed.append)
    slabs = [pool.take(1) for _ in range(10)]
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        pool.take(1)
    for one in slabs[:9]:
        pool.give(one)
    assert closed == []
    assert pool.take(100 * KIB).size == 128 * KIB
    assert closed == [one.id for one in slabs[:9]]


def test_a_slab_larger_than_the_cache_is_closed() -> None:
    closed: list[int] = []
    pool = SlabPool(64 * KIB, closed.append)
    small, large = pool.take(1), pool.take(65 * KIB)
    pool.give(small)
    pool.give(large)
    assert closed == [large.id]
    assert pool.cached_bytes == 64 * KIB
    pool.close()
