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
IOU, GIOU, DIOU, CIOU = range(len(LOSSES))
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
def _angle(width: float, height: float) -> tuple[float, float, float]:
    """The angle whose tangent is width over height, and its slopes; 0 of a point."""
    scale = max(width, height)
    if scale == 0:
        return 0.0, 0.0, 0.0
    w, h = width / scale, height / scale
    square = (w * w + h * h) * scale
    return math.atan2(w, h), h / square, -w / square


@jit_exact
def _pair(kind: int, p: Any, t: Any, eps: float, raw_eps: float, slope: Any) -> tuple[float, float]:
    """Return loss and IoU of two boxes, and write the loss's slopes by the prediction's corners.

    Args:
        kind: The number of one of ``LOSSES``.
        p: The prediction's corners, (4,).
        t: The target's corners, (4,).
        eps: What is added to denominators, in the boxes' unit.
        raw_eps: The same in the unit of the request.
        slope: (4,), written.
    """
    p_width, p_height, t_width, t_height = p[2] - p[0], p[3] - p[1], t[2] - t[0], t[3] - t[1]
    width, height = max(min(p[2], t[2]) - max(p[0], t[0]), 0.0), max(min(p[3], t[3]) - max(p[1], t[1]), 0.0)
    overlap = width * height
    union = p_width * p_height + t_width * t_height - overlap
    slope[:] = 0.0
    if union == 0 and p[0] == t[0] and p[1] == t[1] and p[2] == t[2] and p[3] == t[3]:
        return 0.0, 1.0
    below = union + eps
    iou = overlap / below if below != 0 else 0.0
    across, along = max(p[2], t[2]) - min(p[0], t[0]), max(p[3], t[3]) - min(p[1], t[1])
    hull = across * along
    x, y = ((p[0] + p[2]) - (t[0] + t[2])) / 2, ((p[1] + p[3]) - (t[1] + t[3])) / 2
    between, diagonal = x * x + y * y, across * across + along * along + eps
    value = 1 - iou
    # The loss's slopes by overlap, union, hull, squared distance and squared diagonal.
    by_overlap = -1 / below if below != 0 else 0.0
    by_union = iou / below if below != 0 else 0.0
    by_hull, by_between, by_diagonal, pull = 0.0, 0.0, 0.0, 0.0
    if kind == GIOU:
        if hull + eps != 0:
            missed = (hull - union) / (hull + eps)
            value += missed
            by_union -= 1 / (hull + eps)
            by_hull = (1 - missed) / (hull + eps)
    elif kind != IOU and diagonal != 0:
        distance = between / diagonal
        value += distance
        by_between, by_diagonal = 1 / diagonal, -distance / diagonal
    wide, high = 0.0, 0.0
    if kind == CIOU:
        p_angle, wide, high = _angle(p_width, p_height)
        t_angle, _, _ = _angle(t_width, t_height)
        apart = t_angle - p_angle
        v = OF_ANGLES * (apart * apart)
        scale = 1 - iou + v + raw_eps
        alpha = v / scale if scale != 0 else 0.0
        value += alpha * v
        pull = -2 * OF_ANGLES * alpha * apart
    by_overlap -= by_union  # the union is less by the overlap
    for k in range(2):
        low, top = k, 2 + k
        side, other = (width, height) if k == 0 else (height, width)
        span, other_span = (across, along) if k == 0 else (along, across)
        other_size, turn = (p_height, wide) if k == 0 else (p_width, high)
        by_side = by_overlap * other if side > 0 else 0.0
        by_span = by_hull * other_span + by_diagonal * 2 * span
        by_size = by_union * other_size + pull * turn
        by_centre = by_between * (x if k == 0 else y)
        slope[low] = by_centre - by_size - by_side * _share(p[low], t[low]) - by_span * _share(t[low], p[low])
        slope[top] = by_centre + by_size + by_side * _share(t[top], p[top]) + by_span * _share(p[top], t[top])
    return value, iou if eps == 0 else overlap / union if union != 0 else 0.0


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
    p, t, slope = np.empty(4), np.empty(4), np.empty(4)
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
                unit = max(unit, abs(p[k]), abs(t[k]))
            unit = 1.0 if unit == 0 else unit
            _corners(p, form, unit)
            _corners(t, form, unit)
            value, iou = _pair(kind, p, t, eps[b] / unit / unit, eps[b], slope)
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
