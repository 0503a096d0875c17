"""Losses of preferences: which of two answers is better, or whether one is good; one value per pair or answer.

All but ``bradley_terry`` take one log-probability for each answer. The client sums or averages over the tokens; the
docstrings say which. All compute in float64: the log-probability of a long answer is some hundreds, and its difference
from that of the reference is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lossd.lazy_torch import Tensor, functional, torch
from lossd.losses.elementary import log1mexp, sigmoid
from lossd.losses.registry import Refinement, loss
from lossd.losses.types import (
    Finite,
    Fraction,
    Indicator,
    NegativeTensor,
    NonNegative,
    Number,
    Positive,
    PositiveTensor,
    Real,
)
from lossd_client.errors import MissingInput

Form = Literal["sigmoid", "hinge", "ipo", "robust", "conservative", "exo", "apo_zero", "apo_down", "sppo", "nca", "bco"]
SMOOTHED = ("robust", "conservative", "exo")


def _dpo_parameters(parameters: Mapping[str, Any]) -> Refinement:
    form, smoothing, shift = parameters["form"], parameters["label_smoothing"], parameters["shift"]
    if smoothing and form not in SMOOTHED:
        raise ValueError(f'form "{form}" has no label_smoothing; the forms {", ".join(SMOOTHED)} have')
    if form == "robust" and smoothing >= 0.5:
        raise ValueError(f'form "robust" divides by 1 - 2 * label_smoothing, which must be < 0.5; found {smoothing}')
    if form == "exo" and not 0 < smoothing < 1:
        raise ValueError(
            f'form "exo" takes the logarithm of label_smoothing, which must be in (0, 1); found {smoothing}'
        )
    if shift and form != "bco":
        raise ValueError(f'form "{form}" has no shift; the form "bco" has')
    return Refinement()


@loss(task="preferences", kind="rows", differentiable=("chosen", "rejected"), refine=_dpo_parameters, elementwise=True)
def dpo(
    chosen: Real[Tensor, "N"],
    rejected: Real[Tensor, "N"],
    reference_chosen: Finite[Tensor, "N"],
    reference_rejected: Finite[Tensor, "N"],
    chosen_length: PositiveTensor[Tensor, "N"] | None = None,
    rejected_length: PositiveTensor[Tensor, "N"] | None = None,
    *,
    beta: Positive = 0.1,
    form: Form = "sigmoid",
    label_smoothing: Fraction = 0.0,
    shift: Number = 0.0,
) -> Real[Tensor, "N"]:
    r"""Direct preference optimisation: the chosen answer should gain more on the reference than the rejected one.

    .. math:: -\log\sigma(\beta\delta), \quad \delta = \underbrace{(c - c_{ref})}_{a} - \underbrace{(r - r_{ref})}_{b}

    Args:
        chosen: Log-probability c of the preferred answer under the model, summed over its tokens.
        rejected: Log-probability r of the other answer, likewise.
        reference_chosen: Log-probability of the preferred answer under the reference model.
        reference_rejected: Log-probability of the other answer under the reference model.
        chosen_length: Tokens of the preferred answer, which a is divided by; send both lengths or none. TRL divides for
            "ipo" and does not otherwise; the paper's IPO does not.
        rejected_length: Tokens of the other answer, which b is divided by.
        beta: How much the model is held to the reference, β.
        form: "sigmoid" is the formula above, "hinge" max(0, 1 − βδ), "ipo" (δ − 1/(2β))², "conservative"
            −(1−ε) log σ(βδ) − ε log σ(−βδ), "robust" (−(1−ε) log σ(βδ) + ε log σ(−βδ)) / (1−2ε), "exo"
            σ(βδ) (log σ(βδ) − log(1−ε)) + σ(−βδ) (log σ(−βδ) − log ε), "apo_zero" 1 − σ(βa) + σ(βb), "apo_down"
            σ(βa) + 1 − σ(βδ), "sppo" (a − 1/(2β))² + (b + 1/(2β))², "nca" −log σ(βa) − ½ log σ(−βa) − ½ log σ(−βb),
            "bco" −log σ(βa − s) − log σ(s − βb). TRL's "aot" sorts the batch and is not here.
        label_smoothing: Share ε of the preferences that are taken for wrong, of "conservative" (cDPO), "robust"
            (below 0.5) and "exo" (above 0). Other forms refuse it; TRL's "sigmoid" ignores it.
        shift: The reward s that "bco" compares with: a running mean of β(a+b)/2, which the client keeps.

    Returns:
        One value per pair, unreduced; >= 0 but for "robust", whose values are >= 0 only on average.

    Gradient:
        With respect to ``chosen`` and ``rejected``; of "sigmoid" −βσ(−βδ) and its negative.

    References:
        R. Rafailov et al., Direct Preference Optimization, 2023, arXiv:2305.18290.
        M. G. Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences (IPO), 2023,
            arXiv:2310.12036.
        S. Ray Chowdhury et al., Provably Robust DPO, 2024, arXiv:2403.00409.
        H. Ji et al., Towards Efficient Exact Optimization of Language Model Alignment (EXO), 2024, arXiv:2402.00856.
        K. D'Oosterlinck et al., Anchored Preference Optimization (APO), 2024, arXiv:2408.06266.
        Y. Wu et al., Self-Play Preference Optimization (SPPO), 2024, arXiv:2405.00675.
        H. Chen et al., Noise Contrastive Alignment (NCA), 2024, arXiv:2402.05369.
        S. Jung et al., Binary Classifier Optimization (BCO), 2024, arXiv:2404.04656.
        trl.DPOTrainer.
    """
    a, b = gains(chosen, rejected, reference_chosen, reference_rejected, chosen_length, rejected_length)
    delta, log_sigmoid = a - b, functional.logsigmoid
    match form:
        case "sigmoid":
            return -log_sigmoid(beta * delta)
        case "hinge":
            return torch.relu(1 - beta * delta)
        case "ipo":
            return (delta - 0.5 / beta).square()
        case "conservative":
            return -(1 - label_smoothing) * log_sigmoid(beta * delta) - label_smoothing * log_sigmoid(-beta * delta)
        case "robust":
            kept = -(1 - label_smoothing) * log_sigmoid(beta * delta) + label_smoothing * log_sigmoid(-beta * delta)
            return kept / (1 - 2 * label_smoothing)
        case "exo":
            flipped = torch.as_tensor(label_smoothing, dtype=delta.dtype, device=delta.device)
            right = sigmoid(beta * delta) * (log_sigmoid(beta * delta) - torch.log1p(-flipped))
            return right + sigmoid(-beta * delta) * (log_sigmoid(-beta * delta) - torch.log(flipped))
        case "apo_zero":
            return sigmoid(-beta * a) + sigmoid(beta * b)
        case "apo_down":
            return sigmoid(beta * a) + sigmoid(-beta * delta)
        case "sppo":
            return (a - 0.5 / beta).square() + (b + 0.5 / beta).square()
        case "nca":
            return -log_sigmoid(beta * a) - 0.5 * log_sigmoid(-beta * a) - 0.5 * log_sigmoid(-beta * b)
        case "bco":
            return -log_sigmoid(beta * a - shift) - log_sigmoid(shift - beta * b)


def gains(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_length: Tensor | None = None,
    rejected_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return how much likelier each answer is than under the reference, per token if lengths are given; float64.

    Raises:
        MissingInput: One length is given without the other.
    """
    if (chosen_length is None) != (rejected_length is None):
        missing = "chosen_length" if chosen_length is None else "rejected_length"
        raise MissingInput(f"dpo takes the lengths of both answers or of none; {missing} is missing")
    a, b = chosen.double() - reference_chosen.double(), rejected.double() - reference_rejected.double()
    if chosen_length is None or rejected_length is None:
        return a, b
    return a / chosen_length.double(), b / rejected_length.double()


