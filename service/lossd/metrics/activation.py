"""Probabilities of scores, and the scores of thresholds; in float64.

Scores that are neither logits nor probabilities (hinges, margins) are read as logits; a task whose thresholds are
scores says "score".
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_total
from lossd.losses.softmax import settled
from lossd.metrics.cutoffs import rounded

Floats = npt.NDArray[np.float64]

__all__ = ["class_probabilities", "least_score", "least_scores", "probabilities", "threshold_between"]


def probabilities(scores: Tensor, activation: str) -> Tensor:
    """Return the probability of each entry to be positive."""
    wide = scores.double()
    match activation:
        case "probability" | "score":
            return wide
        case "log_probability":
            return wide.exp()
        case _:
            # Not torch's sigmoid: its last bits depend on a number's position in its tensor.
            smaller = wide.abs().neg().exp()
            larger = 1 / (1 + smaller)
            return torch.where(wide < 0, smaller * larger, larger)


def class_probabilities(scores: Tensor, activation: str) -> Tensor:
    """Return the probability of each class, (r, C, i)."""
    wide = scores.double()
    match activation:
        case "probability":
            return wide
        case "log_probability":
            return wide.exp()
        case _:
            # Not torch's softmax: with further positions, its last bits depend on a number's place in its tensor.
            settled_scores = settled(wide, 1)
            parts = (settled_scores - settled_scores.amax(1, keepdim=True)).exp()
            return parts / row_total(parts, keepdim=True)


def least_score(threshold: float | Mapping[str, float] | None, activation: str, dtype: str) -> float:
    """Return the lowest positive score, in the scores' dtype; every decision compares with this number.

    Args:
        threshold: The option: a probability, ``{"score": s}``, or None for 0.5.
        activation: The scores' domain.
        dtype: The dtype in which the scores were sent.
    """
    if isinstance(threshold, Mapping):
        return float(rounded(threshold["score"], dtype))
    return float(rounded(_score_of(0.5 if threshold is None else threshold, activation), dtype))


def least_scores(threshold: Any, activation: str, dtype: str, labels: int) -> Floats:
    """Return the lowest positive score of each label, (labels,), as :func:`least_score` does.

    Args:
        threshold: The option: one threshold for all labels, or a list of one for each.
        activation: The scores' domain.
        dtype: The dtype in which the scores were sent.
        labels: The number of labels.
    """
    if isinstance(threshold, list):
        return np.array([least_score(of_label, activation, dtype) for of_label in threshold])
    return np.full(labels, least_score(threshold, activation, dtype))


def threshold_between(score: float, below: float | None, activation: str, dtype: str) -> Any:
    """Return the option ``threshold`` for which a score is positive and lower ones are not.

    Args:
        score: The lowest score to decide for.
        below: The next lower score; None if there is none.
        activation: The scores' domain.
        dtype: The dtype in which the scores were sent.

    Returns:
        The score's probability; ``{"score": s}`` if it equals the probability of ``below`` in float64.
    """
    score = max(-sys.float_info.max, min(score, sys.float_info.max))  # JSON has no number for infinity
    threshold = _probability_of(score, activation)
    for _ in range(3):  # its last bits are rounded
        least = least_score(threshold, activation, dtype)
        if least <= score and (below is None or below < least):
            return threshold
        threshold = math.nextafter(threshold, 0)
    return {"score": score}


def _probability_of(score: float, activation: str) -> float:
    """Return the probability of a single score, as :func:`probabilities` does."""
    match activation:
        case "probability" | "score":
            return score
        case "log_probability":
            return math.exp(score)
        case _:
            smaller = math.exp(-abs(score))
            return 1 / (1 + smaller) if score >= 0 else smaller / (1 + smaller)


def _score_of(probability: float, activation: str) -> float:
    """Return the lowest score whose probability rounds to this one."""
    if activation in ("probability", "score"):
        return probability
    if probability == 0:
        return -math.inf
    least = math.nextafter(probability, 0) or probability
    if activation == "log_probability":
        return math.log(least)
    return math.log(least / (1 - least)) if probability != 0.5 else 0.0
