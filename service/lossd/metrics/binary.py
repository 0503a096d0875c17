"""Decisions by probability: one positive class (binary), or several independent labels (multilabel)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.registry import Input
from lossd.metrics.activation import least_scores, threshold_between
from lossd.metrics.calibration import ProbableDecisions
from lossd.metrics.decisions import Decision, decisions
from lossd.metrics.entries import for_kernels
from lossd.metrics.label_ranking import LabelSetsRanked
from lossd.metrics.parts import Extreme, RowMean
from lossd.metrics.registry import Array, Floats, metric, task
from lossd.metrics.signature import SAMPLE_WEIGHT, constant_input, numbers, prediction
from lossd.metrics.view import View
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire.quoting import digits

__all__ = ["Binary", "LabelSets", "Multilabel"]

# The metrics that are the same of probabilities and of the logits of these.
ORDERED = frozenset(
    (
        *("auroc", "average_precision", "support", "ks", "eer", "gain@top", "lift@top"),
        *("lrap", "coverage_error", "ranking_loss", "precision@k", "ndcg@k"),
    )
)


@task("binary")
class Binary(ProbableDecisions):
    """Decisions on one positive class, one for each entry of the tensors.

    A prediction is positive from the probability ``threshold`` on (NaN never is), a target from 0.5 on, so that soft
    targets and targets of -1 and 1 are decided too. Scores are compared with the threshold's score, in the dtype in
    which they were sent.
    """

    base: ClassVar[tuple[str, ...]] = ("cells", "score_range")

    def decide(self) -> Decision:
        """Decide by the probability of being positive."""
        view = self.view
        scores, target = self.by_label(view.tensors["prediction"]), self.by_label(view.tensors["target"])
        threshold, labels = view.options.get("threshold"), scores.shape[1]
        least = least_scores(threshold, view.activation, view.sent("prediction"), labels)
        ignored = None if view.ignore_index is None else target.flatten(1) == view.ignore_index
        positive = scores >= torch.from_numpy(least).to(scores).unsqueeze(1)
        return Decision(scores, target >= 0.5, positive, ignored)

    def by_kernel(self, name: str) -> Any:
        """Return the cells, if no entry is ignored."""
        view, count = self.view, self.view.kernels.get("decisions")
        if name != "cells" or count is None or view.ignore_index is not None:
            return None
        scores, target = view.tensors["prediction"], view.tensors["target"]
        if scores.shape != target.shape or (found := for_kernels(view, scores, target)) is None:
            return None
        rows, (flat, truth), words = found
        _, labels, positions = self.by_label(scores).shape
        least = least_scores(view.options.get("threshold"), view.activation, view.sent("prediction"), labels)
        cells = np.zeros((self.count, labels, 4), np.int64)
        count(flat, truth, words, rows * labels * positions, positions, least, cells)
        return cells

    @staticmethod
    def by_label(tensor: Tensor) -> Tensor:
        """Return the tensor as (R, K, I): rows, labels, all further positions."""
        return tensor.reshape(tensor.shape[0], 1, -1)

    def threshold_at(self, scores: Floats, step: int) -> Any:
        """Return the ``threshold`` that decides for the first scores up to ``step``; the scores are falling."""
        below = float(scores[step + 1]) if step + 1 < len(scores) else None
        return threshold_between(float(scores[step]), below, self.view.activation, self.view.sent("prediction"))

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: scores and targets of the same shape."""
        summary = "Same shape; positive from 0.5 on."
        return prediction(options, "N *"), constant_input("target", summary, numbers("mask", "N *")), SAMPLE_WEIGHT

    def warnings(self, names: Sequence[str]) -> list[list[str]]:
        """Whether what was read as logits looks like probabilities or decisions."""
        if not self.view.alone or self.view.activation != "logits" or ORDERED.issuperset(names):
            return super().warnings(names)
        return [["probabilities_as_logits"] if one else [] for one in self.resemble_probabilities()]

    def resemble_probabilities(self) -> list[bool]:
        """Return whether each request's scores are in [0, 1], and not all the same."""
        lowest, highest = -self.score_range[:, 0], self.score_range[:, 1]
        suspect: list[bool] = ((lowest >= 0) & (highest <= 1) & (lowest < highest)).tolist()
        return suspect

    @Extreme
    def score_range(self) -> tuple[Tensor, Tensor]:
        """Minus the lowest score, and the highest."""
        scores = self.scores.flatten(1)
        if (masked := self.view.ignored) is not None:
            return -scores.masked_fill(masked, torch.inf).amin(1), scores.masked_fill(masked, -torch.inf).amax(1)
        if scores.shape[1] == 1:  # torch takes a call for each row
            return -scores[:, 0], scores[:, 0]
        low, high = scores.aminmax(dim=1)
        return -low, high

    @cached_property
    def row_cells(self) -> Array:
        """The counts of each row on its own, (R, 4) int64."""
        counts = decisions(self.decision.predicted, self.positive, self.entries.ignored)
        rows: Array = counts[:, 0].numpy(force=True)
        return rows

    @RowMean
    def row_iou(self) -> tuple[Floats, Array]:
        """The IoU of each row, (R, 1)."""
        return overlap(*self.row_cells[:, :3].T[..., None], factor=1, intersections=1)

    @RowMean
    def row_dice(self) -> tuple[Floats, Array]:
        """The Dice coefficient of each row, (R, 1)."""
        return overlap(*self.row_cells[:, :3].T[..., None], factor=2, intersections=0)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Check that a threshold is a probability, in [0, 1], or a score."""
        threshold, pointer = options.get("threshold"), "/metrics/threshold"
        several = dict(enumerate(threshold)) if isinstance(threshold, list) else {None: threshold}
        for label, value in several.items():
            if isinstance(value, float) and not 0 <= value <= 1:
                detail = (
                    f"threshold is a probability here, in [0, 1], found {digits(value)}; "
                    f'{{"score": {digits(value)}}} compares the scores themselves'
                )
                place = pointer if label is None else f"{pointer}/{label}"
                raise InvalidRequest(detail, errors=[Fault(pointer=place, detail=detail)])


@task("multilabel")
class Multilabel(Binary, LabelSetsRanked):
    """Decisions on several labels, the second axis; a tensor without that axis has one label.

    Thresholds are those of the task binary; a list has one for each label.
    """

    averaged: ClassVar[bool] = True
    absent_count: ClassVar[bool] = True

    @staticmethod
    def by_label(tensor: Tensor) -> Tensor:
        """The tensor as (R, K, I): rows, labels, all further positions."""
        return tensor.reshape(tensor.shape[0], tensor.shape[1] if tensor.ndim > 1 else 1, -1)

    @classmethod
    def check_classes(cls, names: Sequence[str], options: Mapping[str, Any], classes: int) -> None:
        """Check that a list of thresholds has one for each label."""
        threshold = options["threshold"]
        if isinstance(threshold, list) and len(threshold) != classes:
            detail = f"threshold is a list of {len(threshold)} for {classes} labels; send one for each label"
            raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/threshold", detail=detail)])


@task("sets")
class LabelSets(Multilabel):
    """Decisions on labels; each row's target is the indices of its labels, up to the first -1."""

    def read(self, view: View) -> View:
        """Return the view with targets of 0 and 1."""
        indices = view.tensors["target"].long()
        listed = (indices < 0).cumsum(1) == 0
        # One column more, for entries that are no index.
        several = torch.zeros(indices.shape[0], indices.shape[1] + 1, device=indices.device)
        several.scatter_(1, torch.where(listed, indices, indices.shape[1]), 1)
        tensors = {**view.tensors, "target": several[:, :-1]}
        return view._replace(tensors=tensors)

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: scores of classes, and the indices of the classes that apply."""
        target = constant_input("target", "Class indices, then -1.", numbers("class_set", "N C", "integer"))
        return prediction(options, "N C"), target, SAMPLE_WEIGHT


@metric("binary", byte_ns=24, reads=("row_iou",), better="higher", interval="unit")
def per_image_iou(task: Binary) -> Sequence[Any]:
    """IoU of each image (row), averaged over the images with a true or predicted positive."""
    return _per_image(task, "per_image_iou", *task.row_iou)


@metric("binary", byte_ns=24, reads=("row_dice",), better="higher", interval="unit")
def per_image_dice(task: Binary) -> Sequence[Any]:
    """Dice (F1) of each image (row), averaged over the images as in per_image_iou."""
    return _per_image(task, "per_image_dice", *task.row_dice)


def _per_image(task: Binary, name: str, means: Floats, found: Array) -> list[Any]:
    return task.numbers(name, means[:, 0], ~found[:, 0], classes=(1,))


def overlap(tp: Array, fp: Array, fn: Array, *, factor: int, intersections: int) -> tuple[Floats, Array]:
    """Return factor·tp / (predicted + actual − intersections·tp), and where that is not 0/0."""
    denominator = (2 - intersections) * tp + fp + fn
    return factor * tp / np.maximum(denominator, 1), denominator > 0
