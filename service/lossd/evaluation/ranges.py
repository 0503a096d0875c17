"""Which answers may have left float32's range, so that float64 must compute them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["out_of_range", "rows_out_of_range"]

SMALL, LARGE = 1e-30, 1e30
"""Float32 computes well with numbers in between. Beyond, a square or a product may have left its range."""


def out_of_range(
    columns: Sequence[Sequence[float]], dtype: torch.dtype, floats_of: Callable[[int], Iterable[Tensor]]
) -> Iterator[int]:
    """Yield the requests whose loss or gradient may have left float32's range.

    Args:
        columns: The loss, its numerator and denominator, the number of entries and the norms of each request.
        dtype: The dtype of the computation.
        floats_of: Returns the floating-point inputs of a request; those with NaN have no better answer.
    """
    for position, (loss, numerator, denominator, _, *norms) in enumerate(zip(*columns, strict=True)):
        if not all(map(math.isfinite, (loss, numerator, denominator, *norms))):
            if not any(bool(tensor.isnan().any()) for tensor in floats_of(position)):
                yield position
        elif dtype == torch.float32:
            # All zero counts as exact, unless there is no gradient to confirm it.
            sizes = (abs(numerator), *norms)
            if not all(SMALL < size < LARGE for size in sizes) and (any(sizes) or not norms):
                yield position


def rows_out_of_range(columns: npt.NDArray[np.float64], dtype: torch.dtype) -> list[int]:
    """Return the same as :func:`out_of_range` for many requests; those with NaN are among them."""
    loss, numerator, denominator, _, *norms = columns
    sizes = [np.abs(numerator), *norms]
    if np.isfinite(columns[:3]).all() and all(size.min() > SMALL and size.max() < LARGE for size in sizes):
        return []
    beyond = ~np.isfinite([loss, numerator, denominator, *norms]).all(0)
    if dtype == torch.float32:
        ordinary = np.all([(size > SMALL) & (size < LARGE) for size in sizes], 0)
        beyond |= ~ordinary & (np.any([size != 0 for size in sizes], 0) | (not norms))
    positions: list[int] = np.flatnonzero(beyond).tolist()
    return positions
