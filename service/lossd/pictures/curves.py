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

from lossd.losses.lookup import closest, find_loss
from lossd.losses.registry import Loss
from lossd.losses.types import TensorType
from lossd.pictures.axes import all_axes, axes_of
from lossd.pictures.axis import Axis, Path, Scene
from lossd.pictures.jumps import jumps
from lossd.request.plan import Plan
from lossd.request.planning import make_plan
from lossd_client.errors import InvalidRequest, NotEvaluable
from lossd_client.wire import json
from lossd_client.wire.quoting import digits, quoted

__all__ = ["AT", "OPTIONS", "Curve", "Line", "PointAnswer", "curve"]

Array = np.ndarray[Any, Any]

OPTIONS = ("x", "with", "low", "high", "points", "theme", "requests")
"""The names of a curve's own options; no parameter of a loss has one of them."""

AT = "at."
"""The prefix of the axis's numbers in a query."""

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
        plans: The checked requests.
        requests: The requests as JSON, without inputs.
        path: The inputs at every point.
        together: Whether one request holds all points as rows; else each point is a request.
    """

    loss: Mapping[str, Any]
    case: str
    plans: Sequence[Plan]
    requests: Sequence[Mapping[str, Any]]
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

    def first(self) -> dict[str, Any]:
        """Return the first request as JSON, with its inputs rounded to 8 digits."""
        inputs = {name: _rounded(tensor.tolist()) for name, tensor in self.inputs[0].items()}
        return {**self.requests[0], "inputs": inputs}

    def series(self, answers: Sequence[PointAnswer], x: Array) -> dict[str, Any]:
        """Return the line as the document has it.

        Args:
            answers: The answer to each request, in the order of ``inputs``.
            x: The points.
        """
        points = len(next(iter(self.path.inputs.values())))
        loss = np.concatenate([np.ravel(np.asarray(answer.loss, float)) for answer in answers])
        slope = np.zeros(points)
        for name, toward in self.path.toward.items():
            gradient = np.concatenate([np.ravel(answer.gradients[name]) for answer in answers])
            shape = self.path.inputs[name].shape
            slope += (gradient.astype(float).reshape(shape) * toward).reshape(points, -1).sum(1)
        values = loss.reshape(points, -1).sum(1)
        return {
            "label": self.label,
            "name": self.loss["name"],
            "parameters": {name: value for name, value in self.loss.items() if name != "name"},
            "case": self.case or None,
            "loss": values.tolist(),
            "gradient": slope.tolist() if self.path.toward else None,
            "jumps": [jump._asdict() for jump in jumps(x, values, slope)] if self.path.toward else [],
            "gradient_of": self.path.subject,
        }


@dataclass(frozen=True, eq=False)
class Curve:
    """Lines over one axis.

    Attributes:
        axis: The axis of all lines.
        label: The axis's label, with its given numbers.
        axes: The names of all the axes that the loss has.
        x: The points.
        lines: The lines; those of the first loss come first.
    """

    axis: Axis
    label: str
    axes: Sequence[str]
    x: Array
    lines: Sequence[Line]

    def document(self, answers: Sequence[Sequence[PointAnswer]], requests: bool = False) -> dict[str, Any]:
        """Return the curve as JSON has it.

        Args:
            answers: The answers to each line's requests.
            requests: Whether each line has its first request and the number of its requests.
        """
        series = [line.series(line_answers, self.x) for line, line_answers in zip(self.lines, answers, strict=True)]
        if requests:
            for line, entry in zip(self.lines, series, strict=True):
                entry["requests"] = {"count": len(line.requests), "first": line.first()}
        return {
            "axis": self.axis.name,
            "label": self.label,
            "axes": list(self.axes),
            "x": self.x.tolist(),
            "series": series,
        }


def curve(
    name: str,
    parameters: Mapping[str, Sequence[Any]] | None = None,
    *,
    others: Sequence[str] = (),
    at: Mapping[str, Any] | None = None,
    x: str | None = None,
    low: float | None = None,
    high: float | None = None,
    points: int | None = None,
) -> Curve:
    """Return the curve of a loss, with the requests that it needs.

    Args:
        name: The loss.
        parameters: Values to draw a line for; with several for several parameters, every combination is a line.
        others: Losses to lay over it, with their defaults.
        at: Values of the axis's further numbers, by name; the axis has their defaults.
        x: The name of the axis; the loss's first by default. Losses without a default axis need it.
        low: Where it begins; where the axis says by default.
        high: Where it ends.
        points: How many points, up to 501; by default 201, or 81 where each is a request of its own.

    Raises:
        UnknownLoss: A name is no loss's.
        NotEvaluable: A loss has no curve, or none along this axis.
        InvalidRequest: The parameters are invalid or too many, or no axis has that name.
    """
    loss, parameters, at = find_loss(name), parameters or {}, at or {}
    names = [axis.name for axis in (axes_of(loss) if x is None else all_axes(loss) or axes_of(loss))]
    if x is not None and x not in names:
        raise InvalidRequest(f"{name} has no axis {quoted(x)}; x can be {' or '.join(names)}")
    axis = next(axis for axis in all_axes(loss) if axis.name == (x or names[0]))
    values = axis.settings(at)[0][1]
    _check_names(loss, parameters)
    _check_lines(axis, parameters, others, at)
    objects = [
        {"name": name, **dict(zip(parameters, values, strict=True))}
        for values in itertools.product(*parameters.values())
    ]
    objects += [{"name": other} for other in others]
    along_each = [axis if fields["name"] == name else _axis(find_loss(fields["name"]), axis.name) for fields in objects]
    combinations = [
        (fields, own_axis, case, numbers)
        for fields, own_axis in zip(objects, along_each, strict=True)
        for case, numbers in _settings(own_axis, at)
    ]
    by_rows = all(_by_rows(find_loss(fields["name"])) for fields in objects)
    along = _points(axis, low, high, points or (POINTS_OF_ROWS if by_rows else POINTS_OF_REQUESTS))
    if not by_rows and len(combinations) * len(along) > MAX_REQUESTS:
        raise InvalidRequest(
            f"these would be {len(combinations)} times {len(along)} requests, each point being one; "
            f"there may be {MAX_REQUESTS}: ask for fewer lines or points"
        )
    lines = [_line(own_axis, case, numbers, fields, along) for fields, own_axis, case, numbers in combinations]
    return Curve(axis, axis.labelled(values), names, along, lines)


def _check_names(loss: Loss, names: Iterable[str]) -> None:
    """Check that the loss has parameters of these names."""
    known = tuple(parameter.name for parameter in loss.parameters)
    for name in names:
        if name in ("reduction", "nan_targets"):
            raise InvalidRequest(
                f"every point of a curve is a request of its own: there is nothing for {name} to "
                + ("reduce" if name == "reduction" else "leave out")
            )
        if name not in known:
            near = closest(name, known)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise InvalidRequest(f"{loss.name} has no parameter {quoted(name)}; {hint}")


def _settings(axis: Axis, at: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """Return the cases of an axis and its given numbers; an axis of another loss may lack numbers of the request."""
    return axis.settings({name: value for name, value in at.items() if name in axis.given})


def _check_lines(
    axis: Axis, parameters: Mapping[str, Sequence[Any]], others: Sequence[str], at: Mapping[str, Any]
) -> None:
    """Count the lines before any is made, for their number is a product, which a short request can make very large.

    Raises:
        InvalidRequest: There would be too many lines.
    """
    least = math.prod(map(len, parameters.values())) * len(_settings(axis, at)) + len(others)
    if least <= MAX_LINES:
        least += sum(len(_settings(_axis(find_loss(other), axis.name), at)) - 1 for other in others)
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


def _line(axis: Axis, case: str, numbers: Mapping[str, float], fields: Mapping[str, Any], x: Array) -> Line:
    loss = find_loss(fields["name"])
    rows = _by_rows(loss)
    start = {name: float(x[0]) for name in axis.sets}
    request: dict[str, Any] = {
        "loss": {**fields, **start, **({"reduction": "none"} if rows else {})},
        "outputs": ["loss"],
    }
    plan = make_plan(request)
    types = _types(plan)
    if loss.variadic is not None and not {"prediction"} <= types.keys() <= {"prediction", "target"}:
        raise NotEvaluable(
            f"a formula is drawn along its error, so its inputs must be prediction and target; found {', '.join(types)}"
        )
    path = axis.path(x, Scene(types, plan.parameters, numbers))
    request["outputs"] = ["loss", *(f"gradient.{name}" for name in path.toward)]
    requests = [request] if rows else [request] * len(x)
    if path.parameters:
        points = ({name: float(values[i]) for name, values in path.parameters.items()} for i in range(len(x)))
        requests = [{**request, "loss": {**request["loss"], **point}} for point in points]
        return Line(fields, case, [make_plan(each) for each in requests], requests, path, rows)
    return Line(fields, case, [make_plan(request)] * len(requests), requests, path, rows)


def _rounded(value: Any) -> Any:
    """Return nested lists of numbers with 8 significant digits, so that a request reads well."""
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _types(plan: Plan) -> Mapping[str, TensorType]:
    """Return the types of the required inputs; for a composed loss, those of its last term."""
    if plan.terms:
        return _types(plan.terms[-1].plan)
    return {entry.name: plan.types(entry)[0] for entry in plan.inputs if not entry.optional}
