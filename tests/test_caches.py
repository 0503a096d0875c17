"""The least recently used go first, and bytes are what counts."""

from __future__ import annotations

import threading

import pytest

from lossd import caches
from lossd.caches import Cache, memoized


@pytest.fixture(autouse=True)
def _of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an entry fill half of a cache, and keep the caches of tests out of the list of all caches."""
    monkeypatch.setattr(caches, "LARGEST_PART", 2)
    monkeypatch.setattr(caches, "CACHES", {})


def test_the_least_recently_used_makes_room() -> None:
    cache: Cache[str, int] = Cache("test", 30)
    for key in "abc":
        cache.put(key, ord(key), 10)
    assert cache.get("a") == ord("a")
    cache.put("d", 4, 10)
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    assert (len(cache), cache.nbytes) == (3, 30)


def test_a_large_one_drives_out_as_many_as_it_takes_and_a_larger_one_none() -> None:
    cache: Cache[str, int] = Cache("test", 30)
    for key in "abc":
        cache.put(key, 1, 10)
    cache.put("d", 1, 15)
    assert [key for key in "abcd" if cache.get(key) is not None] == ["c", "d"]
    cache.put("e", 1, 16)
    assert (cache.get("e"), len(cache), cache.nbytes) == (None, 2, 25)


def test_an_entry_that_is_kept_again_counts_once() -> None:
    cache: Cache[str, int] = Cache("test", 30)
    for _ in range(5):
        cache.put("a", 1, 10)
    assert (len(cache), cache.nbytes) == (1, 10)
    cache.clear()
    assert (len(cache), cache.nbytes, cache.get("a")) == (0, 0, None)


def test_a_function_is_called_once_for_what_is_kept_and_a_failure_is_not_kept() -> None:
    called: list[int] = []

    @memoized("test", lambda number, text: number, 100)
    def text_of(number: int) -> str:
        called.append(number)
        if called == [7]:
            raise ValueError("once")
        return str(number)

    with pytest.raises(ValueError, match="once"):
        text_of(7)
    assert [text_of(number) for number in (7, 7, 60, 60)] == ["7", "7", "60", "60"]
    assert called == [7, 7, 60, 60], "60 is too large to be kept"


def test_of_a_function_for_repeated_arguments_a_value_is_kept_when_it_is_asked_for_again_soon() -> None:
    called: list[int] = []

    @memoized("test", lambda number, text: 1, repeated=True)
    def text_of(number: int) -> str:
        called.append(number)
        return str(number)

    assert [text_of(7) for _ in range(4)] == ["7"] * 4
    assert called == [7, 7]
    others = range(100, 100 + 4 * caches.NOTED)
    for number in (8, *others, 8, 8, 8):
        text_of(number)
    assert called[2:] == [8, *others, 8, 8]
    assert len(text_of.cache) == 2


def test_look_ups_are_counted_under_the_cache_s_name() -> None:
    cache: Cache[str, int] = Cache("test", 30)
    cache.put("a", 1, 10)
    assert [cache.get(key) for key in "abaa"] == [1, None, 1, 1]
    assert caches.CACHES["test"] is cache
    assert (cache.hits, cache.misses) == (3, 1)


def test_threads_leave_the_count_right() -> None:
    cache: Cache[int, int] = Cache("test", 1000)

    def use(seed: int) -> None:
        for i in range(3000):
            key = (seed * i) % 97
            if cache.get(key) is None:
                cache.put(key, key, 1 + key % 40)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in (3, 5, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.nbytes == sum(1 + key % 40 for key in range(97) if cache.get(key) is not None) <= 1000
