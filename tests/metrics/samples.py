"""One request as its oracle sees it: the entries that count, flattened."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from sklearn import metrics as sk

from metrics.measuring import Array, Request


@dataclass(frozen=True)
class Sample:
    """One request's entries that count.

    Attributes:
        prediction: Decisions: predicted classes (n,), or booleans (n,) or (n, L).
        true: What they should be, in the same form.
        score: Probabilities: (n, C), (n,) or (n, L).
        weight: (n,).
        classes: How many classes or labels.
        image: (n,) the row each entry comes from.
        image_weight: The weight of each row.
        options: Of the request.
    """

    prediction: Array
    true: Array
    score: Array
    weight: Array
    classes: int
    image: Array
    image_weight: Array
    options: dict[str, Any] = field(default_factory=dict)

    def label(self, k: int) -> Sample:
        """One label of several."""
        return self.labels[k]

    @cached_property
    def labels(self) -> list[Sample]:
        """Each label of several."""
        rest = (self.weight, 1, self.image, self.image_weight, self.options)
        return [Sample(self.prediction[:, k], self.true[:, k], self.score[:, k], *rest) for k in range(self.classes)]

    # What several oracles read: scikit-learn checks its arguments at each call, longer than it counts.

    @cached_property
    def matrix(self) -> Array:
        """scikit-learn's confusion matrix of classes, or of no and yes."""
        labels = [False, True] if self.prediction.dtype == bool else range(self.classes)
        return sk.confusion_matrix(self.true, self.prediction, labels=labels, sample_weight=self.weight)

    @cached_property
    def cells(self) -> Array:
        """scikit-learn's confusion matrix of each class against the others, (C, 2, 2)."""
        return sk.multilabel_confusion_matrix(
            self.true, self.prediction, labels=range(self.classes), sample_weight=self.weight
        )

    @cached_property
    def scores(self) -> dict[str | None, Any]:
        """scikit-learn's precision, recall, F1 and support by the kind of average; NaN for what is undefined."""
        averages = ("binary",) if self.prediction.dtype == bool else ("macro", "micro", "weighted", None)
        return {
            average: sk.precision_recall_fscore_support(
                self.true, self.prediction, average=average, sample_weight=self.weight, zero_division=np.nan,
                labels=range(self.classes) if average is None else None,
            )
            for average in averages
        }  # fmt: skip

    @cached_property
    def likelihood_ratios(self) -> tuple[float, float]:
        """scikit-learn's likelihood ratios of yes and of no."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sk.class_likelihood_ratios(
                self.true, self.prediction, labels=[False, True], sample_weight=self.weight, replace_undefined_by=np.nan
            )

    @cached_property
    def curve(self) -> tuple[Array, Array] | None:
        """Every point of scikit-learn's ROC curve: FPR and TPR; None unless there are both yes and no."""
        if len(np.unique(self.true[self.weight > 0])) < 2:
            return None
        return sk.roc_curve(self.true, self.score, sample_weight=self.weight, drop_intermediate=False)[:2]

    @cached_property
    def cuts(self) -> list[tuple[float, float, float, float]]:
        """tp, fp, fn and tn where each score is the threshold, by falling score."""
        found = []
        for score in np.unique(self.score)[::-1]:
            prediction = self.score >= score
            cells = itertools.product((prediction, ~prediction), (self.true, ~self.true))
            found.append(tuple(self.weight[a & b].sum() for a, b in cells))
        return found

    @cached_property
    def pooled(self) -> Sample:
        """Every label of every entry as an entry."""
        spread = np.repeat(self.weight, self.classes)
        image = np.repeat(self.image, self.classes)
        arrays = (self.prediction.ravel(), self.true.ravel(), self.score.ravel())
        return Sample(*arrays, spread, 1, image, self.image_weight, self.options)


def sample_of_classes(request: Request, ignore_index: int | None, **options: Any) -> Sample:
    """Scores (N, C, *) and class indices or class probabilities; whole images among the options."""
    scores, target = request["prediction"], request["target"]
    options = {**options, "images": (scores.argmax(1), target, ignore_index)}
    n, classes = scores.shape[:2]
    scores = np.moveaxis(scores.reshape(n, classes, -1), 1, 2).reshape(-1, classes)
    entries = len(scores) // n
    if target.dtype.kind == "f":
        target = target.reshape(n, classes, -1).argmax(1)
    target = target.ravel()
    row_weight = request.get("sample_weight", np.ones(n))
    kept = np.repeat(row_weight > 0, entries)
    if ignore_index is not None:
        kept &= target != ignore_index
    return Sample(
        prediction=scores.argmax(1)[kept],
        true=target[kept],
        score=softmax(scores.astype(float), 1)[kept],
        weight=np.repeat(row_weight, entries)[kept],
        classes=classes,
        image=np.repeat(np.arange(n), entries)[kept],
        image_weight=row_weight,
        options=options,
    )


def sample_of_decisions(request: Request, ignore_index: int | None, *, labels: bool, **options: Any) -> Sample:
    """Logits and targets of the same shape; labels along the second axis."""
    scores, target = request["prediction"], request["target"]
    n = len(scores)
    row_weight = request.get("sample_weight", np.ones(n))
    if labels:
        width = scores.shape[1]
        scores, target = (np.moveaxis(a.reshape(n, width, -1), 1, 2).reshape(-1, width) for a in (scores, target))
    else:
        width, scores, target = 1, scores.ravel(), target.ravel()
    repeats = len(scores) // n
    kept = np.repeat(row_weight > 0, repeats)
    if ignore_index is not None:
        kept &= target != ignore_index
    threshold = options.get("threshold", 0.5)
    probability = expit(scores.astype(float))
    return Sample(
        prediction=(probability >= threshold)[kept],
        true=(target >= 0.5)[kept],
        score=probability[kept],
        weight=np.repeat(row_weight, repeats)[kept],
        classes=width,
        image=np.repeat(np.arange(n), repeats)[kept],
        image_weight=row_weight,
        options=options,
    )


def sample_of_numbers(request: Request, ignore_index: int | None, **options: Any) -> Sample:
    """Predictions and targets, flattened, dropped samples removed."""
    n = len(request["target"])
    weight = request.get("sample_weight", np.ones(n))
    prediction, true = (request[name].astype(float).reshape(n, -1) for name in ("prediction", "target"))
    spread = np.repeat(weight, prediction.shape[1])
    kept = spread > 0
    row = np.repeat(np.arange(n), prediction.shape[1])[kept]
    arrays = (prediction.ravel()[kept], true.ravel()[kept], np.zeros(kept.sum()), spread[kept])
    options["weighted"] = "sample_weight" in request
    return Sample(*arrays, classes=1, image=row, image_weight=weight, options=options)
