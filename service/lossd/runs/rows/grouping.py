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
from lossd.runs.rows.fingerprint import GOLDEN, final

__all__ = ["MOST_GROUPS", "groups_of_keys", "key_of_name", "keys_from"]

Array = npt.NDArray[Any]

MOST_GROUPS = 64


def key_of_name(name: str) -> int:
    """Return the key of the first row of a batch with a name: the first 8 bytes of its SHA-256, little-endian."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def keys_from(firsts: Sequence[int], lengths: Sequence[int]) -> Array:
    """Return the keys of the rows of batches, (R,) uint64, which count up from each batch's first key."""
    starts = np.cumsum(lengths) - lengths
    offsets = np.array([first % (1 << 64) for first in firsts], np.uint64) - starts.astype(np.uint64)
    keys: Array = np.arange(sum(lengths), dtype=np.uint64) + np.repeat(offsets, lengths)
    return keys


def groups_of_keys(keys: Array, groups: int = MOST_GROUPS, kernels: CountingKernels = NO_KERNELS) -> Array:
    """Return the group of each key, (R,) int64.

    Args:
        keys: (R,) integers of any dtype; negative ones as their two's complement.
        groups: How many groups there are: 64, 32 or 16.
        kernels: The compiled functions, by name; those at hand.
    """
    wide = np.ascontiguousarray(keys.astype(np.int64, copy=False) if keys.dtype.kind == "i" else keys)
    wide = wide.view(np.uint64) if keys.dtype.kind == "i" else wide.astype(np.uint64, copy=False)
    if (group := kernels.get("group_keys")) is not None:
        found = np.empty(len(wide), np.int64)
        group(wide, np.uint64(groups), found)
        return found
    return (final(wide + np.uint64(GOLDEN)) & np.uint64(groups - 1)).astype(np.int64)
