"""Metrics of counts: entries of a class, entries predicted to be of it, and entries that are both.

One definition serves every task that decides. With one positive class (binary, pairs, gan) a metric is a plain number;
with several labels or classes it is {macro, micro, weighted, per_class}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lossd.metrics.averages import Averages, average, complete
from lossd.metrics.entries import Entries
from lossd.metrics.lists import are_listed
from lossd.metrics.registry import Array, Floats, Task, metric, spell

__all__ = [
    "ADVERSARIAL",
    "BINARY",
    "CLASSES",
    "DISTANCES",
    "LABELS",
    "ONE_CLASS",
    "Counts",
    "above",
    "counts_of_others",
    "of_four",
]

# The tasks with counts, by what they decide.
BINARY = ("binary",)
DISTANCES = ("pairs", "cosine_pairs", "distances")
ADVERSARIAL = ("gan", "lsgan")
ONE_CLASS = (*BINARY, *DISTANCES, *ADVERSARIAL)
LABELS = ("multilabel", "sets")
CLASSES = ("multiclass", "segmentation")

TOGETHER = ("precision", "recall", "f1", "iou")
# For each: the factor of tp in the numerator, and those of tp, predicted and actual in the denominator.
TERMS = np.array([[1, 0, 1, 0], [1, 0, 0, 1], [2, 0, 1, 1], [1, -1, 1, 1]], float)

# Beyond, F-beta equals precision or recall to the last digit, and the square of beta leaves float64's range.
BETAS = (1e-140, 1e140)


class Counts(Task):
    """The counts of a batch, (B, K): B requests, K classes; int64, or float64 if samples are weighted.

    Attributes:
        averaged: Whether answers have averages over the classes; else the number of the only class.
        absent_count: Whether averages include what is in neither target nor prediction: true for labels, false for
            classes.
    """

    averaged: ClassVar[bool] = True
    absent_count: ClassVar[bool] = False

    @cached_property
    def tp(self) -> Array:
        """Entries of the class that are predicted to be of it."""
        raise NotImplementedError

    @cached_property
    def entries(self) -> Entries:
        """The entries that count."""
        raise NotImplementedError

    @property
    def listed(self) -> bool:
        """Whether averages over classes come with each class's value."""
        return not self.averaged or are_listed(self.view.options, self.tp.shape[1])

    @cached_property
    def negatives(self) -> Array:
        """Entries that are not of the class; exactly 0 if there are none, weighted or not."""
        raise NotImplementedError

    @cached_property
    def right(self) -> tuple[Array, Array]:
        """Right decisions and all decisions of each request, (B,) each."""
        raise NotImplementedError

    @cached_property
    def fp(self) -> Array:
        """Entries predicted to be of the class that are not.

        A task sets ``fp`` and ``fn``, or ``predicted`` and ``actual``.
        """
        return self.predicted - self.tp

    @cached_property
    def fn(self) -> Array:
        """Entries of the class that are not predicted to be."""
        return self.actual - self.tp

    @cached_property
    def predicted(self) -> Array:
        """Entries predicted to be of the class."""
        return self.tp + self.fp

    @cached_property
    def actual(self) -> Array:
        """Entries of the class."""
        return self.tp + self.fn

    @property
    def tn(self) -> Array:
        """Entries that neither are of the class nor predicted to be."""
        # Sums of weights in another order may differ by rounding.
        rest: Array = np.maximum(self.negatives - self.fp, 0)
        return rest

    @property
    def rejected(self) -> Array:
        """Entries decided not to be of the class; exactly 0 if there are none, weighted or not."""
        rejected: Array = self.tn + self.fn
        return rejected

    @property
    def union(self) -> Array:
        """Entries of the class or predicted to be."""
        return self.actual + self.fp

    @property
    def rarer(self) -> Array:
        """Entries of the class, or the others, whichever are fewer."""
        fewer: Array = np.minimum(self.actual, self.negatives)
        return fewer

    @cached_property
    def present(self) -> Array:
        """(B, K) bool: whether a class is in the target or in the prediction."""
        return (self.predicted + self.actual) > 0

    @cached_property
    def together(self) -> dict[str, list[Any]]:
        """Precision, recall, F1 and IoU, computed together because nearly all requests name all."""
        if self.averaged and (rates := self.view.kernels.get("rates")) is not None:
            return self._rates(rates)
        numerators = np.empty((4, *self.tp.shape), self.tp.dtype)
        denominators = np.empty_like(numerators)
        numerators[:] = self.tp
        numerators[2] *= 2
        denominators[0], denominators[1] = self.predicted, self.actual
        np.add(self.predicted, self.actual, out=denominators[2])
        np.subtract(denominators[2], self.tp, out=denominators[3])
        return self.ratios(TOGETHER, numerators, denominators)

    def _rates(self, rates: Callable[..., bool]) -> dict[str, list[Any]]:
        count, classes = self.tp.shape
        filler = math.nan if self.zero_division is None else self.zero_division
        values = np.empty((len(TOGETHER), count, classes + 3))
        defined = np.empty((len(TOGETHER), count, classes + 2), bool)
        counts = np.array((self.tp, self.predicted, self.actual), np.float64)
        if rates(TERMS, counts, filler, self.absent_count, values, defined):
            return complete(TOGETHER, values, listed=self.listed)
        macro, micro, weighted = (values[..., classes + average] for average in range(3))
        means = defined[..., classes], defined[..., classes + 1]
        averages = Averages(values[..., :classes], defined[..., :classes], macro, weighted, means[0], micro, means[1])
        return averages.answers(self, TOGETHER)

    def ratios(self, names: tuple[str, ...], numerators: Array, denominators: Array) -> dict[str, list[Any]]:
        """Return ratios of counts, (M, B, K) over (M, B, K)."""
        if not self.averaged:
            columns = zip(names, numerators[:, :, 0], denominators[:, :, 0], strict=True)
            return {name: self.quotients(name, n, d, classes=(1,)) for name, n, d in columns}
        defined = denominators > 0
        values = numerators / np.where(defined, denominators, 1)
        together, beneath = numerators.sum(-1), denominators.sum(-1)
        micro_defined = beneath > 0
        micro = together / np.where(micro_defined, beneath, 1)
        return self.averaged_over(names, values, defined, micro, micro_defined)

    def averaged_over(
        self, names: tuple[str, ...], values: Floats, defined: Array, micro: Floats, micro_defined: Array
    ) -> dict[str, list[Any]]:
        """Return values per class, (M, B, K), and of the summed counts, (M, B), as answers."""
        included = np.broadcast_to(self.absent_count | self.present, defined.shape)
        counted = included & defined if self.zero_division is None else included
        filler = self.zero_division
        averaged = average(values, defined, counted, self.actual, micro, micro_defined, filler)
        return averaged.answers(self, names)

    def ratio(self, name: str, numerator: Array, denominator: Array) -> list[Any]:
        """Return a ratio of counts, (B, K) over (B, K)."""
        return self.ratios((name,), numerator[None], denominator[None])[name]

    def per_class(self, counts: Array) -> list[Any]:
        """Return the counts themselves: a number, or one for each class."""
        values = counts if self.averaged else counts[:, 0]
        return spell(self.weights(values))

    def weights(self, sums: Array) -> Array:
        """Return sums of weights in the scale in which weights were sent; counts as they are."""
        if self.view.exponent is not None:
            rescaled: Array = np.ldexp(sums, self.view.exponent)
            return rescaled
        # Only weights need the entries: a compiled pass has already counted them.
        return sums if self.view.sample_weight is None else self.entries.counts(sums)


