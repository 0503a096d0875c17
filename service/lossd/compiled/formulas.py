"""Further losses of one prediction and one target each, in a kernel of their own, which is compiled last.

Their functions take float64 that was read from memory before, and not memory of either dtype as those of
:mod:`lossd.compiled.elementwise` do: half the code is to be compiled, for a step more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from lossd.compiled.arithmetic import exp, jit, jit_expand, jit_inline, log1p, log_of_one_and, total_of
from lossd.compiled.elementwise import STRIP
from lossd.compiled.kernels import aot
from lossd.compiled.memory import read, squares_at, store

__all__ = ["FORMULAS", "formulas"]

Formula = Callable[[float, float, float], tuple[float, float, bool]]
"""A function of prediction, target and parameter; it returns the value, its slope, and whether both are in range."""

FORMULAS: dict[str, tuple[int, str]] = {}
"""By the loss's name: the number by which the kernel chooses it, and its parameter; "" if it has none."""

_strips: list[Any] = []


def formula(name: str, parameter: str = "") -> Callable[[Formula], Formula]:
    """Declare a loss by its formula."""

    def declare(function: Formula) -> Formula:
        of_one = jit_inline(function)

        @jit
        def strip(prediction: Any, target: Any, a: float, values: Any, slopes: Any) -> bool:
            within = True
            for j in range(values.shape[0]):
                values[j], slopes[j], right = of_one(prediction[j], target[j], a)
                within &= right
            return within

        FORMULAS[name] = len(_strips), parameter
        _strips.append(strip)
        return function

    return declare


@jit_inline
def power_of_e(x: float) -> float:
    """The exponential of any number."""
    e = exp(-abs(x))
    return e if x <= 0 else 1 / e


@formula("asymmetric_mse", parameter="over_penalty")
def _asymmetric_mse(p: float, t: float, a: float) -> tuple[float, float, bool]:
    e = p - t
    share = a * e if e > 0 else e
    return share * e, 2 * share, True


@formula("expectile", parameter="q")
def _expectile(p: float, t: float, a: float) -> tuple[float, float, bool]:
    e = p - t
    share = (1 - a) * e if e > 0 else a * e
    return share * e, 2 * share, True


@formula("pseudo_huber", parameter="delta")
def _pseudo_huber(p: float, t: float, a: float) -> tuple[float, float, bool]:
    e = p - t
    share = e / a
    size = abs(share)
    size = 1.0 if size < 1 else size  # in its units no square overflows
    unit, scaled = 1 / size, share / size
    root = size * math.sqrt(unit * unit + scaled * scaled)
    return e * (e / (1 + root)), e / root, True


@formula("fair", parameter="c")
def _fair(prediction: float, t: float, a: float) -> tuple[float, float, bool]:
    # Below 0.1 by the series of (x - log(1 + x)) / x², to where float64 ends; beyond, the difference keeps its digits.
    e = prediction - t
    size = abs(e)
    x = size / a
    p = 1.0 / 18.0
    p = p * x - 1.0 / 17.0
    p = p * x + 1.0 / 16.0
    p = p * x - 1.0 / 15.0
    p = p * x + 1.0 / 14.0
    p = p * x - 1.0 / 13.0
    p = p * x + 1.0 / 12.0
    p = p * x - 1.0 / 11.0
    p = p * x + 1.0 / 10.0
    p = p * x - 1.0 / 9.0
    p = p * x + 1.0 / 8.0
    p = p * x - 1.0 / 7.0
    p = p * x + 1.0 / 6.0
    p = p * x - 1.0 / 5.0
    p = p * x + 1.0 / 4.0
    p = p * x - 1.0 / 3.0
    p = p * x + 1.0 / 2.0
    return e * e * p if x < 0.1 else a * (size - a * log_of_one_and(x)), e / (1 + x), True


@formula("squared_log")
def _squared_log(p: float, t: float, _: float) -> tuple[float, float, bool]:
    difference = math.log1p(p) - math.log1p(t)
    return 0.5 * difference * difference, difference / (1 + p), (p > -1) & (t > -1)


@formula("mape")
def _mape(p: float, t: float, _: float) -> tuple[float, float, bool]:
    e, size = p - t, abs(t)
    return abs(e) / size, (1.0 if e > 0 else -1.0 if e < 0 else e) / size, size > 0


