"""``GET /v1/losses`` and ``/v1/metrics``: the catalogue, generated from signatures and docstrings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

import lossd.metrics as metrics
from lossd.api.pages import JSON, Page
from lossd.api.search import MAX_CHARACTERS, search
from lossd.losses import REGISTRY
from lossd.losses.families import by_family
from lossd.losses.guides import Guide, guide
from lossd.losses.lookup import find_loss
from lossd.losses.registry import Input, Loss
from lossd.losses.types import TensorType
from lossd.pictures.axes import describe_axes
from lossd.request.options import MetricOptions
from lossd.request.outputs import has_hessian
from lossd.request.planning import listed_inputs
from lossd_client.errors import Fault, InvalidRequest, UnknownMetric
from lossd_client.wire.quoting import quoted

__all__ = ["describe_loss", "describe_loss_in_full", "describe_options", "router"]


class InputType(BaseModel):
    """A type of an input: the meaning of its entries, the kinds of dtype, and the axes by name."""

    domain: str
    dtypes: list[Literal["float", "integer"]]
    shape: str


class LossInput(BaseModel):
    """An input of a loss."""

    name: str
    types: list[InputType]
    differentiable: bool
    optional: bool
    summary: str


class LossEntry(BaseModel):
    """A loss: its formula in LaTeX, its inputs, the JSON Schema of each parameter, and the axes of its curves.

    ``hessian`` says whether it has the output of that name, the diagonal of the Hessian, with its default parameters.
    """

    name: str
    task: str
    summary: str
    formula: str
    inputs: list[LossInput]
    inputs_of_terms: bool
    named_by_parameters: InputType | None
    parameters: dict[str, dict[str, Any]]
    references: list[str]
    documentation: str
    axes: list[dict[str, Any]]
    hessian: bool
    batching: Literal["rows", "stack", "alone", "composed"]
    available: bool
    unavailable_because: str | None


class LossPage(LossEntry):
    """A loss with its guide: when to use it, when not, what its symbols are, and the common mistake."""

    guide: Guide


class MetricEntry(BaseModel):
    """A metric of a task, and the names of the options it reads.

    ``better`` says which way is better, null for neither. ``interval`` says where values lie, if a run states their
    interval: in [0, 1], in [-1, 1], from 0 on, or anywhere. ``version`` is raised when a number could change.
    """

    name: str
    task: str
    default: bool
    summary: str
    documentation: str
    options: list[str]
    better: Literal["higher", "lower"] | None
    interval: Literal["unit", "signed", "positive", "real"] | None
    version: int


class MetricList(BaseModel):
    """A metric in each task that has it."""

    metrics: list[MetricEntry]


class LossList(BaseModel):
    """Every loss, or the losses that a search found, the best match first.

    After a search, ``metrics`` has the metrics of that name, and ``note`` says what other libraries mean by the name if
    no loss here gives the same numbers; else it is null.
    """

    losses: list[LossEntry]
    metrics: list[MetricEntry] | None = None
    note: str | None = None


class PredictedClasses(BaseModel):
    """The inputs of a request with ``metrics.classes``, and the names of the metrics that need scores."""

    inputs: list[LossInput]
    refused: list[str]


class TaskEntry(BaseModel):
    """A task, and the inputs of a request for its metrics without a loss.

    ``predicted_classes`` is null if the task does not take predicted classes in place of scores.
    """

    name: str
    inputs: list[LossInput]
    predicted_classes: PredictedClasses | None


class MetricCatalogue(MetricList):
    """Every metric, the JSON Schema of each option, and every task."""

    options: dict[str, dict[str, Any]]
    tasks: list[TaskEntry]


def describe_loss(loss: Loss) -> dict[str, Any]:
    """Return the catalogue's entry of a loss."""
    schema = loss.model.model_json_schema()
    parameters = {name: field for name, field in schema["properties"].items() if name != "name"}
    return {
        "name": loss.name,
        "task": loss.task,
        "summary": loss.summary,
        "formula": loss.formula,
        "inputs": _describe_inputs(listed_inputs(loss)),
        "inputs_of_terms": loss.terms is not None and not loss.preset,
        "named_by_parameters": None if loss.variadic is None else _describe_type(loss.variadic),
        "parameters": parameters,
        "references": list(loss.references),
        "documentation": loss.documentation,
        "hessian": has_hessian(loss),
        "batching": loss.kind,
        "axes": describe_axes(loss),
        "available": loss.unavailable() is None,
        "unavailable_because": loss.unavailable(),
    }


def describe_loss_in_full(loss: Loss) -> dict[str, Any]:
    """Return the catalogue's entry of a loss, with its guide."""
    return {**describe_loss(loss), "guide": guide(loss).model_dump()}


