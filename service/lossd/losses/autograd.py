"""Gradients by autograd, and closed forms of the parameters that have none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lossd.lazy_torch import Tensor, torch
from lossd.losses.registry import Unreduced, Upstream

__all__ = ["differentiated", "vjp"]


def vjp(
    value: Tensor, sources: Sequence[Tensor], upstream: Tensor, *, twice: bool = False, keep: bool = False
) -> list[Tensor]:
    """Return the product of ``upstream`` and the Jacobian of ``value`` by each source, in the source's shape.

    It is zero for a source on which the value does not depend.

    ``torch.autograd.grad`` returns the same. It first compares the shapes as symbols. Its first call imports SymPy for
    this, which takes half a second and 38 MiB of each worker, and each call with a small batch takes twice as long. The
    function of torch that both end in is undocumented.

    Args:
        value: A function of the sources.
        sources: Leaves of the graph.
        upstream: A factor for each entry of the value, in the value's shape and dtype.
        twice: Whether the result is differentiated again.
        keep: Whether the value is differentiated again.
    """
    found: Sequence[Tensor | None] = [None] * len(sources)
    if value.requires_grad:
        run = torch.autograd.graph._engine_run_backward
        found = run((value,), (upstream,), twice or keep, twice, tuple(sources), True, accumulate_grad=False)
    return [
        torch.zeros_like(source, requires_grad=twice) if gradient is None else gradient
        for source, gradient in zip(sources, found, strict=True)
    ]


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
    gradient["prediction"].copy_(vjp(value, [leaf], factor)[0])
    value = value.detach()
    return replace(unreduced, value=value) if isinstance(unreduced, Unreduced) else value
