"""Calibration errors beside the expected one: other norms, each class on its own, bins of equal weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lossd.exact.steps import Steps
from lossd.lazy_torch import torch
from lossd.metrics.activation import probabilities
from lossd.metrics.calibration import Probable, ProbableClasses, ProbableDecisions
from lossd.metrics.counts import BINARY, CLASSES, LABELS
from lossd.metrics.registry import Floats, metric

__all__ = ["gap_of_equal_bins"]

GAPS = ("bin_gaps", "bin_counts", "confident")


@metric(*BINARY, *LABELS, *CLASSES, options=("bins",), reads=GAPS, better="lower", interval=None)
def mce(task: Probable) -> Sequence[Any]:
    """Maximum calibration error: the largest distance in any of the ``bins`` bins of ece.

    References:
        M. P. Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015.
    """
    gaps, counts = np.abs(task.bin_gaps), task.bin_counts
    largest = np.max(gaps / np.where(counts > 0, counts, 1), axis=1, initial=0)
    return task.numbers("mce", largest, task.confident == 0, classes=() if task.averaged else (1,))


@metric(*BINARY, *LABELS, *CLASSES, options=("bins",), reads=GAPS, better="lower", interval=None)
def ece_l2(task: Probable) -> Sequence[Any]:
    """The root mean squared calibration error over ``bins`` bins, weighted by their entries.

    References:
        A. Kumar et al., Verified Uncertainty Calibration, 2019, arXiv:1909.10155.
    """
    gaps, counts = task.bin_gaps, task.bin_counts
    squares = (gaps * (gaps / np.where(counts > 0, counts, 1))).sum(1)
    size = np.where(task.confident == 0, 1, task.confident)
    return task.numbers("ece_l2", np.sqrt(squares / size), task.confident == 0, classes=() if task.averaged else (1,))


@metric(*BINARY, *LABELS, reads=("hinge_losses",), better="lower", interval="positive")
def hinge(task: ProbableDecisions) -> Sequence[Any]:
    """The mean hinge loss max(0, 1 − y z), y the target as −1 or 1 and z the logit.

    The logit of a probability is log(p / (1 − p)). Equals sklearn.metrics.hinge_loss.
    """
    return task.mean("hinge", task.hinge_losses)


@metric(
    *CLASSES,
    options=("bins",),
    sorts=True,
    reads=("class_bin_gaps", "confident"),
    better="lower",
    interval=None,
)
def classwise_ece(task: ProbableClasses) -> Sequence[Any]:
    """The calibration error of the probability of each class, averaged over classes.

    ``bins`` bins are equal and hold their upper end; all classes count, whether in the target or not.

    References:
        M. Kull et al., Beyond temperature scaling: Dirichlet calibration, 2019, arXiv:1910.12656.
    """
    gaps = np.abs(task.class_bin_gaps)
    classes = gaps.shape[1] // task.view.options["bins"]
    return task.mean("classwise_ece", (gaps.sum(1) / classes, task.confident))


@metric(*BINARY, *LABELS, *CLASSES, options=("bins",), sorts=True, reads=("rankings",), better="lower", interval=None)
def ace(task: Any) -> Sequence[Any]:
    """Adaptive calibration error: the mean distance of probability and truth in ``bins`` bins of equal weight.

    Entries at an edge are divided between two bins, and of equal probabilities each has the mean truth. Of several
    classes or labels the mean over all, each against the rest.

    References:
        J. Nixon et al., Measuring Calibration in Deep Learning, 2019, arXiv:1904.01685.
    """
    activation, bins = task.view.activation, task.view.options["bins"]
    values, undefined = np.zeros(task.count), np.zeros(task.count, bool)
    for request in range(task.count):
        each = [gap_of_equal_bins(task.steps(request, column), activation, bins) for column in range(task.columns)]
        known = [gap for gap in each if gap is not None]
        undefined[request] = len(known) < len(each)
        values[request] = sum(known) / max(len(known), 1)
    answer: list[Any] = task.numbers("ace", values, undefined, classes=() if task.averaged else (1,))
    return answer


def gap_of_equal_bins(s: Steps, activation: str, bins: int) -> float | None:
    """Return the mean distance of probability and truth over bins of equal weight; None without scores."""
    whole = s.positives + s.negatives
    if not whole > 0:
        return None
    if s.unranked:
        return float("nan")
    middle = s.thresholds if s.highest is None else s.thresholds / 2 + s.highest / 2
    p: Floats = probabilities(torch.from_numpy(middle.copy()).unsqueeze(1), activation)[:, 0].numpy()
    found = np.append(0, np.asarray(s.tp / whole, float))
    weight = np.append(0, np.asarray((s.tp + s.fp) / whole, float))
    gaps = np.append(0, np.cumsum(np.diff(found) - np.diff(weight) * p))
    return float(np.abs(np.diff(np.interp(np.arange(bins + 1) / bins, weight, gaps))).sum())
