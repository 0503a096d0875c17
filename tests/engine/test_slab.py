"""Slabs are kept for the next request, those used last above all."""

from __future__ import annotations

from lossd.engine.slab import MAX_IDLE, SlabPool

KIB = 1 << 10


def test_a_slab_comes_back() -> None:
    pool = SlabPool(1 << 20)
    first = pool.take(100 * KIB)
    pool.give(first)
    assert pool.take(100 * KIB) is first
    assert pool.in_use == 1
    assert pool.cached_bytes == 0
    pool.give(first)
    pool.close()


def test_what_was_unused_for_longest_makes_room() -> None:
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


def test_no_more_are_kept_than_files_are_worth() -> None:
    closed: list[int] = []
    pool = SlabPool(1 << 30, closed.append)
    slabs = [pool.take(1) for _ in range(MAX_IDLE + 1)]
    for slab in slabs:
        pool.give(slab)
    assert closed == [slabs[0].id]
    pool.close()


def test_what_is_larger_than_all_that_may_be_kept_is_given_back() -> None:
    closed: list[int] = []
    pool = SlabPool(64 * KIB, closed.append)
    small, large = pool.take(1), pool.take(65 * KIB)
    pool.give(small)
    pool.give(large)
    assert closed == [large.id]
    assert pool.cached_bytes == 64 * KIB
    pool.close()
