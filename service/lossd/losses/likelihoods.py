"""Negative log-likelihoods: one value per element of a target, under a distribution whose parameters are predicted.

All are computed in float64: their terms are large and mostly cancel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Gt, Lt
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

import lossd.losses.softmax as softmax
from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import in_whole_vectors, log1p_remainder, power
from lossd.losses.registry import Refinement, loss
from lossd.losses.types import (
    Finite,
    Fraction,
    NonNegativeTensor,
    Positive,
    PositiveTensor,
    Real,
    TensorType,
)

MAX_DELTA_STEP = 0.7
"""What XGBoost (``max_delta_step``) and LightGBM (``poisson_max_delta_step``) add to the logarithm of a rate."""

NON_NEGATIVE = TensorType("nonnegative", ("float",), ("N", "*"))


def _poisson_inputs(parameters: Mapping[str, Any]) -> Refinement:
    if parameters["log_input"]:
        return Refinement()
    return Refinement(inputs={"prediction": NON_NEGATIVE})


@loss(task="regression", kind="rows", refine=_poisson_inputs, elementwise=True)
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
        value = torch.exp(prediction) - softmax.weighted_nll(target, prediction)
    else:
        value = prediction - target * torch.log(prediction + eps)
    if not full:
        return value
    many = target.clamp(min=1)
    stirling = many * torch.log(many) - many + 0.5 * torch.log(2 * math.pi * many)
    return value + torch.where(target > 1, stirling, torch.zeros_like(stirling))


@poisson_nll.hessian_form("fisher")
def _poisson_information(
    prediction: Tensor, target: Tensor, *, log_input: bool, full: bool, eps: float | Tensor
) -> Tensor:
    return torch.exp(prediction) if log_input else prediction / (prediction + eps).square()


@poisson_nll.hessian_form("xgboost", "lightgbm", when=lambda parameters, shapes: parameters["log_input"])
def _poisson_in_boosters(
    prediction: Tensor, target: Tensor, *, log_input: bool, full: bool, eps: float | Tensor
) -> Tensor:
    return torch.exp(prediction + MAX_DELTA_STEP)


@loss(task="regression", kind="rows", differentiable=("prediction", "variance"), elementwise=True)
def gaussian_nll(
    prediction: Real[Tensor, "N *"],
    target: Finite[Tensor, "N *"],
    variance: Annotated[Tensor, NON_NEGATIVE],
    *,
    full: bool = False,
    eps: Positive = 1e-6,
    beta: Fraction = 0.0,
) -> Real[Tensor, "N *"]:
    r"""Negative log-likelihood under a normal distribution whose variance is predicted as well.

    .. math::
        \tfrac12 \lfloor v\rfloor^\beta \left(\log v + \frac{e^2}{v}\; (+ \log 2\pi)\right),
        \quad v = \max(\text{variance}, \epsilon)

    Args:
        prediction: The mean, any real.
        target: Same shape; never broadcast.
        variance: The variance, >= 0, same shape.
        full: Whether the constant is added.
        eps: Least variance; below it the gradient is that at ``eps``, as in torch.
        beta: The power of the variance that each element is weighted by, in [0, 1]. 0 is the likelihood, whose gradient
            is small where the variance is large; 1 gives ``prediction`` the gradient of half the squared error; 0.5 is
            the recommended compromise. The weight is constant, and the mean does not divide by it.

    Returns:
        One value per element, unreduced.

    Gradient:
        With respect to ``prediction`` and ``variance``, where the weight v to the power of ``beta`` is held constant.

    References:
        D. A. Nix and A. S. Weigend, Estimating the Mean and Variance of the Target Probability Distribution, 1994,
            doi:10.1109/ICNN.1994.374138.
        torch.nn.functional.gaussian_nll_loss.
        M. Seitzer et al., On the Pitfalls of Heteroscedastic Uncertainty Estimation, 2022, arXiv:2203.09168 (beta).
    """
    # In float64, as poisson_nll.
    error, bounded = prediction.double() - target.double(), variance.double().clone()
    with torch.no_grad():  # a variance that fell to 0 must still be pulled up again
        bounded.clamp_(min=eps)
    value = 0.5 * (torch.log(bounded) + error * (error / bounded))  # the square alone might overflow
    value = value + 0.5 * math.log(2 * math.pi) if full else value
    if isinstance(beta, float) and beta == 0:
        return value
    return value * power(bounded.detach(), _wide(beta))


@gaussian_nll.hessian_form("exact", "fisher")
def _gaussian_hessian(
    prediction: Tensor, target: Tensor, variance: Tensor, *, full: bool, eps: float | Tensor, beta: float | Tensor
) -> Tensor:
    bounded = torch.maximum(variance, torch.as_tensor(eps, dtype=variance.dtype, device=variance.device))
    return power(bounded, beta) / bounded


POSITIVE = TensorType("positive", ("float",), ("N", "*"))


def _rate_inputs(parameters: Mapping[str, Any]) -> Refinement:
    return Refinement() if parameters["log_input"] else Refinement(inputs={"prediction": POSITIVE})


@loss(task="regression", kind="rows", refine=_rate_inputs, elementwise=True)
def gamma_nll(
    prediction: Real[Tensor, "N *"],
    target: PositiveTensor[Tensor, "N *"],
    *,
    log_input: bool = True,
    full: bool = False,
    shape: Positive = 1.0,
) -> Real[Tensor, "N *"]:
    r"""Negative log-likelihood of positive amounts under a gamma distribution: a constant relative error.

    .. math:: k\left(m + t e^{-m}\right) \;(+ \log\Gamma(k) - k\log k - (k-1)\log t),
        \quad m = \text{prediction} \text{ or } \log \text{prediction}

    Args:
        prediction: The logarithm m of the mean; the mean itself, > 0, where ``log_input`` is false.
        target: Amounts t > 0, same shape.
        log_input: Whether predictions are logarithms.
        full: Whether the terms are added that do not depend on the prediction; they are 0 where ``shape`` is 1.
        shape: The shape k of the distribution, whose variance is the squared mean over k; 1 is the exponential
            distribution.

    Returns:
        One value per element, unreduced.

    Gradient:
        With respect to ``prediction``: k(1 − t exp(−m)), or k(1 − t/prediction)/prediction.

    References:
        XGBoost's reg:gamma and LightGBM's objective gamma, with ``shape`` 1.
        sklearn.metrics.mean_gamma_deviance is 2(L − 1 − log t), with ``shape`` 1.
    """
    prediction, target, shape = prediction.double(), target.double(), _wide(shape)
    m = prediction if log_input else torch.log(prediction)
    value = shape * (m + target * torch.exp(-m))
    if not full:
        return value
    k = torch.as_tensor(shape, dtype=value.dtype, device=value.device)
    return value + _lgamma(k) - k * torch.log(k) - (k - 1) * torch.log(target)


@gamma_nll.hessian_form("fisher")
def _gamma_information(
    prediction: Tensor, target: Tensor, *, log_input: bool, full: bool, shape: float | Tensor
) -> Tensor:
    of_logarithm = torch.zeros_like(prediction) + shape
    return of_logarithm if log_input else of_logarithm / prediction.square()


def _name_limits(power: Any) -> Any:
    """Refuse the limits, which are losses of their own; the bounds refuse all else."""
    if type(power) in (int, float) and power in (1, 2):
        bound, limit = ("greater than 1", "poisson_nll") if power == 1 else ("less than 2", "gamma_nll")
        raise PydanticCustomError("limit", f"Input should be {bound} (use {limit} for {power:g})")
    return power


PowerOfMean = Annotated[float, Gt(1), Lt(2), BeforeValidator(_name_limits)]


@loss(task="regression", kind="rows", refine=_rate_inputs, elementwise=True)
def tweedie(
    prediction: Real[Tensor, "N *"],
    target: NonNegativeTensor[Tensor, "N *"],
    *,
    log_input: bool = True,
    power: PowerOfMean = 1.5,
) -> Real[Tensor, "N *"]:
    r"""Negative log-likelihood of amounts that are often 0, such as claims: a compound Poisson-gamma distribution.

    .. math:: -\frac{t\, e^{(1-\rho)m}}{1-\rho} + \frac{e^{(2-\rho)m}}{2-\rho},
        \quad m = \text{prediction} \text{ or } \log \text{prediction}

    Args:
        prediction: The logarithm m of the mean; the mean itself, > 0, where ``log_input`` is false.
        target: Amounts t >= 0, same shape.
        log_input: Whether predictions are logarithms.
        power: The power ρ of the mean that the variance is proportional to, between 1 and 2. For 1 use poisson_nll,
            for 2 gamma_nll.

    Returns:
        One value per element, > 0, unreduced, without the terms that do not depend on the prediction.

    Gradient:
        With respect to ``prediction``: exp((2−ρ)m) − t exp((1−ρ)m); divided by the prediction where ``log_input`` is
        false.

    References:
        B. Jørgensen, Exponential Dispersion Models, Journal of the Royal Statistical Society B, 1987.
        XGBoost's reg:tweedie and LightGBM's objective tweedie.
        sklearn.metrics.mean_tweedie_deviance is 2(L − the least L of the target).
    """
    prediction, target, power = prediction.double(), target.double(), _wide(power)
    m = prediction if log_input else torch.log(prediction)
    # Without the mean where the target is 0: its power may be infinite.
    of_target = target * torch.exp((1 - power) * torch.where(target == 0, 0, m)) / (power - 1)
    return of_target + torch.exp((2 - power) * m) / (2 - power)


@tweedie.hessian_form("fisher")
def _tweedie_information(prediction: Tensor, target: Tensor, *, log_input: bool, power: float | Tensor) -> Tensor:
    return torch.exp((2 - power) * prediction) if log_input else torch.exp(-power * torch.log(prediction))


@loss(task="regression", kind="rows", differentiable=("prediction", "dispersion"), elementwise=True, byte_ns=40)
def negative_binomial_nll(
    prediction: PositiveTensor[Tensor, "N *"],
    target: NonNegativeTensor[Tensor, "N *"],
    dispersion: PositiveTensor[Tensor, "N *"],
    *,
    full: bool = True,
) -> Real[Tensor, "N *"]:
    r"""Negative log-likelihood of counts whose variance, μ + αμ², exceeds their mean μ.

    .. math:: \log\Gamma(\tfrac1\alpha) - \log\Gamma(t + \tfrac1\alpha) + \tfrac1\alpha\log(1 + \alpha\mu)
        - t \log\frac{\alpha\mu}{1 + \alpha\mu} \;(+ \log\Gamma(t + 1))

    Args:
        prediction: The mean μ > 0.
        target: Counts t >= 0, same shape.
        dispersion: The dispersion α > 0, same shape; towards 0 the distribution is Poisson's.
        full: Whether log Γ(t + 1) is added, which does not depend on the predictions.

    Returns:
        One value per element, unreduced.

    Gradient:
        With respect to ``prediction`` and ``dispersion``.

    References:
        J. M. Hilbe, Negative Binomial Regression, 2011, doi:10.1017/CBO9780511973420 (NB2).
        scipy.stats.nbinom with n = 1/α and p = 1/(1 + αμ).
    """
    mean, count, alpha = prediction.double(), target.double(), dispersion.double()
    scaled = alpha * mean
    # log Γ(t + 1/α) - log Γ(1/α) + t log α, which both forms give as a difference of moderate terms
    rise = torch.where(alpha < SERIES, _rise_of_series(count, alpha), _rise_of_lgamma(count, alpha))
    value = mean * _log1p_ratio(scaled) + count * (torch.log1p(scaled) - torch.log(mean)) - rise
    return value + _lgamma(count + 1) if full else value


@negative_binomial_nll.hessian_form("fisher")
def _negative_binomial_information(prediction: Tensor, target: Tensor, dispersion: Tensor, *, full: bool) -> Tensor:
    return 1 / (prediction * (1 + dispersion * prediction))


SERIES = 0.01
"""Below this dispersion log Γ is that of Stirling's series: the functions themselves are too large, and cancel."""


