"""What an axis is: a quantity that losses are drawn along, and the inputs at each of its points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lossd.losses.types import TensorType
from lossd_client.errors import InvalidRequest
from lossd_client.wire.quoting import digits, quoted

__all__ = ["ONE", "UNIT", "Axis", "Given", "Path", "Scene", "everywhere"]

Array = np.ndarray[Any, Any]

ONE = np.ones(1)
UNIT = (1e-6, 1 - 1e-6)


class Scene(NamedTuple):
    """The data that a line's inputs are made from.

    Attributes:
        types: The types of the loss's inputs, by name.
        parameters: The loss's parameters.
        given: The values of the axis's further numbers, by name.
    """

    types: Mapping[str, TensorType]
    parameters: Mapping[str, Any]
    given: Mapping[str, float]


class Path(NamedTuple):
    """Inputs along an axis.

    Attributes:
        inputs: By name; the first axis counts the points, the rest is one request's tensor.
        toward: How the inputs change where the gradient is measured; broadcasts against them. Empty if none changes.
        subject: What the gradient is with respect to, in words; None without a gradient.
        parameters: Parameters that change along the axis, by name: one value for each point.
    """

    inputs: Mapping[str, Array]
    toward: Mapping[str, Array]
    subject: str | None
    parameters: Mapping[str, Array] = {}


class Given(NamedTuple):
    """A number besides x that the inputs depend on.

    Attributes:
        label: Its meaning.
        value: The default.
        low: The least value.
        high: The greatest value.
        step: The step of a slider; with 1 only integers are valid.
        choices: The name of each valid value, if only these are valid.
    """

    label: str
    value: float
    low: float
    high: float
    step: float = 0.05
    choices: Mapping[int, str] = {}

    def check(self, name: str, value: Any) -> float:
        """Return a value of the request.

        Raises:
            InvalidRequest: The value is none of the valid ones.
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequest(f"at.{name} must be a number")
        if self.choices and value not in self.choices:
            allowed = " or ".join(f"{number} ({meaning})" for number, meaning in self.choices.items())
            raise InvalidRequest(f"at.{name} must be {allowed}; found {digits(value)}")
        if not self.low <= value <= self.high or (self.step == 1 and value != round(value)):
            kind = "an integer" if self.step == 1 else "a number"
            raise InvalidRequest(
                f"at.{name} must be {kind} from {digits(self.low)} to {digits(self.high)}; found {digits(value)}"
            )
        return round(value) if self.step == 1 else value


@dataclass(frozen=True)
class Axis:
    """A quantity that a loss can be drawn along.

    Attributes:
        name: The name in requests; losses with an axis of one name can share a plot.
        label: The name for people; may have fields for the given numbers.
        low: The default start.
        high: The default end.
        path: The function that returns the inputs for points.
        cases: The given number whose every choice is a line of its own, unless the request sets it; empty for none.
        within: The points that have a meaning.
        given: Further numbers that the request may set, by name.
        start: Parameters to begin with, for losses with parameters that have no default.
        sets: The parameters that the axis itself sets.
        picture: The name of the explorer's sketch of a point.
    """

    name: str
    label: str
    low: float
    high: float
    path: Callable[[Array, Scene], Path]
    cases: str = ""
    within: tuple[float, float] = (-np.inf, np.inf)
    given: Mapping[str, Given] = field(default_factory=dict)
    start: Mapping[str, Any] = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    picture: str = ""

    def settings(self, at: Mapping[str, float]) -> list[tuple[str, Mapping[str, float]]]:
        """Return the lines that a request draws: the case's name, empty for none, and all given numbers.

        Args:
            at: The numbers that the request sets, by name.

        Raises:
            InvalidRequest: The axis has no number of that name, or the value is not valid.
        """
        unknown = [name for name in at if name not in self.given]
        if unknown:
            names = f"it has {', '.join(f'at.{name}' for name in self.given)}" if self.given else "it has none"
            raise InvalidRequest(f"the axis {self.name} has no number at.{quoted(unknown[0])}; {names}")
        values = {name: number.check(name, at.get(name, number.value)) for name, number in self.given.items()}
        if not self.cases or self.cases in at:
            return [("", values)]
        return [(case, {**values, self.cases: value}) for value, case in self.given[self.cases].choices.items()]

    def labelled(self, values: Mapping[str, float]) -> str:
        """Return the label with the given numbers in it."""
        return self.label.format(**{name: digits(value) for name, value in values.items()})

    def describe(self) -> dict[str, Any]:
        """Return the axis as JSON has it."""
        return {
            "name": self.name,
            "label": self.labelled({name: number.value for name, number in self.given.items()}),
            "low": self.low,
            "high": self.high,
            "given": {
                name: {
                    "label": number.label,
                    "value": number.value,
                    "min": number.low,
                    "max": number.high,
                    "step": number.step,
                    "choices": {str(value): meaning for value, meaning in number.choices.items()} or None,
                }
                for name, number in self.given.items()
            },
            "start": dict(self.start),
            "sets": list(self.sets),
            "picture": self.picture or None,
        }


def everywhere(tensor: Array, x: Array) -> Array:
    """Return a tensor repeated for every point."""
    return np.tile(tensor, (len(x), *[1] * tensor.ndim))
