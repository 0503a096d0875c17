"""The pass of Lovász-softmax, in NumPy.

The gradient depends on the order of the errors, and neighbours may differ in their last bit. So the probabilities are
torch's own, as the general way has them, and equal errors keep their order: each is sorted as one integer of its bits
and its position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.compiled import confusion
from lossd.compiled.forms import INTEGERS, NOTHING, Form, flat, prediction_and_target, words_of
from lossd.compiled.kernels import kernel_of
from lossd.compiled.work import PassOutput, Work
from lossd.job import Recipe
from lossd.lazy_torch import torch
from lossd.metrics.classes import matrices_fit

__all__ = ["LOVASZ_FORMS"]

Array = npt.NDArray[Any]

BLOCK = 1 << 14
"""Scores that are evaluated at a time, if those of one request are not more: few enough for a core's own cache."""

MOST = 1 << 20
"""The most scores of a request: a pass cannot be cancelled."""

SMALL, LARGE = 1e-30, 1e30
"""What float32 computes well is between these; the general way evaluates the rest again, in float64."""

NO_CLASS = -1


def _order(errors: Array) -> Array:
    """Return the flat indices of errors, (r, E) float32 >= 0, in the falling order of each row, (r, E) int64."""
    rows, width = errors.shape
    keys = (~errors.view(np.uint32)).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(rows * width, dtype=np.uint64).reshape(rows, width)
    keys.sort(axis=-1)
    keys &= np.uint64(0xFFFFFFFF)
    return keys.view(np.int64)


def _steps(present: Array, order: Array) -> Array:
    """Return what each position adds to the Jaccard loss as it joins the set of errors, (r, E) float64.

    Args:
        present: Whether the position is of the class, (r, E) bool.
        order: The flat indices of the positions, in the order in which they join.
    """
    missed = np.cumsum(present.reshape(-1)[order], -1, dtype=np.float64)
    kept = missed[:, -1:] - missed
    jaccard = 1 - kept / (kept + np.arange(1, order.shape[1] + 1))
    steps = np.empty(order.size)
    steps[order[:, 0]] = jaccard[:, 0]
    steps[order[:, 1:]] = jaccard[:, 1:] - jaccard[:, :-1]
    return steps.reshape(order.shape)


def _evaluate(scores: Array, target: Array, by_image: bool, mean: bool, gradient: Array | None) -> Array:
    """Evaluate b requests, and return their columns, (5, b).

    Args:
        scores: (b, N, C, P) float32.
        target: (b, N, P), the classes, in range.
        by_image: Whether each image has a mean of its own.
        mean: Whether the loss is the mean, else the sum.
        gradient: (b, N, C, P) float32, written; None if it is not wanted.
    """
    count, images, classes, positions = scores.shape
    p = np.empty_like(scores)
    for one, its in zip(torch.from_numpy(scores), torch.from_numpy(p), strict=True):
        torch.softmax(one, 1, out=its)  # of each request: last bits depend on how many images are given at once
    present: Array = target[:, :, None] == np.arange(classes)[:, None]
    error = p - present
    if not by_image:  # a region is of all images of a request
        error, present = error.swapaxes(1, 2), present.swapaxes(1, 2)
    width = positions if by_image else images * positions
    shape, rows = (count, -1, classes, width), (-1, width)
    size, present = np.abs(error).reshape(shape), present.reshape(shape)
    steps = _steps(present.reshape(rows), _order(size.reshape(rows))).reshape(size.shape)
    share = present.any(-1).astype(np.float64)
    if by_image:
        share /= share.sum(-1, keepdims=True)
    value = (size * steps).sum(-1) * share
    columns = np.zeros((5, count))
    columns[1], columns[2] = value.sum((1, 2)), share.sum((1, 2))
    columns[3] = np.count_nonzero(share, axis=(1, 2))
    upstream = 1 / columns[2] if mean else np.ones(count)
    columns[0] = columns[1] * upstream
    if gradient is not None:
        factor = (share * upstream[:, None, None])[..., None]
        slopes = (steps * factor).astype(np.float32)
        if not by_image:
            slopes = slopes.reshape(count, classes, images, positions).swapaxes(1, 2)
            error = error.swapaxes(1, 2)
        slopes = slopes.reshape(scores.shape) * np.sign(error)
        np.multiply(p, slopes - (p * slopes).sum(2, keepdims=True), out=gradient)
        columns[4] = np.sqrt(np.square(gradient.reshape(count, -1), dtype=np.float64).sum(1))
    return columns


def _lovasz(recipe: Recipe) -> Form | None:
    inputs, parameters = prediction_and_target(recipe), recipe.parameters
    if inputs is None or recipe.axes or parameters["ignore_index"] is not None:
        return None
    if not recipe.evaluates_loss:  # the metrics alone are counted as fast without it
        return None
    prediction, target = inputs
    if parameters["mode"] != "multiclass" or not parameters["from_logits"] or words_of(prediction.dtype) != 1:
        return None
    images, classes, *axes = prediction.trailing
    positions, size = math.prod(axes), math.prod(prediction.trailing)
    if target.trailing != (images, *axes) or target.dtype not in INTEGERS or size > MOST:
        return None
    by_image, mean, step = parameters["per_image"], recipe.reduction == "mean", max(1, BLOCK // size)

    def evaluate(work: Work) -> PassOutput:
        count = len(work.rows)
        scores = work.inputs["prediction"].reshape(count, images, classes, positions)
        labels = work.inputs["target"].astype(np.int64, copy=False).reshape(count, images, positions)
        gradient = work.answers.get("gradient.prediction", NOTHING)
        slopes = gradient.reshape(scores.shape) if len(gradient) else None
        doubtful = (labels.min((1, 2)) < 0) | (labels.max((1, 2)) >= classes)
        if doubtful.any():
            labels = np.where(doubtful[:, None, None], 0, labels)
        with np.errstate(all="ignore"):  # of what is not finite, which is doubtful
            columns = np.concatenate(
                [
                    _evaluate(scores[part], labels[part], by_image, mean, None if slopes is None else slopes[part])
                    for part in (slice(first, first + step) for first in range(0, count, step))
                ],
                1,
            )
            doubtful |= ~((columns[1] > SMALL) & (columns[1] < LARGE))
            if slopes is not None:
                doubtful |= ~((columns[4] > SMALL) & (columns[4] < LARGE))
        if not (recipe.metrics and matrices_fit(count, classes, scores.size)):
            return PassOutput(columns, doubtful)
        matrices, starts = np.zeros((count, classes, classes), np.int64), np.arange(count + 1) * images
        confusion.matrices(flat(scores), 1, labels.reshape(-1, positions), starts, NO_CLASS, matrices)
        return PassOutput(columns, doubtful, {"matrices": matrices})

    return Form([kernel_of(confusion.matrices)] if recipe.metrics else (), evaluate)


LOVASZ_FORMS: Mapping[str, Callable[[Recipe], Form | None]] = {"lovasz": _lovasz}
