"""Log-odds: the likelihood of each class against all others together, to rank entries of several classes.

Probabilities cannot rank them: they round to 1 from a margin of 37 on, and the logarithm of a sum over the row changes
its last bits when a constant is added to the row. Log-odds are the margin over the others. With one other class they
are exactly the difference. They are equal for rows that differ by a constant or in the order of the others.
"""

from __future__ import annotations

from lossd.lazy_torch import Tensor, torch
from lossd.metrics.entries import blocks

__all__ = ["log_odds"]


def log_odds(scores: Tensor) -> Tensor:
    """Return log(p / (1 - p)), p the softmax of each class: (r, C, I) logits to (r, C, I) float64."""
    odds = torch.empty(scores.shape, dtype=torch.float64, device=scores.device)
    for row, column in blocks(*scores.shape):
        odds[row, :, column] = _of_block(scores[row, :, column].double())
    return odds


def _of_block(z: Tensor) -> Tensor:
    highest, best = z.max(1, keepdim=True)
    others = z.scatter(1, best, -torch.inf)
    second = others.amax(1, keepdim=True)
    one = 2.0 ** (62 - z.shape[1].bit_length())

    # Exponentials as integers: the sum minus one class is exactly the sum of the others, in any order.
    shares = _parts(z, highest, one)
    rest = shares.sum(1, keepdim=True) - shares
    odds = _gap(z, highest) - (rest.double() / one).log()

    # The best class's share would absorb the others' in the sum, so the others are scaled by their own highest.
    rest = _parts(others, second, one).sum(1, keepdim=True)
    return odds.scatter(1, best, _gap(highest, second) - (rest.double() / one).log())


def _parts(z: Tensor, highest: Tensor, one: float) -> Tensor:
    """Return the exponentials of scores minus the highest, int64."""
    return (_gap(z, highest).exp() * one).round().long()


def _gap(z: Tensor, other: Tensor) -> Tensor:
    """Return the difference; 0 for equal infinities."""
    return torch.where(z == other, 0, z - other)
