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
from lossd.compiled.arithmetic import exp, focal, jit, maximum, total_of
from lossd.compiled.kernels import aot
from lossd.compiled.memory import load, read, squares_at, store
from lossd.compiled.strips import STRIP

__all__ = ["FEW", "rows", "single_rows"]

FEW = 48
"""The most classes that go in strips; at 64, a row by itself takes as long."""

_SIGNATURE = (
    "void(float32[::1], int64, int64[::1], int64[::1], float64[::1], float64[::1], float64[::1], float64[::1], "
    "int64, boolean, float32[::1], float64[:,::1], int64[:,:,::1], boolean[::1]{})"
)
"""The arguments of both kernels, see :func:`rows`, and what only one takes."""


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


@jit
def _read_columns(scores: Any, row: int, words: int, target: Any, ignored: int, columns: Any) -> None:
    """Read (W, C) scores from a row on, transposed; 0 in place of those whose target is ignored, which may be NaN."""
    for j in range(target.shape[0]):
        if target[j] == ignored:
            columns[:, j] = 0.0
            continue
        for c in range(columns.shape[0]):
            columns[c, j] = load(scores, (row + j) * columns.shape[0] + c, words)


@jit
def _write_columns(columns: Any, row: int, words: int, width: int, square: float, gradient: Any) -> float:
    """Write (width, C) gradients from a row on, transposed; return ``square`` plus the sum of their squares."""
    classes = columns.shape[0]
    for j in range(width):
        for c in range(classes):
            store(gradient, (row + j) * classes + c, words, columns[c, j])
    for j in range(row, row + width):
        square += squares_at(gradient, j * classes, words, classes)
    return square


@jit
def _exponentials(row: Any, top: float, power: Any) -> None:
    """Write the exponentials of a row's scores less the highest."""
    for c in range(row.shape[0]):
        power[c] = exp(row[c] - top)


@jit
def _write_row(numbers: Any, factor: float, first: int, words: int, gradient: Any) -> None:
    """Write numbers times a factor from an index on."""
    for c in range(numbers.shape[0]):
        store(gradient, first + c, words, numbers[c] * factor)


@aot(_SIGNATURE.format(", float32[::1], float64[::1]"))
def rows(
    scores: Any,
    words: int,
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
    hessian: Any,
    form: Any,
) -> None:
    """Evaluate rows of at most ``FEW`` classes; requests with smoothing are left to :func:`single_rows`.

    Args:
        scores: (R * C * words,), see :mod:`lossd.compiled.memory`.
        words: The float32 words of a score, and of a number of the gradient.
        target: (R,) class indices.
        starts: (B + 1,) the first row of each request, and R.
        gamma: (B,) the focal exponent; 0 for cross-entropy.
        smoothing: (B,) the share of the target that is spread over all classes; 0 with a focal exponent.
        weight: (C,) class weights.
        scale: (C,) factors that do not divide.
        ignored: The target that does not count; -1 - 2**62 for none.
        mean: Whether the loss is the mean, else the sum.
        gradient: (R * C * words,), written; (0,) if it is not computed.
        columns: (5, B), written: loss, numerator, denominator, count of rows that count, norm of the gradient.
        matrices: (B, C, C), to which the pairs of target and highest score are added; (0, C, C) if not computed.
        doubtful: (B,), set for requests with a target out of range or a number that is not finite. Their other results
            are meaningless.
        hessian: (R * C * words,), written; (0,) if it is not computed. If it is, ``columns`` has a sixth row for the
            number of negative entries.
        form: (3,): the factor of the second derivatives of cross-entropy, whether those by the cross-entropy count, 1
            or 0, and the least second derivative, -inf for none.
    """
    classes = weight.shape[0]
    power, lanes = np.empty((classes, STRIP)), np.empty(strips.LANES * STRIP)
    others, pull = lanes[strips.OTHERS :], lanes[strips.PULL :]
    best, label = np.empty(STRIP, np.int64), np.empty(STRIP, np.int64)
    bend, second = np.zeros(STRIP), np.empty((classes if hessian.shape[0] else 0, STRIP))
    for b in range(starts.shape[0] - 1):
        if smoothing[b] != 0:
            continue
        denominator, count = _denominator_of(target[starts[b] : starts[b + 1]], weight, ignored)
        if count < 0:
            doubtful[b] = True
            continue
        upstream = _upstream_of(denominator, mean)
        numerator, square, negative = 0.0, 0.0, 0
        for start in range(starts[b], starts[b + 1], STRIP):
            end = min(start + STRIP, starts[b + 1])
            targets = target[start:end]
            _read_columns(scores, start, words, targets, ignored, power)
            numerator += strips.losses(targets, gamma[b], upstream, weight, scale, ignored, power, lanes, best, label)
            if matrices.shape[0]:
                strips.count(targets, ignored, best, matrices[b])
            if hessian.shape[0]:
                if gamma[b] != 0 and form[1] != 0:
                    strips.bends(end - start, gamma[b], upstream, lanes, bend)
                else:
                    bend[:] = 0.0
                negative += strips.seconds(
                    targets, ignored, weight, form[2] * upstream if form[2] > -math.inf else form[2], form[0],
                    power, lanes, best, label, bend, second,
                )  # fmt: skip
                _write_columns(second, start, words, end - start, 0.0, hessian)
            if gradient.shape[0]:
                for c in range(classes):
                    row = power[c]
                    for j in range(end - start):
                        row[j] = pull[j] * (-others[j] if label[j] == c else row[j])
                square = _write_columns(power, start, words, end - start, square, gradient)
        _note(b, numerator, denominator, count, square, mean, columns, doubtful)
        if hessian.shape[0]:
            columns[5, b] = negative


