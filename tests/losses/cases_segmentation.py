"""Rows of the region losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossd_client.errors import InvalidRequest, InvalidValue, ShapeMismatch
from losses.case import Array, Case, Parameters, Refused, Stated

CLASSES = 3


def regions(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    """Predictions of 2 by 4 positions; the last class is absent, and some targets are ignored if any can be."""
    mode = parameters.get("mode", "multiclass")
    axes = (n, 2, 4) if mode == "binary" else (n, CLASSES, 2, 4)
    prediction = rng.normal(0, 2, axes)
    if mode == "multiclass":
        target = rng.integers(0, CLASSES - 1, (n, 2, 4))
        probabilities = np.exp(prediction) / np.exp(prediction).sum(1, keepdims=True)
    else:
        target = rng.uniform(0, 1, axes).round(1)
        if mode == "multilabel":
            target[:, -1] = 0
        probabilities = 1 / (1 + np.exp(-prediction))
    if parameters.get("ignore_index") is not None:
        target[:, ..., 1] = parameters["ignore_index"]
    return {"prediction": prediction if parameters.get("from_logits", True) else probabilities, "target": target}


def certain_regions(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    drawn = regions(rng, n, parameters)
    return drawn | {"target": drawn["target"].round().astype(int)}


def soft_regions(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    """Class probabilities as targets; those of the last class are 0."""
    target = rng.dirichlet(np.ones(CLASSES - 1), (n, 2, 4))
    target = np.concatenate([target, np.zeros((n, 2, 4, 1))], -1).transpose(0, 3, 1, 2)
    return regions(rng, n, parameters) | {"target": target}


def pooled(n: int, per_image: bool) -> list[list[int]]:
    """The images whose sums are taken together."""
    return [[i] for i in range(n)] if per_image else [list(range(n))]


def elements(
    prediction: Tensor, target: Tensor, images: list[int], c: int, mode: str, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """A region's probabilities and targets, (P,) each, without those that are ignored."""
    p = torch.cat([prediction[i, c].flatten() for i in images])
    indices = mode == "multiclass" and target.ndim < prediction.ndim
    t = torch.cat([target[i].flatten() if indices else target[i, c].flatten() for i in images])
    counted = torch.ones_like(t, dtype=torch.bool) if ignore_index is None else t != ignore_index
    p, t = p[counted], t[counted]
    return p, (t == c).double() if indices else t.double()


