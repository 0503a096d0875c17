"""How likely each class is against all others together: what entries of one class of several are ranked by.

Probabilities will not do: from a margin of 37 on they round to 1, and what is computed with the logarithm of a sum over
the whole row changes in its last bits with a constant added to the row. Log-odds are the margin over the others. Where
there is one other they are exactly the difference, and rows that differ by a constant or by the order of the others
have the same.
"""

from __future__ import annotations

from lossd.lazy_torch import Tensor, torch
from lossd.metrics.entries import blocks

__all__ = ["log_odds"]


def log_odds(scores: Tensor) -> Tensor:
    """The logarithm of p / (1 - p), p the softmax of each class: (r, C, I) logits to (r, C, I) float64."""
    odds = torch.empty(scores.shape, dtype=torch.float64, device=scores.device)
    for row, column in blocks(*scores.shape):
        odds[row, :, column] = _of_block(scores[row, :, column].double())
    return odds


def _of_block(z: Tensor) -> Tensor:
    highest, best = z.max(1, keepdim=True)
    others = z.scatter(1, best, -torch.inf)
    second = others.amax(1, keepdim=True)
    one = 2.0 ** (62 - z.shape[1].bit_length())

    # Exponentials in whole parts of one: what is added up and taken away again leaves exactly the others, in any order.
    shares = _parts(z, highest, one)
    rest = shares.sum(1, keepdim=True) - shares
    odds = _gap(z, highest) - (rest.double() / one).log()

    # Of the best class the others are so much less than it that nothing of them would be left.
    rest = _parts(others, second, one).sum(1, keepdim=True)
    return odds.scatter(1, best, _gap(highest, second) - (rest.double() / one).log())


def _parts(z: Tensor, highest: Tensor, one: float) -> Tensor:
    """The exponentials of scores less the highest, int64."""
    return (_gap(z, highest).exp() * one).round().long()


def _gap(z: Tensor, other: Tensor) -> Tensor:
    """The difference; 0 of equal infinities."""
    return torch.where(z == other, 0, z - other)
