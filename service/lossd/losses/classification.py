"""Losses of class scores: one value per sample, or per position of a dense prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lossd.losses import softmax
from lossd.losses.reduction import class_weights, weighted
from lossd.losses.registry import Refinement, Unreduced, Upstream, loss
from lossd.losses.types import ClassIndex, Distribution, Fraction, Logits, NonNegative, PerClass, Real

SmoothingMode = Literal["uniform", "others"]
AlphaMode = Literal["scale", "foreground"]


@loss(task="multiclass", kind="rows")
def cross_entropy(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"] | Distribution[Tensor, "N C *"],
    *,
    class_weight: PerClass | None = None,
    ignore_index: int | None = -100,
    label_smoothing: Fraction = 0.0,
    smoothing_mode: SmoothingMode = "uniform",
) -> Real[Tensor, "N *"] | Unreduced:
    r"""Negative log-probability of the target class, or of a target distribution.

    .. math:: -\sum_c w_c\, t_c \log\operatorname{softmax}(z)_c

    Args:
        prediction: Class scores (logits) z; -inf masks a class.
        target: Class indices, or class probabilities in the shape of the prediction.
        class_weight: Weight w of each class. With class indices the mean is divided by the sum of the targets'
            weights; with probabilities by the number of positions, as torch does.
        ignore_index: Targets of this class count neither in the numerator nor in the denominator; any integer, null
            for none. It has no meaning for probabilities.
        label_smoothing: Share ε of the target that is taken from the target class and spread over the classes.
        smoothing_mode: Over which classes ε is spread: "uniform" gives each of the K classes ε/K, the target's own
            included; "others" gives ε/(K−1) to each of the others, which is "uniform" with εK/(K−1).

    Returns:
        One value per position, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: the softmax less the target, weighted; 0 where ignored.

    References:
        torch.nn.functional.cross_entropy.
        C. Szegedy et al., Rethinking the Inception Architecture, 2016, arXiv:1512.00567 (label smoothing).
    """
    smoothing = _smoothing(prediction, label_smoothing, smoothing_mode)
    if isinstance(smoothing, Tensor):
        smoothing = smoothing.unsqueeze(1)
    table = _table(prediction, class_weight)
    log_p = torch.log_softmax(prediction, 1)
    if target.ndim == prediction.ndim:
        return softmax.expected(_softened(prediction, target, table, smoothing), -log_p).sum(1)
    if smoothing is None:
        target, weight = class_weights(target, prediction, class_weight, ignore_index)
        return weighted(-log_p.gather(1, target.unsqueeze(1)).squeeze(1), weight)
    target, kept = class_weights(target, prediction, None, ignore_index)
    share = _smoothed(prediction, target.unsqueeze(1), table, smoothing)
    return _counted(softmax.expected(share, -log_p).sum(1), target, table, kept)


@cross_entropy.closed_form
def _cross_entropy(
    upstream: Upstream,
    gradient: Mapping[str, Tensor],
    prediction: Tensor,
    target: Tensor,
    *,
    class_weight: Sequence[float] | None,
    ignore_index: int | None,
    label_smoothing: float | Tensor,
    smoothing_mode: str,
) -> Tensor | Unreduced:
    slopes = gradient["prediction"]
    smoothing = _smoothing(prediction, label_smoothing, smoothing_mode)
    table = _table(prediction, class_weight)
    if target.ndim == prediction.ndim:
        kernel = partial(_distributed, _softened, table)
        return softmax.sweep(kernel, slopes, prediction, target, smoothing, upstream(None))
    if smoothing is None:
        target, weight = class_weights(target, prediction, class_weight, ignore_index)
        factor = upstream(weight) if weight is None else upstream(weight) * weight
        value = softmax.sweep(partial(softmax.pointed, _unchanged), slopes, prediction, target, factor)
        return weighted(value, weight)
    target, kept = class_weights(target, prediction, None, ignore_index)
    factor = upstream(_weights(target, table, kept))
    kernel = partial(_distributed, _smoothed, table)
    value = softmax.sweep(kernel, slopes, prediction, target, smoothing, factor if kept is None else factor * kept)
    return _counted(value, target, table, kept)


def _unchanged(nll: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    return nll, factor


def _distributed(
    shares: Any,
    table: Tensor | None,
    gradient: Tensor,
    prediction: Tensor,
    target: Tensor,
    smoothing: float | Tensor | None,
    factor: Tensor,
) -> Tensor:
    return softmax.distributed(gradient, prediction, shares(prediction, target, table, smoothing), factor)


def _table(prediction: Tensor, class_weight: Sequence[float] | None) -> Tensor | None:
    if class_weight is None:
        return None
    return torch.tensor(class_weight, dtype=prediction.dtype, device=prediction.device)


def _smoothing(prediction: Tensor, share: float | Tensor, mode: str) -> float | Tensor | None:
    """The share that is spread over all classes alike; None for none."""
    classes = prediction.shape[1]
    if (isinstance(share, float) and share == 0) or (mode == "others" and classes == 1):
        return None
    return share if mode == "uniform" else share * (classes / (classes - 1))


def _smoothed(prediction: Tensor, target: Tensor, table: Tensor | None, smoothing: float | Tensor) -> Tensor:
    """The weighted share of each class (n, C, *), given the target classes (n, 1, *)."""
    own = torch.ones_like(target, dtype=prediction.dtype) if table is None else table[target]
    share = torch.zeros_like(prediction) + (smoothing / prediction.shape[1]) * _along_classes(prediction, table)
    return share.scatter_add_(1, target, (1 - smoothing) * own)


def _softened(prediction: Tensor, target: Tensor, table: Tensor | None, smoothing: float | Tensor | None) -> Tensor:
    """The weighted share of each class (n, C, *), given the target's probabilities (n, C, *)."""
    share = target if smoothing is None else (1 - smoothing) * target + smoothing / prediction.shape[1]
    return share if table is None else share * _along_classes(prediction, table)


