"""Rows of the margin losses. Reference: torch.nn.functional, unless a comment says otherwise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lossd_client.errors import InvalidRequest, InvalidValue, ShapeMismatch
from losses.case import Array, Case, Parameters, Refused, Stated
from losses.cases_binary import some_missing
from losses.cases_classification import OUT_OF_RANGE, flat
from losses.cases_regression import ELEMENTWISE_REFUSED, elementwise

CLASSES = 4
NOT_A_SIGN = Refused(
    InvalidValue,
    r"1 \(yes\) or -1 \(no\) expected, found 0 at target\[1\]",
    inputs={"prediction": [1.0, 2.0], "target": [1, 0]},
)
SIGNS = (*ELEMENTWISE_REFUSED, NOT_A_SIGN)


def signs(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    return {"prediction": rng.normal(0, 2, (n, 3)), "target": rng.choice([-1, 1], (n, 3))}


def ranked(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    scores = rng.normal(0, 2, (2, n, 3))
    return {"first": scores[0], "second": scores[1], "target": rng.choice([-1.0, 1.0], (n, 3))}


def label_sets(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    """None to all of the classes apply; what follows the first -1 is not read."""
    target = np.stack([rng.permutation(CLASSES) for _ in range(n)])
    for row, count in enumerate(rng.integers(0, CLASSES + 1, n)):
        target[row, count : count + 1] = -1
    return {"prediction": rng.normal(0, 2, (n, CLASSES)), "target": target}


def indicators(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    return {"prediction": rng.normal(0, 2, (n, CLASSES)), "target": rng.integers(0, 2, (n, CLASSES))}


def margin_ranking(first: Tensor, second: Tensor, target: Tensor, *, margin: float = 0.0) -> Tensor:
    return functional.margin_ranking_loss(first, second, target, margin=margin, reduction="none")


def multi_margin(
    prediction: Tensor, target: Tensor, *, p: int = 1, margin: float = 1.0, class_weight: list[float] | None = None
) -> Tensor:
    weight = None if class_weight is None else torch.tensor(class_weight, dtype=prediction.dtype)
    return functional.multi_margin_loss(prediction, target, p=p, margin=margin, weight=weight, reduction="none")


def multilabel_margin(prediction: Tensor, target: Tensor) -> Tensor:
    """Plain loops over the definition in torch.nn.MultiLabelMarginLoss."""
    values = []
    for scores, labels in zip(prediction, target.tolist(), strict=True):
        applying = labels[: labels.index(-1)] if -1 in labels else labels
        others = [c for c in range(len(labels)) if c not in applying]
        hinges = [torch.relu(1 - (scores[t] - scores[c])) for t in applying for c in others]
        values.append(sum(hinges, 0 * scores.sum()) / len(labels))
    return torch.stack(values)


def multilabel_soft_margin(
    prediction: Tensor,
    target: Tensor,
    *,
    class_weight: list[float] | None = None,
    ignore_index: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Torch's, of each sample's labels that are not missing, one sample after the other."""
    weight = torch.tensor(class_weight or [1.0] * prediction.shape[1], dtype=prediction.dtype)
    if ignore_index is None:
        return functional.multilabel_soft_margin_loss(prediction, target.double(), weight=weight, reduction="none")
    values, counts = [], []
    for scores, labels in zip(prediction, target, strict=True):
        kept = labels != ignore_index
        of_kept = (scores[kept][None], labels[kept][None].double())
        value = functional.multilabel_soft_margin_loss(*of_kept, weight=weight[kept], reduction="sum")
        values.append(value if kept.any() else 0 * scores.sum())
        counts.append(float(kept.any()))
    return torch.stack(values), torch.tensor(counts, dtype=prediction.dtype)


