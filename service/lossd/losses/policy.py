"""The policy-gradient loss of sampled tokens, one sequence a row: its forms, its penalty and its averages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Gt

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_total, sigmoid
from lossd.losses.reduction import ratio, times
from lossd.losses.registry import Refinement, Unreduced, loss
from lossd.losses.types import Finite, Kept, NonNegative, Positive, Real, TensorType
from lossd_client.errors import MissingInput

__all__ = ["divergence", "log_bounds", "policy_gradient", "ratio_bounds", "sequence_means"]

Form = Literal["ppo", "importance_sampling", "cispo", "dro", "gspo", "sapo", "reinforce"]
Estimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]

BOUNDS: Mapping[str, tuple[float, float]] = {"ppo": (0.8, 1.2), "gspo": (0.8, 1.2), "cispo": (0.0, 4.0)}
"""The default bounds of the ratio, of the forms that have bounds."""

READ_BY: Mapping[str, tuple[str, ...]] = {
    "ratio_min": tuple(BOUNDS),
    "ratio_max": tuple(BOUNDS),
    "dual_clip": ("ppo", "gspo"),
    "beta": ("dro",),
    "positive_temperature": ("sapo",),
    "negative_temperature": ("sapo",),
}
"""The forms that read a parameter."""

SATURATED = 700.0
"""A log-ratio whose ratio is finite in float64; the sigmoid of "sapo" is constant long before."""


def _parameters(parameters: Mapping[str, Any]) -> Refinement:
    form, aggregation = parameters["form"], parameters["aggregation"]
    for name, forms in READ_BY.items():
        if parameters[name] is not None and form not in forms:
            raise ValueError(f'form "{form}" has no {name}; {", ".join(forms)} have')
    if form == "dro" and parameters["beta"] is None:
        raise ValueError('form "dro" needs beta, which has no usual value: servers take 0.01 to 1')
    if form in BOUNDS:
        low, high = ratio_bounds(form, parameters["ratio_min"], parameters["ratio_max"])
        if low >= high:
            raise ValueError(f"ratio_min must be less than ratio_max; found {low} and {high}")
        if parameters["dual_clip"] is not None and parameters["dual_clip"] <= low:
            raise ValueError(f"dual_clip must exceed ratio_min; found {parameters['dual_clip']} and {low}")
    if aggregation == "constant" and parameters["length"] is None:
        raise ValueError('aggregation "constant" needs length, the tokens that each sequence is divided by')
    if aggregation != "constant" and parameters["length"] is not None:
        raise ValueError(f'aggregation "{aggregation}" has no length; "constant" has')
    if aggregation == "token_mean":
        return Refinement()
    return Refinement(returns=TensorType("real", ("float",), ("N",)))


def ratio_bounds(form: str, low: float | None, high: float | None) -> tuple[float, float]:
    """Return the bounds of the ratio, the form's own in place of null."""
    own_low, own_high = BOUNDS[form]
    return own_low if low is None else low, own_high if high is None else high


