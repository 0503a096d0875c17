"""Losses of one prediction and one target each: value, gradient and norm in one pass, and what metrics are made of.

Everything between the inputs and the gradient is float64, whatever they are; each request is walked by itself, so that
its neighbours cannot change a bit of its answer.
"""

from __future__ import annotations

import math
from typing import Any

from lossd.compiled.arithmetic import compiled, faded, inlined, log1p_exp, sigmoid

__all__ = ["KINDS", "decisions", "elements", "errors"]

KINDS = ("mse", "mae", "huber", "smooth_l1", "log_cosh", "quantile", "bce_with_logits", "sigmoid_focal")
MSE, MAE, HUBER, SMOOTH_L1, LOG_COSH, QUANTILE, BCE, FOCAL = range(len(KINDS))
LN_2 = math.log(2)


@inlined
def _of_error(kind: int, e: float, a: float) -> tuple[float, float]:
    """A regression loss of an error, with its slope; ``a`` is its parameter."""
    size = abs(e)
    sign = 1.0 if e > 0 else -1.0 if e < 0 else e
    if kind == MSE:
        return e * e, 2 * e
    if kind == MAE:
        return size, sign
    if kind == HUBER:
        return (0.5 * e * e, e) if size <= a else (a * (size - 0.5 * a), a * sign)
    if kind == SMOOTH_L1:
        return (0.5 * e * e / a, e / a) if size < a else (size - 0.5 * a, sign)
    if kind == QUANTILE:
        return (1 - a) * e if e > 0 else -a * e, 1 - a if e > 0 else -a if e < 0 else e
    if size < 1:
        s = math.sinh(0.5 * e)
        return math.log1p(2 * s * s), math.tanh(e)
    return size + math.log1p(math.exp(-2 * size)) - LN_2, math.tanh(e)


@inlined
def _of_logit(kind: int, z: float, t: float, gamma: float, yes: float, no: float) -> tuple[float, float]:
    """A loss of a logit, with its slope; ``yes`` and ``no`` are the factors of positives and of negatives."""
    p, rest = sigmoid(z), sigmoid(-z)
    entropy = t * log1p_exp(-z) + (1 - t) * log1p_exp(z)
    positive, negative = rest * t, p * (1 - t)
    if kind == BCE:
        return entropy, negative - positive
    wrong = positive + negative
    if wrong == 0:
        return (entropy, 0.0) if gamma == 0 else (0.0, 0.0)
    fade = faded(wrong, gamma) * (yes * t + no * (1 - t))
    return fade * entropy, fade * ((1 - 2 * t) * entropy * gamma / wrong * p * rest + negative - positive)


@compiled(
    *(
        f"void(int64, {float_}[:,::1], {float_}[:,::1], int64[::1], float64[::1], float64[::1], float64[::1], boolean, "
        f"{float_}[:,::1], float64[:,::1], boolean[::1])"
        for float_ in ("float32", "float64")
    )
)
def elements(
    kind: int,
    prediction: Any,
    target: Any,
    starts: Any,
    a: Any,
    yes: Any,
    no: Any,
    mean: bool,
    gradient: Any,
    columns: Any,
    doubtful: Any,
) -> None:
    """One value per element.

    Args:
        kind: The loss, a place in ``KINDS``.
        prediction: (R, I).
        target: (R, I); in [0, 1] where predictions are logits.
        starts: (B + 1,) the first row of each request, and R.
        a: (B,) the parameter: delta, beta, q or gamma.
        yes: (B,) the factor of positives.
        no: (B,) the factor of negatives.
        mean: Whether the loss is the mean, else the sum.
        gradient: (R, I), written; (0, I) where it is not wanted.
        columns: (5, B), written: loss, numerator, denominator, count of elements, norm of the gradient.
        doubtful: (B,), set for requests that a number out of range or not finite keeps from an answer; whatever was
            written for those means nothing.
    """
    width = prediction.shape[1]
    slopes = gradient.shape[0] > 0
    for b in range(starts.shape[0] - 1):
        size = (starts[b + 1] - starts[b]) * width
        upstream = 1.0 / size if mean else 1.0
        numerator, square = 0.0, 0.0
        for i in range(starts[b], starts[b + 1]):
            for j in range(width):
                p, t = float(prediction[i, j]), float(target[i, j])
                if kind >= BCE:
                    if not (0 <= t <= 1 and math.isfinite(p)):
                        numerator = math.nan
                    value, slope = _of_logit(kind, p, t, a[b], yes[b], no[b])
                else:
                    if not math.isfinite(t):
                        numerator = math.nan
                    value, slope = _of_error(kind, p - t, a[b])
                numerator += value
                if slopes:
                    gradient[i, j] = slope * upstream
                    square += float(gradient[i, j]) * float(gradient[i, j])
        columns[0, b] = numerator * upstream
        columns[1, b] = numerator
        columns[2, b] = columns[3, b] = size
        columns[4, b] = math.sqrt(square)
        doubtful[b] = not (math.isfinite(numerator) and math.isfinite(square))


