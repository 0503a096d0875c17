"""Compose requests and read responses; both clients share this module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lossd_client.arrays import Origin, is_tensor, plain, take
from lossd_client.calls import Body, HttpResponse
from lossd_client.errors import LossdError, UnreadableAnswer
from lossd_client.wire import json, safetensors

__all__ = [
    "INPUTS",
    "ComposedRequest",
    "Evaluation",
    "Record",
    "Reduction",
    "compose",
    "encoded",
    "metric_options",
    "read_document",
    "read_evaluation",
    "subject",
    "tensors_by_name",
]

INPUTS = frozenset(
    (
        *("prediction", "target", "sample_weight", "cotangent", "direction", "variance", "mean", "log_variance"),
        *("scale", "df", "dispersion", "lower", "upper"),
        *("real", "fake"),
        *("anchor", "positive", "negative", "first", "second", "similar", "embedding", "label", "difficulty"),
        *("mask", "element_weight", "lengths", "teacher"),
        *("chosen", "rejected", "reference_chosen", "reference_rejected", "chosen_length", "rejected_length"),
        *("reward_margin", "log_ratio", "desirable", "advantage", "sampled", "reference"),
        *("input_lengths", "target_lengths", "losses", "initial_losses", "gradient_norms", "task_weight"),
    )
)
"""Every name that a loss or a task gives to an input; such keywords may be numbers or lists.

A parameter of the same name is a word.
"""

_SHOWN_ENTRIES = 6
_NESTED = frozenset((dict, list))
_DURATION = re.compile(r"([^\s,;]+)\s*(?:;[^,;]*)*?;\s*dur=(\d+(?:\.\d*)?)(?![^\s,;])")


class Record(dict[str, Any]):
    """A JSON object as a dictionary whose entries are attributes too, on every level.

    >>> metrics = Record({"accuracy": 0.5, "f1": {"macro": 0.25}, "recall@1": 1.0})
    >>> metrics.f1.macro, metrics["recall@1"]
    (0.25, 1.0)
    """

    def __init__(self, document: Mapping[str, Any] | None = None) -> None:
        super().__init__(document or {})
        for name, value in self.items():
            # Most values are numbers: comparing the type is cheaper than a call.
            if type(value) is dict or type(value) is list:
                self[name] = _records(value)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name} here; there is {', '.join(self) or 'nothing'}") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __repr__(self) -> str:
        return f"Record({', '.join(f'{name}={_shortened(value)}' for name, value in self.items())})"


def _records(value: Any) -> Any:
    if isinstance(value, dict):
        return Record(value)
    if isinstance(value, list) and not _NESTED.isdisjoint(map(type, value)):
        return [_records(item) for item in value]
    return value


def _shortened(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN_ENTRIES:
        return f"[{', '.join(map(_shortened, value[:_SHOWN_ENTRIES]))}, … {len(value)} in all]"
    if isinstance(value, list):
        return f"[{', '.join(map(_shortened, value))}]"
    return repr(value)


class Reduction(NamedTuple):
    """Numerator and denominator of a mean. For the mean over many batches, divide the sums of both."""

    numerator: float
    denominator: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        loss: A number; with reduction ``none`` an array or tensor; None if it was not requested.
        gradients: The requested gradients by input, each with the shape, the library (NumPy or torch) and the device of
            its input.
        hessians: The requested diagonals of the Hessian by input, each in the shape and the dtype of the gradient.
        products: The requested product of the Hessian and a direction, by input.
        reduction: Numerator and denominator of the mean; None if the loss was not requested.
        metrics: The requested metrics: ``metrics.f1.macro``, ``metrics["f1"]["macro"]``. Undefined ones are None.
        diagnostics: Norms, counts, and whether all values are finite.
        extra: Further fields of this loss, such as the terms of a sum.
        request_id: The request's id in the service's log.
        timing: The ``Server-Timing`` header; :attr:`server_timing` parses it.
    """

    loss: Any = None
    gradients: Mapping[str, Any] = field(default_factory=dict)
    hessians: Mapping[str, Any] = field(default_factory=dict)
    products: Mapping[str, Any] = field(default_factory=dict)
    reduction: Reduction | None = None
    metrics: Record = field(default_factory=Record)
    diagnostics: Record = field(default_factory=Record)
    extra: Record = field(default_factory=Record)
    request_id: str = ""
    timing: str = ""

    @property
    def gradient(self) -> Any:
        """The gradient of ``prediction``, or else the first one; None if there is none."""
        return self.gradients.get("prediction", next(iter(self.gradients.values()), None))

    @property
    def hessian(self) -> Any:
        """The diagonal of the Hessian for ``prediction``, or else the first one; None if there is none."""
        return self.hessians.get("prediction", next(iter(self.hessians.values()), None))

    @property
    def hvp(self) -> Any:
        """The product of the Hessian and the direction; None if it was not requested."""
        return next(iter(self.products.values()), None)

    @property
    def server_timing(self) -> Mapping[str, float]:
        """Milliseconds that the service spent on each stage."""
        return {stage: float(duration) for stage, duration in _DURATION.findall(self.timing)}

    @property
    def warnings(self) -> list[Record]:
        """Warnings about the request, each with ``code`` and ``detail``; usually none."""
        warnings: list[Record] = self.diagnostics.get("warnings", [])
        return warnings

    def __repr__(self) -> str:
        shown = [f"loss={_summary(self.loss)}"]
        for what in ("gradients", "hessians", "products"):
            if tensors := getattr(self, what):
                shown.append(f"{what}={{{', '.join(f'{n!r}: {_summary(t)}' for n, t in tensors.items())}}}")
        shown += [f"{name}={value!r}" for name in ("metrics", "extra") if (value := getattr(self, name))]
        shown += [f"warnings={[w.code for w in self.warnings]}"] if self.warnings else []
        return f"Evaluation({', '.join(shown)})"


