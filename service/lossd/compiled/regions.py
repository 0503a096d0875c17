"""The region losses: sums over each region first, then one value for each region, then the gradient of each position.

All are one formula, with numbers that say which: dice is the Tversky loss with half of its ``smooth`` and both weights
1/2, the Jaccard loss that with both weights 1. Large requests are evaluated in parts that several threads share, step
by step. Small ones take all steps in one call.

Probabilities of classes are kept in the memory of the gradient between the steps: an exponential takes longer than to
write and to read it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lossd.compiled.arithmetic import exp, jit_apart, jit_apart_reassociating
from lossd.compiled.kernels import aot
from lossd.compiled.memory import load, store
from lossd.compiled.strips import STRIP

__all__ = ["CLASSES", "PART", "ROWS", "SLOPES", "SUMS", "VALUES", "regions"]

PART = 1 << 16
"""Positions in a part. It is fixed, so that the sums of a request do not depend on the number of threads."""

SUMS, VALUES, SLOPES = 1, 2, 4
"""The steps."""

OVERLAP, PREDICTED, TARGET, COUNTED, SQUARE = range(5)
ROWS = 5
"""The rows of sums, and how many there are."""

ONE, WORDS, IMAGES, POSITIONS, SOFT, FOCAL, SKIPS, BY_IMAGE, MEAN = range(9)
"""What ``form`` says: whether each position has one class, the float32 words of a number, images and their positions,
whether scores are logits, whether there is an exponent, whether a region without a target does not count, whether each
image has regions of its own, and whether the loss is the mean."""

ALPHA, BETA, SMOOTH, GAMMA, TINY, IGNORED = range(6)
"""What ``numbers`` says of each request: the weights of false positives and of false negatives, what is added to
numerator and denominator, the exponent, how little of that makes the value of a region without a target noise, and the
target that does not count, NaN for none."""

CLASSES = 256
"""The most classes: a strip of all is to fit a core's cache."""

LARGEST = float(np.finfo(np.float64).max)

TOP, TOTAL, KEPT, TRUE, THERE, LOGIT, FIRST = range(7)
"""The rows of a strip's lanes: the highest score, sums over the classes, which positions count, targets as they are,
those of one region, logits; from ``FIRST`` on the scores of each class, which become probabilities, then gradients."""


@jit_apart
def _read(memory: Any, first: int, words: int, soft: int, lanes: Any, row: int, width: int) -> bool:
    """Read numbers from an index on, and return whether all are finite, or in [0, 1] unless ``soft``."""
    cells, within, lowest, highest = lanes[row], True, -LARGEST if soft else 0.0, LARGEST if soft else 1.0
    for j in range(width):
        cells[j] = load(memory, first + j, words)
    for j in range(width):
        within &= (cells[j] >= lowest) & (cells[j] <= highest)
    return within


@jit_apart_reassociating
def _write(lanes: Any, row: int, width: int, memory: Any, first: int, words: int) -> float:
    """Write numbers from an index on, and return the sum of the squares of what is in memory then."""
    cells, square = lanes[row], 0.0
    for j in range(width):
        store(memory, first + j, words, cells[j])
    for j in range(width):
        number = load(memory, first + j, words)
        square += number * number
    return square


@jit_apart
def _keep(ignored: float, highest: float, lanes: Any, width: int) -> bool:
    """Write which targets count, and 0 in place of the others; return whether those that count are in range."""
    true, kept, total, right = lanes[TRUE], lanes[KEPT], lanes[TOTAL], True
    for j in range(width):
        counts = true[j] != ignored
        kept[j], total[j] = 1.0 if counts else 0.0, 0.0
        true[j] = true[j] if counts else 0.0
        right &= (true[j] >= 0) & (true[j] <= highest)
    return right


@jit_apart
def _find_highest(lanes: Any, classes: int, width: int, best: Any) -> None:
    """Find the highest score, and its class, the first of several."""
    top = lanes[TOP]
    for c in range(classes):
        row = lanes[FIRST + c]
        for j in range(width):
            higher = (row[j] > top[j]) | (c == 0)
            top[j] = row[j] if higher else top[j]
            best[j] = c if higher else best[j]


@jit_apart
def _raise(lanes: Any, classes: int, width: int) -> None:
    """Replace scores by their exponentials less the highest, and write what each is to be multiplied with."""
    top, total, kept = lanes[TOP], lanes[TOTAL], lanes[KEPT]
    for c in range(classes):
        row = lanes[FIRST + c]
        for j in range(width):
            row[j] = exp(row[j] - top[j])
            total[j] += row[j]
    for j in range(width):
        total[j] = kept[j] / total[j]


