"""What happens to gradients between the loss and the answer: masked where nothing counts, measured, clipped."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from lossd.losses.reduction import Segments

__all__ = ["clip", "mask", "norms"]

SMALL = 1e-18
"""Below, the squares of a norm's entries come near the end of float32's range."""


def mask(gradient: Tensor, value: Tensor, weight: Tensor | None, sample_weight: Tensor | None) -> Tensor:
    """The gradient, exactly 0 where a row or an entry does not count, whatever its neighbours in the graph were.

    Args:
        gradient: (R, ...) of concatenated requests; overwritten.
        value: The weighted unreduced loss, (R, ...), perhaps without the class axis that ``gradient`` has.
        weight: What each entry of the value counts, or None for one each.
        sample_weight: (R,), or None.
    """
    if sample_weight is not None:
        dropped = (sample_weight == 0).reshape(-1, *(1,) * (gradient.ndim - 1))
        gradient = gradient.masked_fill_(dropped, 0)
    if weight is not None and gradient.ndim >= value.ndim:
        # A class of weight 0 still has a value where labels are smoothed: it adds to the numerator alone.
        dropped = (weight == 0) & (value == 0)
        if gradient.ndim == value.ndim + 1:
            dropped = dropped.unsqueeze(1)
        gradient = gradient.masked_fill_(dropped, 0)
    return gradient


def norms(gradient: Tensor, segments: Segments) -> Tensor:
    """The L2 norm of each request's gradient, (B,) float64.

    Args:
        gradient: One row per row of the segments.
        segments: The rows of each request.
    """
    # One request is one row: its entries' order does not matter, and one long sum is faster than many short ones.
    flat = gradient.reshape(1 if segments.count == 1 else segments.total, -1)
    lengths = _lengths(flat, segments)
    far = (lengths < SMALL) | ~lengths.isfinite()
    if bool(far.any()):
        # Squares may have left the dtype's range where the norm itself has not.
        lengths = torch.where(far, _lengths_by_size(flat.double(), segments), lengths)
    return lengths


def _lengths(flat: Tensor, segments: Segments) -> Tensor:
    per_row: Tensor = torch.linalg.vector_norm(flat, dim=1).double()
    if len(flat) == segments.count:
        return per_row
    lengths: Tensor = segments.sum(per_row * per_row).sqrt()
    return lengths


def _lengths_by_size(flat: Tensor, segments: Segments) -> Tensor:
    """The same in units of each request's largest entry."""
    largest = flat.abs().amax(1)
    largest = largest if len(flat) == segments.count else segments.largest(largest)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    of_rows = unit if len(flat) == segments.count else unit[segments.index]
    return _lengths(flat / of_rows.unsqueeze(1), segments) * unit


def clip(
    gradients: Mapping[str, Tensor], lengths: Mapping[str, Tensor], options: Mapping[str, Any], segments: Segments
) -> None:
    """Clamp entries, then scale down what is still too long; in place.

    Args:
        gradients: By input, each (R, ...) or (B, ...) as the segments have it.
        lengths: The norms before clipping, (B,) each.
        options: ``clip_value``, ``clip_norm`` and ``clip_scope`` as in :class:`lossd.request.plan.GradientOptions`.
        segments: The rows of each request.
    """
    limit, value = options.get("clip_norm"), options.get("clip_value")
    if value is not None:
        for gradient in gradients.values():
            if value < torch.finfo(gradient.dtype).max:
                gradient.clamp_(-value, value)
        lengths = {name: norms(g, segments) for name, g in gradients.items()}
    if limit is None or not gradients:
        return
    if options.get("clip_scope") != "tensor":
        lengths = dict.fromkeys(lengths, reduce(torch.hypot, lengths.values()))  # whose squares cannot overflow
    for name, gradient in gradients.items():
        length = lengths[name]
        factor = torch.where(length > limit, limit / length, torch.ones_like(length))
        if bool((factor < torch.finfo(gradient.dtype).tiny).any()):  # rounded to the gradient's dtype, it would vanish
            gradient.copy_(gradient.double() * segments.spread(factor, gradient.ndim))
        else:
            gradient.mul_(segments.spread(factor.to(gradient.dtype), gradient.ndim))
