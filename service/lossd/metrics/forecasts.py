"""Probabilistic forecasts: how many targets lie between their bounds, and how far apart these are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from lossd.lazy_torch import Tensor, torch
from lossd.losses.registry import Input
from lossd.metrics.entries import Entries
from lossd.metrics.parts import Mean
from lossd.metrics.registry import Task, metric, task
from lossd.metrics.signature import SAMPLE_WEIGHT, constant_input, floats

__all__ = ["Ensembles", "Intervals", "Quantiles"]

TARGET = constant_input("target", "Targets.", floats("finite", "N *"))


class Forecasts(Task):
    """The bounds of each forecast, in float64."""

    @cached_property
    def entries(self) -> Entries:
        """The targets that count."""
        return Entries(self.view)

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The lower and the upper bounds, (R, I) each."""
        raise NotImplementedError

    def crossings(self) -> Tensor:
        """Return whether predictions of each forecast are in the wrong order, (R, I) bool."""
        low, high = self.bounds
        return low > high

    def flat(self, tensor: Tensor) -> Tensor:
        """Return one number for each target, (R, I) float64."""
        return tensor.reshape(self.view.segments.total, -1).double()

    @Mean
    def covered(self) -> Tensor:
        """Whether each target lies between its bounds."""
        low, high = self.bounds
        target = self.flat(self.view.tensors["target"])
        return ((low <= target) & (target <= high)).double()

    @Mean
    def widths(self) -> Tensor:
        """How far apart the bounds of each forecast are."""
        low, high = self.bounds
        return high - low

    @Mean
    def crossed(self) -> Tensor:
        """Whether predictions of each forecast are in the wrong order."""
        return self.crossings().double()


@task("quantiles")
class Quantiles(Forecasts):
    """Predicted quantiles along axis 1, of ascending levels. The bounds are the first and the last quantile."""

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The first and the last quantile."""
        prediction = self.view.tensors["prediction"]
        return self.flat(prediction[:, 0]), self.flat(prediction[:, -1])

    def crossings(self) -> Tensor:
        """Return whether a quantile exceeds the next one."""
        prediction = self.view.tensors["prediction"]
        if prediction.shape[1] == 1:
            return torch.zeros_like(self.bounds[0], dtype=torch.bool)
        above = (prediction[:, :-1] > prediction[:, 1:]).any(1)
        return above.reshape(self.view.segments.total, -1)

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: several quantiles for each target."""
        return (
            constant_input("prediction", "Quantiles along axis 1, of ascending levels.", floats("real", "N Q *")),
            TARGET,
            SAMPLE_WEIGHT,
        )


@task("ensembles")
class Ensembles(Forecasts):
    """Members of a forecast along axis 1, in any order. The bounds are the least and the largest member."""

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the largest member."""
        prediction = self.view.tensors["prediction"]
        return self.flat(prediction.amin(1)), self.flat(prediction.amax(1))

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: several members for each target."""
        return (
            constant_input("prediction", "Members along axis 1, in any order.", floats("real", "N M *")),
            TARGET,
            SAMPLE_WEIGHT,
        )


@task("intervals")
class Intervals(Forecasts):
    """Predicted intervals, by their bounds."""

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The bounds as they were sent."""
        return self.flat(self.view.tensors["lower"]), self.flat(self.view.tensors["upper"])

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: two bounds for each target."""
        return (
            constant_input("lower", "Lower bounds.", floats("real", "N *")),
            constant_input("upper", "Upper bounds, same shape.", floats("real", "N *")),
            TARGET,
            SAMPLE_WEIGHT,
        )


@metric("quantiles", "ensembles", "intervals", default=True, reads=("covered",), interval="unit")
def coverage(task: Forecasts) -> Sequence[Any]:
    """The fraction of targets within the bounds: the outermost quantiles, or an ensemble's extremes."""
    return task.quotients("coverage", *task.covered)


@metric("quantiles", "ensembles", "intervals", default=True, reads=("widths",), interval="real")
def width(task: Forecasts) -> Sequence[Any]:
    """The mean of upper bound − lower bound."""
    return task.quotients("width", *task.widths)


@metric("quantiles", "intervals", default=True, reads=("crossed",), better="lower", interval="unit")
def crossing(task: Forecasts) -> Sequence[Any]:
    """The fraction of forecasts with a quantile above the next one, or a lower bound above the upper."""
    return task.quotients("crossing", *task.crossed)
