"""Yes or no, entry by entry: what every task that decides has in common, whatever it decides by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from lossd.lazy_torch import Tensor, torch
from lossd.metrics.counts import Counts
from lossd.metrics.entries import Entries
from lossd.metrics.ranking import Ranking
from lossd.metrics.registry import Array, View

__all__ = ["Decided", "Decision", "decisions"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What is decided of each entry.

    Attributes:
        scores: (R, K, I): rows, labels, further positions; higher is more likely.
        positive: (R, K, I) bool, what is so.
        predicted: (R, K, I) bool, what is decided.
        ignored: (R, K·I) bool, what does not count; or None.
    """

    scores: Tensor
    positive: Tensor
    predicted: Tensor
    ignored: Tensor | None = None


class Decided(Counts):
    """Counts of decisions."""

    averaged: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("threshold", "zero_division")

    def __init__(self, view: View) -> None:
        super().__init__(view)
        counted = view.counted.get("cells")
        self.cells = self._count() if counted is None else counted
        self.tp, self.fp, self.fn = self.cells[..., 0], self.cells[..., 1], self.cells[..., 2]

    def decide(self) -> Decision:
        """What is decided of each entry of the view."""
        raise NotImplementedError

    @cached_property
    def decision(self) -> Decision:
        """The same, made once, where anything needs more than the counts."""
        return self.decide()

    @property
    def scores(self) -> Tensor:
        """(R, K, I)."""
        return self.decision.scores

    @property
    def positive(self) -> Tensor:
        """(R, K, I) bool."""
        return self.decision.positive

    @cached_property
    def entries(self) -> Entries:
        """Those that count."""
        return Entries(self.view, self.decision.ignored)

    def _count(self) -> Array:
        return decisions(self.decision.predicted, self.positive, self.entries)

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
        """How many labels there are."""
        return int(self.cells.shape[1])

    def ranking(self, request: int, column: int | None) -> Ranking:
        """The elements of one request and label, or of all labels, that count."""
        rows = self.entries.rows_of(request)
        label = slice(None) if column is None else slice(column, column + 1)
        ignored = self.entries.ignored
        if ignored is not None:
            ignored = ignored[rows].expand(-1, self.scores[0].numel()).reshape(self.scores[rows].shape)[:, label]
        weight = None if self.entries.weight is None else self.entries.weight[rows]
        return Ranking.of(self.scores[rows, label], self.positive[rows, label], ignored, weight)


def decisions(predicted: Tensor, actual: Tensor, entries: Entries) -> Array:
    """The cells of decisions.

    Args:
        predicted: (R, K, I) bool.
        actual: (R, K, I) bool.
        entries: Of (R, K·I).

    Returns:
        (B, K, 4), int64 or weighted float64: true and false positives, false and true negatives.
    """
    count = torch.full((), predicted.shape[2], device=predicted.device)
    if entries.ignored is not None:
        kept = ~entries.ignored.expand(predicted.shape[0], predicted[0].numel()).reshape(predicted.shape)
        predicted, actual = predicted & kept, actual & kept
        count = kept.sum(2)
    both, said, true = (predicted & actual).sum(2), predicted.sum(2), actual.sum(2)
    rows = torch.stack([both, said - both, true - both, count - said - true + both], 2)
    if entries.weight is not None:
        rows = rows * entries.weight.reshape(-1, 1, 1)
    return entries.segments.sum(rows).numpy(force=True)
