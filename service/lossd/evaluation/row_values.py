"""The values of requests of one row each, as columns: a document for each row would take 100 times the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lossd_client.errors import Problem

__all__ = ["RowValues"]


@dataclass(slots=True)
class RowValues:
    """The loss of each row, and its warnings; tensors are on the host.

    Attributes:
        losses: Each row's loss, (N,) float64.
        numerators: The numerator of each row's mean, (N,) float64.
        denominators: The denominator of each row's mean, (N,) float64; 0 if the row has no entry to average.
        warned: By code of a warning, the rows that have it, (N,) bool. Codes that describe a whole loss may be missing.
    """

    losses: Tensor
    numerators: Tensor
    denominators: Tensor
    warned: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, answers: Sequence[Mapping[str, Any] | Problem]) -> RowValues:
        """Return the values in the rows' documents, which spell NaN and infinity as strings.

        Raises:
            Problem: Of the first row that has one.
        """
        values = cls(*torch.empty(3, len(answers), dtype=torch.float64))
        for row, answer in enumerate(answers):
            if isinstance(answer, Problem):
                raise answer
            values.losses[row] = float(answer["loss"])
            values.numerators[row] = float(answer["reduction"]["numerator"])
            values.denominators[row] = float(answer["reduction"]["denominator"])
            for warning in answer["diagnostics"]["warnings"]:
                values._rows_with(warning["code"])[row] = True
        return values

    def replace(self, rows: Sequence[int], other: RowValues) -> None:
        """Replace the values of these rows by those of another evaluation of them."""
        self.losses[rows] = other.losses
        self.numerators[rows] = other.numerators
        self.denominators[rows] = other.denominators
        for code in {**self.warned, **other.warned}:
            self._rows_with(code)[rows] = other._rows_with(code)

    def __add__(self, other: RowValues) -> RowValues:
        """Return the values of these rows, then of the other's."""
        codes = {**self.warned, **other.warned}
        return RowValues(
            torch.cat([self.losses, other.losses]),
            torch.cat([self.numerators, other.numerators]),
            torch.cat([self.denominators, other.denominators]),
            {code: torch.cat([self._rows_with(code), other._rows_with(code)]) for code in codes},
        )

    def _rows_with(self, code: str) -> Tensor:
        return self.warned.setdefault(code, torch.zeros(len(self.losses), dtype=torch.bool))
