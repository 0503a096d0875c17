"""Losses of softmax scores with closed-form gradients: one sweep over the scores, in blocks that stay in the cache.

A kernel computes value and gradient of some positions at once; positions are independent. Its scores are (n, C, p), and
everything else a position has is (n, 1, p).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_total

__all__ = ["distributed", "settled", "surprise", "sweep", "target_kernel", "target_nll", "variances", "weighted_nll"]

BLOCK_ELEMENTS = 1 << 18
"""Scores in a block: 2 MiB of float32 with their gradient, about the size of a core's own cache."""

BlockKernel = Callable[..., Tensor]
Slope = Callable[..., tuple[Tensor, Tensor]]


def sweep(kernel: BlockKernel, gradient: Tensor, prediction: Tensor, *parts: Any) -> Tensor:
    """The value (N, *) of each position of ``prediction`` (N, C, *), its gradient written into ``gradient``.

    Args:
        kernel: Called as ``kernel(gradient, prediction, *parts)`` on blocks; returns the value, (n, 1, p).
        gradient: Where the gradient goes; contiguous, like ``prediction``.
        prediction: Class scores.
        parts: What else the kernel takes: tensors that broadcast against the value (N, *), tensors of the shape of
            the prediction, and anything else, handed on as it is.
    """
    n, c = prediction.shape[:2]
    shape = torch.Size((n, *prediction.shape[2:]))
    scores, slopes = prediction.reshape(n, c, -1), gradient.view(n, c, -1)
    flat = [_flat(part, shape) for part in parts]
    if prediction.is_cuda or scores.numel() <= BLOCK_ELEMENTS:
        return kernel(slopes, scores, *flat).reshape(shape)
    value = prediction.new_empty(n, 1, scores.shape[2])
    for rows, places in _blocks(*scores.shape):
        cut = [part[rows, :, places] if isinstance(part, Tensor) and part.ndim else part for part in flat]
        value[rows, :, places] = kernel(slopes[rows, :, places], scores[rows, :, places], *cut)
    return value.reshape(shape)


def _flat(part: Any, shape: torch.Size) -> Any:
    if not isinstance(part, Tensor) or part.ndim == 0:
        return part
    if part.ndim == len(shape):
        return part.expand(shape).reshape(shape[0], 1, -1)
    return part.reshape(*part.shape[:2], -1)


def _blocks(n: int, c: int, p: int) -> Iterator[tuple[slice, slice]]:
    places = max(1, BLOCK_ELEMENTS // c)
    rows = max(1, places // p)
    for first in range(0, n, rows):
        for start in range(0, p, places):
            yield slice(first, first + rows), slice(start, start + places)


def settled(scores: Tensor, axis: int) -> Tensor:
    """Return scores with a single +inf replaced by 0 and the others by -inf: the same softmax, without inf - inf.

    With several +inf there is no softmax; NaN stays NaN.

    Args:
        scores: Class scores.
        axis: The axis of the classes.
    """
    infinite = scores == torch.inf
    sole = infinite.sum(axis, keepdim=True) == 1
    return torch.where(sole, torch.where(infinite, torch.zeros_like(scores), scores - torch.inf), scores)


def surprise(scores: Tensor, axis: int) -> Tensor:
    """Return minus ``log_softmax``, as precise where a class is nearly certain as elsewhere.

    It is how far a score is below the highest one, plus log(1 + the others' share). ``log_softmax`` rounds the share
    away beside the highest score: of 12 against 0 in float32, it leaves two digits.

    Args:
        scores: Class scores; -inf is a class that cannot be.
        axis: The axis of the classes.
    """
    highest, best = scores.max(axis, keepdim=True)
    shape = [1] * scores.ndim
    shape[axis] = -1
    is_best = torch.arange(scores.shape[axis], device=scores.device).reshape(shape) == best
    others = (scores - highest).exp().masked_fill(is_best, 0).sum(axis, keepdim=True)
    # Masked, so that the best class's gradient does not lose its digits in 1 - 1.
    return (highest - scores).masked_fill(is_best, 0) + others.log1p()


def variances(prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability p of each class, and p(1 − p): (N, C, *) each.

    1 − p is the sum of the others' probabilities, because the difference from 1 loses the digits of a nearly certain
    class.

    Args:
        prediction: Class scores (N, C, *); -inf is a class that cannot be.
    """
    scores = settled(prediction, 1)
    highest, best = scores.max(1, keepdim=True)
    exponential = (scores - highest).exp()
    others = row_total(exponential.scatter(1, best, 0), keepdim=True)
    total = others + 1
    rest = (total - exponential).scatter(1, best, others)
    p = exponential / total
    return p, p * rest / total


def target_nll(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log-probability of the target class, and the probability of all others: (N, *) each.

    Neither is computed from the other if it is small: for a nearly certain target 1 − p would be 0 long before its true
    value is.

    Args:
        prediction: Class scores (N, C, *).
        target: The target class (N, *), int64.
    """
    index = target.unsqueeze(1)
    log_p = torch.log_softmax(prediction, 1)
    others = row_total(log_p.exp().scatter(1, index, 0))
    unlikely = others >= 0.5
    nll = -torch.log1p(-others.masked_fill(unlikely, 0))
    return torch.where(unlikely, -log_p.gather(1, index).squeeze(1), nll), others


def target_kernel(slope: Slope, gradient: Tensor, prediction: Tensor, target: Tensor, *parts: Any) -> Tensor:
    """The kernel of a function of the target class's log-probability; as precise as :func:`target_nll`.

    Args:
        slope: Called as ``slope(nll, others, *parts)`` with the negative log-probability of the target and the
            probability of all other classes; returns the function's value and its derivative by ``nll``, the upstream
            gradient multiplied in, which may be 0-d.
        gradient: Written.
        prediction: Class scores.
        target: The target class, int64.
        parts: What else ``slope`` takes.
    """
    torch.sub(prediction, prediction.amax(1, keepdim=True), out=gradient)
    behind = gradient.gather(1, target)
    others = row_total(gradient.exp_().scatter_(1, target, 0), keepdim=True)
    total = behind.exp().add_(others)
    nll = torch.where(behind == 0, others.log1p(), total.log() - behind)
    others.div_(total)
    value, pull = slope(nll, others, *parts)
    gradient.mul_(pull / total)
    gradient.scatter_(1, target, (pull * others).neg_())
    return value


def distributed(gradient: Tensor, prediction: Tensor, share: Tensor, factor: Tensor) -> Tensor:
    """Return the cross-entropy of each class's share, (n, C, p); the shares need not add up to 1."""
    torch.sub(prediction, prediction.amax(1, keepdim=True), out=gradient)
    exponential = gradient.exp()
    total = row_total(exponential, keepdim=True)
    value = row_total(weighted_nll(share, total.log() - gradient), keepdim=True)
    torch.mul(exponential, row_total(share, keepdim=True) / total, out=gradient)
    gradient.sub_(share).mul_(factor)
    return value


def weighted_nll(share: Tensor, nll: Tensor) -> Tensor:
    """Return share times ``nll``; 0 where the share is 0, even if ``nll`` is infinite (a class masked with -inf)."""
    return torch.where(share == 0, 0.0, share * nll)
