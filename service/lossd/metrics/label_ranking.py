"""Metrics of the labels of each sample together: which sets are right, and how the labels that apply are ranked.

A sample is a row, or a row's position if there are further axes. Labels that do not count are left out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_total
from lossd.metrics.counts import LABELS
from lossd.metrics.decisions import Decided
from lossd.metrics.parts import Sums
from lossd.metrics.ranking import bounded
from lossd.metrics.registry import Array, metric

__all__ = ["LabelSetsRanked"]


class _Samples(NamedTuple):
    """The labels of S samples, (S, K) each unless another shape is stated.

    Attributes:
        positive: Whether a label applies, bool.
        kept: Whether it counts, bool.
        above: How many labels that count have a higher score, int64.
        reached: How many have at least its score, int64.
        known: Whether no score is NaN, (S,) bool.
    """

    positive: Tensor
    kept: Tensor
    above: Tensor
    reached: Tensor
    known: Tensor


class LabelSetsRanked(Decided):
    """Sums over the samples of a batch, (B, 2): of a number of each sample, and of the samples that have it."""

    def in_samples(self, tensor: Tensor) -> Tensor:
        """Return a tensor (R, K, I) by sample and label, (R·I, K)."""
        return tensor.movedim(1, 2).reshape(-1, tensor.shape[1])

    @cached_property
    def counted_labels(self) -> Tensor:
        """Which labels count, (R·I, K) bool."""
        ignored = self.entries.ignored
        if ignored is None:
            return torch.ones_like(self.in_samples(self.positive))
        return self.in_samples(~ignored.expand(-1, self.positive[0].numel()).reshape(self.positive.shape))

    @cached_property
    def samples(self) -> _Samples:
        """The labels of each sample and their ranks."""
        bounded(self.scores.numel())
        kept, positive = self.counted_labels, self.in_samples(self.positive)
        scores = self.in_samples(self.scores).double()
        known = ~(scores.isnan() & kept).any(1)
        # The scores that do not count lie below all others.
        scores = scores.nan_to_num(nan=0, neginf=torch.finfo(torch.float64).min, posinf=torch.inf)
        scores = scores.masked_fill(~kept, -torch.inf).contiguous()
        rising = scores.sort(1).values
        above = scores.shape[1] - torch.searchsorted(rising, scores, right=True)
        reached = scores.shape[1] - torch.searchsorted(rising, scores)
        return _Samples(positive & kept, kept, above, reached, known)

    def of_samples(self, values: Tensor, defined: Tensor) -> Tensor:
        """Return the sum of a number of each sample and the number of samples that have it, by row: (R, 2).

        Args:
            values: Numbers, (R·I,) float64.
            defined: Which samples have it, (R·I,) bool.
        """
        rows = self.positive.shape[0]
        values = torch.where(self.samples.known, values, torch.nan)
        pairs = torch.stack([torch.where(defined, values, 0), defined.double()], 1)
        return row_total(pairs.reshape(rows, -1, 2))

    @cached_property
    def positives_reached(self) -> tuple[Tensor, Tensor]:
        """How many positive labels have at least the score of a label, and how many a higher one, (R·I, K) each."""
        s = self.samples
        rank = s.reached.masked_fill(~s.positive, s.reached.shape[1] + 1).sort(1).values
        return torch.searchsorted(rank, s.reached, right=True), torch.searchsorted(rank, s.reached)

    @Sums
    def exact_sets(self) -> Tensor:
        """How many samples have all labels right, and how many have labels, (R, 2) int64."""
        kept = self.counted_labels
        right = self.in_samples(self.decision.predicted == self.positive)
        rows, some = self.positive.shape[0], kept.any(1)
        return torch.stack([(right | ~kept).all(1) & some, some], 1).reshape(rows, -1, 2).sum(1)

    @Sums
    def ranked_precisions(self) -> Tensor:
        """Label ranking average precisions."""
        s, (found, _) = self.samples, self.positives_reached
        positives = s.positive.sum(1)
        shares = torch.where(s.positive, found / s.reached.clamp(min=1).double(), 0)
        return self.of_samples(row_total(shares) / positives.clamp(min=1), positives > 0)

    @Sums
    def coverages(self) -> Tensor:
        """The ranks of the last labels that apply."""
        s = self.samples
        return self.of_samples(torch.where(s.positive, s.reached, 0).amax(1).double(), s.positive.any(1))

    @Sums
    def wrong_orders(self) -> Tensor:
        """The fractions of pairs of a label that applies and one that does not that are in the wrong order."""
        s, (_, higher) = self.samples, self.positives_reached
        positives, negatives = s.positive.sum(1), (s.kept & ~s.positive).sum(1)
        wrong = torch.where(s.kept & ~s.positive, positives.unsqueeze(1) - higher, 0).sum(1)
        pairs = positives * negatives
        return self.of_samples(wrong / pairs.clamp(min=1).double(), pairs > 0)

    @Sums
    def top_precisions(self) -> Tensor:
        """The fractions of the ``k`` labels with the highest scores that apply."""
        s, k = self.samples, self.view.options["k"]
        labels = s.kept.sum(1)
        taken = (s.reached.clamp(max=k) - s.above.clamp(max=k)) / (s.reached - s.above).clamp(min=1).double()
        found = row_total(torch.where(s.positive, taken, 0))
        return self.of_samples(found / labels.clamp(min=1, max=k), labels > 0)

    @Sums
    def discounted_gains(self) -> Tensor:
        """The gains of the ``k`` labels with the highest scores, over those of the best order."""
        s, k = self.samples, self.view.options["k"]
        count = s.positive.shape[1]
        discounts = np.append(0, np.cumsum(1 / np.log2(np.arange(2, min(k, count) + 2))))
        sums = torch.from_numpy(np.append(discounts, np.full(count - len(discounts) + 1, discounts[-1])))
        sums = sums.to(s.reached.device)
        each = (sums[s.reached] - sums[s.above]) / (s.reached - s.above).clamp(min=1)
        positives = s.positive.sum(1)
        best = torch.where(positives > 0, sums[positives], 1)
        return self.of_samples(row_total(torch.where(s.positive, each, 0)) / best, positives > 0)

    def mean_of_samples(self, name: str, sums: Array) -> list[Any]:
        """Return the mean over the samples that have a value."""
        return self.quotients(name, sums[:, 0], sums[:, 1])


@metric(*LABELS, reads=("exact_sets",), better="higher", interval="unit")
def exact_match(task: LabelSetsRanked) -> Sequence[Any]:
    """Subset accuracy: the fraction of samples with all labels right. A sample is a row, or a position of one.

    Equals sklearn.metrics.accuracy_score of several labels.
    """
    return task.mean_of_samples("exact_match", task.exact_sets)


@metric(*LABELS, better="lower", interval="unit")
def hamming(task: LabelSetsRanked) -> Sequence[Any]:
    """Hamming loss, the fraction of wrong decisions: 1 − accuracy. Equals sklearn.metrics.hamming_loss."""
    return task.quotients("hamming", (task.fp + task.fn).sum(-1), task.right[1])


@metric(*LABELS, sorts=True, reads=("ranked_precisions",), better="higher", interval="unit")
def lrap(task: LabelSetsRanked) -> Sequence[Any]:
    """Label ranking average precision: for each label that applies, the fraction of labels ranked as high that apply.

    The mean over the labels that apply to a sample, then over samples. Samples without such a label are left out, which
    scikit-learn counts as 1. Equals sklearn.metrics.label_ranking_average_precision_score elsewhere.
    """
    return task.mean_of_samples("lrap", task.ranked_precisions)


@metric(*LABELS, sorts=True, reads=("coverages",), better="lower", interval="positive")
def coverage_error(task: LabelSetsRanked) -> Sequence[Any]:
    """The number of highest scores that include all labels that apply, averaged over samples.

    Samples without such a label are left out, which scikit-learn counts as 0. Equals sklearn.metrics.coverage_error
    elsewhere.
    """
    return task.mean_of_samples("coverage_error", task.coverages)


@metric(*LABELS, sorts=True, reads=("wrong_orders",), better="lower", interval="unit")
def ranking_loss(task: LabelSetsRanked) -> Sequence[Any]:
    """The fraction of pairs in which a label that does not apply scores at least as high as one that does.

    The mean over samples. Those whose labels all apply, or none, are left out, which scikit-learn counts as 0. Equals
    sklearn.metrics.label_ranking_loss elsewhere.
    """
    return task.mean_of_samples("ranking_loss", task.wrong_orders)


@metric(*LABELS, name="precision@k", options=("k",), sorts=True, reads=("top_precisions",), better="higher",
        interval="unit")  # fmt: skip
def precision_at_k(task: LabelSetsRanked) -> Sequence[Any]:
    """The fraction of the ``k`` labels with the highest scores that apply, the mean over samples.

    Of equal scores of which only some are among them, each is with the same probability. Of fewer labels all are taken.
    """
    return task.mean_of_samples("precision@k", task.top_precisions)


@metric(*LABELS, name="ndcg@k", options=("k",), sorts=True, reads=("discounted_gains",), better="higher",
        interval="unit")  # fmt: skip
def ndcg_at_k(task: LabelSetsRanked) -> Sequence[Any]:
    """Normalised discounted cumulative gain of the ``k`` labels with the highest scores, the mean over samples.

    A label that applies gains 1 over log2(1 + rank), equal scores the mean of theirs; divided by the gain of the best
    order. Samples without a label that applies are left out, which scikit-learn counts as 0. Equals
    sklearn.metrics.ndcg_score elsewhere.
    """
    return task.mean_of_samples("ndcg@k", task.discounted_gains)