@compiled(
    *(
        f"void({float_}[:,::1], {float_}[:,::1], int64[::1], float64[:,::1], float64[::1], float64[::1], boolean[::1])"
        for float_ in ("float32", "float64")
    )
)
def errors(prediction: Any, target: Any, starts: Any, sums: Any, largest: Any, spread: Any, constant: Any) -> None:
    """What the metrics of the task regression are made of.

    Args:
        prediction: (R, I).
        target: (R, I), finite.
        starts: (B + 1,).
        sums: (B, 5), written: sums of the errors, of their sizes, of their squares, of predictions and of targets.
        largest: (B,), written: the largest size of an error.
        spread: (B,), written: the sum of the squared distances of the targets from their mean.
        constant: (B,), written: whether all targets are the same number.
    """
    width = prediction.shape[1]
    for b in range(starts.shape[0] - 1):
        first, last = starts[b], starts[b + 1]
        e_sum, size_sum, square_sum, p_sum, t_sum, most = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        low = high = float(target[first, 0])
        for i in range(first, last):
            for j in range(width):
                p, t = float(prediction[i, j]), float(target[i, j])
                e = p - t
                size = abs(e)
                e_sum += e
                size_sum += size
                square_sum += e * e
                p_sum += p
                t_sum += t
                most = max(most, size)
                low, high = min(low, t), max(high, t)
        middle, distance = t_sum / ((last - first) * width), 0.0
        for i in range(first, last):
            for j in range(width):
                d = float(target[i, j]) - middle
                distance += d * d
        sums[b, 0], sums[b, 1], sums[b, 2], sums[b, 3], sums[b, 4] = e_sum, size_sum, square_sum, p_sum, t_sum
        largest[b], spread[b], constant[b] = most, distance, low == high


@compiled(
    *(
        f"void({float_}[:,:,::1], {float_}[:,:,::1], int64[::1], float64, int64[:,:,::1])"
        for float_ in ("float32", "float64")
    )
)
def decisions(scores: Any, target: Any, starts: Any, least: float, cells: Any) -> None:
    """What the metrics of yes and no are made of.

    Args:
        scores: (R, K, I).
        target: (R, K, I); positive from 0.5 on.
        starts: (B + 1,).
        least: The least score that is decided to be positive.
        cells: (B, K, 4), counted up: true and false positives, false and true negatives.
    """
    for b in range(starts.shape[0] - 1):
        for i in range(starts[b], starts[b + 1]):
            for k in range(scores.shape[1]):
                for j in range(scores.shape[2]):
                    said, so = scores[i, k, j] >= least, target[i, k, j] >= 0.5
                    cells[b, k, (0 if so else 1) if said else (2 if so else 3)] += 1