@loss(
    task="policy",
    kind="rows",
    refine=_parameters,
    elementwise=lambda parameters: () if parameters["form"] == "gspo" else ("prediction",),
)
def policy_gradient(
    prediction: Real[Tensor, "N T"],
    advantage: Finite[Tensor, "N T"] | Finite[Tensor, "N"],
    sampled: Finite[Tensor, "N T"] | None = None,
    reference: Finite[Tensor, "N T"] | None = None,
    mask: Kept[Tensor, "N T"] | None = None,
    element_weight: Tensor | None = None,
    *,
    form: Form = "ppo",
    ratio_min: NonNegative | None = None,
    ratio_max: Positive | None = None,
    dual_clip: Annotated[float, Gt(1)] | None = None,
    beta: Positive | None = None,
    positive_temperature: Positive | None = None,
    negative_temperature: Positive | None = None,
    kl_weight: NonNegative = 0.0,
    kl: Estimator = "k3",
    aggregation: Aggregation = "token_mean",
    length: Positive | None = None,
) -> Real[Tensor, "N T"] | Unreduced:
    r"""Policy gradient of sampled tokens, weighted by their advantages.

    .. math:: -\min(r A,\ \operatorname{clip}(r, r_{min}, r_{max})\, A) + \lambda\,\text{KL}, \quad r = e^{p - q}

    A mask or ``lengths`` leaves out the tokens that were not sampled, such as prompts and padding.

    Args:
        prediction: Log-probability p of each sampled token under the model.
        advantage: Advantage A of each token, or of each sequence (N,).
        sampled: Log-probability q of each token when it was sampled; optional for "reinforce" alone.
        reference: Log-probability of each token under the reference model, for the penalty.
        mask: Which tokens count.
        element_weight: The weight of each token in the sums, and in the means of "token_mean" and "sequence_mean". The
            mean of "gspo" is that of the tokens that count, whatever they weigh.
        form: "ppo" is the formula above. "importance_sampling" is −rA. "cispo" is −sg(clip(r)) A p, sg held constant.
            "dro" is −(pA − ½β(p−q)²). "gspo" is "ppo" with one ratio per sequence, e to the mean of p − q; verl
            holds that ratio constant and lets the gradient flow through the tokens, which agrees under "sequence_mean"
            alone. "sapo" is −(4/τ) σ(τ(r−1)) A. "reinforce" is −pA.
        ratio_min: The least ratio, not 1 − ε but the ratio itself; null is 0.8, of "cispo" 0.
        ratio_max: The greatest ratio, likewise; null is 1.2, of "cispo" 4. Libraries differ for "cispo": TRL's and
            Liger's ε_high is the ratio, that of verl, slime and NeMo is added to 1, and Tinker's bounds are 0 and 4.
            The authors of GSPO take 0.9997 and 1.0004.
        dual_clip: The greatest ratio where the advantage is negative, of "ppo" and "gspo"; null for none, as TRL's
            ``delta``. verl always clips at 3.
        beta: The weight β of the squared log-ratio in "dro", which needs it.
        positive_temperature: τ of "sapo" where the advantage is positive; null is 1.
        negative_temperature: τ of "sapo" elsewhere; null is 1.05.
        kl_weight: The weight λ of the penalty, which needs ``reference``.
        kl: The estimator of the divergence from the reference, with d = reference − p: "k1" −d, "k2" d²/2, "k3"
            e^d − d − 1. The gradient of "k1" has mean 0 and penalises nothing. verl clamps "k3" to [−10, 10].
        aggregation: How tokens become one number: "token_mean" divides by the tokens of the whole batch (DAPO);
            "sequence_mean" takes the mean of each sequence, then of the sequences (GRPO); "sequence_sum" their sums,
            then the mean; "constant" divides sums by ``length`` and by all sequences (Dr. GRPO). Sequences without
            tokens are in no mean but that of "constant". All are exact across parts of a batch, by numerator and
            denominator. Tinker adds up all tokens: that is the reduction "sum".
        length: What "constant" divides each sequence by, usually the most tokens that a sequence may have.

    Returns:
        One value per token, or per sequence unless ``aggregation`` is "token_mean"; unreduced. The mean's denominator
        is the number of tokens or sequences that count.

    Gradient:
        With respect to ``prediction``; exactly 0 under a mask, and where the ratio is clipped, apart from the penalty.
        The other inputs are constants.

    References:
        J. Schulman et al., Proximal Policy Optimization Algorithms, 2017, arXiv:1707.06347.
        R. J. Williams, Simple Statistical Gradient-Following Algorithms (REINFORCE), 1992, doi:10.1007/BF00992696.
        Z. Shao et al., DeepSeekMath (GRPO), 2024, arXiv:2402.03300.
        Q. Yu et al., DAPO, 2025, arXiv:2503.14476.
        Z. Liu et al., Understanding R1-Zero-Like Training (Dr. GRPO), 2025, arXiv:2503.20783.
        MiniMax, MiniMax-M1 (CISPO), 2025, arXiv:2506.13585.
        C. Zheng et al., Group Sequence Policy Optimization, 2025, arXiv:2507.18071.
        D. Ye et al., Mastering Complex Control in MOBA Games (dual clip), 2019, arXiv:1912.09729.
        J. Schulman, Approximating KL Divergence, 2020.
    """
    # In float64: estimates of a small divergence cancel in float32, and ratios overflow.
    p = prediction.double()
    a = advantage.double()
    a = a.unsqueeze(1) if a.ndim == 1 else a
    if sampled is None and form != "reinforce":
        raise MissingInput(f'policy_gradient needs sampled for the form "{form}"')
    log_ratio = p if sampled is None else p - sampled.double()
    if form == "gspo":
        log_ratio = sequence_means(log_ratio, mask).unsqueeze(1)
    match form:
        case "ppo" | "gspo":
            least, most = log_bounds(a, ratio_bounds(form, ratio_min, ratio_max), dual_clip)
            value = -log_ratio.clamp(least, most).exp() * a
        case "importance_sampling":
            value = -log_ratio.masked_fill(a == 0, 0).exp() * a
        case "cispo":
            low, high = ratio_bounds(form, ratio_min, ratio_max)
            value = times(p, -log_ratio.detach().clamp(_log(low), _log(high)).exp() * a)
        case "dro":
            assert beta is not None
            value = 0.5 * beta * log_ratio.square() - times(p, a)
        case "sapo":
            tau = _chosen(a > 0, positive_temperature or 1.0, negative_temperature or 1.05)
            value = -4 / tau * sigmoid(tau * (log_ratio.clamp(max=SATURATED).exp() - 1)) * a
        case "reinforce":
            value = times(p, -a)
    value = value.expand_as(p) + _penalty(p, reference, kl_weight, kl)
    return _aggregated(value, mask, element_weight, aggregation, length)