@metric(*DISTANCES, *ADVERSARIAL, *CLASSES, interval=None)
@metric(*BINARY, *LABELS, default=True, interval=None)
def tp(counts: Counts) -> Sequence[Any]:
    """True positives: entries of the class that are predicted as it; a list for several classes."""
    return counts.per_class(counts.tp)


@metric(*DISTANCES, *ADVERSARIAL, *CLASSES, interval=None)
@metric(*BINARY, *LABELS, default=True, interval=None)
def fp(counts: Counts) -> Sequence[Any]:
    """False positives: entries of other classes that are predicted as the class."""
    return counts.per_class(counts.fp)


@metric(*DISTANCES, *ADVERSARIAL, *CLASSES, interval=None)
@metric(*BINARY, *LABELS, default=True, interval=None)
def fn(counts: Counts) -> Sequence[Any]:
    """False negatives: entries of the class that are not predicted as it."""
    return counts.per_class(counts.fn)


@metric(*DISTANCES, *ADVERSARIAL, *CLASSES, interval=None)
@metric(*BINARY, *LABELS, default=True, interval=None)
def tn(counts: Counts) -> Sequence[Any]:
    """True negatives: entries of other classes that are not predicted as the class."""
    return counts.per_class(counts.tn)


@metric(*ONE_CLASS, *LABELS, *CLASSES, default=True, better="higher", interval="unit")
def accuracy(counts: Counts) -> Sequence[Any]:
    """The fraction of correct decisions; one number for every task.

    Of labels, every label of every sample is a decision of its own. Equals sklearn.metrics.accuracy_score of the
    flattened decisions.
    """
    right, decisions = counts.right
    return counts.quotients("accuracy", right, decisions, classes=() if counts.averaged else (1,))


@metric(*ONE_CLASS, *LABELS, *CLASSES, default=True, better="higher", interval="unit", cases="predicted")
def precision(counts: Counts) -> Sequence[Any]:
    """The fraction of entries predicted as the class that are of the class: tp / (tp + fp).

    Undefined for a class that is never predicted. Equals sklearn.metrics.precision_score with ``zero_division`` NaN
    where the option is null.
    """
    return counts.together["precision"]


@metric(*ONE_CLASS, *LABELS, *CLASSES, default=True, better="higher", interval="unit", cases="actual")
def recall(counts: Counts) -> Sequence[Any]:
    """The fraction of entries of the class that are predicted as it: tp / (tp + fn).

    Undefined for a class without entries. Equals sklearn.metrics.recall_score with ``zero_division`` NaN where the
    option is null.
    """
    return counts.together["recall"]


