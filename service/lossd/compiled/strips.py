"""Cross-entropy and focal loss of a strip of positions: the steps before and after the loops over classes.

A strip has 256 positions, and each loop takes one step for all of them, so that LLVM makes vector instructions of it.
The quantities of a strip lie in one array, the lanes, at fixed distances. They were ten arrays before: LLVM could not
prove that these do not overlap, and did not vectorise the loop over them. One array takes a fifth less time for
segmentation of 21 classes, and a third less for two classes. Powers are computed in a loop of their own, because a
power is not a vector instruction and keeps the whole loop from becoming one.
"""

from __future__ import annotations

from typing import Any

from lossd.compiled.arithmetic import exp, focal_weight, jit, log_of_one_and, total_of

__all__ = [
    "BEHIND",
    "LANES",
    "OTHERS",
    "PULL",
    "SHARE",
    "STRIP",
    "TOP",
    "P",
    "bends",
    "count",
    "losses",
    "seconds",
]

STRIP = 256
"""Positions in a strip: few enough for a core's own cache with some dozen classes."""

LANES = 10
# Where each begins: the highest score, what the loss is multiplied with, how far the target's score is below the
# highest, its exponential, the sum of those of all other classes, by how much the sum of all exceeds 1, and what the
# gradient is of a class, by its exponential; then scratch.
TOP, SHARE, BEHIND, P, OTHERS, EXCESS, PULL, VALUE, REST, STEEP = (lane * STRIP for lane in range(LANES))


@jit
def mark_targets(target: Any, ignored: int, weight: Any, scale: Any, label: Any, lanes: Any) -> None:
    """Say what class each of W positions is, and what it counts.

    Args:
        target: (W,) class indices, in range or ignored.
        ignored: The target that does not count.
        weight: (C,) class weights.
        scale: (C,) factors that do not divide.
        label: (STRIP,) int64, written: the target, 0 where ignored.
        lanes: (LANES * STRIP,), written: ``SHARE``, 0 where ignored.
    """
    for j in range(target.shape[0]):
        counts = target[j] != ignored
        label[j] = target[j] if counts else 0
        lanes[SHARE + j] = weight[label[j]] * scale[label[j]] if counts else 0.0


@jit
def target_probability(width: int, power: Any, label: Any, best: Any, lanes: Any) -> None:
    """Find ``P`` and ``EXCESS``, given ``OTHERS``.

    Args:
        width: How many positions there are.
        power: (C, STRIP) exponentials.
        label: The target of each.
        best: The class with the highest score, the first if there are several.
        lanes: Written.
    """
    for j in range(width):
        others, p = lanes[OTHERS + j], power[label[j], j]
        lanes[P + j] = p
        # Of a target that is all but certain, the others are all there is: 1 would round them away.
        lanes[EXCESS + j] = others if label[j] == best[j] else others + p - 1.0


@jit
def evaluate(width: int, gamma: float, upstream: float, lanes: Any) -> float:
    """The sum of the losses, and what their gradients are made of.

    Args:
        width: How many positions there are.
        gamma: The focal exponent; 0 for cross-entropy.
        upstream: What gradients are multiplied with.
        lanes: ``PULL`` is written; of the target's gradient it is by -``OTHERS``.
    """
    for j in range(width):
        p, others, share = lanes[P + j], lanes[OTHERS + j], lanes[SHARE + j]
        nll = log_of_one_and(lanes[EXCESS + j]) + lanes[BEHIND + j]
        fraction = 1.0 / (others + p)
        rest = others * fraction
        lanes[VALUE + j] = share * nll
        lanes[PULL + j] = share * upstream * fraction
        lanes[REST + j] = rest
        lanes[STEEP + j] = gamma * p * fraction * nll / (rest if rest > 0 else 1.0)
    if gamma != 0:
        for j in range(width):
            lanes[REST + j] = focal_weight(lanes[REST + j], gamma)  # by itself: a power is no vector instruction
        for j in range(width):
            fade = lanes[REST + j]
            lanes[VALUE + j] *= fade
            lanes[PULL + j] *= fade * (1.0 + lanes[STEEP + j])
    return total_of(lanes[VALUE : VALUE + width])


