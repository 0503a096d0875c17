"""The one cache of what requests are made into: least recently used entries go first, and bytes are what counts.

Clients choose the keys, so a number of entries bounds nothing: a key may be of any length, and what is made of it of
any size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Generic, ParamSpec, TypeVar

__all__ = ["LRU", "remembered"]

CACHE_BYTES = 8 << 20
LARGEST_PART = 32

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
P = ParamSpec("P")


class LRU(Generic[K, V]):
    """The latest entries, in so many bytes, keys included; any thread may ask.

    Args:
        limit_bytes: What all entries may take. One that would take more than a 32nd of it is not kept, so that a few
            large ones do not drive out all others.

    Attributes:
        nbytes: What they take, by what :meth:`keep` was told.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._changing = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """What is kept under the key, if it is."""
        try:
            self._entries.move_to_end(key)
            return self._entries[key][0]
        except KeyError:  # it is not there, or another thread dropped it just now
            return None

    def keep(self, key: K, value: V, nbytes: int) -> None:
        """Keep one more, and drop as many as that takes.

        Args:
            key: What it is asked for by.
            value: What is kept.
            nbytes: About what the two take in memory.
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

    def clear(self) -> None:
        """Forget all."""
        with self._changing:
            self._entries.clear()
            self.nbytes = 0

    def _drop(self, key: K) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self.nbytes -= entry[1]


class Remembered(Generic[P, V]):
    """A function of hashable arguments that keeps what it returned lately; see :func:`remembered`."""

    def __init__(self, function: Callable[P, V], nbytes: Callable[..., int], limit_bytes: int) -> None:
        self.function = function
        self.cache: LRU[Any, V] = LRU(limit_bytes)
        self._get = self.cache.get
        self._nbytes = nbytes

    def __call__(self, *key: P.args, **_: P.kwargs) -> V:
        """The function's value, made anew where it is not kept."""
        value = self._get(key)
        if value is None:
            value = self.function(*key)  # type: ignore[call-arg]  # its arguments are positional
            self.cache.keep(key, value, self._nbytes(*key, value))
        return value


def remembered(
    nbytes: Callable[..., int], limit_bytes: int = CACHE_BYTES
) -> Callable[[Callable[P, V]], Remembered[P, V]]:
    """A decorator: keep what a function returned, which is never None.

    Args:
        nbytes: Of the function's arguments and its value, about what they take in memory.
        limit_bytes: See :class:`LRU`.
    """
    return lambda function: Remembered(function, nbytes, limit_bytes)
