"""The inputs of tasks whose metrics are computed without a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossd.losses.registry import Input
from lossd.losses.types import Domain, Kind, TensorType

__all__ = ["NO_SCORES", "SAMPLE_WEIGHT", "constant_input", "floats", "prediction"]


def floats(domain: Domain, pattern: str) -> TensorType:
    """Return a type of float tensors."""
    return TensorType(domain, ("float",), tuple(pattern.split()))


def numbers(domain: Domain, pattern: str, *kinds: Kind) -> TensorType:
    """Return a type of tensors of floats or integers, or of the given kinds."""
    return TensorType(domain, kinds or ("float", "integer"), tuple(pattern.split()))


def constant_input(name: str, summary: str, *types: TensorType, optional: bool = False, no_labels: str = "") -> Input:
    """Return an input without gradient."""
    return Input(name, types, differentiable=False, optional=optional, summary=summary, no_labels=no_labels)


NO_SCORES = "which would be read as logits, 0 as a probability of 1/2; send logits as floats"
AS_LOGITS = (
    "which would be read as logits, 0 as a probability of 1/2; for decisions or probabilities set metrics.from_logits "
    "to false, and send logits as floats"
)


def prediction(options: Mapping[str, Any], pattern: str, *, decides: bool = True) -> Input:
    """Return the input of logits, or of probabilities if the option ``from_logits`` is false.

    Args:
        options: The metrics' options.
        pattern: The axes.
        decides: Whether each entry is decided on its own, so that labels 0 and 1 would be misread as logits.
    """
    if options.get("from_logits", True):
        unless = AS_LOGITS if decides else ""
        return constant_input("prediction", "Logits, any real.", floats("logits", pattern), no_labels=unless)
    return constant_input("prediction", "Probabilities, in [0, 1].", floats("probability", pattern))


SAMPLE_WEIGHT = constant_input(
    "sample_weight", "The weight of each sample, >= 0; 0 drops it.", numbers("nonnegative", "N"), optional=True
)
