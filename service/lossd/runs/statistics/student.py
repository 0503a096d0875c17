"""Student's t distribution, of any number of degrees of freedom, to about twelve digits."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

__all__ = ["quantile", "two_sided"]

STEPS = 400
"""More terms than the fraction has for any t and any degrees of freedom from 1 to 10,000."""

TINY, PRECISION = 1e-300, 1e-16


def two_sided(t: float, df: float) -> float:
    """Return how likely a t of this distance from 0, or a larger one, is.

    Args:
        t: The value of t.
        df: The degrees of freedom, at least 1.
    """
    if math.isnan(t):
        return math.nan
    square = t * t
    if math.isinf(square):
        return 0.0
    outer, inner = df / (df + square), square / (df + square)
    if outer * (df + 5) < df + 2:  # the fraction is quick below its mean
        return _beta(outer, inner, df / 2, 0.5)
    return 1 - _beta(inner, outer, 0.5, df / 2)


@lru_cache(1 << 10)
def quantile(level: float, df: float) -> float:
    """Return the t beyond which, on either side, lies what ``level`` leaves out.

    Args:
        level: The probability between -t and t, in (0, 1).
        df: The degrees of freedom, at least 1.
    """
    # The tail is convex and higher than the normal one, so Newton's steps from there rise to the root.
    outside = 1 - level
    t = NormalDist().inv_cdf(1 - outside / 2)
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    for _ in range(100):
        step = (two_sided(t, df) - outside) / (2 * scale * (1 + t * t / df) ** (-(df + 1) / 2))
        t += step
        if abs(step) <= 1e-15 * t:
            break
    return t


def _beta(x: float, rest: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function of x, where ``rest`` is 1 - x.

    By its continued fraction (https://dlmf.nist.gov/8.17.E22), with the method of Lentz, as modified by Thompson and
    Barnett, 1986, doi:10.1016/0021-9991(86)90046-X.
    """
    if x <= 0:
        return 0.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    ) / a  # fmt: skip
    value, above, below = 1.0, 1.0, 0.0
    for step in range(STEPS):
        m = step // 2
        if step == 0:
            factor = 1.0
        elif step % 2 == 0:
            factor = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            factor = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        below = 1 / _kept(1 + factor * below)
        above = _kept(1 + factor / above)
        value *= above * below
        if step and abs(1 - above * below) < PRECISION:
            break
    return front * (value - 1)


def _kept(number: float) -> float:
    return number if abs(number) > TINY else TINY
