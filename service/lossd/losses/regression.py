"""Regression losses: one value per element of ``prediction`` and ``target``, which have the same shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import lossd.losses.softmax as softmax
from lossd.lazy_torch import Tensor, torch
from lossd.losses.registry import Refinement, Upstream, loss
from lossd.losses.types import Finite, Fraction, NonNegative, NonNegativeTensor, Positive, Real, TensorType


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


@loss(task="regression", kind="rows")
def smooth_l1(
    prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], *, beta: NonNegative = 1.0
) -> Real[Tensor, "N *"]:
    r"""Huber's loss divided by ``beta``: slope 1 beyond ``beta``, whatever ``beta`` is.

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


@loss(task="regression", kind="rows")
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


@loss(task="regression", kind="rows")
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


@loss(task="regression", kind="rows")
def quantile(
    prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], *, q: Fraction = 0.5
) -> Real[Tensor, "N *"]:
    r"""The pinball loss, least where the prediction is the target's ``q``-quantile.

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


NON_NEGATIVE = TensorType("nonnegative", ("float",), ("N", "*"))


def _poisson_inputs(parameters: Mapping[str, Any]) -> Refinement:
    if parameters["log_input"]:
        return Refinement()
    return Refinement(inputs={"prediction": NON_NEGATIVE})


@loss(task="regression", kind="rows", refine=_poisson_inputs)
def poisson_nll(
    prediction: Real[Tensor, "N *"],
    target: NonNegativeTensor[Tensor, "N *"],
    *,
    log_input: bool = True,
    full: bool = False,
    eps: Positive = 1e-8,
) -> Real[Tensor, "N *"]:
    r"""Negative log-likelihood of counts under a Poisson distribution.

    .. math:: \lambda - t\log\lambda \;(+ \log t!), \quad \lambda = e^{\text{prediction}} \text{ or prediction}

    Args:
        prediction: The logarithm of the rate; the rate itself, >= 0, where ``log_input`` is false.
        target: Counts t >= 0, same shape.
        log_input: Whether predictions are logarithms.
        full: Whether Stirling's approximation of log t! is added where t > 1.
        eps: Added to the rate inside the logarithm; of no effect where ``log_input`` is true.

    Returns:
        One value per element, unreduced.

    Gradient:
        With respect to ``prediction``: exp(prediction) − t, or 1 − t/(prediction + eps).

    References:
        torch.nn.functional.poisson_nll_loss.
    """
    # In float64: the terms are as large as the counts, and mostly cancel.
    prediction, target = prediction.double(), target.double()
    if log_input:
        value = torch.exp(prediction) - softmax.expected(target, prediction)
    else:
        value = prediction - target * torch.log(prediction + eps)
    if not full:
        return value
    many = target.clamp(min=1)
    stirling = many * torch.log(many) - many + 0.5 * torch.log(2 * math.pi * many)
    return value + torch.where(target > 1, stirling, torch.zeros_like(stirling))


@loss(task="regression", kind="rows", differentiable=("prediction", "variance"))
def gaussian_nll(
    prediction: Real[Tensor, "N *"],
    target: Finite[Tensor, "N *"],
    variance: Annotated[Tensor, NON_NEGATIVE],
    *,
    full: bool = False,
    eps: Positive = 1e-6,
) -> Real[Tensor, "N *"]:
    r"""Negative log-likelihood under a normal distribution whose variance is predicted as well.

    .. math::
        \tfrac12\left(\log v + \frac{e^2}{v}\right) \;(+ \tfrac12\log 2\pi), \quad v = \max(\text{variance}, \epsilon)

    Args:
        prediction: The mean, any real.
        target: Same shape; never broadcast.
        variance: The variance, >= 0, same shape.
        full: Whether the constant is added.
        eps: Least variance; below it the gradient is that at ``eps``, as in torch.

    Returns:
        One value per element, unreduced.

    Gradient:
        With respect to ``prediction`` and ``variance``.

    References:
        D. A. Nix and A. S. Weigend, Estimating the Mean and Variance of the Target Probability Distribution, 1994,
            doi:10.1109/ICNN.1994.374138.
        torch.nn.functional.gaussian_nll_loss.
    """
    # In float64, as poisson_nll.
    error, bounded = prediction.double() - target.double(), variance.double().clone()
    with torch.no_grad():  # a variance that fell to 0 must still be pulled up again
        bounded.clamp_(min=eps)
    value = 0.5 * (torch.log(bounded) + error * error / bounded)
    return value + 0.5 * math.log(2 * math.pi) if full else value
