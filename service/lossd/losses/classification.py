"""Losses of class scores: one value per sample, or per position of a dense prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import lossd.losses.regions as regions
import lossd.losses.softmax as softmax
from lossd.lazy_torch import Tensor, torch
from lossd.losses.autograd import differentiated
from lossd.losses.elementary import power, row_total
from lossd.losses.reduction import class_weights, weighted
from lossd.losses.registry import Refinement, Unreduced, Upstream, loss
from lossd.losses.types import (
    ClassIndex,
    Clip,
    Distribution,
    Fraction,
    Logits,
    LogProbability,
    NonNegative,
    Number,
    PerClass,
    PositivePerClass,
    Real,
    TensorType,
)
from lossd_client.wire.quoting import quoted

SmoothingMode = Literal["uniform", "others"]
AlphaMode = Literal["scale", "foreground"]


def _cross_entropy_parameters(parameters: Mapping[str, Any]) -> Refinement:
    if parameters["tau"] is not None and parameters["prior"] is None:
        raise ValueError("tau is the exponent of the prior; send prior, the frequency of each class")
    return Refinement()


@loss(task="multiclass", kind="rows", refine=_cross_entropy_parameters)
def cross_entropy(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"] | Distribution[Tensor, "N C *"],
    *,
    class_weight: PerClass | None = None,
    ignore_index: int | None = -100,
    label_smoothing: Fraction = 0.0,
    smoothing_mode: SmoothingMode = "uniform",
    z_loss: NonNegative | None = None,
    prior: PositivePerClass | None = None,
    tau: NonNegative | None = None,
    poly: Number | None = None,
) -> Real[Tensor, "N *"] | Unreduced:
    r"""Negative log-probability of the target class, or of a target distribution.

    .. math:: -\sum_c w_c\, t_c \log\operatorname{softmax}(z)_c

    Args:
        prediction: Class scores (logits) z; -inf masks a class.
        target: Class indices, or class probabilities in the shape of the prediction; where those of a position do not
            sum to 1, as of several classes at once, ``not_a_distribution`` is warned (see bce_with_logits).
        class_weight: Weight w of each class. With class indices the mean is divided by the sum of the targets'
            weights; with probabilities by the number of positions, as torch does.
        ignore_index: Targets of this class count neither in the numerator nor in the denominator; any integer, null
            for none. It has no meaning for probabilities.
        label_smoothing: Share ε of the target that is taken from the target class and spread over the classes.
        smoothing_mode: Over which classes ε is spread: "uniform" gives each of the K classes ε/K, the target's own
            included; "others" gives ε/(K−1) to each of the others, which is "uniform" with εK/(K−1).
        z_loss: The factor of the square of logsumexp(z), which keeps scores near 0; null for none. It is part of the
            position's value: ignored positions have none, and the target's class weight multiplies it. Liger divides
            it by the number of positions, even with class weights.
        prior: The frequency π of each class in training: τ log π is added to the scores first (logit adjustment, for
            rare classes). At prediction, use the scores without it.
        tau: The exponent τ of the prior; null is 1.
        poly: The factor ε of Σ t(1−p), which is added (PolyLoss); null for none.

    Returns:
        One value per position, >= 0 unless ``poly`` is negative, unreduced.

    Gradient:
        With respect to ``prediction``: the softmax less the target, weighted; 0 where ignored. ``z_loss`` multiplies
        the softmax by 1 + 2z·logsumexp.

    References:
        torch.nn.functional.cross_entropy.
        C. Szegedy et al., Rethinking the Inception Architecture, 2016, arXiv:1512.00567 (label smoothing).
        A. K. Menon et al., Long-tail Learning via Logit Adjustment, 2021, arXiv:2007.07314 (prior).
        A. Chowdhery et al., PaLM, 2022, arXiv:2204.02311 (z_loss).
        Z. Leng et al., PolyLoss, 2022, arXiv:2204.12511 (poly).
    """
    if z_loss is not None or poly is not None:
        return _extended(prediction, target, class_weight, ignore_index, label_smoothing, smoothing_mode, z_loss,
                         prior, tau, poly)  # fmt: skip
    prediction = _adjusted(prediction, prior, tau)
    smoothing = _smoothing(prediction, label_smoothing, smoothing_mode)
    if isinstance(smoothing, Tensor):
        smoothing = smoothing.unsqueeze(1)
    table = _table(prediction, class_weight)
    if target.ndim == prediction.ndim:
        share = _softened(prediction, target, table, smoothing)
        return _of_distributions(row_total(softmax.weighted_nll(share, -torch.log_softmax(prediction, 1))), target)
    if smoothing is None:
        target, weight = class_weights(target, prediction, class_weight, ignore_index)
        return weighted(softmax.target_nll(prediction, target)[0], weight)
    target, kept = class_weights(target, prediction, None, ignore_index)
    share = _smoothed(prediction, target.unsqueeze(1), table, smoothing)
    return _counted(row_total(softmax.weighted_nll(share, -torch.log_softmax(prediction, 1))), target, table, kept)


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
    z_loss: float | None,
    prior: Sequence[float] | None,
    tau: float | None,
    poly: float | None,
) -> Tensor | Unreduced:
    if z_loss is not None or poly is not None:
        return differentiated(
            cross_entropy.function, upstream, gradient, prediction, target,
            class_weight=class_weight, ignore_index=ignore_index, label_smoothing=label_smoothing,
            smoothing_mode=smoothing_mode, z_loss=z_loss, prior=prior, tau=tau, poly=poly,
        )  # fmt: skip
    prediction = _adjusted(prediction, prior, tau)
    slopes = gradient["prediction"]
    smoothing = _smoothing(prediction, label_smoothing, smoothing_mode)
    table = _table(prediction, class_weight)
    if target.ndim == prediction.ndim:
        kernel = partial(_distributed, _softened, table)
        factor = upstream(torch.ones_like(prediction[:, 0]))
        return _of_distributions(softmax.sweep(kernel, slopes, prediction, target, smoothing, factor), target)
    if smoothing is None:
        target, weight = class_weights(target, prediction, class_weight, ignore_index)
        factor = upstream(weight) if weight is None else upstream(weight) * weight
        value = softmax.sweep(partial(softmax.target_kernel, _unchanged), slopes, prediction, target, factor)
        return weighted(value, weight)
    target, kept = class_weights(target, prediction, None, ignore_index)
    factor = upstream(_weights(target, table, kept))
    kernel = partial(_distributed, _smoothed, table)
    value = softmax.sweep(kernel, slopes, prediction, target, smoothing, factor if kept is None else factor * kept)
    return _counted(value, target, table, kept)


def _without_terms(parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return parameters["z_loss"] is None and parameters["poly"] is None


@cross_entropy.hessian_form("exact", "fisher", when=_without_terms)
def _cross_entropy_hessian(
    prediction: Tensor,
    target: Tensor,
    *,
    class_weight: Sequence[float] | None,
    ignore_index: int | None,
    label_smoothing: float | Tensor,
    smoothing_mode: str,
    z_loss: float | None,
    prior: Sequence[float] | None,
    tau: float | None,
    poly: float | None,
) -> Tensor:
    prediction = _adjusted(prediction, prior, tau)
    _, variance = softmax.variances(prediction)
    smoothing = _smoothing(prediction, label_smoothing, smoothing_mode)
    if isinstance(smoothing, Tensor):
        smoothing = smoothing.unsqueeze(1)
    table = _table(prediction, class_weight)
    if target.ndim == prediction.ndim:
        return variance.mul_(row_total(_softened(prediction, target, table, smoothing), keepdim=True))
    target, kept = class_weights(target, prediction, None, ignore_index)
    if smoothing is not None:
        share = _smoothed(prediction, target.unsqueeze(1), table, smoothing)
        variance.mul_(row_total(share, keepdim=True))
    elif table is not None:
        variance.mul_(table[target].unsqueeze(1))
    return variance if kept is None else variance.mul_(kept.unsqueeze(1))


@cross_entropy.hessian_form("xgboost", when=_without_terms)
def _cross_entropy_in_xgboost(prediction: Tensor, target: Tensor, **parameters: Any) -> Tensor:
    return _cross_entropy_hessian(prediction, target, **parameters).mul_(2)


@cross_entropy.hessian_form("lightgbm", when=_without_terms)
def _cross_entropy_in_lightgbm(prediction: Tensor, target: Tensor, **parameters: Any) -> Tensor:
    classes = prediction.shape[1]
    return _cross_entropy_hessian(prediction, target, **parameters).mul_(classes / max(1, classes - 1))


def _adjusted(prediction: Tensor, prior: Sequence[float] | None, tau: float | None) -> Tensor:
    """Return the scores with the logarithm of the classes' prior."""
    if prior is None:
        return prediction
    shift = torch.tensor(prior, dtype=torch.float64, device=prediction.device).log() * (1.0 if tau is None else tau)
    return prediction + shift.to(prediction.dtype).view(-1, *(1,) * (prediction.ndim - 2))


