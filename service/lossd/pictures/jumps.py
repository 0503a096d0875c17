"""Where the gradient of a curve jumps, as at the kink of an absolute error, found from its points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Jump", "jumps", "stepped"]

Array = np.ndarray[tuple[int], np.dtype[np.float64]]

STEEPER = 8.0
"""A jump is at least this many times the change between the points near it, where the gradient is smooth."""

VISIBLE = 0.02
"""The least jump, as a share of the largest gradient."""

NEAR = 3
"""How many points to each side a jump is compared with; nearer to an end none is found."""


class Jump(NamedTuple):
    """A place where the gradient jumps, and its values on either side."""

    at: float
    below: float
    above: float


def jumps(x: ArrayLike, loss: ArrayLike, gradient: ArrayLike) -> list[Jump]:
    """Return the jumps of a gradient between its points.

    A kink of the loss that lies between two points is where the tangents at these points meet. If a point lies on the
    kink itself, where a gradient is often the mean of both sides, the jump is from the point before to the one after.
    If the first or last point has gradient 0 and its neighbours do not come near, it lies on a kink too.

    Args:
        x: The points, evenly spaced.
        loss: The loss at each point.
        gradient: The gradient at each point.
    """
    places, values, slopes = (np.asarray(each, float) for each in (x, loss, gradient))
    with np.errstate(invalid="ignore"):
        changes = np.abs(np.diff(slopes))
        least = VISIBLE * np.abs(slopes).max(initial=0.0)
    found: list[Jump] = []
    if _starts_at_kink(slopes, changes, least):
        found.append(Jump(float(places[0]), float(slopes[0]), float(slopes[1])))
    first = NEAR
    while first < len(changes) - NEAR:
        for last in (first + 1, first):  # with a point on the kink, or without
            around = np.concatenate([changes[first - NEAR : first - 1], changes[last + 2 : last + 1 + NEAR]])
            if changes[first : last + 1].min() > max(least, STEEPER * around.max()):
                break
        else:
            first += 1
            continue
        below, above = float(slopes[first]), float(slopes[last + 1])
        middle = float(places[last]) if last > first else _meeting(places, values, slopes, first)
        found.append(Jump(middle, below, above))
        first = last + 2
    if _starts_at_kink(slopes[::-1], changes[::-1], least):
        found.append(Jump(float(places[-1]), float(slopes[-2]), float(slopes[-1])))
    return found


def _starts_at_kink(slopes: Array, changes: Array, least: float) -> bool:
    """Return whether the first point is on a kink: its gradient is 0, that of the second point is not near."""
    if len(changes) <= NEAR or not np.isfinite(changes[: NEAR + 1]).all():
        return False
    steep = changes[0] > max(least, STEEPER * float(changes[1 : 1 + NEAR].max()))
    return bool(steep and abs(slopes[0]) <= VISIBLE * abs(slopes[1]))


def _meeting(x: Array, loss: Array, slope: Array, i: int) -> float:
    """Return where the tangents at two neighbouring points meet; the middle if that is not between them."""
    at = x[i] + (loss[i + 1] - loss[i] - slope[i + 1] * (x[i + 1] - x[i])) / (slope[i] - slope[i + 1])
    return float(at if x[i] <= at <= x[i + 1] else (x[i] + x[i + 1]) / 2)


def stepped(x: ArrayLike, values: ArrayLike, found: Sequence[Jump]) -> tuple[Array, Array]:
    """Return the points of a gradient to draw: at each jump both sides, so that it is a vertical line."""
    places, sides = np.repeat([jump.at for jump in found], 2), [side for jump in found for side in jump[1:]]
    kept = ~np.isin(np.asarray(x, float), places)
    at = np.concatenate([np.asarray(x, float)[kept], places])
    drawn = np.concatenate([np.asarray(values, float)[kept], sides])
    order = np.argsort(at, kind="stable")
    return at[order], drawn[order]
