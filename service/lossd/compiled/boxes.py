"""The losses of paired boxes: value, gradient, norm and what the default metrics are made of, in one walk.

Every step is that of :mod:`lossd.losses.boxes`, in the same order and without fused products: a box that equals its
target has exactly the loss 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lossd.compiled.arithmetic import jit_exact
from lossd.compiled.kernels import aot
from lossd.compiled.memory import load, squares_at, store

__all__ = ["FORMATS", "LOSSES", "pairs"]

LOSSES = ("iou", "giou", "diou", "ciou")
FORMATS = ("xyxy", "xywh", "cxcywh")
_, GIOU, DIOU, CIOU = range(len(LOSSES))
XYXY, XYWH, CXCYWH = range(len(FORMATS))

OF_ANGLES = 4 / math.pi**2


@jit_exact
def _read(memory: Any, first: int, words: int, form: int, box: Any) -> bool:
    """Read a box, (4,), and return whether it is one."""
    finite = True
    for k in range(4):
        box[k] = load(memory, first + k, words)
        finite &= math.isfinite(box[k])
    if form == XYXY:
        return finite & (box[2] >= box[0]) & (box[3] >= box[1])
    return finite & (box[2] >= 0) & (box[3] >= 0)


@jit_exact
def _corners(box: Any, form: int, unit: float) -> None:
    """Replace a box, (4,), by its corners in a unit."""
    for k in range(4):
        box[k] /= unit
    for k in range(2):
        first, second = box[k], box[2 + k]
        if form == XYWH:
            box[2 + k] = first + second
        elif form == CXCYWH:
            box[k], box[2 + k] = first - second / 2, first + second / 2


@jit_exact
def _share(a: float, b: float) -> float:
    """How much of a gradient the larger of two numbers has, here ``a``: half of it if they are equal."""
    return 1.0 if a > b else 0.5 if a == b else 0.0


@jit_exact
def _angle(size: Any, slope: Any) -> float:
    """Return the angle whose tangent is width over height, and write its slopes, (2,); 0 of a point."""
    scale = size[0] if size[0] > size[1] else size[1]
    unit = 1.0 if scale == 0 else scale
    w, h = size[0] / unit, size[1] / unit
    square = 1.0 if scale == 0 else (w * w + h * h) * unit
    slope[0], slope[1] = h / square, -w / square
    return 0.0 if scale == 0 else math.atan2(w, h)


SIDE, SPAN, CENTRE, SIZE, TRUE_SIZE, TURN = range(6)
"""Of two boxes, along each axis: the overlap, the enclosing box, the distance of the centres, both sizes, and the slope
of the prediction's angle."""


@jit_exact
def _pair(kind: int, p: Any, t: Any, eps: float, raw_eps: float, axes: Any, slope: Any) -> tuple[float, float]:
    """Return loss and IoU of two boxes, and write the loss's slopes by the prediction's corners.

    Args:
        kind: The number of one of ``LOSSES``.
        p: The prediction's corners, (4,).
        t: The target's corners, (4,).
        eps: What is added to denominators, in the boxes' unit.
        raw_eps: The same in the unit of the request.
        axes: (6, 2), scratch.
        slope: (4,), written.
    """
    same, between, diagonal = True, 0.0, eps
    for k in range(2):
        low, high, t_low, t_high = p[k], p[2 + k], t[k], t[2 + k]
        side = (high if high < t_high else t_high) - (low if low > t_low else t_low)
        span = (high if high > t_high else t_high) - (low if low < t_low else t_low)
        centre = ((low + high) - (t_low + t_high)) / 2
        axes[SIDE, k], axes[SPAN, k], axes[CENTRE, k] = side if side > 0 else 0.0, span, centre
        axes[SIZE, k], axes[TRUE_SIZE, k] = high - low, t_high - t_low
        same &= (low == t_low) & (high == t_high)
        between += centre * centre
        diagonal += span * span
        slope[k] = slope[2 + k] = 0.0
    overlap, hull = axes[SIDE, 0] * axes[SIDE, 1], axes[SPAN, 0] * axes[SPAN, 1]
    union = axes[SIZE, 0] * axes[SIZE, 1] + axes[TRUE_SIZE, 0] * axes[TRUE_SIZE, 1] - overlap
    if same and union == 0:
        return 0.0, 1.0
    # The loss's slopes by overlap, union, hull, squared distance, squared diagonal and angle; 0/0 is 0.
    below = 1.0 if union + eps == 0 else union + eps
    iou = overlap / below
    value, by_union = 1 - iou, iou / below
    by_hull, by_between, by_diagonal, by_angle = 0.0, 0.0, 0.0, 0.0
    if kind == GIOU and hull + eps != 0:
        around = hull + eps
        missed = (hull - union) / around
        value += missed
        by_union -= 1 / around
        by_hull = (1 - missed) / around
    elif kind >= DIOU and diagonal != 0:
        distance = between / diagonal
        value += distance
        by_between, by_diagonal = 1 / diagonal, -distance / diagonal
    if kind == CIOU:
        apart = _angle(axes[TRUE_SIZE], axes[TURN]) - _angle(axes[SIZE], axes[TURN])
        v = OF_ANGLES * (apart * apart)
        scale = 1 - iou + v + raw_eps
        alpha = v / (1.0 if scale == 0 else scale)
        value += alpha * v
        by_angle = -2 * OF_ANGLES * alpha * apart
    by_overlap = -1 / below - by_union  # the union is less by the overlap
    for k in range(2):
        by_size = by_union * axes[SIZE, 1 - k] + (by_angle * axes[TURN, k] if kind == CIOU else 0.0)
        by_side = by_overlap * axes[SIDE, 1 - k] if axes[SIDE, k] > 0 else 0.0
        by_span = by_hull * axes[SPAN, 1 - k] + by_diagonal * 2 * axes[SPAN, k]
        by_centre = by_between * axes[CENTRE, k]
        slope[k] = by_centre - by_size - by_side * _share(p[k], t[k]) - by_span * _share(t[k], p[k])
        high, t_high = p[2 + k], t[2 + k]
        slope[2 + k] = by_centre + by_size + by_side * _share(t_high, high) + by_span * _share(high, t_high)
    return value, overlap / (1.0 if union == 0 else union)