def _summary(value: Any) -> str:
    if is_tensor(value):
        return f"<{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}>"
    return repr(value)


@dataclass(frozen=True, slots=True)
class ComposedRequest:
    """A request that is ready to send.

    Attributes:
        body: The request's body.
        origins: The library and the device of each input.
    """

    body: Body
    origins: Mapping[str, Origin]


def compose(
    loss: str | Mapping[str, Any] | None,
    prediction: Any,
    target: Any,
    *,
    task: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | str | None = None,
    gradient: Mapping[str, Any] | None = None,
    hessian: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | Sequence[str] | str | None = None,
    keywords: Mapping[str, Any],
) -> ComposedRequest:
    """Return the safetensors body of an evaluation.

    Args:
        loss: The loss's name, or an object of the name and parameters.
        prediction: The input ``prediction``, or None.
        target: The input ``target``, or None.
        task: The task of the metrics, if there is no loss.
        inputs: Inputs by name, for lists under a name of your own and for inputs that have an argument's name.
        outputs: The requested outputs.
        gradient: The gradient's options.
        hessian: The Hessian's options.
        metrics: The metrics' options, or only their names.
        keywords: Inputs and the loss's parameters: a tensor, or a list under an input's name, is an input. ``loss`` is
            the loss if none is named otherwise; else it is a parameter, as of ``curriculum``.

    Raises:
        TypeError: Arguments contradict each other, or the wire does not carry a tensor's dtype.
    """
    by_keyword = {name: value for name, value in keywords.items() if is_tensor(value) or _is_input(name, value)}
    tensors = tensors_by_name(prediction, target, inputs, by_keyword)
    parameters = {name: value for name, value in keywords.items() if name not in by_keyword}
    if loss is None and task is None:
        loss = parameters.pop("loss", None)
    request = subject(loss, task, parameters)
    if outputs is not None:
        request["outputs"] = [outputs] if isinstance(outputs, str) else list(outputs)
    if gradient is not None:
        request["gradient"] = plain(gradient)
    if hessian is not None:
        request["hessian"] = plain(hessian)
    if metrics is not None:
        request["metrics"] = metric_options(metrics)
    return encoded(request, tensors)


