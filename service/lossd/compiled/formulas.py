"""Losses of one to four numbers an element, each declared by its formula, in a kernel of their own.

Their functions take float64 numbers, which the kernel has read from memory. Those of :mod:`lossd.compiled.elementwise`
take memory of either dtype. This halves the code to compile, and takes one more step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lossd.compiled.arithmetic import exp, jit, jit_apart, jit_inline, log1p, log_of_one_and, one_of, total_of
from lossd.compiled.elementwise import STRIP
from lossd.compiled.gamma import digamma
from lossd.compiled.kernels import aot
from lossd.compiled.memory import read, squares_at, store

__all__ = ["CONSTANT", "FORMULAS", "INPUTS", "SLOPES", "ElementLoss", "formulas"]

INPUTS, SLOPES = 4, 3
"""The most numbers that a loss is of, and the most of them that have a gradient."""

VALUE, SLOPE = INPUTS, INPUTS + 1
"""The rows of a strip: the inputs, the values, then the slopes."""

PAIR = ("prediction", "target")
CONSTANT = ("target", "reference_chosen", "reference_rejected")
"""The inputs that have no gradient."""


class ElementLoss(NamedTuple):
    """A loss with one value per element.

    Attributes:
        number: The number by which the kernel chooses it.
        inputs: The names of its inputs, in the order of the formula's arguments.
        parameters: The names of its two parameters; "" for none.
    """

    number: int
    inputs: tuple[str, ...]
    parameters: tuple[str, str]


FORMULAS: dict[str, ElementLoss] = {}
"""Every loss of this module, by name."""

_strips: list[Any] = []


def formula(name: str, parameter: str = "") -> Callable[[Any], Any]:
    """Declare a loss by a function of prediction, target and parameter.

    It returns the value, its slope, and whether both numbers are in range.
    """

    def declare(function: Any) -> Any:
        of_one = jit_inline(function)

        @jit_apart
        def strip(numbers: Any, width: int, a: float, _: float) -> bool:
            within = True
            for j in range(width):
                numbers[VALUE, j], numbers[SLOPE, j], right = of_one(numbers[0, j], numbers[1, j], a)
                within &= right
            return within

        FORMULAS[name] = ElementLoss(len(_strips), PAIR, (parameter, ""))
        _strips.append(strip)
        return of_one

    return declare


def joint(*names: str, inputs: tuple[str, ...], parameters: tuple[str, str] = ("", "")) -> Callable[[Any], Any]:
    """Declare losses by a function of four numbers, of which the first are the inputs, and of two parameters.

    It returns the value, its slopes by the inputs that have a gradient and 0 for the others of three, and whether all
    numbers are in range.
    """

    def declare(function: Any) -> Any:
        of_one = jit_inline(function)

        @jit_apart
        def strip(numbers: Any, width: int, a: float, b: float) -> bool:
            within = True
            for j in range(width):
                value, first, second, third, right = of_one(
                    numbers[0, j], numbers[1, j], numbers[2, j], numbers[3, j], a, b
                )
                numbers[VALUE, j] = value
                numbers[SLOPE, j], numbers[SLOPE + 1, j], numbers[SLOPE + 2, j] = first, second, third
                within &= right
            return within

        FORMULAS.update(dict.fromkeys(names, ElementLoss(len(_strips), inputs, parameters)))
        _strips.append(strip)
        return of_one

    return declare


@jit_inline
def power_of_e(x: float) -> float:
    """The exponential of any number."""
    e = exp(-abs(x))
    return e if x <= 0 else 1 / e


NEAR = 0.1


@jit
def remainder(x: float) -> float:
    """(x - log(1 + x)) / x² of x >= 0: below ``NEAR`` by its series, to where float64 ends."""
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
    return p if x < NEAR else (1 - log_of_one_and(x) / x) / x


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
def _fair(p: float, t: float, a: float) -> tuple[float, float, bool]:
    e = p - t
    size = abs(e)
    x = size / a
    return e * e * remainder(x) if x < NEAR else a * (size - a * log_of_one_and(x)), e / (1 + x), True


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


@formula("bce", parameter="floor")
def _bce(p: float, t: float, floor: float) -> tuple[float, float, bool]:
    yes, no = math.log(p), math.log1p(-p)
    variance = (1 - p) * p
    value = -t * (-100.0 if yes < -100 else yes) - (1 - t) * (-100.0 if no < -100 else no)
    return value, (p - t) / (floor if variance < floor else variance), (t >= 0) & (t <= 1) & (p >= 0) & (p <= 1)


@jit_inline
def surprise(z: float) -> tuple[float, float]:
    """-log σ(z), and σ(-z)."""
    e = exp(-abs(z))
    return (-z if z < 0 else 0.0) + log1p(e), (e if z >= 0 else 1.0) / (1 + e)


@jit_inline
def rounded(x: float, words: float) -> float:
    """A number in the dtype of the inputs."""
    return float(np.float32(x)) if words == 1 else x


Joint = tuple[float, float, float, float, bool]


@joint("gan_generator", inputs=("fake",), parameters=("sign", ""))
def _generator(f: float, _: float, __: float, ___: float, sign: float, ____: float) -> Joint:
    value, rest = surprise(sign * f)
    return sign * value, -rest, 0.0, 0.0, True


@joint("wgan_generator", "hinge_gan_generator", inputs=("fake",))
def _critic(f: float, _: float, __: float, ___: float, ____: float, _____: float) -> Joint:
    return -f, -1.0, 0.0, 0.0, True


@joint("lsgan_generator", inputs=("fake",))
def _least_squares(f: float, _: float, __: float, ___: float, ____: float, _____: float) -> Joint:
    return 0.5 * (f - 1) * (f - 1), f - 1, 0.0, 0.0, True


@joint("margin_ranking", inputs=("first", "second", "target"), parameters=("margin", "words"))
def _margin_ranking(first: float, second: float, t: float, _: float, margin: float, words: float) -> Joint:
    # Scores that differ by the margin in their own dtype are at the bend.
    short = rounded(margin, words) - t * rounded(first - second, words)
    kept = t if short >= 0 else 0.0
    return 0.0 if short < 0 else short, -kept, kept, 0.0, abs(t) == 1


@joint("interval_score", inputs=("lower", "upper", "target"), parameters=("alpha", ""))
def _interval(low: float, high: float, t: float, _: float, alpha: float, __: float) -> Joint:
    price = 2 / alpha
    below, above = low - t, t - high
    outside = (0.0 if below <= 0 else below) + (0.0 if above <= 0 else above)
    return (
        high - low + outside * price,
        -1 + (price if below > 0 else 0.0),
        1 - (price if above > 0 else 0.0),
        0.0,
        True,
    )


@joint("dpo", inputs=("chosen", "rejected", "reference_chosen", "reference_rejected"), parameters=("beta", ""))
def _dpo(c: float, r: float, of_c: float, of_r: float, beta: float, _: float) -> Joint:
    value, rest = surprise(beta * ((c - of_c) - (r - of_r)))
    return value, -beta * rest, beta * rest, 0.0, (abs(of_c) < math.inf) & (abs(of_r) < math.inf)


@joint("simpo", inputs=("chosen", "rejected"), parameters=("beta", "gamma"))
def _simpo(c: float, r: float, _: float, __: float, beta: float, gamma: float) -> Joint:
    value, rest = surprise(beta * (c - r) - gamma)
    return value, -beta * rest, beta * rest, 0.0, True


@joint("bradley_terry", inputs=("chosen", "rejected"), parameters=("centering", ""))
def _bradley_terry(c: float, r: float, _: float, __: float, centering: float, ___: float) -> Joint:
    value, rest = surprise(c - r)
    both = c + r
    pull = 2 * centering * both
    return centering * both * both + value, pull - rest, pull + rest, 0.0, True


@joint("gaussian_nll", inputs=("prediction", "target", "variance"), parameters=("eps", "constant"))
def _gaussian(p: float, t: float, variance: float, _: float, eps: float, constant: float) -> Joint:
    e, v = p - t, max(variance, eps)
    share = e / v
    return 0.5 * (math.log(v) + e * share) + constant, share, 0.5 * (1 - e * share) / v, 0.0, variance >= 0


@joint("laplace_nll", inputs=("prediction", "target", "scale"))
def _laplace(p: float, t: float, b: float, _: float, __: float, ___: float) -> Joint:
    e = p - t
    share = abs(e) / b
    return math.log(2 * b) + share, (1.0 if e > 0 else -1.0 if e < 0 else e) / b, (1 - share) / b, 0.0, b > 0


@jit_inline
def beyond_one(s: float) -> float:
    """e^s - 1 - s: near 0, where that would cancel, by its series."""
    series = 1 + s / 8 * (1 + s / 9)
    series = 1 + s / 5 * (1 + s / 6 * (1 + s / 7 * series))
    series = 1 + s / 3 * (1 + s / 4 * series)
    return 0.5 * s * s * series if abs(s) < 0.05 else math.expm1(s) - s


@joint("vae", inputs=("mean", "log_variance"))
def _latent(mean: float, s: float, _: float, __: float, ___: float, ____: float) -> Joint:
    return 0.5 * (mean * mean + beyond_one(s)), mean, 0.5 * math.expm1(s), 0.0, True


FAR = 40.0
WIDEST, MEAN_DISTANCE = math.sqrt(2 / math.pi), 1 / math.sqrt(math.pi)


@joint("crps_normal", inputs=("prediction", "target", "scale"))
def _crps_normal(p: float, t: float, scale: float, _: float, __: float, ___: float) -> Joint:
    e = p - t
    far = abs(e) > FAR * scale  # there the quotient may be infinite
    z = 0.0 if far else e / scale
    slope = (1.0 if e > 0 else -1.0) if far else math.erf(z / math.sqrt(2))
    width = (0.0 if far else WIDEST * exp(-0.5 * z * z)) - MEAN_DISTANCE
    return e * slope + scale * width, slope, width, 0.0, scale > 0


MANY = 200.0


@joint("student_t_nll", inputs=("prediction", "target", "scale", "df"))
def _student_t(p: float, t: float, scale: float, df: float, _: float, __: float) -> Joint:
    z = (p - t) / scale
    w = z * z / df
    log, pull = log_of_one_and(w), (df + 1) * z / (df + z * z)
    value = 0.5 * (df + 1) * log + math.log(scale)
    slope = 0.5 * (log - pull * z / df)
    if df > MANY:  # the logarithms of two Γ nearly cancel: by the series of their quotient
        inverse = 2 / df
        square = inverse * inverse
        value += inverse * (1 / 8 - square * (1 / 192 - square * (1 / 640 - square * (17 / 14336))))
        value += 0.5 * math.log(2 * math.pi)
        slope -= 0.5 * square * (1 / 8 - square * (3 / 192 - square * (5 / 640 - square * (119 / 14336))))
    else:
        value += math.lgamma(0.5 * df) - math.lgamma(0.5 * (df + 1)) + 0.5 * math.log(df * math.pi)
        slope += 0.5 * (digamma(0.5 * df) - digamma(0.5 * (df + 1)) + 1 / df)
    return value, pull / scale, (1 - pull * z) / scale, slope, (scale > 0) & (df > 0)


SERIES = 0.01


@jit_inline
def stirling(inverse: float) -> tuple[float, float]:
    """The rest of Stirling's formula of 1/z <= 0.01, and its slope by 1/z."""
    square = inverse * inverse
    return inverse * (1 / 12 - square * (1 / 360 - square / 1260)), 1 / 12 - square * (1 / 120 - square / 252)


