"""An array in a file, of which rows are read in their order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Array", "Column", "Unreadable"]

Array = np.ndarray[Any, Any]


class Unreadable(Exception):  # noqa: N818  (as in lossd_client.errors)
    """Why a file cannot be read."""


class Column:
    """An array in a file, read from its first row on.

    Args:
        shape: The array's shape.
        itemsize: The bytes of an entry.
        read: Returns the next rows, given how many; of an array without axes, the array, given 1.
    """

    def __init__(self, shape: tuple[int, ...], itemsize: int, read: Callable[[int], Array]) -> None:
        self.shape = shape
        self.itemsize = itemsize
        self._read = read

    @classmethod
    def held(cls, shape: tuple[int, ...], itemsize: int, load: Callable[[], Array]) -> Column:
        """Return the column of an array that can only be read whole: ``load`` returns it, when its rows are read."""
        begin = 0
        array: Array | None = None

        def read(rows: int) -> Array:
            nonlocal begin, array
            array = load() if array is None else array
            begin += rows
            return array[begin - rows : begin] if shape else array

        return cls(shape, itemsize, read)

    @property
    def nbytes(self) -> int:
        """The bytes of all entries."""
        return math.prod(self.shape) * self.itemsize

    def take(self, rows: int) -> Array:
        """Return the next rows, (rows, ...)."""
        return self._read(rows)

    def whole(self) -> Array:
        """Return the array; no row was taken before."""
        return self._read(self.shape[0] if self.shape else 1)
