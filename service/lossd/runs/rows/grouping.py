"""The group of each row: a function of the row's identity alone, so that it is the same in every run and every split.

The group is the key's hash modulo the number of groups: ``splitmix64(key) mod 64``. 64, 32 and 16 groups nest. The key
is the row's position or its id. With the input ``cluster_id`` it is that, so that all rows of a patient, a document or
a video are in one group. Rows without an identity have the hash of their batch's name plus their number in the batch.

References:
    G. L. Steele, D. Lea, C. H. Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014,
        doi:10.1145/2660193.2660195: splitmix64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.counting_kernels import NO_KERNELS, CountingKernels
from lossd.runs.rows.fingerprint import GOLDEN, final, starts_of

__all__ = ["MOST_GROUPS", "groups_from", "groups_of_keys", "key_of_name"]

Array = npt.NDArray[Any]

MOST_GROUPS = 64

NO_KEYS = np.zeros(0, np.uint64)


def key_of_name(name: str) -> int:
    """Return the key of the first row of a batch with a name: the first 8 bytes of its SHA-256, little-endian."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def keys_from(firsts: Sequence[int], lengths: Sequence[int]) -> Array:
    """Return the keys of the rows of batches, (R,) uint64, which count up from each batch's first key."""
    starts = np.cumsum(lengths) - lengths
    offsets = np.array([first % (1 << 64) for first in firsts], np.uint64) - starts.astype(np.uint64)
    keys: Array = np.arange(sum(lengths), dtype=np.uint64) + np.repeat(offsets, lengths)
    return keys


def groups_of_keys(
    keys: Array, groups: int = MOST_GROUPS, kernels: CountingKernels = NO_KERNELS, lengths: Sequence[int] | None = None
) -> Array:
    """Return the group of each key, (R,) int64.

    Args:
        keys: (R,) integers of any dtype; negative ones as their two's complement.
        groups: How many groups there are: 64, 32 or 16.
        kernels: The compiled functions, by name; those at hand.
        lengths: The rows of each batch, if the groups of all batches are to be numbered one after the other.
    """
    wide = np.ascontiguousarray(keys.astype(np.int64, copy=False) if keys.dtype.kind == "i" else keys)
    wide = wide.view(np.uint64) if keys.dtype.kind == "i" else wide.astype(np.uint64, copy=False)
    if (place := kernels.get("place_rows")) is not None:
        found = np.empty(len(wide), np.int64)
        place(wide, NO_KEYS, starts_of(lengths or [len(wide)]), np.uint64(groups), True, found)
        return found
    group: Array = (final(wide + np.uint64(GOLDEN)) & np.uint64(groups - 1)).astype(np.int64)
    return group if lengths is None else group + np.repeat(np.arange(len(lengths)) * groups, lengths)


def groups_from(
    firsts: Sequence[int],
    lengths: Sequence[int],
    groups: int,
    kernels: CountingKernels = NO_KERNELS,
    *,
    apart: bool = False,
) -> Array:
    """Return the group of each row of several batches, whose keys count up from each batch's first key: (R,) int64.

    Args:
        firsts: The key of the first row of each batch.
        lengths: The rows of each batch.
        groups: How many groups there are: 64, 32 or 16.
        kernels: The compiled functions, by name; those at hand.
        apart: Whether the groups of all batches are numbered one after the other.
    """
    if (place := kernels.get("place_rows")) is None:
        return groups_of_keys(keys_from(firsts, lengths), groups, kernels, lengths if apart else None)
    found = np.empty(sum(lengths), np.int64)
    keys = np.array([first % (1 << 64) for first in firsts], np.uint64)
    place(NO_KEYS, keys, starts_of(lengths), np.uint64(groups), apart, found)
    return found
