"""Cross-entropy and focal loss of class scores: target check, value, gradient, norm and confusion matrix in one pass.

Everything between the scores and the gradient is float64, whatever they are; each request is walked by itself, so that
its neighbours cannot change a bit of its answer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lossd.compiled.arithmetic import compiled, exp, focal, maximum, squares_of, total_of

__all__ = ["rows"]


@compiled(
    *(
        f"void({float_}[:,::1], int64[::1], int64[::1], float64[::1], float64[::1], float64[::1], float64[::1], "
        f"int64, boolean, {float_}[:,::1], float64[:,::1], int64[:,:,::1], boolean[::1])"
        for float_ in ("float32", "float64")
    )
)
def rows(
    scores: Any,
    target: Any,
    starts: Any,
    gamma: Any,
    smoothing: Any,
    weight: Any,
    scale: Any,
    ignored: int,
    mean: bool,
    gradient: Any,
    columns: Any,
    matrices: Any,
    doubtful: Any,
) -> None:
    """One class per row.

    Args:
        scores: (R, C).
        target: (R,) class indices.
        starts: (B + 1,) the first row of each request, and R.
        gamma: (B,) the focal exponent; 0 for cross-entropy.
        smoothing: (B,) the share of the target that is spread over all classes; 0 with a focal exponent.
        weight: (C,) class weights.
        scale: (C,) factors that do not divide.
        ignored: The target that does not count; -1 - 2**62 for none.
        mean: Whether the loss is the mean, else the sum.
        gradient: (R, C), written; (0, C) where it is not wanted.
        columns: (5, B), written: loss, numerator, denominator, count of rows that count, norm of the gradient.
        matrices: (B, C, C), counted up: target by highest score; (0, C, C) where it is not wanted.
        doubtful: (B,), set for requests that a target out of range or a number that is not finite keeps from an answer;
            whatever was written for those means nothing.
    """
    classes = scores.shape[1]
    power = np.empty(classes)
    slopes, counts = gradient.shape[0] > 0, matrices.shape[0] > 0
    spread = 0.0
    for c in range(classes):
        spread += weight[c]
    for b in range(starts.shape[0] - 1):
        first, last = starts[b], starts[b + 1]
        denominator, count = 0.0, 0
        for i in range(first, last):
            k = target[i]
            if k == ignored:
                continue
            if k < 0 or k >= classes:
                doubtful[b] = True
                break
            denominator += weight[k]
            count += weight[k] != 0
        if doubtful[b]:
            continue
        upstream = 1.0
        if mean:
            upstream = 1.0 / denominator if denominator > 0 else 0.0
        even = smoothing[b] / classes
        numerator, square = 0.0, 0.0
        for i in range(first, last):
            k = target[i]
            if k == ignored:
                if slopes:
                    for c in range(classes):
                        gradient[i, c] = 0
                continue
            highest = maximum(scores[i])
            best = 0
            while best < classes and scores[i, best] != highest:
                best += 1
            if best == classes:  # the highest is NaN, and no class's
                doubtful[b] = True
                break
            top = np.float64(highest)
            for c in range(classes):
                power[c] = exp(scores[i, c] - top)
            own_power = power[k]
            power[k] = 0.0
            others = total_of(power)
            power[k] = own_power
            total = others + own_power
            norm = math.log(total) + top
            nll = norm - scores[i, k]
            if best == k:
                nll = math.log1p(others / power[k])
            if counts:
                matrices[b, k, best] += 1
            if even == 0:
                fade, slope = focal(power[k], others, nll, gamma[b])
                factor = weight[k] * scale[k]
                numerator += factor * fade * nll
                pull = factor * slope * upstream
                if slopes:
                    for c in range(classes):
                        gradient[i, c] = power[c] * (pull / total)
                    gradient[i, k] = -pull * (others / total)
            else:
                own = (1 - even * classes) * weight[k]
                value = own * nll
                for c in range(classes):
                    if weight[c] != 0:
                        value += even * weight[c] * (norm - scores[i, c])
                numerator += value
                if slopes:
                    pull = (own + even * spread) / total
                    for c in range(classes):
                        gradient[i, c] = (power[c] * pull - even * weight[c]) * upstream
                    gradient[i, k] = (power[k] * pull - even * weight[k] - own) * upstream
            if slopes:
                square += squares_of(gradient[i])
        columns[0, b] = numerator * upstream
        columns[1, b] = numerator
        columns[2, b] = denominator
        columns[3, b] = count
        columns[4, b] = math.sqrt(square)
        if not (math.isfinite(numerator) and math.isfinite(square)):
            doubtful[b] = True
