"""Scores of probabilistic forecasts: quantiles, ensembles, distributions and intervals, each proper.

A proper score is least, on average, for the forecast that is the target's own distribution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt, MinLen

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import in_whole_vectors, row_total
from lossd.losses.registry import Refinement, loss
from lossd.losses.types import FIRST_FAULT, Finite, NonNegative, PerAxis, PositiveTensor, Real

Level = Annotated[float, Gt(0), Lt(1)]
Levels = Annotated[list[Level], MinLen(1), FIRST_FAULT, PerAxis("Q")]
Estimator = Literal["biased", "fair"]


def _ascending(parameters: Mapping[str, Any]) -> Refinement:
    levels = parameters["levels"]
    for position, (low, high) in enumerate(itertools.pairwise(levels), 1):
        if not low < high:
            raise ValueError(
                f"levels must ascend, found {high} after {low} at levels[{position}]; sort them, and the axis 1 of "
                "prediction alike"
            )
    return Refinement()


def _where_apart(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    return ("prediction",) if parameters["crossing_penalty"] == 0 else ()


@loss(task="quantiles", kind="rows", refine=_ascending, elementwise=_where_apart)
def quantiles(
    prediction: Real[Tensor, "N Q *"],
    target: Finite[Tensor, "N *"],
    *,
    levels: Levels = [0.1, 0.5, 0.9],  # noqa: B006  # a default that is copied, not kept
    crossing_penalty: NonNegative = 0.0,
) -> Real[Tensor, "N *"]:
    r"""The pinball loss of several quantiles at once; the target's quantiles minimise it.

    .. math:: \frac1Q \sum_k \max(-q_k e_k,\, (1-q_k) e_k) + \frac{\kappa}{Q} \sum_{k<Q} \max(0, p_k - p_{k+1}),
        \quad e_k = p_k - t

    Args:
        prediction: The predicted quantiles p of each target, along axis 1.
        target: Targets t: the shape of the prediction without axis 1.
        levels: The levels q of the Q quantiles, each between 0 and 1, ascending.
        crossing_penalty: The factor κ of what a quantile exceeds the next higher one by.

    Returns:
        One value per target, >= 0, unreduced. With levels (k − ½)/Q, its double approximates the CRPS.

    Gradient:
        With respect to ``prediction``: (1−q)/Q above the target, −q/Q below, 0 at it; and the penalty's.

    References:
        R. Koenker and G. Bassett, Regression Quantiles, 1978, doi:10.2307/1913643.
        sklearn.metrics.mean_pinball_loss, averaged over the levels. GluonTS's quantile loss is twice as large.
    """
    count = prediction.shape[1]
    level = _along_axis_1(levels, prediction)
    error = prediction - target.unsqueeze(1)
    value = row_total(level * torch.relu(-error) + (1 - level) * torch.relu(error)) / count
    if count == 1 or (isinstance(crossing_penalty, float) and crossing_penalty == 0):
        return value
    return value + crossing_penalty * (row_total(torch.relu(prediction[:, :-1] - prediction[:, 1:])) / count)


@quantiles.hessian_form("exact")
def _quantiles_hessian(
    prediction: Tensor, target: Tensor, *, levels: Sequence[float], crossing_penalty: float | Tensor
) -> Tensor:
    return prediction.new_zeros(())


@quantiles.hessian_form("xgboost", "lightgbm")
def _quantiles_in_boosters(
    prediction: Tensor, target: Tensor, *, levels: Sequence[float], crossing_penalty: float | Tensor
) -> Tensor:
    return prediction.new_full((), 1 / len(levels))


def _along_axis_1(numbers: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).reshape(-1, *(1,) * (like.ndim - 2))


def _shape_of_ensemble(parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    rows, members, *rest = shapes["prediction"]
    if members == 1 and parameters["estimator"] == "fair":
        raise ValueError("the fair estimator needs at least 2 members along axis 1 of prediction, found 1")
    return (rows, *rest)


@loss(task="ensembles", kind="rows", shape=_shape_of_ensemble, byte_ns=20)
def crps_ensemble(
    prediction: Real[Tensor, "N M *"], target: Finite[Tensor, "N *"], *, estimator: Estimator = "biased"
) -> Real[Tensor, "N *"]:
    r"""The continuous ranked probability score of an ensemble: the absolute error of a forecast of several members.

    .. math:: \frac1M \sum_i |x_i - t| - \frac{1}{2D} \sum_{i,j} |x_i - x_j|,
        \quad D = M^2 \text{ (biased)}, \; M(M-1) \text{ (fair)}

    Args:
        prediction: The members x of each forecast, along axis 1, in any order.
        target: What was observed, t: the shape of the prediction without axis 1.
        estimator: "biased" scores the M members as the whole distribution; "fair" scores the distribution that they
            were drawn from, whatever M is, and needs two members.

    Returns:
        One value per target, unreduced; >= 0 where the estimator is biased.

    Gradient:
        With respect to ``prediction``: the sign of x − t over M, less (members below − members above)/D.

    References:
        T. Gneiting and A. E. Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation, 2007,
            doi:10.1198/016214506000001437.
        C. A. T. Ferro, Fair Scores for Ensemble Forecasts, 2014, doi:10.1002/qj.2270.
        scoringrules.crps_ensemble, whose estimators qd and nrg are biased and whose pwm is fair.
    """
    # In float64: the sum over pairs cancels. Members less the target, because the sum does not depend on an offset.
    members = (prediction.double() - target.double().unsqueeze(1)).movedim(1, -1).contiguous()
    count = members.shape[-1]
    pairs = count * (count - 1) if estimator == "fair" else count * count
    with torch.no_grad():
        ordered = members.sort(-1).values
        below = torch.searchsorted(ordered, members)
        above = count - torch.searchsorted(ordered, members, right=True)
        # Half the sum over pairs is that of each member times this; equal members have equal gradients.
        rank = (below - above).to(members.dtype)
    return row_total(members.abs() / count - rank * members / pairs, -1)


@crps_ensemble.hessian_form("exact")
def _ensemble_hessian(prediction: Tensor, target: Tensor, *, estimator: Estimator) -> Tensor:
    return prediction.new_zeros(())


FAR = 40.0
"""From so many standard deviations on, the density is 0 in float64."""


@loss(task="regression", kind="rows", differentiable=("prediction", "scale"), elementwise=True, byte_ns=8)
def crps_normal(
    prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], scale: PositiveTensor[Tensor, "N *"]
) -> Real[Tensor, "N *"]:
    r"""The continuous ranked probability score of a normal distribution, in units of the target.

    .. math:: \sigma\left(z\,(2\Phi(z) - 1) + 2\varphi(z) - \frac{1}{\sqrt\pi}\right),
        \quad z = \frac{\text{prediction} - \text{target}}{\sigma}

    Args:
        prediction: The mean, any real.
        target: Same shape; never broadcast.
        scale: The standard deviation σ > 0, same shape, in units of the target.

    Returns:
        One value per element, > 0, unreduced, in units of the target.

    Gradient:
        With respect to ``prediction``: 2Φ(z) − 1; and ``scale``: 2φ(z) − 1/√π.

    References:
        T. Gneiting et al., Calibrated Probabilistic Forecasting Using Ensemble Model Output Statistics, 2005,
            doi:10.1175/MWR2904.1.
        scoringrules.crps_normal.
    """
    error, scale = prediction.double() - target.double(), scale.double()
    far = error.abs() > FAR * scale  # there the quotient may be infinite, and its gradient not a number
    z = torch.where(far, 0, error) / torch.where(far, 1, scale)
    within = torch.where(far, error.abs(), error * in_whole_vectors(torch.erf, z / math.sqrt(2)))
    density = torch.where(far, 0, torch.exp(-0.5 * z * z))
    return within + scale * (math.sqrt(2 / math.pi) * density - 1 / math.sqrt(math.pi))


@loss(task="intervals", kind="rows", differentiable=("lower", "upper"), elementwise=True)
def interval_score(
    lower: Real[Tensor, "N *"], upper: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], *, alpha: Level = 0.1
) -> Real[Tensor, "N *"]:
    r"""The width of a predicted interval, and a penalty for a target outside of it; also called Winkler score.

    .. math:: (u - l) + \tfrac2\alpha \max(0, l - t) + \tfrac2\alpha \max(0, t - u)

    Args:
        lower: The lower bounds l, the α/2-quantiles.
        upper: The upper bounds u, the (1 − α/2)-quantiles, same shape.
        target: Targets t, same shape; never broadcast.
        alpha: The share α of targets that may be outside, between 0 and 1; 0.1 for intervals of 90 %.

    Returns:
        One value per element, unreduced; >= 0 where the bounds do not cross.

    Gradient:
        With respect to ``lower``: −1, but 2/α − 1 if it is above the target; and ``upper``: 1, but 1 − 2/α if it is
            below.

    References:
        T. Gneiting and A. E. Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation, 2007,
            doi:10.1198/016214506000001437, equation 43.
        scoringrules.interval_score.
    """
    outside = torch.relu(lower - target) + torch.relu(target - upper)
    return upper - lower + outside * (2 / alpha)
