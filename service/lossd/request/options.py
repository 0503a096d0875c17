"""The request's options as Pydantic models."""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from lossd.losses.registry import loss_object
from lossd.losses.types import FIRST_FAULT, Fraction, Positive
from lossd.request.fields import without_nulls

__all__ = ["Envelope", "GradientOptions", "HessianOptions", "MetricOptions", "spelled_out"]

FloatName = Literal["float64", "float32", "float16", "bfloat16"]


MAX_METRICS = 256
MAX_THRESHOLDS = 1 << 14
MAX_OUTPUTS = 5 + 2 * 1024  # loss, gradient, hessian, hvp, metrics, and a gradient and a Hessian by each tensor
LIBRARY_FLOOR = 1e-16
"""The least second derivative in XGBoost (``LogisticRegression::SecondOrderGradient``)."""


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
        whole["loss"] = loss_object(request["loss"])
    if isinstance(request.get("outputs"), str):
        whole["outputs"] = [request["outputs"]]
    options = request.get("metrics")
    if isinstance(options, str | list):
        options = {"names": options}
    if isinstance(options, dict) and isinstance(options.get("names"), str):
        options = {**options, "names": [options["names"]]}
    for name, fields, model in (
        ("metrics", options, MetricOptions),
        ("gradient", request.get("gradient"), GradientOptions),
        ("hessian", request.get("hessian"), HessianOptions),
    ):
        if fields is not None:
            whole[name] = without_nulls(model, fields) if isinstance(fields, dict) else fields
    return whole
