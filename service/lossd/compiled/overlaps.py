"""The passes of losses of overlaps: of regions, and of paired boxes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lossd.compiled import boxes, elementwise, regions
from lossd.compiled.forms import (
    FLOATS,
    INTEGERS,
    NOTHING,
    Form,
    doubt_what_vanished,
    flat,
    prediction_and_target,
    words_of,
    words_of_all,
)
from lossd.compiled.kernels import kernel_of
from lossd.compiled.work import PassOutput, Work
from lossd.job import Recipe
from lossd.metrics.activation import least_scores
from lossd.metrics.classes import matrices_fit
from lossd.metrics.cutoffs import slack

__all__ = ["BOXES", "REGIONS", "boxes_of", "regions_of"]

Array = npt.NDArray[Any]

BOXES = boxes.LOSSES
REGIONS = ("dice", "jaccard", "tversky", "focal_tversky")

FEW = 8
"""With fewer positions, images are no strips; the general way is as fast."""

MOST_EXACT = 1 << 24
"""The largest class, and so the largest target that does not count, that is a float32."""

EPSILON = {1: float(np.finfo(np.float32).eps), 2: float(np.finfo(np.float64).eps)}


def boxes_of(recipe: Recipe) -> Form | None:
    """Return the form of a loss of paired boxes; None if the general way evaluates these."""
    if prediction_and_target(recipe) is None:
        return None
    if (words := words_of_all(recipe.inputs)) is None or recipe.axes:
        return None
    kind, form = boxes.LOSSES.index(recipe.loss or ""), boxes.FORMATS.index(recipe.parameters["format"])
    threshold = recipe.metric_options.get("iou_threshold") or 0.0
    least = threshold * (1 - slack("float32" if words == 1 else "float64"))
    mean = recipe.reduction == "mean"

    def evaluate(work: Work) -> PassOutput:
        count, starts = len(work.rows), work.starts()
        gradient = work.answers.get("gradient.prediction", NOTHING)
        columns, doubtful, counted = np.zeros((5, count)), np.zeros(count, bool), np.zeros((2, count))
        boxes.pairs(
            kind, form, flat(work.inputs["prediction"]), flat(work.inputs["target"]), words, starts,
            work.number("eps"), mean, flat(gradient), columns, least, counted, doubtful,
        )  # fmt: skip
        if words == 2:
            doubt_what_vanished(columns[4], gradient, starts, doubtful)
        if not recipe.metrics:
            return PassOutput(columns, doubtful)
        sizes = columns[2]
        means = {"overlap": np.array((counted[0], sizes)), "hits": np.array((counted[1], sizes))}
        return PassOutput(columns, doubtful, means)

    return Form([kernel_of(boxes.pairs)], evaluate)


class _Layout(NamedTuple):
    """How a request's scores lie in memory.

    Attributes:
        one: Whether each position has one class.
        images: The images, as the kernel takes them.
        classes: The regions of an image.
        positions: The positions of an image.
        elements: The elements of a region.
    """

    one: bool
    images: int
    classes: int
    positions: int
    elements: int


def _layout_of(recipe: Recipe) -> _Layout | None:
    """Return the layout of a region loss's requests; None if the general way evaluates these."""
    columns, parameters = prediction_and_target(recipe), recipe.parameters
    if columns is None:
        return None
    prediction, target = columns
    one, by_image = parameters["mode"] == "multiclass", parameters["per_image"]
    images, *axes = prediction.trailing
    classes = 1 if parameters["mode"] == "binary" else axes.pop(0)
    positions = math.prod(axes)
    elements = positions if by_image else images * positions
    if classes == 1 and not by_image:  # in memory, the only region is one image
        images, positions = 1, elements
    shape, dtypes = ((prediction.trailing[0], *axes), INTEGERS) if one else (prediction.trailing, FLOATS)
    fits = target.trailing == shape and target.dtype in dtypes
    fits = fits and (one or words_of(target.dtype) == words_of(prediction.dtype)) and not recipe.axes
    ignored = parameters["ignore_index"]
    fits = fits and positions >= FEW and classes <= regions.CLASSES and (ignored is None or abs(ignored) <= MOST_EXACT)
    return _Layout(one, images, classes, positions, elements) if fits else None


