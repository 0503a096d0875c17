"""Losses of one prediction and one target each: value, gradient and norm in one pass, and what metrics are made of.

Everything between the inputs and the gradient is float64, whatever they are. Each request is walked by itself, so that
its neighbours cannot change a bit of its answer: in strips short enough for a core's own cache, in loops that become
vector instructions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossd.compiled.arithmetic import (
    exp,
    focal_weight,
    jit,
    jit_apart,
    jit_inline,
    jit_reassociating,
    log1p,
    maximum,
    one_of,
    total_of,
)
from lossd.compiled.kernels import aot
from lossd.compiled.memory import load, squares_at, store

__all__ = ["CURVED", "ELEMENTS", "Element", "decisions", "elements", "errors"]

LN_2 = math.log(2)
STRIP = 512
"""Elements that are walked at a time."""

LANES = 64
"""Highest numbers that are kept side by side."""


Strip = Callable[..., bool]
"""A function of a strip of n elements; it returns whether the targets are in range.

Its arguments: all predictions and targets, the index of the first of the strip, their words (see
:mod:`lossd.compiled.memory`), the loss's parameter, the factors of positives and of negatives, values and slopes to
write, (n,) float64, and scratch, (2, n) float64.
"""


@dataclass(frozen=True, slots=True)
class Element:
    """A loss with one value per element.

    Attributes:
        number: The number by which the kernel chooses it.
        parameter: The name of its parameter; "" if it has none.
        strip: The function that evaluates a strip.
    """

    number: int
    parameter: str
    strip: Strip


ELEMENTS: dict[str, Element] = {}
"""Every loss of this module, by name."""


def strip_of(name: str, parameter: str = "") -> Callable[[Strip], Strip]:
    """Declare a loss by the function that evaluates a strip."""

    def declare(strip: Strip) -> Strip:
        ELEMENTS[name] = Element(len(ELEMENTS), parameter, jit_apart(strip))
        return ELEMENTS[name].strip

    return declare


def element(name: str, parameter: str = "") -> Callable[[Callable[[float, float], tuple[float, float]]], Strip]:
    """Declare a loss by a function of the error and the parameter, which returns the value and its slope."""

    def declare(loss: Callable[[float, float], tuple[float, float]]) -> Strip:
        loss_of_error = jit_inline(loss)

        @strip_of(name, parameter)
        def strip(
            prediction: Any, target: Any, first: int, words: int,
            a: float, _: float, __: float, values: Any, slopes: Any, ___: Any,
        ) -> bool:  # fmt: skip
            for j in range(values.shape[0]):
                e = load(prediction, first + j, words) - load(target, first + j, words)
                values[j], slopes[j] = loss_of_error(e, a)
            return True

        return strip

    return declare


@element("mse")
def _mse(e: float, _: float) -> tuple[float, float]:
    return e * e, 2 * e


@element("mae")
def _mae(e: float, _: float) -> tuple[float, float]:
    return abs(e), 1.0 if e > 0 else -1.0 if e < 0 else e


@element("huber", parameter="delta")
def _huber(e: float, a: float) -> tuple[float, float]:
    size = abs(e)
    near = size <= a
    return 0.5 * e * e if near else a * (size - 0.5 * a), e if near else a if e > 0 else -a


@element("smooth_l1", parameter="beta")
def _smooth_l1(e: float, a: float) -> tuple[float, float]:
    size = abs(e)
    near = size < a
    slope = e / a
    return 0.5 * e * slope if near else size - 0.5 * a, slope if near else 1.0 if e > 0 else -1.0 if e < 0 else e


@element("quantile", parameter="q")
def _quantile(e: float, a: float) -> tuple[float, float]:
    above, below = e > 0, e < 0
    return (1 - a) * e if above else -a * e, 1 - a if above else -a if below else e


@element("log_cosh")
def _log_cosh(e: float, _: float) -> tuple[float, float]:
    # Below 1 by the series of sinh e and of cosh e - 1, to where float64 ends; beyond, by what is left of cosh e.
    size, q = abs(e), e * e
    near = size < 1
    sinh = 1 + q / 6 * (1 + q / 20 * (1 + q / 42 * (1 + q / 72 * (1 + q / 110 * (1 + q / 156 * (1 + q / 210))))))
    cosh = 1 + q / 12 * (1 + q / 30 * (1 + q / 56 * (1 + q / 90 * (1 + q / 132 * (1 + q / 182 * (1 + q / 240))))))
    rise, rest = 0.5 * q * cosh, exp(-2 * size)
    log = log1p(rise if near else rest)
    tanh = e * sinh / (1 + rise) if near else (1 - rest) / (1 + rest) * (1.0 if e > 0 else -1.0)
    return log if near else size + log - LN_2, tanh


@jit_inline
def _of_logit(z: float, t: float) -> tuple[float, float, float, float]:
    """Binary cross-entropy; the probability, times 1 - t; that of the opposite, times t; the product of the two."""
    e = exp(-abs(z))
    log = log1p(e)
    larger = 1 / (1 + e)
    smaller = e * larger
    p, rest = larger if z >= 0 else smaller, smaller if z >= 0 else larger
    entropy = t * ((-z if z < 0 else 0.0) + log) + (1 - t) * ((z if z > 0 else 0.0) + log)
    return entropy, p * (1 - t), rest * t, larger * smaller


@jit
def _within(target: Any, first: int, words: int, count: int) -> bool:
    """Whether all are in [0, 1]."""
    within = True
    for j in range(count):
        t = load(target, first + j, words)
        within &= (t >= 0) & (t <= 1)
    return within


@strip_of("bce_with_logits")
def _bce(
    prediction: Any, target: Any, first: int, words: int,
    _: float, __: float, ___: float, values: Any, slopes: Any, ____: Any,
) -> bool:  # fmt: skip
    for j in range(values.shape[0]):
        z, t = load(prediction, first + j, words), load(target, first + j, words)
        values[j], negative, positive, _ = _of_logit(z, t)
        slopes[j] = negative - positive
    return _within(target, first, words, values.shape[0])


@strip_of("sigmoid_focal", parameter="gamma")
def _focal(
    prediction: Any, target: Any, first: int, words: int,
    gamma: float, yes: float, no: float, values: Any, slopes: Any, scratch: Any,
) -> bool:  # fmt: skip
    wrong, steep = scratch
    for j in range(values.shape[0]):
        t = load(target, first + j, words)
        values[j], negative, positive, product = _of_logit(load(prediction, first + j, words), t)
        slopes[j] = negative - positive
        wrong[j] = negative + positive
        steep[j] = (1 - 2 * t) * product * gamma / (wrong[j] if wrong[j] > 0 else 1.0)
    for j in range(values.shape[0]):
        wrong[j] = focal_weight(wrong[j], gamma)  # by itself: a power is no vector instruction
    for j in range(values.shape[0]):
        t = load(target, first + j, words)
        factor = wrong[j] * (yes * t + no * (1 - t))
        slopes[j] = factor * (steep[j] * values[j] + slopes[j])
        values[j] *= factor
    return _within(target, first, words, values.shape[0])


_strip = one_of(
    [element.strip for element in ELEMENTS.values()],
    "prediction, target, first, words, a, yes, no, values, slopes, scratch",
)
"""The strip of every loss, by its number."""


@jit
def _write(slopes: Any, upstream: float, first: int, words: int, gradient: Any) -> None:
    for j in range(slopes.shape[0]):
        store(gradient, first + j, words, slopes[j] * upstream)


CURVED = (ELEMENTS["mse"].number, ELEMENTS["bce_with_logits"].number)
"""The losses whose second derivatives the kernel writes."""


@jit
def _write_curves(
    kind: int, prediction: Any, upstream: float, floor: float, first: int, words: int, count: int, hessian: Any
) -> None:
    """Write the second derivatives of a strip: 2 of squares, σ(z)σ(-z) of logits."""
    if kind == CURVED[0]:
        curve = max(2.0, floor) * upstream
        for j in range(count):
            store(hessian, first + j, words, curve)
    else:
        for j in range(count):
            e = exp(-abs(load(prediction, first + j, words)))
            larger = 1 / (1 + e)
            curve = e * larger * larger
            store(hessian, first + j, words, (floor if curve < floor else curve) * upstream)


@aot(
    "void(int64, float32[::1], float32[::1], int64, int64[::1], float64[::1], float64, float64, boolean, "
    "float32[::1], float64[:,::1], boolean[::1], float32[::1], float64)"
)
def elements(
    kind: int,
    prediction: Any,
    target: Any,
    words: int,
    starts: Any,
    a: Any,
    yes: float,
    no: float,
    mean: bool,
    gradient: Any,
    columns: Any,
    doubtful: Any,
    hessian: Any,
    floor: float,
) -> None:
    """One value per element.

    Args:
        kind: The number of an :class:`Element`.
        prediction: (E * words,), see :mod:`lossd.compiled.memory`.
        target: (E * words,); in [0, 1] where predictions are logits.
        words: The float32 words of a number.
        starts: (B + 1,) the first element of each request, and E.
        a: (B,) the parameter.
        yes: The factor of positives.
        no: The factor of negatives.
        mean: Whether the loss is the mean, else the sum.
        gradient: (E * words,), written; (0,) where it is not wanted.
        columns: (5, B), written: loss, numerator, denominator, count of elements, norm of the gradient.
        doubtful: (B,), set for requests that a number out of range or not finite keeps from an answer; whatever was
            written for those means nothing.
        hessian: (E * words,), written for losses of ``CURVED``; (0,) where it is not wanted.
        floor: The least second derivative; -inf for none.
    """
    every_value, every_slope, scratch = np.empty(STRIP), np.empty(STRIP), np.empty((2, STRIP))
    for b in range(starts.shape[0] - 1):
        size = starts[b + 1] - starts[b]
        upstream = 1.0 / size if mean else 1.0
        numerator, square = 0.0, 0.0
        for first in range(starts[b], starts[b + 1], STRIP):
            last = min(first + STRIP, starts[b + 1])
            values, slopes = every_value[: last - first], every_slope[: last - first]
            if not _strip(kind, prediction, target, first, words, a[b], yes, no, values, slopes, scratch):
                numerator = math.nan
            numerator += total_of(values)
            if gradient.shape[0]:
                _write(slopes, upstream, first, words, gradient)
                square += squares_at(gradient, first, words, last - first)
            if hessian.shape[0]:
                _write_curves(kind, prediction, upstream, floor, first, words, last - first, hessian)
        columns[0, b] = numerator * upstream
        columns[1, b] = numerator
        columns[2, b] = columns[3, b] = size
        columns[4, b] = math.sqrt(square)
        doubtful[b] = not (math.isfinite(numerator) and math.isfinite(square))


@jit_reassociating
def _sums(prediction: Any, target: Any, first: int, words: int, count: int) -> tuple[float, float, float, float, float]:
    """Of the errors, of their sizes, of their squares, of predictions and of targets."""
    errors, sizes, squares, predictions, targets = 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(count):
        p, t = load(prediction, first + j, words), load(target, first + j, words)
        e = p - t
        errors += e
        sizes += abs(e)
        squares += e * e
        predictions += p
        targets += t
    return errors, sizes, squares, predictions, targets


@jit_reassociating
def _spread(target: Any, first: int, words: int, count: int, middle: float) -> float:
    """The sum of the squared distances from a number."""
    distance = 0.0
    for j in range(count):
        d = load(target, first + j, words) - middle
        distance += d * d
    return distance


@jit
def _same(target: Any, first: int, words: int, count: int) -> bool:
    """Whether all are the same number."""
    same, number = True, load(target, first, words)
    for j in range(first, first + count):
        same &= load(target, j, words) == number
    return same


@jit
def _largest(prediction: Any, target: Any, first: int, words: int, count: int, most: Any) -> float:
    """The largest size of an error; ``most`` is (LANES,), scratch."""
    most[:] = 0.0
    for start in range(0, count, LANES):  # a highest number of each lane needs no order among them
        for j in range(min(LANES, count - start)):
            at = first + start + j
            size = abs(load(prediction, at, words) - load(target, at, words))
            most[j] = size if size > most[j] else most[j]
    return maximum(most)


@aot("void(float32[::1], float32[::1], int64, int64[::1], float64[:,::1], float64[::1], float64[::1], boolean[::1])")
def errors(
    prediction: Any, target: Any, words: int, starts: Any, sums: Any, largest: Any, spread: Any, constant: Any
) -> None:
    """What the metrics of the task regression are made of.

    Args:
        prediction: (E * words,), see :mod:`lossd.compiled.memory`.
        target: (E * words,), finite.
        words: The float32 words of a number.
        starts: (B + 1,) the first element of each request, and E.
        sums: (B, 5), written: sums of the errors, of their sizes, of their squares, of predictions and of targets.
        largest: (B,), written: the largest size of an error.
        spread: (B,), written: the sum of the squared distances of the targets from their mean.
        constant: (B,), written: whether all targets are the same number.
    """
    most = np.empty(LANES)
    for b in range(starts.shape[0] - 1):
        first, count = starts[b], starts[b + 1] - starts[b]
        sums[b, 0], sums[b, 1], sums[b, 2], sums[b, 3], sums[b, 4] = _sums(prediction, target, first, words, count)
        spread[b] = _spread(target, first, words, count, sums[b, 4] / count)
        constant[b] = _same(target, first, words, count)
        largest[b] = _largest(prediction, target, first, words, count, most)


@jit
def _count(scores: Any, target: Any, first: int, words: int, count: int, least: float, cells: Any) -> None:
    """Add to true and false positives, false and true negatives."""
    hits, predicted, true = 0, 0, 0
    for j in range(first, first + count):
        positive, right = load(scores, j, words) >= least, load(target, j, words) >= 0.5
        hits += positive & right
        predicted += positive
        true += right
    cells[0] += hits
    cells[1] += predicted - hits
    cells[2] += true - hits
    cells[3] += count - predicted - true + hits


@aot("void(float32[::1], float32[::1], int64, int64[::1], int64, float64[::1], int64[:,:,::1])")
def decisions(scores: Any, target: Any, words: int, starts: Any, positions: int, least: Any, cells: Any) -> None:
    """What the metrics of yes and no are made of.

    Args:
        scores: (E * words,), see :mod:`lossd.compiled.memory`: rows, labels, then positions.
        target: (E * words,); positive from 0.5 on.
        words: The float32 words of a number.
        starts: (B + 1,) the first element of each request, and E.
        positions: How many elements of a label follow one another.
        least: (K,) the least score of each label that is decided to be positive.
        cells: (B, K, 4), counted up: true and false positives, false and true negatives of each of K labels.
    """
    labels = cells.shape[1]
    for b in range(starts.shape[0] - 1):
        first, last = starts[b], starts[b + 1]
        if labels == 1:
            _count(scores, target, first, words, last - first, least[0], cells[b, 0])
            continue
        for at in range(first, last, positions):
            label = at // positions % labels
            _count(scores, target, at, words, positions, least[label], cells[b, label])