CASES = (
    Case(
        "hinge_embedding",
        signs,
        elementwise(functional.hinge_embedding_loss),
        parameters=({}, {"margin": 0.25}),
        vary={"margin": (0.5, 1.0, -1.0)},
        stated=(Stated("by hand", {"prediction": [0.25, 0.25, 2.0], "target": [1, -1, -1]}, 1 / 3),),
        refused=SIGNS,
    ),
    Case(
        "margin_ranking",
        ranked,
        margin_ranking,
        parameters=({}, {"margin": 0.5}),
        vary={"margin": (0.0, 1.0, -1.0)},
        stated=(
            Stated(
                "the first should be higher, then lower",
                {"first": [1.0, 1.0], "second": [2.0, 2.0], "target": [1, -1]},
                0.5,
                gradient={"first": [-0.5, 0.0], "second": [0.5, 0.0]},
            ),
        ),
        refused=(
            Refused(InvalidValue, "found 0 at target", inputs={"first": [1.0], "second": [1.0], "target": [0]}),
            Refused(
                ShapeMismatch, r"second has shape \(2,\)", inputs={"first": [1.0], "second": [1.0, 1.0], "target": [1]}
            ),
        ),
    ),
    Case(
        "soft_margin",
        signs,
        elementwise(functional.soft_margin_loss),
        stated=(
            Stated("far wrong", {"prediction": [-1e4], "target": [1]}, 1e4, gradient=[-1.0]),
            Stated("far right", {"prediction": [1e4], "target": [1]}, 0, gradient=[0.0]),
            # Where torch's softplus has become the identity: log1p(exp(-22)) is still 2.8e-10.
            Stated(
                "at 22",
                {"prediction": [-22.0], "target": [1.0]},
                22 + float(np.log1p(np.exp(-22))),
                within=1e-13,
                dtype=torch.float64,
            ),
        ),
        refused=SIGNS,
    ),
    Case(
        "hinge",
        signs,
        # As Cortes and Vapnik 1995 write it: the least slack ξ >= 0 with t z >= m - ξ.
        lambda prediction, target, *, margin=1.0, squared=False: (
            (margin - target * prediction).clamp(min=0) ** (2 if squared else 1)
        ),
        parameters=({}, {"margin": 0.5}, {"squared": True}),
        vary={"margin": (0.0, 0.5, 1.0)},
        stated=(
            Stated(
                "inside, outside, at the margin",
                {"prediction": [0.3, 2.0, -1.0], "target": [-1, 1, -1]},
                1.3 / 3,
                gradient=[1 / 3, 0.0, 0.0],
            ),
            Stated("squared", {"prediction": [-0.5], "target": [1.0]}, 2.25, {"squared": True}, gradient=[-3.0]),
        ),
        refused=SIGNS,
    ),
    Case(
        "multi_margin",
        flat,
        multi_margin,
        parameters=({}, {"p": 2}, {"margin": 0.5, "class_weight": [0.5, 1.0, 2.0, 0.0]}),
        vary={"margin": (0.5, 1.0, 2.0)},
        stated=(Stated("by hand", {"prediction": [[0.0, 1.0]], "target": [0]}, 1.0, gradient=[[-0.5, 0.5]]),),
        refused=(
            OUT_OF_RANGE,
            Refused(InvalidRequest, "loss.p", {"p": 3}),
            Refused(InvalidRequest, "class_weight has 2 entries", {"class_weight": [1.0, 1.0]}),
        ),
    ),
    Case(
        "multilabel_margin",
        label_sets,
        multilabel_margin,
        stated=(
            Stated("torch's example", {"prediction": [[0.1, 0.2, 0.4, 0.8]], "target": [[3, 0, -1, 1]]}, 0.85),
            Stated("none applies", {"prediction": [[1.0, 2.0]], "target": [[-1, 0]]}, 0, gradient=[[0.0, 0.0]]),
        ),
        refused=(
            Refused(
                InvalidValue,
                r"class 2 at target\[0, 1\] is out of range: classes 0 to 1 expected, then -1",
                inputs={"prediction": [[1.0, 2.0]], "target": [[0, 2]]},
            ),
            Refused(InvalidValue, "class -2", inputs={"prediction": [[1.0, 2.0]], "target": [[0, -2]]}),
        ),
    ),
    Case(
        "multilabel_soft_margin",
        some_missing(indicators),
        multilabel_soft_margin,
        parameters=(
            {},
            {"class_weight": [0.5, 1.0, 2.0, 0.0]},
            {"ignore_index": -1},
            {"class_weight": [0.5, 1.0, 2.0, 0.0], "ignore_index": 255},
        ),
        stated=(
            Stated("far wrong", {"prediction": [[-1e4, 1e4]], "target": [[1, 0]]}, 1e4, gradient=[[-0.5, 0.5]]),
            Stated(
                "one sample is missing, and of the other a label",
                {"prediction": [[-1e4, 1e4], [5.0, 5.0]], "target": [[1, -1], [-1, -1]]},
                1e4,
                {"ignore_index": -1},
                gradient=[[-1.0, 0.0], [0.0, 0.0]],
            ),
        ),
        refused=(
            Refused(
                InvalidValue,
                r"1 \(yes\) or 0 \(no\) expected, found 0.5 at target\[0, 0\]",
                inputs={"prediction": [[1.0]], "target": [[0.5]]},
            ),
            Refused(InvalidRequest, "class_weight has 1 entries", {"class_weight": [1.0]}),
        ),
    ),
)