def regions_of(recipe: Recipe) -> Form | None:
    """Return the form of a region loss; None if the general way evaluates these."""
    layout, parameters, words = _layout_of(recipe), recipe.parameters, words_of(recipe.inputs[0].dtype)
    if layout is None:
        return None
    one, images, classes, positions, elements = layout
    by_image, mean = parameters["per_image"], recipe.reduction == "mean"
    weight = np.ones(classes) if parameters["class_weight"] is None else np.array(parameters["class_weight"], float)
    if not parameters["include_background"]:
        if classes == 1:
            return None
        weight[0] = 0.0
    flags = parameters["from_logits"], recipe.loss == "focal_tversky", parameters["absent"] == "ignore"
    form = np.array((one, words, images, positions, *flags, by_image, mean), np.int64)
    ignored = math.nan if parameters["ignore_index"] is None else parameters["ignore_index"]
    parts_of_image = -(-positions // regions.PART)
    decides = recipe.task in ("binary", "multilabel") and bool(recipe.metrics) and parameters["ignore_index"] is None
    labels = recipe.inputs[0].trailing[1] if recipe.task == "multilabel" else 1
    threshold, domain = recipe.metric_options.get("threshold"), recipe.domains["prediction"]
    least = least_scores(threshold, domain, recipe.inputs[0].dtype, labels) if decides else np.empty(0)

    def evaluate(work: Work) -> PassOutput:
        count = len(work.rows)
        scores, truth = flat(work.inputs["prediction"]), work.inputs["target"]
        truth = flat(truth.astype(np.float32 if words == 1 else np.float64) if one else truth)
        gradient = work.answers.get("gradient.prediction", NOTHING)
        slopes = flat(gradient)
        columns, doubtful = np.zeros((5, count)), np.zeros(count, bool)
        counted = one and bool(recipe.metrics) and matrices_fit(count, classes, len(scores) // words)
        matrices = np.zeros((count if counted else 0, classes, classes), np.int64)
        groups, parts = count * (images if by_image else 1), count * images * parts_of_image
        sums, pulls = np.zeros((parts, regions.ROWS, classes)), np.empty((groups, 2, classes))
        numbers = _numbers(recipe, work, elements * EPSILON[words], ignored)

        def take(steps: int, first: int, last: int, matrices: Array = matrices) -> Array:
            regions.regions(
                steps, first, last, form, scores, truth, numbers, weight, sums, pulls, slopes, columns, matrices,
                doubtful,
            )  # fmt: skip
            return matrices

        last = parts if len(slopes) else 0
        if work.threads is None or parts_of_image == 1:
            take(regions.SUMS, 0, parts)
            take(regions.VALUES | regions.SLOPES, 0, last)
        else:
            each = range(parts)
            blank = np.zeros_like(matrices)
            # Threads that count in one matrix lose counts.
            for part_matrices in work.in_parallel(lambda n: take(regions.SUMS, n, n + 1, blank.copy()), each):
                matrices += part_matrices
            take(regions.VALUES, 0, 0)
            list(work.in_parallel(lambda n: take(regions.SLOPES, n, n + 1), each[:last]))
        columns[4] = np.sqrt(sums[:, regions.SQUARE, 0].reshape(count, -1).sum(1)) if last else 0.0
        doubtful |= ~np.isfinite(columns).all(0)
        if words == 2:
            doubt_what_vanished(columns[4], gradient, np.arange(count + 1), doubtful)
        if decides:
            cells, width = np.zeros((count, labels, 4), np.int64), math.prod(recipe.inputs[0].trailing)
            following = width // recipe.inputs[0].trailing[0] // labels
            elementwise.decisions(scores, truth, words, np.arange(count + 1) * width, following, least, cells)
            return PassOutput(columns, doubtful, {"cells": cells})
        return PassOutput(columns, doubtful, {"matrices": matrices} if counted else {})

    kernels = (regions.regions, elementwise.decisions) if decides else (regions.regions,)
    return Form([kernel_of(function) for function in kernels], evaluate, weight.nbytes)


def _numbers(recipe: Recipe, work: Work, tiny: float, ignored: float) -> Array:
    """Return what :func:`lossd.compiled.regions.regions` takes as ``numbers``."""
    numbers = np.empty((6, len(work.rows)))
    smooth = work.number("smooth")
    numbers[regions.TINY] = tiny
    match recipe.loss:
        case "dice":
            numbers[regions.ALPHA] = numbers[regions.BETA] = 0.5
            smooth = smooth / 2
            numbers[regions.TINY] = tiny / 2
        case "jaccard":
            numbers[regions.ALPHA] = numbers[regions.BETA] = 1.0
        case _:
            numbers[regions.ALPHA], numbers[regions.BETA] = work.number("alpha"), work.number("beta")
    numbers[regions.SMOOTH], numbers[regions.GAMMA] = smooth, work.number("gamma")
    numbers[regions.IGNORED] = ignored
    return numbers
