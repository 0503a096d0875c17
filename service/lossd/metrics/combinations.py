"""Which rows of a batch are counted together: those of one request, one group and the same slices, a combination."""

from __future__ import annotations

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


class Combinations:
    """The combination of each row.

    Args:
        index: (R,) int64, from 0 to ``count`` - 1.
        count: The number of combinations.
    """

    def __init__(self, index: Array, count: int) -> None:
        self.index = index
        self.count = count

    @cached_property
    def tensor(self) -> Tensor:
        """The index as a tensor in main memory."""
        return torch.from_numpy(self.index)

    def are_few(self, cells: int, entries: int) -> bool:
        """Return whether an array of all sums takes less time than a sort of the entries.

        Args:
            cells: The sums of each combination.
            entries: How many entries are added up.
        """
        return self.count * cells <= max(SPARE * entries, FREE)

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

    def counts(self, key: Tensor, cells: int, ignored: Tensor | None) -> Array:
        """Return how many entries of each combination have each key, (U, cells) int64.

        Args:
            key: Keys, (R, I) integers, from 0 to ``cells`` - 1 where the entry counts.
            cells: The number of keys.
            ignored: The entries that do not count, (R, I) or (R, 1) bool; None if all count.
        """
        size = self.count * cells
        counts: Array
        if key.is_cuda:
            counts = torch.bincount(self._keys(key.long(), cells, ignored), minlength=size).numpy(force=True)
        else:
            place = (self.index * cells)[:, None]
            keys = place + key.numpy()
            flat = keys.ravel() if ignored is None else keys[~ignored.expand(key.shape).numpy()]
            counts = np.bincount(flat, minlength=size)
        return counts.reshape(self.count, cells)

    def tally(self, key: Tensor, cells: int, ignored: Tensor | None) -> tuple[Array, Array]:
        """Return what :meth:`counts` does, sums of 0 left out; for many cells.

        Returns:
            The combination times ``cells`` plus the key of each sum, rising, and the sum; (m,) int64 each.
        """
        keys, times = np.unique(self._keys(key, cells, ignored).numpy(force=True), return_counts=True)
        return keys, times.astype(np.int64)

    def _keys(self, key: Tensor, cells: int, ignored: Tensor | None) -> Tensor:
        """Return the combination times ``cells`` plus the key of each entry that counts."""
        if self.count > 1:
            key = torch.add(key, self.tensor.to(key.device).unsqueeze(1), alpha=cells)
        return key.reshape(-1) if ignored is None else key[~ignored.expand(key.shape)]
