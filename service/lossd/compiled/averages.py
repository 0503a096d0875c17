"""Ratios of counts by class with their averages, for the metrics of decisions."""

from __future__ import annotations

from typing import Any

from lossd.compiled.arithmetic import compiled

__all__ = ["ratios"]


@compiled(
    "boolean(float64[:,:,::1], float64[:,:,::1], float64[:,::1], boolean[:,::1], float64, float64[:,:,::1],"
    " boolean[:,:,::1])"
)
def ratios(
    numerators: Any, denominators: Any, support: Any, present: Any, filler: float, values: Any, defined: Any
) -> bool:
    """M ratios of each of B requests and K classes, and their averages as :mod:`lossd.metrics.averages` defines them.

    Args:
        numerators: (M, B, K).
        denominators: (M, B, K).
        support: (B, K), what a class counts in the weighted mean.
        present: (B, K), whether a class counts in macro and weighted where its ratio is defined.
        filler: What an undefined ratio counts as; NaN where it does not count.
        values: (M, B, K + 3), written: per class, then macro, micro, weighted; where undefined, ``filler``.
        defined: (M, B, K + 2), written: whether each is, macro and weighted being so together.

    Returns:
        Whether all are.
    """
    metrics, requests, classes = numerators.shape
    complete = True
    counts_anyway = filler == filler
    for m in range(metrics):
        for b in range(requests):
            total, weighted, weight, averaged = 0.0, 0.0, 0.0, 0
            above, beneath = 0.0, 0.0
            for k in range(classes):
                n, d = numerators[m, b, k], denominators[m, b, k]
                above += n
                beneath += d
                is_defined = d > 0
                defined[m, b, k] = is_defined
                complete &= is_defined
                value = n / d if is_defined else filler
                values[m, b, k] = value
                if present[b, k] and (is_defined or counts_anyway):
                    total += value
                    weighted += value * support[b, k]
                    weight += support[b, k]
                    averaged += 1
            macro = total / averaged if averaged else filler
            values[m, b, classes] = macro
            values[m, b, classes + 1] = above / beneath if beneath > 0 else filler
            values[m, b, classes + 2] = weighted / weight if weight > 0 else macro
            defined[m, b, classes] = averaged > 0
            defined[m, b, classes + 1] = beneath > 0
            complete &= averaged > 0 and beneath > 0
    return complete
