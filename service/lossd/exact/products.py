"""Products of float64 as sums of float64, without rounding.

References:
    T. J. Dekker, A Floating-Point Technique for Extending the Available Precision, 1971, doi:10.1007/BF01397083: the
        product of two float64 as two float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SAFE", "exact_product", "outside_of"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

SAFE = 2.0**-300, 2.0**300
"""Between these, no product of three and no rounding error of it leaves the range of float64."""


def outside_of(factors: list[Floats]) -> Array | None:
    """Return which products have a factor beyond ``SAFE``, other than 0; None if there is none."""
    outside = None
    for number, factor in enumerate(factors):
        if any(factor is before for before in factors[:number]) or not factor.size:
            continue
        size = np.abs(factor)
        if SAFE[0] <= np.minimum.reduce(size) and np.maximum.reduce(size) <= SAFE[1]:
            continue
        beyond = ~(((size >= SAFE[0]) & (size <= SAFE[1])) | (size == 0))
        outside = beyond if outside is None else outside | beyond
    return outside if outside is not None and outside.any() else None


def exact_product(factors: list[Floats]) -> list[Floats]:
    """Return arrays whose sum is the product of two or three factors, exactly; within ``SAFE``."""
    terms = _two_product(factors[0], factors[1])
    for factor in factors[2:]:
        terms = [part for term in terms for part in _two_product(term, factor)]
    return terms


def _two_product(x: Floats, y: Floats) -> list[Floats]:
    """Return the product, and its rounding error unless it has none."""
    product = x * y
    x_high, x_low = _halves(x)
    y_high, y_low = (x_high, x_low) if y is x else _halves(y)
    if not (x_low.any() or y_low.any()):  # 26 bits times 26 bits, such as numbers of single precision
        return [product]
    return [product, x_low * y_low - (((product - x_high * y_high) - x_low * y_high) - x_high * y_low)]


def _halves(x: Floats) -> tuple[Floats, Floats]:
    """Return the upper 26 bits of each mantissa, and the rest."""
    scaled = x * 134217729.0  # 2**27 + 1
    high = scaled - (scaled - x)
    return high, x - high