def _rise_of_lgamma(count: Tensor, alpha: Tensor) -> Tensor:
    inverse = 1 / alpha.masked_fill(alpha < SERIES, 1)
    return _lgamma(count + inverse) - _lgamma(inverse) - count * torch.log(inverse)


def _rise_of_series(count: Tensor, alpha: Tensor) -> Tensor:
    alpha = alpha.masked_fill(alpha >= SERIES, SERIES)
    scaled = alpha * count
    grown = torch.log1p(scaled)
    leading = count * (grown + (_log1p_ratio(scaled) - 1)) - 0.5 * grown
    return leading + _stirling(alpha / (1 + scaled)) - _stirling(alpha)


def _log1p_ratio(x: Tensor) -> Tensor:
    """Return log(1 + x) / x of numbers >= 0, 1 at 0, with gradients whose terms do not cancel."""
    near = x < 1
    small, large = torch.where(near, x, 0), torch.where(near, 1, x)
    return torch.where(near, 1 - small * log1p_remainder(small), torch.log1p(large) / large)


def _stirling(inverse: Tensor) -> Tensor:
    """Return the rest of Stirling's formula, log Γ(z) − ((z − ½) log z − z + ½ log 2π), of 1/z <= 0.01."""
    square = inverse * inverse
    return inverse * (1 / 12 - square * (1 / 360 - square / 1260))


