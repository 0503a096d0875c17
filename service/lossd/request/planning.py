"""From a request to a plan: every check that needs no tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

import orjson
from pydantic import BaseModel

import lossd.metrics as metrics
from lossd.caches import Cache
from lossd.losses.lookup import closest, find_loss
from lossd.losses.registry import REGISTRY, Input, Loss, Refinement
from lossd.losses.types import Domain, Kind, TensorType
from lossd.request.fields import check_entries, validated
from lossd.request.options import Envelope, GradientOptions, HessianOptions, MetricOptions, spelled_out
from lossd.request.outputs import check_second, requested, series
from lossd.request.plan import Plan, TermPlan
from lossd.request.terms import common_inputs, composed_inputs, own_masks, plan_term
from lossd_client.errors import Fault, InvalidRequest, NotEvaluable, Problem

__all__ = ["elsewhere", "listed_inputs", "make_plan", "plan_bytes", "universal_inputs", "with_numbers"]

TEMPLATE_BYTES = 8 << 10  # much longer texts are not cached


def make_plan(request: Any) -> Plan:
    """Return the plan of a request's JSON object without ``inputs``.

    Raises:
        UnknownLoss: The loss is unknown; the detail names the closest ones.
        InvalidRequest: A field is unknown, mistyped or out of range; ``errors`` points at each one.
    """
    if not isinstance(request, dict):
        raise InvalidRequest("the request must be a JSON object with the fields loss and inputs")
    check_entries(request)
    request = spelled_out(request)
    return _plan_from_template(request) or _plan(request)


def _plan(request: dict[str, Any]) -> Plan:
    envelope = validated(Envelope, request, "", partial(elsewhere, request.get("loss")))
    if envelope.loss is None:
        return _metrics_plan(envelope)
    return _loss_plan(envelope, envelope.loss)


def _plan_from_template(request: Mapping[str, Any]) -> Plan | None:
    """Return the plan of a request whose plain-number parameters replace those of a template; None if it has none.

    None also stands for a faulty request: planning it as a whole finds the words.
    """
    fields = request.get("loss")
    if not isinstance(fields, dict) or not isinstance(name := fields.get("name"), str):
        return None
    loss = REGISTRY.get(name)
    if loss is None or fields.keys().isdisjoint(loss.varying):
        return None
    shared = {**request, "loss": {name: value for name, value in fields.items() if name not in loss.varying}}
    try:
        text = orjson.dumps(shared)
        if len(text) > TEMPLATE_BYTES:
            return None
        template = TEMPLATES.get(text)
        if template is None:
            template = _plan(shared)
            TEMPLATES.put(text, template, plan_bytes(text, template))
    except (Problem, ValueError, TypeError):
        return None
    return with_numbers(template, fields)


def with_numbers(plan: Plan, fields: dict[str, Any]) -> Plan | None:
    """Return a plan with other plain-number parameters; None if the request must be planned as a whole.

    Args:
        plan: The plan of a loss.
        fields: The request's loss, which differs from that of the plan in plain-number parameters only.
    """
    loss = plan.loss
    assert loss is not None
    try:
        parameters = _parameters(loss, validated(loss.model, fields, "/loss"))
        if loss.refine(parameters) != plan.refinement:
            return None
    except (Problem, ValueError, TypeError):
        return None
    return plan.with_parameters(parameters)


def plan_bytes(text: bytes, plan: Plan) -> int:
    """Return about how many bytes a request's text and its plan take in memory, terms and inputs included."""
    return 4096 + 12 * len(text) + 2048 * len(plan.terms) + 512 * len(plan.inputs)


TEMPLATES: Final[Cache[bytes, Plan]] = Cache("templates")
"""The latest plans of requests without their plain-number parameters, by the JSON text of those requests."""


def _parameters(loss: Loss, values: BaseModel) -> dict[str, Any]:
    return {p.name: getattr(values, p.name) for p in loss.parameters}