def _extended(
    prediction: Tensor,
    target: Tensor,
    class_weight: Sequence[float] | None,
    ignore_index: int | None,
    label_smoothing: float | Tensor,
    smoothing_mode: str,
    z_loss: float | None,
    prior: Sequence[float] | None,
    tau: float | None,
    poly: float | None,
) -> Tensor | Unreduced:
    """Return the cross-entropy with its further terms, in float64."""
    scores = _adjusted(prediction.double(), prior, tau)
    share, weight, kept = _share_of_classes(
        scores, target, class_weight, ignore_index, _smoothing(scores, label_smoothing, smoothing_mode)
    )
    log_p = torch.log_softmax(scores, 1)
    value = row_total(softmax.weighted_nll(share, -log_p))
    if poly is not None:
        value = value + poly * row_total(share * -torch.expm1(log_p))
    if z_loss is not None:
        best = scores.detach().argmax(1, keepdim=True)  # of which both are finite
        total = (scores.gather(1, best) - log_p.gather(1, best)).squeeze(1)
        value = value + z_loss * total.square() * (1.0 if weight is None else weight)
    return _of_shares(value, prediction, target, weight, kept)


def _share_of_classes(
    scores: Tensor,
    target: Tensor,
    class_weight: Sequence[float] | None,
    ignore_index: int | None,
    smoothing: float | Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the weighted share of each class (N, C, *), what each position adds to the denominator, and which count.

    The latter are None where all are 1.
    """
    if isinstance(smoothing, Tensor):
        smoothing = smoothing.unsqueeze(1)
    table = _table(scores, class_weight)
    if target.ndim == scores.ndim:
        return _softened(scores, target.to(scores.dtype), table, smoothing), None, None
    target, kept = class_weights(target, scores, None, ignore_index)
    share = _smoothed(scores, target.unsqueeze(1), table, 0.0 if smoothing is None else smoothing)
    if kept is not None:
        share = share * kept.unsqueeze(1)
    return share, _weights(target, table, kept), kept


def _of_shares(
    value: Tensor, prediction: Tensor, target: Tensor, weight: Tensor | None, kept: Tensor | None
) -> Tensor | Unreduced:
    """Return the value of shares of classes, with what ``_share_of_classes`` says of the positions."""
    if target.ndim == prediction.ndim:
        return _of_distributions(value, target)
    if weight is None:
        return value
    return Unreduced(value if kept is None else torch.where(kept == 0, 0.0, value), weight)


def _of_distributions(value: Tensor, share: Tensor) -> Unreduced:
    """The value, with a warning of each position whose target probabilities (N, C, *) do not sum to 1."""
    return Unreduced(
        value, torch.ones_like(value), flags={"not_a_distribution": (row_total(share) - 1).abs() > regions.UNCERTAIN}
    )


def _unchanged(nll: Tensor, _: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
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
    """Return the share that is spread over all classes; None for none."""
    classes = prediction.shape[1]
    if (isinstance(share, float) and share == 0) or (mode == "others" and classes == 1):
        return None
    return share if mode == "uniform" else share * (classes / (classes - 1))


def _smoothed(prediction: Tensor, target: Tensor, table: Tensor | None, smoothing: float | Tensor) -> Tensor:
    """Return the weighted share of each class (n, C, *), given the target classes (n, 1, *)."""
    weight = torch.ones_like(target, dtype=prediction.dtype) if table is None else table[target]
    share = torch.zeros_like(prediction) + (smoothing / prediction.shape[1]) * _along_classes(prediction, table)
    return share.scatter_add_(1, target, (1 - smoothing) * weight)


def _softened(prediction: Tensor, target: Tensor, table: Tensor | None, smoothing: float | Tensor | None) -> Tensor:
    """Return the weighted share of each class (n, C, *), given the target's probabilities (n, C, *)."""
    share = target if smoothing is None else (1 - smoothing) * target + smoothing / prediction.shape[1]
    return share if table is None else share * _along_classes(prediction, table)


def _along_classes(prediction: Tensor, table: Tensor | None) -> Tensor | float:
    return 1.0 if table is None else table.view(-1, *(1,) * (prediction.ndim - 2))


def _weights(target: Tensor, table: Tensor | None, kept: Tensor | None) -> Tensor | None:
    """Return what each position adds to the denominator of the mean; None for 1."""
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
        raise ValueError(f'alpha_mode "foreground" needs alpha as one number in [0, 1], found {quoted(alpha)}')
    return Refinement()


@loss(task="multiclass", kind="rows", refine=_focal_parameters)
def focal(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"] | Distribution[Tensor, "N C *"],
    *,
    gamma: NonNegative = 2.0,
    alpha: NonNegative | PerClass | None = None,
    alpha_mode: AlphaMode = "scale",
    class_weight: PerClass | None = None,
    ignore_index: int | None = -100,
    label_smoothing: Fraction | None = None,
) -> Real[Tensor, "N *"] | Unreduced:
    r"""Cross-entropy that gives less weight to samples already classified well.

    .. math:: -\alpha_t\,(1-p_t)^\gamma \log p_t, \quad p = \operatorname{softmax}(z)

    Of class probabilities t it is the sum of t times that over the classes.

    Args:
        prediction: Class scores (logits) z; -inf masks a class.
        target: Class indices, or class probabilities in the shape of the prediction, as of cross_entropy.
        gamma: How strongly it lowers their weight; 0 is cross-entropy.
        alpha: A factor for each class, one number (see ``alpha_mode``), or null. It never enters the denominator.
        alpha_mode: What one number means: "scale" multiplies every class alike; "foreground" gives class 0 the factor
            1−α and every other class α.
        class_weight: Weight of each class, which also divides: the mean is over the sum of the targets' weights. With
            class probabilities the mean is over the positions.
        ignore_index: Targets of this class count neither in the numerator nor in the denominator; any integer, null
            for none. It has no meaning for probabilities.
        label_smoothing: Share ε of the target that is spread over all classes, as "uniform" of cross_entropy; null for
            none.

    Returns:
        One value per position, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``; exactly 0 where the prediction is saturated and right.

    References:
        T.-Y. Lin et al., Focal Loss for Dense Object Detection, 2017, arXiv:1708.02002.
    """
    if target.ndim == prediction.ndim or label_smoothing is not None:
        return _focal_of_shares(prediction, target, gamma, alpha, alpha_mode, class_weight, ignore_index,
                                label_smoothing)  # fmt: skip
    target, weight = class_weights(target, prediction, class_weight, ignore_index)
    nll, rest = softmax.target_nll(prediction, target)
    # The power's slope is infinite at 0 for gamma < 1, but there the value is 0 and so is its slope.
    sure = rest == 0
    fade = torch.exp(gamma * torch.log(rest.masked_fill(sure, 1)))
    value = torch.where(sure, torch.zeros_like(nll), fade * nll)
    scale = _alphas(prediction, target, alpha, alpha_mode)
    return weighted(value, weight, scale)


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
    label_smoothing: float | None,
) -> Tensor | Unreduced:
    if target.ndim == prediction.ndim or label_smoothing is not None:
        return differentiated(
            focal.function, upstream, gradient, prediction, target,
            gamma=gamma, alpha=alpha, alpha_mode=alpha_mode, class_weight=class_weight, ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )  # fmt: skip
    target, weight = class_weights(target, prediction, class_weight, ignore_index)
    factor = upstream(weight) if weight is None else upstream(weight) * weight
    scale = _alphas(prediction, target, alpha, alpha_mode)
    kernel = partial(softmax.target_kernel, _focal_weighted)
    value = softmax.sweep(
        kernel, gradient["prediction"], prediction, target, gamma, factor if scale is None else factor * scale
    )
    return weighted(value, weight, scale)


