"""Distillation: the class scores of a student against those of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt

import lossd.losses.softmax as softmax
from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_total
from lossd.losses.reduction import class_weights, times, weighted
from lossd.losses.registry import Refinement, Unreduced, loss
from lossd.losses.types import ClassIndex, Fraction, Logits, Positive, Real
from lossd_client.errors import MissingInput


def _parameters(parameters: Mapping[str, Any]) -> Refinement:
    if parameters["beta"] is not None and parameters["divergence"] != "jsd":
        raise ValueError(f'divergence "{parameters["divergence"]}" has no beta; "jsd" has')
    return Refinement()


@loss(task="distillation", kind="rows", refine=_parameters)
def distillation(
    prediction: Logits[Tensor, "N C *"],
    teacher: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"] | None = None,
    *,
    temperature: Positive = 1.0,
    alpha: Fraction = 1.0,
    divergence: Literal["forward", "reverse", "jsd"] = "forward",
    beta: Annotated[float, Gt(0), Lt(1)] | None = None,
    scale: Literal["temperature", "none"] = "temperature",
    ignore_index: int | None = -100,
) -> Real[Tensor, "N *"] | Unreduced:
    r"""Divergence of a student's class probabilities from a teacher's, both softened by a temperature.

    .. math:: \alpha\, T^2 \sum_c t_c \log\frac{t_c}{s_c} + (1 - \alpha)\,\text{CE},
        \quad t, s = \operatorname{softmax}(z / T)

    Args:
        prediction: Class scores (logits) of the student; -inf masks a class.
        teacher: Class scores of the teacher, same shape, a constant; -inf masks a class.
        target: Class indices for the cross-entropy, which ``alpha`` below 1 needs.
        temperature: What scores are divided by, T; not those of the cross-entropy.
        alpha: The share α of the divergence.
        divergence: "forward" is KL(t‖s), the formula; "reverse" is KL(s‖t); "jsd" is β KL(t‖m) + (1−β) KL(s‖m) with
            m = βt + (1−β)s. TRL's GKD takes β = 0 and 1 for forward and reverse, which are not its limits: those are 0.
        beta: The teacher's share β of the mixture of "jsd"; null is 0.5.
        scale: "temperature" multiplies the divergence by T², so that its gradient does not shrink with T; "none" does
            not, as TRL.
        ignore_index: Positions whose target is this class count neither in the numerator nor in the denominator; any
            integer, null for none.

    Returns:
        One value per position, >= 0, unreduced: a sum over the classes. F.kl_div with reduction "mean" and mmdetection
        divide by the number of classes too.

    Gradient:
        With respect to ``prediction``; of "forward" αT(s − t) + (1−α)(softmax(z) − target). 0 where ignored.

    References:
        G. Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
        R. Agarwal et al., On-Policy Distillation of Language Models (GKD), 2023, arXiv:2306.13649.
    """
    # In float64, as kl_div: where student and teacher are close, the logarithms cancel.
    t = temperature.unsqueeze(1) if isinstance(temperature, Tensor) else temperature
    log_s = torch.log_softmax(prediction.double() / t, 1)
    log_t = torch.log_softmax(teacher.double() / t, 1)
    if isinstance(alpha, Tensor) or alpha == 0:  # a divergence that does not count may be infinite
        none = torch.as_tensor(alpha == 0, device=log_s.device)
        log_t = torch.where(none.unsqueeze(1) if none.ndim else none, log_s.detach(), log_t)
    match divergence:
        case "forward":
            value = _kl(log_t, log_s)
        case "reverse":
            value = _kl(log_s, log_t)
        case "jsd":
            share = 0.5 if beta is None else beta
            mixture = share * log_t.exp() + (1 - share) * log_s.exp()
            mixed = torch.log(mixture.masked_fill(mixture == 0, 1))
            value = share * _kl(log_t, mixed) + (1 - share) * _kl(log_s, mixed)
    if scale == "temperature":
        value = value * temperature * temperature
    if target is None:
        if (alpha != 1) if isinstance(alpha, float) else bool((alpha != 1).any()):
            raise MissingInput("distillation needs target for an alpha other than 1")
        return value
    target, weight = class_weights(target, value, None, ignore_index)
    nll = softmax.target_nll(prediction.double(), target)[0]
    return weighted(alpha * value + times(nll, 1 - alpha), weight)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the sum over the classes of p(log p − log q), (N, C, *) to (N, *); 0 of a class that has p = 0."""
    p = log_p.exp()
    never = p == 0  # masked before the difference of infinities, which sends a NaN back
    return row_total(p * (log_p.masked_fill(never, 0) - log_q.masked_fill(never, 0)))
