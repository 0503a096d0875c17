"""The request without its tensors, as Pydantic models, and how their faults are told."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import isfinite
from types import UnionType
from typing import Annotated, Any, Literal, NotRequired, Required, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Len
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from typing_extensions import is_typeddict

from lossd.losses.registry import closest, named
from lossd.losses.types import FIRST_FAULT, Fraction, Positive
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire.quoting import quoted

__all__ = ["Envelope", "GradientOptions", "MetricOptions", "check_entries", "spelled_out", "validated"]

FloatName = Literal["float64", "float32", "float16", "bfloat16"]


M = TypeVar("M", bound=BaseModel)

MAX_FAULTS = 10
MAX_FIELDS = 1024
MAX_METRICS = 256
MAX_OUTPUTS = 3 + 1024  # the loss, its gradient and metrics, and that by each tensor
_IN_PYTHON = re.compile(r"a valid dictionary( or instance of \w+)?")
MAX_NAME = 60

Place = tuple[int | str, ...]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class GradientOptions(_Options):
    """What happens to the gradient before it is returned; ``clip_value`` first, then ``clip_norm``."""

    clip_norm: Positive | None = Field(None, description="Largest L2 norm; longer gradients are scaled down to it.")
    clip_scope: Literal["global", "tensor"] = Field(
        "global", description="The norm of all returned gradients together, or of each tensor on its own."
    )
    clip_value: Positive | None = Field(None, description="Entries are clamped to [-clip_value, clip_value].")
    dtype: FloatName | None = Field(
        None,
        description="Dtype of the returned gradients; the input's own by default, float32 for halves and integers.",
    )


class Score(_Options):
    """A threshold among the scores themselves."""

    score: float = Field(
        description="Scores from this value on count as positive: logits, where predictions are logits."
    )


def _threshold(value: Any) -> Any:
    number = value["score"] if isinstance(value, dict) and value.keys() == {"score"} else value
    if value is None or (type(number) in (int, float) and isfinite(number)):
        return value
    raise PydanticCustomError("threshold", 'a threshold is a number or {"score": number}')


class MetricOptions(_Options):
    """Which metrics, and how; the defaults are the task's."""

    names: Annotated[list[str], FIRST_FAULT, Len(0, MAX_METRICS)] | None = Field(
        None, description='Exactly these metrics; "default" stands for the defaults.'
    )
    task: str | None = Field(None, description="The task, where the loss's own is not meant (binary or multilabel).")
    threshold: Annotated[float | Score | None, BeforeValidator(_threshold)] = Field(
        None,
        description="Probabilities from this value on count as positive, 0.5 by default; pairs are similar below this "
        'distance, half the margin by default. {"score": s} compares the scores themselves, where no probability is '
        "told from its neighbour.",
    )
    iou_threshold: Fraction = Field(0.5, description="Paired boxes from this IoU on are hits.")
    zero_division: Literal[0, 1] | None = Field(
        None, description="What an undefined ratio (0/0) counts as; by default it is null and left out of averages."
    )
    beta: Positive = Field(1.0, description="f_beta: how much more recall matters than precision.")
    weights: Literal["none", "linear", "quadratic"] = Field(
        "none",
        description="cohen_kappa of several classes: what a disagreement counts, always 1 or by the distance of the "
        "classes' indices.",
    )
    k: Annotated[int, Field(ge=1, le=10_000)] = Field(
        5,
        description="How many of the best count, in top_k_accuracy, of more classes, and in the metrics named @k.",
    )
    bins: Annotated[int, Field(ge=1, le=1000)] = Field(
        15, description="ece, reliability: how many bins probabilities fall into."
    )
    points: Annotated[int, Field(ge=2, le=100_000)] = Field(
        1000, description="roc_curve, pr_curve: the most points of a curve; longer ones are thinned evenly."
    )
    quantiles: Annotated[list[Fraction], FIRST_FAULT, Len(1, 100)] = Field(
        [0.05, 0.25, 0.5, 0.75, 0.95], description="error_quantiles: which."
    )
    per_class: bool | None = Field(
        None,
        description="Whether averages over classes or labels come with the value of each; by default up to 16384 of "
        "them, beyond which metrics that are lists are answered where they are named.",
    )
    from_logits: bool = Field(
        True, description="Metrics alone: whether predictions are logits, or else probabilities or decisions."
    )
    format: Literal["xyxy", "xywh", "cxcywh"] = Field(
        "xyxy", description="Metrics alone: what the four numbers of a box are, see the losses of boxes."
    )
    ignore_index: int | None = Field(
        None,
        description="Metrics alone: entries whose target is this class do not count. Where it is predicted for another "
        "class, that counts as wrong, and makes its IoU 0.",
    )