def elsewhere(fields: Any, name: str) -> str:
    """Return where a field beside the loss belongs, as the end of a sentence; empty if that is unknown."""
    if name == "name" and fields is None:
        return 'a loss is named in loss: {"loss": {"name": ...}}'
    loss = REGISTRY.get(str(fields.get("name"))) if isinstance(fields, dict) else None
    if loss is not None:
        if name in ("reduction", "nan_targets") or name in {p.name for p in loss.parameters}:
            return f"it is a parameter of {loss.name}: put it into loss, beside the name"
        if name in {entry.name for entry in listed_inputs(loss)}:
            return "it is an input: put it into inputs"
    return _option(name)


def _not_in_loss(loss: Loss, name: str) -> str:
    """Return where a field that was sent as a loss's parameter belongs."""
    if name in {entry.name for entry in listed_inputs(loss)}:
        return "it is an input, not a parameter: put it into inputs, as a tensor"
    return "" if closest(name, tuple(loss.model.model_fields)) else _option(name)  # a typing error is more likely


def _option(name: str) -> str:
    groups: dict[str, type[BaseModel]] = {
        "metrics": MetricOptions,
        "gradient": GradientOptions,
        "hessian": HessianOptions,
    }
    group = next((group for group, options in groups.items() if name in options.model_fields), None)
    return f"it is an option of {group}: put it into {group}" if group else ""


def _loss_plan(envelope: Envelope, fields: dict[str, Any]) -> Plan:
    if envelope.task is not None:
        raise InvalidRequest("give either loss or task: task asks for metrics without a loss (metrics.task changes it)")
    name = fields.get("name")
    if not isinstance(name, str):
        raise InvalidRequest(
            "loss must hold its name, a string", errors=[Fault(pointer="/loss/name", detail="a string is required")]
        )
    loss = find_loss(name)
    if (reason := loss.unavailable()) is not None:
        raise NotEvaluable(reason)
    values = validated(loss.model, fields, "/loss", partial(_not_in_loss, loss))
    parameters = _parameters(loss, values)
    try:
        refinement = loss.refine(parameters)
    except ValueError as error:  # a combination of parameters that has no meaning
        pointer = f"/loss{getattr(error, 'pointer', '')}"
        raise InvalidRequest(f"{name}: {error}", errors=[Fault(pointer=pointer, detail=str(error))]) from None
    inputs = (*loss.request_inputs, *_variadic_inputs(loss, refinement), *universal_inputs(loss, refinement))
    terms: tuple[TermPlan, ...] = ()
    if loss.terms is not None:
        terms = tuple(
            plan_term(position, term, envelope, _loss_plan) for position, term in enumerate(loss.terms(parameters))
        )
        terms = own_masks(terms)
        if loss.per_sample:
            _check_per_sample(name, terms[0])
        inputs = composed_inputs(inputs, terms)
    outputs = envelope.outputs if envelope.outputs is not None else ["loss", "gradient", "metrics"]
    derivatives = requested(name, [entry.name for entry in inputs if entry.differentiable], outputs)
    check_second(loss, parameters, derivatives, envelope.hessian)
    if derivatives.product is not None:
        names = (derivatives.product, series(derivatives.product))
        inputs = (*inputs, direction(next(entry for entry in inputs if entry.name in names), refinement))
    task = envelope.metrics.task or refinement.task or (terms[0].plan.task if terms else loss.task)
    if envelope.metrics.task and not terms:
        metrics.check_task(task, instead_of=refinement.task or loss.task)
    if envelope.metrics.classes is not None:
        detail = (
            f"metrics.classes is for predicted classes, and {name} is computed from scores; leave it out, or name a "
            "task in place of the loss for metrics alone"
        )
        raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/classes", detail=detail)])
    metrics.check_options(task, envelope.metrics.model_dump())
    wanted_metrics = metrics.resolve(task, envelope.metrics.names) if "metrics" in outputs else ()
    return Plan(
        loss=loss,
        task=task,
        inputs=inputs,
        refinement=refinement,
        parameters=parameters,
        reduction=getattr(values, "reduction"),  # noqa: B009  (a field every model has, its base lacks)
        want_loss="loss" in outputs,
        gradients=derivatives.gradients,
        gradient_options=envelope.gradient,
        hessians=derivatives.hessians,
        hessian_options=envelope.hessian,
        product=derivatives.product,
        metrics=() if terms else wanted_metrics,
        metric_options=envelope.metrics,
        terms=tuple(
            term.with_outputs(derivatives.gradients, wanted_metrics if i == 0 else ()) for i, term in enumerate(terms)
        ),
        ignores_nan=getattr(values, "nan_targets", "refuse") == "ignore",
    )


