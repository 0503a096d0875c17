"""Region losses of dense predictions: sums over each region first, then one value per region.

A region is a class (over the whole batch, or of one image with ``per_image``); a binary prediction is one region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lossd.losses.registry import Refinement, Unreduced, loss
from lossd.losses.types import ClassIndex, Domain, Logits, NonNegative, PerClass, Real, TensorType

Mode = Literal["multiclass", "multilabel", "binary"]
Absent = Literal["keep", "ignore"]


def _refine(parameters: Mapping[str, Any]) -> Refinement:
    """The tensors and the answer that the shared parameters make of a region loss."""
    mode, per_image = parameters["mode"], parameters["per_image"]
    axes: tuple[str, ...] = ("N", "C", "*")
    score: Domain = "logits" if parameters["from_logits"] else "probability"
    regions = "C" if parameters["include_background"] else "C-1"
    if mode == "binary":
        if not parameters["include_background"]:
            raise ValueError("a binary prediction has no background channel; include_background must be true")
        if parameters["class_weight"] is not None:
            raise ValueError("a binary prediction is one region; class_weight must be null")
        axes, regions = ("N", "*"), "1"
    target = (
        TensorType("class", ("integer",), ("N", "*"))
        if mode == "multiclass"
        else TensorType("mask", ("float", "integer"), axes)
    )
    return Refinement(
        inputs={"prediction": TensorType(score, ("float",), axes), "target": target},
        returns=TensorType("real", ("float",), ("N", regions) if per_image else (regions,)),
        task="segmentation" if mode == "multiclass" else mode,
    )


@loss(task="segmentation", kind="stack", refine=_refine)
def dice(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"],
    *,
    mode: Mode = "multiclass",
    from_logits: bool = True,
    smooth: NonNegative = 1.0,
    per_image: bool = False,
    include_background: bool = True,
    class_weight: PerClass | None = None,
    ignore_index: int | None = None,
    absent: Absent = "keep",
) -> Real[Tensor, "C"] | Unreduced:
    r"""One less the Dice coefficient (F1) of each region.

    .. math:: 1 - \frac{2\sum p\,t + s}{\sum p + \sum t + s}

    Args:
        prediction: Logits, or probabilities p where ``from_logits`` is false: (N, C, *), or (N, *) where binary.
        target: Class indices for "multiclass"; else t in [0, 1], in the shape of the prediction.
        mode: "multiclass" (softmax, one class per position), "multilabel" (a sigmoid each) or "binary" (no class axis).
        from_logits: Whether predictions are logits.
        smooth: The s added to numerator and denominator; 0/0 counts as a perfect region.
        per_image: Whether sums are taken for each image, and then averaged over images, or over the whole batch.
        include_background: Whether class 0 is one of the regions.
        class_weight: Weight of each of the C classes in the mean, which is divided by their sum; null for one each.
        ignore_index: Positions with this target count in no sum; any integer, null for none.
        absent: A region without a target element: "keep" it in the mean, or "ignore" it.

    Returns:
        One value per region, (C,) or (N, C) with ``per_image``, in [0, 1], unreduced. The mean's denominator is the
        number of regions, or the sum of their weights.

    Gradient:
        With respect to ``prediction``; 0 where ignored.

    References:
        F. Milletari et al., V-Net, 2016, arXiv:1606.04797.
    """
    region = _sums(prediction, target, mode, from_logits, per_image, include_background, ignore_index)
    score = _ratio(2 * region.overlap + smooth, region.prediction + region.target + smooth)
    return _weighted(1 - score, region, smooth, prediction.dtype, class_weight, include_background, absent)


@loss(task="segmentation", kind="stack", refine=_refine, like=dice)
def jaccard(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"],
    *,
    mode: Mode = "multiclass",
    from_logits: bool = True,
    smooth: NonNegative = 1.0,
    per_image: bool = False,
    include_background: bool = True,
    class_weight: PerClass | None = None,
    ignore_index: int | None = None,
    absent: Absent = "keep",
) -> Real[Tensor, "C"] | Unreduced:
    r"""One less the Jaccard index (intersection over union) of each region.

    .. math:: 1 - \frac{\sum p\,t + s}{\sum p + \sum t - \sum p\,t + s}

    The inputs and parameters are those of ``dice``.

    Returns:
        One value per region, (C,) or (N, C) with ``per_image``, in [0, 1], unreduced. The mean's denominator is the
        number of regions, or the sum of their weights.

    Gradient:
        With respect to ``prediction``; 0 where ignored.

    References:
        M. A. Rahman and Y. Wang, Optimizing Intersection-Over-Union in Deep Neural Networks, 2016.
    """
    region = _sums(prediction, target, mode, from_logits, per_image, include_background, ignore_index)
    score = _ratio(region.overlap + smooth, region.prediction + region.target - region.overlap + smooth)
    return _weighted(1 - score, region, smooth, prediction.dtype, class_weight, include_background, absent)


@loss(task="segmentation", kind="stack", refine=_refine, like=dice)
def tversky(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"],
    *,
    alpha: NonNegative = 0.5,
    beta: NonNegative = 0.5,
    mode: Mode = "multiclass",
    from_logits: bool = True,
    smooth: NonNegative = 1.0,
    per_image: bool = False,
    include_background: bool = True,
    class_weight: PerClass | None = None,
    ignore_index: int | None = None,
    absent: Absent = "keep",
) -> Real[Tensor, "C"] | Unreduced:
    r"""One less the Tversky index of each region: false positives and false negatives weigh differently.

    .. math:: 1 - \frac{TP + s}{TP + \alpha FP + \beta FN + s}

    The other inputs and parameters are those of ``dice``.

    Args:
        alpha: Weight of the false positives. (Several libraries swap alpha and beta.)
        beta: Weight of the false negatives. Both 0.5 are Dice with half the ``smooth``, both 1 Jaccard.

    Returns:
        One value per region, (C,) or (N, C) with ``per_image``, in [0, 1], unreduced. The mean's denominator is the
        number of regions, or the sum of their weights.

    Gradient:
        With respect to ``prediction``; 0 where ignored.

    References:
        S. S. M. Salehi et al., Tversky Loss Function for Image Segmentation, 2017, arXiv:1706.05721.
    """
    region = _sums(prediction, target, mode, from_logits, per_image, include_background, ignore_index)
    value = 1 - _tversky_index(region, alpha, beta, smooth)
    return _weighted(value, region, smooth, prediction.dtype, class_weight, include_background, absent)


@dataclass(frozen=True, slots=True)
class _Region:
    """Sums over each region, float64, (C,) or (N, C).

    Attributes:
        overlap: Of prediction times target.
        prediction: Of the predicted probabilities.
        target: Of the target.
        size: Elements a region may have at most.
    """

    overlap: Tensor
    prediction: Tensor
    target: Tensor
    size: int = field(kw_only=True)


def _sums(
    prediction: Tensor,
    target: Tensor,
    mode: str,
    from_logits: bool,
    per_image: bool,
    include_background: bool,
    ignore_index: int | None,
) -> _Region:
    n, c = prediction.shape[0], 1 if mode == "binary" else prediction.shape[1]
    prediction = prediction.reshape(n, c, -1)
    target = target.long().reshape(n, 1, -1) if mode == "multiclass" else target.reshape(n, c, -1)
    if ignore_index is not None:
        # Masked before the softmax: a NaN there has no gradient to send back.
        ignored = target == ignore_index
        prediction = prediction.masked_fill(ignored, 0)
        target = target.masked_fill(ignored, 0)
    if from_logits:
        prediction = torch.softmax(prediction, 1) if mode == "multiclass" else torch.sigmoid(prediction)
    if ignore_index is not None:
        prediction = prediction.masked_fill(ignored, 0)
    if mode == "multiclass":
        overlap, count = _by_class(prediction, target, None if ignore_index is None else ignored)
    else:
        overlap, count = (prediction * target).sum(-1).double(), target.sum(-1).double()
    # A sum along one row of memory is pairwise in torch; across rows float64 takes over.
    sums = torch.stack([overlap, prediction.sum(-1).double(), count])
    if not include_background:
        sums = sums[:, :, 1:]
    if not per_image:
        sums = sums.sum(1)
    return _Region(*sums.unbind(), size=prediction.shape[2] * (1 if per_image else n))


def _by_class(prediction: Tensor, target: Tensor, ignored: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of each class, (N, C): the sum of its probabilities where it is the target, and how often it is."""
    picked = prediction.gather(1, target).squeeze(1).double()
    target = target.squeeze(1)
    one = torch.ones_like(picked)
    if ignored is not None:
        one = one.masked_fill(ignored.squeeze(1), 0)
    empty = prediction.new_zeros(prediction.shape[:2], dtype=torch.float64)
    return empty.scatter_add(1, target, picked), empty.scatter_add(1, target, one)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and 1 with gradient 0 where both are 0: nothing to find and nothing found."""
    empty = denominator == 0
    return torch.where(empty, torch.ones_like(numerator), numerator / denominator.masked_fill(empty, 1))


def _tversky_index(region: _Region, alpha: Any, beta: Any, smooth: Any) -> Tensor:
    false_positive = region.prediction - region.overlap
    false_negative = region.target - region.overlap
    hit = region.overlap + smooth
    return _ratio(hit, hit + alpha * false_positive + beta * false_negative)


def _weighted(
    value: Tensor,
    region: _Region,
    smooth: Any,
    dtype: torch.dtype,
    class_weight: Sequence[float] | None,
    include_background: bool,
    absent: str,
) -> Unreduced:
    weight = torch.ones_like(value)
    if class_weight is not None:
        table = torch.tensor(class_weight, dtype=value.dtype, device=value.device)
        weight = weight * table[0 if include_background else 1 :]
    empty = region.target == 0
    if absent == "ignore":
        weight = weight.masked_fill(empty, 0)
    rounding = region.size * torch.finfo(dtype).eps
    tiny = empty & (weight != 0) & (torch.as_tensor(smooth, device=value.device) < rounding)
    return Unreduced(value * weight, weight, flags={"tiny_smooth": tiny})