@metric(*DISTANCES, *ADVERSARIAL, *CLASSES, better="higher", interval="unit", cases="negatives")
@metric(*BINARY, *LABELS, default=True, better="higher", interval="unit", cases="negatives")
def specificity(counts: Counts) -> Sequence[Any]:
    """The recall of the negatives, entries that are not of the class: tn / (tn + fp)."""
    return counts.ratio("specificity", counts.tn, counts.negatives)


@metric(*ONE_CLASS, *LABELS, *CLASSES, default=True, better="higher", interval="unit", cases="union")
def f1(counts: Counts) -> Sequence[Any]:
    """The harmonic mean of precision and recall, the Dice coefficient: 2 tp / (2 tp + fp + fn).

    Undefined for a class in neither prediction nor target. Equals sklearn.metrics.f1_score with ``zero_division`` NaN
    where the option is null.
    """
    return counts.together["f1"]


@metric(*ONE_CLASS, *LABELS, *CLASSES, default=True, better="higher", interval="unit", cases="union")
def iou(counts: Counts) -> Sequence[Any]:
    """Intersection over union, the Jaccard index: tp / (tp + fp + fn).

    Undefined for a class in neither prediction nor target. The ignored class is 0 where it is predicted: its entries do
    not count, those taken for it do. Equals sklearn.metrics.jaccard_score over the classes in either.
    """
    return counts.together["iou"]


@metric(*LABELS, *CLASSES, default=True, interval=None)
@metric(*ONE_CLASS, interval=None)
def support(counts: Counts) -> Sequence[Any]:
    """The number of entries of the class in the target; the weights of weighted averages."""
    return counts.per_class(counts.actual)


@metric(*ONE_CLASS, *LABELS, interval=None)
def confusion_matrix(counts: Counts) -> Sequence[Any]:
    """Counts by true value (rows) and decision (columns), negative first: [[tn, fp], [fn, tp]].

    Of several labels, a list of such. Equals sklearn.metrics.confusion_matrix, and multilabel_confusion_matrix.
    """
    cells = np.stack([counts.tn, counts.fp, counts.fn, counts.tp], -1)
    return counts.per_class(cells.reshape(*cells.shape[:2], 2, 2))


@metric(*ONE_CLASS, *LABELS, *CLASSES, options=("beta",), better="higher", interval="unit", cases="union")
def f_beta(counts: Counts) -> Sequence[Any]:
    """F1 with recall weighted ``beta`` times as much as precision: (1 + β²) tp / ((1 + β²) tp + β² fn + fp).

    Equals sklearn.metrics.fbeta_score.
    """
    square = float(np.clip(counts.view.options["beta"], *BETAS)) ** 2
    return counts.ratio("f_beta", (1 + square) * counts.tp, square * counts.actual + counts.predicted)


@metric(*ONE_CLASS, *LABELS, better="higher", interval="unit", cases="rarer")
def balanced_accuracy(counts: Counts) -> Sequence[Any]:
    """The mean of recall and specificity; if one of them is undefined, the other.

    Equals sklearn.metrics.balanced_accuracy_score.
    """
    return of_four(counts, "balanced_accuracy", _balanced)


@metric(*CLASSES, name="balanced_accuracy", better="higher", interval="unit", cases="actual")
def balanced_accuracy_of_classes(counts: Counts) -> Sequence[Any]:
    """The mean recall of the classes in the target, a plain number. Equals sklearn.metrics.balanced_accuracy_score."""
    some = counts.actual > 0
    recalls = counts.tp / np.where(some, counts.actual, 1)
    return counts.quotients("balanced_accuracy", recalls.sum(-1), some.sum(-1))


def above(counts: Floats) -> Floats:
    """Return for each class the counts of classes with a higher index: (B, C) to (B, C)."""
    sums = np.zeros_like(counts)
    sums[:, :-1] = counts[:, :0:-1].cumsum(-1)[:, ::-1]
    return sums


def counts_of_others(counts: Floats) -> Floats:
    """Return for each class the counts of all others; without subtraction, which would lose small weights."""
    return above(counts) + above(counts[:, ::-1])[:, ::-1]


def of_four(counts: Counts, name: str, function: Any) -> list[Any]:
    """Return a metric that is a function of tp, fp, fn and tn but not a ratio of them."""
    four = [c.astype(float) for c in (counts.tp, counts.fp, counts.fn, counts.tn)]
    values, defined = function(*four)
    if not counts.averaged:
        return counts.numbers(name, values[:, 0], ~defined[:, 0], classes=(1,))
    micro, micro_defined = function(*(c.sum(-1) for c in four))
    arrays = (values, defined, micro, micro_defined)
    return counts.averaged_over((name,), *(a[None] for a in arrays))[name]


def _balanced(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> tuple[Floats, Array]:
    positives, negatives = tp + fn, tn + fp
    recall = tp / np.where(positives > 0, positives, 1)
    specificity = tn / np.where(negatives > 0, negatives, 1)
    sides = (positives > 0).astype(float) + (negatives > 0)
    return (recall + specificity) / np.maximum(sides, 1), sides > 0