def _check_per_sample(name: str, term: TermPlan) -> None:
    """Raise InvalidRequest if the term's loss has no value for each sample."""
    inner = term.plan.loss
    if inner is not None and inner.kind != "rows":
        raise InvalidRequest(
            f"{name} needs the loss of each sample, and {inner.name} has one value for all samples of a request; "
            "choose a loss of independent samples, such as mse or cross_entropy",
            errors=[Fault(pointer="/loss/loss/name", detail=f"{inner.name} has no loss for each sample")],
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
    summary="The weight of each sample, >= 0; 0 drops it.",
)
COTANGENT = Input(
    "cotangent",
    (TensorType("real", ("float",), ("*",)),),
    differentiable=False,
    optional=True,
    summary="Upstream gradient, in the shape of the answered loss; the gradient becomes the vector-Jacobian product.",
)


def universal_inputs(loss: Loss, refinement: Refinement = Refinement()) -> tuple[Input, ...]:  # noqa: B008  (frozen)
    """Return the inputs that every loss of its kind takes beside its own.

    Args:
        loss: The loss.
        refinement: How its parameters change its types.
    """
    upstream = (SAMPLE_WEIGHT, COTANGENT) if loss.kind == "rows" else (COTANGENT,)
    return (*upstream, *_masks(loss, refinement)) if loss.masked else upstream


def _masks(loss: Loss, refinement: Refinement) -> Iterator[Input]:
    """Yield the inputs that say which entries count."""
    mask = refinement.inputs.get("mask") or loss.mask
    pattern = (mask or refinement.returns or loss.returns).pattern
    what = "the unreduced loss" if mask is None else f"({', '.join(pattern)})"

    def constant(name: str, summary: str, domain: Domain, kinds: tuple[Kind, ...], axes: tuple[str, ...]) -> Input:
        return Input(name, (TensorType(domain, kinds, axes),), differentiable=False, optional=True, summary=summary)

    summary = f"1 for each entry that counts and 0 for the others, which may be NaN, in the shape of {what}."
    yield constant("mask", summary, "kept", ("integer",), pattern)
    if mask is None or "element_weight" in loss.reads_masks:
        summary = f"The weight of each entry, >= 0, in the shape of {what}; 0 leaves the entry out, as a mask does."
        yield constant("element_weight", summary, "weight", ("float", "integer"), pattern)
    if len(pattern) > 1:
        summary = "How many entries of each sample count along axis 1, from its start; in place of a mask."
        yield constant("lengths", summary, "length", ("integer",), ("N",))


def direction(entry: Input, refinement: Refinement) -> Input:
    """Return the input that the output ``hvp`` needs: numbers of any size in the shape of a differentiable input."""
    types = (refinement.inputs[entry.name],) if entry.name in refinement.inputs else entry.types
    return Input(
        "direction",
        tuple(TensorType("real", ("float",), kind.pattern) for kind in types),
        differentiable=False,
        optional=False,
        summary=f"What the Hessian is multiplied with, in the shape of {entry.name}.",
    )


def listed_inputs(loss: Loss) -> tuple[Input, ...]:
    """Return the inputs that the catalogue lists; a preset composed loss lists its terms' inputs."""
    if not loss.preset:
        return (*loss.request_inputs, *universal_inputs(loss))
    entries = {entry.name: entry for entry in common_inputs(make_plan({"loss": {"name": loss.name}}).terms)}
    cotangent = entries.pop(COTANGENT.name)
    return (*entries.values(), cotangent)


def _variadic_inputs(loss: Loss, refinement: Refinement) -> tuple[Input, ...]:
    """Return the inputs that only the parameters name."""
    if loss.variadic is None:
        return ()
    declared = {entry.name for entry in loss.inputs}
    return tuple(
        Input(name, (kind,), differentiable="float" in kind.kinds, optional=False, summary="Named by the parameters.")
        for name, kind in refinement.inputs.items()
        if name not in declared
    )
