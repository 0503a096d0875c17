"""Sums over the regions of a dense prediction: overlap, prediction and target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_total, sigmoid
from lossd.losses.registry import Unreduced
from lossd_client.errors import ShapeMismatch

__all__ = ["UNCERTAIN", "RegionSums", "by_class", "class_table", "masked", "ratio", "sums", "weighted"]

UNCERTAIN = 0.01
"""What rounding may add to probabilities that sum to 1, or take from a divergence, in any dtype."""


@dataclass(frozen=True, slots=True)
class RegionSums:
    """Sums over each region, float64, (C,) over the whole batch or (N, C) over each image.

    Attributes:
        overlap: The sum of prediction times target.
        prediction: The sum of the predicted probabilities.
        target: The sum of the target.
        counted: Whether the region has a position that is not ignored.
        rounding: What the dtype's rounding may add up to in a region without a target.
        flags: Warnings about the targets, with the positions that they concern.
    """

    overlap: Tensor
    prediction: Tensor
    target: Tensor
    counted: Tensor
    rounding: float
    flags: Mapping[str, Tensor]


def masked(
    prediction: Tensor, target: Tensor, mode: str, from_logits: bool, ignore_index: int | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return probabilities (N, C, P), targets (N, 1 or C, P), both 0 where ignored, and the ignored mask or None.

    What the mask leaves out is ignored too: in the shape of the targets, or (N, *) if these are class probabilities.
    """
    n, c = prediction.shape[0], 1 if mode == "binary" else prediction.shape[1]
    indices, one = _are_indices(prediction, target, mode), mode == "multiclass"  # one mask for all classes
    prediction = prediction.reshape(n, c, -1)
    target = target.long().reshape(n, 1, -1) if indices else target.reshape(n, c, -1)
    ignored = None if ignore_index is None or (one and not indices) else target == ignore_index
    if mask is not None:
        dropped = ~mask.reshape(n, 1 if one else c, -1)
        ignored = dropped if ignored is None else ignored | dropped
    if ignored is not None:
        # Mask before the softmax too, so that a NaN there sends no gradient back.
        prediction, target = prediction.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
    if from_logits:
        prediction = torch.softmax(prediction, 1) if mode == "multiclass" else sigmoid(prediction)
    return prediction if ignored is None else prediction.masked_fill(ignored, 0), target, ignored


def _are_indices(prediction: Tensor, target: Tensor, mode: str) -> bool:
    """Return whether targets are class indices, which have no axis of classes."""
    return mode == "multiclass" and target.ndim < prediction.ndim


def sums(
    prediction: Tensor,
    target: Tensor,
    mode: str,
    from_logits: bool,
    per_image: bool,
    include_background: bool,
    ignore_index: int | None,
    mask: Tensor | None,
    element_weight: Tensor | None,
) -> RegionSums:
    """Return the sums over each region; the parameters are those of ``dice``.

    ``mask`` and ``element_weight`` have the shape of the target: which positions count, and how much in each sum.

    Raises:
        ShapeMismatch: The background is the only class.
    """
    if mode != "binary" and prediction.shape[1] == 1 and not include_background:
        raise ShapeMismatch("prediction has one class and include_background is false: there is no region left")
    indices = _are_indices(prediction, target, mode)
    prediction, target, ignored = masked(prediction, target, mode, from_logits, ignore_index, mask)
    weight = None if element_weight is None else element_weight.reshape(len(target), -1, target.shape[2])
    if weight is not None:
        prediction = prediction * weight if ignored is None else (prediction * weight).masked_fill(ignored, 0)
    flags = {}
    if mode == "multiclass" and not indices:
        improper = (row_total(target, keepdim=True) - 1).abs() > UNCERTAIN
        flags["not_a_distribution"] = improper if ignored is None else improper & ~ignored
    # A sum along one row of memory is pairwise in torch; across rows float64 takes over.
    predicted = prediction.sum(-1).double()
    if indices:
        overlap, count = by_class(prediction, target, ignored, weight)
    else:
        there = target if weight is None else target * weight
        overlap, count = (prediction * target).sum(-1).double(), there.sum(-1).double()
    counted = torch.ones_like(count) if ignored is None else (~ignored).any(-1).expand(count.shape).to(count.dtype)
    stacked = torch.stack([overlap, predicted, count, counted])[:, :, 0 if include_background else 1 :]
    elements = prediction.shape[2] * (1 if per_image else prediction.shape[0])
    overlap, predicted, count, counted = (stacked if per_image else stacked.sum(1)).unbind()
    return RegionSums(overlap, predicted, count, counted > 0, elements * torch.finfo(prediction.dtype).eps, flags)


def by_class(
    prediction: Tensor, target: Tensor, ignored: Tensor | None = None, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the sum of each class's probabilities where it is the target, and its count, (N, C) float64 each.

    Args:
        prediction: Probabilities, (N, C, P).
        target: Class indices, (N, 1, P).
        ignored: Where the target does not count, (N, 1, P).
        weight: What each target counts, (N, 1, P), 0 where it is ignored by a mask; None for 1.
    """
    picked = prediction.gather(1, target).squeeze(1).double()
    one = torch.ones_like(picked) if weight is None else weight.squeeze(1).double()
    if ignored is not None:
        one = one.masked_fill(ignored.squeeze(1), 0)
    empty = torch.zeros(prediction.shape[:2], dtype=torch.float64, device=prediction.device)
    target = target.squeeze(1)
    return empty.scatter_add(1, target, picked), empty.scatter_add(1, target, one)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient; 1 with gradient 0 if both are 0: nothing to find and nothing found."""
    empty = denominator == 0
    return torch.where(empty, torch.ones_like(numerator), numerator / denominator.masked_fill(empty, 1))


def class_table(value: Tensor, class_weight: Sequence[float], include_background: bool) -> Tensor:
    """Return the weights of the classes that are regions."""
    return torch.tensor(class_weight, dtype=value.dtype, device=value.device)[0 if include_background else 1 :]


def weighted(
    value: Tensor,
    region: RegionSums,
    smooth: float | Tensor,
    class_weight: Sequence[float] | None,
    include_background: bool,
    absent: str,
) -> Unreduced:
    """Return the value of each region with its weight; the parameters are those of ``dice``."""
    weight = region.counted.to(value.dtype)
    if class_weight is not None:
        weight = weight * class_table(value, class_weight, include_background)
    empty = region.target == 0
    if absent == "ignore":
        weight = weight.masked_fill(empty, 0)
    tiny = torch.as_tensor(smooth, device=value.device) < region.rounding
    return Unreduced(value * weight, weight, flags={**region.flags, "tiny_smooth": empty & (weight != 0) & tiny})
