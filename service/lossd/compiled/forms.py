"""What the passes of all losses share: the form of a pass, and how it reads a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.compiled.kernels import Kernel
from lossd.compiled.work import LEAST_NORM, Pass
from lossd.job import Column, Recipe

__all__ = [
    "FLOATS",
    "INTEGERS",
    "NOTHING",
    "OF_MASK",
    "Form",
    "doubt_what_left_range",
    "doubt_what_vanished",
    "flat",
    "floor_of",
    "prediction_and_target",
    "words_of",
    "words_of_all",
]

Array = npt.NDArray[Any]

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")

OF_MASK = ("mask", "lengths")
"""The inputs that say what counts."""

NOTHING = np.empty(0, np.float32)
"""What a kernel takes in place of an array that a request does not have."""

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Form:
    """A pass, the kernels that it needs, and the bytes of the arrays that it holds."""

    kernels: Sequence[Kernel]
    evaluate: Pass
    array_bytes: int = 0


def words_of(dtype: str) -> int:
    """Return the float32 words of a number as a pass takes it, see :mod:`lossd.compiled.memory`."""
    return 2 if dtype == "float64" else 1


def words_of_all(columns: Iterable[Column]) -> int | None:
    """Return the float32 words of a number of these inputs; None unless all are floats with the same."""
    dtypes = {column.dtype for column in columns}
    words = set(map(words_of, dtypes))
    return words.pop() if dtypes <= set(FLOATS) and len(words) == 1 else None


def prediction_and_target(recipe: Recipe, besides: Sequence[str] = ()) -> tuple[Column, Column] | None:
    """Return the columns of prediction and target; None if there are other inputs than these and ``besides``."""
    columns = [column for column in recipe.inputs if column.name not in besides]
    return (columns[0], columns[1]) if [column.name for column in columns] == ["prediction", "target"] else None


def floor_of(recipe: Recipe) -> float:
    """Return the least second derivative that a request wants; -inf for none."""
    floor = recipe.hessian_options.get("floor")
    return -math.inf if floor is None else float(floor)


def flat(numbers: Array) -> Array:
    """Return numbers as kernels take them: flat, as float32 words."""
    return numbers.reshape(-1).view(np.float32)


def doubt_what_left_range(words: int, norms: Array, gradient: Array, starts: Array, doubtful: Array) -> None:
    """Doubt norms, computed in float64, of gradients that have left the range of their dtype.

    Args:
        words: The float32 words of a number of the gradient.
        norms: As for :func:`doubt_what_vanished`.
        gradient: As there.
        starts: As there.
        doubtful: As there.
    """
    if words == 1:
        doubtful |= norms > LARGEST_FLOAT32
    else:
        doubt_what_vanished(norms, gradient, starts, doubtful)


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
