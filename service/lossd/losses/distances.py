"""Distances and cosines of embeddings, exact for rows that are equal, opposite, short or long."""

from __future__ import annotations

from collections.abc import Callable

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_norm, row_total, spread

__all__ = ["in_own_dtype", "one_less_cosine", "row_direction", "row_distance", "zero_with_slopes"]


def row_distance(
    first: Tensor, second: Tensor, order: float = 2.0, eps: float | Tensor = 0.0, squared: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the distance of each row to its counterpart, (N,), and whether they are equal, which has no gradient."""
    shift = torch.zeros_like(first[:, :1]) if squared else torch.as_tensor(eps, dtype=first.dtype, device=first.device)
    shift = shift.reshape(-1, 1)
    difference = first - second
    shifted = difference + shift
    if order == 2:
        narrow = row_norm(shifted)
        # A difference that may be the shift alone, or whose squares float32 may not hold, is computed again.
        doubtful = ~_in_range(narrow, above=4 * shift.squeeze(-1) * difference.shape[-1])
        distance = (narrow.square() if squared else narrow).double()  # in the same dtype for any other rows
        if not bool(doubtful.any()):
            return distance, doubtful
    same = (difference == 0).all(-1)
    wide = row_norm(shifted.double(), order)
    wide = torch.where(same, wide.detach(), wide)
    wide = wide.square() if squared else wide
    return (torch.where(doubtful, wide, distance), same & doubtful) if order == 2 else (wide, same)


def in_own_dtype(function: Callable[..., Tensor], dtype: torch.dtype, *distances: Tensor) -> Tensor:
    """Return a function of distances, computed in the embeddings' dtype for rows whose distances it holds.

    A margin is then rounded alike whether requests of a batch share it or not, and decimals cancel: in float32,
    0.2 − 0.5 + 0.3 is 0.
    """
    wide = function(*distances)
    if dtype == torch.float64:
        return wide
    narrow = [distance.to(dtype) for distance in distances]
    held = torch.stack([n.double() == d for n, d in zip(narrow, distances, strict=True)]).all(0)
    return torch.where(held, function(*narrow).double(), wide)


def one_less_cosine(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 - the cosine of each row and its counterpart, (N,) in [0, 2], and whether one of them has no direction.

    Without a direction it is 1, without gradient. If the two are close to one line, it is computed from their
    difference or their sum: of equal directions it is exactly 0, of opposite ones 2.
    """
    (a, no_a), (b, no_b) = row_direction(first.double()), row_direction(second.double())
    cosine = row_total(a * b)
    along, against = (row_total((a - b).square()) / 2, row_total((a + b).square()) / 2)
    apart = torch.where(cosine > 0.5, along, torch.where(cosine < -0.5, 2 - against, 1 - cosine))
    return apart, no_a | no_b


def _in_range(length: Tensor, above: float | Tensor) -> Tensor:
    """Return whether each length is far enough from 0 and from overflow for exact squares and products."""
    return (length > above + 1e-12) & (length < 1e12)


def zero_with_slopes(embedding: Tensor, slope: Tensor) -> Tensor:
    """Return 0 for each anchor, (N,), with the gradient of half its squared distances weighted by ``slope`` (N, N).

    Matrix products compute it: the distances' own gradient would read every coordinate of every pair again, and the
    product of entries would need one more table. What is near the centre keeps its digits. The centre is the median,
    because a mean is far from all embeddings if one of them is.
    """
    centred = embedding - embedding.detach().median(0).values
    square = centred.square().sum(-1)
    pull = (square * slope.sum(-1) + slope @ square) / 2 - (centred * (slope @ centred)).sum(-1)
    return pull - pull.detach()


def row_direction(vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row at length 1, (N, D), and whether it has length 0, (N,): it stays 0, without gradient."""
    # Directions do not depend on the scale; at that of the largest entry squares neither overflow nor vanish.
    scale = vector.detach().abs().amax(-1, keepdim=True)
    zero = scale == 0
    scaled = vector / scale.masked_fill(zero, 1)
    length = row_norm(scaled, keepdim=True).masked_fill(zero, 1)
    return torch.where(zero, torch.zeros_like(vector), scaled / spread(length, vector.shape[1])), zero.squeeze(-1)
