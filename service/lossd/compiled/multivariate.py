"""Losses of rows of several numbers: scores of classes, quantiles, members of an ensemble, documents of a query.

Each loss is a function of the numbers of one row, in float64. It writes their gradient and returns the value, or NaN if
a number is out of range, or if the general way has something to say about the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lossd.compiled.arithmetic import exp, jit, jit_apart, maximum, one_of, total_of
from lossd.compiled.formulas import rounded, surprise
from lossd.compiled.kernels import aot
from lossd.compiled.memory import borrowed, load, squares_at, store

__all__ = ["MOST_MEMBERS", "MOST_STRIDES", "ROW_LOSSES", "multivariate"]

MOST_MEMBERS = 256
"""The most members of an ensemble: each is compared with each, which takes longer than to sort more of them."""

MOST_STRIDES = 64
"""The most numbers of a row that lie apart: these many lines of memory stay in a core's first cache."""

IMPROPER = 0.0099
"""How far from 1 probabilities may add up to, and how far below 0 their divergence, before the general way warns."""

ROW_LOSSES: dict[str, int] = {}
"""Every loss of this module by name, with the number by which the kernel chooses it."""

_rows: list[Any] = []


def row_loss(name: str) -> Callable[[Any], Any]:
    """Declare a loss by a function of one row.

    Its arguments: the numbers of the first input, (K,), and of the second; the class of the row; the numbers that all
    rows share; two parameters; the float32 words of the first input; the slopes to write and scratch, (K,) each.
    """

    def declare(function: Any) -> Any:
        ROW_LOSSES[name] = len(_rows)
        _rows.append(jit_apart(function))
        return _rows[-1]

    return declare


@jit_apart
def _softmax(scores: Any, factor: float, power: Any) -> tuple[float, float]:
    """Write the exponentials of scores times a positive factor less the highest; return the highest and their sum."""
    top = maximum(scores)
    for c in range(scores.shape[0]):
        power[c] = exp((scores[c] - top) * factor)
    return top, total_of(power)


@row_loss("distillation")
def _distillation(
    x: Any, teacher: Any, k: int, shared: Any, temperature: float, alpha: float, _: int, slopes: Any, power: Any
) -> float:
    classes, value = x.shape[0], 0.0
    if k >= classes or k < shared[1]:  # -1 if there is no target
        return math.nan
    top, total = _softmax(x, 1 / temperature, slopes)
    highest, of_teacher = _softmax(teacher, 1 / temperature, power)
    norm = math.log(total) - math.log(of_teacher)
    scale = alpha * (temperature * temperature if shared[0] != 0 else 1.0)
    for c in range(classes):
        share = power[c] / of_teacher
        if share > 0 and alpha > 0:
            value += scale * share * (((teacher[c] - highest) - (x[c] - top)) / temperature + norm)
        slopes[c] = scale * (slopes[c] / total - share) / temperature if alpha > 0 else 0.0
    if alpha < 1:
        if k < 0:
            return math.nan
        top, total = _softmax(x, 1.0, power)
        others = 0.0
        for c in range(classes):
            if c != k:
                others += power[c]
                slopes[c] += (1 - alpha) * (power[c] / total)
        slopes[k] -= (1 - alpha) * (others / total)
        value += (1 - alpha) * (math.log1p(others / power[k]) if x[k] == top else math.log(total) + top - x[k])
    return value


@row_loss("list_net")
def _list_net(
    x: Any, grades: Any, _: int, __: Any, ___: float, ____: float, _____: int, slopes: Any, power: Any
) -> float:
    top, total = _softmax(x, 1.0, slopes)
    of_grades = _softmax(grades, 1.0, power)[1]
    norm, value, within = math.log(total), 0.0, True
    for i in range(x.shape[0]):
        within &= (grades[i] >= 0) & (grades[i] < math.inf)
        share = power[i] / of_grades
        value += share * (norm + (top - x[i]))
        slopes[i] = slopes[i] / total - share
    return value if within else math.nan


@row_loss("ranknet")
def _ranknet(
    x: Any, grades: Any, _: int, __: Any, sigma: float, ___: float, ____: int, slopes: Any, _____: Any
) -> float:
    value, pairs, within = 0.0, 0, True
    for i in range(x.shape[0]):
        slopes[i] = 0.0
    for i in range(x.shape[0]):
        within &= (grades[i] >= 0) & (grades[i] < math.inf)
        for j in range(x.shape[0]):
            if grades[i] > grades[j]:
                lost, rest = surprise(sigma * (x[i] - x[j]))
                value += lost
                slopes[i] -= sigma * rest
                slopes[j] += sigma * rest
                pairs += 1
    pairs = pairs if pairs > 0 else 1
    for i in range(x.shape[0]):
        slopes[i] /= pairs
    return value / pairs if within else math.nan


@row_loss("kl_div")
def _kl_div(
    x: Any, target: Any, _: int, __: Any, ___: float, ____: float, _____: int, slopes: Any, ______: Any
) -> float:
    value, total, within = 0.0, 0.0, True
    for c in range(x.shape[0]):
        t = target[c]
        within &= (t >= 0) & (t <= 1)
        total += t
        value += t * (math.log(t) - x[c]) if t > 0 else 0.0
        slopes[c] = -t if t > 0 else 0.0
    return value if within and abs(total - 1) < IMPROPER and value > -IMPROPER else math.nan


@row_loss("quantiles")
def _quantiles(
    x: Any, target: Any, _: int, shares: Any, penalty: float, __: float, ___: int, slopes: Any, ____: Any
) -> float:
    count, value = x.shape[0], 0.0
    for k in range(count):
        e = x[k] - target[0]
        above, below = shares[k], shares[count + k]
        slope = above if e > 0 else -below
        value += slope * e
        slopes[k] = 0.0 if e == 0 else slope
    if penalty > 0:
        share = penalty / count
        for k in range(count - 1):
            if x[k] > x[k + 1]:
                value += share * (x[k] - x[k + 1])
                slopes[k] += share
                slopes[k + 1] -= share
    return value


