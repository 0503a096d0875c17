"""Tasks with one class of several: multiclass, and segmentation, which has one at every position of an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.registry import Input
from lossd.metrics.averages import Averages, macro_and_weighted
from lossd.metrics.calibration import ProbableClasses
from lossd.metrics.contributions import Contribution, Scores, Tallied
from lossd.metrics.counts import CLASSES, counts_of_others
from lossd.metrics.entries import Entries, entrywise, for_kernels, most_likely
from lossd.metrics.odds import log_odds
from lossd.metrics.parts import Extreme, Rankings, RowMean, Sums, Tally, part_of
from lossd.metrics.ranking import Ranking, Steps, bounded, scores_of, steps_of
from lossd.metrics.regions import Regions
from lossd.metrics.registry import Array, Floats, metric, spell, task
from lossd.metrics.signature import SAMPLE_WEIGHT, constant_input, floats, numbers, prediction
from lossd.metrics.view import View
from lossd_client.errors import Fault, InvalidRequest

__all__ = ["Classes", "matrices_fit"]

# Up to this many classes the confusion matrix is answered; its size is the square.
MATRIX_CLASSES = 256

# The metrics that make probabilities of scores; all others compare the scores of one entry.
PROBABLE = frozenset(
    (
        *("auroc", "average_precision", "log_loss", "brier", "ece", "reliability"),
        *("mce", "ece_l2", "classwise_ece", "ace"),
    )
)

# No target is of this class.
NO_CLASS = -1

# How far from 1 rounded probabilities add up to.
NEARLY = 1e-3

# The parts with the counts of each class, without the matrix.
COUNTED = ("hits", "predictions", "targets")

# Up to this many cells the matrices of a whole batch are counted at once, whatever the number of entries.
FREE_CELLS = 1 << 16


def matrices_fit(count: int, classes: int, scores: int) -> bool:
    """Return whether confusion matrices are counted for so many requests, classes and scores."""
    return classes <= MATRIX_CLASSES and count * classes**2 <= max(FREE_CELLS, scores)


def _classes_of(view: View) -> int:
    """Return the number of classes; of counted matrices, so that no tensor is made from the prediction's array."""
    if view.activation == "predicted":
        return int(view.options["classes"])
    counted = view.counted.get("matrices")
    shape: Sequence[int] = (view.tensors["prediction"] if counted is None else counted).shape
    return shape[1]


class Confusion(Tally):
    """The confusion matrices, (B, C²): target by predicted class."""

    def contributions(self, task: Any) -> dict[str, Contribution]:
        """Return the entries; without weights, how many each combination has, from both classes of each entry."""
        if task.view.sample_weight is not None:
            return super().contributions(task)
        classes: int = task.classes
        ignored = task.entries.repeated(task.target_class.shape[1]).ignored
        found, times = task.view.placed.tally(task.predicted_class, classes**2, ignored, task.target_class, classes)
        return {"sum": Tallied(found, times, (classes**2,))}


