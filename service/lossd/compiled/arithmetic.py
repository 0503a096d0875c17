"""The functions that every kernel uses: how inner functions are compiled, and exponentials and logarithms on vectors.

Numba's ``math.exp`` calls the C library once for each number, and a loop with a call does not become vector
instructions. Here ``exp`` and ``log1p`` are plain arithmetic without branches, which LLVM vectorises: binary
cross-entropy took 24 ns for each element before and 3 ns after, log-cosh 38 and 6.

Python has no operation on the bits of a float64, so two intrinsics write LLVM's instructions by hand. ``_power_of_two``
makes 2^n by placing n in the exponent's bits. ``_split`` takes significand and exponent apart. Both keep
integers in the low bits of a float64 and convert by adding a large power of two, because not every processor converts
64-bit integers with vector instructions. A Chebyshev approximation saves two
steps of the exponential.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from lossd.compiled.kernels import OPTIONS
from lossd.compiled.pipeline import ApartPipeline, InnerPipeline

__all__ = [
    "exp",
    "focal",
    "focal_weight",
    "jit",
    "jit_apart",
    "jit_apart_reassociating",
    "jit_exact",
    "jit_inline",
    "jit_reassociating",
    "log1p",
    "log_of_one_and",
    "maximum",
    "one_of",
    "total_of",
]

F = TypeVar("F", bound=Callable[..., Any])

# They are called by compiled code alone: nothing makes objects of their arguments, nothing needs their address.
INNER: dict[str, Any] = OPTIONS | {
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": InnerPipeline,
}
APART = INNER | {"pipeline_class": ApartPipeline}
REASSOCIATING = {"fastmath": {"reassoc", "contract"}}


def jit_inline(function: F) -> F:
    """Compile a function that LLVM always inlines into its caller."""
    return cast("F", numba.njit(forceinline=True, **INNER)(function))


def jit(function: F) -> F:
    """Compile a function that LLVM may inline into its caller."""
    return cast("F", numba.njit(**INNER)(function))


def jit_exact(function: F) -> F:
    """Compile a function that rounds a product before it adds it, so that equal terms cancel."""
    return cast("F", numba.njit(**INNER | {"fastmath": False})(function))


def jit_apart(function: F) -> F:
    """Compile a function that LLVM never inlines; for long functions from which a kernel chooses one."""
    return cast("F", numba.njit(**APART)(function))


def jit_apart_reassociating(function: F) -> F:
    """Compile a function that is apart and whose sums may be reordered for vector instructions."""
    return cast("F", numba.njit(**APART | REASSOCIATING)(function))


def one_of(functions: Sequence[Any], arguments: str) -> Any:
    """Return a function that takes a number and arguments, and calls the function with that number.

    Numba calls functions of a tuple by their addresses. These functions have none. A chain of functions, each of which
    calls the next, takes seconds to compile. So the code of the choice is written here.
    """
    cases = [f"    if number == {n}:\n        return function_{n}({arguments})" for n in range(len(functions))]
    code = "\n".join([f"def choose(number, {arguments}):", *cases, f"    return function_0({arguments})"])
    names: dict[str, Any] = {f"function_{n}": function for n, function in enumerate(functions)}
    exec(code, names)
    return jit_inline(names["choose"])


def jit_reassociating(function: F) -> F:
    """Compile a function whose sums may be reordered for vector instructions; the order is always the same."""
    return cast("F", numba.njit(**INNER | REASSOCIATING)(function))


def jit_reordering(function: F) -> F:
    """Compile a function of a highest number, which vector instructions find in any order if none is NaN."""
    return cast("F", numba.njit(**INNER | {"fastmath": {"nnan", "nsz", "contract"}})(function))


def _emit_power_of_two(_: Any, shifted: Any) -> Any:
    """2 to the power of n, given n + SHIFT: n is in that float64's lowest bits, where the exponent's belong."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        integer = ir.IntType(64)
        bits = builder.add(builder.bitcast(arguments[0], integer), integer(1023))
        return builder.bitcast(builder.shl(bits, integer(52)), ir.DoubleType())

    return types.float64(types.float64), generate


