"""The digamma function, the slope of log Γ; Python has none."""

from __future__ import annotations

import math

from lossd.compiled.arithmetic import jit

__all__ = ["digamma"]

LARGE = 10.0


@jit
def digamma(x: float) -> float:
    """The slope of log Γ at x > 0: by its recurrence up to where its asymptotic series reaches float64's digits.

    NaN elsewhere, where the recurrence might not end.
    """
    if not x > 0:
        return math.nan
    behind = 0.0
    while x < LARGE:
        behind += 1 / x
        x += 1
    square = 1 / (x * x)
    series = square * (
        1 / 12
        - square
        * (
            1 / 120
            - square * (1 / 252 - square * (1 / 240 - square * (1 / 132 - square * (691 / 32760 - square / 12))))
        )
    )
    return math.log(x) - 0.5 / x - series - behind
