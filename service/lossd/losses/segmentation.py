"""Region losses of dense predictions: sums over each region first, then one value per region.

A region is a class (over the whole batch, or of one image with ``per_image``); a binary prediction is one region.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import lossd.losses.regions as regions
from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import power
from lossd.losses.registry import Refinement, Unreduced, loss
from lossd.losses.types import ClassIndex, Distribution, Domain, Kept, Logits, NonNegative, PerClass, Real, TensorType

Mode = Literal["multiclass", "multilabel", "binary"]
Absent = Literal["keep", "ignore"]

SHARES = TensorType("probability", ("float", "integer"), ("N", "C", "*"))
"""The type of class probabilities, which targets may be instead of class indices."""


def _refine(parameters: Mapping[str, Any]) -> Refinement:
    """Return the inputs' and the answer's types that the shared parameters of region losses imply."""
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
        inputs={
            "prediction": TensorType(score, ("float",), axes),
            "target": target,
            "mask": TensorType("kept", ("integer",), target.pattern),
        },
        further={"target": SHARES} if mode == "multiclass" else {},
        returns=TensorType("real", ("float",), ("N", regions) if per_image else (regions,)),
        task="segmentation" if mode == "multiclass" else mode,
    )


@loss(task="segmentation", kind="stack", refine=_refine)
def dice(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"] | Distribution[Tensor, "N C *"],
    mask: Kept[Tensor, "N *"] | None = None,
    element_weight: Tensor | None = None,
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
    r"""1 minus the Dice coefficient (F1) of each region.

    .. math:: 1 - \frac{2\sum p\,t + s}{\sum p + \sum t + s}

    Args:
        prediction: Logits, or probabilities p where ``from_logits`` is false: (N, C, *), or (N, *) where binary.
        target: Class indices for "multiclass", or class probabilities t in the shape of the prediction; else t in
            [0, 1], in the shape of the prediction. Where class probabilities do not sum to 1, as those of several
            classes at once, ``not_a_distribution`` is warned.
        mask: Which positions count in the sums, in the shape of the target, without an axis of classes if there is one
            of each position.
        element_weight: The factor of each position in the sums, in the shape of a mask.
        mode: "multiclass" (softmax, one class per position), "multilabel" (a sigmoid each) or "binary" (no class axis).
        from_logits: Whether predictions are logits.
        smooth: The s added to numerator and denominator; 0/0 counts as a perfect region.
        per_image: Whether sums are taken for each image, and then averaged over images, or over the whole batch.
        include_background: Whether class 0 is one of the regions.
        class_weight: Weight of each of the C classes in the mean, which is divided by their sum; null for one each.
        ignore_index: Positions with this target count in no sum, and a region without others not in the mean; any
            integer, null for none. It has no meaning for class probabilities.
        absent: A region without a target element: "keep" it in the mean, or "ignore" it.

    Returns:
        One value per region, (C,) or (N, C) with ``per_image``, in [0, 1], unreduced. The mean's denominator is the
        number of regions, or the sum of their weights.

    Gradient:
        With respect to ``prediction``; 0 where ignored.

    References:
        F. Milletari et al., V-Net, 2016, arXiv:1606.04797.
    """
    region = regions.sums(
        prediction, target, mode, from_logits, per_image, include_background, ignore_index, mask, element_weight
    )
    score = regions.ratio(2 * region.overlap + smooth, region.prediction + region.target + smooth)
    return regions.weighted(1 - score, region, smooth, class_weight, include_background, absent)


@loss(task="segmentation", kind="stack", refine=_refine, like=dice)
def jaccard(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"] | Distribution[Tensor, "N C *"],
    mask: Kept[Tensor, "N *"] | None = None,
    element_weight: Tensor | None = None,
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
    r"""1 minus the Jaccard index (intersection over union) of each region.

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
    region = regions.sums(
        prediction, target, mode, from_logits, per_image, include_background, ignore_index, mask, element_weight
    )
    score = regions.ratio(region.overlap + smooth, region.prediction + region.target - region.overlap + smooth)
    return regions.weighted(1 - score, region, smooth, class_weight, include_background, absent)


