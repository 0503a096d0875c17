"""Metrics of probabilities: how far they are from the observed outcomes.

Each is a mean over entries, a plain number: over the elements of the tensor for binary and multilabel tasks, over the
samples (or pixels) for multiclass ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lossd.lazy_torch import Tensor, functional, torch
from lossd.losses.softmax import settled
from lossd.metrics.activation import class_probabilities, probabilities
from lossd.metrics.binary import Binary
from lossd.metrics.classes import Classes
from lossd.metrics.counts import BINARY, CLASSES, LABELS
from lossd.metrics.cutoffs import rounded, slack
from lossd.metrics.entries import entrywise
from lossd.metrics.registry import Array, metric, spell

__all__: list[str] = []

# As sklearn clips float64 probabilities before it takes their logarithm.
TINY = np.finfo(np.float64).eps


@metric(*BINARY, *LABELS)
def brier(task: Binary) -> Sequence[Any]:
    """The mean squared difference of probability and target, the target 0 or 1.

    Equals sklearn.metrics.brier_score_loss.
    """

    def squared(scores: Tensor, positive: Tensor) -> Tensor:
        return (probabilities(scores, task.view.activation)[:, 0] - positive.double()).square()

    return _mean(task, "brier", _of_decisions(task, squared))


@metric(*CLASSES, name="brier")
def brier_of_classes(task: Classes) -> Sequence[Any]:
    """The squared differences of the probabilities and the one-hot target, summed over classes: from 0 to 2.

    Equals sklearn.metrics.brier_score_loss of several classes.
    """

    def squared(scores: Tensor, target: Tensor) -> Tensor:
        p = class_probabilities(scores, task.view.activation)
        ones = torch.ones(target.unsqueeze(1).shape, dtype=p.dtype, device=p.device)
        return p.scatter_add(1, target.unsqueeze(1), -ones).square().sum(1)

    return _mean(task, "brier", entrywise(squared, task.scores, task.safe_target, dtype=torch.float64))


@metric(*BINARY, *LABELS)
def log_loss(task: Binary) -> Sequence[Any]:
    """The mean of −log of the probability given to what came true, the target 0 or 1.

    Of logits, exact however large they are; probabilities are clipped to 2.2e-16 from 0 and 1. Equals
    sklearn.metrics.log_loss.
    """

    def surprise(scores: Tensor, positive: Tensor) -> Tensor:
        if task.view.activation in ("probability", "log_probability"):
            p = probabilities(scores, task.view.activation)[:, 0]
            return -torch.where(positive, p, 1 - p).clamp(TINY, 1 - TINY).log()
        z = scores[:, 0].double()
        return -functional.logsigmoid(torch.where(positive, z, -z))

    return _mean(task, "log_loss", _of_decisions(task, surprise))


@metric(*CLASSES, name="log_loss")
def log_loss_of_classes(task: Classes) -> Sequence[Any]:
    """The mean of −log of the probability given to the target's class: cross-entropy.

    Of logits, exact however large they are; probabilities are clipped to 2.2e-16 from 0 and 1. Equals
    sklearn.metrics.log_loss.
    """

    def surprise(scores: Tensor, target: Tensor) -> Tensor:
        wide = scores.double()
        if task.view.activation not in ("probability", "log_probability"):
            wide = settled(wide, 1).log_softmax(
                1
            )  # not logsumexp, to which the row's largest score is added and taken away again
        own = wide.gather(1, target.unsqueeze(1))[:, 0]
        return -own.clamp(TINY, 1 - TINY).log() if task.view.activation == "probability" else -own

    return _mean(task, "log_loss", entrywise(surprise, task.scores, task.safe_target, dtype=torch.float64))


@metric(*BINARY, *LABELS, options=("bins",))
def ece(task: Binary) -> Sequence[Any]:
    """Expected calibration error: the distance of the probability from the positive fraction, in ``bins`` bins.

    Bins are equal and hold their upper end; distances are weighted by the entries in the bin.

    References:
        C. Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599.
    """
    return _calibration_error(task, _of_decisions(task, _positive_probability(task)), task.positive.flatten(1))


@metric(*CLASSES, name="ece", options=("bins",))
def ece_of_classes(task: Classes) -> Sequence[Any]:
    """Expected calibration error: the distance of the predicted class's probability from accuracy, in ``bins`` bins.

    Bins are equal and hold their upper end; distances are weighted by the entries in the bin.

    References:
        C. Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599.
    """
    return _calibration_error(task, _of_predicted(task), task.predicted_class == task.target_class)


@metric(*BINARY, *LABELS, options=("bins",))
def reliability(task: Binary) -> Sequence[Any]:
    """What the calibration error sums up, {"confidence", "accuracy", "count"}: means and size of each of ``bins`` bins.

    Accuracy is the positive fraction. An empty bin's means are null; all is null where nothing counts.
    """
    return _reliability(task, _of_decisions(task, _positive_probability(task)), task.positive.flatten(1))


@metric(*CLASSES, name="reliability", options=("bins",))
def reliability_of_classes(task: Classes) -> Sequence[Any]:
    """What the calibration error sums up, {"confidence", "accuracy", "count"}: means and size of each of ``bins`` bins.

    Confidence is the predicted class's probability. An empty bin's means are null; all is null where nothing counts.
    """
    return _reliability(task, _of_predicted(task), task.predicted_class == task.target_class)


def _positive_probability(task: Binary) -> Any:
    return lambda scores, positive: probabilities(scores, task.view.activation)[:, 0]


def _of_predicted(task: Classes) -> Tensor:
    """Return the probability of each entry's predicted class, (R, I) float64."""

    def confidence(scores: Tensor, predicted: Tensor) -> Tensor:
        return class_probabilities(scores, task.view.activation).gather(1, predicted.unsqueeze(1))[:, 0]

    return entrywise(confidence, task.scores, task.predicted_class, dtype=torch.float64)