@loss(task="regression", kind="rows", differentiable=("prediction", "scale", "df"), elementwise=True, byte_ns=12)
def student_t_nll(
    prediction: Real[Tensor, "N *"],
    target: Finite[Tensor, "N *"],
    scale: PositiveTensor[Tensor, "N *"],
    df: PositiveTensor[Tensor, "N *"],
) -> Real[Tensor, "N *"]:
    r"""Negative log-likelihood under Student's t-distribution: normal near its centre, with heavy tails for outliers.

    .. math:: \frac{\nu+1}{2}\log\left(1 + \frac{z^2}{\nu}\right) + \log\frac{\Gamma(\nu/2)}{\Gamma((\nu+1)/2)}
        + \tfrac12\log(\nu\pi) + \log s, \quad z = \frac{\text{prediction} - \text{target}}{s}

    Args:
        prediction: The location, any real.
        target: Same shape; never broadcast.
        scale: The scale s > 0, same shape, in units of the target.
        df: The degrees of freedom ν > 0, same shape; towards infinity the distribution is normal.

    Returns:
        One value per element, unreduced.

    Gradient:
        With respect to ``prediction``, ``scale`` and ``df``.

    References:
        K. L. Lange, R. J. A. Little and J. M. G. Taylor, Robust Statistical Modeling Using the t Distribution, 1989,
            doi:10.1080/01621459.1989.10478852.
        scipy.stats.t.
    """
    df, scale = df.double(), scale.double()
    z = (prediction.double() - target.double()) / scale
    tail = 0.5 * (df + 1) * _log1p_of_square(z / torch.sqrt(df))
    many = df > MANY
    few = df.masked_fill(many, 1)
    of_few = _lgamma(0.5 * few) - _lgamma(0.5 * (few + 1)) + 0.5 * torch.log(few * math.pi)
    inverse = 2 / df.masked_fill(~many, MANY)
    square = inverse * inverse
    of_many = inverse * (1 / 8 - square * (1 / 192 - square * (1 / 640 - square * (17 / 14336))))
    return tail + torch.log(scale) + torch.where(many, of_many + 0.5 * math.log(2 * math.pi), of_few)


