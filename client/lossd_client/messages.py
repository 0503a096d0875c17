"""The request as it is composed and the answer as it is read; both clients share them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lossd_client.arrays import Home, is_tensor, plain, take
from lossd_client.errors import LossdError, UnreadableAnswer
from lossd_client.exchange import Answer, Body
from lossd_client.wire import json, safetensors

__all__ = ["INPUTS", "Composed", "Evaluation", "Record", "Reduction", "compose", "read_evaluation"]

GRADIENT = "gradient."

INPUTS = frozenset(
    (
        *("prediction", "target", "sample_weight", "cotangent", "variance", "mean", "log_variance", "real", "fake"),
        *("anchor", "positive", "negative", "first", "second", "similar", "embedding", "label", "difficulty"),
        *("input_lengths", "target_lengths", "losses", "initial_losses", "gradient_norms", "task_weight"),
    )
)
"""What losses and tasks call their inputs, and no parameter is called: keywords of these names may be lists."""

_SHOWN_ENTRIES = 6
_NESTED = frozenset((dict, list))
_DURATION = re.compile(r"([^\s,;]+)\s*(?:;[^,;]*)*?;\s*dur=(\d+(?:\.\d*)?)(?![^\s,;])")


class Record(dict[str, Any]):
    """An object of the answer: a dictionary whose entries are attributes too, all the way down.

    >>> metrics = Record({"accuracy": 0.5, "f1": {"macro": 0.25}, "recall@1": 1.0})
    >>> metrics.f1.macro, metrics["recall@1"]
    (0.25, 1.0)
    """

    def __init__(self, document: Mapping[str, Any] | None = None) -> None:
        super().__init__(document or {})
        for name, value in self.items():
            # Most are numbers: a look at the type is cheaper than a call.
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
        return f"Record({', '.join(f'{name}={_abridged(value)}' for name, value in self.items())})"


def _records(value: Any) -> Any:
    if isinstance(value, dict):
        return Record(value)
    if isinstance(value, list) and not _NESTED.isdisjoint(map(type, value)):
        return [_records(item) for item in value]
    return value


def _abridged(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN_ENTRIES:
        return f"[{', '.join(map(_abridged, value[:_SHOWN_ENTRIES]))}, … {len(value)} in all]"
    if isinstance(value, list):
        return f"[{', '.join(map(_abridged, value))}]"
    return repr(value)


class Reduction(NamedTuple):
    """The mean's two halves: sums of both over many batches divide to the mean over all of them."""

    numerator: float
    denominator: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """What the service answers.

    Attributes:
        loss: A number; with reduction ``none`` an array or tensor; None where it was not asked for.
        gradients: The gradient of each input asked for, each of the kind of that input: NumPy or torch, its device.
        reduction: Numerator and denominator of the mean, where the loss was asked for.
        metrics: The metrics asked for: ``metrics.f1.macro``, ``metrics["f1"]["macro"]``. Undefined ones are None.
        diagnostics: Norms, counts, whether all is finite.
        extra: What only this loss answers, such as the terms of a sum.
        request_id: Finds the request in the service's log.
        timing: The answer's ``Server-Timing`` header, which :attr:`server_timing` reads.
    """

    loss: Any = None
    gradients: Mapping[str, Any] = field(default_factory=dict)
    reduction: Reduction | None = None
    metrics: Record = field(default_factory=Record)
    diagnostics: Record = field(default_factory=Record)
    extra: Record = field(default_factory=Record)
    request_id: str = ""
    timing: str = ""

    @property
    def gradient(self) -> Any:
        """The gradient of ``prediction``, or of the only or first input that has one; None where there is none."""
        return self.gradients.get("prediction", next(iter(self.gradients.values()), None))

    @property
    def server_timing(self) -> Mapping[str, float]:
        """How long the service spent on each stage, in milliseconds."""
        return {stage: float(duration) for stage, duration in _DURATION.findall(self.timing)}

    @property
    def warnings(self) -> list[Record]:
        """What is odd about the request, each with ``code`` and ``detail``; usually none."""
        warnings: list[Record] = self.diagnostics.get("warnings", [])
        return warnings

    def __repr__(self) -> str:
        shown = [f"loss={_outlined(self.loss)}"]
        if self.gradients:
            shown.append(f"gradients={{{', '.join(f'{n!r}: {_outlined(g)}' for n, g in self.gradients.items())}}}")
        shown += [f"{name}={value!r}" for name in ("metrics", "extra") if (value := getattr(self, name))]
        shown += [f"warnings={[w.code for w in self.warnings]}"] if self.warnings else []
        return f"Evaluation({', '.join(shown)})"


def _outlined(value: Any) -> str:
    if is_tensor(value):
        return f"<{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}>"
    return repr(value)


@dataclass(frozen=True, slots=True)
class Composed:
    """A request ready to be sent.

    Attributes:
        body: Its bytes.
        homes: Where each input came from.
    """

    body: Body
    homes: Mapping[str, Home]


