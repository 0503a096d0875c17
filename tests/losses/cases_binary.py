"""Rows of the losses of independent yes-or-no predictions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lossd_client.errors import InvalidRequest, InvalidValue
from losses.case import Array, Case, Draw, Parameters, Refused, Stated
from losses.cases_regression import ELEMENTWISE_REFUSED

NAN, INF = float("nan"), float("inf")
SATURATED = {"prediction": [-1e4, 1e4], "target": [0.0, 1.0]}
MASK = Refused(
    InvalidValue,
    r"values in \[0, 1\] expected, found 2 at target\[1\]; set ignore_index",
    inputs={"prediction": [0.5, 0.5], "target": [0, 2]},
)
PROBABILITY = Refused(
    InvalidValue,
    r"probabilities expected in \[0, 1\], found 3.2\d* at prediction\[4, 1\]; .*logits",
    inputs={"prediction": [[0.5, 0.5]] * 4 + [[0.5, 3.2]], "target": [[0.0, 1.0]] * 5},
)
NAN_PROBABILITY = Refused(
    InvalidValue, r"found NaN at prediction\[0\]", inputs={"prediction": [float("nan")], "target": [1.0]}
)


def logits(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    """Targets of both kinds: certain in the first rows, soft in the others."""
    target = np.concatenate([rng.integers(0, 2, (n - n // 2, 3)).astype(float), rng.uniform(0, 1, (n // 2, 3))])
    return {"prediction": rng.normal(0, 2, (n, 3)), "target": target}


def probabilities(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    drawn = logits(rng, n, parameters)
    return drawn | {"prediction": 1 / (1 + np.exp(-drawn["prediction"]))}


def either(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    return (logits if parameters.get("from_logits", True) else probabilities)(rng, n, parameters)


def some_missing(draw: Draw) -> Draw:
    """The same inputs, where ``ignore_index`` says what a missing target is with three of them missing."""

    def drawn(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
        inputs = draw(rng, n, parameters)
        if (ignored := parameters.get("ignore_index")) is not None:
            inputs["target"][[0, 0, -1], [0, 2, 1]] = ignored
        return inputs

    return drawn


def counted(value: Tensor, target: Tensor, ignore_index: int | None) -> Tensor | tuple[Tensor, Tensor]:
    """Ignored entries are worth nothing, and count nothing."""
    if ignore_index is None:
        return value
    kept = (target != ignore_index).to(value.dtype)
    return torch.where(kept > 0, value, 0 * value), kept


def smoothed(target: Tensor, share: float | None, ignore_index: int | None) -> Tensor:
    """A mixture with a fair coin; a target that is ignored stays as it is."""
    if share is None:
        return target
    mixed = torch.lerp(target, torch.full_like(target, 0.5), share)
    return mixed if ignore_index is None else torch.where(target == ignore_index, target, mixed)


def bce(
    prediction: Tensor,
    target: Tensor,
    *,
    eps: float | None = None,
    ignore_index: int | None = None,
    label_smoothing: float | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Plain formula; away from 0 and 1 the clamp at -100 plays no part."""
    target = smoothed(target, label_smoothing, ignore_index)
    p = prediction if eps is None else prediction.clamp(eps, 1 - eps)
    return counted(-(target * p.log() + (1 - target) * (1 - p).log()), target, ignore_index)


