"""Sums of float64 that are rounded once, when they are read, so that no order changes them."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["ExactSum", "ratio"]

UNIT = 1 << 1074
"""How many of the smallest float64 make 1; every float64 is a whole number of them."""


class ExactSum:
    """A sum of float64.

    Args:
        values: The first values.
    """

    __slots__ = ("_not_finite", "_units")

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._units = 0
        self._not_finite = 0.0
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        """Add a value; infinities of both signs, as NaN, make the sum NaN."""
        if math.isfinite(value):
            numerator, denominator = value.as_integer_ratio()
            self._units += numerator * (UNIT // denominator)
        else:
            self._not_finite += value

    def __float__(self) -> float:
        """Return the nearest float64; infinite beyond float64."""
        return self._not_finite if self._not_finite != 0 else ratio(self._units, UNIT)

    def __bool__(self) -> bool:
        """Return whether the sum is not 0."""
        return self._units != 0 or self._not_finite != 0

    def __truediv__(self, other: ExactSum) -> float:
        """Return the ratio of two sums, rounded once; NaN over 0."""
        if self._not_finite != 0 or other._not_finite != 0:
            return float(self) / float(other) if other else math.nan
        return ratio(self._units, other._units)


def ratio(numerator: int, denominator: int) -> float:
    """Return the float64 nearest to a ratio of integers; infinite beyond float64, NaN over 0."""
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if (numerator < 0) == (denominator < 0) else -math.inf
    except ZeroDivisionError:
        return math.nan
