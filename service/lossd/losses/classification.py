"""Losses of class scores: one value per sample, or per position of a dense prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import lossd.losses.regions as regions
import lossd.losses.softmax as softmax
from lossd.lazy_torch import Tensor, torch
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
    PerClass,
    Real,
    TensorType,
)
from lossd_client.wire.quoting import quoted

UNCERTAIN = 0.01
"""What rounding may add to probabilities that sum to 1, or take from a divergence, in any dtype."""

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
        target: Class indices, or class probabilities in the shape of the prediction; where those of a position do not
            sum to 1, as of several classes at once, ``not_a_distribution`` is warned (see bce_with_logits).
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
    if target.ndim == prediction.ndim:
        share = _softened(prediction, target, table, smoothing)
        return _of_distributions(row_total(softmax.expected(share, -torch.log_softmax(prediction, 1))), target)
    if smoothing is None:
        target, weight = class_weights(target, prediction, class_weight, ignore_index)
        return weighted(softmax.target_nll(prediction, target)[0], weight)
    target, kept = class_weights(target, prediction, None, ignore_index)
    share = _smoothed(prediction, target.unsqueeze(1), table, smoothing)
    return _counted(row_total(softmax.expected(share, -torch.log_softmax(prediction, 1))), target, table, kept)


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


def _of_distributions(value: Tensor, share: Tensor) -> Unreduced:
    """The value, with a warning of each position whose target probabilities (N, C, *) do not sum to 1."""
    return Unreduced(
        value, torch.ones_like(value), flags={"not_a_distribution": (row_total(share) - 1).abs() > UNCERTAIN}
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
) -> Tensor | Unreduced:
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


def _alphas(
    prediction: Tensor, target: Tensor, alpha: float | Sequence[float] | None, mode: str
) -> Tensor | float | None:
    """Return the factor of each target's class."""
    if alpha is None:
        return None
    if isinstance(alpha, float | int):
        return float(alpha) if mode == "scale" else torch.where(target == 0, 1 - alpha, alpha).to(prediction.dtype)
    return torch.tensor(alpha, dtype=prediction.dtype, device=prediction.device)[target]


@loss(task="multiclass", kind="rows")
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
        One value per position, unreduced.

    Gradient:
        With respect to ``prediction``: −w at the target class, 0 elsewhere.

    References:
        torch.nn.functional.nll_loss.
    """
    target, weight = class_weights(target, prediction, class_weight, ignore_index)
    return weighted(-prediction.gather(1, target.unsqueeze(1)).squeeze(1), weight)


def _kl_inputs(parameters: Mapping[str, Any]) -> Refinement:
    if not parameters["log_target"]:
        return Refinement()
    return Refinement(inputs={"target": TensorType("log_probability", ("float",), ("N", "C", "*"))})


@loss(task="multiclass", kind="rows", reductions=("batchmean", "mean", "sum", "none"), refine=_kl_inputs)
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
    value = softmax.expected(share, log_t - log_p)
    unreduced = _of_distributions(value, share)
    return replace(unreduced, flags={**unreduced.flags, "negative_divergence": row_total(value) < -UNCERTAIN})


@loss(task="multiclass", kind="stack")
def soft_f1(
    prediction: Logits[Tensor, "N C"],
    target: ClassIndex[Tensor, "N"],
    *,
    eps: Clip = 1e-7,
    absent: Literal["penalize", "ignore"] = "penalize",
) -> Real[Tensor, "C"] | Unreduced:
    r"""One less the F1 score of each class, with the probabilities as fractions of a count.

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