@jit
def losses(
    targets: Any,
    gamma: float,
    upstream: float,
    weight: Any,
    scale: Any,
    ignored: int,
    power: Any,
    lanes: Any,
    best: Any,
    label: Any,
) -> float:
    """Return the sum of the losses of W positions.

    Args:
        targets: (W,) class indices, in range or ignored.
        gamma: The focal exponent; 0 for cross-entropy.
        upstream: The factor of the gradients.
        weight: (C,) class weights.
        scale: (C,) factors that do not divide.
        ignored: The target that does not count.
        power: (C, STRIP); the scores, replaced by their exponentials.
        lanes: (LANES * STRIP,), written.
        best: (STRIP,) int64, written: the class with the highest score, the first if there are several.
        label: (STRIP,) int64, written: the target, 0 where ignored.
    """
    width, classes = targets.shape[0], power.shape[0]
    top, others = lanes[TOP:], lanes[OTHERS:]
    mark_targets(targets, ignored, weight, scale, label, lanes)
    for j in range(width):
        top[j] = power[0, j]
        best[j] = 0
        others[j] = 0.0
    for c in range(1, classes):
        row = power[c]
        for j in range(width):
            higher = row[j] > top[j]
            top[j] = row[j] if higher else top[j]
            best[j] = c if higher else best[j]
    for j in range(width):
        lanes[BEHIND + j] = top[j] - power[label[j], j]
    for c in range(classes):
        row = power[c]
        for j in range(width):
            row[j] = exp(row[j] - top[j])
        for j in range(width):
            others[j] += 0.0 if label[j] == c else row[j]
    target_probability(width, power, label, best, lanes)
    return evaluate(width, gamma, upstream, lanes)


@jit
def count(target: Any, ignored: int, best: Any, matrix: Any) -> None:
    """Count target by highest score, (C, C)."""
    for j in range(target.shape[0]):
        if target[j] != ignored:
            matrix[target[j], best[j]] += 1


@jit
def bends(width: int, gamma: float, upstream: float, lanes: Any, bend: Any) -> None:
    """Write the second derivative of each position's loss by its cross-entropy, times (1 - p)² and its factors.

    Call it after :func:`losses`, with an exponent other than 0.

    Args:
        width: How many positions there are.
        gamma: The focal exponent.
        upstream: The factor of the gradients.
        lanes: As :func:`losses` left them: ``REST`` is (1 - p)^gamma.
        bend: (STRIP,), written.
    """
    for j in range(width):
        others = lanes[OTHERS + j]
        fraction = 1.0 / (others + lanes[P + j])
        p, rest = lanes[P + j] * fraction, others * fraction
        nll = log_of_one_and(lanes[EXCESS + j]) + lanes[BEHIND + j]
        slope = gamma * (2.0 - nll) + (gamma - 1.0) * lanes[STEEP + j]
        # Of a class that is all but impossible nll may be infinite, and its p is 0.
        bend[j] = lanes[SHARE + j] * upstream * lanes[REST + j] * rest * p * slope if p > 0 else 0.0


@jit
def seconds(
    targets: Any,
    ignored: int,
    weight: Any,
    floor: float,
    factor: float,
    power: Any,
    lanes: Any,
    best: Any,
    label: Any,
    bend: Any,
    second: Any,
) -> int:
    """Write the second derivatives of W positions by each score, and return how many are negative.

    Args:
        targets: (W,) class indices, in range or ignored.
        ignored: The target that does not count.
        weight: (C,) class weights.
        floor: The least second derivative, times the factor of the gradients; -inf for none.
        factor: The factor of the second derivatives of cross-entropy.
        power: (C, STRIP) exponentials, as :func:`losses` left them.
        lanes: As :func:`losses` left them.
        best: The class with the highest score.
        label: The target, 0 where ignored.
        bend: (STRIP,), from :func:`bends`; 0 for cross-entropy.
        second: (C, STRIP), written.
    """
    width, classes, negative = targets.shape[0], power.shape[0], 0
    others_of_best = lanes[REST:]  # what is less than the highest: 1 - p loses the digits of a nearly certain class
    for j in range(width):
        others_of_best[j] = 0.0
    for c in range(classes):
        row = power[c]
        for j in range(width):
            others_of_best[j] += 0.0 if best[j] == c else row[j]
    for c in range(classes):
        row, curve = power[c], second[c]
        for j in range(width):
            others, total = lanes[OTHERS + j], lanes[OTHERS + j] + lanes[P + j]
            rest = others_of_best[j] if best[j] == c else total - row[j]
            share = 1.0 if label[j] == c else row[j] / (others if others > 0 else 1.0)
            value = lanes[PULL + j] * row[j] * (rest / total) * factor + bend[j] * share * share
            value = floor if value < floor else value
            counts = targets[j] != ignored and weight[label[j]] != 0
            curve[j] = value if counts else 0.0
            negative += counts and value < 0
    return negative
