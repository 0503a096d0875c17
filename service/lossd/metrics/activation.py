"""From scores to probabilities, by what the prediction is; float64 throughout.

Losses whose scores are neither logits nor probabilities (hinges, margins) have theirs read as logits.
"""

from __future__ import annotations

import math

from lossd.deferred import Tensor

__all__ = ["class_probabilities", "least_score", "probabilities"]


def probabilities(scores: Tensor, activation: str) -> Tensor:
    """The probability of yes."""
    wide = scores.double()
    match activation:
        case "probability":
            return wide
        case "log_probability":
            return wide.exp()
        case _:
            return wide.sigmoid()


def class_probabilities(scores: Tensor, activation: str) -> Tensor:
    """The probability of each class, (r, C, i)."""
    wide = scores.double()
    match activation:
        case "probability":
            return wide
        case "log_probability":
            return wide.exp()
        case _:
            return wide.softmax(1)


def least_score(threshold: float | None, activation: str) -> float:
    """The score from which on the probability of yes is at least ``threshold``, or a half where there is none."""
    if threshold is None:
        threshold = 0.5
    match activation:
        case "probability":
            return threshold
        case "log_probability":
            return math.log(threshold) if threshold > 0 else -math.inf
        case _ if threshold in (0, 1):
            return math.inf if threshold else -math.inf
        case _:
            return math.log(threshold / (1 - threshold))