def describe_options() -> dict[str, Any]:
    """Return the JSON Schema of each option of metrics, by name, with its references resolved."""
    schema = MetricOptions.model_json_schema()
    definitions = {f"#/$defs/{name}": definition for name, definition in schema.get("$defs", {}).items()}

    def resolve(field: dict[str, Any]) -> dict[str, Any]:
        whole = dict(definitions.get(field.get("$ref", ""), field))
        if "anyOf" in whole:
            whole["anyOf"] = [resolve(arm) for arm in whole["anyOf"]]
        if "items" in whole:
            whole["items"] = resolve(whole["items"])
        return whole

    return {name: resolve(field) for name, field in schema["properties"].items()}


def describe_tasks() -> list[dict[str, Any]]:
    """Return the catalogue's entry of each task."""
    options, of_classes = MetricOptions().model_dump(), MetricOptions(classes=1).model_dump()
    return [
        {
            "name": name,
            "inputs": _describe_inputs(metrics.inputs(name, options)),
            "predicted_classes": {
                "inputs": _describe_inputs(metrics.inputs(name, of_classes)),
                "refused": metrics.from_scores(name),
            }
            if metrics.from_scores(name)
            else None,
        }
        for name in metrics.TASKS
    ]


def _describe_inputs(inputs: Sequence[Input]) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name,
            "types": [_describe_type(type_) for type_ in entry.types],
            "differentiable": entry.differentiable,
            "optional": entry.optional,
            "summary": entry.summary,
        }
        for entry in inputs
    ]


def _describe_type(type_: TensorType) -> dict[str, Any]:
    return {"domain": type_.domain, "dtypes": list(type_.kinds), "shape": str(type_)}


def _typed(model: type[BaseModel]) -> dict[str, Any]:
    """Return the route's arguments that document an answer without checking it."""
    return {"response_model": None, "responses": {200: {"model": model}}}


def _losses() -> bytes:
    return orjson.dumps({"losses": [describe_loss(loss) for losses in by_family().values() for loss in losses]})


def _metrics() -> bytes:
    return orjson.dumps({"metrics": metrics.describe(), "options": describe_options(), "tasks": describe_tasks()})


def _availability() -> tuple[str | None, ...]:
    """Return why each loss is unavailable. Pages about losses are made again if it changes."""
    return tuple(loss.unavailable() for loss in REGISTRY.values())


def _found(query: str) -> bytes:
    if len(query) > MAX_CHARACTERS:
        detail = f"a search has at most {MAX_CHARACTERS} characters, this one has {len(query)}"
        raise InvalidRequest(detail, errors=[Fault(pointer="/q", detail=detail)])
    found = search(query)
    entries = [entry for name in found.metrics for entry in _metric(name)]
    losses = [describe_loss(loss) for loss in found.losses]
    return orjson.dumps({"losses": losses, "metrics": entries, "note": found.note or None})


def _metric(name: str) -> list[dict[str, Any]]:
    return [entry for entry in metrics.describe() if entry["name"] == name]


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1", tags=["catalogue"])
    all_losses, every_metric = Page(_losses, JSON), Page(_metrics, JSON)
    of_losses: dict[str, Page] = {}
    of_metrics: dict[str, Page] = {}
    names = {name for names in metrics.METRICS.values() for name in names}

    @routes.get("/losses", summary="List every loss", response_model=LossList)
    async def losses(request: Request, q: str = "") -> Response:
        """Return every loss; with ``q``, the losses that match a name or words, and the metrics of that name."""
        if q.strip():
            return Response(await run_in_threadpool(_found, q), media_type=JSON)
        return await all_losses.answer(request.headers, _availability())

    @routes.get("/losses/{name}", summary="Get a loss and its guide", **_typed(LossPage))
    async def loss(request: Request, name: str) -> Response:
        found = find_loss(name)
        if name not in of_losses:
            of_losses[name] = Page(lambda: orjson.dumps(describe_loss_in_full(found)), JSON)
        return await of_losses[name].answer(request.headers, found.unavailable())

    @routes.get("/metrics", summary="List every metric by task", response_model=MetricCatalogue)
    async def all_metrics(request: Request) -> Response:
        return await every_metric.answer(request.headers)

    @routes.get("/metrics/{name}", summary="Get a metric in each task that has it", **_typed(MetricList))
    async def one_metric(request: Request, name: str) -> Response:
        if name not in names:
            near = metrics.closest_metrics(name, names)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UnknownMetric(f"there is no metric named {quoted(name)}; {hint}GET /v1/metrics lists them all")
        if name not in of_metrics:
            of_metrics[name] = Page(lambda: orjson.dumps({"metrics": _metric(name)}), JSON)
        return await of_metrics[name].answer(request.headers)

    return routes
