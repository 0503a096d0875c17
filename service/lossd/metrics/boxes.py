"""Paired boxes: how well each prediction covers its target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.boxes import area, corners
from lossd.losses.registry import Input
from lossd.metrics.cutoffs import reached
from lossd.metrics.entries import Entries
from lossd.metrics.registry import Array, Task, View, metric, task
from lossd.metrics.signature import SAMPLE_WEIGHT, floats, given

__all__ = ["Boxes"]

# Those of the COCO evaluation.
THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))


@task("boxes")
class Boxes(Task):
    """Predicted boxes, each paired with its target, computed as in the losses but without ``eps``.

    A pair whose IoU reaches a threshold, apart from the rounding of its coordinates, is a hit. Any other pair is a
    prediction without target and a target without prediction, so that precision, recall and F1 are all the fraction of
    hits.
    """

    options: ClassVar[tuple[str, ...]] = ("zero_division", "format")

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self.entries = Entries(view)
        form = view.parameters.get("format") or "xyxy"
        (self.p_low, self.p_high), (self.t_low, self.t_high), _ = corners(
            view.tensors["prediction"], view.tensors["target"], form
        )

    @cached_property
    def pairs(self) -> Array:
        """The number of pairs that count, or their weight, (B,)."""
        return self.entries.size(torch.Size((self.view.segments.total, 1)))

    @cached_property
    def union(self) -> Tensor:
        """The union's area in the pair's own unit, (R,)."""
        return area(self.p_high - self.p_low) + area(self.t_high - self.t_low) - self.intersection

    @cached_property
    def intersection(self) -> Tensor:
        """The intersection's area in the pair's own unit, (R,)."""
        overlap = torch.minimum(self.p_high, self.t_high) - torch.maximum(self.p_low, self.t_low)
        return area(overlap.clamp(min=0))

    @cached_property
    def same(self) -> Tensor:
        """Whether both are the same box without area, which its prediction covers, (R,) bool."""
        return (self.union == 0) & (self.p_low == self.t_low).all(1) & (self.p_high == self.t_high).all(1)

    @cached_property
    def iou(self) -> Tensor:
        """The intersection over union, (R,), in [0, 1]."""
        share = self.intersection / self.union.masked_fill(self.union == 0, 1)
        return torch.where(self.same, 1, share)

    def mean(self, name: str, values: Tensor) -> list[Any]:
        """Return the mean of (R,) values over the pairs that count."""
        return self.quotients(name, self.entries.total(values.double().unsqueeze(1)), self.pairs)

    def hits(self, name: str) -> list[Any]:
        """The fraction of pairs whose IoU reaches the option ``iou_threshold``."""
        return self.mean(name, self.reached(self.view.options["iou_threshold"])[:, 0])

    def reached(self, *thresholds: float) -> Tensor:
        """Return whether the IoU reaches each threshold, (R, T) bool."""
        cuts = torch.tensor(thresholds, dtype=torch.float64, device=self.iou.device)
        return reached(self.iou.unsqueeze(1), cuts, self.view.computed("prediction", "target"))

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: two boxes a row."""
        return (
            given("prediction", "Boxes, each paired with the target of its row.", floats("box", "N 4")),
            given("target", "Boxes.", floats("box", "N 4")),
            SAMPLE_WEIGHT,
        )


@metric("boxes", default=True)
def mean_iou(task: Boxes) -> Sequence[Any]:
    """The mean intersection over union of the pairs. Two identical boxes without area have 1."""
    return task.mean("mean_iou", task.iou)


@metric("boxes", default=True, options=("iou_threshold",))
def precision(task: Boxes) -> Sequence[Any]:
    """The fraction of predictions whose IoU with their target is at least ``iou_threshold``."""
    return task.hits("precision")


@metric("boxes", default=True, options=("iou_threshold",))
def recall(task: Boxes) -> Sequence[Any]:
    """The fraction of targets whose IoU with their prediction is at least ``iou_threshold``; as precision."""
    return task.hits("recall")


@metric("boxes", default=True, options=("iou_threshold",))
def f1(task: Boxes) -> Sequence[Any]:
    """The harmonic mean of precision and recall at ``iou_threshold``, which are the same for pairs."""
    return task.hits("f1")


@metric("boxes")
def giou(task: Boxes) -> Sequence[Any]:
    """The mean generalized IoU of the pairs, in [-1, 1]: less what their enclosing box holds of neither.

    References:
        H. Rezatofighi et al., Generalized Intersection over Union, 2019, arXiv:1902.09630.
    """
    hull = area(torch.maximum(task.p_high, task.t_high) - torch.minimum(task.p_low, task.t_low))
    missed = (hull - task.union) / hull.masked_fill(hull == 0, 1)
    return task.mean("giou", task.iou - missed)


@metric("boxes")
def per_threshold(task: Boxes) -> Sequence[Any]:
    """The fraction of hits, which is precision, recall and F1 of pairs, at the IoU thresholds 0.5, 0.55 … 0.95.

    {"iou_threshold": [...], "f1": [...], "mean": their mean}.
    """
    shares = (
        task.entries.total_of_rows(task.reached(*THRESHOLDS).double())
        / np.where(task.pairs > 0, task.pairs, 1)[:, None]
    )
    means = task.numbers("per_threshold", shares.mean(1), task.pairs == 0)
    columns = (task.numbers("per_threshold", share, task.pairs == 0) for share in shares.T)
    rows = zip(*columns, strict=True)
    return [
        {"iou_threshold": list(THRESHOLDS), "f1": list(row), "mean": mean}
        for row, mean in zip(rows, means, strict=True)
    ]
