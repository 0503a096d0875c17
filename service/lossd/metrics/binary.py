"""Yes-or-no decisions: one positive class (binary), or several labels that exclude nothing (multilabel)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lossd.losses.registry import Input
from lossd.metrics.activation import least_score, probabilities
from lossd.metrics.counts import Counts
from lossd.metrics.entries import Entries
from lossd.metrics.ranking import Ranking
from lossd.metrics.registry import Array, Floats, View, metric, task
from lossd.metrics.signature import SAMPLE_WEIGHT, given, numbers, prediction
from lossd_client.errors import Fault, InvalidRequest

__all__ = ["Binary", "Decided", "Multilabel"]

DEFAULT_THRESHOLD = 0.5


class Decided(Counts):
    """Counts of decisions, given as the four kinds there are.

    Args:
        view: The batch.
        cells: (B, K, 4): true positives, false positives, false negatives, true negatives.
    """

    def __init__(self, view: View, cells: Array) -> None:
        super().__init__(view)
        self.cells = cells
        self.tp, self.fp, self.fn = cells[..., 0], cells[..., 1], cells[..., 2]

    @cached_property
    def negatives(self) -> Array:
        """Entries that are not positive."""
        return self.cells[..., 1] + self.cells[..., 3]

    @cached_property
    def right(self) -> tuple[Array, Array]:
        """Right decisions and all decisions of each request, whatever the label."""
        sums = self.cells.sum(1)
        return sums[:, 0] + sums[:, 3], sums.sum(1)


def decisions(predicted: Tensor, actual: Tensor, entries: Entries) -> Array:
    """The cells of decisions.

    Args:
        predicted: (R, K, I) bool.
        actual: (R, K, I) bool.
        entries: Of (R, K·I).

    Returns:
        (B, K, 4), int64 or weighted float64: true and false positives, false and true negatives.
    """
    count = torch.full((), predicted.shape[2], device=predicted.device)
    if entries.ignored is not None:
        kept = ~entries.ignored.expand(predicted.shape[0], predicted[0].numel()).reshape(predicted.shape)
        predicted, actual = predicted & kept, actual & kept
        count = kept.sum(2)
    both, said, true = (predicted & actual).sum(2), predicted.sum(2), actual.sum(2)
    rows = torch.stack([both, said - both, true - both, count - said - true + both], 2)
    if entries.weight is not None:
        rows = rows * entries.weight.reshape(-1, 1, 1)
    return entries.segments.sum(rows).numpy(force=True)


@task("binary")
class Binary(Decided):
    """Decisions of one positive class, each entry of the tensors one of them.

    A prediction is positive from the probability ``threshold`` on (NaN never is), a target from 0.5 on, so that soft
    targets and targets of -1 and 1 decide as well.
    """

    averaged: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("threshold", "zero_division")

    def __init__(self, view: View) -> None:
        scores, target = (view.tensors[name] for name in ("prediction", "target"))
        self.scores = self.by_label(scores)
        self.positive = self.by_label(target) >= 0.5
        flat = target.reshape(target.shape[0], -1)
        self.entries = Entries(view, None if view.ignore_index is None else flat == view.ignore_index)
        threshold = view.options.get("threshold")
        least = least_score(DEFAULT_THRESHOLD if threshold is None else threshold, view.activation)
        self.predicted_positive = self.scores >= least
        super().__init__(view, decisions(self.predicted_positive, self.positive, self.entries))

    @staticmethod
    def by_label(tensor: Tensor) -> Tensor:
        """The tensor as (R, K, I): rows, labels, all further positions."""
        return tensor.reshape(tensor.shape[0], 1, -1)

    @property
    def columns(self) -> int:
        """How many labels there are."""
        return self.scores.shape[1]

    def ranking(self, request: int, column: int | None) -> Ranking:
        """The elements of one request and label, or of all labels, that count."""
        rows = self.entries.rows_of(request)
        label = slice(None) if column is None else slice(column, column + 1)
        ignored = self.entries.ignored
        if ignored is not None:
            ignored = ignored[rows].expand(-1, self.scores[0].numel()).reshape(self.scores[rows].shape)[:, label]
        weight = None if self.entries.weight is None else self.entries.weight[rows]
        return Ranking.of(self.scores[rows, label], self.positive[rows, label], ignored, weight)

    def as_threshold(self, scores: Floats) -> Floats:
        """Scores as probabilities."""
        return probabilities(torch.from_numpy(scores), self.view.activation).numpy()

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Scores and targets of one shape."""
        summary = "Same shape; positive from 0.5 on."
        return prediction(options, "N *"), given("target", summary, numbers("mask", "N *")), SAMPLE_WEIGHT

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """A threshold of probabilities is in [0, 1]."""
        threshold = options.get("threshold")
        if threshold is not None and threshold > 1:
            detail = f"threshold is a probability here, in [0, 1], found {threshold:g}"
            raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/threshold", detail=detail)])


@task("multilabel")
class Multilabel(Binary):
    """Decisions of several labels, which are the second axis; a tensor without one has a single label.

    Thresholds are those of the task binary.
    """

    averaged: ClassVar[bool] = True

    @staticmethod
    def by_label(tensor: Tensor) -> Tensor:
        """The tensor as (R, K, I): rows, labels, all further positions."""
        return tensor.reshape(tensor.shape[0], tensor.shape[1] if tensor.ndim > 1 else 1, -1)


@metric("binary")
def per_image_iou(task: Binary) -> Sequence[Any]:
    """IoU of each image (row) on its own, averaged over the images that hold or are predicted to hold a positive."""
    return _per_image(task, "per_image_iou", 1, 1)


@metric("binary")
def per_image_dice(task: Binary) -> Sequence[Any]:
    """Dice (F1) of each image (row) on its own, averaged over the images as in per_image_iou."""
    return _per_image(task, "per_image_dice", 2, 0)


def _per_image(task: Binary, name: str, factor: int, intersections: int) -> list[Any]:
    """factor·tp / (predicted + actual − intersections·tp), image by image."""
    cells = decisions(task.predicted_positive, task.positive, task.entries.by_row())[:, 0]
    tp = cells[:, :1]
    denominator = (2 - intersections) * tp + cells[:, 1:2] + cells[:, 2:3]
    values = factor * tp / np.maximum(denominator, 1)
    means, found = task.entries.row_means(values, denominator > 0)
    return task.numbers(name, means[:, 0], ~found[:, 0], of=(1,))