def _penalty(p: Tensor, reference: Tensor | None, weight: float | Tensor, estimator: str) -> Tensor | float:
    """Return the weighted divergence from the reference at each token; the weight is a tensor if requests differ."""
    if not isinstance(weight, Tensor):
        weight = torch.tensor(weight, dtype=p.dtype, device=p.device)
    if not weight.any():
        return 0.0
    if reference is None:
        raise MissingInput("policy_gradient needs reference for a kl_weight other than 0")
    weight = weight.reshape(-1, 1)
    none = weight == 0  # masked before the exponential, which may overflow
    return weight * divergence(p.masked_fill(none, 0), reference.double().masked_fill(none, 0), estimator)


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 0 else -math.inf


def log_bounds(advantage: Tensor, bounds: tuple[float, float], dual_clip: float | None) -> tuple[Tensor, Tensor]:
    """Return the logarithms between which the ratio has a gradient, given the advantages.

    The smaller of rA and clip(r)A is clip's where A is positive and r too large, and where A is negative and r too
    small. Clamped before the exponential, a ratio that overflows has the gradient 0 rather than 0 times infinity.
    """
    low, high = map(_log, bounds)
    falls = advantage < 0
    most = math.inf if dual_clip is None else math.log(dual_clip)
    return _chosen(falls, low, -math.inf), _chosen(falls, most, high)


def _chosen(condition: Tensor, one: float, other: float) -> Tensor:
    """Return one of two numbers for each entry, in float64."""
    first, second = (torch.tensor(number, dtype=torch.float64, device=condition.device) for number in (one, other))
    return torch.where(condition, first, second)


def sequence_means(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of each sequence's tokens that count, (N, T) to (N,); 0 of none."""
    if mask is None:
        return row_total(values) / values.shape[1]
    counts = row_total(mask, dtype=torch.int64)
    return row_total(torch.where(mask, values, 0.0)) / counts.clamp(min=1)


def divergence(p: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Return the estimate of the divergence at each token, given log-probabilities of tokens sampled by ``p``."""
    d = reference - p
    match estimator:
        case "k1":
            return -d
        case "k2":
            return 0.5 * d.square()
        case _:
            return torch.expm1(d) - d


def _aggregated(
    value: Tensor, mask: Tensor | None, element_weight: Tensor | None, aggregation: str, length: float | None
) -> Tensor | Unreduced:
    """Return the loss of each token or sequence, and what it adds to the denominator."""
    weight = None
    if mask is not None:
        weight = (mask if element_weight is None else element_weight).to(value.dtype)
        value = torch.where(mask, value * weight, 0.0)
    if aggregation == "token_mean":
        return value if weight is None else Unreduced(value, weight)
    total = row_total(value)
    if aggregation == "constant":
        assert length is not None
        return total / length
    if aggregation == "sequence_mean":
        total = total / value.shape[1] if weight is None else ratio(total, row_total(weight))
    return total if mask is None else Unreduced(total, mask.any(1).to(value.dtype))
