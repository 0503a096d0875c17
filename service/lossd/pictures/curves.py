"""Curves of losses: the requests for the service, and the document that their answers make.

Nothing is evaluated here: a curve consists of the service's answers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lossd.losses.registry import Loss, closest, find_loss
from lossd.losses.types import TensorType
from lossd.pictures.axes import Axis, Path, Scene, axes_of
from lossd.request.plan import Plan
from lossd.request.planning import make_plan
from lossd_client.errors import InvalidRequest, NotEvaluable
from lossd_client.wire import json
from lossd_client.wire.quoting import digits, quoted

__all__ = ["OPTIONS", "Curve", "Line", "PointAnswer", "curve"]

Array = np.ndarray[Any, Any]

OPTIONS = ("x", "with", "low", "high", "points", "theme")
"""The names of a curve's own options; no parameter of a loss has one of them."""

MAX_LINES, MAX_POINTS, MAX_REQUESTS = 12, 501, 1200
POINTS_OF_ROWS, POINTS_OF_REQUESTS = 201, 81


class PointAnswer(NamedTuple):
    """The service's answer to one request of a line.

    Attributes:
        loss: A number, or one for each row.
        gradients: The gradient by each input.
    """

    loss: Any
    gradients: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a curve.

    Attributes:
        loss: The loss with the chosen parameters.
        case: The axis's case; empty if the axis has only one.
        plan: The checked request.
        request: The request as JSON, without inputs.
        path: The inputs at every point.
        together: Whether one request holds all points as rows; else each point is a request.
    """

    loss: Mapping[str, Any]
    case: str
    plan: Plan
    request: Mapping[str, Any]
    path: Path
    together: bool

    @property
    def inputs(self) -> list[Mapping[str, Array]]:
        """The inputs of each request."""
        inputs = self.path.inputs
        if self.together:
            return [{name: tensor.reshape(-1, *tensor.shape[2:]) for name, tensor in inputs.items()}]
        return [dict(zip(inputs, point, strict=True)) for point in zip(*inputs.values(), strict=True)]

    @property
    def label(self) -> str:
        """The text that distinguishes the line from the others."""
        parameters = (
            f"{n} {v if isinstance(v, str) else json.dumps(v).decode()}" for n, v in self.loss.items() if n != "name"
        )
        return ", ".join(part for part in (self.loss["name"], *parameters, self.case) if part)

    def series(self, answers: Sequence[PointAnswer]) -> dict[str, Any]:
        """Return the line's entry in the document.

        Args:
            answers: The answer to each request, in the order of ``inputs``.
        """
        points = len(next(iter(self.path.inputs.values())))
        loss = np.concatenate([np.ravel(np.asarray(answer.loss, float)) for answer in answers])
        slope = np.zeros(points)
        for name, toward in self.path.toward.items():
            gradient = np.concatenate([np.ravel(answer.gradients[name]) for answer in answers])
            shape = self.path.inputs[name].shape
            slope += (gradient.astype(float).reshape(shape) * toward).reshape(points, -1).sum(1)
        return {
            "label": self.label,
            "name": self.loss["name"],
            "parameters": {name: value for name, value in self.loss.items() if name != "name"},
            "case": self.case or None,
            "loss": loss.reshape(points, -1).sum(1).tolist(),
            "gradient": slope.tolist(),
            "gradient_of": self.path.subject,
        }


@dataclass(frozen=True, eq=False)
class Curve:
    """Lines over one axis.

    Attributes:
        axis: The axis of all lines.
        axes: The names of all axes of the loss.
        x: The points.
        lines: The lines; those of the first loss come first.
    """

    axis: Axis
    axes: Sequence[str]
    x: Array
    lines: Sequence[Line]

    def document(self, answers: Sequence[Sequence[PointAnswer]]) -> dict[str, Any]:
        """Return the curve's JSON document, given the answers to each line's requests."""
        return {
            "axis": self.axis.name,
            "label": self.axis.label,
            "axes": list(self.axes),
            "x": self.x.tolist(),
            "series": [line.series(line_answers) for line, line_answers in zip(self.lines, answers, strict=True)],
        }


def curve(
    name: str,
    parameters: Mapping[str, Sequence[Any]] | None = None,
    *,
    others: Sequence[str] = (),
    x: str | None = None,
    low: float | None = None,
    high: float | None = None,
    points: int | None = None,
) -> Curve:
    """Return the curve of a loss, with the requests that it needs.

    Args:
        name: The loss's name.
        parameters: Values to draw a line for; several values of several parameters give a line for each combination.
        others: Other losses to draw, with their defaults.
        x: The name of the axis; the default is the loss's first.
        low: The lowest point; the default is the axis's.
        high: The highest point; the default is the axis's.
        points: How many points, up to 501; the default is 201, or 81 if each is a request of its own.

    Raises:
        UnknownLoss: A name is no loss's.
        NotEvaluable: A loss has no curve, or none along this axis.
        InvalidRequest: The parameters are invalid or too many, or no axis has that name.
    """
    loss, parameters = find_loss(name), parameters or {}
    names = [axis.name for axis in axes_of(loss)]
    if x is not None and x not in names:
        raise InvalidRequest(f"{name} has no axis {quoted(x)}; x can be {' or '.join(names)}")
    axis = _axis(loss, x or names[0])
    _check_names(loss, parameters)
    _check_lines(axis, parameters, others)
    wanted = [
        {"name": name, **dict(zip(parameters, values, strict=True))}
        for values in itertools.product(*parameters.values())
    ]
    wanted += [{"name": other} for other in others]
    combinations = [
        (fields, loss_axis, case)
        for fields in wanted
        for loss_axis in [_axis(find_loss(fields["name"]), axis.name)]
        for case in loss_axis.cases
    ]
    by_rows = all(_by_rows(find_loss(fields["name"])) for fields in wanted)
    along = _points(axis, low, high, points or (POINTS_OF_ROWS if by_rows else POINTS_OF_REQUESTS))
    if not by_rows and len(combinations) * len(along) > MAX_REQUESTS:
        raise InvalidRequest(
            f"these would be {len(combinations)} times {len(along)} requests, each point being one; "
            f"there may be {MAX_REQUESTS}: ask for fewer lines or points"
        )
    return Curve(
        axis, names, along, [_line(loss_axis, case, fields, along) for fields, loss_axis, case in combinations]
    )


def _check_names(loss: Loss, names: Iterable[str]) -> None:
    """Check that the loss has parameters of these names."""
    known = tuple(parameter.name for parameter in loss.parameters)
    for name in names:
        if name == "reduction":
            raise InvalidRequest(
                "every point of a curve is a request of its own: there is nothing for reduction to reduce"
            )
        if name not in known:
            near = closest(name, known, {})
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise InvalidRequest(f"{loss.name} has no parameter {quoted(name)}; {hint}")


def _check_lines(axis: Axis, parameters: Mapping[str, Sequence[Any]], others: Sequence[str]) -> None:
    """Check the number of lines before any is made: a short request can ask for very many.

    Raises:
        InvalidRequest: There would be too many lines.
    """
    least = math.prod(map(len, parameters.values())) * len(axis.cases) + len(others)
    if least <= MAX_LINES:
        least += sum(len(_axis(find_loss(other), axis.name).cases) - 1 for other in others)
    if least > MAX_LINES:
        found = str(least) if least < 10**6 else "millions of"
        raise InvalidRequest(f"these would be {found} lines; there may be {MAX_LINES}")


def _axis(loss: Loss, name: str) -> Axis:
    axes = {axis.name: axis for axis in axes_of(loss)}
    if name not in axes:
        raise NotEvaluable(f"{loss.name} cannot be drawn along {name!r}, only along {' or '.join(axes)}")
    return axes[name]


def _points(axis: Axis, low: float | None, high: float | None, count: int) -> Array:
    low, high = axis.low if low is None else low, axis.high if high is None else high
    least, most = axis.within
    if not least <= low < high <= most:
        raise InvalidRequest(
            f"low must be below high, and both within {digits(least)} and {digits(most)}; found {digits(low)} and "
            f"{digits(high)}"
        )
    if not 2 <= count <= MAX_POINTS:
        raise InvalidRequest(f"there may be 2 to {MAX_POINTS} points, found {count}")
    return np.linspace(low, high, count)


def _by_rows(loss: Loss) -> bool:
    """Return whether one request can hold all points as rows, because the rows are independent."""
    return loss.kind == "rows" and "none" in loss.reductions


def _line(axis: Axis, case: str, fields: Mapping[str, Any], x: Array) -> Line:
    loss = find_loss(fields["name"])
    rows = _by_rows(loss)
    request: dict[str, Any] = {"loss": {**fields, **({"reduction": "none"} if rows else {})}, "outputs": ["loss"]}
    plan = make_plan(request)
    types = _types(plan)
    if loss.variadic is not None and not {"prediction"} <= types.keys() <= {"prediction", "target"}:
        raise NotEvaluable(
            f"a formula is drawn along its error, so its inputs must be prediction and target; found {', '.join(types)}"
        )
    path = axis.path(x, Scene(types, plan.parameters, case))
    request["outputs"] = ["loss", *(f"gradient.{name}" for name in path.toward)]
    plan = make_plan(request)
    return Line(fields, case, plan, request, path, rows)


def _types(plan: Plan) -> Mapping[str, TensorType]:
    """Return the types of the required inputs; for a composed loss, those of its last term."""
    if plan.terms:
        return _types(plan.terms[-1].plan)
    return {entry.name: plan.types(entry)[0] for entry in plan.inputs if not entry.optional}