@formula("poisson_nll")
def _poisson_nll(m: float, t: float, _: float) -> tuple[float, float, bool]:
    mean = power_of_e(m)
    return mean - t * m, mean - t, t >= 0


@formula("gamma_nll", parameter="shape")
def _gamma_nll(m: float, t: float, a: float) -> tuple[float, float, bool]:
    share = t * power_of_e(-m)
    return a * (m + share), a * (1 - share), t > 0


@formula("tweedie", parameter="power")
def _tweedie(m: float, t: float, a: float) -> tuple[float, float, bool]:
    share = 0.0 if t == 0 else t * power_of_e((1 - a) * m)  # the power may be infinite
    power = power_of_e((2 - a) * m)
    return share / (a - 1) + power / (2 - a), power - share, t >= 0


@formula("soft_margin")
def _soft_margin(p: float, t: float, _: float) -> tuple[float, float, bool]:
    z = t * p
    e = exp(-abs(z))
    rest = (e if z >= 0 else 1.0) / (1 + e)
    return (-z if z < 0 else 0.0) + log1p(e), -t * rest, abs(t) == 1


@formula("hinge", parameter="margin")
def _hinge(p: float, t: float, a: float) -> tuple[float, float, bool]:
    short = a - t * p
    return 0.0 if short <= 0 else short, 0.0 if short <= 0 else -t, abs(t) == 1


@formula("hinge_embedding", parameter="margin")
def _hinge_embedding(x: float, t: float, a: float) -> tuple[float, float, bool]:
    short = a - x
    far = 0.0 if short < 0 else short
    return x if t > 0 else far, 1.0 if t > 0 else 0.0 if short < 0 else -1.0, abs(t) == 1


def _either(others: Any, numbered: tuple[int, Any]) -> Any:
    """Return a function of a number and a strip, which calls the strip function of that number, or the others."""
    number, strip = numbered

    @jit_expand
    def only(_: int, prediction: Any, target: Any, a: float, values: Any, slopes: Any) -> bool:
        return strip(prediction, target, a, values, slopes)

    @jit_expand
    def either(kind: int, prediction: Any, target: Any, a: float, values: Any, slopes: Any) -> bool:
        if kind == number:
            return strip(prediction, target, a, values, slopes)
        return others(kind, prediction, target, a, values, slopes)

    return only if others is None else either


_strip: Any = reduce(_either, enumerate(_strips), None)


@aot(
    "void(int64, float32[::1], float32[::1], int64, int64[::1], float64[::1], boolean, float32[::1], float64[:,::1], "
    "boolean[::1])"
)
def formulas(
    kind: int,
    prediction: Any,
    target: Any,
    words: int,
    starts: Any,
    a: Any,
    mean: bool,
    gradient: Any,
    columns: Any,
    doubtful: Any,
) -> None:
    """One value per element.

    Args:
        kind: The number of one of ``FORMULAS``.
        prediction: (E * words,), see :mod:`lossd.compiled.memory`.
        target: (E * words,).
        words: The float32 words of a number.
        starts: (B + 1,) the first element of each request, and E.
        a: (B,) the parameter.
        mean: Whether the loss is the mean, else the sum.
        gradient: (E * words,), written; (0,) where it is not wanted.
        columns: (5, B), written: loss, numerator, denominator, count of elements, norm of the gradient.
        doubtful: (B,), set for requests that a number out of range or not finite keeps from an answer.
    """
    memory = np.empty((4, STRIP))
    for b in range(starts.shape[0] - 1):
        size = starts[b + 1] - starts[b]
        upstream = 1.0 / size if mean else 1.0
        numerator, square = 0.0, 0.0
        for first in range(starts[b], starts[b + 1], STRIP):
            width = min(STRIP, starts[b + 1] - first)
            predictions, targets = memory[0, :width], memory[1, :width]
            values, slopes = memory[2, :width], memory[3, :width]
            read(prediction, first, words, predictions)
            read(target, first, words, targets)
            if not _strip(kind, predictions, targets, a[b], values, slopes):
                numerator = math.nan
            numerator += total_of(values)
            if gradient.shape[0]:
                for j in range(width):
                    store(gradient, first + j, words, slopes[j] * upstream)
                square += squares_at(gradient, first, words, width)
        columns[0, b], columns[1, b] = numerator * upstream, numerator
        columns[2, b] = columns[3, b] = size
        columns[4, b] = math.sqrt(square)
        doubtful[b] = not (math.isfinite(numerator) and math.isfinite(square))
