"""Metrics of probabilities: how far they are from the observed outcomes.

Each is a mean over entries, a plain number: over the elements of the tensor for binary and multilabel tasks, over the
samples (or pixels) for multiclass ones. Tasks whose scores are probabilities derive from :class:`ProbableDecisions` or
:class:`ProbableClasses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lossd.lazy_torch import Tensor, functional, torch
from lossd.losses.elementary import row_total
from lossd.losses.softmax import settled
from lossd.metrics.activation import class_probabilities, probabilities
from lossd.metrics.counts import BINARY, CLASSES, LABELS, Counts
from lossd.metrics.cutoffs import rounded, slack
from lossd.metrics.decisions import Decided
from lossd.metrics.entries import entrywise
from lossd.metrics.parts import Mean, Size, Tally
from lossd.metrics.registry import Array, Floats, metric, spell

__all__ = ["Probable", "ProbableClasses", "ProbableDecisions"]

# As sklearn clips float64 probabilities before it takes their logarithm.
TINY = np.finfo(np.float64).eps


class Probable(Counts):
    """Entries that are predicted with a probability.

    Attributes:
        confidences: The probability of the predicted class, (R, I) float64.
        came_true: Whether it came true, (R, I) bool.
    """

    @cached_property
    def confidences(self) -> Tensor:
        """The probability of the predicted class, (R, I) float64."""
        raise NotImplementedError

    @property
    def came_true(self) -> Tensor:
        """Whether it came true, (R, I) bool."""
        raise NotImplementedError

    @cached_property
    def squared_error(self) -> tuple[Floats, Array]:
        """The mean squared difference of probability and truth: numerators and denominators, (B,) each."""
        raise NotImplementedError

    @cached_property
    def surprise(self) -> tuple[Floats, Array]:
        """The mean of minus the logarithm of the probability of what came true, likewise."""
        raise NotImplementedError

    @cached_property
    def bin_of(self) -> Tensor:
        """The bin of each entry by its confidence, (R, I)."""
        return self.binned(self.confidences)

    def binned(self, probabilities: Tensor) -> Tensor:
        """Return the bin of each probability."""
        view, bins = self.view, self.view.options["bins"]
        edges = torch.arange(1, bins, dtype=torch.float64, device=probabilities.device) / bins
        if view.activation == "probability":
            edges = torch.as_tensor(rounded(edges, view.sent("prediction")))
        else:
            edges *= 1 + slack(view.computed("prediction"))
        return torch.bucketize(probabilities, edges)

    @Tally
    def bin_counts(self) -> tuple[Tensor, int]:
        """The entries of each bin, (B, bins)."""
        return self.bin_of, self.view.options["bins"]

    @Tally
    def bin_confidences(self) -> tuple[Tensor, int, Tensor]:
        """The sums of the confidences of each bin, (B, bins)."""
        return self.bin_of, self.view.options["bins"], self.confidences

    @Tally
    def bin_truths(self) -> tuple[Tensor, int, Tensor]:
        """How many entries of each bin came true, (B, bins)."""
        return self.bin_of, self.view.options["bins"], self.came_true.double()

    @Tally
    def bin_gaps(self) -> tuple[Tensor, int, Tensor]:
        """The sums of truth minus confidence of each bin, (B, bins)."""
        return self.bin_of, self.view.options["bins"], self.came_true.double() - self.confidences

    @Size
    def confident(self) -> torch.Size:
        """How many entries count, (B,)."""
        return self.confidences.shape

    def mean(self, name: str, part: tuple[Array, Array]) -> list[Any]:
        """Return a mean over the entries."""
        return self.quotients(name, *part, classes=() if self.averaged else (1,))


class ProbableDecisions(Probable, Decided):
    """Decisions by the probability of being positive."""

    @cached_property
    def confidences(self) -> Tensor:
        """The probability of being positive, (R, K·I) float64."""
        return self.elementwise(lambda scores, positive: probabilities(scores, self.view.activation)[:, 0])

    @property
    def came_true(self) -> Tensor:
        """Whether each element is positive, (R, K·I) bool."""
        return self.positive.flatten(1)

    @Mean
    def squared_error(self) -> Tensor:
        """The squared difference of the probability and the target, 0 or 1."""

        def squared(scores: Tensor, positive: Tensor) -> Tensor:
            return (probabilities(scores, self.view.activation)[:, 0] - positive.double()).square()

        return self.elementwise(squared)

    @Mean
    def surprise(self) -> Tensor:
        """Minus the logarithm of the probability given to what came true."""

        def surprise(scores: Tensor, positive: Tensor) -> Tensor:
            if self.view.activation in ("probability", "log_probability"):
                p = probabilities(scores, self.view.activation)[:, 0]
                return -torch.where(positive, p, 1 - p).clamp(TINY, 1 - TINY).log()
            z = scores[:, 0].double()
            return -functional.logsigmoid(torch.where(positive, z, -z))

        return self.elementwise(surprise)

    @Mean
    def hinge_losses(self) -> Tensor:
        """How far the log-odds are from 1 on the side of the target, 0 beyond."""

        def hinge(scores: Tensor, positive: Tensor) -> Tensor:
            z = scores[:, 0].double()
            if self.view.activation == "probability":
                z = z.log() - torch.log1p(-z)
            elif self.view.activation == "log_probability":
                z = z - (-torch.expm1(z)).log()
            return (1 - torch.where(positive, z, -z)).clamp(min=0)

        return self.elementwise(hinge)

    def elementwise(self, function: Any) -> Tensor:
        """Return ``function`` of each element's score and positive target, (R, K·I) float64."""
        return entrywise(function, self.scores.flatten(1).unsqueeze(1), self.positive.flatten(1), dtype=torch.float64)


