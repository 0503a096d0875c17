"""Requests that are evaluated together, as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lossd.job import Recipe

__all__ = ["TensorBatch"]


class TensorBatch(NamedTuple):
    """Requests of one recipe; their tensors lie one after the other.

    Attributes:
        recipe: What the requests share.
        rows: The rows of each request.
        numbers: Each request's values of ``recipe.numbers``.
        inputs: Each input: (R, ...) if its column counts rows, else (B, ...).
        answers: A buffer for each answer column, with the same shapes; gradients and unreduced losses are written here.
        device: The device that computes.
    """

    recipe: Recipe
    rows: Sequence[int]
    numbers: Sequence[Sequence[float]]
    inputs: Mapping[str, Tensor]
    answers: Mapping[str, Tensor]
    device: torch.device = torch.device("cpu")

    def part(self, first: int, last: int) -> TensorBatch:
        """Return the batch of the requests from ``first`` up to but without ``last``, over the same memory."""
        start = sum(self.rows[:first])
        stop = start + sum(self.rows[first:last])

        def part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                c.name: tensors[c.name][start:stop] if c.per_row else tensors[c.name][first:last]
                for c in self.recipe.columns
                if c.name in tensors
            }

        return self._replace(
            rows=self.rows[first:last],
            numbers=self.numbers[first:last],
            inputs=part(self.inputs),
            answers=part(self.answers),
        )

    def picked(self, positions: Sequence[int]) -> TensorBatch:
        """Return the batch of these requests in its own memory; :meth:`take` copies their answers back."""
        places = self._places(positions)
        return self._replace(
            rows=[self.rows[i] for i in positions],
            numbers=[self.numbers[i] for i in positions] if self.numbers else (),  # a recipe without numbers has none
            inputs={c.name: self.inputs[c.name][places[c.per_row]] for c in self.recipe.inputs},
            answers={c.name: self.answers[c.name][places[c.per_row]] for c in self.recipe.answers},
        )

    def take(self, positions: Sequence[int], picked: TensorBatch) -> None:
        """Copy the answers of picked requests to their places in this batch."""
        places = self._places(positions)
        for column in self.recipe.answers:
            self.answers[column.name][places[column.per_row]] = picked.answers[column.name]

    def _places(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the indices of these requests, and the indices of their rows."""
        requests = torch.tensor(positions)
        request_of_row = torch.repeat_interleave(torch.tensor(self.rows))
        return requests, torch.isin(request_of_row, requests).nonzero().flatten()