@jit_apart
def _squash(lanes: Any, width: int) -> None:
    """Write the probabilities of logits, and in place of these their slopes, 0 where a position does not count."""
    cells, slopes, kept = lanes[FIRST], lanes[LOGIT], lanes[KEPT]
    for j in range(width):
        e = exp(-abs(slopes[j]))
        larger = 1.0 / (1.0 + e)
        p = larger if slopes[j] >= 0 else e * larger
        cells[j], slopes[j] = p, p * (1.0 - p) * kept[j]


@jit_apart
def _mark(c: int, lanes: Any, width: int) -> None:
    """Write which positions that count are of a class."""
    true, kept, there = lanes[TRUE], lanes[KEPT], lanes[THERE]
    for j in range(width):
        there[j] = kept[j] if true[j] == c else 0.0


@jit_apart
def _count(lanes: Any, width: int, best: Any, matrices: Any, b: int) -> None:
    """Count target by highest score."""
    true, kept = lanes[TRUE], lanes[KEPT]
    for j in range(width):
        matrices[b, int(true[j]), best[j]] += int(kept[j])


@jit_apart_reassociating
def _add(lanes: Any, row: int, factor: int, target: int, width: int, sums: Any, part: int, c: int) -> None:
    """Multiply a row by another, and add up what makes a region's value."""
    cells, factors, there, kept = lanes[row], lanes[factor], lanes[target], lanes[KEPT]
    overlap, predicted, actual, counted = 0.0, 0.0, 0.0, 0.0
    for j in range(width):
        p = cells[j] * factors[j]
        cells[j] = p
        overlap += p * there[j]
        predicted += p
        actual += there[j]
        counted += kept[j]
    sums[part, OVERLAP, c] += overlap
    sums[part, PREDICTED, c] += predicted
    sums[part, TARGET, c] += actual
    sums[part, COUNTED, c] += counted


@jit_apart
def _weigh(lanes: Any, row: int, width: int, steep: float, even: float) -> None:
    """Add the slopes by the probabilities of a class, weighted by these, to ``TOTAL``."""
    cells, there, total = lanes[row], lanes[THERE], lanes[TOTAL]
    for j in range(width):
        total[j] += cells[j] * (even + steep * there[j])


@jit_apart
def _turn(lanes: Any, factor: int, target: int, row: int, width: int, steep: float, even: float) -> None:
    """Write the gradients of scores: factors times the slope by a probability, less ``TOTAL``."""
    factors, there, total, cells = lanes[factor], lanes[target], lanes[TOTAL], lanes[row]
    for j in range(width):
        cells[j] = factors[j] * (even + steep * there[j] - total[j])


@jit_apart
def _evaluate(b: int, form: Any, numbers: Any, weight: Any, sums: Any, pulls: Any, columns: Any) -> bool:
    """Compute the values of a request's regions and their slopes; return whether rounding decides none.

    A region with nothing to find and nothing found has the value 0.
    """
    alpha, beta, smooth, gamma = numbers[ALPHA, b], numbers[BETA, b], numbers[SMOOTH, b], numbers[GAMMA, b]
    groups = form[IMAGES] if form[BY_IMAGE] else 1
    parts = sums.shape[0] // columns.shape[1] // groups
    numerator, denominator, counted, sure = 0.0, 0.0, 0, True
    for g in range(b * groups, (b + 1) * groups):
        for c in range(weight.shape[0]):
            overlap, predicted, target, some = 0.0, 0.0, 0.0, 0.0
            for part in range(g * parts, (g + 1) * parts):
                overlap += sums[part, OVERLAP, c]
                predicted += sums[part, PREDICTED, c]
                target += sums[part, TARGET, c]
                some += sums[part, COUNTED, c]
            share = 0.0 if some == 0 or (target == 0 and form[SKIPS]) else weight[c]
            below = overlap + smooth + alpha * (predicted - overlap) + beta * (target - overlap)
            nothing = below == 0
            below = 1.0 if nothing else below
            score = 1.0 if nothing else (overlap + smooth) / below
            value, slope = 1.0 - score, 0.0 if nothing else share / below
            if form[FOCAL]:
                power = value**gamma if value > 0 else 0.0
                slope = slope * gamma * power / value if value > 0 else 0.0
                value = power
            pulls[g, 0, c], pulls[g, 1, c] = slope * (score * (1.0 - alpha - beta) - 1.0), slope * score * alpha
            if share != 0:
                sure &= (target != 0) | (smooth >= numbers[TINY, b])
                numerator += value * share
                denominator += share
                counted += 1
    upstream = 1.0
    if form[MEAN]:
        upstream = 1.0 / denominator if denominator > 0 else 0.0
    for g in range(b * groups, (b + 1) * groups):
        for c in range(weight.shape[0]):
            pulls[g, 0, c] *= upstream
            pulls[g, 1, c] *= upstream
    columns[0, b], columns[1, b], columns[2, b], columns[3, b] = numerator * upstream, numerator, denominator, counted
    return sure