class ProbableClasses(Probable):
    """Classes that are predicted with probabilities.

    Attributes:
        scores: The scores, (R, C, I).
        predicted_class: The predicted classes, (R, I) int64.
        target_class: The target classes, (R, I) int64; anything where ignored.
        safe_target: The target's classes, 0 where ignored.
    """

    @cached_property
    def scores(self) -> Tensor:
        """The scores, (R, C, I)."""
        raise NotImplementedError

    @cached_property
    def predicted_class(self) -> Tensor:
        """The predicted classes, (R, I) int64."""
        raise NotImplementedError

    @cached_property
    def target_class(self) -> Tensor:
        """The target classes, (R, I) int64; anything where ignored."""
        raise NotImplementedError

    @cached_property
    def safe_target(self) -> Tensor:
        """The target's classes, 0 where ignored."""
        raise NotImplementedError

    @cached_property
    def confidences(self) -> Tensor:
        """The probability of each entry's predicted class, (R, I) float64."""

        def confidence(scores: Tensor, predicted: Tensor) -> Tensor:
            return class_probabilities(scores, self.view.activation).gather(1, predicted.unsqueeze(1))[:, 0]

        return entrywise(confidence, self.scores, self.predicted_class, dtype=torch.float64)

    @property
    def came_true(self) -> Tensor:
        """Whether the predicted class is the target's, (R, I) bool."""
        return self.predicted_class == self.target_class

    @Tally
    def class_bin_gaps(self) -> tuple[Tensor, int, Tensor]:
        """The sums of truth minus probability of each class and each bin of its probabilities, (B, C · bins)."""
        bins, (rows, classes, _) = self.view.options["bins"], self.scores.shape
        p = class_probabilities(self.scores, self.view.activation)
        index = torch.arange(classes, device=p.device).reshape(1, -1, 1)
        keys = self.binned(p.contiguous()) + index * bins
        gaps = (self.safe_target.unsqueeze(1) == index).double() - p
        return keys.reshape(rows, -1), classes * bins, gaps.reshape(rows, -1)

    @Mean
    def squared_error(self) -> Tensor:
        """The squared differences of the probabilities and the one-hot target, summed over the classes."""

        def squared(scores: Tensor, target: Tensor) -> Tensor:
            p = class_probabilities(scores, self.view.activation)
            ones = torch.ones(target.unsqueeze(1).shape, dtype=p.dtype, device=p.device)
            return row_total(p.scatter_add(1, target.unsqueeze(1), -ones).square())

        return entrywise(squared, self.scores, self.safe_target, dtype=torch.float64)

    @Mean
    def surprise(self) -> Tensor:
        """Minus the logarithm of the probability given to the target's class."""

        def surprise(scores: Tensor, target: Tensor) -> Tensor:
            wide = scores.double()
            if self.view.activation not in ("probability", "log_probability"):
                # Not logsumexp: it adds the row's largest score and takes it away again.
                wide = settled(wide, 1).log_softmax(1)
            found = wide.gather(1, target.unsqueeze(1))[:, 0]
            return -found.clamp(TINY, 1 - TINY).log() if self.view.activation == "probability" else -found

        return entrywise(surprise, self.scores, self.safe_target, dtype=torch.float64)