MANY = 200.0
"""From so many degrees of freedom on, the quotient of two Γ is that of its series: their logarithms nearly cancel."""


@student_t_nll.hessian_form("fisher")
def _student_t_information(prediction: Tensor, target: Tensor, scale: Tensor, df: Tensor) -> Tensor:
    return (df + 1) / (df + 3) / (scale * scale)


def _log1p_of_square(x: Tensor) -> Tensor:
    """Return log(1 + x²), finite for every finite x."""
    unit = x.detach().abs().clamp(min=1)
    share = x / unit
    within = torch.where(unit > 1, torch.log((1 / unit).square() + share * share), torch.log1p(share * share))
    return 2 * torch.log(unit) + within


@loss(task="regression", kind="rows", differentiable=("prediction", "scale"), elementwise=True)
def laplace_nll(
    prediction: Real[Tensor, "N *"], target: Finite[Tensor, "N *"], scale: PositiveTensor[Tensor, "N *"]
) -> Real[Tensor, "N *"]:
    r"""Negative log-likelihood under a Laplace distribution: the absolute error, with a predicted scale.

    .. math:: \log(2b) + \frac{|e|}{b}, \quad e = \text{prediction} - \text{target}

    Args:
        prediction: The location, any real: the median.
        target: Same shape; never broadcast.
        scale: The scale b > 0, same shape, in units of the target; the mean absolute deviation.

    Returns:
        One value per element, unreduced.

    Gradient:
        With respect to ``prediction``: the sign of e over b; and ``scale``: (1 − abs(e)/b)/b.

    References:
        scipy.stats.laplace.
    """
    scale = scale.double()
    return torch.log(2 * scale) + (prediction.double() - target.double()).abs() / scale


@laplace_nll.hessian_form("fisher")
def _laplace_information(prediction: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    return 1 / (scale * scale)


def _wide(number: float | Tensor) -> Any:
    """Return a parameter in float64 where it is a tensor."""
    return number.double() if isinstance(number, Tensor) else number


def _lgamma(x: Tensor) -> Tensor:
    return in_whole_vectors(torch.lgamma, x)
