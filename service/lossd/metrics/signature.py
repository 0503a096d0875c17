"""The tensors that metrics take where no loss declares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossd.losses.registry import Input
from lossd.losses.types import Domain, Kind, TensorType

__all__ = ["SAMPLE_WEIGHT", "floats", "given", "prediction"]


def floats(domain: Domain, pattern: str) -> TensorType:
    """A type of float tensors."""
    return TensorType(domain, ("float",), tuple(pattern.split()))


def numbers(domain: Domain, pattern: str, *kinds: Kind) -> TensorType:
    """A type of tensors of floats or integers, or of the kinds named."""
    return TensorType(domain, kinds or ("float", "integer"), tuple(pattern.split()))


def given(name: str, summary: str, *types: TensorType, optional: bool = False) -> Input:
    """An input without gradient."""
    return Input(name, types, differentiable=False, optional=optional, summary=summary)


def prediction(options: Mapping[str, Any], pattern: str) -> Input:
    """Logits, or probabilities where the option ``from_logits`` is false."""
    if options.get("from_logits", True):
        return given("prediction", "Logits, any real.", floats("logits", pattern))
    return given("prediction", "Probabilities, in [0, 1].", floats("probability", pattern))


SAMPLE_WEIGHT = given(
    "sample_weight", "What each sample counts, >= 0; 0 drops it.", numbers("nonnegative", "N"), optional=True
)
