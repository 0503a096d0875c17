"""How the losses of :mod:`lossd.compiled.multivariate` take a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.compiled import multivariate
from lossd.compiled.forms import FLOATS, INTEGERS, NOTHING, Form, doubt_what_vanished, words_of
from lossd.compiled.kernels import kernel_of
from lossd.compiled.work import PassOutput, Work
from lossd.job import Recipe

__all__ = ["MULTIVARIATE_FORMS"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

EXACT = 1 << 53
"""Up to this size float64 has every integer."""

MOST_PAIRS = 1 << 22
"""The most pairs of documents of a request: a pass cannot be cancelled, and they take some 50 ms."""


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The parts of a recipe that a loss reads.

    Attributes:
        second: The name of the second input; "" for none.
        label: The name of the input of class indices; "" for none.
        whole: Whether the second input may be of integers or booleans.
        shared: The numbers that all rows share.
        a: The first parameter: a name, or a number that all requests share.
        b: The second parameter.
        some: Whether only rows count of which the second input has several numbers.
    """

    second: str = ""
    label: str = ""
    whole: bool = False
    shared: Floats = field(default_factory=lambda: np.empty(0))
    a: str | float = 0.0
    b: str | float = 0.0
    some: bool = False


def _distillation(recipe: Recipe) -> _Inputs | None:
    parameters, ignored = recipe.parameters, recipe.parameters["ignore_index"]
    labelled = any(column.name == "target" for column in recipe.inputs)
    if parameters["divergence"] != "forward" or (labelled and ignored is not None and ignored >= 0):
        return None
    shared = np.array([parameters["scale"] == "temperature", 0.0 if labelled else -1.0])
    return _Inputs("teacher", "target" if labelled else "", shared=shared, a="temperature", b="alpha")


def _list_net(recipe: Recipe) -> _Inputs | None:
    return _Inputs("target", whole=True) if recipe.parameters["target_form"] == "softmax" else None


def _ranknet(recipe: Recipe) -> _Inputs | None:
    return _Inputs("target", whole=True, a="sigma", some=True) if recipe.pairs <= MOST_PAIRS else None


def _kl_div(recipe: Recipe) -> _Inputs | None:
    return None if recipe.parameters["log_target"] else _Inputs("target")


def _quantiles(recipe: Recipe) -> _Inputs | None:
    levels = np.array(recipe.parameters["levels"], np.float64)
    shares = np.concatenate([1 - levels, levels]) / len(levels)
    return _Inputs("target", whole=True, shared=shares, a="crossing_penalty")


def _crps_ensemble(recipe: Recipe) -> _Inputs | None:
    members = recipe.inputs[0].trailing[0]
    if members > multivariate.MOST_MEMBERS:
        return None
    fair = recipe.parameters["estimator"] == "fair"
    return _Inputs("target", whole=True, a=float(members * (members - fair)))


def _multi_margin(recipe: Recipe) -> _Inputs | None:
    return _Inputs(label="target", shared=_weights(recipe), a="margin", b=float(recipe.parameters["p"]))


def _multilabel_soft_margin(recipe: Recipe) -> _Inputs | None:
    if recipe.parameters["ignore_index"] is not None:
        return None
    return _Inputs("target", whole=True, shared=_weights(recipe))


def _weights(recipe: Recipe) -> Floats:
    weight = recipe.parameters["class_weight"]
    return np.ones(recipe.inputs[0].trailing[0]) if weight is None else np.array(weight, np.float64)


INPUTS: Mapping[str, Callable[[Recipe], _Inputs | None]] = {
    "distillation": _distillation,
    "list_net": _list_net,
    "ranknet": _ranknet,
    "kl_div": _kl_div,
    "quantiles": _quantiles,
    "crps_ensemble": _crps_ensemble,
    "multi_margin": _multi_margin,
    "multilabel_soft_margin": _multilabel_soft_margin,
}


def _form(recipe: Recipe) -> Form | None:
    if recipe.axes or recipe.inputs[0].name != "prediction" or not recipe.evaluates_loss:  # it counts for no metric
        return None
    found = INPUTS[recipe.loss or ""](recipe)
    columns = {column.name: column for column in recipe.inputs}
    if found is None or columns.keys() != {"prediction", found.second, found.label} - {""}:
        return None
    prediction, second, label = columns["prediction"], columns.get(found.second), columns.get(found.label)
    if second is not None and second.dtype not in (*FLOATS, *(("bool", *INTEGERS) if found.whole else ())):
        return None
    if label is not None and label.dtype not in INTEGERS:
        return None
    width, positions = prediction.trailing[0], math.prod(prediction.trailing[1:])
    if positions > 1 and width > multivariate.MOST_STRIDES:
        return None
    words, second_width, second_words = words_of(prediction.dtype), 0, 1
    if second is not None:
        second_width = math.prod(second.trailing) // positions
        second_words = words_of(second.dtype) if second.dtype in FLOATS else 2
    number, by_samples = multivariate.ROW_LOSSES[recipe.loss or ""], recipe.reduction == "batchmean"
    entries = positions * (width if recipe.loss == "kl_div" else 1)
    shared, mean = found.shared, recipe.reduction != "sum"

    def evaluate(work: Work) -> PassOutput:
        count, starts = len(work.rows), work.starts()
        scores = work.inputs["prediction"].reshape(-1)
        other, doubtful = NOTHING, np.zeros(count, bool)
        if second is not None:
            other = work.inputs[second.name].reshape(-1)
            if second.dtype not in FLOATS:
                if second.dtype == "int64" and (other.min() < -EXACT or other.max() > EXACT):
                    return PassOutput(np.zeros((5, count)), ~doubtful)
                other = other.astype(np.float64)
            other = other.view(np.float32)
        labels = np.empty(0, np.int64)
        if label is not None:
            labels = work.inputs[label.name].reshape(-1).astype(np.int64, copy=False)
        gradient = work.answers.get("gradient.prediction", scores[:0]).reshape(-1)
        sizes = (starts[1:] - starts[:-1]).astype(np.float64)
        if found.some:
            of_rows = work.inputs[found.second]
            sizes -= np.add.reduceat(of_rows.max(1) == of_rows.min(1), starts[:-1], dtype=np.int64)
        denominator = sizes if by_samples else sizes * entries
        upstream = 1 / np.maximum(denominator, 1) if mean else np.ones(count)
        columns = np.empty((5 + found.some, count))
        multivariate.multivariate(
            number, scores.view(np.float32), words, other, second_words, second_width, labels, starts, positions,
            shared, _number(work, found.a), _number(work, found.b), upstream, gradient.view(np.float32), columns[3:5],
            doubtful,
        )  # fmt: skip
        columns[1] = columns[3]
        columns[0] = columns[1] * upstream
        columns[2], columns[3] = denominator, sizes * entries
        if words == 2:
            doubt_what_vanished(columns[4], gradient, starts * width * positions, doubtful)
        if found.some:
            columns[5] = (starts[1:] - starts[:-1]) - sizes
        return PassOutput(columns, doubtful, flags=("no_positives",) if found.some else ())

    return Form([kernel_of(multivariate.multivariate)], evaluate, shared.nbytes)


def _number(work: Work, parameter: str | float) -> Floats:
    if isinstance(parameter, str):
        return work.number(parameter)
    return np.full(len(work.rows), parameter)


MULTIVARIATE_FORMS: Mapping[str, Callable[[Recipe], Form | None]] = dict.fromkeys(INPUTS, _form)
