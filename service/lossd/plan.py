"""From a request to a job: every check that needs no tensor's content.

A :class:`Plan` is the request without its tensors, checked once and shared by all requests with the same text. Its
:meth:`Plan.job` checks the tensors' names, dtypes and shapes against the loss's signature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from lossd import metrics
from lossd.job import MAX_PAIRS, Column, Job, Recipe
from lossd.losses.registry import Input, Loss, Refinement, closest, find
from lossd.losses.types import PerAxis, TensorType
from lossd.request import Envelope, GradientOptions, MetricOptions, check_integers, validated
from lossd.shapes import expected, match, resolve, show
from lossd.terms import Term, composed_inputs, plan_term
from lossd_client.errors import (
    DtypeMismatch,
    Fault,
    InvalidRequest,
    MissingInput,
    NotEvaluable,
    ShapeMismatch,
    TooLarge,
    UnknownInput,
)
from lossd_client.wire import DTYPES
from lossd_client.wire.quoting import quoted

__all__ = ["Layout", "Plan", "universal_inputs"]

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""The tensors of a request: name to dtype and shape."""

HALF = ("float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class Plan:
    """A request without its tensors, checked.

    Attributes:
        loss: The loss; None where only metrics are asked.
        task: The task whose metrics are computed.
        inputs: The tensors it takes.
        refinement: What its parameters make of the inputs' types.
        parameters: Every parameter of the loss, defaults filled in.
        reduction: How the unreduced loss becomes the answer.
        want_loss: Whether the loss is asked for.
        gradients: The inputs whose gradients are asked for.
        gradient_options: What happens to them.
        metrics: The names of the metrics asked for.
        metric_options: How they are computed.
        terms: The losses it is made of, where it is composed.
    """

    loss: Loss | None
    task: str
    inputs: tuple[Input, ...]
    refinement: Refinement
    parameters: Mapping[str, Any]
    reduction: str
    want_loss: bool
    gradients: tuple[str, ...]
    gradient_options: GradientOptions
    metrics: tuple[str, ...]
    metric_options: MetricOptions
    terms: tuple[Term, ...] = ()

    @staticmethod
    def of(request: Any) -> Plan:
        """The plan of a request's JSON object, ``inputs`` left out.

        Raises:
            UnknownLoss: With the nearest names.
            InvalidRequest: With a pointer to each field that is unknown, mistyped or out of range.
        """
        if not isinstance(request, dict):
            raise InvalidRequest("the request must be a JSON object with the fields loss and inputs")
        check_integers(request)
        envelope = validated(Envelope, request, "")
        if envelope.loss is None:
            return _metrics_plan(envelope)
        return _loss_plan(envelope, envelope.loss)

    def job(self, layout: Layout) -> Job:
        """The job for tensors of these dtypes and shapes.

        Raises:
            MissingInput, UnknownInput, DtypeMismatch, ShapeMismatch: Naming the tensor, what was expected and found.
        """
        counted = self.counted(layout)
        if counted is not self:
            return counted.job(layout)
        dims: dict[str, Any] = {}
        self._check_names(layout)
        shapes_from: dict[str, str] = {}
        domains = {
            entry.name: self._bind(entry, layout, dims, shapes_from) for entry in self.inputs if entry.name in layout
        }
        self._check_axes(dims)
        kind = self.loss.kind if self.loss else "rows"
        rows = int(dims.get("N", 1))
        compute = self._compute_dtype(layout)
        value = self._value_shape(dims, layout)
        if value is not None and 0 in value:
            raise ShapeMismatch(
                f"{self._subject} has nothing left of inputs of these shapes: the unreduced loss would have shape "
                f"{show(value)}"
            )
        if "cotangent" in layout:
            self._check_cotangent(layout, value)

        def column(name: str, dtype: str, shape: tuple[int, ...], per_row: bool) -> Column:
            return Column(name, dtype, shape[1:] if per_row else shape, per_row)

        per_row = {name: kind == "rows" and self._leads_with_rows(name) for name in layout}
        inputs = tuple(column(name, *layout[name], per_row[name]) for name in sorted(layout))
        answers = [
            column(f"gradient.{name}", self._gradient_dtype(layout[name][0]), layout[name][1], per_row[name])
            for name in self.gradients
        ]
        if self.want_loss and self.reduction == "none" and value is not None:
            answers.append(column("loss", compute, value, kind == "rows"))
        varying = self._varying if kind in ("rows", "stack") else ()
        recipe = Recipe(
            loss=self.loss.name if self.loss else None,
            task=self.task,
            kind=kind,
            parameters={n: v for n, v in self.parameters.items() if n not in varying},
            numbers=varying,
            reduction=self.reduction,
            want_loss=self.want_loss,
            gradients=self.gradients,
            gradient_options=self.gradient_options.model_dump(exclude={"dtype"}),
            metrics=self.metrics,
            metric_options=self.metric_options.model_dump(exclude={"names", "task"}) if self.metrics else {},
            terms=tuple(term.record(position, layout) for position, term in enumerate(self.terms)),
            domains=domains,
            classes=dims.get("C"),
            pairs=self._pairs(layout),
            value=() if value is None else value[1:] if kind == "rows" else value,
            inputs=inputs,
            answers=tuple(answers),
        )
        return Job(Recipe.parse(recipe.text), rows, tuple(float(self.parameters[n]) for n in varying))

    def counted(self, layout: Layout) -> Plan:
        """The plan with each series of inputs (``prediction.*``) as long as the request has it, and at least 1 long.

        Raises:
            InvalidRequest: A gradient is asked for that the series is too short for.
        """
        stems = [entry.name[:-1] for entry in self.inputs if entry.name.endswith(".*")]
        if not stems:
            return self
        length = max(1, *(sum(name.startswith(stem) for name in layout) for stem in stems))

        def each(name: str) -> list[str]:
            return [f"{name[:-1]}{i}" for i in range(length)] if name.endswith(".*") else [name]

        inputs = tuple(replace(entry, name=name) for entry in self.inputs for name in each(entry.name))
        gradients = tuple(dict.fromkeys(n for name in self.gradients for n in each(name)))
        sent = {entry.name for entry in inputs}
        for name in gradients:
            if name not in sent:
                raise InvalidRequest(f"the gradient of {quoted(name)} is asked for, which was not sent")
        return replace(self, inputs=inputs, gradients=gradients)

    @property
    def _varying(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.loss.parameters if p.varies) if self.loss else ()

    @property
    def _subject(self) -> str:
        return self.loss.name if self.loss else f"the {self.task} metrics"

    def types(self, entry: Input) -> tuple[TensorType, ...]:
        """The types an input may have, given the parameters."""
        refined = self.refinement.inputs.get(entry.name)
        return (refined,) if refined else entry.types

    def kinds(self, name: str) -> frozenset[str]:
        """The kinds of dtype an input may have; both where there is no such input, which is for :meth:`job` to say."""
        entry = next((e for e in self.inputs if e.name in (name, _series(name))), None)
        return frozenset(("float", "integer") if entry is None else (k for t in self.types(entry) for k in t.kinds))

    def _check_names(self, layout: Layout) -> None:
        known = [entry.name for entry in self.inputs]
        missing = [e.name for e in self.inputs if not e.optional and e.name not in layout]
        if missing:
            takes = ", ".join(f"{e.name}{' (optional)' if e.optional else ''}" for e in self.inputs)
            constant = " (or give it a value in parameters)" if self.loss and self.loss.variadic else ""
            raise MissingInput(
                f"{self._subject} needs the input {missing[0]}, which was not sent{constant}; it takes {takes}"
            )
        for name in layout:
            if name not in known:
                near = closest(name, tuple(known), {})
                hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
                if name in self.parameters:
                    hint = "it is a parameter: send it as a number or list with the loss's name"
                raise UnknownInput(f"{self._subject} takes no input {quoted(name)}; {hint}")

    def _bind(self, entry: Input, layout: Layout, dims: dict[str, Any], shapes_from: dict[str, str]) -> str:
        """Check one tensor, bind its axes' names, and say what its entries are."""
        name = entry.name
        dtype, shape = layout[name]
        if name == "cotangent":
            if DTYPES[dtype].kind != "float":
                raise DtypeMismatch(f"cotangent must be a float tensor, found {dtype}")
            return "real"
        candidates = self.types(entry)
        welcome = [t for t in candidates if t.takes(dtype)]
        if not welcome:
            kinds = " or ".join(dict.fromkeys(k for t in candidates for k in t.kinds))
            raise DtypeMismatch(f"{name} of {self._subject} must be a tensor of {kinds}s, found {dtype}")
        for candidate in welcome:
            bound = match(candidate.pattern, shape, dims)
            if bound is not None:
                for axis in bound.keys() - dims.keys():
                    shapes_from[axis] = name
                dims.update(bound)
                if math.prod(shape) == 0:
                    raise ShapeMismatch(f"{name} has shape {show(shape)}: an empty tensor has no loss")
                return candidate.domain
        fitting = " or ".join(expected(t.pattern, dims) for t in welcome)
        sources = dict.fromkeys(shapes_from[a] for t in welcome for a in t.pattern if a in shapes_from)
        origin = ", ".join(f"{s} is {show(layout[s][1])}" for s in sources if s != name)
        raise ShapeMismatch(
            f"{name} has shape {show(shape)}, expected {fitting}"
            + (f" since {origin}" if origin else "")
            + "; shapes must match exactly, nothing is broadcast"
        )

    def _check_axes(self, dims: Mapping[str, Any]) -> None:
        """Lists that hold one entry for each step of an axis have that axis's length."""
        for parameter in self.loss.parameters if self.loss else ():
            value = self.parameters[parameter.name]
            axis = _per_axis(parameter.annotation) if isinstance(value, list) else None
            if axis is None:
                continue
            length = dims.get(axis)
            if length is None and axis == "L":  # labels are the last axis
                trailing = dims.get("*", ())
                length = trailing[-1] if trailing else 1
            if length is not None and len(value) != length:
                detail = f"{parameter.name} has {len(value)} entries, prediction has {length} along axis {axis}"
                raise InvalidRequest(detail, errors=[Fault(pointer=f"/loss/{parameter.name}", detail=detail)])

    def _check_cotangent(self, layout: Layout, value: tuple[int, ...] | None) -> None:
        shape = layout["cotangent"][1]
        needed = value if self.reduction == "none" else ()
        if needed is not None and shape != needed:
            raise ShapeMismatch(
                f"cotangent has shape {show(shape)}, expected {show(needed)}: the shape of the loss with "
                f"reduction {self.reduction}"
            )

    def _pairs(self, layout: Layout) -> int:
        shapes = {name: shape for name, (_, shape) in layout.items()}
        of_metrics = metrics.pairs(self.task, shapes) if self.metrics else 0
        of_loss = self.loss.pairs(shapes) if self.loss and self.loss.pairs else 0
        if max(of_loss, of_metrics) > MAX_PAIRS:
            raise TooLarge(
                f"{self._subject if of_loss > MAX_PAIRS else f'the {self.task} metrics'} would compare "
                f"{max(of_loss, of_metrics)} pairs of entries, at most {MAX_PAIRS} are compared; send smaller batches"
            )
        return of_loss if self.loss and self.loss.kind == "stack" else 0  # requests of rows differ in how many

    def _compute_dtype(self, layout: Layout) -> str:
        extras = ("sample_weight", "cotangent")
        wide = any(dtype == "float64" for name, (dtype, _) in layout.items() if name not in extras)
        return "float64" if wide else "float32"

    def _gradient_dtype(self, dtype: str) -> str:
        return self.gradient_options.dtype or ("float32" if dtype in HALF else dtype)

    def _leads_with_rows(self, name: str) -> bool:
        if name == "cotangent":
            return self.reduction == "none"
        entry = next(e for e in self.inputs if e.name == name)
        return all(t.pattern[:1] == ("N",) for t in self.types(entry))

    def _value_shape(self, dims: Mapping[str, Any], layout: Layout) -> tuple[int, ...] | None:
        if self.loss is None:
            return None
        if self.loss.shape is not None:
            try:
                return self.loss.shape(self.parameters, {name: shape for name, (_, shape) in layout.items()})
            except ValueError as error:
                raise ShapeMismatch(f"{self.loss.name}: {error}") from None
        returns = self.refinement.returns or self.loss.returns
        return resolve(returns.pattern, dims)


def _loss_plan(envelope: Envelope, fields: dict[str, Any]) -> Plan:
    if envelope.task is not None:
        raise InvalidRequest("give either loss or task: task asks for metrics without a loss (metrics.task changes it)")
    name = fields.get("name")
    if not isinstance(name, str):
        raise InvalidRequest(
            "loss must hold its name, a string", errors=[Fault(pointer="/loss/name", detail="a string is required")]
        )
    loss = find(name)
    if (reason := loss.unavailable()) is not None:
        raise NotEvaluable(reason)
    values = validated(loss.model, fields, "/loss")
    parameters = {p.name: getattr(values, p.name) for p in loss.parameters}
    try:
        refinement = loss.refine(parameters)
    except ValueError as error:  # a combination of parameters that has no meaning
        pointer = f"/loss{getattr(error, 'pointer', '')}"
        raise InvalidRequest(f"{name}: {error}", errors=[Fault(pointer=pointer, detail=str(error))]) from None
    inputs = (*loss.request_inputs, *_variadic_inputs(loss, refinement), *universal_inputs(loss))
    terms: tuple[Term, ...] = ()
    if loss.terms is not None:
        terms = tuple(
            plan_term(position, term, envelope, _loss_plan) for position, term in enumerate(loss.terms(parameters))
        )
        inputs = composed_inputs(inputs, terms)
    outputs = envelope.outputs if envelope.outputs is not None else ["loss", "gradient", "metrics"]
    gradients = _gradients(name, [entry.name for entry in inputs if entry.differentiable], outputs)
    task = envelope.metrics.task or refinement.task or (terms[0].plan.task if terms else loss.task)
    if envelope.metrics.task and not terms:
        metrics.check_task(task, instead_of=refinement.task or loss.task)
    metrics.check_options(task, envelope.metrics.model_dump())
    wanted = metrics.resolve(task, envelope.metrics.names) if "metrics" in outputs else ()
    return Plan(
        loss=loss,
        task=task,
        inputs=inputs,
        refinement=refinement,
        parameters=parameters,
        reduction=getattr(values, "reduction"),  # noqa: B009  (a field every model has, its base lacks)
        want_loss="loss" in outputs,
        gradients=gradients,
        gradient_options=envelope.gradient,
        metrics=() if terms else wanted,
        metric_options=envelope.metrics,
        terms=tuple(term.asked(gradients, wanted if i == 0 else ()) for i, term in enumerate(terms)),
    )


def _metrics_plan(envelope: Envelope) -> Plan:
    if envelope.task is None:
        raise InvalidRequest("the request names neither a loss nor a task; see GET /v1/losses and GET /v1/metrics")
    metrics.check_task(envelope.task)
    if envelope.outputs is not None and envelope.outputs != ["metrics"]:
        raise InvalidRequest('without a loss there is only the output "metrics"')
    options = envelope.metrics.model_dump()
    metrics.check_options(envelope.task, options)
    return Plan(
        loss=None,
        task=envelope.task,
        inputs=metrics.inputs(envelope.task, options),
        refinement=Refinement(),
        parameters={"ignore_index": options["ignore_index"], "format": options["format"]},
        reduction="none",
        want_loss=False,
        gradients=(),
        gradient_options=envelope.gradient,
        metrics=metrics.resolve(envelope.task, envelope.metrics.names),
        metric_options=envelope.metrics,
    )


SAMPLE_WEIGHT = Input(
    "sample_weight",
    (TensorType("nonnegative", ("float", "integer"), ("N",)),),
    differentiable=False,
    optional=True,
    summary="What each sample counts, >= 0; 0 drops it.",
)
COTANGENT = Input(
    "cotangent",
    (TensorType("real", ("float",), ("*",)),),
    differentiable=False,
    optional=True,
    summary="Upstream gradient, in the shape of the answered loss; the gradient becomes the vector-Jacobian product.",
)


def universal_inputs(loss: Loss) -> tuple[Input, ...]:
    """The inputs every loss of its kind takes beside its own."""
    return (SAMPLE_WEIGHT, COTANGENT) if loss.kind == "rows" else (COTANGENT,)


def _variadic_inputs(loss: Loss, refinement: Refinement) -> tuple[Input, ...]:
    """The inputs that only the parameters name."""
    if loss.variadic is None:
        return ()
    declared = {entry.name for entry in loss.inputs}
    return tuple(
        Input(name, (of,), differentiable=True, optional=False, summary="Named by the parameters.")
        for name, of in refinement.inputs.items()
        if name not in declared
    )


def _gradients(loss: str, differentiable: Sequence[str], outputs: Sequence[str]) -> tuple[str, ...]:
    names: list[str] = []
    for position, output in enumerate(outputs):
        if output == "gradient":
            names.extend(["prediction"] if "prediction" in differentiable else differentiable)
        elif output.startswith("gradient."):
            name = output.removeprefix("gradient.")
            if name not in differentiable and _series(name) not in differentiable:
                detail = f"{loss} has gradients for {', '.join(differentiable)}, not for {quoted(name)}"
                raise InvalidRequest(detail, errors=[Fault(pointer=f"/outputs/{position}", detail=detail)])
            names.append(name)
        elif output not in ("loss", "metrics"):
            detail = f"{quoted(output)} is not an output; there are loss, gradient, gradient.<input> and metrics"
            raise InvalidRequest(detail, errors=[Fault(pointer=f"/outputs/{position}", detail=detail)])
    return tuple(dict.fromkeys(names))


def _series(name: str) -> str:
    """The series that an input of this name would be one of."""
    return f"{name.rpartition('.')[0]}.*"


def _per_axis(annotation: Any) -> str | None:
    for marker in getattr(annotation, "__metadata__", ()):
        if isinstance(marker, PerAxis):
            return marker.axis
    return next((axis for arm in get_args(annotation) if (axis := _per_axis(arm))), None)
