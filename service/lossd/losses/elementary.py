"""Elementary functions whose value depends on their argument alone, not on its position in a tensor.

On a CPU torch evaluates a function with vector instructions, and with other code whatever fills no vector: the last
entries of a tensor, of a thread's share of it, and of each row of one that is not contiguous. For most functions both
give the same bits. For ``sigmoid``, ``softplus``, ``sinh``, ``cosh``, ``logaddexp``, ``atan2``, ``hypot`` and ``pow``
they differ in the last digit, forward or in the gradient. A row's loss would then depend on the rows that are sent with
it, and the loss of a data set on how it is split into requests.

Losses and metrics therefore use what is below, and ``exp``, ``expm1``, ``log``, ``log1p``, ``tanh``, ``sqrt``,
``logsigmoid``, ``log_softmax`` and arithmetic, which have no such digits; ``softmax`` has none along the last axis, but
differs along another (41 of 2400 entries of a tensor (40, 3, 20)). :func:`in_whole_vectors` pads a tensor until vectors
are all there is: that takes a copy, and keeps torch's digits and speed. A sigmoid written with ``exp`` and a choice of
the sign took three times as long.

Sums and norms of rows depend on each row alone, with one exception: torch's threads share the sum of a single long row,
and add up their parts. :func:`row_total` and :func:`row_norm` sum such a row as one of several.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lossd.lazy_torch import Tensor, torch

__all__ = [
    "SHARED",
    "in_whole_vectors",
    "log1mexp",
    "log1p_remainder",
    "power",
    "row_norm",
    "row_total",
    "sigmoid",
    "softplus",
    "spread",
]

VECTOR = 64
"""Entries that fill whole vectors on every CPU: the longest are 512 bits, of which torch takes two at a time."""

SHARED = 1 << 15
"""From so many entries on, torch's threads share an operation (``at::internal::GRAIN_SIZE``)."""


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + e^-x) of each entry."""
    return in_whole_vectors(torch.sigmoid, x)


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + e^x) of each entry."""
    # torch's own softplus is the identity beyond 20.
    return in_whole_vectors(lambda entries: torch.logaddexp(entries, entries.new_zeros(())), x)


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - e^x) of each entry <= 0: -inf at 0, NaN beyond.

    References:
        M. Maechler, Accurately computing log(1 - exp(-|a|)), 2012, the vignette of the R package Rmpfr.
    """
    near = x > -math.log(2)
    # Each branch gets a point of its own range in place of the other's, for its slope may be infinite there.
    small, large = x.masked_fill(~near, -0.5), x.masked_fill(near, -1)
    # 0 - e is +0 where -e is -0, whose slope would have the wrong sign.
    return torch.where(near, torch.log(0 - torch.expm1(small)), torch.log1p(-torch.exp(large)))


def power(base: Tensor, exponent: float | Tensor) -> Tensor:
    """Return each entry to the power of the exponent; the same bits for a number and for a tensor of it.

    Args:
        base: Numbers >= 0.
        exponent: A number, or numbers that broadcast against ``base``. 2, the usual one, is a product.
    """
    if isinstance(exponent, Tensor):
        return torch.where(exponent == 2, base * base, in_whole_vectors(torch.pow, base, exponent))
    if exponent == 2:
        return base * base
    # A tensor, because torch takes roots and products for some numbers, but not for tensors of them.
    return in_whole_vectors(torch.pow, base, torch.as_tensor(exponent, dtype=base.dtype, device=base.device))


def log1p_remainder(x: Tensor) -> Tensor:
    """Return (x - log(1 + x)) / x² of each entry, 1/2 at 0. No terms cancel, so its gradients are precise too.

    Args:
        x: Numbers >= 0.
    """
    near = x < 0.1
    small, large = torch.where(near, x, 0), torch.where(near, 1, x)
    series = torch.zeros_like(x)
    for power_of_x in range(16, -1, -1):  # 0.1 to the 17th is below half a unit of float64
        series = (-1) ** power_of_x / (power_of_x + 2) + small * series
    return torch.where(near, series, (1 - torch.log1p(large) / large) / large)


def in_whole_vectors(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return a function of each entry, evaluated with vector instructions throughout; so is its gradient.

    Args:
        function: A function of contiguous tensors (n,) that works entry by entry.
        tensors: Its arguments, which broadcast.
    """
    if tensors[0].is_cuda:
        return function(*tensors)
    expanded = torch.broadcast_tensors(*tensors)  # type: ignore[no-untyped-call]
    shape, count = expanded[0].shape, expanded[0].numel()
    extra = _in_whole_vectors(count) - count
    flat = [t.reshape(-1).contiguous() for t in expanded]
    if not extra:
        return function(*flat).reshape(shape)
    flat = [torch.cat([t, t.new_ones(extra)]) for t in flat]
    return function(*flat)[:count].reshape(shape)


def _in_whole_vectors(count: int) -> int:
    """Return the least number of entries, at least ``count``, that gives each thread whole vectors."""
    threads = torch.get_num_threads()
    while True:
        shares = max(1, min(threads, -(-count // SHARED)))
        if count % (VECTOR * shares) == 0:
            return count
        count += -count % (VECTOR * shares)


def row_total(x: Tensor, axis: int = 1, *, keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """Return the sums along an axis that is not the first, each from its row alone: (N, ...)."""
    if _is_shared(x, axis):
        return _doubled(x).sum(axis, keepdim=keepdim, dtype=dtype)[:1]
    return x.sum(axis, keepdim=keepdim, dtype=dtype)


def row_norm(x: Tensor, order: float = 2.0, *, keepdim: bool = False) -> Tensor:
    """Return the norms along the last axis, which is not the first, each from its row alone: (N, ...).

    Args:
        x: Vectors.
        order: The order of the norm, >= 1; infinity for the largest size.
        keepdim: Whether the last axis is kept, with length 1.
    """
    if order not in (1, 2, math.inf):  # torch's own takes powers for its gradient
        total = row_total(in_whole_vectors(torch.pow, x.abs(), x.new_full((), order)), -1, keepdim=keepdim)
        zero = total == 0
        root = in_whole_vectors(torch.pow, total.masked_fill(zero, 1), x.new_full((), 1 / order))
        return root.masked_fill(zero, 0)
    several = _doubled(x) if _is_shared(x, -1) else x
    norms: Tensor = torch.linalg.vector_norm(several, order, dim=-1, keepdim=keepdim)
    return norms[: len(x)]


def spread(x: Tensor, count: int) -> Tensor:
    """Return numbers (N, 1) for ``count`` columns; their gradient is :func:`row_total`'s."""
    if len(x) == 1 and count >= SHARED and not x.is_cuda:
        return _doubled(x).expand(2, count)[:1]
    return x.expand(-1, count)


def _is_shared(x: Tensor, axis: int) -> bool:
    """Return whether torch's threads share the only sum along an axis."""
    return x.numel() == x.shape[axis] >= SHARED and not x.is_cuda and torch.get_num_threads() > 1


def _doubled(row: Tensor) -> Tensor:
    """Return a row twice; to its gradient nothing is added, which would turn -0 into 0."""
    return torch.cat([row, row.detach()]) if row.requires_grad else row.expand(2, *row.shape[1:])