@metric(*BINARY, *LABELS, reads=("squared_error",), better="lower", interval="unit")
def brier(task: Probable) -> Sequence[Any]:
    """The mean squared difference between probability and target, which is 0 or 1.

    Equals sklearn.metrics.brier_score_loss.
    """
    return task.mean("brier", task.squared_error)


@metric(*CLASSES, name="brier", reads=("squared_error",), better="lower", interval="positive")
def brier_of_classes(task: Probable) -> Sequence[Any]:
    """The squared differences of the probabilities and the one-hot target, summed over classes: from 0 to 2.

    Equals sklearn.metrics.brier_score_loss of several classes.
    """
    return task.mean("brier", task.squared_error)


@metric(*BINARY, *LABELS, reads=("surprise",), better="lower", interval="positive")
def log_loss(task: Probable) -> Sequence[Any]:
    """The mean of −log of the probability of the true outcome; the target is 0 or 1.

    Of logits, exact however large they are; probabilities are clipped to 2.2e-16 from 0 and 1. Equals
    sklearn.metrics.log_loss.
    """
    return task.mean("log_loss", task.surprise)


@metric(*CLASSES, name="log_loss", reads=("surprise",), better="lower", interval="positive")
def log_loss_of_classes(task: Probable) -> Sequence[Any]:
    """The mean of −log of the probability given to the target's class: cross-entropy.

    Of logits, exact however large they are; probabilities are clipped to 2.2e-16 from 0 and 1. Equals
    sklearn.metrics.log_loss.
    """
    return task.mean("log_loss", task.surprise)


@metric(*BINARY, *LABELS, options=("bins",), reads=("bin_gaps", "confident"), better="lower", interval=None)
def ece(task: Probable) -> Sequence[Any]:
    """Expected calibration error: the mean distance of probability and positive fraction, over ``bins`` bins.

    Bins are equal and hold their upper end; distances are weighted by the entries in the bin.

    References:
        C. Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599.
    """
    return _calibration_error(task)


@metric(*CLASSES, name="ece", options=("bins",), reads=("bin_gaps", "confident"), better="lower", interval=None)
def ece_of_classes(task: Probable) -> Sequence[Any]:
    """Expected calibration error: the mean distance of confidence and accuracy, over ``bins`` bins.

    Bins are equal and hold their upper end; distances are weighted by the entries in the bin.

    References:
        C. Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599.
    """
    return _calibration_error(task)


@metric(*BINARY, *LABELS, options=("bins",), reads=("bin_counts", "bin_confidences", "bin_truths"), interval=None)
def reliability(task: Probable) -> Sequence[Any]:
    """The reliability diagram, {"confidence", "accuracy", "count"}: the means and the size of each of ``bins`` bins.

    Accuracy is the positive fraction. An empty bin's means are null; all is null where nothing counts.
    """
    return _reliability(task)


@metric(
    *CLASSES,
    name="reliability",
    options=("bins",),
    reads=("bin_counts", "bin_confidences", "bin_truths"),
    interval=None,
)
def reliability_of_classes(task: Probable) -> Sequence[Any]:
    """The reliability diagram, {"confidence", "accuracy", "count"}: the means and the size of each of ``bins`` bins.

    Confidence is the predicted class's probability. An empty bin's means are null; all is null where nothing counts.
    """
    return _reliability(task)


def _calibration_error(task: Probable) -> list[Any]:
    return task.mean("ece", (np.abs(task.bin_gaps).sum(1), task.confident))


def _reliability(task: Probable) -> list[Any]:
    answers: list[Any] = []
    counts = spell(task.weights(task.bin_counts))
    columns = zip(task.bin_counts, task.bin_confidences, task.bin_truths, strict=True)
    for request, (n, confidences, truths) in enumerate(columns):
        if n.any():
            means = {"confidence": _means(confidences, n), "accuracy": _means(truths, n)}
            answers.append({**means, "count": counts[request]})
        else:
            task.undefined[request]["reliability"] = [] if task.averaged else [1]
            answers.append(None)
    return answers


def _means(sums: Array, count: Array) -> list[float | None]:
    return [total / n if n else None for total, n in zip(sums.tolist(), count.tolist(), strict=True)]
