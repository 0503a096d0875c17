"""Closed forms of the parameters that have none: the gradient by autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lossd.lazy_torch import Tensor, torch
from lossd.losses.registry import Unreduced, Upstream

__all__ = ["differentiated"]


def differentiated(
    function: Callable[..., Tensor | Unreduced],
    upstream: Upstream,
    gradient: Mapping[str, Tensor],
    prediction: Tensor,
    target: Tensor,
    **parameters: Any,
) -> Tensor | Unreduced:
    """Write the gradient by ``prediction``, and return the unreduced loss.

    Args:
        function: The loss function.
        upstream: Returns the upstream gradient.
        gradient: Where the gradient is written.
        prediction: The predictions.
        target: The targets.
        parameters: The loss's parameters.
    """
    leaf = prediction.detach().requires_grad_()
    with torch.enable_grad():
        unreduced = function(leaf, target, **parameters)
    value, weight = (unreduced.value, unreduced.weight) if isinstance(unreduced, Unreduced) else (unreduced, None)
    factor = upstream(weight).to(value.dtype).expand(value.shape)
    gradient["prediction"].copy_(torch.autograd.grad(value, leaf, factor)[0])
    value = value.detach()
    return replace(unreduced, value=value) if isinstance(unreduced, Unreduced) else value
