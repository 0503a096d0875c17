"""The models of the Open Inference Protocol: every loss, and the metrics of each task without a loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lossd import __version__
from lossd.api.evaluate import plan_of
from lossd.api.observability.telemetry import ModelCounts
from lossd.job import model_name
from lossd.losses import REGISTRY
from lossd.losses.lookup import advice, closest
from lossd.losses.registry import Input, Loss
from lossd.losses.types import TensorType
from lossd.metrics import METRICS, TASKS
from lossd.request.options import MetricOptions
from lossd.request.planning import listed_inputs
from lossd_client.errors import NotFound, Problem
from lossd_client.wire import json, oip
from lossd_client.wire.quoting import quoted

__all__ = ["Model", "config", "find", "index", "metadata", "models", "server_metadata", "statistics"]

PLATFORM = "lossd"
EXTENSIONS = ("binary_tensor_data", "parameters", "statistics", "model_configuration")

# The default metrics that are counts; lists if they have one entry a class.
COUNTS = ("tp", "fp", "fn", "tn", "support", "confusion_matrix", "active_units", "empty_queries")


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A loss, or the metrics of a task.

    Attributes:
        name: The model's name in the protocol.
        loss: The loss; None for metrics.
        task: The task of the metrics.
    """

    name: str
    loss: Loss | None
    task: str

    @property
    def reason(self) -> str:
        """The reason why it cannot be evaluated here; empty if it can."""
        return "" if self.loss is None else self.loss.unavailable() or ""


@lru_cache(maxsize=1)
def models() -> dict[str, Model]:
    """Return every model by name."""
    losses = {loss.name: Model(loss.name, loss, loss.task) for loss in REGISTRY.values()}
    metrics = {(name := model_name(None, task)): Model(name, None, task) for task in METRICS}
    return {**losses, **metrics}


def find(name: str, version: str | None = None) -> Model:
    """Return the model of this name and version.

    Raises:
        NotFound: There is none; the detail has the nearest names.
    """
    model = models().get(name)
    if model is None:
        near = closest(name, models()) if name.startswith("metrics.") else []
        hint = f"did you mean {near[0]}?" if near else advice(name, "POST /v2/repository/index")
        raise NotFound(f"there is no model named {quoted(name)}; {hint}")
    if version not in (None, "", oip.VERSION):
        raise NotFound(f"the model {name} has the version {oip.VERSION}, not {quoted(version)}")
    return model


def server_metadata(*, shared_memory: bool) -> dict[str, Any]:
    """Return the answer to ``GET /v2``.

    Args:
        shared_memory: Whether clients may register shared memory.
    """
    extensions = [*EXTENSIONS, *(["system_shared_memory"] if shared_memory else [])]
    return {"name": PLATFORM, "version": __version__, "extensions": extensions}


def index(obstacle: str, *, only_ready: bool) -> list[dict[str, str]]:
    """Return the repository's index.

    Args:
        obstacle: Why the service is not ready; empty if it is.
        only_ready: Whether to leave out models that are not ready.
    """
    entries = []
    for model in models().values():
        reason = model.reason or obstacle
        if not (only_ready and reason):
            state = "UNAVAILABLE" if reason else "READY"
            entries.append({"name": model.name, "version": oip.VERSION, "state": state, "reason": reason})
    return entries


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor in the metadata. -1 is an axis of any length, or any number of axes."""

    name: str
    datatype: str
    shape: list[int]
    optional: bool = False


def metadata(model: Model) -> dict[str, Any]:
    """Return the answer to ``GET /v2/models/{name}``."""
    inputs, outputs = _signature(model)

    def described(tensors: Iterable[_Tensor]) -> list[dict[str, Any]]:
        return [{"name": t.name, "datatype": t.datatype, "shape": t.shape} for t in tensors]

    return {
        "name": model.name,
        "versions": [oip.VERSION],
        "platform": PLATFORM,
        "inputs": described(inputs),
        "outputs": described(outputs),
    }


def config(model: Model) -> dict[str, Any]:
    """Return the answer to ``GET /v2/models/{name}/config``, with the loss's parameters and defaults as JSON text."""
    inputs, outputs = _signature(model)
    parameters: dict[str, Any] = {}
    if model.loss is not None:
        parameters["reduction"] = model.loss.reductions[0]
        if model.loss.may_lack_targets:
            parameters["nan_targets"] = "refuse"
        parameters.update({p.name: p.default for p in model.loss.parameters if p.default is not ...})

    def described(tensor: _Tensor) -> dict[str, Any]:
        kind = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
        return {"name": tensor.name, "data_type": kind, "dims": tensor.shape}

    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 0,
        "input": [{**described(tensor), "optional": tensor.optional} for tensor in inputs],
        "output": [described(tensor) for tensor in outputs],
        "parameters": {name: {"string_value": json.dumps(value).decode()} for name, value in parameters.items()},
    }


