"""Margin losses: how far a score is on the wrong side of where it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lossd.losses.softmax as softmax
from lossd.cost import PairCost
from lossd.lazy_torch import Tensor, functional, torch
from lossd.losses.binary import entropy_of_logits, logistic_variance
from lossd.losses.elementary import row_total, spread
from lossd.losses.reduction import without_ignored
from lossd.losses.registry import Unreduced, loss
from lossd.losses.types import ClassIndex, ClassSet, Indicator, Logits, Number, PerClass, Real, Sign

# hinge_embedding, margin_ranking and the multi-class margins keep torch's subgradients at their kinks.


def _of_classes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    rows, classes = shapes["prediction"]
    return rows * classes**2 // 16  # they are only walked over, sixteen in the time that one takes to be kept


@loss(task="distances", kind="rows", elementwise=True)
def hinge_embedding(
    prediction: Real[Tensor, "N *"], target: Sign[Tensor, "N *"], *, margin: Number = 1.0
) -> Real[Tensor, "N *"]:
    r"""A distance that should be small for similar pairs and at least ``margin`` for others.

    .. math:: x \;(t=1),\quad \max(0, m - x) \;(t=-1)

    Args:
        prediction: Distances x.
        target: Same shape; 1 for similar, -1 for dissimilar.
        margin: The distance m from which dissimilar pairs cost nothing.

    Returns:
        One value per element, unreduced.

    Gradient:
        With respect to ``prediction``: 1 where similar, -1 where dissimilar and closer than the margin.

    References:
        torch.nn.functional.hinge_embedding_loss.
    """
    return torch.where(target > 0, prediction, (margin - prediction).clamp(min=0))


@loss(task="ranking", kind="rows", differentiable=("first", "second"), elementwise=True)
def margin_ranking(
    first: Real[Tensor, "N *"], second: Real[Tensor, "N *"], target: Sign[Tensor, "N *"], *, margin: Number = 0.0
) -> Real[Tensor, "N *"]:
    r"""Hinge loss of two scores, one of which should be higher by at least ``margin``.

    .. math:: \max(0, -t\,(x_1 - x_2) + m)

    Args:
        first: Scores x₁.
        second: Scores x₂, same shape.
        target: Same shape; 1 where the first should be higher, -1 where the second.
        margin: By how much, m.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``first`` and ``second``: −t and t where the order is wrong or too close.

    References:
        torch.nn.functional.margin_ranking_loss.
    """
    return (margin - target * (first - second)).clamp(min=0)


@loss(task="binary", kind="rows", elementwise=True)
def soft_margin(prediction: Logits[Tensor, "N *"], target: Sign[Tensor, "N *"]) -> Real[Tensor, "N *"]:
    r"""Logistic loss of a score whose sign should be the target's.

    .. math:: \log(1 + e^{-t\,z})

    Args:
        prediction: Scores z.
        target: Same shape; -1 or 1.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: −t σ(−tz).

    References:
        torch.nn.functional.soft_margin_loss, without its cut at 20 (softplus is not yet the identity there).
    """
    return -functional.logsigmoid(target * prediction)


@soft_margin.hessian_form("exact", "fisher")
def _soft_margin_hessian(prediction: Tensor, target: Tensor) -> Tensor:
    return logistic_variance(prediction)


@loss(task="binary", kind="rows", elementwise=True, probabilistic=False)
def hinge(
    prediction: Logits[Tensor, "N *"], target: Sign[Tensor, "N *"], *, margin: Number = 1.0, squared: bool = False
) -> Real[Tensor, "N *"]:
    r"""Hinge loss of a score, 0 from ``margin`` on the target's side: the loss of support vector machines.

    .. math:: \max(0, m - t\,z) \;\text{or its square}

    Args:
        prediction: Scores z.
        target: Same shape; 1 or -1.
        margin: The score m from which a sample costs nothing.
        squared: Whether the loss is squared, which makes its gradient continuous.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: −t where t z is below the margin, else 0; −2t(m − t z) where squared.

    References:
        C. Cortes and V. Vapnik, Support-Vector Networks, 1995, doi:10.1007/BF00994018.
        sklearn.metrics.hinge_loss, Keras's Hinge and SquaredHinge, XGBoost's binary:hinge.
    """
    short = torch.relu(margin - target * prediction)
    return short * short if squared else short


@hinge.hessian_form("xgboost", when=lambda parameters, shapes: not parameters["squared"])
def _hinge_in_xgboost(prediction: Tensor, target: Tensor, *, margin: float | Tensor, squared: bool) -> Tensor:
    return (target * prediction < margin).to(prediction.dtype)


def _where_linear(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    return ("prediction",) if parameters["p"] == 1 else ()


@loss(task="multiclass", kind="rows", elementwise=_where_linear, probabilistic=False)
def multi_margin(
    prediction: Logits[Tensor, "N C"],
    target: ClassIndex[Tensor, "N"],
    *,
    p: Literal[1, 2] = 1,
    margin: Number = 1.0,
    class_weight: PerClass | None = None,
) -> Real[Tensor, "N"]:
    r"""Hinge loss of the target class's score against each of the others.

    .. math:: \frac1C \sum_{c\ne t} w_t \max(0, m - z_t + z_c)^p

    Args:
        prediction: Class scores z.
        target: Class indices t.
        p: The power, 1 or 2.
        margin: By how much the target's score should be above the others, m.
        class_weight: Factor of each class, as the target. The mean is over the samples, whatever they weigh.

    Returns:
        One value per sample, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``.

    References:
        K. Crammer and Y. Singer, On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines, 2001.
        torch.nn.functional.multi_margin_loss.
    """
    target = target.long().unsqueeze(1)
    # The margin may be a number for each row, which torch's own does not take.
    short = torch.as_tensor(margin, dtype=prediction.dtype, device=prediction.device).reshape(-1, 1)
    short = torch.relu(short - spread(prediction.gather(1, target), prediction.shape[1]) + prediction)
    short = short.scatter(1, target, 0.0)
    value = row_total(short if p == 1 else short * short) / prediction.shape[1]
    if class_weight is None:
        return value
    return value * torch.tensor(class_weight, dtype=value.dtype, device=value.device)[target.squeeze(1)]


@loss(task="sets", kind="rows", pairs=PairCost(_of_classes, 0, 130), twice=False, probabilistic=False)
def multilabel_margin(prediction: Logits[Tensor, "N C"], target: ClassSet[Tensor, "N C"]) -> Real[Tensor, "N"]:
    r"""Hinge loss of the score of each class that applies against each that does not.

    .. math:: \frac1C \sum_{t\in T}\sum_{c\notin T} \max(0, 1 - z_t + z_c)

    Args:
        prediction: Class scores z.
        target: The indices of the classes T that apply, then -1 up to the width of the prediction.

    Returns:
        One value per sample, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``.

    References:
        torch.nn.functional.multilabel_margin_loss.
    """
    value = functional.multilabel_margin_loss(prediction, target.long(), reduction="none")
    return value.masked_fill(prediction.isnan().any(1), torch.nan)  # which torch's comparisons pass over


@loss(task="multilabel", kind="rows", elementwise=True)
def multilabel_soft_margin(
    prediction: Logits[Tensor, "N C"],
    target: Indicator[Tensor, "N C"],
    *,
    class_weight: PerClass | None = None,
    ignore_index: int | None = None,
) -> Real[Tensor, "N"] | Unreduced:
    r"""Binary cross-entropy of each label's logit, averaged over the labels of a sample.

    .. math:: -\frac1C \sum_c w_c \left(t_c \log\sigma(z_c) + (1-t_c) \log\sigma(-z_c)\right)

    Args:
        prediction: Logits z.
        target: Same shape; 0 or 1.
        class_weight: Factor w of each label. The mean is over the samples, whatever their labels weigh.
        ignore_index: Targets of this value, such as -1 for a missing label, do not count: C is the number of the
            others. A sample without any other counts neither in the numerator nor in the denominator. Any integer,
            null for none.

    Returns:
        One value per sample, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: w(σ(z) − t)/C; 0 where ignored.

    References:
        torch.nn.functional.multilabel_soft_margin_loss.
    """
    target, kept = without_ignored(target, ignore_index)
    value = entropy_of_logits(prediction, target)
    if class_weight is not None:
        value = softmax.weighted_nll(torch.tensor(class_weight, dtype=value.dtype, device=value.device), value)
    if kept is None:
        return row_total(value) / value.shape[1]
    count = kept.sum(1)
    return Unreduced(row_total(value.masked_fill(kept == 0, 0)) / count.clamp(min=1), (count > 0).to(value.dtype))


@multilabel_soft_margin.hessian_form("exact", "fisher")
def _multilabel_soft_margin_hessian(
    prediction: Tensor, target: Tensor, *, class_weight: Sequence[float] | None, ignore_index: int | None
) -> Tensor:
    target, kept = without_ignored(target, ignore_index)
    second = logistic_variance(prediction)
    if class_weight is not None:
        second = second * torch.tensor(class_weight, dtype=second.dtype, device=second.device)
    if kept is None:
        return second / second.shape[1]
    return second * kept / kept.sum(1, keepdim=True).clamp(min=1)