def _of_decisions(task: Binary, function: Any) -> Tensor:
    """Return ``function`` of each element's score and positive target, (R, K·I) float64."""
    return entrywise(function, task.scores.flatten(1).unsqueeze(1), task.positive.flatten(1), dtype=torch.float64)


def _mean(task: Binary | Classes, name: str, values: Tensor) -> list[Any]:
    return task.quotients(name, *task.entries.mean_of(values), of=() if task.averaged else (1,))


def _calibration_error(task: Binary | Classes, confidences: Tensor, right: Tensor) -> list[Any]:
    bin_of, bins = _binned(task, confidences)
    gaps = task.entries.tally(bin_of, bins, right.double() - confidences)
    denominator = task.entries.size(confidences.shape)
    return task.quotients("ece", np.abs(gaps).sum(1), denominator, of=() if task.averaged else (1,))


def _reliability(task: Binary | Classes, confidences: Tensor, right: Tensor) -> list[Any]:
    bin_of, bins = _binned(task, confidences)
    count, confidence, accuracy = (
        task.entries.tally(bin_of, bins, values) for values in (None, confidences, right.double())
    )
    answers: list[Any] = []
    counts = spell(task.entries.counts(count))
    for request, (n, mean, hits) in enumerate(zip(count, confidence, accuracy, strict=True)):
        if n.any():
            answers.append({"confidence": _means(mean, n), "accuracy": _means(hits, n), "count": counts[request]})
        else:
            task.undefined[request]["reliability"] = [] if task.averaged else [1]
            answers.append(None)
    return answers


def _means(sums: Array, count: Array) -> list[float | None]:
    return [total / n if n else None for total, n in zip(sums.tolist(), count.tolist(), strict=True)]


def _binned(task: Binary | Classes, confidences: Tensor) -> tuple[Tensor, int]:
    """Return the bin of each entry, and the number of bins."""
    view, bins = task.view, task.view.options["bins"]
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidences.device) / bins
    if view.activation == "probability":
        edges = torch.as_tensor(rounded(edges, view.sent("prediction")))
    else:
        edges *= 1 + slack(view.computed("prediction"))
    return torch.bucketize(confidences, edges), bins