def tensors_by_name(prediction: Any, target: Any, *others: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the inputs of a request by name.

    Args:
        prediction: The input ``prediction``, or None.
        target: The input ``target``, or None.
        *others: Further inputs by name.

    Raises:
        TypeError: An input is given twice.
    """
    named = [("prediction", prediction), ("target", target)]
    tensors = {name: tensor for name, tensor in named if tensor is not None}
    for name, tensor in (item for inputs in others for item in (inputs or {}).items()):
        if name in tensors:
            raise TypeError(f"the input {name} is given twice")
        tensors[name] = tensor
    return tensors


def metric_options(metrics: Mapping[str, Any] | Sequence[str] | str) -> dict[str, Any]:
    """Return the request's object ``metrics``, given its options or only the metrics' names."""
    options: dict[str, Any] = dict(metrics) if isinstance(metrics, Mapping) else {"names": metrics}
    if isinstance(options.get("names"), str):
        options["names"] = [options["names"]]
    plain_options: dict[str, Any] = plain(options)
    return plain_options


def encoded(request: Mapping[str, Any], tensors: Mapping[str, Any]) -> ComposedRequest:
    """Return the safetensors body of a request.

    Args:
        request: The request's JSON object without its inputs.
        tensors: The inputs by name: arrays, tensors, nested lists.

    Raises:
        TypeError: The wire does not carry a tensor's dtype.
    """
    taken = {name: take(name, tensor) for name, tensor in tensors.items()}
    text = json.dumps(json.finite(dict(request))).decode()
    pieces = safetensors.encode({name: tensor for name, (tensor, _) in taken.items()}, {"request": text})
    return ComposedRequest(Body(pieces), {name: origin for name, (_, origin) in taken.items()})


def _is_input(name: str, value: Any) -> bool:
    return name.partition(".")[0] in INPUTS and isinstance(value, list | tuple | int | float)


def subject(loss: str | Mapping[str, Any] | None, task: str | None, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that say what is evaluated: ``loss`` with its parameters, or ``task``.

    Raises:
        TypeError: Both or neither are given, or a parameter twice, or parameters without a loss.
    """
    if (loss is None) == (task is None):
        raise TypeError("name either a loss, or a task whose metrics are computed without one")
    if task is not None:
        if parameters:
            raise TypeError(f"{', '.join(parameters)}: without a loss, options go into metrics={{…}}")
        return {"task": task}
    fields = {"name": loss} if isinstance(loss, str) else dict(loss or {})
    duplicates = fields.keys() & parameters.keys()
    if duplicates:
        raise TypeError(f"{', '.join(sorted(duplicates))} of the loss is given twice")
    return {"loss": plain({**fields, **parameters})}


def read_document(response: HttpResponse, url: str, request_id: str) -> Record:
    """Return the JSON object in a response.

    Args:
        response: A successful response.
        url: The address that was asked, for errors.
        request_id: The request's id, for errors.

    Raises:
        UnreadableAnswer: The body is not lossd's.
    """
    try:
        document = json.loads(response.body, what="the answer")
    except LossdError as error:
        raise UnreadableAnswer(f"{url}: {error}; is it lossd?", request_id=request_id) from error
    if not isinstance(document, dict):
        raise UnreadableAnswer(f"{url}: the answer is not an object; is it lossd?", request_id=request_id)
    return Record(document)


def read_evaluation(response: HttpResponse, origins: Mapping[str, Origin]) -> Evaluation:
    """Return the evaluation in a response. Its tensors are writable views of the response's body.

    Args:
        response: A successful response.
        origins: The library and the device of each input; its gradient is converted to them.

    Raises:
        UnreadableAnswer: The body is not lossd's.
    """
    request_id = response.headers.get("x-request-id", "")
    if response.media_type != safetensors.MEDIA_TYPE:
        found = response.media_type or "no media type"
        raise UnreadableAnswer(
            f"the answer is {found}, not {safetensors.MEDIA_TYPE}; is it lossd?", request_id=request_id
        )
    try:
        tensors, metadata = safetensors.decode(response.body, max_header_bytes=len(response.body))
        text = metadata.get("result", "")
        result = json.loads(text.encode(), what="the result")
    except LossdError as error:
        raise UnreadableAnswer(f"the answer cannot be read: {error}", request_id=request_id) from error
    if not isinstance(result, dict):
        raise UnreadableAnswer("the answer's result is not an object", request_id=request_id)
    if '"NaN"' in text or 'Infinity"' in text:
        result = json.numeric(result)

    def of_inputs(kind: str) -> dict[str, Any]:
        columns = {name: f"{kind}.{name}" for name in origins}
        return {name: origins[name].receive(tensors[c]) for name, c in columns.items() if c in tensors}

    loss = result.pop("loss", None)
    if "loss" in tensors:
        loss = next(iter(origins.values()), Origin()).receive(tensors["loss"])
    reduction = result.pop("reduction", None)
    return Evaluation(
        loss=loss,
        gradients=of_inputs("gradient"),
        hessians=of_inputs("hessian"),
        products=of_inputs("hvp"),
        reduction=None if reduction is None else Reduction(**reduction),
        metrics=Record(result.pop("metrics", None)),
        diagnostics=Record(result.pop("diagnostics", None)),
        extra=Record(result),
        request_id=request_id,
        timing=response.headers.get("server-timing", ""),
    )
