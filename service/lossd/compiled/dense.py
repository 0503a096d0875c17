"""Cross-entropy and focal loss of dense predictions: class scores at every position of a row, as of an image's pixels.

The scores of one position lie far apart in memory. So positions are evaluated in strips that fit the cache of a core,
class by class, and large requests in parts that several threads share.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lossd.compiled import strips
from lossd.compiled.arithmetic import jit
from lossd.compiled.kernels import aot
from lossd.compiled.memory import read, squares_at, store
from lossd.compiled.strips import STRIP

__all__ = ["PART", "part", "weigh"]

PART = 1 << 16
"""Positions in a part. It is fixed, so that the sums of a request do not depend on the number of threads."""


@aot("void(int64[:,::1], int64[::1], float64[::1], int64, float64[:,::1], boolean[::1])")
def weigh(target: Any, starts: Any, weight: Any, ignored: int, columns: Any, doubtful: Any) -> None:
    """Check the targets of each request, and compute the denominator of its mean.

    Args:
        target: (R, I) class indices.
        starts: (B + 1,) the first row of each request, and R.
        weight: (C,) class weights.
        ignored: The target that does not count.
        columns: (5, B); written are the third row, the denominator, and the fourth, the number of positions that count.
        doubtful: (B,), set if a target is out of range.
    """
    for b in range(starts.shape[0] - 1):
        denominator, count = 0.0, 0
        for i in range(starts[b], starts[b + 1]):
            for j in range(target.shape[1]):
                k = target[i, j]
                if k != ignored:
                    if k < 0 or k >= weight.shape[0]:
                        doubtful[b] = True
                        break
                    denominator += weight[k]
                    count += weight[k] != 0
        columns[2, b], columns[3, b] = denominator, count


@jit
def _write(lanes: Any, label: Any, c: int, powers: Any, first: int, words: int, width: int, gradient: Any) -> None:
    """Write the gradients of one class from an index on."""
    others, pull = lanes[strips.OTHERS :], lanes[strips.PULL :]
    for j in range(width):
        store(gradient, first + j, words, pull[j] * (-others[j] if label[j] == c else powers[j]))


@aot(
    "void(float32[::1], int64, int64[:,::1], int64, int64, int64, int64, float64, float64[::1], float64[::1], "
    "int64, float64, float32[::1], float64[::1], int64[:,::1])"
)
def part(
    scores: Any,
    words: int,
    target: Any,
    first_row: int,
    last_row: int,
    first: int,
    last: int,
    gamma: float,
    weight: Any,
    scale: Any,
    ignored: int,
    upstream: float,
    gradient: Any,
    sums: Any,
    matrix: Any,
) -> None:
    """Evaluate some positions of one request.

    Args:
        scores: (R * C * I * words,), see :mod:`lossd.compiled.memory`.
        words: The float32 words of a score, and of a number of the gradient.
        target: (R, I) class indices, in range or ignored.
        first_row: The first row.
        last_row: The row after the last.
        first: The first position in each row.
        last: The position after the last.
        gamma: The focal exponent; 0 for cross-entropy.
        weight: (C,) class weights.
        scale: (C,) factors that do not divide.
        ignored: The target that does not count.
        upstream: The factor of the gradients.
        gradient: (R * C * I * words,), written; (0,) if it is not computed.
        sums: (2,); the numerator and the square of the gradient are added.
        matrix: (C, C), to which the pairs of target and highest score are added; (0, C) if it is not computed.
    """
    classes, positions = weight.shape[0], target.shape[1]
    power, lanes = np.empty((classes, STRIP)), np.empty(strips.LANES * STRIP)
    best, label = np.empty(STRIP, np.int64), np.empty(STRIP, np.int64)
    numerator, square = 0.0, 0.0
    for i in range(first_row, last_row):
        for start in range(first, last, STRIP):
            width = min(STRIP, last - start)
            targets = target[i, start : start + width]
            for c in range(classes):
                read(scores, (i * classes + c) * positions + start, words, power[c, :width])
            numerator += strips.losses(targets, gamma, upstream, weight, scale, ignored, power, lanes, best, label)
            if matrix.shape[0]:
                strips.count(targets, ignored, best, matrix)
            if gradient.shape[0]:
                for c in range(classes):
                    at = (i * classes + c) * positions + start
                    _write(lanes, label, c, power[c], at, words, width, gradient)
                    square += squares_at(gradient, at, words, width)
    sums[0] += numerator
    sums[1] += square
