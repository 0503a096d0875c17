"""Requests that are evaluated together, as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lossd.job import Recipe

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Requests of one recipe, their tensors one after the other.

    Attributes:
        recipe: What they share.
        rows: The rows of each request.
        numbers: Each request's values of ``recipe.numbers``.
        inputs: Per input, (R, ...) where its column counts rows, else (B, ...).
        answers: Buffers for the answer's columns, shaped likewise; gradients and unreduced losses are written here.
        device: Where to compute.
    """

    recipe: Recipe
    rows: Sequence[int]
    numbers: Sequence[Sequence[float]]
    inputs: Mapping[str, Tensor]
    answers: Mapping[str, Tensor]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def part(self, first: int, last: int) -> Batch:
        """The batch of some of its requests, over the same memory; ``last`` is not one of them."""
        start = sum(self.rows[:first])
        stop = start + sum(self.rows[first:last])

        def part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                c.name: tensors[c.name][start:stop] if c.per_row else tensors[c.name][first:last]
                for c in self.recipe.columns
                if c.name in tensors
            }

        return replace(
            self,
            rows=self.rows[first:last],
            numbers=self.numbers[first:last],
            inputs=part(self.inputs),
            answers=part(self.answers),
        )

    def picked(self, positions: Sequence[int]) -> Batch:
        """The batch of these requests, in memory of its own; :meth:`take` brings their answers back."""
        places = self._places(positions)
        return replace(
            self,
            rows=[self.rows[i] for i in positions],
            numbers=[self.numbers[i] for i in positions] if self.numbers else (),  # none where none may vary
            inputs={c.name: self.inputs[c.name][places[c.per_row]] for c in self.recipe.inputs},
            answers={c.name: self.answers[c.name][places[c.per_row]] for c in self.recipe.answers},
        )

    def take(self, positions: Sequence[int], picked: Batch) -> None:
        """Write the answers of requests that were picked where they belong."""
        places = self._places(positions)
        for column in self.recipe.answers:
            self.answers[column.name][places[column.per_row]] = picked.answers[column.name]

    def _places(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of some requests: where they are themselves, and where their rows are."""
        requests = torch.tensor(positions)
        of_rows = torch.repeat_interleave(torch.tensor(self.rows))
        return requests, torch.isin(of_rows, requests).nonzero().flatten()
