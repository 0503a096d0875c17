"""Paired boxes: how well each prediction covers its target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.boxes import Corners, area, corners
from lossd.losses.registry import Input
from lossd.metrics.cutoffs import reached
from lossd.metrics.entries import Entries
from lossd.metrics.parts import Mean, RowMean
from lossd.metrics.registry import Array, Floats, Task, metric, task
from lossd.metrics.signature import SAMPLE_WEIGHT, constant_input, floats
from lossd.metrics.view import View

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
        if view.merged:
            return
        self.entries = Entries(view)

    @cached_property
    def corners(self) -> tuple[Corners, Corners]:
        """The lower and the upper corners of the predictions, and of the targets, (R, 2) each."""
        form, tensors = self.view.parameters.get("format") or "xyxy", self.view.tensors
        prediction, target, _ = corners(tensors["prediction"], tensors["target"], form)
        return prediction, target

    @cached_property
    def union(self) -> Tensor:
        """The union's area in the pair's own unit, (R,)."""
        (p_low, p_high), (t_low, t_high) = self.corners
        return area(p_high - p_low) + area(t_high - t_low) - self.intersection

    @cached_property
    def intersection(self) -> Tensor:
        """The intersection's area in the pair's own unit, (R,)."""
        (p_low, p_high), (t_low, t_high) = self.corners
        overlap = torch.minimum(p_high, t_high) - torch.maximum(p_low, t_low)
        return area(overlap.clamp(min=0))

    @cached_property
    def same(self) -> Tensor:
        """Whether both are the same box without area, which its prediction covers, (R,) bool."""
        (p_low, p_high), (t_low, t_high) = self.corners
        return (self.union == 0) & (p_low == t_low).all(1) & (p_high == t_high).all(1)

    @cached_property
    def iou(self) -> Tensor:
        """The intersection over union, (R,), in [0, 1]."""
        share = self.intersection / self.union.masked_fill(self.union == 0, 1)
        return torch.where(self.same, 1, share)

    @Mean
    def overlap(self) -> Tensor:
        """The IoU of each pair."""
        return self.iou.double().unsqueeze(1)

    @Mean
    def generalized(self) -> Tensor:
        """The generalized IoU of each pair."""
        (p_low, p_high), (t_low, t_high) = self.corners
        hull = area(torch.maximum(p_high, t_high) - torch.minimum(p_low, t_low))
        missed = (hull - self.union) / hull.masked_fill(hull == 0, 1)
        return (self.iou - missed).double().unsqueeze(1)

    @Mean
    def hits(self) -> Tensor:
        """Whether the IoU of each pair reaches the option ``iou_threshold``."""
        return self.reached(self.view.options["iou_threshold"]).double()

    @RowMean
    def hits_by_threshold(self) -> tuple[Floats, Array]:
        """Whether the IoU of each pair reaches each of the ``THRESHOLDS``."""
        reached = self.reached(*THRESHOLDS).double().numpy(force=True)
        kept = np.ones(len(reached), bool) if self.entries.ignored is None else ~self.entries.ignored.numpy(force=True)
        return reached, kept.reshape(-1, 1)

    def reached(self, *thresholds: float) -> Tensor:
        """Return whether the IoU reaches each threshold, (R, T) bool."""
        cuts = torch.tensor(thresholds, dtype=torch.float64, device=self.iou.device)
        return reached(self.iou.unsqueeze(1), cuts, self.view.computed("prediction", "target"))

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: two boxes a row."""
        return (
            constant_input("prediction", "Boxes, each paired with the target of its row.", floats("box", "N 4")),
            constant_input("target", "Boxes.", floats("box", "N 4")),
            SAMPLE_WEIGHT,
        )


@metric("boxes", default=True, reads=("overlap",), better="higher", interval="unit")
def mean_iou(task: Boxes) -> Sequence[Any]:
    """The mean intersection over union of the pairs. Two identical boxes without area have 1."""
    return task.quotients("mean_iou", *task.overlap)


@metric("boxes", default=True, options=("iou_threshold",), reads=("hits",), better="higher", interval="unit")
def precision(task: Boxes) -> Sequence[Any]:
    """The fraction of predictions whose IoU with their target is at least ``iou_threshold``."""
    return task.quotients("precision", *task.hits)


@metric("boxes", default=True, options=("iou_threshold",), reads=("hits",), better="higher", interval="unit")
def recall(task: Boxes) -> Sequence[Any]:
    """The fraction of targets whose IoU with their prediction is at least ``iou_threshold``; as precision."""
    return task.quotients("recall", *task.hits)


@metric("boxes", default=True, options=("iou_threshold",), reads=("hits",), better="higher", interval="unit")
def f1(task: Boxes) -> Sequence[Any]:
    """The harmonic mean of precision and recall at ``iou_threshold``, which are the same for pairs."""
    return task.quotients("f1", *task.hits)


@metric("boxes", reads=("generalized",), better="higher", interval="signed")
def giou(task: Boxes) -> Sequence[Any]:
    """The mean generalized IoU of the pairs, in [-1, 1]: IoU minus the part of the enclosing box that is in neither.

    References:
        H. Rezatofighi et al., Generalized Intersection over Union, 2019, arXiv:1902.09630.
    """
    return task.quotients("giou", *task.generalized)


@metric("boxes", reads=("hits_by_threshold",), interval=None)
def per_threshold(task: Boxes) -> Sequence[Any]:
    """Precision, recall and F1 of the pairs, which are equal, at the IoU thresholds 0.5, 0.55 … 0.95.

    {"iou_threshold": [...], "f1": [...], "mean": their mean}.
    """
    shares, found = task.hits_by_threshold
    none = ~found[:, 0]
    means = task.numbers("per_threshold", shares.mean(1), none)
    columns = (task.numbers("per_threshold", share, none) for share in shares.T)
    rows = zip(*columns, strict=True)
    return [
        {"iou_threshold": list(THRESHOLDS), "f1": list(row), "mean": mean}
        for row, mean in zip(rows, means, strict=True)
    ]
