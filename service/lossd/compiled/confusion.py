"""Confusion matrices of class scores, for the metrics of losses without a pass of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from lossd.compiled.arithmetic import jit
from lossd.compiled.kernels import aot
from lossd.compiled.memory import load
from lossd.compiled.strips import STRIP, count

__all__ = ["matrices"]


@jit
def _find_highest(
    scores: Any, words: int, first: int, classes: int, positions: int, top: Any, best: Any, width: int
) -> None:
    """Write the class with the highest score of some positions, the first of several; NaN is higher than any number."""
    for j in range(width):
        top[j], best[j] = load(scores, first + j, words), 0
    for c in range(1, classes):
        for j in range(width):
            score = load(scores, first + c * positions + j, words)
            higher = (score > top[j]) | ((score != score) & (top[j] == top[j]))
            top[j] = score if higher else top[j]
            best[j] = c if higher else best[j]


@aot("void(float32[::1], int64, int64[:,::1], int64[::1], int64, int64[:,:,::1])")
def matrices(scores: Any, words: int, target: Any, starts: Any, ignored: int, matrices: Any) -> None:
    """Count the confusion matrix of each request, target by predicted class.

    Args:
        scores: (R * C * I * words,), see :mod:`lossd.compiled.memory`.
        words: The float32 words of a score.
        target: (R, I) class indices, in range or ignored.
        starts: (B + 1,) the first row of each request, and R.
        ignored: The target that does not count.
        matrices: (B, C, C), counted up.
    """
    classes, positions = matrices.shape[1], target.shape[1]
    top, best = np.empty(STRIP), np.empty(STRIP, np.int64)
    for b in range(starts.shape[0] - 1):
        for i in range(starts[b], starts[b + 1]):
            for start in range(0, positions, STRIP):
                width = min(STRIP, positions - start)
                _find_highest(scores, words, i * classes * positions + start, classes, positions, top, best, width)
                count(target[i, start : start + width], ignored, best, matrices[b])
