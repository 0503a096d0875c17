"""How the losses of class scores take a batch: those of :mod:`lossd.compiled.softmax`, and of log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lossd.compiled import confusion, dense, softmax
from lossd.compiled.forms import (
    INTEGERS,
    OF_MASK,
    Form,
    doubt_what_left_range,
    doubt_what_vanished,
    flat,
    floor_of,
    prediction_and_target,
    words_of,
)
from lossd.compiled.kernels import all_ready, kernel_of
from lossd.compiled.work import PassOutput, Work
from lossd.job import Recipe
from lossd.metrics.classes import matrices_fit

__all__ = ["CLASS_FORMS"]

Array = npt.NDArray[Any]

NO_CLASS = -1 - (1 << 62)
ROUNDED = 1e-3
"""What rounding may add to a log-probability of 0."""

GENERAL = ("z_loss", "prior", "poly", "label_smoothing")
"""The parameters of losses of class scores that only the general way has; a smoothing that varies is a number."""


class _Classes(NamedTuple):
    """What the losses of class scores read of a recipe.

    Attributes:
        classes: The number of classes.
        positions: The positions of a row.
        weight: The class weights, (C,).
        ignored: The target that does not count.
        masked: Whether there is a mask, or lengths.
        words: The float32 words of a score.
        mean: Whether the loss is the mean, else the sum.
    """

    classes: int
    positions: int
    weight: Array
    ignored: int
    masked: bool
    words: int
    mean: bool

    def labels(self, inputs: Mapping[str, Array]) -> Array | None:
        """Return the targets, (R, I) int64, ignored where masked; None if the mask is out of range."""
        labels = inputs["target"].astype(np.int64, copy=False)
        kept = _kept(inputs, labels.shape) if self.masked else True
        labels = labels.reshape(len(labels), self.positions)
        return None if kept is None else np.where(kept, labels, self.ignored) if self.masked else labels


def _classes_of(recipe: Recipe) -> _Classes | None:
    columns = prediction_and_target(recipe, OF_MASK)
    if columns is None:
        return None
    prediction, target = columns
    if target.trailing != prediction.trailing[1:] or target.dtype not in INTEGERS:
        return None
    classes, ignored = prediction.trailing[0], recipe.parameters["ignore_index"]
    return _Classes(
        classes,
        math.prod(target.trailing),
        _per_class(recipe.parameters.get("class_weight"), classes),
        NO_CLASS if ignored is None else ignored,
        len(recipe.inputs) > 2,
        words_of(prediction.dtype),
        recipe.reduction == "mean",
    )


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
    found, parameters = _classes_of(recipe), recipe.parameters
    if found is None or any(parameters.get(name) is not None for name in GENERAL):
        return None
    classes, positions, weight, ignored, _, words, mean = found
    alpha = parameters.get("alpha")
    scale = _per_class(alpha, classes)
    if parameters.get("alpha_mode") == "foreground" and alpha is not None:
        scale[0] = 1 - alpha
    others = parameters.get("smoothing_mode") == "others"  # the target's own class gets no share
    share = classes / (classes - 1) if others and classes > 1 else 1.0 - others
    few = classes <= softmax.FEW
    usual, smoothed = softmax.rows if few else softmax.single_rows, (kernel_of(softmax.single_rows),)
    curved = bool(recipe.hessians)
    if curved and (positions > 1 or not few):
        return None
    form = _form_of_hessian(recipe, classes)

    def evaluate(work: Work) -> PassOutput | None:
        smooths = any(work.numbers.get("label_smoothing", ()))
        if positions == 1 and few and smooths and (curved or not all_ready(smoothed)):
            return None
        count, starts = len(work.rows), work.starts()
        gamma, smoothing = work.number("gamma"), work.number("label_smoothing") * share
        columns, doubtful = np.zeros((5 + curved, count)), np.zeros(count, bool)
        if positions > 1 and smoothing.any():
            # No pass smooths these. Numbers that differ are rounded the general way: each request keeps its own alone.
            return None if (smoothing == smoothing[0]).all() else PassOutput(columns, ~doubtful)
        scores = work.inputs["prediction"]
        labels = found.labels(work.inputs)
        if labels is None:
            return PassOutput(columns, ~doubtful)
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
                work, memory, words, labels, starts, gamma, weight, scale,
                ignored, mean, slopes, columns, matrices, doubtful,
            )  # fmt: skip
        if words == 2:
            doubt_what_vanished(columns[4], gradient, starts, doubtful)
        flags = ("negative_hessian",) if curved else ()
        return PassOutput(columns, doubtful, {"matrices": matrices} if counted else {}, flags)

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


def _form_of_hessian(recipe: Recipe, classes: int) -> Array:
    """Return what :func:`lossd.compiled.softmax.rows` takes as ``form``."""
    form = recipe.hessian_options.get("form")
    factor = 1.0
    if recipe.loss == "cross_entropy":
        factor = {"xgboost": 2.0, "lightgbm": classes / max(1, classes - 1)}.get(form or "", 1.0)
    return np.array([factor, form != "fisher", floor_of(recipe)], np.float64)


def _log_probabilities(recipe: Recipe) -> Form | None:
    found = _classes_of(recipe)
    if found is None:
        return None
    classes, positions, weight, ignored, _, words, mean = found

    def evaluate(work: Work) -> PassOutput:
        count, starts = len(work.rows), work.starts()
        columns, doubtful = np.zeros((5, count)), np.zeros(count, bool)
        labels = found.labels(work.inputs)
        if labels is None:
            return PassOutput(columns, ~doubtful)
        dense.weigh(labels, starts, weight, ignored, columns, doubtful)
        if doubtful.any():
            labels = np.where(np.repeat(doubtful, work.rows)[:, None], 0, labels)
        scores, firsts = work.inputs["prediction"].reshape(-1), starts[:-1] * positions
        kept = labels != ignored
        target = np.where(kept, labels, 0)
        share = weight[target] * kept
        row = np.arange(0, scores.size, classes * positions)[:, None]
        place = (target * positions + row + np.arange(positions)).reshape(-1)  # of the target's score in memory
        with np.errstate(all="ignore"):  # of what is not finite, which is doubtful
            log_p = scores[place].reshape(share.shape)
            value = np.where(share == 0, 0.0, -share * log_p)
            columns[1] = np.add.reduceat(value.reshape(-1), firsts)
            upstream = 1 / np.where(columns[2] > 0, columns[2], np.inf) if mean else np.ones(count)
            columns[0] = columns[1] * upstream
            slopes = -share * np.repeat(upstream, work.rows)[:, None]
            columns[4] = np.sqrt(np.add.reduceat((slopes * slopes).reshape(-1), firsts))
            gradient = work.answers.get("gradient.prediction", scores[:0])
            if gradient.size:
                gradient[...] = 0
                gradient.reshape(-1)[place] = slopes.reshape(-1)
        doubtful |= ~np.isfinite(columns).all(0)
        # The general way warns of scores that are no log-probabilities.
        doubtful |= np.logical_or.reduceat(((log_p > ROUNDED) & (share != 0)).reshape(-1), firsts)
        doubt_what_left_range(words, columns[4], gradient, starts, doubtful)
        if not (recipe.metrics and matrices_fit(count, classes, scores.size)):
            return PassOutput(columns, doubtful)
        matrices = np.zeros((count, classes, classes), np.int64)
        confusion.matrices(flat(scores), words, labels, starts, ignored, matrices)
        return PassOutput(columns, doubtful, {"matrices": matrices})

    counting = (confusion.matrices,) if recipe.metrics else ()
    return Form([kernel_of(function) for function in (dense.weigh, *counting)], evaluate, weight.nbytes)


CLASS_FORMS: Mapping[str, Callable[[Recipe], Form | None]] = {
    "cross_entropy": _class_scores,
    "focal": _class_scores,
    "nll": _log_probabilities,
}
"""Losses of one class for each position."""
