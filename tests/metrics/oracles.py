"""What metrics of counts, ranks and probabilities must be, from scikit-learn and plain NumPy.

An oracle takes a :class:`Sample` and gives the JSON value, with NaN for what is to be null.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import metrics as sk

from metrics.measuring import Array
from metrics.samples import Sample

UNDEFINED = float("nan")

Oracle = Callable[[Sample], Any]


def null(value: Any) -> Any:
    """JSON's null for NaN, throughout."""
    if isinstance(value, dict):
        return {key: null(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [null(item) for item in value]
    if value is None or isinstance(value, str):
        return value
    return None if np.isnan(value) else float(value)


def quietly(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Without scikit-learn's warnings, which say in words what null says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **named)


# Several classes


def _averaged(score: int) -> Oracle:
    """A scikit-learn score with its averages, over the classes that occur."""
    return lambda s: {"per_class" if a is None else a: scores[score] for a, scores in s.scores.items()}


def _over_classes(s: Sample, per_class: Array, micro: float) -> dict[str, Any]:
    """A score of each class, NaN for one in neither, with its means over the others."""
    means = {"macro": _mean_over(per_class, np.ones(s.classes)), "micro": micro}
    return {**means, "weighted": _weighted(per_class, s.matrix.sum(1)), "per_class": per_class}


def _f_beta(s: Sample) -> Any:
    per_class = sk.fbeta_score(
        s.true, s.prediction, beta=s.options.get("beta", 1.0), average=None, labels=range(s.classes),
        sample_weight=s.weight, zero_division=UNDEFINED,
    )  # fmt: skip
    return _over_classes(s, per_class, s.matrix.trace() / s.matrix.sum())


def _jaccard(s: Sample) -> Any:
    """scikit-learn's Jaccard index has no NaN of its own: a class in neither is taken out by hand."""
    per_class = sk.jaccard_score(
        s.true, s.prediction, average=None, labels=range(s.classes), sample_weight=s.weight, zero_division=0
    )
    absent = s.matrix.sum(0) + s.matrix.sum(1) == 0
    hits = s.matrix.trace()
    return _over_classes(s, np.where(absent, UNDEFINED, per_class), hits / (2 * s.matrix.sum() - hits))


def _mean_over(values: Array, weights: Array) -> float:
    kept = ~np.isnan(values) & (weights > 0)
    return float(np.average(values[kept], weights=weights[kept])) if kept.any() else UNDEFINED


def _specificity_of_classes(s: Sample) -> Any:
    matrix = s.matrix
    values, negatives, rejected = [], [], []
    for k in range(s.classes):
        others = np.arange(s.classes) != k
        negatives.append(matrix[others].sum())
        rejected.append(matrix[others][:, others].sum())
        values.append(rejected[-1] / negatives[-1] if negatives[-1] else UNDEFINED)
    per_class, actual = np.array(values), matrix.sum(1)
    present = (actual + matrix.sum(0)) > 0
    return {
        "macro": _mean_over(per_class[present], np.ones(present.sum())),
        "micro": sum(rejected) / sum(negatives),
        "weighted": _weighted(per_class[present], actual[present]),
        "per_class": per_class,
    }


def _weighted(values: Array, support: Array) -> float:
    """As scikit-learn: the plain mean where all that has a value has no support."""
    mean = _mean_over(values, support)
    return _mean_over(values, np.ones(len(values))) if np.isnan(mean) else mean


def _count(which: str) -> Oracle:
    def oracle(s: Sample) -> Any:
        place = {"tn": (0, 0), "fp": (0, 1), "fn": (1, 0), "tp": (1, 1)}[which]
        return s.cells[:, *place]

    return oracle


def _support_of_classes(s: Sample) -> Any:
    return [s.weight[s.true == k].sum() for k in range(s.classes)]


def _mcc(s: Sample) -> Any:
    w = s.weight > 0
    if len(np.unique(s.true[w])) < 2 or len(np.unique(s.prediction[w])) < 2:
        return UNDEFINED
    return sk.matthews_corrcoef(s.true, s.prediction, sample_weight=s.weight)


def _kappa(s: Sample) -> Any:
    w = s.weight > 0
    if len(np.unique(np.concatenate([s.true[w], s.prediction[w]]))) < 2:
        return UNDEFINED
    weights = s.options.get("weights", "none")
    return sk.cohen_kappa_score(
        s.true, s.prediction, labels=range(s.classes) if s.prediction.dtype != bool else None, sample_weight=s.weight,
        weights=None if weights == "none" else weights,
    )  # fmt: skip


def _balanced(s: Sample) -> Any:
    """The mean recall of the classes that are in the target."""
    actual = s.matrix.sum(1)
    return (s.matrix.diagonal()[actual > 0] / actual[actual > 0]).mean() if actual.any() else UNDEFINED


def _top_k(s: Sample) -> Any:
    # scikit-learn breaks ties towards the higher class: turned around, towards the lower.
    turned = s.score[:, ::-1]
    true = s.classes - 1 - s.true
    return quietly(
        sk.top_k_accuracy_score, true, turned, k=s.options.get("k", 5), labels=range(s.classes), sample_weight=s.weight
    )  # fmt: skip


def _one_against_rest(function: Oracle) -> Oracle:
    def oracle(s: Sample) -> Any:
        one_hot = s.true[:, None] == np.arange(s.classes)
        labels = Sample(one_hot, one_hot, s.score, s.weight, s.classes, s.image, s.image_weight, s.options)
        return _of_labels(function)(labels)

    return oracle


def _log_loss_of_classes(s: Sample) -> Any:
    return sk.log_loss(s.true, s.score, labels=range(s.classes), sample_weight=s.weight)


def _brier_of_classes(s: Sample) -> Any:
    return sk.brier_score_loss(s.true, s.score, labels=range(s.classes), sample_weight=s.weight)


def _ece(confidence: Array, right: Array, weight: Array, bins: int) -> float:
    """Guo et al. 2017, straight from the definition."""
    edges = np.linspace(0, 1, bins + 1)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high) | ((low == 0) & (confidence == 0))
        if weight[inside].sum():
            gap = np.average(right[inside], weights=weight[inside]) - np.average(
                confidence[inside], weights=weight[inside]
            )
            total += weight[inside].sum() * abs(gap)
    return total / weight.sum()


def _ece_of_classes(s: Sample) -> Any:
    return _ece(
        s.score[np.arange(len(s.prediction)), s.prediction], s.prediction == s.true, s.weight, s.options.get("bins", 15)
    )


def _reliability(confidence: Array, right: Array, weight: Array, bins: int) -> Any:
    """A table of the entries, bin by bin."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, weight, minlength=bins)
    means = [
        [
            total / n if n else None
            for total, n in zip(np.bincount(place, weight * values, minlength=bins), count, strict=True)
        ]
        for values in (confidence, right)
    ]
    return {"confidence": means[0], "accuracy": means[1], "count": count.tolist()} if count.any() else UNDEFINED


def _reliability_of_classes(s: Sample) -> Any:
    confidence = s.score[np.arange(len(s.prediction)), s.prediction]
    return _reliability(confidence, s.prediction == s.true, s.weight, s.options.get("bins", 15))


def _per_image(factor: int, intersections: int) -> Oracle:
    """factor·tp / (predicted + actual − intersections·tp) of each image, averaged."""

    def oracle(s: Sample) -> Any:
        rows: list[list[Any]] = []
        for image in range(len(s.image_weight)):
            here = s.image == image
            if not here.any():
                rows.append([np.full(s.classes, UNDEFINED), UNDEFINED, UNDEFINED, UNDEFINED])
                continue
            matrix = np.zeros((s.classes, s.classes), int)
            np.add.at(matrix, (s.true[here], s.prediction[here]), 1)
            tp, predicted, actual = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
            denominator = predicted + actual - intersections * tp
            values = np.where(denominator > 0, factor * tp / np.maximum(denominator, 1), UNDEFINED)
            rows.append([values, np.nanmean(values), factor * tp.sum() / denominator.sum(), _mean_over(values, actual)])
        per_class = np.stack([row[0] for row in rows])
        macro, micro, weighted = (_mean_over(np.array([row[i] for row in rows]), s.image_weight) for i in (1, 2, 3))
        means = [_mean_over(per_class[:, k], s.image_weight) for k in range(s.classes)]
        return {"macro": macro, "micro": micro, "weighted": weighted, "per_class": means}

    return oracle


CLASSES: dict[str, Oracle] = {
    "tp": _count("tp"),
    "fp": _count("fp"),
    "fn": _count("fn"),
    "tn": _count("tn"),
    "accuracy": lambda s: sk.accuracy_score(s.true, s.prediction, sample_weight=s.weight),
    "precision": _averaged(0),
    "recall": _averaged(1),
    "specificity": _specificity_of_classes,
    "f1": _averaged(2),
    "iou": _jaccard,
    "support": _support_of_classes,
    "f_beta": _f_beta,
    "balanced_accuracy": _balanced,
    "mcc": _mcc,
    "cohen_kappa": _kappa,
    "confusion_matrix": lambda s: s.matrix.tolist(),
    "top_k_accuracy": _top_k,
    "per_image_iou": _per_image(1, 1),
    "per_image_dice": _per_image(2, 0),
    "log_loss": _log_loss_of_classes,
    "brier": _brier_of_classes,
    "ece": _ece_of_classes,
    "reliability": _reliability_of_classes,
}


# One positive class


def _plain(score: int) -> Oracle:
    return lambda s: s.scores["binary"][score]


def _cell(row: int, column: int) -> Oracle:
    return lambda s: s.matrix[row, column]


def _quotient(s: Sample, above: tuple[float, float, float, float], below: tuple[float, float, float, float]) -> float:
    """One sum of tn, fp, fn and tp by another, each so many times."""
    cells = s.matrix.ravel()
    beneath = cells @ below
    return cells @ above / beneath if beneath else UNDEFINED


def _f_beta_plain(s: Sample) -> Any:
    square = s.options.get("beta", 1.0) ** 2
    return _quotient(s, (0, 0, 0, 1 + square), (0, 1, square, 1 + square))


def _auroc(s: Sample) -> Any:
    if len(np.unique(s.true[s.weight > 0])) < 2:
        return UNDEFINED
    return sk.roc_auc_score(s.true, s.score, sample_weight=s.weight)


def _average_precision(s: Sample) -> Any:
    if not s.true[s.weight > 0].any():
        return UNDEFINED
    return sk.average_precision_score(s.true, s.score, sample_weight=s.weight)


def _roc_curve(s: Sample) -> Any:
    if len(np.unique(s.true[s.weight > 0])) < 2:
        return UNDEFINED
    fpr, tpr, thresholds = sk.roc_curve(s.true, s.score, sample_weight=s.weight)
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist(), "thresholds": ["Infinity", *thresholds[1:].tolist()]}


def _pr_curve(s: Sample) -> Any:
    if not s.true[s.weight > 0].any():
        return UNDEFINED
    precision, recall, thresholds = sk.precision_recall_curve(s.true, s.score, sample_weight=s.weight)
    return {"precision": precision, "recall": recall, "thresholds": thresholds}


def _best_threshold(s: Sample) -> Any:
    if not s.true[s.weight > 0].any():
        return UNDEFINED
    thresholds = np.unique(s.score)[::-1]
    found = s.score[:, None] >= thresholds
    tp, predicted = ((kept * s.weight[:, None]).sum(0) for kept in (found & s.true[:, None], found))
    return thresholds[np.argmax(2 * tp / (predicted + s.weight[s.true].sum()))]


def _per_image_plain(factor: int, intersections: int) -> Oracle:
    def oracle(s: Sample) -> Any:
        values = []
        for image in range(len(s.image_weight)):
            here = s.image == image
            tp = (s.prediction & s.true)[here].sum()
            beneath = s.prediction[here].sum() + s.true[here].sum() - intersections * tp
            values.append(factor * tp / beneath if beneath else UNDEFINED)
        return _mean_over(np.array(values), s.image_weight)

    return oracle


DECISIONS: dict[str, Oracle] = {
    "tp": _cell(1, 1),
    "fp": _cell(0, 1),
    "fn": _cell(1, 0),
    "tn": _cell(0, 0),
    "accuracy": lambda s: sk.accuracy_score(s.true, s.prediction, sample_weight=s.weight),
    "precision": _plain(0),
    "recall": _plain(1),
    "specificity": lambda s: _quotient(s, (1, 0, 0, 0), (1, 1, 0, 0)),
    "f1": _plain(2),
    "iou": lambda s: _quotient(s, (0, 0, 0, 1), (0, 1, 1, 1)),
    "support": lambda s: s.weight[s.true].sum(),
    "f_beta": _f_beta_plain,
    "balanced_accuracy": _balanced,
    "mcc": _mcc,
    "cohen_kappa": _kappa,
    "confusion_matrix": lambda s: s.matrix.tolist(),
    "auroc": _auroc,
    "average_precision": _average_precision,
}

BINARY: dict[str, Oracle] = {
    **DECISIONS,
    "roc_curve": _roc_curve,
    "pr_curve": _pr_curve,
    "best_threshold": _best_threshold,
    "log_loss": lambda s: sk.log_loss(s.true, s.score, labels=[False, True], sample_weight=s.weight),
    "brier": lambda s: np.average((s.score - s.true) ** 2, weights=s.weight),
    "ece": lambda s: _ece(s.score, s.true, s.weight, s.options.get("bins", 15)),
    "reliability": lambda s: _reliability(s.score, s.true, s.weight, s.options.get("bins", 15)),
    "per_image_iou": _per_image_plain(1, 1),
    "per_image_dice": _per_image_plain(2, 0),
}  # fmt: skip


def _of_labels(function: Oracle) -> Oracle:
    """A binary metric of each label; averages are over the labels that have a value."""

    def oracle(s: Sample) -> Any:
        per_class = np.array([function(s.label(k)) for k in range(s.classes)], float)
        weight = s.weight[:, None]
        actual = (s.true * weight).sum(0)
        return {
            "macro": _mean_over(per_class, np.ones(s.classes)),
            "micro": function(s.pooled),
            "weighted": _weighted(per_class, actual),
            "per_class": per_class,
        }

    return oracle


def _each(function: Oracle) -> Oracle:
    return lambda s: [function(s.label(k)) for k in range(s.classes)]


CELLS = ("tp", "fp", "fn", "tn")
CALIBRATED = ("accuracy", "log_loss", "brier", "ece", "reliability")

MULTILABEL: dict[str, Oracle] = {
    **{name: _each(BINARY[name]) for name in (*CELLS, "support", "roc_curve", "pr_curve")},
    "confusion_matrix": lambda s: sk.multilabel_confusion_matrix(s.true, s.prediction, sample_weight=s.weight).tolist(),
    **{
        name: _of_labels(BINARY[name])
        for name in (
            *("precision", "recall", "specificity", "f1", "iou", "f_beta", "balanced_accuracy", "mcc", "cohen_kappa"),
            *("auroc", "average_precision"),
        )
    },
    **{name: lambda s, metric=BINARY[name]: metric(s.pooled) for name in CALIBRATED},
    "best_threshold": lambda s: {
        "micro": _best_threshold(s.pooled),
        "per_class": [_best_threshold(s.label(k)) for k in range(s.classes)],
    },
}

CLASSES |= {
    "auroc": _one_against_rest(_auroc),
    "average_precision": _one_against_rest(_average_precision),
}
