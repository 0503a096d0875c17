"""Deviances: how far predictions are from targets by what they predict, a quantile or a mean; and parts explained.

A deviance is 0 where prediction and target agree. 1 minus the deviance over that of the best constant prediction is
the part that predictions explain, as r2 is for squared errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import power as power_of
from lossd.metrics.contributions import Scores
from lossd.metrics.numbers import Numbers, mean_of
from lossd.metrics.parts import Mean, Rankings
from lossd.metrics.registry import Array, Floats, metric

__all__ = ["Deviances", "half_least_pinball"]

TERMS = 24
"""Terms of a series: from 1/8 on the formula itself is as accurate."""

NEAR = 0.125


class Deviances(Numbers):
    """Means of deviances."""

    @Mean
    def half_excess(self) -> Tensor:
        """Half of what each prediction is above its target."""
        return self.of_each(lambda p, t: (p / 2 - t / 2).clamp(min=0))

    @Mean
    def half_shortfall(self) -> Tensor:
        """Half of what each prediction is below its target."""
        return self.of_each(lambda p, t: (t / 2 - p / 2).clamp(min=0))

    @Rankings
    def target_table(self) -> Scores:
        """The targets."""
        return self.table_of(self.target.double().numpy(force=True))

    def half_pinball(self, level: float) -> Floats:
        """Return half the mean pinball loss of a level, (B,)."""
        found: Floats = level * mean_of(self.half_shortfall) + (1 - level) * mean_of(self.half_excess)
        return found

    def half_pinball_of_constants(self, levels: Sequence[float]) -> Floats:
        """Return half the least mean pinball loss of a constant prediction, (B, L); 0 without targets."""
        columns: list[tuple[Floats, Floats]]
        if self.target_table is not None:
            columns = self.target_table.shares()
        else:
            columns = [_shares(*self.kept(request, self.target)) for request in range(self.count)]
        return np.array([[half_least_pinball(*column, level=level) for level in levels] for column in columns])

    def explained_pinball(self, name: str, levels: Sequence[float]) -> list[list[Any]]:
        """Return 1 less the pinball loss of each level over the least of a constant, for each request."""
        least = self.half_pinball_of_constants(levels)
        undefined = (least == 0) | self.constant_target[:, None]
        ratios = [self.half_pinball(level) / np.where(zero, 1, of_level)
                  for level, of_level, zero in zip(levels, least.T, undefined.T, strict=True)]  # fmt: skip
        found = [self.numbers(name, 1 - ratio, zero) for ratio, zero in zip(ratios, undefined.T, strict=True)]
        return [list(values) for values in zip(*found, strict=True)]

    @property
    def tweedie_power(self) -> float:
        """The power of the mean that the variance is proportional to."""
        return float(self.view.options["power"])

    @Mean
    def tweedie_deviances(self) -> Tensor:
        """The deviance of each element by the option ``power``."""
        return self.of_each(lambda p, t: unit_deviance(t, p, self.tweedie_power))

    @Mean
    def poisson_deviances(self) -> Tensor:
        """The deviance of each element as of a Poisson distribution."""
        return self.of_each(lambda p, t: unit_deviance(t, p, 1))

    @Mean
    def gamma_deviances(self) -> Tensor:
        """The deviance of each element as of a gamma distribution."""
        return self.of_each(lambda p, t: unit_deviance(t, p, 2))

    @Mean
    def target_transforms(self) -> Tensor:
        """What the deviance of a constant prediction is made of besides the mean: t log t, log t or t^(2 − power)."""
        exponent = self.tweedie_power

        def transform(_: Tensor, t: Tensor) -> Tensor:
            positive = t.clamp(min=0)
            if exponent == 1:
                return positive * torch.where(positive > 0, positive, 1).log()
            return positive.log() if exponent == 2 else power_of(positive, 2 - exponent)

        return self.of_each(transform)

    def deviance_of_mean(self) -> Floats:
        """Return the mean deviance of the mean target as prediction, (B,); anything where it is undefined."""
        exponent = self.tweedie_power
        if self.target_moments is None:
            lengths, means = self.scale(of_target=True)
            mean = np.ldexp(means, lengths)
            return self.totals(lambda _, t, mean: [unit_deviance(t, mean, exponent)], mean)[:, 0] / self.some
        # A run has the mean only in the end. The difference loses digits if the spread is small beside the mean.
        mean = self.target_moments.means_scaled(np.zeros(self.count, int))[:, 0]
        transform = mean_of(self.target_transforms)
        with np.errstate(all="ignore"):
            if exponent == 1:
                found = transform - mean * np.log(mean)
            elif exponent == 2:
                found = np.log(mean) - transform
            else:
                found = (transform - np.power(mean, 2 - exponent)) / ((1 - exponent) * (2 - exponent))
        answer: Floats = 2 * np.maximum(found, 0)
        return answer

    def outside(self, exponent: float) -> Array:
        """Return whether no element counts, or one is not of a Tweedie distribution of this power, (B,) bool."""
        outside: Array = self.size == 0
        if exponent != 0:
            outside = outside | (-self.prediction_range[:, 0] <= 0)
        if exponent >= 1:
            lowest = -self.target_range[:, 0]
            outside = outside | (lowest < 0 if exponent < 2 else lowest <= 0)
        return outside


def unit_deviance(target: Tensor, mean: Tensor, exponent: float) -> Tensor:
    r"""Return the deviance of each target from a mean, by a variance that is a power of the mean.

    .. math:: 2\left(\frac{t^{2-p}}{(1-p)(2-p)} - \frac{t m^{1-p}}{1-p} + \frac{m^{2-p}}{2-p}\right)

    With r = (t − m) / m it is 2 m^(2−p) h(r). Near 0, h is the series r²/2 − p r³/6 + …, whose next coefficient is the
    last one times (2 − p − k) / (k + 1); the formula itself would subtract numbers that are nearly equal.

    Args:
        target: Numbers from 0 on; any if the exponent is 0 or less, positive from 2 on.
        mean: Positive numbers that broadcast; any if the exponent is 0.
        exponent: The power p, 0 or less, or 1 or more.
    """
    if exponent == 0:
        return (target - mean).square()
    r, quotient = (target - mean) / mean, target / mean
    coefficients = [0.5]
    for k in range(2, TERMS):
        coefficients.append(coefficients[-1] * (2 - exponent - k) / (k + 1))
    series = torch.full_like(r, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        series = series * r + coefficient
    positive = quotient.clamp(min=0)
    some = torch.where(positive == 0, 1, positive)
    if exponent == 1:
        formula = positive * some.log() - r
    elif exponent == 2:
        formula = r - positive.log()
    else:
        formula = (power_of(positive, 2 - exponent) - 1 - (2 - exponent) * r) / ((1 - exponent) * (2 - exponent))
    shape = torch.where(r.abs() < NEAR, series * r * r, formula)
    return 2 * power_of(mean, 2 - exponent) * shape


def _shares(values: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
    """Return numbers in rising order, (n,), and the share of each in the weight."""
    order = np.argsort(values)
    share = np.full(len(values), 1 / max(1, len(values))) if weights is None else weights[order] / weights.sum()
    return values[order], share


def half_least_pinball(values: Floats, shares: Floats, level: float) -> float:
    """Return half the least mean pinball loss of a constant, which is that of the quantile.

    Args:
        values: Numbers in rising order, (n,).
        shares: The share of each in the weight, (n,).
        level: From 0 to 1.
    """
    if not len(values):
        return 0.0
    place = min(int(np.searchsorted(np.cumsum(shares), level)), len(values) - 1)
    distance = values / 2 - values[place] / 2
    return float((shares * np.where(distance > 0, level, level - 1) * distance).sum())


@metric("regression", options=("levels",), reads=("half_shortfall", "half_excess"), better="lower", interval=None)
def pinball(task: Deviances) -> Sequence[Any]:
    """The mean pinball loss of predicted quantiles; a list, one for each of ``levels``.

    It is level · (t − p) below the target and (1 − level) · (p − t) above. Equals sklearn.metrics.mean_pinball_loss.
    """
    levels: list[float] = task.view.options["levels"]
    found = [task.mean("pinball", task.half_pinball(level), 1) for level in levels]
    return [list(values) for values in zip(*found, strict=True)]


TWEEDIE = ("target_range", "prediction_range")


@metric(
    "regression",
    options=("power",),
    reads=("tweedie_deviances", *TWEEDIE),
    better="lower",
    interval="positive",
)
def tweedie_deviance(task: Deviances) -> Sequence[Any]:
    """The mean deviance of a Tweedie distribution, whose variance is the mean to the ``power``.

    0 is the squared error, 1 Poisson, 2 gamma, 3 inverse Gaussian. Undefined for a prediction that is not positive,
    below a power of 2 for a negative target, from 2 on for one that is not positive; any target fits a negative power.
    Equals sklearn.metrics.mean_tweedie_deviance.
    """
    return _deviance(task, "tweedie_deviance", task.tweedie_deviances, task.tweedie_power)


@metric("regression", reads=("poisson_deviances", *TWEEDIE), better="lower", interval="positive")
def poisson_deviance(task: Deviances) -> Sequence[Any]:
    """The mean deviance of a Poisson distribution, 2 (t log(t/p) − t + p).

    Undefined for a negative target and for a prediction that is not positive. Equals
    sklearn.metrics.mean_poisson_deviance.
    """
    return _deviance(task, "poisson_deviance", task.poisson_deviances, 1)


@metric("regression", reads=("gamma_deviances", *TWEEDIE), better="lower", interval="positive")
def gamma_deviance(task: Deviances) -> Sequence[Any]:
    """The mean deviance of a gamma distribution, 2 (log(p/t) + t/p − 1).

    Undefined for a target or a prediction that is not positive. Equals sklearn.metrics.mean_gamma_deviance.
    """
    return _deviance(task, "gamma_deviance", task.gamma_deviances, 2)


def _deviance(task: Deviances, name: str, part: tuple[Floats, Array], exponent: float) -> list[Any]:
    return task.numbers(name, mean_of(part), task.outside(exponent))


PINBALL = ("half_shortfall", "half_excess", "target_table", "target_range")


@metric("regression", reads=PINBALL, better="higher", interval=None)
def d2_absolute(task: Deviances) -> Sequence[Any]:
    """1 − the mean absolute error over that of the target's median: r2 for absolute errors.

    Undefined for a constant target. Equals sklearn.metrics.d2_absolute_error_score.
    """
    return [value for (value,) in task.explained_pinball("d2_absolute", [0.5])]


@metric("regression", options=("levels",), reads=PINBALL, better="higher", interval=None)
def d2_pinball(task: Deviances) -> Sequence[Any]:
    """1 − the pinball loss over that of the target's quantile; a list, one for each of ``levels``.

    Undefined for a constant target. Equals sklearn.metrics.d2_pinball_score.
    """
    return task.explained_pinball("d2_pinball", task.view.options["levels"])


@metric(
    "regression",
    options=("power",),
    reads=("tweedie_deviances", "target_transforms", "target_moments", "error_moments", *TWEEDIE),
    better="higher",
    interval="real",
)
def d2_tweedie(task: Deviances) -> Sequence[Any]:
    """1 − the Tweedie deviance over that of the target's mean, by ``power``; with power 0 it is r2.

    Undefined for a constant target, and where tweedie_deviance is. Equals sklearn.metrics.d2_tweedie_score.
    """
    if task.tweedie_power == 0:
        return task.explained("d2_tweedie", *task.squared_errors)
    of_mean = task.deviance_of_mean()
    undefined = task.outside(task.tweedie_power) | task.constant_target | (of_mean == 0)
    ratio = mean_of(task.tweedie_deviances) / np.where(undefined, 1, of_mean)
    return task.numbers("d2_tweedie", 1 - ratio, undefined)