def compose(
    loss: str | Mapping[str, Any] | None,
    prediction: Any,
    target: Any,
    *,
    task: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | str | None = None,
    gradient: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | Sequence[str] | str | None = None,
    keywords: Mapping[str, Any],
) -> Composed:
    """The safetensors body of an evaluation.

    Args:
        loss: Its name, or an object of the name and parameters.
        prediction: The input of that name, if any.
        target: The input of that name, if any.
        task: The metrics' task, in place of a loss.
        inputs: Inputs by name, for lists under a name of your own, and for what is called like an argument.
        outputs: What is asked for.
        gradient: The gradient's options.
        metrics: The metrics' options, or the names of the metrics.
        keywords: Inputs and the loss's parameters: what is a tensor or has an input's name is an input.

    Raises:
        TypeError: Arguments that contradict each other, or a tensor of a dtype that does not travel.
    """
    named = [("prediction", prediction), ("target", target)]
    tensors = {name: tensor for name, tensor in named if tensor is not None}
    by_keyword = {name: value for name, value in keywords.items() if is_tensor(value) or _is_input(name, value)}
    for name, tensor in [*(inputs or {}).items(), *by_keyword.items()]:
        if name in tensors:
            raise TypeError(f"the input {name} is given twice")
        tensors[name] = tensor
    parameters = {name: value for name, value in keywords.items() if name not in by_keyword}
    request = _subject(loss, task, parameters)
    if outputs is not None:
        request["outputs"] = [outputs] if isinstance(outputs, str) else list(outputs)
    if gradient is not None:
        request["gradient"] = plain(gradient)
    if metrics is not None:
        options: dict[str, Any] = dict(metrics) if isinstance(metrics, Mapping) else {"names": metrics}
        if isinstance(options.get("names"), str):
            options["names"] = [options["names"]]
        request["metrics"] = plain(options)
    taken = {name: take(name, tensor) for name, tensor in tensors.items()}
    text = json.dumps(json.finite(request)).decode()
    pieces = safetensors.encode({name: tensor for name, (tensor, _) in taken.items()}, {"request": text})
    return Composed(Body(pieces), {name: home for name, (_, home) in taken.items()})


def _is_input(name: str, value: Any) -> bool:
    return name.partition(".")[0] in INPUTS and isinstance(value, list | tuple | int | float)


def _subject(loss: str | Mapping[str, Any] | None, task: str | None, parameters: dict[str, Any]) -> dict[str, Any]:
    """The part of the request that says what is computed."""
    if (loss is None) == (task is None):
        raise TypeError("name either a loss, or a task whose metrics are computed without one")
    if task is not None:
        if parameters:
            raise TypeError(f"{', '.join(parameters)}: without a loss, options go into metrics={{…}}")
        return {"task": task}
    fields = {"name": loss} if isinstance(loss, str) else dict(loss or {})
    twice = fields.keys() & parameters.keys()
    if twice:
        raise TypeError(f"{', '.join(sorted(twice))} of the loss is given twice")
    return {"loss": plain({**fields, **parameters})}


def read_evaluation(answer: Answer, homes: Mapping[str, Home]) -> Evaluation:
    """The evaluation an answer stands for. Its tensors are views into the answer's body, and writable.

    Args:
        answer: A successful one.
        homes: Where each input came from, and its gradient goes.

    Raises:
        UnreadableAnswer: The body is not what lossd sends.
    """
    request_id = answer.headers.get("x-request-id", "")
    if answer.media_type != safetensors.MEDIA_TYPE:
        found = answer.media_type or "no media type"
        raise UnreadableAnswer(
            f"the answer is {found}, not {safetensors.MEDIA_TYPE}; is it lossd?", request_id=request_id
        )
    try:
        tensors, metadata = safetensors.decode(answer.body, max_header_bytes=len(answer.body))
        text = metadata.get("result", "")
        result = json.loads(text.encode(), what="the result")
    except LossdError as error:
        raise UnreadableAnswer(f"the answer cannot be read: {error}", request_id=request_id) from error
    if not isinstance(result, dict):
        raise UnreadableAnswer("the answer's result is not an object", request_id=request_id)
    if '"NaN"' in text or 'Infinity"' in text:
        result = json.numeric(result)
    gradients = {name.removeprefix(GRADIENT): t for name, t in tensors.items() if name.startswith(GRADIENT)}
    loss = result.pop("loss", None)
    if "loss" in tensors:
        loss = next(iter(homes.values()), Home()).receive(tensors["loss"])
    reduction = result.pop("reduction", None)
    return Evaluation(
        loss=loss,
        gradients={name: homes[name].receive(gradients[name]) for name in homes if name in gradients},
        reduction=None if reduction is None else Reduction(**reduction),
        metrics=Record(result.pop("metrics", None)),
        diagnostics=Record(result.pop("diagnostics", None)),
        extra=Record(result),
        request_id=request_id,
        timing=answer.headers.get("server-timing", ""),
    )