@loss(task="preferences", kind="rows", differentiable=("chosen", "rejected"), elementwise=True)
def simpo(
    chosen: Real[Tensor, "N"], rejected: Real[Tensor, "N"], *, beta: Positive = 2.0, gamma: Number = 1.0
) -> Real[Tensor, "N"]:
    r"""Simple preference optimisation: the chosen answer's tokens should be more likely by a margin, with no reference.

    .. math:: -\log\sigma(\beta(c - r) - \gamma)

    Args:
        chosen: Mean log-probability c of the tokens of the preferred answer. It is a mean, not a sum as in dpo.
        rejected: Mean log-probability r of the tokens of the other answer.
        beta: The scale of the rewards, β. TRL's default is 0.1.
        gamma: The margin γ of the rewards. TRL's simpo_gamma is the same number; the paper also reports γ/β.

    Returns:
        One value per pair, > 0, unreduced.

    Gradient:
        With respect to ``chosen`` and ``rejected``: −βσ(γ − β(c−r)) and its negative.

    References:
        Y. Meng et al., SimPO: Simple Preference Optimization with a Reference-Free Reward, 2024, arXiv:2405.14734.
        trl.CPOTrainer with loss_type "simpo".
    """
    return -functional.logsigmoid(beta * (chosen.double() - rejected.double()) - gamma)


