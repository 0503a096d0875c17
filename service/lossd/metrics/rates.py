"""Rates of decisions beside precision, recall and specificity, and metrics computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lossd.metrics.classes import Classes
from lossd.metrics.counts import CLASSES, LABELS, ONE_CLASS, Counts, of_four
from lossd.metrics.registry import Array, Floats, metric, spell

__all__: list[str] = []


@metric(*ONE_CLASS, *LABELS, *CLASSES, better="higher", interval="unit", cases="rejected")
def npv(counts: Counts) -> Sequence[Any]:
    """Negative predictive value, the fraction of negative decisions that are correct: tn / (tn + fn)."""
    return counts.ratio("npv", counts.tn, counts.rejected)


@metric(*ONE_CLASS, *LABELS, *CLASSES, better="lower", interval="unit", cases="negatives")
def fpr(counts: Counts) -> Sequence[Any]:
    """False positive rate, the fraction of negatives predicted as the class: fp / (fp + tn), 1 − specificity."""
    return counts.ratio("fpr", counts.fp, counts.negatives)


@metric(*ONE_CLASS, *LABELS, *CLASSES, better="lower", interval="unit", cases="actual")
def fnr(counts: Counts) -> Sequence[Any]:
    """False negative rate, the fraction of the class that is missed: fn / (fn + tp), 1 − recall."""
    return counts.ratio("fnr", counts.fn, counts.actual)


@metric(*ONE_CLASS, *LABELS, better="higher", interval="signed", cases="rarer")
def informedness(counts: Counts) -> Sequence[Any]:
    """Recall + specificity − 1, Youden's J: 0 is chance. Undefined if all entries are positive, or none.

    Its maximum over all thresholds is ``ks``. Equals sklearn.metrics.balanced_accuracy_score with ``adjusted``.

    References:
        W. J. Youden, Index for rating diagnostic tests, 1950.
    """
    return of_four(counts, "informedness", _informedness)


@metric(*ONE_CLASS, *LABELS, better="higher", interval="signed", cases="rarer")
def markedness(counts: Counts) -> Sequence[Any]:
    """Precision + npv − 1: 0 is chance. Undefined if all decisions are positive, or none."""
    return of_four(counts, "markedness", lambda tp, fp, fn, tn: _informedness(tp, fn, fp, tn))


@metric(*ONE_CLASS, *LABELS, better="higher", interval="positive", cases="rarer")
def positive_likelihood_ratio(counts: Counts) -> Sequence[Any]:
    """LR+, recall / fpr: the factor by which a positive decision raises the odds of a positive entry.

    Undefined without a false positive or without a positive entry. Equals sklearn.metrics.class_likelihood_ratios.
    """
    return of_four(counts, "positive_likelihood_ratio", _likelihood_ratio)


@metric(*ONE_CLASS, *LABELS, better="lower", interval="positive", cases="rarer")
def negative_likelihood_ratio(counts: Counts) -> Sequence[Any]:
    """LR−, fnr / specificity: the factor by which a negative decision lowers the odds of a positive entry.

    Undefined without a true negative or without a positive entry. Equals sklearn.metrics.class_likelihood_ratios.
    """
    return of_four(counts, "negative_likelihood_ratio", lambda tp, fp, fn, tn: _likelihood_ratio(fn, tn, tp, fp))


@metric(*CLASSES, better="higher", interval="signed", cases="actual")
def adjusted_balanced_accuracy(counts: Counts) -> Sequence[Any]:
    """Balanced accuracy rescaled: 0 is chance, 1 over the number of classes in the target; 1 is perfect.

    Undefined where the target has one class only. Equals sklearn.metrics.balanced_accuracy_score with ``adjusted``.
    """
    some = counts.actual > 0
    classes = some.sum(-1)
    recalls = (counts.tp / np.where(some, counts.actual, 1)).sum(-1)
    # (mean − 1 / C) / (1 − 1 / C), times C.
    values = (recalls - 1) / np.where(classes > 1, classes - 1, 1)
    return counts.numbers("adjusted_balanced_accuracy", values, classes < 2)


def _informedness(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> tuple[Floats, Array]:
    positives, negatives = tp + fn, tn + fp
    defined = (positives > 0) & (negatives > 0)
    return tp / np.where(defined, positives, 1) - fp / np.where(defined, negatives, 1), defined


def _likelihood_ratio(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> tuple[Floats, Array]:
    positives, negatives = tp + fn, tn + fp
    defined = (positives > 0) & (fp > 0)
    return tp / np.where(defined, positives, 1) * (negatives / np.where(defined, fp, 1)), defined


@metric(*ONE_CLASS, *LABELS, options=("normalize",), interval=None)
def normalized_confusion_matrix(counts: Counts) -> Sequence[Any]:
    """The confusion matrix as fractions of rows, columns or all entries; ``normalize`` is true, pred or all.

    A fraction of nothing is null. Of several labels, a list of matrices. Equals sklearn.metrics.confusion_matrix with
    ``normalize``, whose 0 is null here.
    """
    cells = np.stack([counts.tn, counts.fp, counts.fn, counts.tp], -1).reshape(*counts.tp.shape, 2, 2)
    answers = []
    for request, matrices in enumerate(cells):
        found = [_normalized(counts, matrix) for matrix in matrices]
        if missing := [label for label, (_, missing) in enumerate(found) if missing]:
            counts.undefined[request]["normalized_confusion_matrix"] = missing if counts.averaged else found[0][1]
        answers.append([matrix for matrix, _ in found] if counts.averaged else found[0][0])
    return answers


@metric(*CLASSES, name="normalized_confusion_matrix", options=("normalize",), interval=None)
def normalized_confusion_matrix_of_classes(classes: Classes) -> Sequence[Any]:
    """The confusion matrix as fractions of rows, columns or all entries; ``normalize`` is true, pred or all.

    A fraction of nothing is null. Refused beyond 256 classes. Equals sklearn.metrics.confusion_matrix with
    ``normalize``, whose 0 is null here.
    """
    answers = []
    for request, matrix in enumerate(classes.each_matrix()):
        found, missing = _normalized(classes, matrix)
        if missing:
            classes.undefined[request]["normalized_confusion_matrix"] = missing
        answers.append(found)
    return answers


def _normalized(counts: Counts, matrix: Array) -> tuple[list[list[Any]], list[int]]:
    """Return the cells of a matrix (C, C) as fractions, and the classes that they are undefined of."""
    along = {"true": 1, "pred": 0, "all": None}[counts.view.options["normalize"]]
    whole = np.broadcast_to(matrix.sum(along, keepdims=True), matrix.shape)
    undefined = whole == 0
    cells: list[list[Any]] = spell(matrix / np.where(undefined, 1, whole))
    for row, column in np.argwhere(undefined).tolist():
        cells[row][column] = counts.zero_division
    return cells, np.flatnonzero(undefined.all(1 if along is None else along)).tolist()
