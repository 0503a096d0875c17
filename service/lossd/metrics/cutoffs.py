"""Where a number of the request meets numbers of a tensor: thresholds, margins, the edges of bins.

A request's numbers are decimals, read as float64; a tensor's are in its own dtype, float32 where JSON brought them. So
0.3 would not equal 0.3, and 0.7 would be below 0.7. What was sent is therefore compared in the dtype it was sent in:
the cut-off is rounded to it, as NumPy and torch do with a plain number. What is computed of several numbers carries the
rounding of each, and equals a cut-off from which it is ``SLACK`` units in the last place away at most.
"""

from __future__ import annotations

import numpy as np

from lossd.lazy_torch import Tensor, torch

__all__ = ["reached", "rounded", "slack"]

SLACK = 8


def rounded(cut: Tensor | float, dtype: str) -> Tensor | float:
    """A cut-off as a dtype holds it, in float64; infinite beyond its range."""
    if isinstance(cut, Tensor):
        return cut.to(getattr(torch, dtype)).double()
    if dtype == "bfloat16":
        return float(torch.tensor(cut, dtype=torch.float64).to(torch.bfloat16))
    with np.errstate(over="ignore"):
        return float(np.dtype(dtype).type(cut))


def slack(dtype: str) -> float:
    """How far from a cut-off, relative to it, what is computed of numbers of that dtype still equals it."""
    return SLACK * float(torch.finfo(getattr(torch, dtype)).eps)


def reached(values: Tensor, cut: Tensor | float, dtype: str) -> Tensor:
    """Whether computed values are at least a cut-off, which is not negative; NaN is not."""
    return values >= cut * (1 - slack(dtype))