@aot(
    "void(int64, int64, int64, int64[::1], float32[::1], float32[::1], float64[:,::1], float64[::1], "
    "float64[:,:,::1], float64[:,:,::1], float32[::1], float64[:,::1], int64[:,:,::1], boolean[::1])"
)
def regions(
    steps: int,
    first: int,
    last: int,
    form: Any,
    scores: Any,
    truth: Any,
    numbers: Any,
    weight: Any,
    sums: Any,
    pulls: Any,
    gradient: Any,
    columns: Any,
    matrices: Any,
    doubtful: Any,
) -> None:
    """One value for each region.

    Args:
        steps: The steps to take; ``VALUES`` is of all requests.
        first: The first part of ``SUMS`` and ``SLOPES``. Each image has ceil(I / PART) of them.
        last: The part after the last.
        form: (9,) numbers and flags, from ``ONE`` on. In memory, because LLVM makes a loop of its own for each flag
            that it knows not to change.
        scores: (B * N * C * I * words,), see :mod:`lossd.compiled.memory`.
        truth: The same, targets in [0, 1]; or (B * N * I * words,), the classes.
        numbers: (6, B), from ``ALPHA`` on.
        weight: (C,) the weight of each class's regions.
        sums: (T, 5, C), 0 before the first step: of each part overlap, predictions, targets and positions that count;
            then, for the first class, the sum of the gradient's squares.
        pulls: (G, 2, C), written: the slopes of the loss by overlap and by predictions, of each image or request.
        gradient: (B * N * C * I * words,), written; (0,) if it is not wanted.
        columns: (5, B), written but for the last: loss, numerator, denominator, count of regions that count.
        matrices: (B, C, C), to which the pairs of target and highest score are added; (0, C, C) if not computed.
        doubtful: (B,), set for requests with a number out of range or not finite, or a region whose value is noise.
    """
    classes, words, positions, one = weight.shape[0], form[WORDS], form[POSITIONS], form[ONE]
    chunks = (positions + PART - 1) // PART
    lanes, best = np.empty((FIRST + (classes if one else 1), STRIP)), np.empty(STRIP, np.int64)
    if steps & VALUES:
        for b in range(columns.shape[1]):
            doubtful[b] |= not _evaluate(b, form, numbers, weight, sums, pulls, columns)
    for part in range(first, last):
        image, start, square, right = part // chunks, part % chunks * PART, 0.0, True
        b = image // form[IMAGES]
        group = image if form[BY_IMAGE] else b
        end = min(start + PART, positions)
        while start < end:
            width, at = min(STRIP, end - start), image * classes * positions + start
            if form[ONE]:
                _read(truth, image * positions + start, words, 1, lanes, TRUE, width)
                right &= _keep(numbers[IGNORED, b], classes - 1.0, lanes, width)
                for c in range(classes):
                    if steps & SUMS:
                        right &= _read(scores, at + c * positions, words, form[SOFT], lanes, FIRST + c, width)
                    elif form[SOFT]:
                        _read(gradient, at + c * positions, words, 1, lanes, FIRST + c, width)
                        _mark(c, lanes, width)
                        _weigh(lanes, FIRST + c, width, pulls[group, 0, c], pulls[group, 1, c])
                if steps & SUMS:
                    _find_highest(lanes, classes, width, best)
                    if form[SOFT]:
                        _raise(lanes, classes, width)
                    if matrices.shape[0] and right:
                        _count(lanes, width, best, matrices, b)
            for c in range(classes):
                row, factor, place = FIRST + c * one, KEPT, at + c * positions
                target = THERE if one else TRUE
                if form[ONE]:
                    _mark(c, lanes, width)
                    if form[SOFT]:
                        factor = TOTAL if steps & SUMS else row
                else:
                    right &= _read(truth, place, words, 1, lanes, TRUE, width)
                    right &= _keep(numbers[IGNORED, b], 1.0, lanes, width)
                    right &= _read(scores, place, words, form[SOFT], lanes, LOGIT if form[SOFT] else row, width)
                    if form[SOFT]:
                        _squash(lanes, width)
                        factor = KEPT if steps & SUMS else LOGIT
                if steps & SUMS:
                    _add(lanes, row, factor, target, width, sums, part, c)
                else:
                    _turn(lanes, factor, target, row, width, pulls[group, 0, c], pulls[group, 1, c])
                if gradient.shape[0] and (steps & SLOPES or form[ONE] & form[SOFT]):
                    square += _write(lanes, row, width, gradient, place, words)
            start += width
        sums[part, SQUARE, 0] = square
        doubtful[b] |= not right
