"""Cross-entropy and focal loss of dense predictions: class scores at every position of a row, as of an image's pixels.

The scores of one position lie far apart in memory. So positions are evaluated in strips that fit the cache of a core,
class by class, and large requests in parts that several threads share.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lossd.compiled import strips
from lossd.compiled.arithmetic import exp, squares_of
from lossd.compiled.kernels import aot
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


@aot(
    "void({0}[:,:,::1], int64[:,::1], int64, int64, int64, int64, float64, float64[::1], float64[::1], "
    "int64, float64, {0}[:,:,::1], float64[::1], int64[:,::1])",
    "float32",
    "float64",
)
def part(
    scores: Any,
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
        scores: (R, C, I).
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
        gradient: (R, C, I), written; (0, C, I) if it is not computed.
        sums: (2,); the numerator and the square of the gradient are added.
        matrix: (C, C), to which the pairs of target and highest score are added; (0, C) if it is not computed.
    """
    classes = scores.shape[1]
    power, lanes = np.empty((classes, STRIP)), np.empty(strips.LANES * STRIP)
    top, others, pull = lanes[strips.TOP :], lanes[strips.OTHERS :], lanes[strips.PULL :]
    best, label = np.empty(STRIP, np.int64), np.empty(STRIP, np.int64)
    slopes, counts = gradient.shape[0] > 0, matrix.shape[0] > 0
    numerator, square = 0.0, 0.0
    for i in range(first_row, last_row):
        for start in range(first, last, STRIP):
            width = min(STRIP, last - start)
            targets = target[i, start : start + width]
            strips.mark_targets(targets, ignored, weight, scale, label, lanes)
            for j in range(width):
                top[j] = scores[i, 0, start + j]
                best[j] = 0
                others[j] = 0.0
            for c in range(1, classes):
                row = scores[i, c, start : start + width]
                for j in range(width):
                    higher = row[j] > top[j]
                    top[j] = row[j] if higher else top[j]
                    best[j] = c if higher else best[j]
            for j in range(width):
                lanes[strips.BEHIND + j] = top[j] - scores[i, label[j], start + j]
            for c in range(classes):
                row, powers = scores[i, c, start : start + width], power[c]
                for j in range(width):
                    powers[j] = exp(row[j] - top[j])
                for j in range(width):
                    others[j] += 0.0 if label[j] == c else powers[j]
            strips.target_probability(width, power, label, best, lanes)
            numerator += strips.evaluate(width, gamma, upstream, lanes)
            if counts:
                strips.count(targets, ignored, best, matrix)
            if slopes:
                for c in range(classes):
                    row, powers = gradient[i, c, start : start + width], power[c]
                    for j in range(width):
                        row[j] = pull[j] * (-others[j] if label[j] == c else powers[j])
                    square += squares_of(row)
    sums[0] += numerator
    sums[1] += square
