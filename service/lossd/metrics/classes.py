"""Tasks with one class of several: multiclass, and segmentation, which has one at every position of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.registry import Input
from lossd.metrics.averages import Averages, macro_and_weighted
from lossd.metrics.counts import CLASSES, Counts, others
from lossd.metrics.entries import Entries, entrywise, most_likely
from lossd.metrics.odds import log_odds
from lossd.metrics.ranking import Ranking, bounded
from lossd.metrics.registry import Array, View, metric, spell, task
from lossd.metrics.signature import SAMPLE_WEIGHT, floats, given, numbers, prediction
from lossd_client.errors import Fault, InvalidRequest

__all__ = ["Classes", "matrices_fit"]

# Up to this many classes the confusion matrix is answered; its size is the square.
MATRIX_CLASSES = 256

# The metrics that make probabilities of scores; all others compare the scores of one entry.
PROBABLE = frozenset(("auroc", "average_precision", "log_loss", "brier", "ece", "reliability"))

# How far from 1 rounded probabilities add up to.
NEARLY = 1e-3

# Up to this many cells the matrices of a whole batch are counted at once, whatever the number of entries.
FREE_CELLS = 1 << 16


def matrices_fit(count: int, classes: int, scores: int) -> bool:
    """Return whether confusion matrices are counted for so many requests, classes and scores."""
    return classes <= MATRIX_CLASSES and count * classes**2 <= max(FREE_CELLS, scores)


@task(*CLASSES)
class Classes(Counts):
    """The predicted and the target classes of a batch's entries; classes are axis 1 of the prediction.

    The predicted class is the one with the highest score, the lowest index of several; NaN counts as the highest score.
    A target of class probabilities stands for its most likely class.
    """

    averaged: ClassVar[bool] = True

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self.classes = view.tensors["prediction"].shape[1]
        self._likelihood: tuple[int, Tensor] | None = None
        self.tp, self.predicted, self.actual = self._from_matrices() or self.counts(self.entries)

    @cached_property
    def scores(self) -> Tensor:
        """The scores, (R, C, I)."""
        scores = self.view.tensors["prediction"]
        return scores.reshape(*scores.shape[:2], -1)

    @cached_property
    def predicted_class(self) -> Tensor:
        """The predicted classes, (R, I) int64."""
        return most_likely(self.scores)

    @cached_property
    def target_class(self) -> Tensor:
        """The target classes, (R, I) int64; anything where ignored."""
        target = self.view.tensors["target"]
        if target.is_floating_point():
            return most_likely(target.reshape(self.scores.shape))
        return target.long().reshape(target.shape[0], -1)

    @cached_property
    def entries(self) -> Entries:
        """The entries that count."""
        hard = not self.view.tensors["target"].is_floating_point()
        ignored = self.target_class == self.view.ignore_index if hard and self.view.ignore_index is not None else None
        return Entries(self.view, ignored)

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: scores of classes, and classes or their probabilities."""
        target = given(
            "target", "Class indices, or class probabilities.", numbers("class", "N *", "integer"),
            floats("probability", "N C *"),
        )  # fmt: skip
        return prediction(options, "N C *", decides=False), target, SAMPLE_WEIGHT

    @classmethod
    def check_classes(cls, names: Sequence[str], options: Mapping[str, Any], classes: int) -> None:
        """Check that ``k`` is less than the number of classes: the right class is always among all of them."""
        k: int = options["k"]
        if "top_k_accuracy" in names and k >= classes:
            detail = f"top_k_accuracy is 1 whatever is predicted where k is {k} and there are {classes} classes; " + (
                f"set metrics.k below {classes}" if classes > 1 else "ask for it of two classes or more"
            )
            raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/k", detail=detail)])

    def warnings(self, names: Sequence[str]) -> list[list[str]]:
        """Whether what was read as logits looks like probabilities, where a metric makes some of it."""
        if not self.view.alone or self.view.activation != "logits" or PROBABLE.isdisjoint(names):
            return super().warnings(names)

        def distances(scores: Tensor) -> Tensor:
            """How far each entry is from probabilities, (r, i): they are in [0, 1] and add up to 1."""
            return torch.where(scores.amin(1) >= 0, (scores.sum(1, dtype=torch.float64) - 1).abs(), torch.inf)

        farthest = entrywise(distances, self.scores, dtype=torch.float64).amax(1).numpy(force=True)
        suspect = np.maximum.reduceat(farthest, self.view.segments.starts) < NEARLY
        return [["probabilities_as_logits"] if one else [] for one in suspect.tolist()]

    @cached_property
    def negatives(self) -> Array:
        """Entries of the other classes."""
        return others(self.actual)

    @cached_property
    def right(self) -> tuple[Array, Array]:
        """The number of entries with the right class, and of all entries."""
        return self.tp.sum(1), self.actual.sum(1)

    @cached_property
    def pairs(self) -> Tensor:
        """Target and predicted class in one number, (R, I) int64."""
        return torch.add(self.predicted_class, self.target_class, alpha=self.classes)

    @cached_property
    def matrices(self) -> Array | None:
        """Confusion matrices, (B, C, C), target by prediction; None if larger than the tensors."""
        if (counted := self.view.counted.get("matrices")) is not None:
            return counted
        if not matrices_fit(self.count, self.classes, self.scores.numel()):
            return None
        return self.entries.tally(self.pairs, self.classes**2).reshape(-1, self.classes, self.classes)

    @cached_property
    def safe_target(self) -> Tensor:
        """The target's classes, 0 where ignored."""
        ignored = self.entries.ignored
        return self.target_class if ignored is None else self.target_class.masked_fill(ignored, 0)

    def _from_matrices(self) -> tuple[Array, Array, Array] | None:
        if self.matrices is None:
            return None
        diagonals = self.matrices.reshape(self.count, -1)[:, :: self.classes + 1]
        return diagonals, self.matrices.sum(1), self.matrices.sum(2)

    def counts(self, entries: Entries) -> tuple[Array, Array, Array]:
        """Hits, predictions and targets of each class, (B, C) each, without the matrix."""
        # One cell more, for what is wrong.
        hit = torch.where(self.predicted_class == self.target_class, self.target_class, self.classes)
        return (
            entries.tally(hit, self.classes + 1)[:, :-1],
            entries.tally(self.predicted_class, self.classes),
            entries.tally(self.target_class, self.classes),
        )

    @property
    def columns(self) -> int:
        """The number of classes."""
        return self.classes

    def ranking(self, request: int, column: int | None) -> Ranking:
        """The entries of one request that count, by how likely one class is, or each."""
        rows = self.entries.rows_of(request)
        if self._likelihood is None or self._likelihood[0] != request:
            self._likelihood = request, self._likelihoods(self.scores[rows])
        likelihood = self._likelihood[1]
        index = torch.arange(self.classes, device=likelihood.device).reshape(1, -1, 1)
        if column is not None:
            likelihood, index = likelihood[:, column : column + 1], index[:, column : column + 1]
        ignored, weight = self.entries.ignored, self.entries.weight
        return Ranking.of(
            likelihood,
            self.target_class[rows].unsqueeze(1) == index,
            None if ignored is None else ignored[rows].unsqueeze(1).expand(likelihood.shape),
            None if weight is None else weight[rows],
        )

    def _likelihoods(self, scores: Tensor) -> Tensor:
        """What rises with the probability of each class, and does not round where that is near 0 or 1: (r, C, I)."""
        bounded(scores.numel())
        return scores if self.view.activation in ("probability", "log_probability") else log_odds(scores)


