"""Cross-entropy and focal loss of a strip of positions, after and before the classes of each: done for many at once."""

from __future__ import annotations

from typing import Any

from lossd.compiled.arithmetic import called, faded, log_of_one_and, total_of

__all__ = ["aim", "count", "evaluate"]


@called
def aim(target: Any, ignored: int, weight: Any, scale: Any, own: Any, share: Any) -> None:
    """Say what class each of W positions is, and what it counts.

    Args:
        target: (W,) class indices, in range or ignored.
        ignored: The target that does not count.
        weight: (C,) class weights.
        scale: (C,) factors that do not divide.
        own: (W,) int64, written: the target, 0 where ignored.
        share: (W,), written: what the loss is multiplied with, 0 where ignored.
    """
    for j in range(target.shape[0]):
        counts = target[j] != ignored
        own[j] = target[j] if counts else 0
        share[j] = weight[own[j]] * scale[own[j]] if counts else 0.0


@called
def evaluate(
    own: Any,
    share: Any,
    best: Any,
    behind: Any,
    p: Any,
    others: Any,
    gamma: float,
    upstream: float,
    pull: Any,
    room: Any,
) -> float:
    """The sum of the losses of W positions, and what their gradients are made of.

    Args:
        own: (W,) the target of each.
        share: (W,) what each loss is multiplied with.
        best: (W,) the class with the highest score, the first if there are several.
        behind: (W,) how far the score of the target is below that.
        p: (W,) the exponential of the target's score, that of the highest being 1.
        others: (W,) the sum of those of all other classes.
        gamma: The focal exponent; 0 for cross-entropy.
        upstream: What gradients are multiplied with.
        pull: (W,), written: what the gradient is of a class, by its exponential; of the target, by -others.
        room: (3, W).
    """
    value, rest, steep = room[0], room[1], room[2]
    for j in range(own.shape[0]):
        total = others[j] + p[j]
        # Of a target that is all but certain, the others are all there is: 1 would round them away.
        nll = log_of_one_and(others[j] if own[j] == best[j] else total - 1.0) + behind[j]
        value[j] = share[j] * nll
        pull[j] = share[j] * upstream / total
        rest[j] = others[j] / total
        steep[j] = gamma * (p[j] / total) * nll / (rest[j] if rest[j] > 0 else 1.0)
    if gamma != 0:
        for j in range(own.shape[0]):
            rest[j] = faded(rest[j], gamma)  # by itself: a power is no vector instruction
        for j in range(own.shape[0]):
            value[j] *= rest[j]
            pull[j] *= rest[j] * (1.0 + steep[j])
    return total_of(value[: own.shape[0]])


@called
def count(target: Any, ignored: int, best: Any, matrix: Any) -> None:
    """Count target by highest score, (C, C)."""
    for j in range(target.shape[0]):
        if target[j] != ignored:
            matrix[target[j], best[j]] += 1
