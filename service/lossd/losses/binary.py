"""Losses of independent yes-or-no predictions: one value per element, the target in [0, 1] of the same shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lossd.losses.softmax as softmax
from lossd.lazy_torch import Tensor, functional, torch
from lossd.losses.elementary import power, sigmoid
from lossd.losses.reduction import weighted, without_ignored
from lossd.losses.registry import Refinement, Unreduced, Upstream, loss
from lossd.losses.types import Clip, Fraction, Logits, Mask, NonNegative, PerLabel, Probability, Real, TensorType
from lossd_client.wire.quoting import quoted

AlphaMode = Literal["balance", "scale"]


@loss(task="binary", kind="rows", elementwise=True)
def bce(
    prediction: Probability[Tensor, "N *"],
    target: Mask[Tensor, "N *"],
    *,
    eps: Clip | None = None,
    ignore_index: int | None = None,
    label_smoothing: Fraction | None = None,
) -> Real[Tensor, "N *"] | Unreduced:
    r"""Binary cross-entropy of probabilities.

    .. math:: -t\log p - (1-t)\log(1-p)

    Args:
        prediction: Probabilities p; for logits use bce_with_logits, which is exact where p rounds to 0 or 1.
        target: Same shape; 0, 1 or anything between.
        eps: Probabilities are clipped to [eps, 1−eps], with gradient 0 outside; null clamps the logarithms at −100
            instead, as torch does.
        ignore_index: Targets of this value, such as -1 for a missing label, count neither in the numerator nor in the
            denominator; any integer, null for none.
        label_smoothing: Share ε of each target that is drawn to 1/2: t becomes (1−ε)t + ε/2, as in Keras; null for
            none.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: (p−t) / (p(1−p)), the denominator at least 1e-12; 0 where ignored.

    References:
        torch.nn.functional.binary_cross_entropy.
    """
    target, kept = _known(target, ignore_index, label_smoothing)
    return weighted(functional.binary_cross_entropy(_clipped(prediction, eps), target, reduction="none"), kept)


@bce.closed_form
def _bce(
    upstream: Upstream,
    gradient: Mapping[str, Tensor],
    prediction: Tensor,
    target: Tensor,
    *,
    eps: float | None,
    ignore_index: int | None,
    label_smoothing: float | None,
) -> Tensor | Unreduced:
    target, kept = _known(target, ignore_index, label_smoothing)
    p = _clipped(prediction, eps)
    torch.mul(_bce_slope(p, target), _factor(upstream, kept), out=gradient["prediction"])
    _stop_at_clip(gradient["prediction"], prediction, eps)
    return weighted(functional.binary_cross_entropy(p, target, reduction="none"), kept)


def _known(target: Tensor, ignore_index: int | None, label_smoothing: float | None) -> tuple[Tensor, Tensor | None]:
    """Return the targets, smoothed, with 0 in place of ignored ones; and their weights, None if all are 1."""
    target, kept = without_ignored(target, ignore_index)
    if label_smoothing is not None:
        target = (1 - label_smoothing) * target + 0.5 * label_smoothing
    return target, kept


def _factor(upstream: Upstream, kept: Tensor | None) -> Tensor:
    return upstream(None) if kept is None else upstream(kept) * kept


def _clipped(p: Tensor, eps: float | None) -> Tensor:
    return p if eps is None else p.clamp(eps, 1 - eps)


def _stop_at_clip(gradient: Tensor, p: Tensor, eps: float | None) -> None:
    if eps is not None:
        gradient.masked_fill_((p < eps) | (p > 1 - eps), 0)


def _bce_slope(p: Tensor, target: Tensor) -> Tensor:
    return (p - target).div_((1 - p).mul_(p).clamp_(min=1e-12))


@loss(task="binary", kind="rows", elementwise=True)
def bce_with_logits(
    prediction: Logits[Tensor, "N *"],
    target: Mask[Tensor, "N *"],
    *,
    pos_weight: NonNegative | PerLabel | None = None,
    ignore_index: int | None = None,
    label_smoothing: Fraction | None = None,
) -> Real[Tensor, "N *"] | Unreduced:
    r"""Binary cross-entropy of logits, accurate for logits of any size.

    .. math:: w\,t\,\operatorname{softplus}(-z) + (1-t)\operatorname{softplus}(z)

    Args:
        prediction: Logits z.
        target: Same shape; 0, 1 or anything between.
        pos_weight: Factor w of the positive part: one number, or one for each label. Labels are axis 1, as in
            (N, L) and (N, L, *), however many axes follow. The mean is over the elements, whatever they weigh.
        ignore_index: Targets of this value, such as -1 for a missing label, count neither in the numerator nor in the
            denominator; any integer, null for none.
        label_smoothing: Share ε of each target that is drawn to 1/2: t becomes (1−ε)t + ε/2, as in Keras; null for
            none.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: (1−t)·σ(z) − w·t·σ(−z), which is σ(z) − t where ``pos_weight`` is 1; 0 where
        ignored.

    References:
        torch.nn.functional.binary_cross_entropy_with_logits.
    """
    target, kept = _known(target, ignore_index, label_smoothing)
    return weighted(entropy_of_logits(prediction, target, _label_weights(prediction, pos_weight)), kept)


def entropy_of_logits(z: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """w·t·softplus(−z) + (1−t)·softplus(z).

    Neither term is negative: the shorter (1−t)·z + softplus(−z) would round away all there is of a logit that is large
    and right. An infinite logit that is right has 0.
    """
    positive = target if weight is None else target * weight
    yes = softmax.weighted_nll(positive, -functional.logsigmoid(z))
    return yes + softmax.weighted_nll(1 - target, -functional.logsigmoid(-z))


@bce_with_logits.closed_form
def _bce_with_logits(
    upstream: Upstream,
    gradient: Mapping[str, Tensor],
    prediction: Tensor,
    target: Tensor,
    *,
    pos_weight: float | Sequence[float] | None,
    ignore_index: int | None,
    label_smoothing: float | None,
) -> Tensor | Unreduced:
    target, kept = _known(target, ignore_index, label_smoothing)
    weight = _label_weights(prediction, pos_weight)
    positive = sigmoid(-prediction).mul_(target if weight is None else target * weight)
    slope = torch.mul(sigmoid(prediction), 1 - target, out=gradient["prediction"])
    slope.sub_(positive).mul_(_factor(upstream, kept))
    return weighted(entropy_of_logits(prediction, target, weight), kept)


@bce_with_logits.hessian_form("exact", "fisher")
def _bce_with_logits_hessian(
    prediction: Tensor,
    target: Tensor,
    *,
    pos_weight: float | Sequence[float] | None,
    ignore_index: int | None,
    label_smoothing: float | None,
) -> Tensor:
    target, kept = _known(target, ignore_index, label_smoothing)
    weight = _label_weights(prediction, pos_weight)
    factor = 1 - target + (target if weight is None else target * weight)
    return logistic_variance(prediction) * (factor if kept is None else factor * kept)


def logistic_variance(z: Tensor) -> Tensor:
    """Return σ(z)σ(−z): 1 − σ(z) would be 0 from a logit of 37 on."""
    return sigmoid(z) * sigmoid(-z)


def _label_weights(prediction: Tensor, pos_weight: float | Sequence[float] | None) -> Tensor | None:
    if pos_weight is None:
        return None
    weight = torch.tensor(pos_weight, dtype=prediction.dtype, device=prediction.device)
    return weight if isinstance(pos_weight, float | int) else weight.reshape(-1, *(1,) * (prediction.ndim - 2))


def _sigmoid_focal_inputs(parameters: Mapping[str, Any]) -> Refinement:
    alpha = parameters["alpha"]
    if parameters["alpha_mode"] == "balance" and alpha is not None and alpha > 1:
        raise ValueError(f'alpha_mode "balance" needs alpha in [0, 1], found {quoted(alpha)}; null is for no factor')
    if not parameters["from_logits"]:
        return Refinement(inputs={"prediction": TensorType("probability", ("float",), ("N", "*"))})
    if parameters["eps"] is not None:
        raise ValueError("eps clips probabilities: it needs from_logits false")
    return Refinement()


@loss(task="binary", kind="rows", refine=_sigmoid_focal_inputs, elementwise=True)
def sigmoid_focal(
    prediction: Logits[Tensor, "N *"],
    target: Mask[Tensor, "N *"],
    *,
    gamma: NonNegative = 2.0,
    alpha: NonNegative | None = 0.25,
    alpha_mode: AlphaMode = "balance",
    from_logits: bool = True,
    eps: Clip | None = None,
    ignore_index: int | None = None,
    label_smoothing: Fraction | None = None,
) -> Real[Tensor, "N *"] | Unreduced:
    r"""Binary cross-entropy that gives less weight to entries already classified well.

    .. math:: \alpha_t\,(1-p_t)^\gamma\,\text{BCE}(p,t), \quad 1-p_t = p(1-t) + (1-p)\,t

    Args:
        prediction: Logits, or probabilities where ``from_logits`` is false.
        target: Same shape; 0, 1 or anything between.
        gamma: How strongly it lowers their weight; 0 is binary cross-entropy.
        alpha: The factor, see ``alpha_mode``; null for none (torchvision's -1).
        alpha_mode: "balance" gives positives the factor α and negatives 1−α; "scale" gives all of them α.
        from_logits: Whether predictions are logits.
        eps: Probabilities are clipped to [eps, 1−eps], with gradient 0 outside; null clamps the logarithms at −100.
        ignore_index: Targets of this value, such as -1 for a missing label, count neither in the numerator nor in the
            denominator; any integer, null for none.
        label_smoothing: Share ε of each target that is drawn to 1/2: t becomes (1−ε)t + ε/2, as in Keras; null for
            none.

    Returns:
        One value per element, >= 0, unreduced; the mean is over the elements that count.

    Gradient:
        With respect to ``prediction``; exactly 0 where the logit is saturated and right, and where ignored.

    References:
        T.-Y. Lin et al., Focal Loss for Dense Object Detection, 2017, arXiv:1708.02002.
        torchvision.ops.sigmoid_focal_loss.
    """
    target, kept = _known(target, ignore_index, label_smoothing)
    if from_logits:
        # Both tails are taken from their own sigmoid: 1 − σ(z) would round to 0 long before σ(−z) does.
        wrong = sigmoid(prediction) * (1 - target) + sigmoid(-prediction) * target
        entropy = entropy_of_logits(prediction, target)
    else:
        p = _clipped(prediction, eps)
        wrong = p * (1 - target) + (1 - p) * target
        entropy = functional.binary_cross_entropy(p, target, reduction="none")
    # The power's slope is infinite at 0 for gamma < 1, but there the value is 0 and so is its slope.
    right = wrong == 0
    fade = torch.exp(gamma * torch.log(wrong.masked_fill(right, 1)))
    value = torch.where(right, torch.zeros_like(entropy), fade * entropy)
    factor = torch.as_tensor(_balance(target, alpha, alpha_mode), dtype=value.dtype, device=value.device)
    return weighted(softmax.weighted_nll(factor, value), kept)


@sigmoid_focal.closed_form
def _sigmoid_focal(
    upstream: Upstream,
    gradient: Mapping[str, Tensor],
    prediction: Tensor,
    target: Tensor,
    *,
    gamma: float | Tensor,
    alpha: float | None,
    alpha_mode: str,
    from_logits: bool,
    eps: float | None,
    ignore_index: int | None,
    label_smoothing: float | None,
) -> Tensor | Unreduced:
    target, kept = _known(target, ignore_index, label_smoothing)
    if from_logits:
        p, rest = sigmoid(prediction), sigmoid(-prediction)
        entropy = entropy_of_logits(prediction, target)
    else:
        p = _clipped(prediction, eps)
        rest = 1 - p
        entropy = functional.binary_cross_entropy(p, target, reduction="none")
    positive, negative = rest * target, p * (1 - target)
    wrong = positive + negative
    fade = power(wrong, gamma).mul_(_balance(target, alpha, alpha_mode))
    # d(wrong)/dp is 1−2t; the first summand is that of the fading factor, the second that of the entropy.
    limits = torch.finfo(p.dtype)
    slope = 1 - 2 * target
    if from_logits:
        # p(1−p) outruns the entropy, however large that is: where it is 0, so is their product.
        slope.mul_(p).mul_(rest).div_(wrong.clamp_(min=limits.tiny)).mul_(entropy.clamp(max=limits.max)).mul_(gamma)
        slope.add_(negative).sub_(positive)
    else:
        slope.mul_(entropy).mul_(gamma).div_(wrong.clamp_(min=limits.tiny)).add_(_bce_slope(p, target))
    torch.mul(slope.mul_(fade), _factor(upstream, kept), out=gradient["prediction"])
    _stop_at_clip(gradient["prediction"], prediction, eps)
    return weighted(softmax.weighted_nll(fade, entropy), kept)


@sigmoid_focal.hessian_form("exact", when=lambda parameters, shapes: parameters["from_logits"])
def _sigmoid_focal_hessian(
    prediction: Tensor,
    target: Tensor,
    *,
    gamma: float | Tensor,
    alpha: float | None,
    alpha_mode: str,
    from_logits: bool,
    eps: float | None,
    ignore_index: int | None,
    label_smoothing: float | None,
) -> Tensor:
    target, kept = _known(target, ignore_index, label_smoothing)
    p, rest, entropy, wrong, factor = _focal_parts(prediction, target, gamma, alpha, alpha_mode, kept)
    variance = p * rest
    # The fading factor is wrong^γ: its first and second derivatives by the logit, over wrong.
    steep = (1 - 2 * target) * variance / wrong
    bend = steep * (rest - p) + (gamma - 1) * steep.square()
    slope = p * (1 - target) - rest * target
    return factor * (variance + 2 * gamma * steep * slope + gamma * bend * entropy)


@sigmoid_focal.hessian_form("fisher")
def _sigmoid_focal_information(
    prediction: Tensor,
    target: Tensor,
    *,
    gamma: float | Tensor,
    alpha: float | None,
    alpha_mode: str,
    from_logits: bool,
    eps: float | None,
    ignore_index: int | None,
    label_smoothing: float | None,
) -> Tensor:
    if not from_logits:
        p = _clipped(prediction, eps)
        prediction = torch.log(p) - torch.log(1 - p)
    target, kept = _known(target, ignore_index, label_smoothing)
    p, rest, entropy, wrong, factor = _focal_parts(prediction, target, gamma, alpha, alpha_mode, kept)
    right = p * target + rest * (1 - target)
    information = factor * (1 + gamma * right * entropy / wrong)
    return information * p * rest if from_logits else information / (p * rest).clamp(min=1e-12)


def _focal_parts(
    z: Tensor, target: Tensor, gamma: float | Tensor, alpha: float | None, mode: str, kept: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return σ(z), σ(−z), the entropy, the probability of the wrong answer, and the factor of the entropy."""
    p, rest = sigmoid(z), sigmoid(-z)
    limits = torch.finfo(z.dtype)
    wrong = p * (1 - target) + rest * target
    factor = power(wrong, gamma) * _balance(target, alpha, mode)
    factor = factor.masked_fill(wrong == 0, 0)
    return (
        p,
        rest,
        entropy_of_logits(z, target).clamp(max=limits.max),
        wrong.clamp(min=limits.tiny),
        factor if kept is None else factor * kept,
    )


def _balance(target: Tensor, alpha: float | None, mode: str) -> float | Tensor:
    if alpha is None:
        return 1.0
    return alpha if mode == "scale" else alpha * target + (1 - alpha) * (1 - target)