@aot(_SIGNATURE.format(""))
def single_rows(
    scores: Any,
    words: int,
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
    classes = weight.shape[0]
    row, power = np.empty(classes), np.empty(classes)
    spread = 0.0
    for c in range(classes):
        spread += weight[c]
    for b in range(starts.shape[0] - 1):
        if smoothing[b] == 0 and classes <= FEW:
            continue
        denominator, count = _denominator_of(target[starts[b] : starts[b + 1]], weight, ignored)
        if count < 0:
            doubtful[b] = True
            continue
        upstream, even = _upstream_of(denominator, mean), smoothing[b] / classes
        numerator, square = 0.0, 0.0
        for i in range(starts[b], starts[b + 1]):
            k, at = target[i], i * classes
            if k == ignored:
                if gradient.shape[0]:
                    gradient[at * words : (at + classes) * words] = 0
                continue
            read(scores, at, words, row)
            top = maximum(row)
            best = 0
            while best < classes and row[best] != top:
                best += 1
            if best == classes:  # the highest is NaN, and no class's
                numerator = math.nan
                break
            _exponentials(row, top, power)
            target_power = power[k]
            power[k] = 0.0
            others = total_of(power)
            power[k] = target_power
            total = others + target_power
            norm = math.log(total) + top
            nll = norm - row[k]
            if best == k:
                nll = math.log1p(others / target_power)
            if matrices.shape[0]:
                matrices[b, k, best] += 1
            if even == 0:
                fade, slope = focal(target_power, others, nll, gamma[b])
                factor = weight[k] * scale[k]
                numerator += factor * fade * nll
                pull = factor * slope * upstream
                of_class, of_target = pull / total, -pull * (others / total)
            else:
                target_weight = (1 - even * classes) * weight[k]
                value = target_weight * nll
                for c in range(classes):
                    if weight[c] != 0:
                        value += even * weight[c] * (norm - row[c])
                numerator += value
                pull = (target_weight + even * spread) / total
                for c in range(classes):
                    power[c] = (power[c] * pull - even * weight[c]) * upstream
                of_class, of_target = 1.0, (target_power * pull - even * weight[k] - target_weight) * upstream
            if gradient.shape[0]:
                _write_row(power, of_class, at, words, gradient)
                store(gradient, at + k, words, of_target)
                square += squares_at(gradient, at, words, classes)
        _note(b, numerator, denominator, count, square, mean, columns, doubtful)
