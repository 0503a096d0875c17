"""The request's options as Pydantic models, and the errors for their faults."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import isfinite
from types import UnionType
from typing import Annotated, Any, Literal, NotRequired, Required, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Len
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from typing_extensions import is_typeddict

from lossd.losses.registry import closest, named
from lossd.losses.types import FIRST_FAULT, Fraction, Positive
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire.quoting import quoted

__all__ = [
    "Envelope",
    "GradientOptions",
    "HessianOptions",
    "MetricOptions",
    "check_entries",
    "spelled_out",
    "validated",
]

FloatName = Literal["float64", "float32", "float16", "bfloat16"]


M = TypeVar("M", bound=BaseModel)

MAX_FAULTS = 10
MAX_FIELDS = 1024
MAX_METRICS = 256
MAX_THRESHOLDS = 1 << 14
MAX_OUTPUTS = 5 + 2 * 1024  # loss, gradient, hessian, hvp, metrics, and a gradient and a Hessian by each tensor
_IN_PYTHON = re.compile(r"a valid dictionary( or instance of \w+)?")
MAX_NAME = 60
LIBRARY_FLOOR = 1e-16
"""The least second derivative in XGBoost (``LogisticRegression::SecondOrderGradient``)."""

Place = tuple[int | str, ...]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class GradientOptions(_Options):
    """What is done to the gradient before it is returned: ``clip_value`` first, then ``clip_norm``."""

    clip_norm: Positive | None = Field(None, description="Largest L2 norm; longer gradients are scaled down to it.")
    clip_scope: Literal["global", "tensor"] = Field(
        "global", description="Whether clip_norm limits the norm of all returned gradients together, or of each tensor."
    )
    clip_value: Positive | None = Field(None, description="Entries are clamped to [-clip_value, clip_value].")
    dtype: FloatName | None = Field(
        None,
        description="Dtype of the returned gradients; by default the input's, or float32 for halves and integers.",
    )
    layout: Literal["as_input", "class_first"] = Field(
        "as_input",
        description="The order of the axes of gradients and Hessians: the input's, or axis 1 first, as in (C, N), "
        "which LightGBM's C API takes.",
    )


class HessianOptions(_Options):
    """Which second derivatives are returned."""

    form: Literal["exact", "fisher", "xgboost", "lightgbm"] = Field(
        "exact",
        description="exact: the second derivative. fisher: its expectation over targets drawn from the prediction, "
        "never negative. xgboost, lightgbm: what that library uses for this loss; the exact one for losses it lacks.",
    )
    floor: float | None = Field(
        None,
        description="The least second derivative of an entry, before sample weights and the mean. null is none for "
        "exact and fisher, 1e-16 for xgboost and lightgbm.",
    )

    @property
    def least(self) -> float | None:
        """The least second derivative of an entry; None for none."""
        library = self.form in ("xgboost", "lightgbm")
        return LIBRARY_FLOOR if library and self.floor is None else self.floor


class Score(_Options):
    """A threshold on the scores themselves."""

    score: float = Field(
        description="Scores from this value on count as positive; they are logits if predictions are logits."
    )


def _threshold(value: Any) -> Any:
    thresholds = value if isinstance(value, list) else [value]
    if 0 < len(thresholds) <= MAX_THRESHOLDS and all(map(_is_threshold, thresholds)):
        return value
    raise PydanticCustomError(
        "threshold", 'a threshold is a number or {"score": number}; several labels may have a list of one for each'
    )


def _is_threshold(value: Any) -> bool:
    number = value["score"] if isinstance(value, dict) and value.keys() == {"score"} else value
    return value is None or (type(number) in (int, float) and isfinite(number))


def _power(value: float) -> float:
    if 0 < value < 1:
        raise PydanticCustomError("power", "no Tweedie distribution has a power between 0 and 1")
    return value


class MetricOptions(_Options):
    """Which metrics, and how; the defaults depend on the task."""

    names: Annotated[list[str], FIRST_FAULT, Len(0, MAX_METRICS)] | None = Field(
        None, description='These metrics only; "default" stands for the default ones.'
    )
    task: str | None = Field(None, description="The task, if it is not the loss's own (binary or multilabel).")
    threshold: Annotated[
        float | Score | Annotated[list[float | Score | None], FIRST_FAULT] | None, BeforeValidator(_threshold)
    ] = Field(
        None,
        description="Probabilities from this value on count as positive, 0.5 by default; pairs are similar below this "
        'distance, half the margin by default. {"score": s} compares the scores themselves, which separates scores '
        "whose probabilities round to the same number. A list has the threshold of each label, null for the default.",
    )
    iou_threshold: Fraction = Field(0.5, description="Paired boxes from this IoU on are hits.")
    zero_division: Literal[0, 1] | None = Field(
        None, description="The value of an undefined ratio (0/0); by default it is null and averages leave it out."
    )
    beta: Positive = Field(1.0, description="f_beta: how much more recall matters than precision.")
    weights: Literal["none", "linear", "quadratic"] = Field(
        "none",
        description="cohen_kappa of several classes: the weight of a disagreement, always 1 or by the distance of the "
        "classes' indices.",
    )
    k: Annotated[int, Field(ge=1, le=10_000)] = Field(
        5,
        description="How many of the highest scores count in top_k_accuracy, if there are more classes, and in metrics "
        "named @k.",
    )
    gain: Literal["linear", "exponential"] = Field(
        "linear", description="ndcg@k: the gain of a document with the target y, y or 2^y − 1."
    )
    ties: Literal["averaged", "stable"] = Field(
        "averaged",
        description="Documents of equal scores in a query: the mean over all their orders, or the lower index first.",
    )
    bins: Annotated[int, Field(ge=1, le=1000)] = Field(
        15, description="ece, reliability: the number of bins of probabilities."
    )
    points: Annotated[int, Field(ge=2, le=100_000)] = Field(
        1000, description="roc_curve, pr_curve: the most points of a curve; longer curves are thinned evenly."
    )
    quantiles: Annotated[list[Fraction], FIRST_FAULT, Len(1, 100)] = Field(
        [0.05, 0.25, 0.5, 0.75, 0.95], description="error_quantiles: which quantiles."
    )
    levels: Annotated[list[Fraction], FIRST_FAULT, Len(1, 100)] = Field(
        [0.5], description="pinball, d2_pinball: the levels of the quantile that predictions estimate."
    )
    power: Annotated[float, Ge(-10), Le(10), AfterValidator(_power)] = Field(
        1.5,
        description="tweedie_deviance, d2_tweedie: the variance is proportional to the mean to this power, which is "
        "not between 0 and 1.",
    )
    scale: Positive | None = Field(
        None, description="mase: the mean absolute error of a naive forecast of the training data."
    )
    by: Literal["mean", "range", "std", "l2"] | None = Field(
        None, description="nrmse: the statistic of the target that the error is divided by."
    )
    max_fpr: Annotated[float, Gt(0), Le(1)] | None = Field(
        None, description="auroc: the highest false positive rate; null for the whole curve."
    )
    min_precision: Fraction = Field(0.9, description="recall_at_precision: the least precision.")
    min_recall: Fraction = Field(0.9, description="precision_at_recall: the least recall.")
    min_specificity: Fraction = Field(0.9, description="sensitivity_at_specificity: the least specificity.")
    min_sensitivity: Fraction = Field(0.9, description="specificity_at_sensitivity: the least sensitivity, or recall.")
    top: Annotated[float, Gt(0), Le(1)] = Field(
        0.1, description="gain@top, lift@top: the fraction of the entries with the highest scores."
    )
    normalize: Literal["true", "pred", "all"] = Field(
        "true",
        description="normalized_confusion_matrix: whether cells are fractions of a class of the target, of a predicted "
        "class or of all entries.",
    )
    p: Annotated[float, Ge(1), Le(100)] = Field(2.0, description="minkowski: the power of the errors.")
    per_class: bool | None = Field(
        None,
        description="Whether averages over classes or labels come with each one's value. By default they do up to "
        "16384 classes or labels; beyond, name the metrics that are lists.",
    )
    from_logits: bool = Field(
        True, description="Metrics without a loss: whether predictions are logits, else probabilities or decisions."
    )
    format: Literal["xyxy", "xywh", "cxcywh"] = Field(
        "xyxy", description="Metrics without a loss: the meaning of the four numbers of a box."
    )
    classes: Annotated[int, Field(ge=1, le=1 << 18)] | None = Field(
        None,
        description="Metrics of classes without a loss: predictions are class indices below this number, in the shape "
        "of the target; null if they are scores.",
    )
    ignore_index: int | None = Field(
        None,
        description="Metrics without a loss: entries whose target is this class do not count. Predicting it for "
        "another class counts as wrong, and makes its IoU 0.",
    )


_DEFAULT_METRICS = MetricOptions()


class Envelope(_Options):
    """The request without its tensors, before its loss is looked up."""

    loss: dict[str, Any] | None = None
    task: str | None = None
    outputs: Annotated[list[str], FIRST_FAULT, Len(0, MAX_OUTPUTS)] | None = None
    gradient: GradientOptions = GradientOptions()
    hessian: HessianOptions = HessianOptions()
    metrics: MetricOptions = Field(
        default_factory=lambda: _DEFAULT_METRICS
    )  # a default that holds a list is copied each time


def spelled_out(request: dict[str, Any]) -> dict[str, Any]:
    """Return the request with objects and lists in place of bare names: ``"loss": "mse"``, ``"outputs": "loss"``."""
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
        ("hessian", request.get("hessian"), HessianOptions),
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
"""``f(name)`` says where an unknown field belongs, as the end of a sentence; empty if that is unknown."""


def validated(model: type[M], fields: dict[str, Any], pointer: str, elsewhere: Elsewhere = lambda _: "") -> M:
    """Return the fields as an instance of a model.

    Raises:
        InvalidRequest: A field is invalid; ``errors`` points at each fault, starting at ``pointer``.
    """
    try:
        return model.model_validate(without_nulls(model, fields))
    except ValidationError as error:
        found = _one_each(fields, error.errors(include_url=False, include_input=True))
        shown = found[:MAX_FAULTS]
        faults = [_fault(model, pointer, place, e, elsewhere) for place, e in shown]
        more = len(found) - len(shown)
        detail = "; ".join(f["detail"] for f in faults) + (f"; and {more} more" if more else "")
        raise InvalidRequest(detail, errors=faults) from None


def check_entries(request: Any) -> None:
    """Check that every integer of a request fits a tensor, and that no object is large.

    Args:
        request: The document, whose depth is already checked.

    Raises:
        InvalidRequest: An integer or an object is too large; ``errors`` points at the first one.
    """
    if (fault := _bad_entry(request)) is not None:
        path, detail = fault
        raise InvalidRequest(
            detail, errors=[Fault(pointer="".join(f"/{_token(part)}" for part in path), detail=detail)]
        )


def _bad_entry(value: Any) -> tuple[Place, str] | None:
    """Return the place of the first entry that is too large, and its fault."""
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
    """Return a part of an RFC 6901 pointer."""
    return str(part).replace("~", "~0").replace("/", "~1")[:MAX_NAME]


def _one_each(fields: Any, errors: Sequence[Mapping[str, Any]]) -> list[tuple[Place, dict[str, Any]]]:
    """Return one error for each place in the request.

    Pydantic reports errors for every arm of a union; keep those of the arms that matched farthest.
    """
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
    """Return the location without the names of a union's arms, which only Pydantic knows."""
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
        near = closest(str(place[-1]), known)
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
    """Return a field's name, quoted if it is long or unprintable."""
    return name if len(name) <= MAX_NAME and name.isprintable() else quoted(name)


def _fields_at(model: type[BaseModel], place: Place) -> tuple[str, ...]:
    """Return the fields of the object at a place inside a model; none if they are unknown."""
    inside: Any = model
    for part in place:
        if isinstance(part, int):
            arms = [arm for arm in _arms(inside) if get_origin(arm) is list]
            inside = get_args(arms[0])[0] if arms else None
        else:
            inside = next((_annotations(arm)[part] for arm in _arms(inside) if part in _annotations(arm)), None)
    return next((tuple(fields) for arm in _arms(inside) if (fields := _annotations(arm))), ())


def _arms(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself, without their annotations."""
    if get_origin(annotation) in (Annotated, Required, NotRequired):
        return _arms(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(arm for each in get_args(annotation) for arm in _arms(each))
    return (annotation,)


def _annotations(model: Any) -> Mapping[str, Any]:
    """Return the fields of a model or of a typed dictionary."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return get_type_hints(model, include_extras=True) if is_typeddict(model) else {}
