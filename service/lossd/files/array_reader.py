"""Reads the rows of an array in a file, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["Array", "ArrayReader", "Unreadable"]

Array = np.ndarray[Any, Any]


class Unreadable(Exception):  # noqa: N818  (as in lossd_client.errors)
    """Why a file cannot be read."""


class ArrayReader:
    """An array in a file, read from its first row on, or from the row at which the file was opened.

    Args:
        shape: The array's shape.
        itemsize: The bytes of an entry.
        read: Returns the next rows, given how many; of an array without axes, the array, given 1.
        seeks: Whether the file can be opened at a row without reading the rows before it.
        ends: The numbers of rows after which a part of the file ends that is read as a whole; empty if each row can be
            read by itself.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        itemsize: int,
        read: Callable[[int], Array],
        *,
        seeks: bool = True,
        ends: Sequence[int] = (),
    ) -> None:
        self.shape = shape
        self.itemsize = itemsize
        self.seeks = seeks
        self.ends = ends
        self._read = read

    @classmethod
    def held(cls, shape: tuple[int, ...], itemsize: int, load: Callable[[], Array], begin: int) -> ArrayReader:
        """Return the column of an array that can only be read whole.

        Args:
            shape: The array's shape.
            itemsize: The bytes of an entry.
            load: Returns the array; called when rows are read.
            begin: The first row that is read.
        """
        array: Array | None = None

        def read(rows: int) -> Array:
            nonlocal begin, array
            array = load() if array is None else array
            begin += rows
            return array[begin - rows : begin] if shape else array

        return cls(shape, itemsize, read, seeks=False)

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
