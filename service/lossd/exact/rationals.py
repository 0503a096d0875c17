"""Rational numbers, rounded once."""

from __future__ import annotations

import math
from fractions import Fraction

from lossd_client.exact import ratio

__all__ = ["root", "rounded", "second_moment"]


def rounded(value: Fraction) -> float:
    """Return the nearest float64; infinite beyond float64."""
    return ratio(value.numerator, value.denominator)


def root(value: Fraction) -> float:
    """Return the float64 nearest to the square root of a number that is not negative."""
    numerator, denominator = value.numerator, value.denominator
    # 60 bits of the root, and one that says whether there are more: enough to round to 53.
    shift = 60 - (numerator.bit_length() - denominator.bit_length()) // 2
    square, left = divmod(numerator << 2 * max(shift, 0), denominator << 2 * max(-shift, 0))
    found = math.isqrt(square)
    found = 2 * found + (left > 0 or found**2 != square)
    return ratio(found << max(-shift - 1, 0), 1 << max(shift + 1, 0))


def second_moment(count: Fraction | int, sums: tuple[Fraction, Fraction], products: Fraction) -> Fraction:
    """Return the sum of (x - mean x)(y - mean y), without the cancellation that rounded sums would have.

    Args:
        count: How many pairs there are, or the sum of their weights; not 0.
        sums: The sums of x and of y, times the weights.
        products: The sum of xy, times the weights.
    """
    return products - sums[0] * sums[1] / Fraction(count)
