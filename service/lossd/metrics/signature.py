"""The tensors that metrics take where no loss declares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossd.losses.registry import Input
from lossd.losses.types import Domain, Kind, TensorType

__all__ = ["NO_SCORES", "SAMPLE_WEIGHT", "floats", "given", "prediction"]


def floats(domain: Domain, pattern: str) -> TensorType:
    """A type of float tensors."""
    return TensorType(domain, ("float",), tuple(pattern.split()))


def numbers(domain: Domain, pattern: str, *kinds: Kind) -> TensorType:
    """A type of tensors of floats or integers, or of the kinds named."""
    return TensorType(domain, kinds or ("float", "integer"), tuple(pattern.split()))


def given(name: str, summary: str, *types: TensorType, optional: bool = False, no_labels: str = "") -> Input:
    """An input without gradient."""
    return Input(name, types, differentiable=False, optional=optional, summary=summary, no_labels=no_labels)


NO_SCORES = "which would be read as logits, 0 as a probability of 1/2; send logits as floats"
AS_LOGITS = (
    "which would be read as logits, 0 as a probability of 1/2; for decisions or probabilities set metrics.from_logits "
    "to false, and send logits as floats"
)


def prediction(options: Mapping[str, Any], pattern: str, *, decides: bool = True) -> Input:
    """Logits, or probabilities where the option ``from_logits`` is false.

    Args:
        options: Of the metrics.
        pattern: The axes.
        decides: Whether each entry decides by itself, so that 0 and 1 would be taken for what they are not.
    """
    if options.get("from_logits", True):
        unless = AS_LOGITS if decides else ""
        return given("prediction", "Logits, any real.", floats("logits", pattern), no_labels=unless)
    return given("prediction", "Probabilities, in [0, 1].", floats("probability", pattern))


SAMPLE_WEIGHT = given(
    "sample_weight", "What each sample counts, >= 0; 0 drops it.", numbers("nonnegative", "N"), optional=True
)