_USUAL = MetricOptions()


class Envelope(_Options):
    """The request without its tensors, before the loss is known."""

    loss: dict[str, Any] | None = None
    task: str | None = None
    outputs: Annotated[list[str], FIRST_FAULT, Len(0, MAX_OUTPUTS)] | None = None
    gradient: GradientOptions = GradientOptions()
    metrics: MetricOptions = Field(default_factory=lambda: _USUAL)  # a default that holds a list is copied each time


def spelled_out(request: dict[str, Any]) -> dict[str, Any]:
    """The request with objects and lists where it has but a name: ``"loss": "mse"``, ``"outputs": "loss"``."""
    whole = dict(request)
    if isinstance(request.get("loss"), str):
        whole["loss"] = named(request["loss"])
    if isinstance(request.get("outputs"), str):
        whole["outputs"] = [request["outputs"]]
    options = request.get("metrics")
    if isinstance(options, str | list):
        options = {"names": options}
    if isinstance(options, dict) and isinstance(options.get("names"), str):
        options = {**options, "names": [options["names"]]}
    for name, given, model in (
        ("metrics", options, MetricOptions),
        ("gradient", request.get("gradient"), GradientOptions),
    ):
        if given is not None:
            whole[name] = without_nulls(model, given) if isinstance(given, dict) else given
    return whole


def without_nulls(model: type[BaseModel], fields: dict[str, Any]) -> dict[str, Any]:
    """The fields but for those that are null, where null is no value and there is a default.

    Clients that are generated from a schema send null for what nobody has set.
    """
    if None not in fields.values():
        return fields
    return {name: value for name, value in fields.items() if value is not None or name not in _defaulted(model)}


@cache
def _defaulted(model: type[BaseModel]) -> frozenset[str]:
    """The fields that have a default, and that null is no value of."""
    properties = model.model_json_schema()["properties"]
    return frozenset(
        name
        for name, schema in properties.items()
        if not model.model_fields[name].is_required() and {"type": "null"} not in schema.get("anyOf", ())
    )


Elsewhere = Callable[[str], str]
"""``f(name)``: where a field that is not known here belongs, as a sentence's end; empty where that is not known."""


def validated(model: type[M], fields: dict[str, Any], pointer: str, elsewhere: Elsewhere = lambda _: "") -> M:
    """The fields as the model has them.

    Raises:
        InvalidRequest: With a pointer, starting at ``pointer``, to each fault.
    """
    try:
        return model.model_validate(without_nulls(model, fields))
    except ValidationError as error:
        found = _one_each(fields, error.errors(include_url=False, include_input=True))
        told = found[:MAX_FAULTS]
        faults = [_fault(model, pointer, place, e, elsewhere) for place, e in told]
        more = len(found) - len(told)
        detail = "; ".join(f["detail"] for f in faults) + (f"; and {more} more" if more else "")
        raise InvalidRequest(detail, errors=faults) from None


def check_entries(request: Any) -> None:
    """Make sure that every integer of a request could be one of a tensor's entries, and that no object is large.

    Args:
        request: The document; it nests as deep as may be.

    Raises:
        InvalidRequest: With a pointer to the first integer that is too large, or to the first object that is.
    """
    if (fault := _bad_entry(request)) is not None:
        path, detail = fault
        raise InvalidRequest(
            detail, errors=[Fault(pointer="".join(f"/{_token(part)}" for part in path), detail=detail)]
        )


