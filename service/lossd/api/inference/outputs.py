"""Converts requests of the Open Inference Protocol to requests of ``/v1``, and results to outputs."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
import orjson
from pydantic import BaseModel

from lossd.api.evaluate import plan_of
from lossd.api.inference.models import Model
from lossd.engine import Result
from lossd.job import Column, Job
from lossd.losses.lookup import closest
from lossd.metrics import METRICS, class_count, listed_by_default
from lossd.request.options import GradientOptions, HessianOptions, MetricOptions
from lossd.request.plan import Plan
from lossd_client.errors import DtypeMismatch, InvalidRequest, MalformedBody, ShapeMismatch
from lossd_client.wire import DTYPES, Tensor, json, oip
from lossd_client.wire.quoting import quoted
from lossd_client.wire.tensor import element_count

__all__ = ["ParsedRequest", "check_size", "output_values", "parse_request"]

RESERVED = (
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "priority",
    "timeout",
    "headers",
    "content_type",
    "binary_data_output",
)
RESERVED_PREFIX = "triton_"
LOSS_OUTPUTS = ("loss", "numerator", "denominator")
DIAGNOSTICS = "diagnostics"
_DOUBLE = struct.Struct("<d")
DERIVATIVES = ("gradient", "hessian", "hvp")
OPTIONS: dict[str, type[BaseModel]] = {
    "gradient": GradientOptions,
    "hessian": HessianOptions,
    "metrics": MetricOptions,
}


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A checked request without its binary tensors.

    Attributes:
        model: The model's name.
        job: What is evaluated.
        request: The parsed JSON.
        outputs: The outputs, in order.
        columns: The job's tensor of each output; None if it is no tensor of the job.
        timeout_s: The request's time-out in seconds; None without one.
        streamable: Whether every input's bytes on the wire are those of its tensor.
        places: The outputs that go to shared memory, and where.
        shares_memory: Whether an input or an output is in shared memory.
        undefined: The outputs that may be undefined, which are metrics.
        text_bytes: The most bytes of the outputs that are tensors in JSON.
    """

    model: str
    job: Job
    request: oip.Request
    outputs: tuple[oip.Output, ...]
    columns: tuple[Column | None, ...]
    timeout_s: float | None
    streamable: bool
    text_bytes: int
    places: Mapping[str, oip.Place]
    shares_memory: bool
    undefined: frozenset[str]


def parse_request(text: bytes, model: Model) -> ParsedRequest:
    """Parse and check a request's JSON text.

    Raises:
        Problem: A fault that can be found without the tensors' bytes.
    """
    request = oip.read_request(text)
    base = _request(model, request.parameters)
    plan = plan_of(json.dumps({**base, "outputs": ["metrics"] if model.loss is None else ["gradient"]}))
    gradient = plan.gradients[0].replace("*", "0") if plan.gradients else ""
    metrics = METRICS.get(plan.task, {})
    outputs = request.outputs
    if outputs is None:
        names = () if model.loss is None else ("loss", *(("gradient",) if gradient else ()))
        options = base.get("metrics", {})
        classes = class_count(plan.task, {entry.name: entry.shape for entry in request.inputs}, options)
        default_names = [name for name, metric in metrics.items() if metric.default]
        defaults = listed_by_default(default_names, options, classes)
        outputs = tuple(oip.Output(name, request.binary) for name in (*names, *defaults))
    outputs = tuple(single for output in outputs for single in _expand(output, request.inputs))
    v1_outputs, metric_names = _v1_outputs(model, plan, [output.name for output in outputs], gradient)
    if metric_names:
        options = base.setdefault("metrics", {})
        options["names"] = metric_names
        if any(output.name.endswith(".per_class") for output in outputs):
            options.setdefault("per_class", True)
    for entry in request.inputs:
        if not entry.datatype.itemsize:
            raise DtypeMismatch(f"{entry.name} is BYTES; losses and metrics take numbers")
    final = plan_of(json.dumps({**base, "outputs": v1_outputs}))
    job = _job(final, request.inputs)
    answers = {column.name: column for column in job.recipe.answers}
    columns = tuple(answers.get(_column(output.name, gradient)) for output in outputs)
    text_bytes = 0
    for output, column in zip(outputs, columns, strict=True):
        if column is not None and output.place is not None:
            check_size(output.name, element_count(column.shape(job.rows)) * DTYPES[column.dtype].itemsize, output.place)
        elif column is not None and not output.binary:
            if not oip.BY_DTYPE[column.dtype].as_json:
                raise DtypeMismatch(f"{output.name} is {column.dtype}, which JSON lacks; ask for it as binary data")
            text_bytes += json.most_bytes(column.dtype, (element_count(column.shape(job.rows)),), "list")
    places = {output.name: output.place for output in outputs if output.place is not None}
    return ParsedRequest(
        model=model.name,
        job=job,
        request=request,
        outputs=outputs,
        columns=columns,
        timeout_s=_timeout_s(request.parameters),
        streamable=all(entry.binary for entry in request.inputs),
        text_bytes=text_bytes,
        places=places,
        shares_memory=bool(places) or any(entry.place is not None for entry in request.inputs),
        undefined=frozenset(o.name for o in outputs if not o.name.startswith((*LOSS_OUTPUTS, *DERIVATIVES))),
    )


