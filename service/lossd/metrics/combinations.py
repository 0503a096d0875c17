"""Which rows of a batch are counted together: those of one request, one group and the same slices, a combination."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.lazy_torch import Tensor, torch

__all__ = ["Combinations"]

Array = npt.NDArray[Any]

FEW_CELLS = 64
"""Rows of up to so many numbers are added up column by column on a CPU; torch adds them row by row."""

SPARE, FREE = 4, 1 << 15
"""So many times as many sums as entries, or so many sums, are counted in an array of all sums."""


SCRATCH, SPARSE = 1 << 20, 1 << 9
"""A kernel counts in an array of the sums of a request: of so many at most, and so many times as many as entries."""

NONE, NO_MASK = np.zeros(0, np.int64), np.zeros(0, bool)


class Combinations:
    """The combination of each row.

    Args:
        index: (R,) int64, from 0 to ``count`` - 1.
        count: The number of combinations.
        starts: The first row of each request, and R, if each request has as many combinations, one after the other.
        kernel: The compiled function that counts; None if it is not at hand.
    """

    def __init__(
        self, index: Array, count: int, starts: Array | None = None, kernel: Callable[..., int] | None = None
    ) -> None:
        self.index = index
        self.count = count
        self._starts, self._kernel = starts, kernel

    @cached_property
    def tensor(self) -> Tensor:
        """The index as a tensor in main memory."""
        return torch.from_numpy(self.index)

    def tally_rows(self) -> tuple[Array, Array]:
        """Return the combinations that have rows, rising, and how many rows each has: (m,) int64 each."""
        counted = self._by_kernel(NONE, NONE, 1, NO_MASK, 1, 1)
        return _used(np.bincount(self.index, minlength=self.count)) if counted is None else counted

    def sums(self, rows: Tensor) -> Array:
        """Return the sums of integers over the rows of each combination: (R, ...) to (U, ...) int64."""
        cells = rows[0].numel() if len(rows) else 1
        if self.count == 1:
            sums: Array = rows.sum(0, keepdim=True, dtype=torch.int64).numpy(force=True)
        elif rows.is_cuda or cells > FEW_CELLS:
            answer = torch.zeros(self.count, *rows.shape[1:], dtype=torch.int64, device=rows.device)
            sums = answer.index_add_(0, self.tensor.to(rows.device), rows.long()).numpy(force=True)
        else:
            # Each sum is exact in float64 below 2**53.
            columns = rows.numpy().reshape(-1, cells).T
            flat = np.stack([np.bincount(self.index, column, self.count) for column in columns], 1)
            sums = flat.astype(np.int64).reshape(self.count, *rows.shape[1:])
        return sums

    def tally(
        self, key: Tensor, cells: int, ignored: Tensor | None, upper: Tensor | None = None, factor: int = 1
    ) -> tuple[Array, Array]:
        """Return how many entries of each combination have each key, counts of 0 left out.

        Args:
            key: Keys, (R, I) integers, from 0 to ``cells`` - 1 where the entry counts.
            upper: What is added to the keys, times ``factor``, (R, I) int64; None for nothing.
            factor: The factor of ``upper``.
            cells: The number of keys.
            ignored: The entries that do not count, (R, I) or (R, 1) bool; None if all count.

        Returns:
            The combination times ``cells`` plus the key of each count, rising, and the count; (m,) int64 each.
        """
        size = self.count * cells
        mask = NO_MASK if ignored is None or key.is_cuda else ignored.expand(key.shape).numpy().ravel()
        if not key.is_cuda:
            flat, more = (NONE if part is None else part.long().contiguous().numpy().ravel() for part in (key, upper))
            if (counted := self._by_kernel(flat, more, factor, mask, key.shape[1], cells)) is not None:
                return counted
        if upper is not None:
            key = torch.add(key, upper, alpha=factor)
        if size > max(SPARE * key.numel(), FREE):  # a sort of the entries takes less time than an array of all counts
            keys, times = np.unique(self._keys(key.long(), cells, ignored).numpy(force=True), return_counts=True)
            return keys, times.astype(np.int64)
        if key.is_cuda:
            return _used(torch.bincount(self._keys(key.long(), cells, ignored), minlength=size).numpy(force=True))
        place = (self.index * cells)[:, None] + key.numpy()
        return _used(np.bincount(place.ravel() if ignored is None else place.ravel()[~mask], minlength=size))

    def _by_kernel(
        self, key: Array, upper: Array, factor: int, ignored: Array, width: int, cells: int
    ) -> tuple[Array, Array] | None:
        """Return what :meth:`tally` does, as a kernel counts it; None if there is none, or if it would take longer.

        Args:
            key: (R · I,) int64; none for one entry a row, whose key is 0.
            upper: (R · I,) int64; none for nothing.
            factor: The factor of ``upper``.
            ignored: (R · I,) bool; none if all count.
            width: The entries I of a row.
            cells: The number of keys.
        """
        if self._kernel is None or self._starts is None:
            return None
        entries, size = len(self.index) * width, self.count * cells
        slots = self.count // (len(self._starts) - 1)
        if slots * cells > SCRATCH or size > max(SPARSE * entries, FREE) or entries >= 1 << 31:
            return None
        found, times = np.empty((2, min(entries, size) + 1), np.int64)  # the kernel writes one more
        number = self._kernel(key, upper, factor, ignored, width, self.index, self._starts, slots, cells, found, times)
        return found[:number], times[:number]

    def _keys(self, key: Tensor, cells: int, ignored: Tensor | None) -> Tensor:
        """Return the combination times ``cells`` plus the key of each entry that counts."""
        if self.count > 1:
            key = torch.add(key, self.tensor.to(key.device).unsqueeze(1), alpha=cells)
        return key.reshape(-1) if ignored is None else key[~ignored.expand(key.shape)]


def _used(counts: Array) -> tuple[Array, Array]:
    """Return the places of the counts that are not 0, and these counts."""
    used = np.flatnonzero(counts)
    return used, counts[used]
