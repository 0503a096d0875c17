"""What the passes of all losses share: the form of a pass, and how it reads a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.compiled.kernels import Kernel
from lossd.compiled.work import Pass

__all__ = ["FLOATS", "INTEGERS", "Form", "doubt_what_vanished", "words_of"]

Array = npt.NDArray[Any]

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")
LEAST_NORM = 1e-140


@dataclass(frozen=True, slots=True)
class Form:
    """A pass, the kernels that it needs, and the bytes of the arrays that it holds."""

    kernels: Sequence[Kernel]
    evaluate: Pass
    array_bytes: int = 0


def words_of(dtype: str) -> int:
    """Return the float32 words of a number as a pass takes it, see :mod:`lossd.compiled.memory`."""
    return 2 if dtype == "float64" else 1


def doubt_what_vanished(norms: Array, gradient: Array, starts: Array, doubtful: Array) -> None:
    """Doubt norms of float64 gradients that are 0, or nearly, because the squares left the range; float32's do not.

    Args:
        norms: (B,) the norms of the gradients.
        gradient: The gradients of all requests, (0,) if they were not computed.
        starts: (B + 1,) where each request begins along the first axis of the gradient, and its length.
        doubtful: (B,) bool, set.
    """
    if len(gradient):
        for b in np.flatnonzero(norms < LEAST_NORM):
            doubtful[b] |= bool(gradient[starts[b] : starts[b + 1]].any())
