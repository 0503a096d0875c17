"""Confusion matrices and predicted classes of class scores, for the metrics of losses without a pass of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from lossd.compiled.arithmetic import jit
from lossd.compiled.kernels import aot
from lossd.compiled.memory import load
from lossd.compiled.strips import STRIP, count

__all__ = ["highest", "matrices"]


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


@jit
def _highest(scores: Any, words: int, first: int, classes: int) -> int:
    """Return the class with the highest of scores that follow one another, as :func:`_find_highest` does."""
    top, best, numbers = load(scores, first, words), 0, True
    for c in range(classes):
        score = load(scores, first + c, words)
        numbers &= score == score
        best = c if score > top else best
        top = max(top, score)
    if not numbers:
        for c in range(classes):
            score = load(scores, first + c, words)
            if score != score:
                return c
    return best


@aot("void(float32[::1], int64, int64, int64[:,::1])")
def highest(scores: Any, words: int, classes: int, found: Any) -> None:
    """Find the class with the highest score, the first of several; NaN is higher than any number.

    Args:
        scores: (R * C * I * words,), see :mod:`lossd.compiled.memory`.
        words: The float32 words of a score.
        classes: The number C of classes.
        found: (R, I), written.
    """
    rows, positions = found.shape
    top = np.empty(STRIP)
    for i in range(rows):
        if positions == 1:
            found[i, 0] = _highest(scores, words, i * classes, classes)
            continue
        for start in range(0, positions, STRIP):
            width, first = min(STRIP, positions - start), i * classes * positions + start
            _find_highest(scores, words, first, classes, positions, top, found[i, start:], width)


@aot("void(float32[::1], int64, int64[:,::1], int64[::1], int64, int64[:,:,::1])")
def matrices(scores: Any, words: int, target: Any, starts: Any, ignored: int, matrices: Any) -> None:
    """Count confusion matrices, target by predicted class.

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
            if positions == 1:
                if target[i, 0] != ignored:
                    matrices[b, target[i, 0], _highest(scores, words, i * classes, classes)] += 1
                continue
            for start in range(0, positions, STRIP):
                width = min(STRIP, positions - start)
                _find_highest(scores, words, i * classes * positions + start, classes, positions, top, best, width)
                count(target[i, start : start + width], ignored, best, matrices[b])
