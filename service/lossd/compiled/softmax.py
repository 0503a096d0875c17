"""Cross-entropy and focal loss of class scores: target check, value, gradient, norm and confusion matrix in one pass.

Everything between the scores and the gradient is float64. Each request is computed separately, so that its neighbours
cannot change a bit of its answer.

There are two kernels. ``rows`` is for few classes: it transposes a strip of rows to class by class, and its vector
instructions work across rows. That takes a third less time than row by row for M of the benchmarks. ``single_rows`` is
for many classes and for smoothed targets: it works along each row. At 64 classes both take as long. They are two
kernels so that the most used one is compiled first, which takes 26 % less than one kernel of both.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lossd.compiled import strips
from lossd.compiled.arithmetic import exp, focal, jit, jit_expand, maximum, squares_of, total_of
from lossd.compiled.kernels import aot
from lossd.compiled.strips import STRIP

__all__ = ["FEW", "rows", "single_rows"]

FEW = 48
"""The most classes that go in strips; at 64, a row by itself takes as long."""

_SIGNATURE = (
    "void({0}[:,::1], int64[::1], int64[::1], float64[::1], float64[::1], float64[::1], float64[::1], "
    "int64, boolean, {0}[:,::1], float64[:,::1], int64[:,:,::1], boolean[::1])"
)
"""The arguments of both kernels, see :func:`rows`."""


@jit_expand
def _in_strips(
    scores: Any,
    target: Any,
    gamma: float,
    upstream: float,
    weight: Any,
    scale: Any,
    ignored: int,
    gradient: Any,
    matrix: Any,
    power: Any,
) -> tuple[float, float]:
    """Return the numerator of one request's loss, and the square of its gradient.

    Args:
        scores: (R, C).
        target: (R,), in range or ignored.
        gamma: See :func:`rows`.
        upstream: The factor of the gradients.
        weight: See :func:`rows`.
        scale: See :func:`rows`.
        ignored: See :func:`rows`.
        gradient: (R, C), written; (0, C) if it is not computed.
        matrix: (1, C, C), to which counts are added; (0, C, C) if it is not computed.
        power: (C, STRIP), scratch.
    """
    classes = scores.shape[1]
    lanes = np.empty(strips.LANES * STRIP)
    top, others, pull = lanes[strips.TOP :], lanes[strips.OTHERS :], lanes[strips.PULL :]
    best, label = np.empty(STRIP, np.int64), np.empty(STRIP, np.int64)
    numerator, square = 0.0, 0.0
    for start in range(0, scores.shape[0], STRIP):
        width = min(STRIP, scores.shape[0] - start)
        targets = target[start : start + width]
        strips.mark_targets(targets, ignored, weight, scale, label, lanes)
        for j in range(width):
            for c in range(classes):
                power[c, j] = scores[start + j, c]
        for j in range(width):
            top[j] = power[0, j]
            best[j] = 0
            others[j] = 0.0
        for c in range(1, classes):
            row = power[c]
            for j in range(width):
                higher = row[j] > top[j]
                top[j] = row[j] if higher else top[j]
                best[j] = c if higher else best[j]
        for j in range(width):
            lanes[strips.BEHIND + j] = top[j] - power[label[j], j]
        for c in range(classes):
            row = power[c]
            for j in range(width):
                row[j] = exp(row[j] - top[j])
            for j in range(width):
                others[j] += 0.0 if label[j] == c else row[j]
        strips.target_probability(width, power, label, best, lanes)
        numerator += strips.evaluate(width, gamma, upstream, lanes)
        if matrix.shape[0]:
            strips.count(targets, ignored, best, matrix[0])
        if gradient.shape[0]:
            for c in range(classes):
                row = power[c]
                for j in range(width):
                    row[j] = pull[j] * (-others[j] if label[j] == c else row[j])
            for j in range(width):
                slopes = gradient[start + j]
                for c in range(classes):
                    slopes[c] = power[c, j]
                square += squares_of(slopes)
    return numerator, square


@jit_expand
def _row_by_row(
    scores: Any,
    target: Any,
    gamma: float,
    smoothing: float,
    upstream: float,
    weight: Any,
    scale: Any,
    ignored: int,
    gradient: Any,
    matrix: Any,
    power: Any,
) -> tuple[float, float]:
    """Return the same as :func:`_in_strips`, row by row and with smoothing; ``power`` is (C,)."""
    classes = scores.shape[1]
    even, spread = smoothing / classes, 0.0
    for c in range(classes):
        spread += weight[c]
    numerator, square = 0.0, 0.0
    for i in range(scores.shape[0]):
        k = target[i]
        if k == ignored:
            if gradient.shape[0]:
                for c in range(classes):
                    gradient[i, c] = 0
            continue
        highest = maximum(scores[i])
        best = 0
        while best < classes and scores[i, best] != highest:
            best += 1
        if best == classes:  # the highest is NaN, and no class's
            return math.nan, math.nan
        top = np.float64(highest)
        for c in range(classes):
            power[c] = exp(scores[i, c] - top)
        target_power = power[k]
        power[k] = 0.0
        others = total_of(power)
        power[k] = target_power
        total = others + target_power
        norm = math.log(total) + top
        nll = norm - scores[i, k]
        if best == k:
            nll = math.log1p(others / power[k])
        if matrix.shape[0]:
            matrix[0, k, best] += 1
        if even == 0:
            fade, slope = focal(power[k], others, nll, gamma)
            factor = weight[k] * scale[k]
            numerator += factor * fade * nll
            pull = factor * slope * upstream
            if gradient.shape[0]:
                for c in range(classes):
                    gradient[i, c] = power[c] * (pull / total)
                gradient[i, k] = -pull * (others / total)
        else:
            target_weight = (1 - even * classes) * weight[k]
            value = target_weight * nll
            for c in range(classes):
                if weight[c] != 0:
                    value += even * weight[c] * (norm - scores[i, c])
            numerator += value
            if gradient.shape[0]:
                pull = (target_weight + even * spread) / total
                for c in range(classes):
                    gradient[i, c] = (power[c] * pull - even * weight[c]) * upstream
                gradient[i, k] = (power[k] * pull - even * weight[k] - target_weight) * upstream
        if gradient.shape[0]:
            square += squares_of(gradient[i])
    return numerator, square


@jit
def _denominator_of(target: Any, weight: Any, ignored: int) -> tuple[float, int]:
    """Return the denominator of one request's mean, and how many rows count; -1 if a target is not a class."""
    denominator, count = 0.0, 0
    for i in range(target.shape[0]):
        k = target[i]
        if k == ignored:
            continue
        if k < 0 or k >= weight.shape[0]:
            return 0.0, -1
        denominator += weight[k]
        count += weight[k] != 0
    return denominator, count