def bce_with_logits(
    prediction: Tensor,
    target: Tensor,
    *,
    pos_weight: float | list[float] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Plain formula, by way of logsigmoid."""
    target = smoothed(target, label_smoothing, ignore_index)
    weight = torch.as_tensor(1.0 if pos_weight is None else pos_weight, dtype=prediction.dtype)
    positive, negative = functional.logsigmoid(prediction), functional.logsigmoid(-prediction)
    return counted(-(weight * target * positive + (1 - target) * negative), target, ignore_index)


def sigmoid_focal(
    prediction: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    alpha_mode: str = "balance",
    from_logits: bool = True,
    eps: float | None = None,
    ignore_index: int | None = None,
    label_smoothing: float | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Lin et al. 2017 as torchvision.ops.sigmoid_focal_loss spells it."""
    target = smoothed(target, label_smoothing, ignore_index)
    known = target if ignore_index is None else target.masked_fill(target == ignore_index, 0)
    value = _sigmoid_focal(prediction, known, gamma, alpha, alpha_mode, from_logits, eps)
    return counted(value, target, ignore_index)


def _sigmoid_focal(
    prediction: Tensor,
    target: Tensor,
    gamma: float,
    alpha: float | None,
    alpha_mode: str,
    from_logits: bool,
    eps: float | None,
) -> Tensor:
    p = torch.sigmoid(prediction) if from_logits else prediction
    p = p if eps is None else p.clamp(eps, 1 - eps)
    p_t = p * target + (1 - p) * (1 - target)
    value = functional.binary_cross_entropy(p, target, reduction="none") * (1 - p_t) ** gamma
    if alpha is None:
        return value
    return value * (alpha if alpha_mode == "scale" else alpha * target + (1 - alpha) * (1 - target))


CASES = (
    Case(
        "bce",
        some_missing(probabilities),
        bce,
        parameters=(
            {},
            {"eps": 1e-3},
            {"eps": 0.3},
            {"ignore_index": -1},
            {"ignore_index": 255, "eps": 0.3},
            {"ignore_index": -1, "label_smoothing": 0.1},
        ),
        stated=(
            Stated("certain and right", {"prediction": [0.0, 1.0], "target": [0.0, 1.0]}, 0, gradient=[0.0, 0.0]),
            # As torch: logarithms end at -100, the slope's denominator at 1e-12.
            Stated("certain and wrong", {"prediction": [0.0], "target": [1.0]}, 100, gradient=[-1e12]),
            Stated("clipped", {"prediction": [0.0], "target": [1.0]}, -np.log(0.01), {"eps": 0.01}, gradient=[0.0]),
            Stated("integer targets", {"prediction": [0.25, 0.25], "target": [0, 1]}, -np.log(0.1875) / 2),
        ),
        refused=(
            *ELEMENTWISE_REFUSED,
            MASK,
            PROBABILITY,
            NAN_PROBABILITY,
            Refused(InvalidRequest, "loss.eps.*less than 0.5", parameters={"eps": 0.5}),
        ),
    ),
    Case(
        "bce_with_logits",
        some_missing(logits),
        bce_with_logits,
        parameters=(
            {},
            {"pos_weight": 3.0},
            {"pos_weight": [0.5, 1.0, 0.0]},
            {"ignore_index": -1},
            {"ignore_index": 1, "pos_weight": [0.5, 1.0, 0.0]},
            {"ignore_index": -1, "pos_weight": 3.0, "label_smoothing": 0.2},
        ),
        stated=(
            # Labels are axis 1, and not the columns of an image, even where there are as many of them.
            Stated(
                "a factor for each label of an image",
                {"prediction": np.zeros((1, 2, 2)), "target": np.ones((1, 2, 2))},
                2 * float(np.log(2)),
                {"pos_weight": [1.0, 3.0]},
                gradient=[[[-0.125, -0.125], [-0.375, -0.375]]],
            ),
            # Five labels of eight are there: softplus of each, with the sign of its target.
            Stated(
                "missing labels",
                {
                    "prediction": [[0.5, NAN, -1.0, 2.0], [INF, 0.0, 3.0, -2.0]],
                    "target": [[1, -1, 0, -1], [-1, 1, 0, 1]],
                },
                float(np.log1p(np.exp([-0.5, -1.0, 0.0, 3.0, 2.0])).mean()),
                {"ignore_index": -1},
                gradient=[
                    [-0.2 / (1 + np.exp(0.5)), 0.0, 0.2 / (1 + np.exp(1.0)), 0.0],
                    [0.0, -0.1, 0.2 / (1 + np.exp(-3.0)), -0.2 / (1 + np.exp(-2.0))],
                ],
                warnings=set(),
            ),
            Stated(
                "no label at all",
                {"prediction": [0.5, 1.0], "target": [-1, -1]},
                0,
                {"ignore_index": -1},
                gradient=[0.0, 0.0],
                warnings={"nothing_to_average"},
            ),
            Stated(
                "a tutorial's numbers", {"prediction": [0.5, 2, -1, 0], "target": [1, 1, 0, 0]}, 0.40185, within=1e-5
            ),
            # Keras: targets of 0.05 and 0.95.
            Stated(
                "smoothed",
                {"prediction": [2.0, -1e4], "target": [0, 1]},
                [2 + float(np.log1p(np.exp(-2))) - 0.1, 9500],
                {"label_smoothing": 0.1, "reduction": "none"},
                gradient=[1 / (1 + np.exp(-2)) - 0.05, -0.95],
            ),
            Stated("certain and wrong", {"prediction": [-1e4, 1e4], "target": [1, 0]}, 1e4, gradient=[-0.5, 0.5]),
            Stated("certain and right", SATURATED, 0, gradient=[0.0, 0.0], warnings={"zero_gradient"}),
        ),
        refused=(
            *ELEMENTWISE_REFUSED,
            MASK,
            Refused(
                InvalidRequest, "pos_weight has 2 entries, prediction has 3", parameters={"pos_weight": [1.0, 2.0]}
            ),
            Refused(
                InvalidRequest,
                "pos_weight has 2 entries, prediction has 3 along axis 1, that of the labels",
                {"pos_weight": [1.0, 2.0]},
                {"prediction": np.zeros((1, 3, 2)), "target": np.zeros((1, 3, 2))},
            ),
            Refused(InvalidRequest, "pos_weight", parameters={"pos_weight": -1.0}),
            Refused(InvalidRequest, "label_smoothing.*less than or equal to 1", {"label_smoothing": 1.1}),
        ),
    ),
    Case(
        "sigmoid_focal",
        some_missing(either),
        sigmoid_focal,
        parameters=(
            {},
            {"gamma": 0.0},
            {"gamma": 0.5, "alpha": 0.6},
            {"gamma": 3.0, "alpha": 2.5, "alpha_mode": "scale"},
            {"alpha": None},
            {"ignore_index": -1, "gamma": 0.5},
            {"ignore_index": 7, "from_logits": False, "alpha": 0.6},
            {"from_logits": False, "alpha": None},
            {"from_logits": False},
            {"from_logits": False, "gamma": 0.5, "eps": 0.2},
            {"from_logits": False, "alpha": 0.8, "alpha_mode": "scale", "eps": 1e-7},
            {"label_smoothing": 0.1},
            {"from_logits": False, "ignore_index": -1, "label_smoothing": 0.3},
        ),
        vary={"gamma": (0.0, 0.5, 2.0)},
        stated=(
            *(
                Stated(f"certain and right, gamma {gamma}", SATURATED, 0, {"gamma": gamma}, gradient=[0.0, 0.0])
                for gamma in (0.0, 0.5, 2.0)
            ),
            *(
                Stated(
                    f"certain and right probabilities, gamma {gamma}",
                    {"prediction": [0.0, 1.0], "target": [0, 1]},
                    0,
                    {"gamma": gamma, "from_logits": False},
                    gradient=[0.0, 0.0],
                )
                for gamma in (0.0, 0.5, 2.0)
            ),
            Stated("certain and wrong", {"prediction": [-1e4], "target": [1.0]}, 2500, gradient=[-0.25]),
            # (1−½)² ln 2, whatever the target.
            Stated("no factor", {"prediction": [0.0, 0.0], "target": [0, 1]}, np.log(2) / 4, {"alpha": None}),
            Stated(
                "alpha 1, gamma 0 is bce",
                {"prediction": [0.5, 2, -1, 0], "target": [1, 1, 0, 0]},
                0.40185,
                {"alpha": 1.0, "alpha_mode": "scale", "gamma": 0.0},
                within=1e-5,
            ),
        ),
        refused=(
            *ELEMENTWISE_REFUSED,
            MASK,
            Refused(InvalidValue, "set from_logits to true", {"from_logits": False}, PROBABILITY.inputs),
            Refused(InvalidRequest, "needs alpha in", parameters={"alpha": 1.5}),
            Refused(InvalidRequest, "needs from_logits false", parameters={"eps": 0.1}),
        ),
    ),
)