@row_loss("crps_ensemble")
def _crps_ensemble(
    x: Any, target: Any, _: int, __: Any, pairs: float, ___: float, ____: int, slopes: Any, far: Any
) -> float:
    count, value = x.shape[0], 0.0
    for i in range(count):
        far[i] = x[i] - target[0]
    for i in range(count):
        member, rank = far[i], 0
        for j in range(count):
            rank += (far[j] < member) - (far[j] > member)
        value += abs(member) / count - rank * member / pairs
        slopes[i] = ((member > 0) - (member < 0)) / count - rank / pairs
    return value


@row_loss("multi_margin")
def _multi_margin(
    x: Any, _: Any, k: int, weights: Any, margin: float, power: float, words: int, slopes: Any, __: Any
) -> float:
    classes, value, pull = x.shape[0], 0.0, 0.0
    if k < 0 or k >= classes:
        return math.nan
    factor = weights[k] / classes
    # Scores that differ by the margin in their own dtype are at the bend.
    behind = rounded(rounded(margin, words) - x[k], words)
    for c in range(classes):
        short = rounded(behind + x[c], words)
        short = 0.0 if c == k or short <= 0 else short
        value += short if power == 1 else short * short
        slopes[c] = factor * (2 * short if power == 2 else 1.0 if short > 0 else 0.0)
        pull += slopes[c]
    slopes[k] = -pull
    return factor * value


@row_loss("multilabel_soft_margin")
def _multilabel_soft_margin(
    x: Any, target: Any, _: int, weights: Any, __: float, ___: float, ____: int, slopes: Any, _____: Any
) -> float:
    value, within = 0.0, True
    for c in range(x.shape[0]):
        sign = 2 * target[c] - 1
        within &= abs(sign) == 1
        lost, rest = surprise(sign * x[c])
        value += weights[c] * lost
        slopes[c] = -sign * weights[c] * rest / x.shape[0]
    return value / x.shape[0] if within else math.nan


_row = one_of(_rows, "x, y, k, shared, a, b, words, slopes, spare")


@jit
def _gather(memory: Any, first: int, step: int, words: int, numbers: Any) -> None:
    """Read numbers that lie a step apart."""
    for c in range(numbers.shape[0]):
        numbers[c] = load(memory, first + c * step, words)


@jit
def _scatter(slopes: Any, upstream: float, first: int, step: int, words: int, gradient: Any) -> None:
    """Write slopes times a factor a step apart."""
    for c in range(slopes.shape[0]):
        store(gradient, first + c * step, words, slopes[c] * upstream)


@aot(
    "void(int64, float32[::1], int64, float32[::1], int64, int64, int64[::1], int64[::1], int64, float64[::1], "
    "float64[::1], float64[::1], float64[::1], float32[::1], float64[:,::1], boolean[::1])"
)
def multivariate(
    kind: int,
    first: Any,
    words: int,
    second: Any,
    second_words: int,
    second_width: int,
    labels: Any,
    starts: Any,
    positions: int,
    shared: Any,
    a: Any,
    b: Any,
    upstream: Any,
    gradient: Any,
    columns: Any,
    doubtful: Any,
) -> None:
    """One value per row and position.

    Args:
        kind: The number of one of ``ROW_LOSSES``.
        first: (R * K * I * words,), see :mod:`lossd.compiled.memory`: rows, the numbers of a row, positions.
        words: The float32 words of a number of the first input and of the gradient.
        second: (R * L * I * second_words,); (0,) if the loss has no such input.
        second_words: The float32 words of a number of the second input.
        second_width: L, which is K or 1; 0 if the loss has no such input.
        labels: (R * I,) class indices; (0,) if the loss has none or the request sends none.
        starts: (B + 1,) the first row of each request, and R.
        positions: I.
        shared: Numbers that all rows share, what they mean depends on the loss.
        a: (B,) the first parameter.
        b: (B,) the second parameter.
        upstream: (B,) the factor of the gradients.
        gradient: (R * K * I * words,), written; (0,) where it is not wanted.
        columns: (2, B), written: numerator, norm of the gradient.
        doubtful: (B,), set for requests that the general way must answer.
    """
    width = first.shape[0] // (words * positions * starts[-1])
    memory, of_second = np.empty((3, width)), np.empty(second_width)
    x, slopes, spare = borrowed(memory[0]), borrowed(memory[1]), borrowed(memory[2])
    y, shared_second = borrowed(of_second), borrowed(shared)
    for r in range(starts.shape[0] - 1):
        numerator, square = 0.0, 0.0
        for i in range(starts[r], starts[r + 1]):
            for p in range(positions):
                at = i * width * positions + p
                _gather(first, at, positions, words, x)
                _gather(second, i * second_width * positions + p, positions, second_words, y)
                label = labels[i * positions + p] if labels.shape[0] else -1
                numerator += _row(kind, x, y, label, shared_second, a[r], b[r], words, slopes, spare)
                if gradient.shape[0]:
                    _scatter(slopes, upstream[r], at, positions, words, gradient)
        if gradient.shape[0]:
            per_row = width * positions
            square = squares_at(gradient, starts[r] * per_row, words, (starts[r + 1] - starts[r]) * per_row)
        columns[0, r], columns[1, r] = numerator, math.sqrt(square)
        doubtful[r] = not math.isfinite(numerator + square)
    memory[0, 0] = 0.0  # used here, so that neither is freed before
    if second_width:
        of_second[0] = 0.0