@jit
def _upstream_of(denominator: float, mean: bool) -> float:
    """Return the factor of the gradients."""
    if mean:
        return 1.0 / denominator if denominator > 0 else 0.0
    return 1.0


@jit
def _note(
    b: int, numerator: float, denominator: float, count: int, square: float, mean: bool, columns: Any, doubtful: Any
) -> None:
    """Write the results of a request; mark it doubtful if they are not finite."""
    columns[0, b] = numerator * _upstream_of(denominator, mean)
    columns[1, b] = numerator
    columns[2, b] = denominator
    columns[3, b] = count
    columns[4, b] = math.sqrt(square)
    doubtful[b] = not (math.isfinite(numerator) and math.isfinite(square))


@aot(_SIGNATURE, "float32", "float64")
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
    """Evaluate rows of at most ``FEW`` classes; requests with smoothing are left to :func:`single_rows`.

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
        gradient: (R, C), written; (0, C) if it is not computed.
        columns: (5, B), written: loss, numerator, denominator, count of rows that count, norm of the gradient.
        matrices: (B, C, C), to which the pairs of target and highest score are added; (0, C, C) if not computed.
        doubtful: (B,), set for requests with a target out of range or a number that is not finite. Their other results
            are meaningless.
    """
    power = np.empty((scores.shape[1], STRIP))
    for b in range(starts.shape[0] - 1):
        if smoothing[b] != 0:
            continue
        first, last = starts[b], starts[b + 1]
        of_request = target[first:last]
        denominator, count = _denominator_of(of_request, weight, ignored)
        if count < 0:
            doubtful[b] = True
            continue
        numerator, square = _in_strips(
            scores[first:last], of_request, gamma[b], _upstream_of(denominator, mean), weight, scale, ignored,
            gradient[first:last], matrices[b : b + 1], power,
        )  # fmt: skip
        _note(b, numerator, denominator, count, square, mean, columns, doubtful)


@aot(_SIGNATURE, "float32", "float64")
def single_rows(
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
    """Evaluate the requests that :func:`rows` leaves: those with smoothing, and those of more classes."""
    classes = scores.shape[1]
    power = np.empty(classes)
    for b in range(starts.shape[0] - 1):
        if smoothing[b] == 0 and classes <= FEW:
            continue
        first, last = starts[b], starts[b + 1]
        of_request = target[first:last]
        denominator, count = _denominator_of(of_request, weight, ignored)
        if count < 0:
            doubtful[b] = True
            continue
        numerator, square = _row_by_row(
            scores[first:last], of_request, gamma[b], smoothing[b], _upstream_of(denominator, mean), weight, scale,
            ignored, gradient[first:last], matrices[b : b + 1], power,
        )  # fmt: skip
        _note(b, numerator, denominator, count, square, mean, columns, doubtful)
