"""The columns of a batch in its slab's memory, as arrays and as tensors; only unsigned integers are copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lossd.job import Recipe
from lossd_client.wire import DTYPES

__all__ = ["Columns", "arrays_of", "columns_in"]

Array = npt.NDArray[Any]

# NumPy has no bfloat16: its arrays hold the bits.
_DTYPES = {name: np.dtype("int16" if name == "bfloat16" else dtype.storage) for name, dtype in DTYPES.items()}

# torch has few operations for these. A uint64 entry beyond int64 becomes negative in int64, and validation refuses it.
_UNSIGNED = {np.dtype("uint16"), np.dtype("uint32"), np.dtype("uint64")}


class Columns(Mapping[str, Tensor]):
    """Tensors by name, each made from its array at first use, because a compiled pass uses only arrays.

    Attributes:
        arrays: The columns as arrays; bfloat16 as int16.
    """

    __slots__ = ("_bfloat16", "_tensors", "arrays")

    def __init__(self, arrays: dict[str, Array], bfloat16: frozenset[str]) -> None:
        self.arrays = arrays
        self._bfloat16 = bfloat16
        self._tensors: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            array = self.arrays[name]
            tensor = torch.from_numpy(array.astype(np.int64) if array.dtype in _UNSIGNED else array)
            if name in self._bfloat16:
                tensor = tensor.view(torch.bfloat16)
            self._tensors[name] = tensor
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def columns_in(
    memory: Any, recipe: Recipe, offsets: Sequence[int], rows: int, requests: int
) -> tuple[Columns, Columns]:
    """Return the inputs and the answers of a batch.

    Args:
        memory: The slab's memory.
        recipe: The batch's recipe.
        offsets: The first byte of each column.
        rows: The number of rows of all requests together.
        requests: The number of requests.
    """
    arrays = {
        column.name: np.ndarray(
            (rows if column.per_row else requests, *column.trailing), _DTYPES[column.dtype], memory, offset
        )
        for column, offset in zip(recipe.columns, offsets, strict=True)
    }
    bfloat16 = recipe.bfloat16
    inputs = {column.name: arrays.pop(column.name) for column in recipe.inputs}
    return Columns(inputs, bfloat16), Columns(arrays, bfloat16)


def arrays_of(tensors: Mapping[str, Tensor]) -> Mapping[str, Array]:
    """Return tensors in main memory as arrays; none may be bfloat16."""
    return tensors.arrays if isinstance(tensors, Columns) else {name: t.numpy() for name, t in tensors.items()}