@task(*CLASSES)
class Classes(ProbableClasses, Regions):
    """The predicted and the target classes of a batch's entries; classes are axis 1 of the prediction.

    The predicted class is the one with the highest score, the lowest index of several; NaN counts as the highest score.
    With the option ``classes``, predictions are class indices. A target of class probabilities stands for its most
    likely class.
    """

    averaged: ClassVar[bool] = True
    of_scores: ClassVar[frozenset[str]] = frozenset(
        (
            *("rankings", "top_k", "squared_error", "surprise", "confident", "bin_gaps", "bin_counts", "bin_truths"),
            *("bin_confidences", "class_bin_gaps"),
        )
    )

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self.classes = view.classes if view.classes is not None else _classes_of(view)
        self._likelihood: tuple[slice, Tensor] | None = None
        if view.combinations is None and view.classes is None:  # a request, which reads all three: eight calls fewer
            self.tp, self.predicted, self.actual = self._from_matrices() or (
                self.hits[:, :-1], self.predictions, self.targets
            )  # fmt: skip

    @cached_property
    def three_counts(self) -> tuple[Array, Array, Array]:
        """Hits, predictions and targets of each class, (B, C) each."""
        return self._from_matrices() or (self.hits[:, :-1], self.predictions, self.targets)

    @cached_property
    def tp(self) -> Array:
        """Entries of the class that are predicted to be."""
        return self.three_counts[0]

    @cached_property
    def predicted(self) -> Array:
        """Entries predicted to be of the class."""
        return self.three_counts[1]

    @cached_property
    def actual(self) -> Array:
        """Entries of the class."""
        return self.three_counts[2]

    @cached_property
    def scores(self) -> Tensor:
        """The scores, (R, C, I)."""
        scores = self.view.tensors["prediction"]
        return scores.reshape(*scores.shape[:2], -1)

    @cached_property
    def predicted_class(self) -> Tensor:
        """The predicted classes, (R, I) int64; anything where ignored."""
        if self.view.activation == "predicted":
            prediction = self.view.tensors["prediction"]
            return prediction.long().reshape(prediction.shape[0], -1)
        return most_likely(self.scores, self.view.kernels)

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
        """Return the inputs: scores of classes, and classes or their probabilities; or classes for both."""
        indices = numbers("class", "N *", "integer")
        if options.get("classes") is not None:
            predicted = constant_input("prediction", "Class indices.", numbers("predicted", "N *", "integer"))
            return predicted, constant_input("target", "Class indices.", indices), SAMPLE_WEIGHT
        target = constant_input(
            "target", "Class indices, or class probabilities.", indices, floats("probability", "N C *")
        )
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
        if "normalized_confusion_matrix" in names and classes > MATRIX_CLASSES:
            detail = (
                f"normalized_confusion_matrix has at most {MATRIX_CLASSES} classes, found {classes}; ask for precision "
                "and recall of each class"
            )
            raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/names", detail=detail)])

    def warnings(self, names: Sequence[str]) -> list[list[str]]:
        """Whether what was read as logits looks like probabilities, where a metric makes some of it."""
        if not self.warning_parts(names):
            return super().warnings(names)
        return [["probabilities_as_logits"] if one else [] for one in self.resemble_probabilities()]

    def resemble_probabilities(self) -> list[bool]:
        """Return whether each request's scores are in [0, 1] and add up to 1 at every position."""
        return [0 <= far < NEARLY for far in self.farthest[:, 0].tolist()]

    def warning_parts(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the parts that the warnings read; none if no metric makes probabilities of the scores."""
        read = self.view.alone and self.view.activation == "logits" and not PROBABLE.isdisjoint(names)
        return ("farthest",) if read else ()

    @Extreme
    def farthest(self) -> tuple[Tensor]:
        """How far an entry is from probabilities, which are in [0, 1] and add up to 1."""

        def distances(scores: Tensor) -> Tensor:
            return torch.where(scores.amin(1) >= 0, (scores.sum(1, dtype=torch.float64) - 1).abs(), torch.inf)

        far = entrywise(distances, self.scores, dtype=torch.float64)
        return ((far if self.view.ignored is None else far.masked_fill(self.view.ignored, -torch.inf)).amax(1),)

    @cached_property
    def negatives(self) -> Array:
        """Entries of the other classes."""
        return counts_of_others(self.actual)

    @property
    def rejected(self) -> Array:
        """Entries that are predicted to be of another class."""
        return counts_of_others(self.predicted)

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
        if self.classes > MATRIX_CLASSES:
            return None
        if not self.view.merged and not matrices_fit(
            self.count, self.classes, self.target_class.numel() * self.classes
        ):
            return None
        counted = self._by_kernel()
        return self.confusion.reshape(-1, self.classes, self.classes) if counted is None else counted

    def _by_kernel(self) -> Array | None:
        """Return the confusion matrices as a kernel counts them; None if none does."""
        view, count = self.view, self.view.kernels.get("matrices")
        if count is None or view.activation == "predicted" or (found := for_kernels(view, self.scores)) is None:
            return None
        rows, (scores,), words = found
        distributed = view.tensors["target"].is_floating_point()
        ignored = NO_CLASS if distributed or view.ignore_index is None else view.ignore_index
        counted = np.zeros((self.count, self.classes, self.classes), np.int64)
        target = self.target_class.contiguous().numpy()
        count(scores, words, target, rows, ignored, counted)
        return counted

    @property
    def base(self) -> tuple[str, ...]:  # type: ignore[override]
        """The parts that the task itself reads."""
        return ("confusion",) if self.classes <= MATRIX_CLASSES else ("hits", "predictions", "targets")

    @Confusion
    def confusion(self) -> tuple[Tensor, int]:
        """The confusion matrices, (B, C²)."""
        return self.pairs, self.classes**2

    @cached_property
    def safe_target(self) -> Tensor:
        """The target's classes, 0 where ignored."""
        ignored = self.entries.ignored
        return self.target_class if ignored is None else self.target_class.masked_fill(ignored, 0)

    def each_matrix(self) -> Iterator[Array]:
        """Yield the confusion matrix of each request, (C, C), with weights as they were sent."""
        if self.matrices is not None:
            yield from self.weights(self.matrices)
            return
        for tally in self.entries.tallies(self.pairs, self.classes**2):
            yield tally.reshape(self.classes, self.classes)

    def _from_matrices(self) -> tuple[Array, Array, Array] | None:
        if self.matrices is None:
            return None
        diagonals = self.matrices.reshape(self.count, -1)[:, :: self.classes + 1]
        return diagonals, self.matrices.sum(1), self.matrices.sum(2)

    @Tally
    def hits(self) -> tuple[Tensor, int]:
        """Hits of each class, (B, C + 1); the last cell counts the wrong predictions."""
        right = self.predicted_class == self.target_class
        return torch.where(right, self.target_class, self.classes), self.classes + 1

    @Tally
    def predictions(self) -> tuple[Tensor, int]:
        """Predictions of each class, (B, C)."""
        return self.predicted_class, self.classes

    @Tally
    def targets(self) -> tuple[Tensor, int]:
        """Targets of each class, (B, C)."""
        return self.target_class, self.classes

    @cached_property
    def row_counts(self) -> tuple[Array, Array, Array]:
        """Hits, predictions and targets of each row on its own, (R, C) int64 each."""
        rows = self.entries.by_row()
        hits, predictions, targets = (rows.tally(*part_of(type(self), name).function(self)) for name in COUNTED)
        return hits[:, :-1], predictions, targets

    def row_overlaps(self, factor: int, intersections: int) -> tuple[Floats, Array]:
        """Return factor·tp / (predicted + actual − intersections·tp) of each row, and whether it is defined.

        (R, C + 3) each: each class, then macro, weighted and micro.
        """
        tp, predicted, actual = self.row_counts
        numerator, denominator = factor * tp, predicted + actual - intersections * tp
        defined = denominator > 0
        values = numerator / np.where(defined, denominator, 1)
        macro, weighted, some = macro_and_weighted(values, defined, actual)
        micro = numerator.sum(1) / np.maximum(denominator.sum(1), 1)
        means = np.stack([macro, weighted, micro], 1)
        return np.concatenate([values, means], 1), np.concatenate([defined, np.repeat(some[:, None], 3, 1)], 1)

    @RowMean
    def row_iou(self) -> tuple[Floats, Array]:
        """The IoU of each row."""
        return self.row_overlaps(1, 1)

    @RowMean
    def row_dice(self) -> tuple[Floats, Array]:
        """The Dice coefficient of each row."""
        return self.row_overlaps(2, 0)

    @Sums
    def disagreement(self) -> Tensor:
        """The sum of the distances of predicted and target classes, each as the option ``weights`` says, (B,)."""
        distance = (self.predicted_class - self.safe_target).abs()
        match self.view.options["weights"]:
            case "none":
                weights = (distance > 0).double()
            case "linear":
                weights = distance.double()
            case _:
                weights = distance.double().square()
        if self.entries.ignored is not None:
            weights = weights.masked_fill(self.entries.ignored, 0)
        return weights.sum(1)

    @Tally
    def top_k(self) -> tuple[Tensor, int]:
        """Entries whose class is not among the ``k`` highest scores, and those whose is, (B, 2)."""
        k: int = self.view.options["k"]
        index = torch.arange(self.classes, device=self.scores.device).reshape(1, -1, 1)

        def found(scores: Tensor, target: Tensor) -> Tensor:
            scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
            target = target.unsqueeze(1)
            target_score = scores.gather(1, target)
            before = (scores > target_score) | ((scores == target_score) & (index < target))
            return before.sum(1) < k

        return entrywise(found, self.scores, self.safe_target, dtype=torch.int64), 2

    @property
    def columns(self) -> int:
        """The number of classes."""
        return self.classes

    def ranking_of(self, rows: slice, column: int | None) -> Ranking:
        """The entries of some rows that count, by how likely one class is, or each."""
        if self._likelihood is None or self._likelihood[0] != rows:
            self._likelihood = rows, self._likelihoods(self.scores[rows])
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

    @Rankings
    def rankings(self) -> Scores:
        """The log-odds of each class, and which entries are of it."""
        return scores_of(self)

    def steps(self, request: int, column: int | None) -> Steps:
        """Return the steps of the ranking of one request by one class; of all together for None."""
        return steps_of(self, request, column)

    def _likelihoods(self, scores: Tensor) -> Tensor:
        """What rises with the probability of each class, and does not round where that is near 0 or 1: (r, C, I)."""
        bounded(scores.numel())
        return scores if self.view.activation in ("probability", "log_probability") else log_odds(scores)


@metric(*CLASSES, default=True, interval=None)
def confusion_matrix(classes: Classes) -> Sequence[Any]:
    """Counts by true class (rows) and predicted class (columns): C lists of C counts.

    Beyond 256 classes the counts of each class instead: {"tp", "fp", "fn", "tn"}, a list each. Equals
    sklearn.metrics.confusion_matrix.
    """
    if classes.classes > MATRIX_CLASSES:
        counts = (classes.tp, classes.fp, classes.fn, classes.tn)
        rows = zip(*(classes.per_class(c) for c in counts), strict=True)
        return [dict(zip(("tp", "fp", "fn", "tn"), row, strict=True)) for row in rows]
    if classes.matrices is not None:
        return classes.per_class(classes.matrices)  # the lists of all requests at once
    return [spell(matrix) for matrix in classes.each_matrix()]


@metric(*CLASSES, options=("k",), reads=("top_k",), better="higher", interval="unit")
def top_k_accuracy(classes: Classes) -> Sequence[Any]:
    """The fraction of entries whose class is among the ``k`` highest scores; of equal scores, the lower index wins.

    Refused where ``k`` is not below the number of classes. Equals sklearn.metrics.top_k_accuracy_score where no scores
    of an entry are equal: that takes the higher index.
    """
    return classes.quotients("top_k_accuracy", classes.top_k[:, 1], classes.top_k.sum(1))


@metric(*CLASSES, byte_ns=24, reads=("row_iou",), better="higher", interval="unit", cases="union")
def per_image_iou(classes: Classes) -> Sequence[Any]:
    """IoU of each image (row), averaged over the images.

    ``macro`` is the mean over images of the mean over the classes in the image or its prediction, ``micro`` and
    ``weighted`` likewise; ``per_class`` the mean over the images that have the class. Images weigh as samples do.
    """
    return _per_image(classes, "per_image_iou", *classes.row_iou)


@metric(*CLASSES, byte_ns=24, reads=("row_dice",), better="higher", interval="unit", cases="union")
def per_image_dice(classes: Classes) -> Sequence[Any]:
    """Dice (F1) of each image (row), averaged over the images as in per_image_iou."""
    return _per_image(classes, "per_image_dice", *classes.row_dice)


def _per_image(classes: Classes, name: str, means: Floats, found: Array) -> list[Any]:
    """Return the answers of the means over the images, (B, C + 3): each class, then macro, weighted and micro."""
    macro, weighted, micro = means.T[-3:, None]
    some = found[None, :, -1]
    averages = Averages(means[None, :, :-3], found[None, :, :-3], macro, weighted, some, micro, some)
    return averages.answers(classes, (name,))[name]
