"""The least recently used go first, and bytes are what counts."""

from __future__ import annotations

import threading

import pytest

from lossd import lru
from lossd.lru import LRU, remembered


@pytest.fixture(autouse=True)
def _any_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lru, "LARGEST_PART", 2)


def test_the_least_recently_used_makes_room() -> None:
    cache: LRU[str, int] = LRU(30)
    for key in "abc":
        cache.keep(key, ord(key), 10)
    assert cache.get("a") == ord("a")
    cache.keep("d", 4, 10)
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    assert (len(cache), cache.nbytes) == (3, 30)


def test_a_large_one_drives_out_as_many_as_it_takes_and_a_larger_one_none() -> None:
    cache: LRU[str, int] = LRU(30)
    for key in "abc":
        cache.keep(key, 1, 10)
    cache.keep("d", 1, 15)
    assert [key for key in "abcd" if cache.get(key) is not None] == ["c", "d"]
    cache.keep("e", 1, 16)
    assert (cache.get("e"), len(cache), cache.nbytes) == (None, 2, 25)


def test_an_entry_that_is_kept_again_counts_once() -> None:
    cache: LRU[str, int] = LRU(30)
    for _ in range(5):
        cache.keep("a", 1, 10)
    assert (len(cache), cache.nbytes) == (1, 10)
    cache.clear()
    assert (len(cache), cache.nbytes, cache.get("a")) == (0, 0, None)


def test_a_function_is_called_once_for_what_is_kept_and_a_failure_is_not_kept() -> None:
    called: list[int] = []

    @remembered(lambda number, text: number, 100)
    def text_of(number: int) -> str:
        called.append(number)
        if called == [7]:
            raise ValueError("once")
        return str(number)

    with pytest.raises(ValueError, match="once"):
        text_of(7)
    assert [text_of(number) for number in (7, 7, 60, 60)] == ["7", "7", "60", "60"]
    assert called == [7, 7, 60, 60], "60 is too large to be kept"


def test_threads_leave_the_count_right() -> None:
    cache: LRU[int, int] = LRU(1000)

    def use(seed: int) -> None:
        for i in range(3000):
            key = (seed * i) % 97
            if cache.get(key) is None:
                cache.keep(key, key, 1 + key % 40)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in (3, 5, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.nbytes == sum(1 + key % 40 for key in range(97) if cache.get(key) is not None) <= 1000
