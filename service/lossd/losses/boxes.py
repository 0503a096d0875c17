"""Losses of paired boxes: one value for each prediction and its target.

Each pair is moved to its target's origin and divided by its own size, in float64. This does not change the losses, and
no area overflows, vanishes or loses its digits, wherever and however large the boxes are.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import in_whole_vectors
from lossd.losses.reduction import ratio
from lossd.losses.registry import loss
from lossd.losses.types import Boxes, NonNegative, Real

Format = Literal["xyxy", "xywh", "cxcywh"]


@loss(task="boxes", kind="rows", byte_ns=16)
def iou(
    prediction: Boxes[Tensor, "N 4"],
    target: Boxes[Tensor, "N 4"],
    *,
    format: Format = "xyxy",  # noqa: A002  (its name on the wire)
    eps: NonNegative = 0.0,
) -> Real[Tensor, "N"]:
    r"""1 minus the intersection over union of two boxes.

    .. math:: 1 - \frac{|A\cap B|}{|A\cup B| + \varepsilon}

    Args:
        prediction: Boxes, each paired with the target of its row.
        target: Boxes. Two identical boxes without area have loss 0 and gradient 0.
        format: What the four numbers are: two corners (xyxy), a corner and the size (xywh), or the centre and the size
            (cxcywh). x1 <= x2 and y1 <= y2.
        eps: Added to the denominators, in squared units of the coordinates. At 0 the loss does not depend on the unit,
            and identical boxes have loss 0; 1e-7, which other libraries add, is much beside a box of 0.001 by 0.001.

    Returns:
        One value per pair, in [0, 1], unreduced.

    Gradient:
        With respect to ``prediction``; 0 for boxes that do not overlap.

    References:
        torchvision.ops.box_iou.
        J. Yu et al., UnitBox: An Advanced Object Detection Network, 2016, arXiv:1608.01471 (with a logarithm).
    """
    pair = _Pair(prediction, target, format, eps)
    return pair.zero_where_same(1 - pair.iou)


@loss(task="boxes", kind="rows", byte_ns=16, like=iou)
def giou(
    prediction: Boxes[Tensor, "N 4"],
    target: Boxes[Tensor, "N 4"],
    *,
    format: Format = "xyxy",  # noqa: A002
    eps: NonNegative = 0.0,
) -> Real[Tensor, "N"]:
    r"""1 minus IoU, plus the fraction of the smallest enclosing box C that is in neither box.

    .. math:: 1 - \frac{|A\cap B|}{|A\cup B| + \varepsilon} + \frac{|C| - |A\cup B|}{|C| + \varepsilon}

    The inputs and parameters are those of ``iou``.

    Returns:
        One value per pair, in [0, 2], unreduced.

    Gradient:
        With respect to ``prediction``; it also draws together boxes that do not overlap.

    References:
        H. Rezatofighi et al., Generalized Intersection over Union, 2019, arXiv:1902.09630.
        torchvision.ops.generalized_box_iou_loss.
    """
    pair = _Pair(prediction, target, format, eps)
    enclosing = area(pair.span)
    return pair.zero_where_same(1 - pair.iou + ratio(enclosing - pair.union, enclosing + pair.eps))


@loss(task="boxes", kind="rows", byte_ns=16, like=iou)
def diou(
    prediction: Boxes[Tensor, "N 4"],
    target: Boxes[Tensor, "N 4"],
    *,
    format: Format = "xyxy",  # noqa: A002
    eps: NonNegative = 0.0,
) -> Real[Tensor, "N"]:
    r"""1 minus IoU, plus (ρ/c)²: the centres' distance ρ over the enclosing box's diagonal c.

    .. math:: 1 - \text{IoU} + \frac{\rho^2}{c^2 + \varepsilon}

    The inputs and parameters are those of ``iou``.

    Returns:
        One value per pair, in [0, 2], unreduced.

    Gradient:
        With respect to ``prediction``; it also draws together boxes that do not overlap.

    References:
        Z. Zheng et al., Distance-IoU Loss, 2020, arXiv:1911.08287.
        torchvision.ops.distance_box_iou_loss.
    """
    pair = _Pair(prediction, target, format, eps)
    return pair.zero_where_same(1 - pair.iou + pair.distance)


@loss(task="boxes", kind="rows", byte_ns=16, like=iou)
def ciou(
    prediction: Boxes[Tensor, "N 4"],
    target: Boxes[Tensor, "N 4"],
    *,
    format: Format = "xyxy",  # noqa: A002
    eps: NonNegative = 0.0,
) -> Real[Tensor, "N"]:
    r"""The loss diou, plus a penalty for different aspect ratios.

    .. math:: 1 - \text{IoU} + \frac{\rho^2}{c^2 + \varepsilon} + \alpha v, \quad
        v = \frac{4}{\pi^2}\left(\arctan\frac{w_t}{h_t} - \arctan\frac{w_p}{h_p}\right)^2, \quad
        \alpha = \frac{v}{1 - \text{IoU} + v + \varepsilon}

    The inputs and parameters are those of ``iou``.

    Returns:
        One value per pair, in [0, 3], unreduced. The angle of a box of height 0 is π/2, that of a point 0.

    Gradient:
        With respect to ``prediction``; α is held constant, and the angle of a point too.

    References:
        Z. Zheng et al., Distance-IoU Loss, 2020, arXiv:1911.08287.
        torchvision.ops.complete_box_iou_loss.
    """
    pair = _Pair(prediction, target, format, eps)
    v = (4 / math.pi**2) * (_angle(pair.target_size) - _angle(pair.prediction_size)).square()
    without_shape = 1 - pair.iou + pair.distance  # computed with its gradient, before what has none reads it
    with torch.no_grad():
        alpha = ratio(v, 1 - pair.iou + v + eps)
    return pair.zero_where_same(without_shape + alpha * v)


class _Pair:
    """What two boxes have in common, (N,) or (N, 2) for x and y, float64, in units of the pair's own size.

    What a loss does not read is not computed.

    Attributes:
        prediction_size: Width and height.
        target_size: Width and height.
        eps: The parameter in these units.
    """

    def __init__(self, prediction: Tensor, target: Tensor, format: str, eps: float | Tensor) -> None:  # noqa: A002
        (self._p_low, self._p_high), (self._t_low, self._t_high), unit = corners(prediction, target, format)
        self.eps: Tensor = eps / unit / unit  # not by its square, which may vanish
        self.prediction_size, self.target_size = self._p_high - self._p_low, self._t_high - self._t_low

    @cached_property
    def _overlap(self) -> Tensor:
        sides = torch.minimum(self._p_high, self._t_high) - torch.maximum(self._p_low, self._t_low)
        return area(torch.relu(sides))

    @cached_property
    def union(self) -> Tensor:
        """Area of the union."""
        return area(self.prediction_size) + area(self.target_size) - self._overlap

    @cached_property
    def iou(self) -> Tensor:
        """Intersection over union."""
        return ratio(self._overlap, self.union + self.eps)

    @cached_property
    def span(self) -> Tensor:
        """Width and height of the smallest enclosing box."""
        return torch.maximum(self._p_high, self._t_high) - torch.minimum(self._p_low, self._t_low)

    @cached_property
    def distance(self) -> Tensor:
        """Squared distance of the centres over the squared diagonal of the enclosing box."""
        between = ((self._p_low + self._p_high) - (self._t_low + self._t_high)) / 2
        return ratio(between.square().sum(-1), self.span.square().sum(-1) + self.eps)

    def zero_where_same(self, value: Tensor) -> Tensor:
        """Return the value, or 0 for a box without area that equals its target."""
        without_area = self.union == 0
        if not value.is_cuda and not bool(without_area.any()):
            return value
        same = without_area & (self._p_low == self._t_low).all(-1) & (self._p_high == self._t_high).all(-1)
        return torch.where(same, torch.zeros_like(value), value)


Corners = tuple[Tensor, Tensor]


def corners(prediction: Tensor, target: Tensor, format: str) -> tuple[Corners, Corners, Tensor]:  # noqa: A002
    """The lower and the upper corner of each prediction and of each target, (N, 2) float64; and their unit, (N,).

    The target's own first point is the origin, and the largest coordinate that then remains is the unit: a box that is
    small beside its distance from 0 keeps all the digits of its size.
    """
    p, t = prediction.double(), target.double()
    origin = t[:, :2]
    second = origin if format == "xyxy" else torch.zeros_like(origin)  # there, it is a size
    p, t = (box - torch.cat([origin, second], -1) for box in (p, t))
    unit = torch.maximum(p.detach().abs().amax(-1), t.abs().amax(-1))
    unit = unit.masked_fill(unit == 0, 1)
    return _corners(p / unit.unsqueeze(-1), format), _corners(t / unit.unsqueeze(-1), format), unit


def _corners(box: Tensor, format: str) -> Corners:  # noqa: A002
    first, second = box[:, :2], box[:, 2:]
    match format:
        case "xywh":
            return first, first + second
        case "cxcywh":
            return first - second / 2, first + second / 2
        case _:
            return first, second


def area(size: Tensor) -> Tensor:
    """Return width times height, (N, 2) to (N,)."""
    return size[:, 0] * size[:, 1]


def _angle(size: Tensor) -> Tensor:
    """Return the angle whose tangent is width over height, (N,); 0 with gradient 0 for a point."""
    # It does not depend on the scale; at that of the longer side its derivative's squares cannot underflow.
    scale = size.detach().amax(-1, keepdim=True)
    point = scale == 0
    width, height = torch.where(point, torch.ones_like(size), size / scale.masked_fill(point, 1)).unbind(-1)
    return torch.where(point.squeeze(-1), torch.zeros_like(width), in_whole_vectors(torch.atan2, width, height))