@loss(task="segmentation", kind="stack", refine=_refine, like=dice)
def tversky(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"] | Distribution[Tensor, "N C *"],
    mask: Kept[Tensor, "N *"] | None = None,
    element_weight: Tensor | None = None,
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
    r"""1 minus the Tversky index of each region: false positives and false negatives weigh differently.

    .. math:: 1 - \frac{TP + s}{TP + \alpha FP + \beta FN + s}

    The other inputs and parameters are those of ``dice``.

    Args:
        alpha: Weight of the false positives. (Several libraries swap alpha and beta.)
        beta: Weight of the false negatives. Both 0.5 are Dice with twice the ``smooth``, both 1 Jaccard.

    Returns:
        One value per region, (C,) or (N, C) with ``per_image``, in [0, 1], unreduced. The mean's denominator is the
        number of regions, or the sum of their weights.

    Gradient:
        With respect to ``prediction``; 0 where ignored.

    References:
        S. S. M. Salehi et al., Tversky Loss Function for Image Segmentation, 2017, arXiv:1706.05721.
    """
    region = regions.sums(
        prediction, target, mode, from_logits, per_image, include_background, ignore_index, mask, element_weight
    )
    value = 1 - _tversky_index(region, alpha, beta, smooth)
    return regions.weighted(value, region, smooth, class_weight, include_background, absent)


@loss(task="segmentation", kind="stack", refine=_refine, like=tversky)
def focal_tversky(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"] | Distribution[Tensor, "N C *"],
    mask: Kept[Tensor, "N *"] | None = None,
    element_weight: Tensor | None = None,
    *,
    gamma: NonNegative = 0.75,
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
    r"""The Tversky loss of each region, raised to a power.

    .. math:: \left(1 - \frac{TP + s}{TP + \alpha FP + \beta FN + s}\right)^\gamma

    The other inputs and parameters are those of ``tversky``.

    Args:
        gamma: The power; below 1 it stresses regions that are almost right, above 1 those that are wrong.

    Returns:
        One value per region, (C,) or (N, C) with ``per_image``, in [0, 1], unreduced. The mean's denominator is the
        number of regions, or the sum of their weights.

    Gradient:
        With respect to ``prediction``; 0 where ignored, and 0 for a perfect region, where the power has no slope.

    References:
        N. Abraham and N. M. Khan, A Novel Focal Tversky Loss Function, 2018, arXiv:1810.07842 (its γ is 1/``gamma``).
    """
    region = regions.sums(
        prediction, target, mode, from_logits, per_image, include_background, ignore_index, mask, element_weight
    )
    rest = 1 - _tversky_index(region, alpha, beta, smooth)
    perfect = rest <= 0
    value = torch.where(perfect, torch.zeros_like(rest), torch.exp(gamma * torch.log(rest.masked_fill(perfect, 1))))
    return regions.weighted(value, region, smooth, class_weight, include_background, absent)


def _tversky_index(
    region: regions.RegionSums, alpha: float | Tensor, beta: float | Tensor, smooth: float | Tensor
) -> Tensor:
    false_positive = region.prediction - region.overlap
    false_negative = region.target - region.overlap
    hit = region.overlap + smooth
    return regions.ratio(hit, hit + alpha * false_positive + beta * false_negative)


def _refine_together(parameters: Mapping[str, Any]) -> Refinement:
    """Return the types of a loss that combines all regions: one value, or one for each image."""
    returns = TensorType("real", ("float",), ("N",) if parameters["per_image"] else ("1",))
    return replace(_refine(parameters), returns=returns)


@loss(task="segmentation", kind="stack", refine=_refine_together, like=dice)
def generalized_dice(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"] | Distribution[Tensor, "N C *"],
    mask: Kept[Tensor, "N *"] | None = None,
    element_weight: Tensor | None = None,
    *,
    region_weight: Literal["square", "simple", "uniform"] = "square",
    mode: Mode = "multiclass",
    from_logits: bool = True,
    smooth: NonNegative = 1.0,
    per_image: bool = False,
    include_background: bool = True,
    class_weight: PerClass | None = None,
    ignore_index: int | None = None,
    absent: Absent = "keep",
) -> Real[Tensor, "1"] | Unreduced:
    r"""1 minus the Dice coefficient of all regions together, small regions counting as much as large ones.

    .. math:: 1 - \frac{2\sum_c w_c \sum p_c t_c + s}{\sum_c w_c \left(\sum p_c + \sum t_c\right) + s}

    The other inputs and parameters are those of ``dice``.

    Args:
        region_weight: The weight w of a region with V target elements: "square" 1/V², "simple" 1/V, "uniform" 1.
        class_weight: Further factor of each of the C classes' regions; null for one each.
        absent: A region without a target element: "keep" gives it the largest weight among the others, and 1 where
            all regions are without; "ignore" gives it none.

    Returns:
        One value, (1,), or one for each image, (N,) with ``per_image``, in [0, 1], unreduced. The mean's denominator
        is their number; with ``absent="ignore"`` an image without any target does not count.

    Gradient:
        With respect to ``prediction``; 0 where ignored.

    References:
        C. H. Sudre et al., Generalised Dice Overlap, 2017, arXiv:1707.03237.
        monai.losses.GeneralizedDiceLoss.
    """
    region = regions.sums(
        prediction, target, mode, from_logits, per_image, include_background, ignore_index, mask, element_weight
    )
    empty = region.target == 0
    # In units of the smallest region's weight, the largest there is: that of a region of 1e-160 is infinite itself.
    smallest = region.target.masked_fill(empty, torch.inf).amin(-1, keepdim=True)
    smallest = smallest.masked_fill(smallest == torch.inf, 1)
    exponent = {"square": 2.0, "simple": 1.0, "uniform": 0.0}[region_weight]
    weight = power(smallest / region.target.masked_fill(empty, 1), exponent)
    weight = weight.masked_fill(empty, 1 if absent == "keep" else 0)
    scaled = smooth * power(smallest.squeeze(-1), exponent)
    if class_weight is not None:
        weight = weight * regions.class_table(weight, class_weight, include_background)
    overlap = (weight * region.overlap).sum(-1)
    total = (weight * (region.prediction + region.target)).sum(-1)
    value = 1 - regions.ratio(2 * overlap + scaled, total + scaled)
    counts = (region.counted if absent == "keep" else ~empty).any(-1).to(value.dtype)
    return Unreduced((value * counts).reshape(-1), counts.reshape(-1), flags=region.flags)


def _refine_lovasz(parameters: Mapping[str, Any]) -> Refinement:
    if parameters["mode"] == "binary" and not parameters["from_logits"]:
        raise ValueError("the Lovász hinge takes logits; from_logits must be true where mode is binary")
    refined = _refine({**parameters, "include_background": True, "class_weight": None})
    if parameters["mode"] == "multiclass":
        return replace(refined, further={})
    sure = replace(refined.inputs["target"], domain="indicator")
    return replace(refined, inputs={**refined.inputs, "target": sure})


@loss(task="segmentation", kind="stack", refine=_refine_lovasz, byte_ns=20, like=dice)
def lovasz(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"],
    mask: Kept[Tensor, "N *"] | None = None,
    element_weight: Tensor | None = None,
    *,
    mode: Literal["multiclass", "binary"] = "multiclass",
    from_logits: bool = True,
    per_image: bool = False,
    ignore_index: int | None = None,
) -> Real[Tensor, "C"] | Unreduced:
    r"""The Jaccard loss's convex extension to probabilities: Lovász-softmax, or the Lovász hinge if binary.

    .. math:: \sum_i m_{(i)} \left(\Delta_J(\{(1),\dots,(i)\}) - \Delta_J(\{(1),\dots,(i-1)\})\right)

    The errors m in descending order: \|t − p\| of each class, or where binary max(0, 1 − z) with the sign of the
    target. The other inputs and parameters are those of ``dice``.

    Args:
        target: Class indices for "multiclass"; 0 or 1 in the shape of the prediction for "binary".
        mode: "multiclass" (softmax, one class per position) or "binary" (no class axis, logits only).

    Returns:
        One value per class, (C,), or (N, C) with ``per_image``; (1,) or (N, 1) where binary; >= 0, unreduced. The
        mean is over the classes that are present, with ``per_image`` of each image first and then over images.

    Gradient:
        With respect to ``prediction``; 0 where ignored. The order of the errors is held constant.

    References:
        M. Berman et al., The Lovász-Softmax Loss, 2018, arXiv:1705.08790.
        J. Yu and M. Blaschko, Learning Submodular Losses with the Lovász Hinge, 2015, arXiv:1512.07797.
    """
    hinge = mode == "binary"
    scores, target, ignored = regions.masked(prediction, target, mode, from_logits and not hinge, ignore_index, mask)
    if hinge:
        present, errors = target, 1 - scores * (2 * target - 1)
    else:
        classes = torch.arange(scores.shape[1], device=scores.device).reshape(1, -1, 1)
        present = (target == classes).to(scores.dtype)
        errors = (present - scores).abs()
    counted = torch.ones_like(target, dtype=torch.bool) if ignored is None else ~ignored
    # Ignored entries come last and have no error: they change no other entry's share.
    present, errors = present * counted, errors.masked_fill(~counted, -torch.inf)
    share = counted if element_weight is None else element_weight.reshape(counted.shape)
    share = share.double().expand(errors.shape)
    if not per_image:
        tensors = (present, errors, counted, share)
        present, errors, counted, share = (t.transpose(0, 1).flatten(1).unsqueeze(0) for t in tensors)
    errors, order = torch.sort(errors, dim=-1, descending=True, stable=True)
    steps = _jaccard_steps(present.gather(-1, order), share.gather(-1, order))
    value = (torch.relu(errors) * steps).sum(-1).double()
    weight = (counted if hinge else present > 0).any(-1).double()
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1) if per_image else weight
    value, weight = value * weight, weight.expand_as(value)
    return Unreduced(value, weight) if per_image else Unreduced(value[0], weight[0])


def _jaccard_steps(present: Tensor, weight: Tensor) -> Tensor:
    """What each element adds to the Jaccard loss as it joins the set of errors, in order; (..., P).

    Args:
        present: Whether the element is of the region, 0 or 1.
        weight: How much each counts, float64; 0 where it does not.
    """
    # Neighbouring values differ in the last digits of float32 where there are many elements.
    hits = present.double() * weight
    total = hits.sum(-1, keepdim=True)
    missed = hits.cumsum(-1)
    spurious = (weight - hits).cumsum(-1)
    union = total + spurious
    jaccard = 1 - (total - missed) / union.masked_fill(union == 0, 1)
    jaccard = jaccard.masked_fill(union == 0, 0)
    return torch.diff(jaccard, dim=-1, prepend=torch.zeros_like(total)).to(present.dtype)
