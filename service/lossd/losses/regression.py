"""Regression losses: one value per element of ``prediction`` and ``target``, which have the same shape."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lossd.losses.registry import Upstream, loss
from lossd.losses.types import Finite, Positive, Real


@loss(task="regression", kind="rows")
def mse(prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"]) -> Real[Tensor, "N *"]:
    r"""Mean squared error: the square of the difference.

    .. math:: e^2, \quad e = \text{prediction} - \text{target}

    Args:
        prediction: Predictions, any real.
        target: Same shape; never broadcast.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: 2e.

    References:
        torch.nn.functional.mse_loss.
    """
    error = prediction - target
    return error * error


@mse.closed_form
def _mse(upstream: Upstream, gradient: Mapping[str, Tensor], prediction: Tensor, target: Tensor) -> Tensor:
    error = prediction - target
    torch.mul(error, upstream(None) * 2, out=gradient["prediction"])
    return error.square_()


@loss(task="regression", kind="rows")
def mae(prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"]) -> Real[Tensor, "N *"]:
    r"""Mean absolute error: the size of the difference.

    .. math:: |e|, \quad e = \text{prediction} - \text{target}

    Args:
        prediction: Predictions, any real.
        target: Same shape; never broadcast.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: the sign of e, 0 at 0.

    References:
        torch.nn.functional.l1_loss.
    """
    return (prediction - target).abs()


@mae.closed_form
def _mae(upstream: Upstream, gradient: Mapping[str, Tensor], prediction: Tensor, target: Tensor) -> Tensor:
    error = prediction - target
    torch.mul(error.sgn(), upstream(None), out=gradient["prediction"])
    return error.abs_()


@loss(task="regression", kind="rows")
def huber(
    prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], *, delta: Positive = 1.0
) -> Real[Tensor, "N *"]:
    r"""Quadratic near zero, linear beyond ``delta``.

    .. math:: \tfrac12 e^2 \;(|e|\le\delta),\quad \delta(|e|-\tfrac12\delta) \;(|e|>\delta)

    Args:
        prediction: Predictions, any real.
        target: Same shape; never broadcast.
        delta: Where the pieces meet, in units of the target.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: e clamped to [-delta, delta]; continuous.

    References:
        P. J. Huber, Robust Estimation of a Location Parameter, 1964, doi:10.1214/aoms/1177703732.
        torch.nn.functional.huber_loss.
    """
    error = prediction - target
    size = error.abs()
    return torch.where(size <= delta, 0.5 * error * error, delta * (size - 0.5 * delta))


@huber.closed_form
def _huber(
    upstream: Upstream, gradient: Mapping[str, Tensor], prediction: Tensor, target: Tensor, *, delta: float | Tensor
) -> Tensor:
    error = prediction - target
    clamped = error.clamp(-delta, delta)  # type: ignore[arg-type]  # the stubs know floats or tensors, not either
    torch.mul(clamped, upstream(None), out=gradient["prediction"])
    return error.sub_(clamped, alpha=0.5).mul_(clamped)
