"""Mask gradients of entries that do not count, measure gradients, and clip them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lossd.evaluation.batch import TensorBatch
from lossd.losses.reduction import Segments

__all__ = ["clip", "mask", "norms", "put_classes_first"]

SMALL = 1e-18
"""Below this norm, the squares of its entries approach the end of float32's range."""


def mask(gradient: Tensor, value: Tensor, weight: Tensor | None, sample_weight: Tensor | None) -> Tensor:
    """Return the gradient with exact zeros at rows and entries that do not count, even if autograd gave NaN there.

    Args:
        gradient: The gradient of concatenated requests, (R, ...); overwritten.
        value: The weighted unreduced loss, (R, ...); it may lack the gradient's class axis.
        weight: The weight of each entry of the value; None for 1.
        sample_weight: The weight of each row, (R,), or None.
    """
    if sample_weight is not None:
        dropped = (sample_weight == 0).reshape(-1, *(1,) * (gradient.ndim - 1))
        gradient = gradient.masked_fill_(dropped, 0)
    if weight is not None and gradient.ndim >= value.ndim:
        # With smoothed labels a class of weight 0 still has a value, which adds only to the numerator.
        dropped = (weight == 0) & (value == 0)
        if gradient.ndim == value.ndim + 1:
            dropped = dropped.unsqueeze(1)
        gradient = gradient.masked_fill_(dropped, 0)
    return gradient


def norms(gradient: Tensor, segments: Segments) -> Tensor:
    """Return the L2 norm of each request's gradient, (B,) float64.

    Args:
        gradient: The gradient, with one row per row of the segments.
        segments: The rows of each request.
    """
    # A single request becomes one row: one long sum is faster than many short ones.
    flat = gradient.reshape(1 if segments.count == 1 and not segments.alike else segments.total, -1)
    lengths = _lengths(flat, segments)
    if lengths.device.type == "cpu" and _usual(lengths.numpy()):
        return lengths
    far = (lengths < SMALL) | ~lengths.isfinite()
    if bool(far.any()):
        # The squares may have left the dtype's range although the norm is within it.
        lengths = torch.where(far, _lengths_by_size(flat.double(), segments), lengths)
    return lengths


def _usual(lengths: npt.NDArray[np.float64]) -> bool:
    """Return whether all norms are as good as the dtype allows: NumPy takes less than a tensor operation for a few."""
    return bool(lengths.min() >= SMALL and lengths.max() < math.inf)


def _lengths(flat: Tensor, segments: Segments) -> Tensor:
    per_row: Tensor = torch.linalg.vector_norm(flat, dim=1).double()
    if len(flat) == segments.count and not segments.alike:
        return per_row
    lengths: Tensor = segments.sum(per_row * per_row).sqrt()
    return lengths


def _lengths_by_size(flat: Tensor, segments: Segments) -> Tensor:
    """Return the norms, computed in units of each request's largest entry."""
    largest = flat.abs().amax(1)
    largest = largest if len(flat) == segments.count else segments.largest(largest)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    row_unit = unit if len(flat) == segments.count else unit[segments.index]
    return _lengths(flat / row_unit.unsqueeze(1), segments) * unit


def clip(
    gradients: Mapping[str, Tensor], lengths: Mapping[str, Tensor], options: Mapping[str, Any], segments: Segments
) -> None:
    """Clamp entries, then scale down gradients that are still too long; in place.

    Args:
        gradients: The gradient by each input: (R, ...) or (B, ...), like the segments.
        lengths: The norms before clipping, (B,) each.
        options: ``clip_value``, ``clip_norm`` and ``clip_scope`` as in :class:`lossd.request.options.GradientOptions`.
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
        lengths = dict.fromkeys(lengths, reduce(torch.hypot, lengths.values()))  # hypot cannot overflow as squares can
    for name, gradient in gradients.items():
        length = lengths[name]
        factor = torch.where(length > limit, limit / length, torch.ones_like(length))
        if bool(
            (factor < torch.finfo(gradient.dtype).tiny).any()
        ):  # the factor would round to 0 in the gradient's dtype
            gradient.copy_(gradient.double() * segments.spread(factor, gradient.ndim))
        else:
            gradient.mul_(segments.spread(factor.to(gradient.dtype), gradient.ndim))


def put_classes_first(batch: TensorBatch) -> None:
    """Move the second axis of each request's derivatives to the front, within the memory that they have.

    Args:
        batch: Evaluated requests; the answers whose columns are ``class_first`` are overwritten.
    """
    for column in batch.recipe.answers:
        if not column.class_first:
            continue
        answer = batch.answers[column.name]
        if not column.per_row or len(batch.rows) == 1:
            requests = answer.unsqueeze(0) if column.per_row else answer
            answer.copy_(requests.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(answer.shape))
            continue
        segments, classes = Segments(batch.rows, answer.device), answer.shape[1]
        first = torch.tensor(segments.starts, device=answer.device)[segments.index]
        # In units of what a row has of a class: where the request begins, then a block for each class.
        within = torch.arange(segments.total, device=answer.device) - first
        blocks = torch.arange(classes, device=answer.device) * segments.lengths[segments.index].unsqueeze(1)
        place = (first * classes + within).unsqueeze(1) + blocks
        flat = answer.reshape(segments.total * classes, -1)
        answer.copy_(torch.empty_like(flat).index_copy_(0, place.flatten(), flat).reshape(answer.shape))
