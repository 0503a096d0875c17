"""Regression losses: one value per element of ``prediction`` and ``target``, which have the same shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import log1p_remainder
from lossd.losses.registry import Refinement, Upstream, loss
from lossd.losses.types import AboveMinusOne, Finite, Fraction, NonNegative, Positive, Real, TensorType


@loss(task="regression", kind="rows", elementwise=True)
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


@mse.hessian_form("exact", "fisher")
def _mse_hessian(prediction: Tensor, target: Tensor) -> Tensor:
    return prediction.new_full((), 2.0)


@loss(task="regression", kind="rows", elementwise=True)
def mae(prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"]) -> Real[Tensor, "N *"]:
    r"""Mean absolute error: the absolute difference.

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


@mae.hessian_form("xgboost", "lightgbm")
def _mae_in_boosters(prediction: Tensor, target: Tensor) -> Tensor:
    return prediction.new_ones(())


@loss(task="regression", kind="rows", elementwise=True)
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


@huber.hessian_form("lightgbm")
def _huber_in_lightgbm(prediction: Tensor, target: Tensor, *, delta: float | Tensor) -> Tensor:
    return prediction.new_ones(())


@loss(task="regression", kind="rows", elementwise=True)
def smooth_l1(
    prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], *, beta: NonNegative = 1.0
) -> Real[Tensor, "N *"]:
    r"""Huber loss divided by ``beta``, so that the slope beyond ``beta`` is 1.

    .. math:: \frac{e^2}{2\beta} \;(|e|<\beta),\quad |e|-\tfrac12\beta \;(|e|\ge\beta)

    Args:
        prediction: Predictions, any real.
        target: Same shape; never broadcast.
        beta: Where the pieces meet, in units of the target; 0 is mae.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: e/beta clamped to [-1, 1]; continuous where ``beta`` is not 0.

    References:
        R. Girshick, Fast R-CNN, 2015, arXiv:1504.08083.
        torch.nn.functional.smooth_l1_loss.
    """
    error = prediction - target
    size = error.abs()
    width = torch.as_tensor(beta, dtype=error.dtype, device=error.device)
    # The square of a small error may vanish, and a large one over a small width overflow.
    within = torch.clamp(error, -width, width)
    inner = 0.5 * within * (within / width.masked_fill(width == 0, 1))
    return torch.where(size < width, inner, size - 0.5 * width)


@loss(task="regression", kind="rows", elementwise=True)
def log_cosh(prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"]) -> Real[Tensor, "N *"]:
    r"""The logarithm of the hyperbolic cosine: quadratic near zero, linear beyond, smooth throughout.

    .. math:: \log\cosh e, \quad e = \text{prediction} - \text{target}

    Args:
        prediction: Predictions, any real.
        target: Same shape; never broadcast.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: tanh e.

    References:
        Q. Wang et al., A Comprehensive Survey of Loss Functions in Machine Learning, 2022,
            doi:10.1007/s40745-020-00253-5.
    """
    error = prediction - target
    size = error.abs()
    # Near 0 the large terms of the second form cancel; beyond 1 the exponential of the first overflows.
    rise = torch.expm1(error.clamp(-1, 1))
    near = torch.log1p(rise * rise / (2 * (1 + rise)))  # the logarithm of 1 + (cosh e - 1)
    return torch.where(size < 1, near, size + torch.log1p(torch.exp(-2 * size)) - math.log(2))


@log_cosh.hessian
def _log_cosh_hessian(prediction: Tensor, target: Tensor) -> Tensor:
    # 1 - tanh² would be 0 from an error of 20 on, long before 1 / cosh² is.
    rest = torch.exp(-2 * (prediction - target).abs())
    return 4 * rest / (1 + rest).square()


@loss(task="regression", kind="rows", elementwise=True)
def asymmetric_mse(
    prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], *, over_penalty: NonNegative = 2.0
) -> Real[Tensor, "N *"]:
    r"""Squared error that counts predictions above the target differently from those below.

    .. math:: k\,e^2 \;(e>0),\quad e^2 \;(e\le 0), \quad e = \text{prediction} - \text{target}

    Args:
        prediction: Predictions, any real.
        target: Same shape; never broadcast.
        over_penalty: Factor k of what is predicted too high.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: 2ke above, 2e below; continuous.

    References:
        W. K. Newey and J. L. Powell, Asymmetric Least Squares Estimation and Testing, 1987, doi:10.2307/1911031.
    """
    error = prediction - target
    return torch.where(error > 0, over_penalty * error * error, error * error)


