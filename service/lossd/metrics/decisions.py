"""Binary decisions for each entry: what every task that decides has in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from lossd.lazy_torch import Tensor, torch
from lossd.metrics.contributions import Contribution, Scores, Tallied
from lossd.metrics.counts import Counts
from lossd.metrics.entries import Entries
from lossd.metrics.parts import Rankings, Sums
from lossd.metrics.ranking import Ranking, Steps, scores_of, steps_of
from lossd.metrics.registry import Array

__all__ = ["Decided", "Decision", "decisions"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on each entry.

    Attributes:
        scores: (R, K, I): rows, labels, further positions; a higher score is more likely.
        positive: Whether the entry is positive, (R, K, I) bool.
        predicted: Whether it is decided to be positive, (R, K, I) bool.
        ignored: Whether it does not count, (R, K·I) bool; or None.
    """

    scores: Tensor
    positive: Tensor
    predicted: Tensor
    ignored: Tensor | None = None


class Cells(Sums):
    """The four counts of decisions, (B, K, 4): true and false positives, false and true negatives of each label."""

    def contributions(self, task: Any) -> dict[str, Contribution]:
        """Return the counts of each combination; of single entries without weights, from a number for each decision."""
        decision: Decision = task.decision
        rows, labels, positions = decision.predicted.shape
        if task.view.sample_weight is not None or positions > 1:
            return super().contributions(task)
        code = torch.add(decision.positive.view(torch.uint8), decision.predicted.view(torch.uint8), alpha=2)
        key, placed = (3 - code).reshape(rows, labels), task.view.placed
        if labels > 1:
            key = key.long() + torch.arange(0, 4 * labels, 4, device=key.device)
        found, times = placed.tally(key, 4 * labels, task.entries.ignored)
        return {"sum": Tallied(found, times, (labels, 4))}


class Decided(Counts):
    """The counts of decisions."""

    averaged: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("threshold", "zero_division")
    base: ClassVar[tuple[str, ...]] = ("cells",)

    @cached_property
    def tp(self) -> Array:
        """Positive entries that are decided to be."""
        tp: Array = self.cells[..., 0]
        return tp

    @cached_property
    def fp(self) -> Array:
        """Entries that are decided to be positive and are not."""
        fp: Array = self.cells[..., 1]
        return fp

    @cached_property
    def fn(self) -> Array:
        """Positive entries that are not decided to be."""
        fn: Array = self.cells[..., 2]
        return fn

    @Cells
    def cells(self) -> Tensor:
        """True and false positives, false and true negatives, (B, K, 4)."""
        return decisions(self.decision.predicted, self.positive, self.entries.ignored)

    def decide(self) -> Decision:
        """Return the decision on each entry of the view."""
        raise NotImplementedError

    @cached_property
    def decision(self) -> Decision:
        """The decision on each entry, computed once at first use."""
        return self.decide()

    @property
    def scores(self) -> Tensor:
        """The scores, (R, K, I)."""
        return self.decision.scores

    @property
    def positive(self) -> Tensor:
        """Which entries are positive, (R, K, I) bool."""
        return self.decision.positive

    @cached_property
    def entries(self) -> Entries:
        """The entries that count."""
        return Entries(self.view, self.decision.ignored)

    @cached_property
    def negatives(self) -> Array:
        """Entries that are not positive."""
        return self.cells[..., 1] + self.cells[..., 3]

    @property
    def tn(self) -> Array:
        """Entries that neither are positive nor decided to be."""
        tn: Array = self.cells[..., 3]
        return tn

    @cached_property
    def right(self) -> tuple[Array, Array]:
        """Right decisions and all decisions of each request, whatever the label."""
        sums = self.cells.sum(1)
        return sums[:, 0] + sums[:, 3], sums.sum(1)

    @property
    def columns(self) -> int:
        """The number of labels."""
        return int(self.cells.shape[1])

    def ranking_of(self, rows: slice, column: int | None) -> Ranking:
        """Return the ranking of the entries of some rows that count, of one label or of all."""
        label = slice(None) if column is None else slice(column, column + 1)
        ignored = self.entries.ignored
        if ignored is not None:
            ignored = ignored[rows].expand(-1, self.scores[0].numel()).reshape(self.scores[rows].shape)[:, label]
        weight = None if self.entries.weight is None else self.entries.weight[rows]
        return Ranking.of(self.scores[rows, label], self.positive[rows, label], ignored, weight)

    @Rankings
    def rankings(self) -> Scores:
        """The scores of each label, and which are positive."""
        return scores_of(self)

    def steps(self, request: int, column: int | None) -> Steps:
        """Return the steps of the ranking of one request for one label; of all together for None."""
        return steps_of(self, request, column)


def decisions(predicted: Tensor, actual: Tensor, ignored: Tensor | None) -> Tensor:
    """Return the four counts of each row's decisions.

    Args:
        predicted: Which entries are decided to be positive, (R, K, I) bool.
        actual: Which entries are positive, (R, K, I) bool.
        ignored: Which entries do not count, (R, K·I) or (R, 1) bool; None if all do.

    Returns:
        (R, K, 4) int64: true and false positives, false and true negatives.
    """
    count = torch.full((), predicted.shape[2], device=predicted.device)
    if ignored is not None:
        kept = ~ignored.expand(predicted.shape[0], predicted[0].numel()).reshape(predicted.shape)
        predicted, actual = predicted & kept, actual & kept
        count = kept.sum(2)
    counts = (predicted & actual, predicted, actual)
    # One position is no sum: torch adds along an axis of length 1 row by row.
    tp, positive, true = (c.squeeze(2).long() if c.shape[2] == 1 else c.sum(2) for c in counts)
    return torch.stack([tp, positive - tp, true - tp, count - positive - true + tp], 2)
