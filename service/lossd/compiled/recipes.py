"""Which recipes have a compiled pass, which kernels it needs, and how it takes a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.compiled import dense, elementwise, neighbours, overlaps, softmax, vectors
from lossd.compiled.forms import FLOATS, INTEGERS, Form, doubt_what_vanished, words_of
from lossd.compiled.formula_recipes import FORMULA_FORMS
from lossd.compiled.kernels import Kernel, all_ready, kernel_of
from lossd.compiled.multivariate_recipes import MULTIVARIATE_FORMS
from lossd.compiled.sum_recipes import SUM_FORMS
from lossd.compiled.work import Outcome, Pass, Work
from lossd.job import Column, Recipe
from lossd.metrics.activation import least_scores
from lossd.metrics.classes import matrices_fit

__all__ = ["Found", "look_up"]

Array = npt.NDArray[Any]

NO_CLASS = -1 - (1 << 62)
FOUND_BYTES = 2048
OF_MASK = ("mask", "lengths")
GENERAL = ("z_loss", "prior", "poly", "label_smoothing")
"""The parameters of losses of class scores that only the general way has; a smoothing that varies is a number."""


@dataclass(slots=True, eq=False)
class Found:
    """What is known of a recipe: its pass, and the kernels that must be ready before the pass can run.

    Attributes:
        run: The pass; None if the recipe has none.
        kernels: The kernels that were not ready at the last look.
        nbytes: About how many bytes this and the recipe take in memory.
    """

    run: Pass | None
    kernels: Sequence[Kernel]
    nbytes: int

    def is_ready(self) -> bool:
        """Return whether the kernels are ready; each that is not is asked for."""
        if self.kernels:
            if not all_ready(self.kernels):
                return False
            self.kernels = ()
        return True


def look_up(recipe: Recipe) -> Found:
    """Return what is known of a recipe."""
    form = _form_of(recipe)
    run, kernels = (None, ()) if form is None else (form.evaluate, form.kernels)
    arrays = 0 if form is None else form.array_bytes
    return Found(run, kernels, FOUND_BYTES + recipe.nbytes + arrays)


def _form_of(recipe: Recipe) -> Form | None:
    options = recipe.gradient_options
    plain = (
        recipe.kind in ("rows", "stack")
        and recipe.reduction in ("mean", "batchmean", "sum")
        and recipe.inputs[0].dtype in FLOATS
        and all(words_of(answer.dtype) == words_of(recipe.inputs[0].dtype) for answer in recipe.answers)
        and options.get("clip_norm") is None
        and options.get("clip_value") is None
    )
    form = FORMS.get(recipe.loss or "")
    if recipe.hessians and recipe.loss not in CURVED:
        return None
    return form(recipe) if plain and form is not None else None


def _own_inputs(recipe: Recipe) -> tuple[Column, Column] | None:
    """Return the columns of prediction and target; None if there are further ones than those of a mask."""
    own = [column for column in recipe.inputs if column.name not in OF_MASK]
    return (own[0], own[1]) if [column.name for column in own] == ["prediction", "target"] else None


def _kept(inputs: Mapping[str, Array], shape: tuple[int, ...]) -> Array | None:
    """Return which positions count, (R, I) bool, by a mask or by lengths; None if one of these is out of range.

    Args:
        inputs: The inputs of the batch.
        shape: The shape of the targets.
    """
    lengths = inputs.get("lengths")
    if lengths is not None:
        if lengths.min() < 0 or lengths.max() > shape[1]:
            return None
        within = np.arange(shape[1]) < lengths[:, None]
        return np.broadcast_to(within.reshape(*within.shape, *(1,) * (len(shape) - 2)), shape).reshape(shape[0], -1)
    mask = inputs["mask"].reshape(shape[0], -1)
    if mask.dtype == bool:
        return mask
    return mask != 0 if mask.min() >= 0 and mask.max() <= 1 else None


def _class_scores(recipe: Recipe) -> Form | None:
    own = _own_inputs(recipe)
    if own is None:
        return None
    prediction, target = own
    if target.trailing != prediction.trailing[1:] or target.dtype not in INTEGERS:
        return None
    parameters, classes, positions = recipe.parameters, prediction.trailing[0], math.prod(target.trailing)
    if any(parameters.get(name) is not None for name in GENERAL):
        return None
    weight = _per_class(parameters.get("class_weight"), classes)
    alpha = parameters.get("alpha")
    scale = _per_class(alpha, classes)
    if parameters.get("alpha_mode") == "foreground" and alpha is not None:
        scale[0] = 1 - alpha
    ignored = NO_CLASS if parameters["ignore_index"] is None else parameters["ignore_index"]
    others = parameters.get("smoothing_mode") == "others"  # the target's own class gets no share
    share = classes / (classes - 1) if others and classes > 1 else 1.0 - others
    mean, words, masked = recipe.reduction == "mean", words_of(prediction.dtype), len(recipe.inputs) > 2
    few = classes <= softmax.FEW
    usual, smoothed = softmax.rows if few else softmax.single_rows, (kernel_of(softmax.single_rows),)
    curved = bool(recipe.hessians)
    if curved and (positions > 1 or not few):
        return None
    form = _form_of_hessian(recipe, classes)

    def evaluate(work: Work) -> Outcome | None:
        smooths = any(work.numbers.get("label_smoothing", ()))
        if positions == 1 and few and smooths and (curved or not all_ready(smoothed)):
            return None
        count, starts = len(work.rows), work.starts()
        gamma, smoothing = work.number("gamma"), work.number("label_smoothing") * share
        columns, doubtful = np.zeros((5 + curved, count)), np.zeros(count, bool)
        if positions > 1 and smoothing.any():
            # No pass smooths these. Numbers that differ are rounded the general way: each request keeps its own alone.
            return None if (smoothing == smoothing[0]).all() else Outcome(columns, ~doubtful)
        scores = work.inputs["prediction"]
        labels = work.inputs["target"].astype(np.int64, copy=False)
        if masked:
            kept = _kept(work.inputs, labels.shape)
            if kept is None:
                return Outcome(columns, ~doubtful)
            labels = np.where(kept, labels.reshape(kept.shape), ignored)
        gradient = work.answers.get("gradient.prediction", scores[:0])
        counted = bool(recipe.metrics) and matrices_fit(count, classes, scores.size)
        matrices = np.zeros((count if counted else 0, classes, classes), np.int64)
        hessian = work.answers.get("hessian.prediction", scores[:0]).reshape(-1).view(np.float32)
        memory, slopes = scores.reshape(-1).view(np.float32), gradient.reshape(-1).view(np.float32)
        if positions == 1:
            for rows in (softmax.rows, softmax.single_rows) if few and smooths else (usual,):
                rows(
                    memory, words, labels.reshape(-1), starts, gamma, smoothing, weight, scale, ignored,
                    mean, slopes, columns, matrices, doubtful, *((hessian, form) if rows is softmax.rows else ()),
                )  # fmt: skip
        else:
            _dense(
                work, memory, words, labels.reshape(-1, positions), starts, gamma, weight, scale,
                ignored, mean, slopes, columns, matrices, doubtful,
            )  # fmt: skip
        if words == 2:
            doubt_what_vanished(columns[4], gradient, starts, doubtful)
        flags = ("negative_hessian",) if curved else ()
        return Outcome(columns, doubtful, {"matrices": matrices} if counted else {}, flags)

    functions = (usual,) if positions == 1 else (dense.weigh, dense.part)
    return Form([kernel_of(function) for function in functions], evaluate, weight.nbytes + scale.nbytes)


def _dense(
    work: Work,
    scores: Array,
    words: int,
    target: Array,
    starts: Array,
    gamma: Array,
    weight: Array,
    scale: Array,
    ignored: int,
    mean: bool,
    gradient: Array,
    columns: Array,
    matrices: Array,
    doubtful: Array,
) -> None:
    """As :func:`lossd.compiled.softmax.rows`, but of dense scores and (R, I) targets, without smoothing.

    A large request is evaluated part by part.
    """
    dense.weigh(target, starts, weight, ignored, columns, doubtful)
    for b in np.flatnonzero(~doubtful).tolist():
        denominator = columns[2, b]
        upstream = (1 / denominator if denominator > 0 else 0.0) if mean else 1.0

        def evaluate_part(
            place: tuple[int, int, int, int], b: int = b, upstream: float = upstream
        ) -> tuple[Array, Array]:
            sums, matrix = np.zeros(2), np.zeros_like(matrices[b] if len(matrices) else matrices[:, 0])
            dense.part(
                scores, words, target, *place, gamma[b], weight, scale, ignored, upstream, gradient, sums, matrix
            )  # fmt: skip
            return sums, matrix

        sums = np.zeros(2)
        for part_sums, matrix in work.in_parallel(
            evaluate_part, _parts(int(starts[b]), int(starts[b + 1]), target.shape[1])
        ):
            sums += part_sums
            if len(matrices):
                matrices[b] += matrix
        columns[0, b], columns[1, b], columns[4, b] = sums[0] * upstream, sums[0], math.sqrt(sums[1])
    doubtful |= ~np.isfinite(columns).all(0)


def _parts(first: int, last: int, positions: int) -> list[tuple[int, int, int, int]]:
    """Rows and positions of each part of a request."""
    if positions >= dense.PART:
        return [
            (row, row + 1, start, min(start + dense.PART, positions))
            for row in range(first, last)
            for start in range(0, positions, dense.PART)
        ]
    rows = dense.PART // positions
    return [(row, min(row + rows, last), 0, positions) for row in range(first, last, rows)]


def _per_class(value: float | Sequence[float] | None, classes: int) -> Array:
    return np.full(classes, 1.0) if value is None else np.full(classes, value, np.float64)


def _floor_of(recipe: Recipe) -> float:
    floor = recipe.hessian_options.get("floor")
    return -math.inf if floor is None else float(floor)


def _form_of_hessian(recipe: Recipe, classes: int) -> Array:
    """Return what :func:`lossd.compiled.softmax.rows` takes as ``form``."""
    form = recipe.hessian_options.get("form")
    factor = 1.0
    if recipe.loss == "cross_entropy":
        factor = {"xgboost": 2.0, "lightgbm": classes / max(1, classes - 1)}.get(form or "", 1.0)
    return np.array([factor, form != "fisher", _floor_of(recipe)], np.float64)


def _elements(recipe: Recipe) -> Form | None:
    own = _own_inputs(recipe)
    if recipe.axes or own is None:
        return None
    prediction, target = own
    parameters = recipe.parameters
    if prediction.trailing != target.trailing or target.dtype not in FLOATS:
        return None
    if words_of(prediction.dtype) != words_of(target.dtype):
        return None
    general = ("pos_weight", "ignore_index", "label_smoothing")
    if any(parameters.get(name) is not None for name in general) or parameters.get("from_logits") is False:
        return None
    width, words = math.prod(prediction.trailing), words_of(prediction.dtype)
    element = elementwise.ELEMENTS[recipe.loss or ""]
    floor = _floor_of(recipe)
    alpha = parameters.get("alpha")
    yes, no = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha if parameters["alpha_mode"] == "balance" else alpha)
    labels = prediction.trailing[0] if recipe.task == "multilabel" and prediction.trailing else 1
    threshold, domain = recipe.metric_options.get("threshold"), recipe.domains["prediction"]
    decided = domain == "logits"
    least = least_scores(threshold, domain, prediction.dtype, labels) if decided else np.empty(0)

    def evaluate(work: Work) -> Outcome:
        count, starts = len(work.rows), work.starts() * width
        scores, target = work.inputs["prediction"].reshape(-1), work.inputs["target"].reshape(-1)
        gradient = work.answers.get("gradient.prediction", scores[:0]).reshape(-1)
        scores, target, slopes = scores.view(np.float32), target.view(np.float32), gradient.view(np.float32)
        hessian = work.answers.get("hessian.prediction", work.inputs["prediction"][:0]).reshape(-1).view(np.float32)
        columns, doubtful = np.zeros((5 + len(recipe.hessians), count)), np.zeros(count, bool)
        elementwise.elements(
            element.number,
            scores,
            target,
            words,
            starts,
            work.number(element.parameter),
            yes,
            no,
            recipe.reduction == "mean",
            slopes,
            columns,
            doubtful,
            hessian,
            floor,
        )
        if words == 2:
            doubt_what_vanished(columns[4], gradient, starts, doubtful)
        counted: dict[str, Array] = {}
        if recipe.metrics and decided:
            cells = counted["cells"] = np.zeros((count, labels, 4), np.int64)
            elementwise.decisions(scores, target, words, starts, width // labels, least, cells)
        elif recipe.metrics:
            sums = counted["errors"] = np.empty((count, 5))
            largest, spread = np.empty((2, count))
            constant = np.empty(count, bool)
            elementwise.errors(scores, target, words, starts, sums, largest, spread, constant)
            counted |= {"largest": largest, "target_spread": spread, "constant_target": constant}
        return Outcome(columns, doubtful, counted, ("negative_hessian",) if recipe.hessians else ())

    counting = (elementwise.decisions if decided else elementwise.errors,) if recipe.metrics else ()
    kernels = [kernel_of(function) for function in (elementwise.elements, *counting)]
    return Form(kernels, evaluate, least.nbytes)


CURVED = ("cross_entropy", "focal", "mse", "bce_with_logits")
"""The losses whose passes write Hessians."""

FORMS: Mapping[str, Callable[[Recipe], Form | None]] = {
    "cross_entropy": _class_scores,
    "focal": _class_scores,
    **dict.fromkeys(elementwise.ELEMENTS, _elements),
    **FORMULA_FORMS,
    **vectors.FORMS,
    **neighbours.FORMS,
    **dict.fromkeys(overlaps.BOXES, overlaps.boxes_of),
    **dict.fromkeys(overlaps.REGIONS, overlaps.regions_of),
    **MULTIVARIATE_FORMS,
    **SUM_FORMS,
}