def _emit_split(_: Any, x: Any) -> Any:
    """The significand of a positive float64, in [1, 2), and its exponent, as float64 both."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer, double = ir.IntType(64), ir.DoubleType()
        bits = builder.bitcast(arguments[0], integer)
        fraction = builder.and_(bits, integer((1 << 52) - 1))
        significand = builder.bitcast(builder.or_(fraction, integer(1023 << 52)), double)
        # The exponent in the lowest bits of 2^52, since conversions of integers are no vector instructions everywhere.
        biased = builder.bitcast(builder.or_(builder.lshr(bits, integer(52)), integer(1075 << 52)), double)
        exponent = builder.fsub(biased, double(2.0**52 + 1023))
        return context.make_tuple(builder, signature.return_type, (significand, exponent))

    return types.UniTuple(types.float64, 2)(types.float64), generate


_power_of_two: Callable[[float], float] = cast("Any", intrinsic(_emit_power_of_two))
_split: Callable[[float], tuple[float, float]] = cast("Any", intrinsic(_emit_split))

LOG2_E = 1.4426950408889634
SHIFT = 1.5 * 2.0**52
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
SMALLEST = -708.0


@jit_inline
def exp(x: float) -> float:
    """The exponential of x <= 0 in float64, within 2 units in the last place; 0 from -708 down, NaN for NaN.

    Cody and Waite's reduction to |r| <= ln(2)/2, then the Chebyshev approximation of degree 11, 3e-18 off.
    """
    bounded = SMALLEST if x <= SMALLEST else x
    shifted = bounded * LOG2_E + SHIFT
    n = shifted - SHIFT
    r = (bounded - n * LN2_HIGH) - n * LN2_LOW
    p = 2.5110049204818658e-08
    p = p * r + 2.763265472252779e-07
    p = p * r + 2.755724088722987e-06
    p = p * r + 2.4801485441561313e-05
    p = p * r + 0.00019841269890076403
    p = p * r + 0.0013888888952352863
    p = p * r + 0.008333333333319589
    p = p * r + 0.04166666666648795
    p = p * r + 0.1666666666666668
    p = p * r + 0.5000000000000019
    p = p * r + 1.0
    p = p * r + 1.0
    return 0.0 if x <= SMALLEST else p * _power_of_two(shifted)


@jit_inline
def log1p(x: float) -> float:
    """log(1 + x) of 0 <= x <= 1 in float64, within 2 units in the last place; NaN for NaN.

    The series of 2 artanh(s), s = x / (2 + x), to where float64 ends.
    """
    s = x / (2.0 + x)
    z = s * s
    p = 1.0 / 33.0
    p = p * z + 1.0 / 31.0
    p = p * z + 1.0 / 29.0
    p = p * z + 1.0 / 27.0
    p = p * z + 1.0 / 25.0
    p = p * z + 1.0 / 23.0
    p = p * z + 1.0 / 21.0
    p = p * z + 1.0 / 19.0
    p = p * z + 1.0 / 17.0
    p = p * z + 1.0 / 15.0
    p = p * z + 1.0 / 13.0
    p = p * z + 1.0 / 11.0
    p = p * z + 1.0 / 9.0
    p = p * z + 1.0 / 7.0
    p = p * z + 1.0 / 5.0
    p = p * z + 1.0 / 3.0
    return 2.0 * s + 2.0 * s * (z * p)


@jit_inline
def log_of_one_and(x: float) -> float:
    """log(1 + x) of x >= 0 in float64, as exact as :func:`log1p`; what is not finite as it is."""
    significand, exponent = _split(1.0 + x)
    near = x <= 1
    m = x if near else significand - 1.0
    n = 0.0 if near else exponent
    log = n * LN2_HIGH + (log1p(m) + n * LN2_LOW)
    return log if x < math.inf else x


@jit_reordering
def maximum(row: Any) -> float:
    """The highest number of a row; anything where one is NaN."""
    highest = row[0]
    for c in range(1, row.shape[0]):
        highest = row[c] if row[c] > highest else highest
    return highest


@jit_reassociating
def total_of(row: Any) -> float:
    """The sum of a row in float64."""
    total = 0.0
    for c in range(row.shape[0]):
        total += row[c]
    return total


@jit_inline
def focal_weight(rest: float, gamma: float) -> float:
    """rest^gamma, where gamma is mostly 2."""
    return rest * rest if gamma == 2 else rest**gamma


@jit_inline
def focal(target_power: float, others: float, nll: float, gamma: float) -> tuple[float, float]:
    """The factors that make focal loss of cross-entropy, and its slope of that of cross-entropy.

    Args:
        target_power: The exponential of the target's score.
        others: The sum of those of all other scores.
        nll: The cross-entropy.
        gamma: The focal exponent; 0 for cross-entropy.
    """
    total = others + target_power
    rest = others / total
    if gamma == 0:
        return 1.0, 1.0
    if rest > 0:
        fade = focal_weight(rest, gamma)
        return fade, fade * (1 + gamma * (target_power / total) * nll / rest)
    return 0.0, 0.0