@jit
def log_share(x: float) -> tuple[float, float]:
    """log(1 + x) / x of x >= 0, and its slope."""
    rest = remainder(x)
    if x < 1:
        return 1 - x * rest, rest - 1 / (1 + x)
    log = log_of_one_and(x)
    return log / x, (x / (1 + x) - log) / (x * x)


@joint("negative_binomial_nll", inputs=("prediction", "target", "dispersion"), parameters=("", "full"))
def _negative_binomial(mean: float, t: float, alpha: float, _: float, __: float, full: float) -> Joint:
    x, s = alpha * mean, alpha * t
    share, bend = log_share(x)
    if alpha < SERIES:  # log Γ by Stirling's series: the functions themselves are too large, and cancel
        grown, (part, turn) = math.log1p(s), log_share(s)
        (high, high_slope), (low, low_slope) = stirling(alpha / (1 + s)), stirling(alpha)
        rise = t * (grown + (part - 1)) - 0.5 * grown + high - low
        growth = t / (1 + s)
        steep = t * (growth + turn * t) - 0.5 * growth + high_slope / ((1 + s) * (1 + s)) - low_slope
    else:
        inverse = 1 / alpha
        rise = math.lgamma(t + inverse) - math.lgamma(inverse) - t * math.log(inverse)
        steep = t * inverse - inverse * inverse * (digamma(t + inverse) - digamma(inverse))
    value = mean * share + t * (math.log1p(x) - math.log(mean)) - rise
    if full != 0:
        value += math.lgamma(t + 1)
    slope = (1 - t / mean) / (1 + x)
    return value, slope, mean * mean * bend + t * mean / (1 + x) - steep, 0.0, (mean > 0) & (t >= 0) & (alpha > 0)


