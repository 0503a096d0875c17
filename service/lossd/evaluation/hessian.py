"""Second derivatives: the diagonal of the Hessian, and its product with a direction.

Both are computed in float64: the second derivative of a nearly certain prediction is the difference of nearly equal
numbers in the formulas that autograd derives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lossd.losses.autograd import vjp
from lossd.losses.reduction import Segments
from lossd.losses.registry import Loss, Unreduced

__all__ = ["count", "diagonal", "product", "scale", "wide"]

Tensors = Mapping[str, Tensor]
Value = Callable[[Tensors], Tensor | Unreduced]
"""Returns the unreduced loss, given the inputs."""


def wide(tensors: Tensors) -> dict[str, Tensor]:
    """Return the inputs with floats in float64."""
    return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}


def diagonal(
    loss: Loss,
    name: str,
    form: str,
    value_of: Value,
    tensors: Tensors,
    parameters: Mapping[str, Any],
    upstream: Tensor | None = None,
) -> Tensor:
    """Return the second derivative of the loss by each entry of an input, in the input's shape.

    Args:
        loss: The loss: elementwise in the input, or of kind rows.
        name: The input.
        form: exact, fisher, xgboost or lightgbm; the exact one for libraries that lack the loss.
        value_of: The loss as a function of its inputs.
        tensors: The inputs, floats in float64.
        parameters: The loss's parameters.
        upstream: The factor of each entry of the value, for losses without a closed form; None for 1.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    closed = loss.closed_hessian(form, parameters, shapes) or loss.closed_hessian("exact", parameters, shapes)
    if closed is not None and name == "prediction":
        with torch.no_grad():
            return closed(**tensors, **parameters).expand_as(tensors[name]).clone()
    leaf, value = _valued(value_of, tensors, name)
    factor = torch.ones_like(value) if upstream is None else upstream.to(value.dtype).expand(value.shape)
    gradient = _derivative(value, leaf, factor, twice=True)
    if loss.is_elementwise(name, parameters):
        return _derivative(gradient, leaf, torch.ones_like(gradient))
    rows = gradient.reshape(gradient.shape[0], -1)
    second = torch.empty_like(rows)
    for entry in range(rows.shape[1]):
        of_entry = _derivative(rows[:, entry], leaf, torch.ones_like(rows[:, entry]), keep=True)
        second[:, entry] = of_entry.reshape(rows.shape)[:, entry]
    return second.detach().reshape(gradient.shape)


def product(value_of: Value, tensors: Tensors, name: str, direction: Tensor, upstream: Tensor) -> Tensor:
    """Return the product of the loss's Hessian by an input and a direction, in the input's shape.

    Args:
        value_of: The loss as a function of its inputs.
        tensors: The inputs, floats in float64.
        name: The input.
        direction: What the Hessian is multiplied with.
        upstream: The factor of each entry of the value; broadcasts against it.
    """
    leaf, value = _valued(value_of, tensors, name)
    gradient = _derivative(value, leaf, upstream.to(value.dtype).expand(value.shape), twice=True)
    return _derivative(gradient, leaf, direction.to(gradient.dtype))


def scale(second: Tensor, upstream: Tensor, value_ndim: int) -> Tensor:
    """Return second derivatives times the factor of their entries of the value.

    Args:
        second: Of the unreduced loss, (R, ...); overwritten.
        upstream: A factor for all, or (R, ...) that broadcasts against the value.
        value_ndim: The axes of the value, which may lack the classes' or have the rows' alone.
    """
    factor = upstream.double()
    if factor.ndim and value_ndim == 1:
        factor = factor.reshape(-1, *(1,) * (second.ndim - 1))
    elif factor.ndim and second.ndim == value_ndim + 1:
        factor = factor.unsqueeze(1)
    return second.mul_(factor)


def count(tensors: Mapping[str, Tensor], segments: Segments) -> dict[str, Tensor]:
    """Return, by code of a warning, how many entries of each request are concerned: (B,) float64.

    Args:
        tensors: Hessians and products by the names of their columns.
        segments: The rows of each request.
    """
    hessians = [tensor for name, tensor in tensors.items() if name.startswith("hessian.")]
    concerned = {
        "negative_hessian": [tensor < 0 for tensor in hessians],
        "non_finite_hessian": [~tensor.isfinite() for tensor in tensors.values()],
    }
    zero = torch.zeros(segments.count, dtype=torch.float64, device=segments.device)
    return {
        code: sum((segments.sum(entries.reshape(len(entries), -1).sum(1)).double() for entries in masks), zero)
        for code, masks in concerned.items()
    }


def _valued(value_of: Value, tensors: Tensors, name: str) -> tuple[Tensor, Tensor]:
    """Return an input as a leaf, and the unreduced loss as a function of it."""
    leaf = tensors[name].detach().requires_grad_()
    with torch.enable_grad():
        unreduced = value_of({**tensors, name: leaf})
    return leaf, unreduced.value if isinstance(unreduced, Unreduced) else unreduced


def _derivative(value: Tensor, leaf: Tensor, factor: Tensor, *, twice: bool = False, keep: bool = False) -> Tensor:
    """Return the derivative of the value's weighted sum; 0 where the value does not depend on the leaf."""
    with torch.enable_grad():
        [found] = vjp(value, [leaf], factor, twice=twice, keep=keep)
    return found if twice else found.clone()  # zeros that autograd makes cannot be overwritten