def _signature(model: Model) -> tuple[list[_Tensor], list[_Tensor]]:
    """Return inputs and outputs, with every parameter at its default."""
    if model.loss is None:
        entries, task = TASKS[model.task].inputs(MetricOptions().model_dump()), model.task
    else:
        entries, task = _inputs(model.loss)
    lengths = {} if model.loss is None else _lengths(model.loss)
    inputs = [_Tensor(_first(e.name), _datatype(e.types[0]), _shape_of(e, lengths), e.optional) for e in entries]
    outputs = []
    if model.loss is not None:
        outputs += [_Tensor(name, "FP64", []) for name in ("loss", "numerator", "denominator")]
        gradients = [_Tensor(_first(e.name), "FP32", _shape(e.types[0], lengths)) for e in entries if e.differentiable]
        outputs += [_Tensor("gradient", g.datatype, g.shape) for g in gradients[:1]]
        outputs += [_Tensor(f"gradient.{g.name}", g.datatype, g.shape) for g in gradients]
        curved = [g for g in gradients if _has_hessian(model.loss, g.name)]
        if curved and curved[0] == gradients[0]:
            outputs.append(_Tensor("hessian", curved[0].datatype, curved[0].shape))
        outputs += [_Tensor(f"hessian.{g.name}", g.datatype, g.shape) for g in curved]
    outputs += [_metric(task, m.name) for m in METRICS.get(task, {}).values() if m.default]
    outputs.append(_Tensor("diagnostics", "BYTES", [1]))
    return inputs, outputs


def _has_hessian(loss: Loss, name: str) -> bool:
    """Return whether there is a Hessian by an input whatever its size, with every parameter at its default."""
    if loss.kind != "rows" or not loss.twice:
        return False
    defaults = {p.name: p.default for p in loss.parameters}
    if loss.is_elementwise(name, defaults):
        return True
    shapes = {entry.name: (1,) * len(entry.types[0].pattern) for entry in loss.inputs}
    return name == "prediction" and loss.closed_hessian("exact", defaults, shapes) is not None


def _inputs(loss: Loss) -> tuple[tuple[Input, ...], str]:
    """Return inputs and task of a request without parameters; the declared ones if a parameter is required."""
    try:
        plan = plan_of(json.dumps({"loss": {"name": loss.name}}))
    except Problem:
        return listed_inputs(loss), loss.task
    return listed_inputs(loss) if loss.preset else plan.inputs, plan.task


def _first(name: str) -> str:
    """Return a name that can be sent: the first of a series such as ``prediction.*``."""
    return name.replace("*", "0")


def _datatype(type_: TensorType) -> str:
    return "FP32" if type_.kinds[0] == "float" else "INT64"


def _lengths(loss: Loss) -> dict[str, int]:
    """Return the lengths of the axes that a list among the defaults has an entry for each step of."""
    return {p.axis: len(p.default) for p in loss.parameters if p.axis and isinstance(p.default, list)}


def _shape_of(entry: Input, lengths: Mapping[str, int]) -> list[int]:
    # By default a loss is one number, and its cotangent too.
    return [] if entry.name == "cotangent" else _shape(entry.types[0], lengths)


def _shape(type_: TensorType, lengths: Mapping[str, int]) -> list[int]:
    return [int(axis) if axis.isdigit() else lengths.get(axis, -1) for axis in type_.pattern]


def _metric(task: str, name: str) -> _Tensor:
    if name not in COUNTS:
        return _Tensor(name, "FP64", [])
    if name == "confusion_matrix":
        return _Tensor(name, "INT64", [-1, -1])
    return _Tensor(name, "INT64", [-1] if getattr(TASKS[task], "averaged", False) else [])


def statistics(models: Iterable[Model], counted: Mapping[str, ModelCounts]) -> dict[str, Any]:
    """Return the answer to ``GET /v2/models/stats``: requests of ``/v1`` and ``/v2`` since the service started."""
    return {"model_stats": [_statistics(model.name, counted.get(model.name, ModelCounts())) for model in models]}


def _statistics(name: str, counts: ModelCounts) -> dict[str, Any]:

    def duration(count: int, seconds: float) -> dict[str, int]:
        return {"count": count, "ns": round(seconds * 1e9)}

    return {
        "name": name,
        "version": oip.VERSION,
        "last_inference": round(counts.last_s * 1e3),
        "inference_count": counts.success,
        "execution_count": counts.executions,
        "inference_stats": {
            "success": duration(counts.success, counts.success_s),
            "fail": duration(counts.fail, counts.fail_s),
            "queue": duration(counts.success, counts.queue_s),
            "compute_input": duration(counts.success, counts.copy_s),
            "compute_infer": duration(counts.success, counts.compute_s),
            "compute_output": duration(counts.success, counts.encode_s),
        },
        "batch_stats": [],
        "memory_usage": [],
    }
