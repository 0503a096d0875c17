"""Finds the requests whose predictions look like probabilities although their loss reads logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

import lossd.metrics as metrics
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.columns import Columns
from lossd.job import Recipe
from lossd.losses import REGISTRY
from lossd.losses.reduction import Segments

Scores = Tensor | npt.NDArray[Any]

__all__ = ["probabilities_as_logits", "reads_logits"]

FEW = 32
"""How many entries of a request are read at first: they tell most logits from probabilities."""


def reads_logits(recipe: Recipe) -> bool:
    """Return whether a loss makes probabilities of ``prediction``, every entry of which counts."""
    if recipe.loss is None or not recipe.evaluates_loss or recipe.axes or recipe.task not in metrics.TASKS:
        return False
    return recipe.domains.get("prediction") == "logits" and REGISTRY[recipe.loss].probabilistic


def probabilities_as_logits(batch: TensorBatch, segments: Segments, view: Callable[[], metrics.View]) -> list[int]:
    """Return the positions of the requests whose scores look like probabilities, as metrics alone judge them.

    Args:
        batch: The batch; its loss reads logits.
        segments: The rows of each request; one row each if requests are stacked.
        view: Returns the batch as metrics read it.
    """
    recipe = batch.recipe
    if "sample_weight" not in recipe.dtypes:  # else the first entries may not count
        columns = batch.inputs
        scores = (
            columns["prediction"] if recipe.half or not isinstance(columns, Columns) else columns.arrays["prediction"]
        )
        flat = scores.reshape(-1)
        if segments.count == 1:
            if not 0 <= flat[0].item() <= 1 or not _are_fractions(flat[:FEW]):
                return []
        elif not _some_begin_with_fractions(flat, segments):
            return []
    assert recipe.task is not None
    with np.errstate(all="ignore"):
        found = metrics.TASKS[recipe.task](view()).resemble_probabilities()
    return [position for position, one in enumerate(found) if one]


def _some_begin_with_fractions(flat: Scores, segments: Segments) -> bool:
    width = len(flat) // segments.total
    starts = [width * row for row in segments.starts]
    for start, rows, score in zip(starts, segments.rows, flat[starts].tolist(), strict=True):
        if 0 <= score <= 1 and _are_fractions(flat[start : start + min(FEW, width * rows)]):
            return True
    return False


def _are_fractions(scores: Scores) -> bool:
    entries: list[float] = scores.tolist()
    return min(entries) >= 0 and max(entries) <= 1