@loss(task="regression", kind="rows", elementwise=True)
def quantile(
    prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], *, q: Fraction = 0.5
) -> Real[Tensor, "N *"]:
    r"""The pinball loss, which the target's ``q``-quantile minimises.

    .. math:: \max(-q\,e,\; (1-q)\,e), \quad e = \text{prediction} - \text{target}

    Args:
        prediction: Predictions, any real.
        target: Same shape; never broadcast.
        q: The quantile, in [0, 1]; 0.5 is half of mae.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: 1−q above the target, −q below, 0 at it.

    References:
        R. Koenker and G. Bassett, Regression Quantiles, 1978, doi:10.2307/1913643.
        sklearn.metrics.mean_pinball_loss.
    """
    error = prediction - target
    return q * torch.relu(-error) + (1 - q) * torch.relu(error)


@quantile.hessian_form("xgboost", "lightgbm")
def _quantile_in_boosters(prediction: Tensor, target: Tensor, *, q: float | Tensor) -> Tensor:
    return prediction.new_ones(())


@loss(task="regression", kind="rows", elementwise=True)
def expectile(
    prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], *, q: Fraction = 0.5
) -> Real[Tensor, "N *"]:
    r"""Asymmetric squared error, which the target's ``q``-expectile minimises.

    .. math:: (1-q)\,e^2 \;(e>0),\quad q\,e^2 \;(e\le 0), \quad e = \text{prediction} - \text{target}

    Args:
        prediction: Predictions, any real.
        target: Same shape; never broadcast.
        q: The level of the expectile, in [0, 1]; 0.5 is half of mse.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: 2(1−q)e above the target, 2qe below; continuous.

    References:
        W. K. Newey and J. L. Powell, Asymmetric Least Squares Estimation and Testing, 1987, doi:10.2307/1911031.
        XGBoost's reg:expectileerror is its half.
    """
    error = prediction - target
    return torch.where(error > 0, (1 - q) * error * error, q * error * error)


@expectile.hessian_form("exact", "xgboost")
def _expectile_hessian(prediction: Tensor, target: Tensor, *, q: float | Tensor) -> Tensor:
    over = (prediction >= target).to(prediction.dtype)
    return 2 * (over * (1 - q) + (1 - over) * q)


@loss(task="regression", kind="rows", elementwise=True)
def pseudo_huber(
    prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], *, delta: Positive = 1.0
) -> Real[Tensor, "N *"]:
    r"""Quadratic near zero, linear far from it, smooth throughout.

    .. math:: \delta^2\left(\sqrt{1 + (e/\delta)^2} - 1\right), \quad e = \text{prediction} - \text{target}

    Args:
        prediction: Predictions, any real.
        target: Same shape; never broadcast.
        delta: The error at which the loss changes from quadratic to linear, in units of the target. It is also the
            slope far from zero.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: e over √(1 + (e/delta)²), within (-delta, delta).

    References:
        R. Hartley and A. Zisserman, Multiple View Geometry in Computer Vision, 2004, appendix 6.8.
        XGBoost's reg:pseudohubererror with huber_slope, optax.pseudo_huber_loss.
    """
    error = prediction - target
    # The formula's difference cancels for small errors; its square overflows for large ones.
    return error * (error / (1 + _hypotenuse(error / delta)))


@pseudo_huber.hessian_form("exact", "xgboost")
def _pseudo_huber_hessian(prediction: Tensor, target: Tensor, *, delta: float | Tensor) -> Tensor:
    inverse = 1 / _hypotenuse((prediction - target) / delta)
    return inverse * inverse * inverse


def _hypotenuse(x: Tensor) -> Tensor:
    """Return √(1 + x²), finite for every finite x."""
    unit = x.detach().abs().clamp(min=1)
    share = x / unit
    return unit * torch.sqrt((1 / unit).square() + share * share)