def _focal_weighted(nll: Tensor, rest: Tensor, gamma: float | Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """(1−p)^γ·nll and its derivative by nll, (1−p)^γ·(1 + γ·p·nll/(1−p)), of 1−p = ``rest``."""
    fade = power(rest, gamma)
    limits = torch.finfo(nll.dtype)
    # An infinite nll has p = 0, and a rest of 0 has nll = 0: both products are 0, not NaN.
    slope = (1 - rest).mul_(nll.clamp(max=limits.max)).mul_(gamma)
    slope = slope.div_(rest.clamp(min=limits.tiny)).add_(1).mul_(fade)
    return fade.mul_(nll), slope.mul_(factor)


def _of_classes(parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return len(shapes["target"]) < len(shapes["prediction"]) and parameters["label_smoothing"] is None


@focal.hessian_form("exact", when=_of_classes)
def _focal_hessian(
    prediction: Tensor,
    target: Tensor,
    *,
    gamma: float | Tensor,
    alpha: float | Sequence[float] | None,
    alpha_mode: str,
    class_weight: Sequence[float] | None,
    ignore_index: int | None,
    label_smoothing: float | None,
    fisher: bool = False,
) -> Tensor:
    target, weight = class_weights(target, prediction, class_weight, ignore_index)
    scale = _alphas(prediction, target, alpha, alpha_mode)
    p, variance = softmax.variances(prediction)
    nll, rest = softmax.target_nll(prediction, target)
    limits = torch.finfo(nll.dtype)
    sure, nll, divisor = rest == 0, nll.clamp(max=limits.max), rest.clamp(min=limits.tiny)
    # Of (1−p)^γ·nll: its first derivative by nll, and its second times (1−p)², which is finite where 1−p is 0.
    chance = p.gather(1, target.unsqueeze(1)).squeeze(1)  # 1 - rest loses the digits of a hopeless target
    faded = chance * nll * gamma
    fade = power(rest, gamma)
    slope = fade * (1 + faded / divisor)
    bend = chance * fade * (gamma * rest * (2 - nll) + (gamma - 1) * faded)
    second = variance.mul_(slope.unsqueeze(1))
    if not fisher:
        # The derivative of nll by a score is p, and −(1−p) by the target's: here over 1−p.
        pull = (p / divisor.unsqueeze(1)).scatter_(1, target.unsqueeze(1), 1)
        second.add_(bend.unsqueeze(1) * pull.square())
    factor = (~sure).to(nll.dtype)
    for one in (weight, scale):
        factor = factor if one is None else factor * one
    return second.mul_(factor.unsqueeze(1))


@focal.hessian_form("fisher", when=_of_classes)
def _focal_information(prediction: Tensor, target: Tensor, **parameters: Any) -> Tensor:
    return _focal_hessian(prediction, target, **parameters, fisher=True)


def _focal_of_shares(
    prediction: Tensor,
    target: Tensor,
    gamma: float | Tensor,
    alpha: float | Sequence[float] | None,
    alpha_mode: str,
    class_weight: Sequence[float] | None,
    ignore_index: int | None,
    label_smoothing: float | None,
) -> Tensor | Unreduced:
    """Return the focal loss of each class's share, in float64."""
    scores = prediction.double()
    share, weight, kept = _share_of_classes(scores, target, class_weight, ignore_index, label_smoothing)
    factor = _alphas(scores, torch.arange(scores.shape[1], device=scores.device), alpha, alpha_mode)
    if factor is not None:
        share = share * torch.as_tensor(factor, dtype=scores.dtype, device=scores.device).reshape(
            -1, *(1,) * (scores.ndim - 2)
        )
    log_p = torch.log_softmax(scores, 1)
    rest = -torch.expm1(log_p)
    # Masked before powers and products, which send a NaN back where the slope is infinite.
    none = (share == 0) | (rest == 0)
    fade = torch.exp(
        (gamma.unsqueeze(1) if isinstance(gamma, Tensor) else gamma) * torch.log(rest.masked_fill(none, 1))
    )
    value = row_total(torch.where(none, 0.0, share) * fade * -log_p.masked_fill(none, 0))
    return _of_shares(value, prediction, target, weight, kept)


def _alphas(
    prediction: Tensor, target: Tensor, alpha: float | Sequence[float] | None, mode: str
) -> Tensor | float | None:
    """Return the factor of each target's class."""
    if alpha is None:
        return None
    if isinstance(alpha, float | int):
        return float(alpha) if mode == "scale" else torch.where(target == 0, 1 - alpha, alpha).to(prediction.dtype)
    return torch.tensor(alpha, dtype=prediction.dtype, device=prediction.device)[target]


@loss(task="multiclass", kind="rows", elementwise=True)
def nll(
    prediction: LogProbability[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"],
    *,
    class_weight: PerClass | None = None,
    ignore_index: int | None = -100,
) -> Real[Tensor, "N *"] | Unreduced:
    r"""Negative log-probability of the target class, given log-probabilities.

    .. math:: -w_t \log p_t

    Args:
        prediction: Log-probabilities, as log_softmax gives them; for logits use cross_entropy.
        target: Class indices.
        class_weight: Weight w of each class; the mean is divided by the sum of the targets' weights.
        ignore_index: Targets of this class count neither in the numerator nor in the denominator; any integer, null
            for none.

    Returns:
        One value per position, unreduced, >= 0. Where a log-probability of a target is above 0,
        ``positive_log_probability`` is warned.

    Gradient:
        With respect to ``prediction``: −w at the target class, 0 elsewhere.

    References:
        torch.nn.functional.nll_loss.
    """
    target, weight = class_weights(target, prediction, class_weight, ignore_index)
    log_p = prediction.gather(1, target.unsqueeze(1)).squeeze(1)
    positive = log_p > regions.UNCERTAIN
    if weight is not None:
        positive &= weight != 0
    unreduced = weighted(-log_p, weight)
    if not isinstance(unreduced, Unreduced):
        unreduced = Unreduced(unreduced, torch.ones_like(unreduced))
    return replace(unreduced, flags={**unreduced.flags, "positive_log_probability": positive})


def _kl_inputs(parameters: Mapping[str, Any]) -> Refinement:
    if not parameters["log_target"]:
        return Refinement()
    return Refinement(inputs={"target": TensorType("log_probability", ("float",), ("N", "C", "*"))})


@loss(
    task="multiclass", kind="rows", reductions=("batchmean", "mean", "sum", "none"), refine=_kl_inputs, elementwise=True
)
def kl_div(
    prediction: LogProbability[Tensor, "N C *"],
    target: Distribution[Tensor, "N C *"],
    *,
    log_target: bool = False,
) -> Real[Tensor, "N C *"] | Unreduced:
    r"""The Kullback-Leibler divergence of a predicted distribution from the target.

    .. math:: t\,(\log t - \log p)

    Args:
        prediction: Log-probabilities, as log_softmax gives them.
        target: Probabilities t in the shape of the prediction; log-probabilities where ``log_target`` is true.
        log_target: Whether targets are log-probabilities.

    Returns:
        One value per class and position, unreduced. "batchmean", the default, sums over everything but the samples,
        which makes it the divergence; "mean" divides by the number of elements. A divergence of distributions is never
        below 0; where it is, ``negative_divergence`` is warned.

    Gradient:
        With respect to ``prediction``: −t. Where t is 0 the value and the gradient are 0, even of a prediction of -inf.

    References:
        S. Kullback and R. A. Leibler, On Information and Sufficiency, 1951, doi:10.1214/aoms/1177729694.
        torch.nn.functional.kl_div.
    """
    # In float64: where the distributions are close, the logarithms cancel.
    wide, log_p = target.double(), prediction.double()
    log_t = wide if log_target else torch.log(wide)
    share = torch.exp(wide) if log_target else wide
    value = softmax.weighted_nll(share, log_t - log_p)
    unreduced = _of_distributions(value, share)
    return replace(unreduced, flags={**unreduced.flags, "negative_divergence": row_total(value) < -regions.UNCERTAIN})


@loss(task="multiclass", kind="stack")
def soft_f1(
    prediction: Logits[Tensor, "N C"],
    target: ClassIndex[Tensor, "N"],
    *,
    eps: Clip = 1e-7,
    absent: Literal["penalize", "ignore"] = "penalize",
) -> Real[Tensor, "C"] | Unreduced:
    r"""1 minus the F1 score of each class, with the probabilities as fractions of a count.

    .. math:: 1 - \frac{2\,P\,R}{P + R + \epsilon}, \quad
        P = \frac{TP}{TP + FP + \epsilon}, \quad R = \frac{TP}{TP + FN + \epsilon}

    Args:
        prediction: Class scores (logits).
        target: Class indices.
        eps: Keeps each quotient defined; the F1 score is clipped to [eps, 1−eps], with gradient 0 outside.
        absent: A class that no target has: "penalize" counts it, with a loss of 1−eps; "ignore" leaves it out.

    Returns:
        One value per class, in [eps, 1−eps], unreduced; the mean is over the classes.

    Gradient:
        With respect to ``prediction``.

    References:
        M. Haltuf, Best Loss Function for F1-Score Metric, Kaggle, 2018, for this form.
        G. Bénédict et al., sigmoidF1: A Smooth F1 Score Surrogate Loss, 2021, arXiv:2108.10566.
    """
    probabilities = torch.softmax(prediction, 1).unsqueeze(-1)
    hits, count = (sums.sum(0) for sums in regions.by_class(probabilities, target.long().reshape(-1, 1, 1)))
    least = torch.as_tensor(eps, dtype=torch.float64, device=prediction.device)
    # TP + FP is the prediction's sum, TP + FN the target's count.
    precision, recall = hits / (probabilities.double().sum((0, 2)) + least), hits / (count + least)
    value = 1 - (2 * precision * recall / (precision + recall + least)).clamp(least, 1 - least)
    weight = torch.ones_like(value) if absent == "penalize" else (count > 0).to(value.dtype)
    return Unreduced(value * weight, weight)