@metric(*CLASSES, default=True)
def confusion_matrix(classes: Classes) -> Sequence[Any]:
    """Entries by class of the target (rows) and predicted class (columns); C lists of C counts.

    Beyond 256 classes the counts of each class instead: {"tp", "fp", "fn", "tn"}, a list each. Equals
    sklearn.metrics.confusion_matrix.
    """
    if classes.classes > MATRIX_CLASSES:
        counts = (classes.tp, classes.fp, classes.fn, classes.tn)
        rows = zip(*(classes.per_class(c) for c in counts), strict=True)
        return [dict(zip(("tp", "fp", "fn", "tn"), row, strict=True)) for row in rows]
    if classes.matrices is not None:
        return classes.per_class(classes.matrices)
    shape = (classes.classes, classes.classes)
    tallies = classes.entries.tallies(classes.pairs, classes.classes**2)
    return [spell(tally.reshape(shape)) for tally in tallies]


@metric(*CLASSES, options=("k",))
def top_k_accuracy(classes: Classes) -> Sequence[Any]:
    """The fraction of entries whose class is among the ``k`` with the highest scores; of equal scores the lower index.

    Refused where ``k`` is not below the number of classes. Equals sklearn.metrics.top_k_accuracy_score where no scores
    of an entry are equal: that takes the higher index.
    """
    k: int = classes.view.options["k"]
    index = torch.arange(classes.classes, device=classes.scores.device).reshape(1, -1, 1)

    def found(scores: Tensor, target: Tensor) -> Tensor:
        scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        target = target.unsqueeze(1)
        target_score = scores.gather(1, target)
        before = (scores > target_score) | ((scores == target_score) & (index < target))
        return before.sum(1) < k

    hits = entrywise(found, classes.scores, classes.safe_target, dtype=torch.int64)
    misses_and_hits = classes.entries.tally(hits, 2)
    return classes.quotients("top_k_accuracy", misses_and_hits[:, 1], misses_and_hits.sum(1))


@metric(*CLASSES, byte_ns=24)
def per_image_iou(classes: Classes) -> Sequence[Any]:
    """IoU of each image (row) on its own, averaged over the images.

    ``macro`` is the mean over images of the mean over the classes in the image or its prediction, ``micro`` and
    ``weighted`` likewise; ``per_class`` the mean over the images that have the class. Images weigh as samples do.
    """
    return _per_image(classes, "per_image_iou", 1, 1)


@metric(*CLASSES, byte_ns=24)
def per_image_dice(classes: Classes) -> Sequence[Any]:
    """Dice (F1) of each image (row) on its own, averaged over the images as in per_image_iou."""
    return _per_image(classes, "per_image_dice", 2, 0)


def _per_image(classes: Classes, name: str, factor: int, intersections: int) -> list[Any]:
    """factor·tp / (predicted + actual − intersections·tp), image by image."""
    tp, predicted, actual = classes.counts(classes.entries.by_row())
    numerator, denominator = factor * tp, predicted + actual - intersections * tp
    defined = denominator > 0
    values = numerator / np.where(defined, denominator, 1)
    macro, weighted, some = macro_and_weighted(values, defined, actual)
    micro = numerator.sum(1) / np.maximum(denominator.sum(1), 1)
    per_class, found = classes.entries.row_means(values, defined)
    means, any_image = classes.entries.row_means(np.stack([macro, weighted, micro], 1), some[:, None])
    whole = any_image[None, :, 0]
    macro, weighted, micro = means.T[:, None]
    answers = Averages(per_class[None], found[None], macro, weighted, whole, micro, whole)
    return answers.answers(classes, (name,))[name]