@loss(task="regression", kind="rows", elementwise=True, byte_ns=16)
def fair(prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], *, c: Positive = 1.0) -> Real[Tensor, "N *"]:
    r"""Quadratic near zero; its slope approaches ``c`` slowly.

    .. math:: c^2\left(\frac{|e|}{c} - \log\left(1 + \frac{|e|}{c}\right)\right),
        \quad e = \text{prediction} - \text{target}

    Args:
        prediction: Predictions, any real.
        target: Same shape; never broadcast.
        c: The error at which the slope is half of its limit, in units of the target.

    Returns:
        One value per element, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``: e over 1 + abs(e)/c, within (-c, c).

    References:
        R. C. Fair, On the Robust Estimation of Econometric Models, Annals of Economic and Social Measurement 3, 1974.
        LightGBM's objective fair with fair_c.
    """
    error = prediction - target
    size = error.abs()
    share = size / c
    near = share < 1
    of_near = error * error * log1p_remainder(torch.where(near, share, 0))
    of_far = c * (size - c * torch.log1p(torch.where(near, 1, share)))
    return torch.where(near, of_near, of_far)


@fair.hessian_form("exact", "lightgbm")
def _fair_hessian(prediction: Tensor, target: Tensor, *, c: float | Tensor) -> Tensor:
    return (1 + (prediction - target).abs() / c).square().reciprocal()


@loss(task="regression", kind="rows", elementwise=True)
def squared_log(prediction: AboveMinusOne[Tensor, "N *"], target: AboveMinusOne[Tensor, "N *"]) -> Real[Tensor, "N *"]:
    r"""Half the squared difference of the logarithms: for targets of several orders of magnitude.

    .. math:: \tfrac12 \left(\log(1+p) - \log(1+t)\right)^2

    Args:
        prediction: Predictions p > -1.
        target: Same shape, t > -1; never broadcast.

    Returns:
        One value per element, >= 0, unreduced. The root of twice the mean is the metric rmsle.

    Gradient:
        With respect to ``prediction``: (log(1+p) − log(1+t)) / (1+p). The second derivative is negative where
        log(1+p) exceeds log(1+t) by more than 1.

    References:
        XGBoost's reg:squaredlogerror, which takes predictions below -1 + 1e-6 as that.
        sklearn.metrics.mean_squared_log_error is the mean of its double.
    """
    # In float64: two logarithms of nearly equal numbers mostly cancel.
    difference = torch.log1p(prediction.double()) - torch.log1p(target.double())
    return 0.5 * difference * difference


@squared_log.hessian_form("xgboost")
def _squared_log_in_xgboost(prediction: Tensor, target: Tensor) -> Tensor:
    exact = (1 - torch.log1p(prediction) + torch.log1p(target)) / (1 + prediction).square()
    return exact.clamp(min=1e-6)


NON_ZERO = TensorType("nonzero", ("float", "integer"), ("N", "*"))


def _relative_inputs(parameters: Mapping[str, Any]) -> Refinement:
    return Refinement(inputs={"target": NON_ZERO}) if parameters["eps"] is None else Refinement()


@loss(task="regression", kind="rows", refine=_relative_inputs, elementwise=True)
def mape(
    prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], *, eps: Positive | None = None
) -> Real[Tensor, "N *"]:
    r"""The absolute difference, relative to the absolute target.

    .. math:: \frac{|e|}{\max(|t|, \epsilon)}, \quad e = \text{prediction} - \text{target}

    Args:
        prediction: Predictions, any real.
        target: Targets t, same shape; other than 0 where ``eps`` is null.
        eps: The least size of a target that is divided by; smaller ones count as that. Null refuses a target of 0.

    Returns:
        One value per element, >= 0, unreduced: a fraction, not a percentage.

    Gradient:
        With respect to ``prediction``: the sign of e over the divisor, 0 at 0.

    References:
        sklearn.metrics.mean_absolute_percentage_error, whose eps is 2.2e-16.
        LightGBM's objective mape and CatBoost's MAPE divide by at least 1.
    """
    size = target.abs()
    return (prediction - target).abs() / (size if eps is None else size.clamp(min=eps))


@mape.hessian_form("lightgbm")
def _mape_in_lightgbm(prediction: Tensor, target: Tensor, *, eps: float | None) -> Tensor:
    return prediction.new_ones(())
