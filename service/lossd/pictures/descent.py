"""Gradient descent of a linear model by a loss: the requests of its steps, and the document that their answers make.

Nothing is evaluated here: the service computes each step's loss and its gradient by the model's scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossd.losses.lookup import find_loss
from lossd.pictures.curves import PointAnswer
from lossd.request.plan import Plan
from lossd.request.planning import make_plan
from lossd_client.errors import InvalidRequest, NotEvaluable
from lossd_client.wire.quoting import digits

__all__ = ["OWN", "Descent", "descent"]

Array = np.ndarray[Any, Any]

OWN = ("features", "target", "start", "rate", "steps")
"""The names of a descent's own options; no parameter of a loss has one of them."""

MAX_ROWS, MAX_WEIGHTS, MAX_STEPS = 500, 8, 200

FAR = 1e6
"""A descent with a weight beyond this diverges, and ends."""


@dataclass(frozen=True, eq=False)
class Descent:
    """A descent from its start.

    Attributes:
        plan: The checked request of each step.
        features: What the weights are multiplied by to give each row's score, (N, K).
        target: The targets, (N,).
        paired: Whether the loss takes two scores for each row, of which the first is 0.
        start: The weights at first, (K,).
        rate: The step size.
        steps: How many steps.
    """

    plan: Plan
    features: Array
    target: Array
    paired: bool
    start: Array
    rate: float
    steps: int

    def inputs(self, at: Array) -> dict[str, Array]:
        """Return the inputs of the request at these weights."""
        scores = (self.features @ at).astype(np.float32)
        prediction = np.stack([np.zeros_like(scores), scores], 1) if self.paired else scores
        return {"prediction": prediction, "target": self.target}

    def next(self, at: Array, answer: PointAnswer) -> Array:
        """Return the weights after a step."""
        gradient = answer.gradients["prediction"].astype(float).reshape(len(self.features), -1)[:, -1]
        return np.asarray(at - self.rate * gradient @ self.features)

    def diverges(self, at: Array) -> bool:
        """Return whether the weights are too large to continue, or no numbers."""
        return not bool(np.all(np.abs(at) < FAR))


def descent(
    name: str, parameters: Mapping[str, Any], options: Mapping[str, Any], *, rate: float, steps: int
) -> Descent:
    """Return the descent of a linear model by a loss.

    Args:
        name: The loss, of independent rows with one score each, or two classes.
        parameters: Its parameters.
        options: ``features`` (N, K), ``target`` (N,) and ``start`` (K,), as lists.
        rate: The step size.
        steps: How many steps, up to 200.

    Raises:
        UnknownLoss: No loss has that name.
        NotEvaluable: The loss cannot train a linear model.
        InvalidRequest: A parameter or an option is invalid.
    """
    loss = find_loss(name)
    if loss.kind != "rows" or [entry.name for entry in loss.inputs if not entry.optional] != ["prediction", "target"]:
        raise NotEvaluable(f"{name} cannot train a linear model: its rows are not one prediction and one target each")
    plan = make_plan({"loss": {**parameters, "name": name}, "outputs": ["loss", "gradient.prediction"]})
    classes = loss.task == "multiclass"
    features = _array("features", options, 2)
    rows, weights = features.shape
    if not (1 <= rows <= MAX_ROWS and 1 <= weights <= MAX_WEIGHTS):
        raise InvalidRequest(f"features may be up to {MAX_ROWS} rows of up to {MAX_WEIGHTS}, found {features.shape}")
    target, start = _array("target", options, 1), _array("start", options, 1)
    if target.shape != (rows,) or start.shape != (weights,):
        found = f"found {len(target)} and {len(start)}"
        raise InvalidRequest(f"expected {rows} targets and {weights} weights to start, {found}")
    if not 0 < rate <= FAR:
        raise InvalidRequest(f"rate must be above 0 and up to {FAR:g}, found {digits(rate)}")
    if not 0 <= steps <= MAX_STEPS:
        raise InvalidRequest(f"there may be 0 to {MAX_STEPS} steps, found {steps}")
    return Descent(plan, features, target.astype(np.int64 if classes else np.float32), classes, start, rate, steps)


def _array(name: str, options: Mapping[str, Any], axes: int) -> Array:
    value = options.get(name)
    try:
        array = np.array(value, float) if isinstance(value, Sequence) and not isinstance(value, str) else None
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None or array.ndim != axes or not np.all(np.abs(array) < FAR):
        kind = "a list of lists of one length" if axes > 1 else "a list"
        raise InvalidRequest(f"{name} must be {kind}, of numbers between {-FAR:g} and {FAR:g}")
    return array