def _bad_entry(value: Any) -> tuple[Place, str] | None:
    """The place of an entry that may not be, and what is wrong with it."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        return (), f"an object of a request may have {MAX_FIELDS} fields, this one has {len(value)}"
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if type(child) is int:
            if not -(2**63) <= child < 2**63:
                return (key,), f"{child} is outside the range of int64"
        elif child and type(child) in (dict, list) and (fault := _bad_entry(child)) is not None:
            return (key, *fault[0]), fault[1]
    return None


def _token(part: object) -> str:
    """A part of an RFC 6901 pointer."""
    return str(part).replace("~", "~0").replace("/", "~1")[:MAX_NAME]


def _one_each(fields: Any, errors: Sequence[Mapping[str, Any]]) -> list[tuple[Place, dict[str, Any]]]:
    """The errors by their places in the request. Of a union, each arm has its own: those that came farthest remain."""
    places = [_place(fields, error["loc"]) for error in errors]
    whole = [len(place) == len(error["loc"]) for place, error in zip(places, errors, strict=True)]
    remaining: dict[Place, dict[str, Any]] = {}
    for place, error, alone in zip(places, errors, whole, strict=True):
        if not alone and any(len(other) > len(place) and other[: len(place)] == place for other in places):
            continue
        if place in remaining:
            remaining[place]["msg"] += f" or {error['msg'].removeprefix('Input should be ')}"
        else:
            remaining[place] = {**error}
    return list(remaining.items())


def _place(fields: Any, location: Sequence[int | str]) -> Place:
    """The location without what only Pydantic knows of: the names of a union's arms."""
    place: list[int | str] = []
    for position, part in enumerate(location):
        if isinstance(fields, dict):  # the last part may be a field that is missing
            if part not in fields and position < len(location) - 1:
                continue
            place.append(part)
            fields = fields.get(part)
        elif isinstance(fields, list) and isinstance(part, int) and part < len(fields):
            place.append(part)
            fields = fields[part]
    return tuple(place)


def _fault(model: type[BaseModel], pointer: str, place: Place, error: Mapping[str, Any], elsewhere: Elsewhere) -> Fault:
    where = pointer + "".join(f"/{_token(part)}" for part in place)
    field = ".".join(_shown(str(part)) for part in [*pointer.split("/")[1:], *place])
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, place[:-1])
        near = closest(str(place[-1]), known, {})
        belongs = elsewhere(str(place[-1])) if len(place) == 1 else ""
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}" if known else ""
        return Fault(
            pointer=where, detail=f"{field} is not known" + (f"; {belongs or hint}" if belongs or hint else "")
        )
    if error["type"] == "missing":
        return Fault(pointer=where, detail=f"{field} is required")
    message = error["msg"][0].lower() + error["msg"][1:]
    message = _IN_PYTHON.sub("an object", message)
    return Fault(pointer=where, detail=f"{field}: {message}, found {quoted(error.get('input'))}")


def _shown(name: str) -> str:
    """A field's name as it is, where it is one that a field could have."""
    return name if len(name) <= MAX_NAME and name.isprintable() else quoted(name)


def _fields_at(model: type[BaseModel], place: Place) -> tuple[str, ...]:
    """The fields that an object has at a place inside a model; none where they are not known."""
    inside: Any = model
    for part in place:
        if isinstance(part, int):
            arms = [arm for arm in _arms(inside) if get_origin(arm) is list]
            inside = get_args(arms[0])[0] if arms else None
        else:
            inside = next((_annotations(arm)[part] for arm in _arms(inside) if part in _annotations(arm)), None)
    return next((tuple(fields) for arm in _arms(inside) if (fields := _annotations(arm))), ())


def _arms(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type that it is; less what annotates them."""
    if get_origin(annotation) in (Annotated, Required, NotRequired):
        return _arms(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(arm for each in get_args(annotation) for arm in _arms(each))
    return (annotation,)


def _annotations(of: Any) -> Mapping[str, Any]:
    """The fields of a model or of a typed dictionary."""
    if isinstance(of, type) and issubclass(of, BaseModel):
        return {name: field.annotation for name, field in of.model_fields.items()}
    return get_type_hints(of, include_extras=True) if is_typeddict(of) else {}