def _along_classes(prediction: Tensor, table: Tensor | None) -> Tensor | float:
    return 1.0 if table is None else table.view(-1, *(1,) * (prediction.ndim - 2))


def _weights(target: Tensor, table: Tensor | None, kept: Tensor | None) -> Tensor | None:
    """What each position adds to the denominator of the mean; None for one each."""
    if table is None:
        return kept
    return table[target] if kept is None else table[target] * kept


def _counted(value: Tensor, target: Tensor, table: Tensor | None, kept: Tensor | None) -> Tensor | Unreduced:
    """The value, 0 where the target is ignored, with its weights.

    A class of weight 0 adds nothing to the denominator, yet with label smoothing its targets have a value.
    """
    weight = _weights(target, table, kept)
    if weight is None:
        return value
    return Unreduced(value if kept is None else torch.where(kept == 0, torch.zeros_like(value), value), weight)


def _focal_parameters(parameters: Mapping[str, Any]) -> Refinement:
    alpha, mode = parameters["alpha"], parameters["alpha_mode"]
    if mode == "foreground" and not (isinstance(alpha, float) and alpha <= 1):
        raise ValueError(f'alpha_mode "foreground" needs alpha as one number in [0, 1], found {alpha}')
    return Refinement()


@loss(task="multiclass", kind="rows", refine=_focal_parameters)
def focal(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"],
    *,
    gamma: NonNegative = 2.0,
    alpha: NonNegative | PerClass | None = None,
    alpha_mode: AlphaMode = "scale",
    class_weight: PerClass | None = None,
    ignore_index: int | None = -100,
) -> Real[Tensor, "N *"] | Unreduced:
    r"""Cross-entropy that fades for what is already classified well.

    .. math:: -\alpha_t\,(1-p_t)^\gamma \log p_t, \quad p = \operatorname{softmax}(z)

    Args:
        prediction: Class scores (logits) z; -inf masks a class.
        target: Class indices.
        gamma: How fast it fades; 0 is cross-entropy. Fractions are welcome.
        alpha: A factor for each class, one number (see ``alpha_mode``), or null. It never enters the denominator.
        alpha_mode: What one number means: "scale" multiplies every class alike; "foreground" gives class 0 the factor
            1−α and every other class α.
        class_weight: Weight of each class, which also divides: the mean is over the sum of the targets' weights.
        ignore_index: Targets of this class count neither in the numerator nor in the denominator; any integer, null
            for none.

    Returns:
        One value per position, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``; exactly 0 where the prediction is saturated and right.

    References:
        T.-Y. Lin et al., Focal Loss for Dense Object Detection, 2017, arXiv:1708.02002.
    """
    target, weight = class_weights(target, prediction, class_weight, ignore_index)
    log_p = torch.log_softmax(prediction, 1).gather(1, target.unsqueeze(1)).squeeze(1)
    rest = -torch.expm1(log_p)
    # The power's slope is infinite at 0 for gamma < 1, but there the value is 0 and so is its slope.
    sure = rest == 0
    fade = torch.exp(gamma * torch.log(rest.masked_fill(sure, 1)))
    value = torch.where(sure, torch.zeros_like(log_p), fade * -log_p)
    scale = _alphas(prediction, target, alpha, alpha_mode)
    return weighted(value if scale is None else value * scale, weight)


@focal.closed_form
def _focal(
    upstream: Upstream,
    gradient: Mapping[str, Tensor],
    prediction: Tensor,
    target: Tensor,
    *,
    gamma: float | Tensor,
    alpha: float | Sequence[float] | None,
    alpha_mode: str,
    class_weight: Sequence[float] | None,
    ignore_index: int | None,
) -> Tensor | Unreduced:
    target, weight = class_weights(target, prediction, class_weight, ignore_index)
    factor = upstream(weight) if weight is None else upstream(weight) * weight
    scale = _alphas(prediction, target, alpha, alpha_mode)
    kernel = partial(softmax.pointed, _faded)
    value = softmax.sweep(
        kernel, gradient["prediction"], prediction, target, gamma, factor if scale is None else factor * scale
    )
    return weighted(value if scale is None else value * scale, weight)


def _faded(nll: Tensor, gamma: float | Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """(1−p)^γ·nll and its derivative by nll, (1−p)^γ·(1 + γ·p·nll/(1−p))."""
    p = torch.exp(-nll)
    rest = 1 - p
    fade = torch.pow(rest, gamma)
    limits = torch.finfo(nll.dtype)
    # An infinite nll has p = 0, and a rest of 0 has nll = 0: both products are 0, not NaN.
    slope = p.mul_(nll.clamp(max=limits.max)).mul_(gamma).div_(rest.clamp_(min=limits.tiny)).add_(1).mul_(fade)
    return fade.mul_(nll), slope.mul_(factor)


def _alphas(
    prediction: Tensor, target: Tensor, alpha: float | Sequence[float] | None, mode: str
) -> Tensor | float | None:
    """The factor of each target's class."""
    if alpha is None:
        return None
    if isinstance(alpha, float | int):
        return float(alpha) if mode == "scale" else torch.where(target == 0, 1 - alpha, alpha).to(prediction.dtype)
    return torch.tensor(alpha, dtype=prediction.dtype, device=prediction.device)[target]