@aot(
    "void(int64, int64, float32[::1], float32[::1], int64, int64[::1], float64[::1], boolean, float32[::1], "
    "float64[:,::1], float64, float64[:,::1], boolean[::1])"
)
def pairs(
    kind: int,
    form: int,
    prediction: Any,
    target: Any,
    words: int,
    starts: Any,
    eps: Any,
    mean: bool,
    gradient: Any,
    columns: Any,
    least: float,
    counted: Any,
    doubtful: Any,
) -> None:
    """One value for each pair of boxes.

    Args:
        kind: The number of one of ``LOSSES``.
        form: The number of one of ``FORMATS``.
        prediction: (R * 4 * words,), see :mod:`lossd.compiled.memory`.
        target: The same.
        words: The float32 words of a number.
        starts: (B + 1,) the first pair of each request, and R.
        eps: (B,), what is added to denominators.
        mean: Whether the loss is the mean, else the sum.
        gradient: (R * 4 * words,), written; (0,) if it is not wanted.
        columns: (5, B), written: loss, numerator, denominator, count of pairs, norm of the gradient.
        least: The least IoU of a hit.
        counted: (2, B), written: the sum of the IoUs, and the number of hits.
        doubtful: (B,), set for requests with numbers that are not finite or no boxes, or whose answer is not finite.
    """
    p, t, slope, axes = np.empty(4), np.empty(4), np.empty(4), np.empty((6, 2))
    for b in range(starts.shape[0] - 1):
        size = starts[b + 1] - starts[b]
        upstream = 1.0 / size if mean else 1.0
        numerator, square, overlaps, hits = 0.0, 0.0, 0.0, 0
        for i in range(starts[b], starts[b + 1]):
            right = _read(prediction, 4 * i, words, form, p) & _read(target, 4 * i, words, form, t)
            if not right:
                numerator = math.nan
                break
            unit = 0.0
            x, y = t[0], t[1]
            for k in range(4):
                if k < 2 or form == XYXY:
                    origin = y if k % 2 else x
                    p[k] -= origin
                    t[k] -= origin
                far = abs(p[k]) if abs(p[k]) > abs(t[k]) else abs(t[k])
                unit = far if far > unit else unit
            unit = 1.0 if unit == 0 else unit
            _corners(p, form, unit)
            _corners(t, form, unit)
            value, iou = _pair(kind, p, t, eps[b] / unit / unit, eps[b], axes, slope)
            numerator += value
            overlaps += iou
            hits += iou >= least
            if gradient.shape[0]:
                factor = upstream / unit
                for k in range(2):
                    low, high = slope[k], slope[2 + k]
                    first = low if form == XYXY else low + high
                    second = (high - low) / 2 if form == CXCYWH else high
                    store(gradient, 4 * i + k, words, first * factor)
                    store(gradient, 4 * i + 2 + k, words, second * factor)
                square += squares_at(gradient, 4 * i, words, 4)
        columns[0, b], columns[1, b] = numerator * upstream, numerator
        columns[2, b] = columns[3, b] = size
        columns[4, b] = math.sqrt(square)
        counted[0, b], counted[1, b] = overlaps, hits
        doubtful[b] = not math.isfinite(numerator + square)
