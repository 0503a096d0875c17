"""Losses of losses: a function here gets its terms' values, which are evaluated before.

They are ``losses`` (B, T) of B requests, and so are the function's own inputs; of a loss per sample, those of one
request, (N,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Len
from pydantic import BeforeValidator, ConfigDict
from typing_extensions import TypedDict

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import power
from lossd.losses.registry import Terms, Unreduced, loss, loss_object
from lossd.losses.types import FIRST_FAULT, Finite, Fraction, NonNegative, NonNegativeTensor, Real

MAX_TERMS = 64

Named = Annotated[dict[str, Any], BeforeValidator(loss_object)]


class Term(TypedDict):
    """One term: a loss (name, reduction, parameters), its weight (1), and its inputs' names in the request."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # type: ignore[misc]

    loss: Named
    weight: NotRequired[float]
    inputs: NotRequired[dict[str, str]]


class Task(Term):
    """One task of an uncertainty-weighted loss: a term whose noise enters as a regression's or a classification's."""

    kind: NotRequired[Literal["regression", "classification"]]


def _terms_parameter(parameters: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return parameters["terms"]  # type: ignore[no-any-return]


@loss(task="composed", kind="composed", reductions=("mean",), differentiable=(), terms=_terms_parameter, linear=True)
def weighted_sum(
    losses: Real[Tensor, "T"], *, terms: Annotated[list[Term], FIRST_FAULT, Len(1, MAX_TERMS)]
) -> Real[Tensor, ""]:
    r"""The weighted sum of several losses, each with its own inputs.

    .. math:: \sum_i w_i L_i

    Args:
        losses: The terms' values.
        terms: The losses to add, each ``{"loss": {...}, "weight": 1, "inputs": {...}}``; ``inputs`` maps the term's
            input names to the request's tensors, so that tasks can have heads of their own.

    Returns:
        One number; the answer's ``terms`` holds each term's.

    Gradient:
        With respect to every input that a term has a gradient for.

    References:
        R. Caruana, Multitask Learning, 1997, doi:10.1023/A:1007379606734.
    """
    return (losses.new_tensor([term.get("weight", 1.0) for term in terms]) * losses).sum(-1)


@loss(task="composed", kind="composed", reductions=("mean",), differentiable=("log_variance",), terms=_terms_parameter)
def uncertainty(
    losses: Real[Tensor, "T"],
    log_variance: Real[Tensor, "T"],
    *,
    terms: Annotated[list[Task], FIRST_FAULT, Len(1, MAX_TERMS)],
    form: Literal["kendall", "unhalved"] = "kendall",
) -> Real[Tensor, ""]:
    r"""Losses of several tasks, weighted by their learned homoscedastic uncertainty.

    .. math:: \sum_i \tfrac12 e^{-s_i} L_i + \tfrac12 s_i \;\text{(regression)},
        \quad \sum_i e^{-s_i} L_i + \tfrac12 s_i \;\text{(classification)}

    Args:
        losses: The terms' values.
        log_variance: s, the logarithm of each task's variance.
        terms: The tasks, each ``{"loss": {...}, "kind": "regression", "weight": 1, "inputs": {...}}``.
        form: ``kendall`` as above; ``unhalved`` is e^(−s) L + s for every task.

    Returns:
        One number; the answer's ``terms`` holds each term's.

    Gradient:
        With respect to ``log_variance`` and to every input that a term has a gradient for.

    References:
        A. Kendall, Y. Gal, R. Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
            Semantics, CVPR 2018, arXiv:1705.07115, equation 10.
    """
    weighted = losses * losses.new_tensor([term.get("weight", 1.0) for term in terms])
    precision = torch.exp(-log_variance)
    if form == "unhalved":
        return (precision * weighted + log_variance).sum(-1)
    halves = losses.new_tensor([0.5 if term.get("kind", "regression") == "regression" else 1.0 for term in terms])
    return (halves * precision * weighted + 0.5 * log_variance).sum(-1)


def _with_dice(name: str, mode: str) -> Terms:
    """Return a function that returns the terms: a loss of that name, and dice in that mode."""

    def terms(parameters: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        ignored = {"ignore_index": parameters["ignore_index"]}
        dice = {"name": "dice", "mode": mode, "smooth": parameters["smooth"], **ignored}
        return ({"loss": {"name": name, **ignored}}, {"loss": dice})

    return terms


@loss(
    task="binary",
    kind="composed",
    reductions=("mean",),
    differentiable=(),
    terms=_with_dice("bce_with_logits", "binary"),
    linear=True,
)
def bce_dice(
    losses: Real[Tensor, "2"],
    *,
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
    smooth: NonNegative = 1.0,
    ignore_index: int | None = None,
) -> Real[Tensor, ""]:
    r"""Binary cross-entropy plus binary dice, both of logits.

    .. math:: w_\text{bce} L_\text{bce} + w_\text{dice} L_\text{dice}

    Args:
        losses: The two values.
        bce_weight: Weight of ``bce_with_logits``.
        dice_weight: Weight of ``dice`` with mode binary.
        smooth: The dice loss's smoothing.
        ignore_index: Positions with this target count in neither; any integer, null for none.

    Returns:
        One number; the answer's ``terms`` holds both.

    Gradient:
        With respect to ``prediction``, the logits; 0 where ignored.

    References:
        F. Isensee et al., nnU-Net, Nature Methods 18, 2021, doi:10.1038/s41592-020-01008-z, for the combination.
    """
    return bce_weight * losses[:, 0] + dice_weight * losses[:, 1]


@loss(
    task="segmentation",
    kind="composed",
    reductions=("mean",),
    differentiable=(),
    terms=_with_dice("cross_entropy", "multiclass"),
    linear=True,
)
def ce_dice(
    losses: Real[Tensor, "2"],
    *,
    ce_weight: float = 0.5,
    dice_weight: float = 0.5,
    smooth: NonNegative = 1.0,
    ignore_index: int | None = -100,
) -> Real[Tensor, ""]:
    r"""Cross-entropy plus multiclass dice, both of logits.

    .. math:: w_\text{ce} L_\text{ce} + w_\text{dice} L_\text{dice}

    Args:
        losses: The two values.
        ce_weight: Weight of ``cross_entropy``.
        dice_weight: Weight of ``dice`` with mode multiclass.
        smooth: The dice loss's smoothing.
        ignore_index: Positions with this target count in neither; any integer, null for none.

    Returns:
        One number; the answer's ``terms`` holds both.

    Gradient:
        With respect to ``prediction``, the logits; 0 where ignored.

    References:
        F. Isensee et al., nnU-Net, Nature Methods 18, 2021, doi:10.1038/s41592-020-01008-z, for the combination.
    """
    return ce_weight * losses[:, 0] + dice_weight * losses[:, 1]


@loss(
    task="composed",
    kind="composed",
    reductions=("mean",),
    differentiable=(),
    terms=lambda parameters: ({"loss": parameters["loss"]},),
    per_sample=True,
)
def curriculum(
    losses: Real[Tensor, "N"],
    weight: Real[Tensor, "N"],
    difficulty: Finite[Tensor, "N"],
    *,
    loss: Named,
    progress: Fraction,
    normalization: Literal["mean", "sum_scaled"] = "mean",
) -> Real[Tensor, ""] | Unreduced:
    r"""The mean of a per-sample loss over the samples that are easy enough at this stage of training.

    .. math:: \frac1K \sum_{n:\, d_n \le t} w_n L_n, \quad K = \sum_{n:\, d_n \le t} w_n

    Args:
        losses: The loss of each sample: the mean over the sample's entries that count, 0 where none does.
        weight: w, the sample weights; 1 for each sample where none are sent.
        difficulty: d, one number per sample, compared with ``progress`` in the dtype it was sent in.
        loss: The per-sample loss: its name and parameters. Its samples must be independent of each other.
        progress: t, how far training has come.
        normalization: ``sum_scaled`` multiplies the mean with N, the number of samples sent.

    Returns:
        One number; the denominator is K. Where no sample is kept, or none that is has an entry that counts, the loss
        is 0 and ``nothing_to_average`` is warned.

    Gradient:
        With respect to the inputs the loss has a gradient for; 0 for samples left out.

    References:
        Y. Bengio et al., Curriculum Learning, ICML 2009, doi:10.1145/1553374.1553380.
    """
    weight = weight.masked_fill(difficulty > progress, 0)
    scale = len(losses) if normalization == "sum_scaled" else 1
    kept = weight != 0
    return Unreduced(scale * (weight * losses.masked_fill(~kept, 0)).sum(), weight.sum())


@loss(task="composed", kind="alone", reductions=("mean",), differentiable=("task_weight",))
def gradnorm(
    losses: NonNegativeTensor[Tensor, "T"],
    initial_losses: NonNegativeTensor[Tensor, "T"],
    gradient_norms: NonNegativeTensor[Tensor, "T"],
    task_weight: Real[Tensor, "T"],
    *,
    alpha: float = 1.5,
) -> Real[Tensor, ""] | Unreduced:
    r"""The distance of the tasks' weighted gradient norms from the targets that their training rates set.

    .. math:: \sum_i \left| w_i g_i - \bar g \, r_i^\alpha \right|, \quad
        \bar g = \tfrac1T \sum_i w_i g_i, \quad r_i = \frac{L_i / L_i(0)}{\tfrac1T \sum_j L_j / L_j(0)}

    Args:
        losses: Each task's loss now.
        initial_losses: Each task's loss at the start, L(0).
        gradient_norms: Norm of each task's unweighted gradient on the shared weights.
        task_weight: The weight w of each task.
        alpha: Strength of the restoring force.

    Returns:
        One number; the answer's ``renormalised_weights`` are w scaled to sum to T.

    Gradient:
        With respect to ``task_weight``; the target ḡ rᵢ^α is held constant.

    References:
        Z. Chen et al., GradNorm, ICML 2018, arXiv:1711.02257.
    """
    weighted_norms = task_weight * gradient_norms
    ratios = losses / initial_losses
    target = weighted_norms.mean() * power(ratios / ratios.mean(), alpha)
    value = (weighted_norms - target.detach()).abs().sum()
    renormalised = task_weight.detach() * len(task_weight) / task_weight.detach().sum()
    return Unreduced(value, torch.ones_like(value), extras={"renormalised_weights": renormalised.tolist()})