@loss(task="preferences", kind="rows", differentiable=("chosen", "rejected"), elementwise=True)
def orpo(
    chosen: NegativeTensor[Tensor, "N"], rejected: NegativeTensor[Tensor, "N"], *, beta: Positive = 0.1
) -> Real[Tensor, "N"]:
    r"""Odds-ratio preference optimisation: the odds of the chosen answer's tokens should exceed the rejected one's.

    .. math:: -\beta\log\sigma\left(\log\frac{e^c}{1-e^c} - \log\frac{e^r}{1-e^r}\right)

    The whole loss of the paper also has the negative log-likelihood of the chosen answer: add it by weighted_sum.

    Args:
        chosen: Mean log-probability c < 0 of the tokens of the preferred answer. The odds of a sum, as dpo takes it,
            are other numbers; those of 0 are infinite.
        rejected: Mean log-probability r < 0 of the tokens of the other answer.
        beta: The weight of this term beside the likelihood, λ in the paper.

    Returns:
        One value per pair, > 0, unreduced.

    Gradient:
        With respect to ``chosen`` and ``rejected``: −β(1−σ)/(1−e^c) and β(1−σ)/(1−e^r), σ of the difference.

    References:
        J. Hong et al., ORPO: Monolithic Preference Optimization without Reference Model, 2024, arXiv:2403.07691.
        trl.ORPOTrainer.
    """
    c, r = chosen.double(), rejected.double()
    return -beta * functional.logsigmoid((c - r) - (log1mexp(c) - log1mexp(r)))


@loss(task="desirability", kind="rows", differentiable=("log_ratio",), elementwise=True)
def kto(
    log_ratio: Real[Tensor, "N"],
    desirable: Indicator[Tensor, "N"],
    *,
    kl: NonNegative = 0.0,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Real[Tensor, "N"]:
    r"""Kahneman-Tversky optimisation: single answers, each known to be desirable or not.

    .. math:: \lambda_D\,(1 - \sigma(\beta(r - z))) \;(y=1), \quad \lambda_U\,(1 - \sigma(\beta(z - r))) \;(y=0)

    Args:
        log_ratio: Log-probability of each answer under the model less that under the reference, r, summed over tokens.
        desirable: 1 where the answer is desirable, 0 where not.
        kl: How far the model is from the reference, z, a constant: the mean log-ratio of answers to other prompts, at
            least 0. TRL averages over all devices and then clamps; Liger takes the number as given. 0 is TRL's
            "apo_zero_unpaired".
        beta: How much the model is held to the reference, β.
        desirable_weight: The factor λ_D of desirable answers; no weight enters the denominator of the mean.
        undesirable_weight: The factor λ_U of the others.

    Returns:
        One value per answer, from 0 to its weight, unreduced.

    Gradient:
        With respect to ``log_ratio``: −λβσ(1−σ) where desirable, λβσ(1−σ) where not.

    References:
        K. Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization, 2024, arXiv:2402.01306.
        trl.KTOTrainer.
    """
    gain = beta * (log_ratio.double() - kl)
    good = desirable > 0
    return torch.where(good, desirable_weight * sigmoid(-gain), undesirable_weight * sigmoid(gain))


@loss(task="preferences", kind="rows", differentiable=("chosen", "rejected"), elementwise=True)
def bradley_terry(
    chosen: Real[Tensor, "N"],
    rejected: Real[Tensor, "N"],
    reward_margin: Finite[Tensor, "N"] | None = None,
    *,
    centering: NonNegative = 0.0,
) -> Real[Tensor, "N"]:
    r"""Negative log-likelihood that the chosen answer wins, given the rewards of both.

    .. math:: -\log\sigma(c - r - m) + \kappa\,(c + r)^2

    Args:
        chosen: Reward c of the preferred answer.
        rejected: Reward r of the other answer.
        reward_margin: By how much the first should win, m, one number per pair; 0 without it.
        centering: The factor κ that keeps rewards near 0, center_rewards_coefficient in TRL, where 0.01 is advised.

    Returns:
        One value per pair, > 0, unreduced.

    Gradient:
        With respect to ``chosen`` and ``rejected``: ∓σ(m − c + r) + 2κ(c + r).

    References:
        R. A. Bradley and M. E. Terry, Rank Analysis of Incomplete Block Designs, 1952, doi:10.2307/2334029.
        H. Touvron et al., Llama 2, 2023, arXiv:2307.09288 (the margin).
        J. Eisenstein et al., Helping or Herding?, 2023, arXiv:2312.09244 (centred rewards).
        trl.RewardTrainer.
    """
    c, r = chosen.double(), rejected.double()
    ahead = c - r if reward_margin is None else c - r - reward_margin.double()
    both = c + r
    return centering * both * both - functional.logsigmoid(ahead)