def region_loss(score: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The reference of a region loss: loops over images and regions, each region's elements picked out one by one."""

    def reference(
        prediction: Tensor,
        target: Tensor,
        *,
        mode: str = "multiclass",
        from_logits: bool = True,
        per_image: bool = False,
        include_background: bool = True,
        class_weight: list[float] | None = None,
        ignore_index: int | None = None,
        absent: str = "keep",
        **parameters: Any,
    ) -> tuple[Tensor, Tensor]:
        if mode == "binary":
            prediction, target = prediction.unsqueeze(1), target.unsqueeze(1)
        if from_logits:
            prediction = torch.softmax(prediction, 1) if mode == "multiclass" else torch.sigmoid(prediction)
        n, classes = prediction.shape[:2]
        values, weights = [], []
        for images in pooled(n, per_image):
            for c in range(0 if include_background else 1, classes):
                p, t = elements(prediction, target, images, c, mode, ignore_index)
                weight = 1.0 if class_weight is None else class_weight[c]
                weight = 0.0 if absent == "ignore" and t.sum() == 0 else weight
                values.append(weight * (1 - score(p, t, **parameters)))
                weights.append(torch.tensor(weight, dtype=torch.float64))
        shape = (n, -1) if per_image else (-1,)
        return torch.stack(values).reshape(shape), torch.stack(weights).reshape(shape)

    return reference


def dice(p: Tensor, t: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Milletari et al. 2016 without its squares, as Drozdzal et al. 2016, arXiv:1608.04117, write it."""
    return (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth)


def jaccard(p: Tensor, t: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Rahman and Wang 2016; the union as p + t − pt, element by element."""
    return ((p * t).sum() + smooth) / ((p + t - p * t).sum() + smooth)


def tversky(p: Tensor, t: Tensor, *, smooth: float = 1.0, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """Salehi et al. 2017, equation 4, alpha with the false positives."""
    hit, false_positive, false_negative = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
    return (hit + smooth) / (hit + alpha * false_positive + beta * false_negative + smooth)


def focal_tversky(p: Tensor, t: Tensor, *, gamma: float = 0.75, **parameters: float) -> Tensor:
    """Abraham and Khan 2018, equation 4, with the exponent itself as gamma."""
    return 1 - (1 - tversky(p, t, **parameters)) ** gamma


def generalized_dice(
    prediction: Tensor,
    target: Tensor,
    *,
    region_weight: str = "square",
    smooth: float = 1.0,
    mode: str = "multiclass",
    from_logits: bool = True,
    per_image: bool = False,
    include_background: bool = True,
    class_weight: list[float] | None = None,
    ignore_index: int | None = None,
    absent: str = "keep",
) -> tuple[Tensor, Tensor]:
    """monai.losses.GeneralizedDiceLoss, written out: an absent region has the largest weight of the others.

    Where all are absent there is none, and MONAI's 0/0 forgives whatever was predicted: any weight but 0 says 1 - 0/p.
    """
    if mode == "binary":
        prediction, target = prediction.unsqueeze(1), target.unsqueeze(1)
    if from_logits:
        prediction = torch.softmax(prediction, 1) if mode == "multiclass" else torch.sigmoid(prediction)
    values, counts = [], []
    for images in pooled(len(prediction), per_image):
        kept = range(0 if include_background else 1, prediction.shape[1])
        pairs = [elements(prediction, target, images, c, mode, ignore_index) for c in kept]
        volumes = [float(t.sum()) for _, t in pairs]
        power = {"square": 2, "simple": 1, "uniform": 0}[region_weight]
        weights = [v**-power if v else None for v in volumes]
        largest = max((w for w in weights if w is not None), default=1.0) if power else 1.0
        weights = [(largest if absent == "keep" else 0.0) if w is None else w for w in weights]
        if class_weight is not None:
            weights = [w * class_weight[c] for w, c in zip(weights, kept, strict=True)]
        above = sum(2 * w * (p * t).sum() for w, (p, t) in zip(weights, pairs, strict=True)) + smooth
        below = sum(w * (p.sum() + t.sum()) for w, (p, t) in zip(weights, pairs, strict=True)) + smooth
        counts.append(1.0 if absent == "keep" or any(volumes) else 0.0)
        values.append(counts[-1] * (1 - above / below))
    return torch.stack(values), torch.tensor(counts, dtype=torch.float64)


def lovasz(
    prediction: Tensor,
    target: Tensor,
    *,
    mode: str = "multiclass",
    from_logits: bool = True,
    per_image: bool = False,
    ignore_index: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Berman et al. 2018: the Lovász extension by its definition, from the Jaccard loss of growing sets of errors."""
    if mode == "binary":
        prediction, target = prediction.unsqueeze(1), target.unsqueeze(1)
    elif from_logits:
        prediction = torch.softmax(prediction, 1)
    n, classes = prediction.shape[:2]
    values, weights = [], []
    for images in pooled(n, per_image):
        shares = []
        for c in range(classes):
            p, t = elements(prediction, target, images, c, mode, ignore_index)
            errors = torch.relu(1 - p * (2 * t - 1)) if mode == "binary" else (t - p).abs()
            value, jaccard_before, wrong = 0 * p.sum(), 0.0, torch.zeros_like(t)
            for i in torch.argsort(errors, descending=True).tolist():
                wrong[i] = 1
                hits, union = (t * (1 - wrong)).sum(), ((t + wrong) > 0).sum()
                value = value + errors[i] * (1 - hits / union - jaccard_before)
                jaccard_before = 1 - hits / union
            values.append(value)
            shares.append(1.0 if (len(t) if mode == "binary" else t.sum()) else 0.0)
        weights += [share / max(sum(shares), 1.0) if per_image else share for share in shares]
    weight = torch.tensor(weights, dtype=torch.float64)
    shape = (n, -1) if per_image else (-1,)
    return (torch.stack(values) * weight).reshape(shape), weight.reshape(shape)


SHARED: tuple[dict[str, Any], ...] = (
    {},
    {"smooth": 0.0, "per_image": True},
    {"class_weight": [0.5, 1.0, 2.0], "ignore_index": 255, "absent": "ignore"},
    {"class_weight": [0.5, 1.0, 2.0], "per_image": True, "include_background": False, "from_logits": False},
    {"ignore_index": 0, "include_background": False},
    {"mode": "binary", "smooth": 1e-3},
    {"mode": "binary", "per_image": True, "from_logits": False, "ignore_index": -1},
    {"mode": "multilabel", "class_weight": [0.5, 1.0, 2.0], "ignore_index": 7},
    {"mode": "multilabel", "per_image": True, "absent": "ignore"},
)
BINARY = {"mode": "binary", "from_logits": False}
EMPTY = {"prediction": [[0.0, 0.0, 0.0]], "target": [[0, 0, 0]]}
FALSE = {"prediction": [[1.0, 1.0, 1.0]], "target": [[0, 0, 0]]}
SEEN = {"prediction": [[0.0, 1.0, 1.0]], "target": [[0, 1, 1]]}
REFUSED = (
    Refused(
        ShapeMismatch,
        r"target has shape \(5, 2, 4\), expected \(5, 3, 2, 4\)",
        {"mode": "multilabel"},
        {"prediction": np.zeros((5, 3, 2, 4)), "target": np.zeros((5, 2, 4))},
    ),
    Refused(
        InvalidValue,
        r"class 3 at target\[0, 1\] is out of range: classes 0 to 2",
        inputs={"prediction": np.zeros((1, 3, 2)), "target": [[0, 3]]},
    ),
    Refused(
        InvalidValue,
        r"values in \[0, 1\] expected, or 255 \(ignore_index\).*found 254 at target\[0, 1\]",
        {"mode": "binary", "ignore_index": 255},
        {"prediction": [[0.0, 0.0]], "target": [[255, 254]]},
    ),
    Refused(
        InvalidValue,
        r"found 1.5 at prediction\[0, 0\]; set from_logits to true",
        BINARY,
        {"prediction": [[1.5]], "target": [[1.0]]},
    ),
    Refused(InvalidRequest, "no background channel", {"mode": "binary", "include_background": False}),
    Refused(InvalidRequest, "one region", {"mode": "binary", "class_weight": [1.0]}),
    Refused(InvalidRequest, "class_weight has 2 entries, prediction has 3", {"class_weight": [1.0, 2.0]}),
    Refused(
        ShapeMismatch,
        "nothing left|no region left",
        {"include_background": False},
        {"prediction": np.zeros((1, 1, 2)), "target": np.zeros((1, 2), int)},
    ),
)


def all_ignored() -> tuple[Stated, ...]:
    """Nothing counts; or one image of two does, in which nothing is found: the loss is its own, 1."""
    return (
        *(
            Stated(
                f"all ignored, smooth {smooth}",
                {"prediction": [[np.nan, 3.0]], "target": [[255, 255]]},
                0,
                {"mode": "binary", "ignore_index": 255, "smooth": smooth},
                gradient=[[0.0, 0.0]],
                warnings={"nothing_to_average"},
            )
            for smooth in (0.0, 1.0)
        ),
        Stated(
            "all ignored, several classes",
            {"prediction": [[[3.0, -1.0], [0.0, 2.0]]], "target": [[-1, -1]]},
            0,
            {"ignore_index": -1, "per_image": True, "class_weight": [1.0, 3.0]},
            gradient=[[[0.0, 0.0], [0.0, 0.0]]],
            warnings={"nothing_to_average"},
        ),
        Stated(
            "one image of two all ignored",
            {"prediction": [[0.3, 0.9], [0.0, 0.0]], "target": [[255, 255], [1, 0]]},
            1,
            BINARY | {"ignore_index": 255, "smooth": 0.0, "per_image": True},
        ),
    )


def stated(factor: float) -> tuple[Stated, ...]:
    """What all three agree on; with ``smooth`` the gradient of an empty region is ``factor``/smooth."""
    return (
        *all_ignored(),
        *(
            Stated(
                f"nothing to find, nothing found, smooth {smooth}",
                EMPTY,
                0,
                BINARY | {"smooth": smooth},
                gradient=[[factor / smooth if smooth else 0.0] * 3],
                warnings=warnings,
            )
            for smooth, warnings in ((0.0, {"tiny_smooth", "zero_gradient"}), (1e-6, set()), (1.0, set()))
        ),
        Stated("all found", SEEN, 0, BINARY),
        Stated("nothing to find, all found", FALSE, 1, BINARY | {"smooth": 0.0}),
        Stated(
            "absent and left out",
            EMPTY,
            0,
            BINARY | {"absent": "ignore"},
            gradient=[[0.0] * 3],
            warnings={"nothing_to_average"},
        ),
        Stated(
            "half precision, many ones",
            {"prediction": np.ones((1, 512, 512)), "target": np.ones((1, 512, 512), int)},
            0,
            BINARY,
            dtype=torch.float16,
        ),
        Stated(
            "saturated logits",
            {"prediction": [[-1e4, 1e4]], "target": [[0, 1]]},
            0,
            {"mode": "binary"},
            gradient=[[0.0, 0.0]],
        ),
        Stated(
            "NaN where ignored",
            {"prediction": [[np.nan, 1e4]], "target": [[255, 1]]},
            0,
            {"mode": "binary", "ignore_index": 255},
            gradient=[[0.0, 0.0]],
        ),
    )


SOFT: tuple[Parameters, ...] = (
    {},
    {"smooth": 0.0, "per_image": True, "absent": "ignore"},
    {"class_weight": [0.5, 1.0, 2.0], "include_background": False, "from_logits": False},
)
ONE_HOT = {"prediction": np.zeros((1, 2, 2)), "target": [[[1.0, 0.0], [0.0, 1.0]]]}
SEVERAL = {"prediction": np.zeros((1, 2, 2)), "target": [[[1, 1], [0, 1]]]}
WHOLE = {"smooth": 0.0}

CASES = (
    Case("dice", regions, region_loss(dice), SHARED, {"smooth": (0.0, 0.5, 1.0)}, stated(1.0), REFUSED),
    Case("jaccard", regions, region_loss(jaccard), SHARED, {"smooth": (0.0, 0.5, 1.0)}, stated(1.0), REFUSED),
    Case(
        "tversky",
        regions,
        region_loss(tversky),
        (*SHARED, {"alpha": 0.3, "beta": 0.7}, {"alpha": 1.0, "beta": 0.0, "mode": "binary"}),
        {"smooth": (0.0, 0.5, 1.0), "alpha": (0.0, 0.5, 1.0), "beta": (1.0, 0.5, 0.25)},
        stated(0.5),
        REFUSED,
    ),
    Case(
        "focal_tversky",
        regions,
        region_loss(focal_tversky),
        (*SHARED, {"gamma": 2.0, "alpha": 0.3, "beta": 0.7}),
        {"smooth": (0.1, 0.5, 1.0), "alpha": (0.0, 0.5, 1.0), "beta": (1.0, 0.5, 0.25), "gamma": (0.5, 1.0, 2.0)},
        (
            *all_ignored(),
            Stated("nothing to find, nothing found", EMPTY, 0, BINARY, gradient=[[0.0] * 3]),
            Stated("all found", SEEN, 0, BINARY | {"gamma": 0.5}, gradient=[[0.0] * 3]),
            Stated("nothing to find, all found", FALSE, 1, BINARY | {"smooth": 0.0}),
        ),
        REFUSED,
    ),
    Case(
        "generalized_dice",
        regions,
        generalized_dice,
        (
            *SHARED,
            {"region_weight": "simple", "per_image": True, "class_weight": [0.5, 1.0, 2.0]},
            {"region_weight": "uniform", "absent": "ignore"},
        ),
        {"smooth": (0.0, 0.5, 1.0)},
        (
            *all_ignored(),
            # One less 1 / (p + 1), as dice has it.
            Stated("nothing to find, nothing found", EMPTY, 0, BINARY, gradient=[[1.0] * 3]),
            Stated(
                "nothing to find, nothing found, not smoothed", EMPTY, 0, BINARY | {"smooth": 0.0}, gradient=[[0.0] * 3]
            ),
            Stated("no target, left out", EMPTY, 0, BINARY | {"absent": "ignore"}, warnings={"nothing_to_average"}),
            Stated("all found", SEEN, 0, BINARY),
            *(
                Stated(
                    f"nothing to find, all found, {weight}", FALSE, 1, BINARY | {"region_weight": weight, "smooth": 0.0}
                )
                for weight in ("square", "simple", "uniform")
            ),
            # One less (0 + 1) / (3 + 1), whose slope is 1/16 by each probability.
            Stated("nothing to find, smoothed", FALSE, 0.75, BINARY | {"smooth": 1.0}, gradient=[[1 / 16] * 3]),
            # The first image has nothing and all is predicted, the second is right.
            Stated(
                "by image",
                {"prediction": [[1.0, 1.0], [0.0, 1.0]], "target": [[0.0, 0.0], [0.0, 1.0]]},
                0.5,
                BINARY | {"per_image": True, "smooth": 0.0},
            ),
            # The volume 1e-160 has a weight of 1e320: the other region counts nothing, and in this one all is wrong.
            Stated(
                "a weight beyond all numbers",
                {"prediction": np.array([[[1.0], [0.9]]]), "target": np.array([[[1e-160], [0.9]]])},
                1,
                {"mode": "multilabel", "from_logits": False, "smooth": 0.0},
                dtype=torch.float64,
            ),
            # Region weights 1/9 and 1: 1 - 2 (1/9 * 3/2 + 1/2) / (1/9 * 5 + 3).
            Stated(
                "even probabilities",
                {"prediction": np.zeros((1, 2, 4)), "target": [[0, 0, 0, 1]]},
                1 - (3 / 9 + 1) / (5 / 9 + 3),
                {"smooth": 0.0},
            ),
        ),
        REFUSED,
    ),
    Case(
        "lovasz",
        certain_regions,
        lovasz,
        (
            {},
            {"per_image": True},
            {"ignore_index": 1, "from_logits": False},
            {"ignore_index": 0, "per_image": True},
            {"mode": "binary"},
            {"mode": "binary", "per_image": True, "ignore_index": 255},
        ),
        stated=(
            Stated("certain and right", {"prediction": [[[1e4, -1e4], [-1e4, 1e4]]], "target": [[0, 1]]}, 0),
            Stated(
                "beyond the margin",
                {"prediction": [[-3.0, 2.0]], "target": [[0, 1]]},
                0,
                {"mode": "binary"},
                gradient=[[0.0, 0.0]],
            ),
            # Errors 2 (a miss) and 0: the Jaccard loss of missing one of one is 1.
            Stated(
                "one missed",
                {"prediction": [[-1.0, -2.0]], "target": [[1, 0]]},
                2,
                {"mode": "binary"},
                gradient=[[-1.0, 0.0]],
            ),
            # All errors are 1. Of 10 positions to find, j others leave the Jaccard loss at j / (10 + j).
            Stated(
                "equal errors in the order of the positions",
                {"prediction": np.zeros((1, 20)), "target": [[0] * 10 + [1] * 10]},
                1,
                {"mode": "binary"},
                gradient=[[j / (10 + j) - (j - 1) / (9 + j) for j in range(1, 11)] + [-1 / 20] * 10],
            ),
            Stated(
                "nothing left",
                {"prediction": [[1.0]], "target": [[255]]},
                0,
                {"mode": "binary", "ignore_index": 255},
                gradient=[[0.0]],
                warnings={"nothing_to_average"},
            ),
        ),
        refused=(
            *REFUSED[1:2],
            Refused(InvalidRequest, "takes logits", {"mode": "binary", "from_logits": False}),
            Refused(InvalidRequest, "mode", {"mode": "multilabel"}),
            Refused(
                InvalidValue,
                r"found 0.5 at target\[0, 0\]",
                {"mode": "binary"},
                {"prediction": [[1.0]], "target": [[0.5]]},
            ),
        ),
    ),
    *(
        Case(
            name,
            soft_regions,
            reference,
            tuple(SOFT),
            vary,
            (
                # Of the class that is sure: half of it is found, and nothing else of it is there to be found.
                Stated("whole classes are class indices", ONE_HOT, value, WHOLE, within=1e-6, warnings=set()),
                Stated("several classes at once", SEVERAL, None, WHOLE, warnings={"not_a_distribution"}),
            ),
            (
                Refused(
                    InvalidValue,
                    r"probabilities expected in \[0, 1\], found 1.5 at target\[0, 0, 0\]",
                    inputs={"prediction": np.zeros((1, 2, 1)), "target": [[[1.5], [0.0]]]},
                ),
            ),
            variant="soft",
        )
        for name, reference, vary, value in (
            ("dice", region_loss(dice), {"smooth": (0.0, 0.5, 1.0)}, 0.5),
            ("jaccard", region_loss(jaccard), {"smooth": (0.0, 0.5, 1.0)}, 2 / 3),
            (
                "tversky",
                region_loss(tversky),
                {"smooth": (0.0, 0.5, 1.0), "alpha": (0.0, 0.5, 1.0), "beta": (1.0, 0.5, 0.25)},
                0.5,
            ),
        )
    ),
)