def check_size(name: str, nbytes: int, place: oip.Place) -> None:
    """Check that an output fits the place in shared memory that the request names.

    Raises:
        ShapeMismatch: It is larger.
    """
    if nbytes > place.byte_size:
        raise ShapeMismatch(
            f"shared memory size specified with the request for output {quoted(name)} ({place.byte_size} bytes) should "
            f"be at least {nbytes} bytes to hold the results"
        )


def _job(plan: Plan, inputs: tuple[oip.Entry, ...]) -> Job:
    """Return the job of the inputs. If they do not fit, leave out the axes that MLServer's codec adds."""
    layout = {entry.name: (entry.datatype.dtype, entry.shape) for entry in inputs}
    try:
        return plan.job(layout)
    except ShapeMismatch:
        padded = {entry.name: (entry.datatype.dtype, entry.shape[:1]) for entry in inputs if entry.padded}
        if padded:
            with suppress(ShapeMismatch):
                return plan.job({**layout, **padded})
        raise


def _request(model: Model, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of ``/v1``, without inputs and outputs."""
    loss: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    types = {} if model.loss is None else {p.name: p.annotation for p in model.loss.parameters}
    for name, value in parameters.items():
        group, _, option = name.partition(".")
        if name in RESERVED or name.startswith(RESERVED_PREFIX):
            continue
        if name == "name":
            raise InvalidRequest(f"name is not a parameter here: the path names the model, {model.name}")
        if name == "metrics.names":
            raise InvalidRequest("metrics.names is not a parameter here: name the metrics as outputs")
        if option and group in OPTIONS:
            field = OPTIONS[group].model_fields.get(option)
            options.setdefault(group, {})[option] = _typed(value, field.annotation if field else None)
        elif model.loss is None:
            hint = (
                f"did you mean metrics.{name}?" if name in MetricOptions.model_fields else "options begin with metrics."
            )
            raise InvalidRequest(f"{model.name} takes no parameter {quoted(name)}; {hint}")
        else:
            loss[name] = _typed(value, types.get(name))
    return {"task": model.task, **options} if model.loss is None else {"loss": {**loss, "name": model.name}, **options}


def _typed(value: Any, annotation: Any) -> Any:
    """Return the value. Parse it if it is JSON text and the parameter does not take texts."""
    if not isinstance(value, str) or _takes_text(annotation):
        return value
    try:
        parsed = json.loads(value.encode())
    except MalformedBody:
        return value
    json.check_depth(parsed, what="a parameter")
    return parsed


def _takes_text(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _takes_text(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return any(map(_takes_text, get_args(annotation)))
    return annotation is str


def _v1_outputs(model: Model, plan: Plan, names: list[str], gradient: str) -> tuple[list[str], list[str]]:
    """Return the outputs of ``/v1`` for these names, and the metrics among them.

    Raises:
        InvalidRequest: There is no such output.
    """
    metrics = METRICS.get(plan.task, {})
    outputs, metric_names = [], []
    for name in names:
        if name in metrics or name.rpartition(".")[0] in metrics:
            outputs.append("metrics")
            metric_names.append(name if name in metrics else name.rpartition(".")[0])
        elif name == DIAGNOSTICS:
            outputs.append("metrics" if model.loss is None else "loss")
        elif model.loss is not None and name in LOSS_OUTPUTS:
            outputs.append("loss")
        elif model.loss is not None and name in DERIVATIVES and gradient:
            outputs.append(f"{name}.{gradient}")
        elif model.loss is not None and name.partition(".")[0] in DERIVATIVES:
            outputs.append(name)
        else:
            loss_outputs = () if model.loss is None else (*LOSS_OUTPUTS, *DERIVATIVES)
            available = (*loss_outputs, *metrics, DIAGNOSTICS)
            near = closest(name, available)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(available)}"
            raise InvalidRequest(f"{model.name} has no output {quoted(name)}; {hint}")
    return list(dict.fromkeys(outputs)), list(dict.fromkeys(metric_names))


def _expand(output: oip.Output, inputs: tuple[oip.Entry, ...]) -> list[oip.Output]:
    """Return the outputs of a series such as ``gradient.prediction.*``: one for each of its inputs."""
    if not output.name.endswith(".*"):
        return [output]
    kind, _, name = output.name.partition(".")
    stem = name.removesuffix("*")
    if output.place is not None:
        raise InvalidRequest(f"{output.name} may be several outputs, and has one place in shared memory; name each")
    return [oip.Output(f"{kind}.{i.name}", output.binary) for i in inputs if i.name.startswith(stem)] or [output]


def _column(name: str, gradient: str) -> str:
    return f"{name}.{gradient}" if name in DERIVATIVES else name


def _timeout_s(parameters: Mapping[str, Any]) -> float | None:
    timeout_us = parameters.get("timeout")
    if timeout_us in (None, 0):
        return None
    if type(timeout_us) is not int or timeout_us < 0:
        raise InvalidRequest("timeout must be a whole number of microseconds")
    return timeout_us / 1e6


def output_values(parsed: ParsedRequest, result: Result) -> list[tuple[str, oip.Value, bool]]:
    """Return name, value and whether it is binary, of each output. Tensors refer to the result's memory.

    Raises:
        InvalidRequest: An output names a part that its metric lacks.
    """
    answer = orjson.loads(result.text)
    outputs: list[tuple[str, oip.Value, bool]] = []
    for output, column in zip(parsed.outputs, parsed.columns, strict=True):
        if column is not None:
            value: oip.Value = Tensor(column.dtype, column.shape(result.job.rows), result.tensors[column.name])
        else:
            value = _value(output.name, answer)
        outputs.append((output.name, value, output.binary))
    return outputs


def _value(name: str, answer: Mapping[str, Any]) -> oip.Value:
    if name == "loss":
        return _numbers(answer["loss"])
    if name in LOSS_OUTPUTS:
        return _numbers(answer["reduction"][name])
    if name == DIAGNOSTICS:
        # The further values of some losses have no other output.
        extras = {key: value for key, value in answer.items() if key not in (*LOSS_OUTPUTS, "reduction", "metrics")}
        return [json.dumps({**extras.pop(DIAGNOSTICS), **extras})]
    metrics = answer["metrics"]
    if name in metrics:
        value = metrics[name]
        return _numbers(value["macro"] if isinstance(value, dict) and "macro" in value else value)
    metric, _, part = name.rpartition(".")
    value = metrics[metric]
    if not isinstance(value, dict) or part not in value:
        parts = f"it has {', '.join(value)}" if isinstance(value, dict) else "it has no parts"
        raise InvalidRequest(f"the metric {metric} has no part {quoted(part)}; {parts}")
    return _numbers(value[part])


def _numbers(value: Any) -> oip.Value:
    """Return counts as int64, other numbers as float64, null as NaN, and anything else as its JSON text."""
    if type(value) is float:  # the usual case, without NumPy, which is slow for single numbers
        return Tensor("float64", (), memoryview(_DOUBLE.pack(value)))
    try:
        array = np.array(value)
        if array.dtype.kind not in "iuf":  # null and the strings NaN and Infinity, which NumPy reads as float64
            array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return [json.dumps(value)]
    array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float64, copy=False)
    return Tensor("int64" if array.dtype.kind == "i" else "float64", array.shape, array.reshape(-1).view(np.uint8).data)
