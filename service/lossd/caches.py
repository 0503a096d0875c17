"""The caches of everything made from requests: named, limited in bytes, least recently used entries dropped first.

Clients choose the keys, so a number of entries limits nothing: a key may have any length, and its value any size.
``cachetools.LRUCache`` has neither the size of an entry at insertion nor a lock, and a look-up in it takes three times
as long (0.8 µs against 0.25 µs).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Generic, ParamSpec, TypeVar

__all__ = ["CACHES", "Cache", "memoized"]

CACHE_BYTES = 8 << 20
LARGEST_PART = 32
NOTED = 256
"""About how many of the latest keys are noted, to find those that are asked for again."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
P = ParamSpec("P")

CACHES: dict[str, Cache[Any, Any]] = {}
"""Every cache of this process, by name."""


class Cache(Generic[K, V]):
    """The most recently used entries within a limit of bytes, keys included. Threads may share it.

    Args:
        name: Its name on ``/metrics``. A later cache of the same name takes its place there.
        limit_bytes: The most bytes of all entries. An entry over a 32nd of it is not stored, so that a few large ones
            do not drop all others.

    Attributes:
        nbytes: Bytes of all entries, as stated to :meth:`put`.
        hits: Look-ups that found an entry.
        misses: Look-ups that found none.
    """

    def __init__(self, name: str, limit_bytes: int = CACHE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = self.hits = self.misses = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._changing = Lock()
        CACHES[name] = self

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return the value under the key; None if there is none."""
        try:
            self._entries.move_to_end(key)
            value = self._entries[key][0]
        except KeyError:  # absent, or another thread has just dropped it
            self.misses += 1
            return None
        # A plain integer costs 0.02 µs. CPython switches threads only at calls and loop ends, so no count is lost.
        self.hits += 1
        return value

    def put(self, key: K, value: V, nbytes: int) -> None:
        """Store an entry, and drop the least recently used ones until all fit the limit.

        Args:
            key: The key.
            value: The value.
            nbytes: About how many bytes both take in memory.
        """
        if nbytes * LARGEST_PART > self.limit_bytes:
            return
        with self._changing:
            self._drop(key)
            self._entries[key] = value, nbytes
            self.nbytes += nbytes
            while self.nbytes > self.limit_bytes:
                # In one step: another thread's look-up may move an entry meanwhile, without the lock.
                _, (_, dropped_bytes) = self._entries.popitem(last=False)
                self.nbytes -= dropped_bytes

    def drop(self, key: K) -> None:
        """Drop an entry, if there is one."""
        with self._changing:
            self._drop(key)

    def clear(self) -> None:
        """Drop all entries; the counters stay."""
        with self._changing:
            self._entries.clear()
            self.nbytes = 0

    def _drop(self, key: K) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self.nbytes -= entry[1]


class Memoized(Generic[P, V]):
    """A function of hashable arguments whose latest values are cached; see :func:`memoized`."""

    def __init__(
        self, function: Callable[P, V], name: str, nbytes: Callable[..., int], limit_bytes: int, *, repeated: bool
    ) -> None:
        self.function = function
        self.cache: Cache[Any, V] = Cache(name, limit_bytes)
        self._get = self.cache.get
        self._nbytes = nbytes
        self._marks = [0] * NOTED if repeated else None

    def __call__(self, *key: P.args, **_: P.kwargs) -> V:
        """Return the function's value, from the cache if it is there."""
        value = self._get(key)
        if value is None:
            value = self.function(*key)  # type: ignore[call-arg]  # its arguments are positional
            if self._marks is None or self._was_asked(key, self._marks):
                self.cache.put(key, value, self._nbytes(*key, value))
        return value

    def _was_asked(self, key: Hashable, marks: list[int]) -> bool:
        """Return whether a key is among the latest ones, and note it."""
        mark = hash(key)
        place = mark % NOTED
        if marks[place] == mark:
            return True
        marks[place] = mark
        return False


def memoized(
    name: str, nbytes: Callable[..., int], limit_bytes: int = CACHE_BYTES, *, repeated: bool = False
) -> Callable[[Callable[P, V]], Memoized[P, V]]:
    """Return a decorator that caches what a function returns, which is never None.

    Args:
        name: The cache's name.
        nbytes: About how many bytes an entry takes in memory, given the function's arguments and its value.
        limit_bytes: As for :class:`Cache`.
        repeated: Whether to store a value only when it is asked for again soon. To store one and to drop another takes
            longer than to compute some.
    """
    return lambda function: Memoized(function, name, nbytes, limit_bytes, repeated=repeated)
