"""Rows of the losses of paired boxes. References: the papers, one pair at a time; torchvision adds an eps of 1e-7."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lossd_client.errors import InvalidRequest, InvalidValue, ShapeMismatch
from losses.case import Array, Case, Parameters, Refused, Stated

A = {"prediction": [[10, 10, 50, 50], [20, 20, 60, 60.0]], "target": [[15, 15, 55, 55], [25, 25, 65, 65.0]]}
INF, NAN = float("inf"), float("nan")


def pairs(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    """Overlapping, disjoint and nested boxes of a few units."""
    size = rng.uniform(0.5, 3, (2, n, 2))
    low = rng.uniform(0, 2, (2, n, 2)) + np.array([0, 6])[:, None, None] * (np.arange(n) % 3 == 2)[None, :, None]
    form = parameters.get("format")
    first, second = (low, size) if form == "xywh" else (low + size / 2, size) if form == "cxcywh" else (low, low + size)
    prediction, target = np.concatenate([first, second], -1)
    return {"prediction": prediction, "target": target}


def corners(box: Tensor, form: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = box
    if form == "xywh":
        return a, b, a + c, b + d
    if form == "cxcywh":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return a, b, c, d


def over_pairs(one: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reference(prediction: Tensor, target: Tensor, *, eps: float = 0.0, **parameters: str) -> Tensor:
        form = parameters.get("format", "xyxy")
        return torch.stack(
            [one(corners(p, form), corners(t, form), eps) for p, t in zip(prediction, target, strict=True)]
        )

    return reference


def overlap_union(p: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    width = min(p[2], t[2]) - max(p[0], t[0])
    height = min(p[3], t[3]) - max(p[1], t[1])
    overlap = width * height if width > 0 and height > 0 else torch.zeros((), dtype=torch.float64)
    return overlap, (p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - overlap


def iou(p: tuple[Tensor, ...], t: tuple[Tensor, ...], eps: float) -> Tensor:
    overlap, union = overlap_union(p, t)
    return 1 - overlap / (union + eps)


def giou(p: tuple[Tensor, ...], t: tuple[Tensor, ...], eps: float) -> Tensor:
    """Rezatofighi et al. 2019, algorithm 1."""
    area = (max(p[2], t[2]) - min(p[0], t[0])) * (max(p[3], t[3]) - min(p[1], t[1]))
    return iou(p, t, eps) + (area - overlap_union(p, t)[1]) / (area + eps)


def diou(p: tuple[Tensor, ...], t: tuple[Tensor, ...], eps: float) -> Tensor:
    """Zheng et al. 2020, equation 7."""
    diagonal = (max(p[2], t[2]) - min(p[0], t[0])) ** 2 + (max(p[3], t[3]) - min(p[1], t[1])) ** 2
    centres = ((p[0] + p[2] - t[0] - t[2]) / 2) ** 2 + ((p[1] + p[3] - t[1] - t[3]) / 2) ** 2
    return iou(p, t, eps) + centres / (diagonal + eps)


def ciou(p: tuple[Tensor, ...], t: tuple[Tensor, ...], eps: float) -> Tensor:
    """Zheng et al. 2020, equations 8 to 11; alpha without gradient, as torchvision has it."""
    angles = [torch.atan((b[2] - b[0]) / (b[3] - b[1])) for b in (t, p)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    alpha = (v / (iou(p, t, eps) + v + eps)).detach()
    return diou(p, t, eps) + alpha * v


def box(*numbers: float) -> list[list[float]]:
    return [[float(number) for number in numbers]]


POINTS = {"prediction": box(3, 4, 3, 4), "target": box(3, 4, 3, 4)}
FAR = {"prediction": box(0, 0, 1, 1), "target": box(1e6, 1e6, 1e6 + 1, 1e6 + 1)}
NORMALISED = {"prediction": box(0.5, 0.5, 0.001, 0.001), "target": box(0.5, 0.5, 0.001, 0.001)}
NOTHING = [[0.0] * 4]
REFUSED = (
    Refused(
        InvalidValue,
        r"box prediction\[1\] is inverted: x2 = 1 is less than x1 = 5; .*set format",
        inputs={"prediction": [[0.0, 0, 1, 1], [5, 0, 1, 1]], "target": [[0.0, 0, 1, 1]] * 2},
    ),
    Refused(
        InvalidValue,
        r"box target\[0\] is inverted: y2 = -1 is less than y1 = 0",
        inputs={"prediction": box(0, 0, 1, 1.0), "target": box(0, 0, 1, -1.0)},
    ),
    Refused(
        InvalidValue,
        r"box prediction\[0\] has the negative height -2",
        {"format": "cxcywh"},
        {"prediction": box(0, 0, 1, -2.0), "target": box(0, 0, 1, 1.0)},
    ),
    Refused(
        InvalidValue,
        r"finite values expected, found NaN at prediction\[0, 2\]",
        inputs={"prediction": box(0, 0, NAN, 1), "target": box(0, 0, 1, 1.0)},
    ),
    Refused(
        InvalidValue,
        r"found Infinity at target\[0, 3\]",
        {"format": "xywh"},
        {"prediction": box(0, 0, 1, 1.0), "target": box(0, 0, 1, INF)},
    ),
    Refused(
        ShapeMismatch, r"prediction has shape \(2, 5\), expected \(N, 4\)", inputs={"prediction": np.zeros((2, 5))}
    ),
    Refused(ShapeMismatch, r"target has shape \(6, 4\), expected \(5, 4\)", inputs={"target": np.zeros((6, 4))}),
    Refused(InvalidRequest, "format", {"format": "yxyx"}),
    Refused(InvalidRequest, "eps.*greater than or equal to 0", {"eps": -1.0}),
)


def stated(far: float) -> tuple[Stated, ...]:
    """What the four have in common; ``far`` is the loss of boxes far apart."""
    return (
        Stated("identical", {"prediction": box(1, 2, 3, 5), "target": box(1, 2, 3, 5)}, 0),
        Stated("identical points", POINTS, 0, gradient=NOTHING, warnings={"zero_gradient"}),
        Stated("identical points, an epsilon", POINTS, 0, {"eps": 1e-7}, gradient=NOTHING),
        Stated("identical lines", {"prediction": box(0, 0, 0, 5), "target": box(0, 0, 0, 5)}, 0, gradient=NOTHING),
        Stated("far apart", FAR, far),
        Stated("far apart, an epsilon", FAR, far, {"eps": 1e-7}),
        # Areas of 1e60 are beyond float32, their ratio is not.
        Stated("huge", {"prediction": box(0, 0, 1e30, 1e30), "target": box(0, 0, 1e30, 1e30)}, 0),
        Stated("tiny", {"prediction": box(0, 0, 1e-30, 1e-30), "target": box(0, 0, 1e-30, 1e-30)}, 0),
        Stated("normalised", NORMALISED, 0, {"format": "cxcywh"}, gradient=NOTHING, within=0),
        Stated("weights 0", A | {"sample_weight": [0, 0]}, 0, gradient=NOTHING * 2, warnings={"nothing_to_average"}),
    )  # fmt: skip


PARAMETERS = ({}, {"format": "xywh"}, {"format": "cxcywh", "eps": 1e-3}, {"eps": 1e-7})
VARY = {"eps": (1e-7, 1e-2, 0.5)}
# No overlap; both are enclosed by 3 by 4, and their centres are (2.5, 3.5) apart.
POINT = {"prediction": box(3, 4, 3, 4), "target": box(0, 0, 1, 1)}
LINE = {"prediction": box(0, 0, 2, 0), "target": box(0, 0, 0, 2)}

CASES = (
    Case(
        "iou",
        pairs,
        over_pairs(iou),
        PARAMETERS,
        VARY,
        (
            Stated("two pairs", A, 0.379747, within=1e-6),
            Stated("a point and a box", POINT, 1, gradient=NOTHING),
            *stated(1.0),
        ),
        REFUSED,
    ),
    Case(
        "giou",
        pairs,
        over_pairs(giou),
        PARAMETERS,
        VARY,
        (
            Stated("two pairs", A, 0.404438, within=1e-6),
            Stated("a point and a box", POINT, 1 + 11 / 12),
            Stated("different points", {"prediction": box(0, 0, 0, 0), "target": box(1, 1, 1, 1)}, 2),
            *stated(2.0),
        ),
        REFUSED,
    ),
    Case(
        "diou",
        pairs,
        over_pairs(diou),
        PARAMETERS,
        VARY,
        (
            Stated("two pairs", A, 0.379747 + 1 / 81, within=1e-6),
            Stated("a point and a box", POINT, 1 + (2.5**2 + 3.5**2) / 25),
            *stated(2.0),
        ),
        REFUSED,
    ),
    Case(
        "ciou",
        pairs,
        over_pairs(ciou),
        PARAMETERS,
        VARY,
        (
            Stated("two pairs", A, 0.379747 + 1 / 81, within=1e-6),
            # The point's angle is 0, the square's π/4: v = 1/4.
            Stated("a point and a box", POINT, 1 + (2.5**2 + 3.5**2) / 25 + 0.25**2 / 1.25),
            # Angles π/2 and 0: v = 1; the centres are a diagonal of 1 apart in a box of 2 by 2.
            Stated("two lines", LINE, 1 + 0.25 + 0.5),
            *stated(2.0),
        ),
        REFUSED,
        held_constant=True,
    ),
)
