"""Ratios of counts by class with their averages, for the metrics of decisions."""

from __future__ import annotations

from typing import Any

from lossd.compiled.kernels import aot

__all__ = ["rates"]


@aot("boolean(float64[:,::1], float64[:,:,::1], float64, boolean, float64[:,:,::1], boolean[:,:,::1])")
def rates(terms: Any, counts: Any, filler: float, absent_count: bool, values: Any, defined: Any) -> bool:
    """Compute M ratios of B requests and K classes, and their averages as :mod:`lossd.metrics.averages` defines them.

    Args:
        terms: (M, 4): a, b, c and d of (a·tp) / (b·tp + c·predicted + d·actual).
        counts: (3, B, K): tp, predicted and actual; the last is also the weight of a class in the weighted mean.
        filler: The value of an undefined ratio in the means; NaN to leave it out.
        absent_count: Whether ``filler`` also stands for classes that are in neither the target nor the prediction.
        values: (M, B, K + 3), written: per class, macro, micro, weighted; ``filler`` if undefined.
        defined: (M, B, K + 2), written: whether each is defined; one entry for macro and weighted.

    Returns:
        Whether all are defined.
    """
    _, requests, classes = counts.shape
    complete = True
    counts_anyway = filler == filler
    for m in range(terms.shape[0]):
        a, tp_factor, predicted_factor, actual_factor = terms[m]
        for b in range(requests):
            total, weighted, weight, averaged = 0.0, 0.0, 0.0, 0
            above, beneath = 0.0, 0.0
            for k in range(classes):
                tp, p, t = counts[0, b, k], counts[1, b, k], counts[2, b, k]
                n, d = a * tp, tp_factor * tp + predicted_factor * p + actual_factor * t
                above += n
                beneath += d
                is_defined = d > 0
                defined[m, b, k] = is_defined
                complete &= is_defined
                value = n / d if is_defined else filler
                values[m, b, k] = value
                if is_defined or (counts_anyway and (absent_count or p + t > 0)):
                    total += value
                    weighted += value * t
                    weight += t
                    averaged += 1
            macro = total / averaged if averaged else filler
            values[m, b, classes] = macro
            values[m, b, classes + 1] = above / beneath if beneath > 0 else filler
            values[m, b, classes + 2] = weighted / weight if weight > 0 else macro
            defined[m, b, classes] = averaged > 0
            defined[m, b, classes + 1] = beneath > 0
            complete &= averaged > 0 and beneath > 0
    return complete
