"""What passes of losses of elements count for metrics, by the task: the parts that its default metrics are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.compiled import elementwise
from lossd.compiled.forms import flat
from lossd.compiled.kernels import Kernel, kernel_of
from lossd.compiled.work import Work
from lossd.job import Recipe
from lossd.metrics.activation import least_score, least_scores
from lossd.metrics.cutoffs import rounded

__all__ = ["Counting", "counting_of"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Counting:
    """What is counted of a recipe's requests.

    Attributes:
        count: Returns the counts by the name that the task has for them, given a batch.
        kernels: The kernels that it needs.
        nbytes: The bytes of the arrays that it holds.
    """

    count: Callable[[Work], Mapping[str, Any]]
    kernels: Sequence[Kernel] = ()
    nbytes: int = 0


NOTHING = Counting(lambda _: {})


def counting_of(recipe: Recipe) -> Counting:
    """Return what is counted for a recipe's metrics; nothing if no pass counts it.

    The recipe's inputs have one shape and one number of float32 words, and no entry is masked.
    """
    counting = TASKS.get(recipe.task or "")
    if counting is None or not recipe.metrics or recipe.parameters.get("ignore_index") is not None:
        return NOTHING
    return counting(recipe) or NOTHING


def _firsts(work: Work, width: int) -> Array:
    """Return the first element of each request, and the number of all, (B + 1,)."""
    return work.starts() * width


def _sums(counts: Array, starts: Array) -> Array:
    """Return how many of each request's elements are true, (..., E) bool to (..., B) int64."""
    sums: Array = np.add.reduceat(counts, starts[:-1], axis=-1, dtype=np.int64)
    return sums


def _decisions(recipe: Recipe) -> Counting:
    shape = recipe.inputs[0].trailing
    labels, width = shape[0] if recipe.task == "multilabel" and shape else 1, math.prod(shape)
    threshold, domain = recipe.metric_options.get("threshold"), recipe.domains["prediction"]
    least = least_scores(threshold, domain, recipe.dtypes["prediction"], labels)

    def count(work: Work) -> Mapping[str, Any]:
        cells = np.zeros((len(work.rows), labels, 4), np.int64)
        scores, target = work.inputs["prediction"], work.inputs["target"]
        words, starts = scores.itemsize // 4, _firsts(work, width)
        elementwise.decisions(flat(scores), flat(target), words, starts, width // labels, least, cells)
        return {"cells": cells}

    return Counting(count, (kernel_of(elementwise.decisions),), least.nbytes)


def _errors(recipe: Recipe) -> Counting | None:
    if recipe.parameters.get("log_input"):
        return None
    width = math.prod(recipe.inputs[0].trailing)

    def count(work: Work) -> Mapping[str, Any]:
        requests = len(work.rows)
        prediction, target = work.inputs["prediction"], work.inputs["target"]
        sums, (largest, spread), constant = np.empty((requests, 5)), np.empty((2, requests)), np.empty(requests, bool)
        words, starts = prediction.itemsize // 4, _firsts(work, width)
        elementwise.errors(flat(prediction), flat(target), words, starts, sums, largest, spread, constant)
        if not np.isfinite(sums).all():
            return {}
        return {
            "size": np.diff(starts),
            "errors": sums,
            "largest": largest,
            "target_spread": spread,
            "constant_target": constant,
        }

    return Counting(count, (kernel_of(elementwise.errors),))


def _distances(recipe: Recipe) -> Counting:
    width, dtype = math.prod(recipe.inputs[0].trailing), recipe.dtypes["prediction"]
    threshold = recipe.metric_options.get("threshold")

    def count(work: Work) -> Mapping[str, Any]:
        starts = _firsts(work, width)
        limits = [margin / 2 for margin in work.numbers["margin"]] if threshold is None else [threshold]
        cut: Any = rounded(limits[0], dtype)
        if limits.count(limits[0]) < len(limits):
            cut = np.repeat([rounded(limit, dtype) for limit in limits], np.diff(starts))
        near, similar = work.inputs["prediction"].reshape(-1) < cut, work.inputs["target"].reshape(-1) > 0
        hits, positive, true = _sums(np.array((near & similar, near, similar)), starts)
        rest = np.diff(starts) - positive - true + hits
        return {"cells": np.stack((hits, positive - hits, true - hits, rest), 1)[:, None]}

    return Counting(count)


def _ranking(recipe: Recipe) -> Counting:
    width = math.prod(recipe.inputs[0].trailing)

    def count(work: Work) -> Mapping[str, Any]:
        starts, margins = _firsts(work, width), work.numbers["margin"]
        first, second, target = (work.inputs[name].reshape(-1) for name in ("first", "second", "target"))
        margin: Any = first.dtype.type(margins[0])
        if margins.count(margins[0]) < len(margins):
            margin = np.repeat(np.array(margins, first.dtype), np.diff(starts))
        ahead = np.where(target > 0, first > second, second > first)
        with np.errstate(all="ignore"):  # of infinities, which are doubtful
            without = margin - target * (first - second) <= 0  # as the loss itself, in its own dtype
        (right, satisfied), sizes = _sums(np.array((ahead, without)), starts), np.diff(starts)
        return {"right": (right, sizes), "without_loss": (satisfied, sizes)}

    return Counting(count)


def _generated(recipe: Recipe) -> Counting:
    activation = "score" if recipe.task == "lsgan_generator" else "logits"
    least = least_score(recipe.metric_options.get("threshold"), activation, recipe.dtypes["fake"])
    width = math.prod(recipe.inputs[0].trailing)

    def count(work: Work) -> Mapping[str, Any]:
        starts = _firsts(work, width)
        return {"taken": (_sums(work.inputs["fake"].reshape(-1) >= least, starts), np.diff(starts))}

    return Counting(count)


TASKS: Mapping[str, Callable[[Recipe], Counting | None]] = {
    "binary": _decisions,
    "multilabel": _decisions,
    "regression": _errors,
    "distances": _distances,
    "ranking": _ranking,
    "gan_generator": _generated,
    "lsgan_generator": _generated,
}
