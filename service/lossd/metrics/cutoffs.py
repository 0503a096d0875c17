"""Compare a request's numbers with a tensor's numbers: thresholds, margins, edges of bins.

A request's numbers are decimals, read as float64; a tensor's are in its own dtype, such as float32. So 0.3 would not
equal 0.3, and 0.7 would be below 0.7. Sent numbers are therefore compared in the dtype in which they were sent: the
cut-off is rounded to it, as NumPy and torch do with a plain number. A number that is computed from several has the
rounding of each, and equals a cut-off if they differ by at most ``SLACK`` units in the last place.
"""

from __future__ import annotations

import numpy as np

from lossd.lazy_torch import Tensor, torch

__all__ = ["reached", "rounded", "slack"]

SLACK = 8


def rounded(cut: Tensor | float, dtype: str) -> Tensor | float:
    """Return a cut-off rounded to a dtype, in float64; infinite beyond its range."""
    if isinstance(cut, Tensor):
        return cut.to(getattr(torch, dtype)).double()
    if dtype == "bfloat16":
        return float(torch.tensor(cut, dtype=torch.float64).to(torch.bfloat16))
    with np.errstate(over="ignore"):
        return float(np.dtype(dtype).type(cut))


def slack(dtype: str) -> float:
    """Return the largest relative distance at which a computed number still equals a cut-off."""
    return SLACK * float(torch.finfo(getattr(torch, dtype)).eps)


def reached(values: Tensor, cut: Tensor | float, dtype: str) -> Tensor:
    """Return whether computed values are at least a cut-off, which is not negative; NaN is not."""
    return values >= cut * (1 - slack(dtype))