_strip = one_of(_strips, "numbers, width, a, b")


@jit
def _read_into(row: Any, memory: Any, first: int, words: int) -> None:
    if memory.shape[0]:
        read(memory, first, words, row)


@jit
def _write(slopes: Any, upstream: float, first: int, words: int, gradient: Any) -> float:
    """Write the gradient of a strip, and return the sum of its squares."""
    if gradient.shape[0] == 0:
        return 0.0
    for j in range(slopes.shape[0]):
        store(gradient, first + j, words, slopes[j] * upstream)
    return squares_at(gradient, first, words, slopes.shape[0])


@aot(
    "void(int64, float32[::1], float32[::1], float32[::1], float32[::1], int64, int64[::1], float64[::1], "
    "float64[::1], float64[::1], float32[::1], float32[::1], float32[::1], float64[:,::1], boolean[::1])"
)
def formulas(
    kind: int,
    first_input: Any,
    second_input: Any,
    third_input: Any,
    fourth_input: Any,
    words: int,
    starts: Any,
    a: Any,
    b: Any,
    upstream: Any,
    first_gradient: Any,
    second_gradient: Any,
    third_gradient: Any,
    columns: Any,
    doubtful: Any,
) -> None:
    """One value per element.

    Args:
        kind: The number of one of ``FORMULAS``.
        first_input: (E * words,), see :mod:`lossd.compiled.memory`.
        second_input: The same; as those that follow, (0,) if the loss has no such input.
        third_input: The same.
        fourth_input: The same.
        words: The float32 words of a number.
        starts: (B + 1,) the first element of each request, and E.
        a: (B,) the first parameter.
        b: (B,) the second parameter.
        upstream: (B,) the factor of the gradients and of the loss.
        first_gradient: (E * words,), written; (0,) where it is not wanted.
        second_gradient: The same.
        third_gradient: The same.
        columns: (7, B), written: loss, numerator, denominator, count of elements, norms of the gradients.
        doubtful: (B,), set for requests that a number out of range or not finite keeps from an answer.
    """
    memory = np.empty((INPUTS + 1 + SLOPES, STRIP))
    for r in range(starts.shape[0] - 1):
        size = starts[r + 1] - starts[r]
        numerator, one, two, three = 0.0, 0.0, 0.0, 0.0
        for first in range(starts[r], starts[r + 1], STRIP):
            width = min(STRIP, starts[r + 1] - first)
            _read_into(memory[0, :width], first_input, first, words)
            _read_into(memory[1, :width], second_input, first, words)
            _read_into(memory[2, :width], third_input, first, words)
            _read_into(memory[3, :width], fourth_input, first, words)
            if not _strip(kind, memory, width, a[r], b[r]):
                numerator = math.nan
            numerator += total_of(memory[VALUE, :width])
            one += _write(memory[SLOPE, :width], upstream[r], first, words, first_gradient)
            two += _write(memory[SLOPE + 1, :width], upstream[r], first, words, second_gradient)
            three += _write(memory[SLOPE + 2, :width], upstream[r], first, words, third_gradient)
        columns[0, r], columns[1, r] = numerator * upstream[r], numerator
        columns[2, r] = columns[3, r] = size
        columns[4, r], columns[5, r], columns[6, r] = math.sqrt(one), math.sqrt(two), math.sqrt(three)
        doubtful[r] = not math.isfinite(numerator + one + two + three)
