"""Sums over the regions of a dense prediction: overlap, prediction and target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import sigmoid
from lossd.losses.registry import Unreduced
from lossd_client.errors import ShapeMismatch

__all__ = ["Regions", "by_class", "class_table", "masked", "ratio", "sums", "weighted"]


@dataclass(frozen=True, slots=True)
class Regions:
    """Sums over each region, float64, (C,) over the whole batch or (N, C) over each image.

    Attributes:
        overlap: The sum of prediction times target.
        prediction: The sum of the predicted probabilities.
        target: The sum of the target.
        counted: Whether the region has a position that is not ignored.
        rounding: What the dtype's rounding may add up to in a region without a target.
    """

    overlap: Tensor
    prediction: Tensor
    target: Tensor
    counted: Tensor
    rounding: float


def masked(
    prediction: Tensor, target: Tensor, mode: str, from_logits: bool, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return probabilities (N, C, P), targets (N, 1 or C, P), both 0 where ignored, and the ignored mask or None."""
    n, c = prediction.shape[0], 1 if mode == "binary" else prediction.shape[1]
    prediction = prediction.reshape(n, c, -1)
    target = target.long().reshape(n, 1, -1) if mode == "multiclass" else target.reshape(n, c, -1)
    ignored = None if ignore_index is None else target == ignore_index
    if ignored is not None:
        # Mask before the softmax too, so that a NaN there sends no gradient back.
        prediction, target = prediction.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
    if from_logits:
        prediction = torch.softmax(prediction, 1) if mode == "multiclass" else sigmoid(prediction)
    return prediction if ignored is None else prediction.masked_fill(ignored, 0), target, ignored


def sums(
    prediction: Tensor,
    target: Tensor,
    mode: str,
    from_logits: bool,
    per_image: bool,
    include_background: bool,
    ignore_index: int | None,
) -> Regions:
    """Return the sums over each region; the parameters are those of ``dice``.

    Raises:
        ShapeMismatch: The background is the only class.
    """
    if mode != "binary" and prediction.shape[1] == 1 and not include_background:
        raise ShapeMismatch("prediction has one class and include_background is false: there is no region left")
    prediction, target, ignored = masked(prediction, target, mode, from_logits, ignore_index)
    # A sum along one row of memory is pairwise in torch; across rows float64 takes over.
    predicted = prediction.sum(-1).double()
    if mode == "multiclass":
        overlap, count = by_class(prediction, target, ignored)
    else:
        overlap, count = (prediction * target).sum(-1).double(), target.sum(-1).double()
    counted = torch.ones_like(count) if ignored is None else (~ignored).any(-1).expand(count.shape).to(count.dtype)
    stacked = torch.stack([overlap, predicted, count, counted])[:, :, 0 if include_background else 1 :]
    elements = prediction.shape[2] * (1 if per_image else prediction.shape[0])
    overlap, predicted, count, counted = (stacked if per_image else stacked.sum(1)).unbind()
    return Regions(overlap, predicted, count, counted > 0, rounding=elements * torch.finfo(prediction.dtype).eps)


def by_class(prediction: Tensor, target: Tensor, ignored: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the sum of each class's probabilities where it is the target, and its count, (N, C) float64 each.

    Args:
        prediction: Probabilities, (N, C, P).
        target: Class indices, (N, 1, P).
        ignored: Where the target does not count, (N, 1, P).
    """
    picked = prediction.gather(1, target).squeeze(1).double()
    one = torch.ones_like(picked) if ignored is None else (~ignored).squeeze(1).double()
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
    region: Regions,
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
    return Unreduced(value * weight, weight, flags={"tiny_smooth": empty & (weight != 0) & tiny})
