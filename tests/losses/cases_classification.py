"""Rows of the losses of class scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lossd_client.errors import DtypeMismatch, InvalidRequest, InvalidValue, ShapeMismatch
from losses.case import Array, Case, Parameters, Refused, Stated

CLASSES = 4
THREE = {"prediction": [[2, 1, 0.1], [0.5, 2.5, 0.3], [0.1, 0.2, 3]], "target": [0, 1, 2]}
SATURATED = {"prediction": [[-1e4, 1e4, 0.0]], "target": [1]}
PERFECT = {"prediction": [[1e3, 0, 0], [0, 1e3, 0], [1e3, 0, 0]], "target": [0, 1, 0]}
INF = float("inf")


def indices(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    """Scores of a dense prediction; where there is an ignore_index, some targets have it, but not all."""
    target = rng.integers(0, CLASSES, (n, 2, 3))
    if parameters.get("ignore_index") is not None:
        target[:, 0, 1] = parameters["ignore_index"]
    return {"prediction": rng.normal(0, 2, (n, CLASSES, 2, 3)), "target": target}


def flat(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    return {"prediction": rng.normal(0, 2, (n, CLASSES)), "target": rng.integers(0, CLASSES, n)}


def shares(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    """Target probabilities; in the last row one class has them all."""
    target = rng.dirichlet(np.ones(CLASSES), (n, 3)).transpose(0, 2, 1)
    target[-1] = np.eye(CLASSES)[:, :3]
    return {"prediction": rng.normal(0, 2, (n, CLASSES, 3)), "target": target}


def table(prediction: Tensor, weights: list[float] | None) -> Tensor | None:
    return None if weights is None else torch.tensor(weights, dtype=prediction.dtype)


def target_weights(target: Tensor, weights: list[float] | None, ignore_index: int | None) -> Tensor:
    """What each target adds to the denominator: position by position."""
    return torch.tensor(
        [0.0 if t == ignore_index else 1.0 if weights is None else weights[t] for t in target.flatten().tolist()],
        dtype=torch.float64,
    ).reshape(target.shape)


def one_hot(target: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    """(N, C, *) float64; nothing where the target is ignored."""
    hot = torch.zeros(target.shape[0], classes, *target.shape[1:], dtype=torch.float64)
    for c in range(classes):
        hot[:, c] = (target == c) & (target != ignore_index)
    return hot


def cross_entropy(
    prediction: Tensor,
    target: Tensor,
    *,
    class_weight: list[float] | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    smoothing_mode: str = "uniform",
) -> tuple[Tensor, Tensor]:
    """torch.nn.functional.cross_entropy; smoothing over the other classes by spelling out the target distribution."""
    weight = table(prediction, class_weight)
    if smoothing_mode == "uniform":
        value = functional.cross_entropy(
            prediction,
            target,
            weight,
            ignore_index=-100 if ignore_index is None else ignore_index,
            reduction="none",
            label_smoothing=label_smoothing,
        )
    else:
        hot = one_hot(target, CLASSES, ignore_index)
        counted = hot.sum(1, keepdim=True)
        others = (counted - hot) * label_smoothing / (CLASSES - 1)
        value = functional.cross_entropy(prediction, hot * (1 - label_smoothing) + others, weight, reduction="none")
    return value, target_weights(target, class_weight, ignore_index)


def soft_cross_entropy(
    prediction: Tensor,
    target: Tensor,
    *,
    class_weight: list[float] | None = None,
    label_smoothing: float = 0.0,
    smoothing_mode: str = "uniform",
) -> Tensor:
    """torch.nn.functional.cross_entropy with probabilities, whose mean is over the positions."""
    if smoothing_mode == "others":
        target = target * (1 - label_smoothing) + (1 - target) * label_smoothing / (CLASSES - 1)
        label_smoothing = 0.0
    return functional.cross_entropy(
        prediction, target, table(prediction, class_weight), reduction="none", label_smoothing=label_smoothing
    )


def extended(
    prediction: Tensor,
    target: Tensor,
    *,
    z_loss: float | None = None,
    prior: list[float] | None = None,
    tau: float | None = None,
    poly: float | None = None,
    **parameters: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Cross-entropy of the adjusted scores, and two terms more: both from probabilities."""
    along = (1, CLASSES, *(1,) * (prediction.ndim - 2))
    if prior is not None:
        prediction = prediction + torch.tensor(prior, dtype=torch.float64).reshape(along).log() * (
            1.0 if tau is None else tau
        )
    soft = target.ndim == prediction.ndim
    result = soft_cross_entropy(prediction, target, **parameters) if soft else cross_entropy(
        prediction, target, **parameters
    )  # fmt: skip
    value, weight = result if isinstance(result, tuple) else (result, torch.ones_like(result))
    eps = parameters.get("label_smoothing", 0.0)
    hot = target if soft else one_hot(target, CLASSES, parameters.get("ignore_index", -100))
    share = (1 - eps) * hot + eps / CLASSES * hot.sum(1, keepdim=True)
    if parameters.get("class_weight") is not None:
        share = share * torch.tensor(parameters["class_weight"], dtype=torch.float64).reshape(along)
    terms = (poly or 0.0) * (share * (1 - torch.softmax(prediction, 1))).sum(1)
    terms = terms + (z_loss or 0.0) * weight * torch.exp(prediction).sum(1).log() ** 2
    return (value + terms, weight) if isinstance(result, tuple) else value + terms


def focal(
    prediction: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | list[float] | None = None,
    alpha_mode: str = "scale",
    class_weight: list[float] | None = None,
    ignore_index: int | None = -100,
) -> tuple[Tensor, Tensor]:
    """Lin et al. 2017, the plain formula; alpha as kornia and MONAI read it where alpha_mode is foreground."""
    weights = target_weights(target, class_weight, ignore_index)
    p_t = (torch.softmax(prediction, 1) * one_hot(target, CLASSES, ignore_index)).sum(1)
    p_t = torch.where(weights == 0, torch.ones_like(p_t), p_t)
    if isinstance(alpha, list):
        factors = list(alpha)
    elif alpha_mode == "foreground":
        factors = [1 - alpha] + [alpha] * (CLASSES - 1)
    else:
        factors = [1.0 if alpha is None else alpha] * CLASSES
    return -target_weights(target, factors, ignore_index) * weights * (1 - p_t) ** gamma * p_t.log(), weights


def focal_of_shares(
    prediction: Tensor,
    target: Tensor,
    *,
    label_smoothing: float | None = None,
    class_weight: list[float] | None = None,
    ignore_index: int | None = -100,
    **parameters: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """The focal loss of every class as the target, weighted by its share."""
    soft = target.ndim == prediction.ndim
    share = target if soft else one_hot(target, CLASSES, ignore_index)
    eps = label_smoothing or 0.0
    share = (1 - eps) * share + eps / CLASSES * (1 if soft else share.sum(1, keepdim=True))
    value = torch.zeros_like(prediction[:, 0])
    for c in range(CLASSES):
        of_class = torch.full(value.shape, c)
        factor = 1.0 if class_weight is None else class_weight[c]
        value = value + factor * share[:, c] * focal(prediction, of_class, ignore_index=None, **parameters)[0]
    return value if soft else (value, target_weights(target, class_weight, ignore_index))


def log_probabilities(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    drawn = indices(rng, n, parameters)
    return drawn | {"prediction": normalised(drawn["prediction"])}


def normalised(scores: Array) -> Array:
    """Log-probabilities along axis 1."""
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def distributions(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    """Target probabilities, or their logarithms; without log_target, some of them 0."""
    drawn = shares(rng, n + 1, parameters)
    target = np.log(drawn["target"][:-1]) if parameters.get("log_target") else drawn["target"][1:]
    return {"prediction": normalised(drawn["prediction"])[1:], "target": target}


def nll(
    prediction: Tensor, target: Tensor, *, class_weight: list[float] | None = None, ignore_index: int | None = -100
) -> tuple[Tensor, Tensor]:
    """torch.nn.functional.nll_loss."""
    ignored = -100 if ignore_index is None else ignore_index
    value = functional.nll_loss(
        prediction, target, table(prediction, class_weight), ignore_index=ignored, reduction="none"
    )
    return value, target_weights(target, class_weight, ignore_index)


def kl_div(prediction: Tensor, target: Tensor, *, log_target: bool = False) -> Tensor:
    """torch.nn.functional.kl_div."""
    return functional.kl_div(prediction, target, reduction="none", log_target=log_target)


def soft_f1(
    prediction: Tensor, target: Tensor, *, eps: float = 1e-7, absent: str = "penalize"
) -> tuple[Tensor, Tensor]:
    """The definition, class by class, from soft counts of true and false positives and negatives.

    A score outside [eps, 1−eps] is replaced by a constant, which has no gradient.
    """
    p = torch.softmax(prediction, 1)
    values, weights = [], []
    for c in range(prediction.shape[1]):
        true = (target == c).double()
        tp, fp, fn = (p[:, c] * true).sum(), (p[:, c] * (1 - true)).sum(), ((1 - p[:, c]) * true).sum()
        weight = 0.0 if absent == "ignore" and true.sum() == 0 else 1.0
        precision, recall = tp / (tp + fp + eps), tp / (tp + fn + eps)
        f1 = 2 * precision * recall / (precision + recall + eps)
        f1 = p.new_tensor(eps) + 0 * tp if f1 < eps else p.new_tensor(1 - eps) + 0 * tp if f1 > 1 - eps else f1
        values.append(weight * (1 - f1))
        weights.append(weight)
    return torch.stack(values), torch.tensor(weights, dtype=torch.float64)


OUT_OF_RANGE = Refused(
    InvalidValue,
    r"class 3 at target\[1\] is out of range: classes 0 to 2 expected",
    inputs={"prediction": [[0.1, 0.2, 0.3]] * 2, "target": [0, 3]},
)
BAD_CLASS = (
    OUT_OF_RANGE,
    Refused(InvalidValue, r"or -100 \(ignore_index\) for targets that do not count", inputs=OUT_OF_RANGE.inputs),
    Refused(
        InvalidValue,
        r"class -1 at target\[0, 1\]",
        {"ignore_index": None},
        {"prediction": np.zeros((1, 3, 2)), "target": [[0, -1]]},
    ),
    Refused(
        ShapeMismatch,
        r"target has shape \(5, 1\), expected \(5,\).*since prediction is \(5, 4\)",
        inputs={"prediction": np.zeros((5, 4)), "target": np.zeros((5, 1), int)},
    ),
    Refused(InvalidRequest, "class_weight has 2 entries, prediction has 4 along axis C", {"class_weight": [1.0, 2.0]}),
    Refused(InvalidRequest, "class_weight.*greater than or equal to 0", {"class_weight": [1.0, -2.0]}),
    Refused(InvalidRequest, "ignore_index.*integer", {"ignore_index": 0.5}),
)
IGNORED = {"prediction": [[1.0, 2.0], [3.0, 4.0]], "target": [-100, -100]}
ALL_IGNORED = Stated("all ignored", IGNORED, 0, gradient=[[0.0, 0.0]] * 2, warnings={"nothing_to_average"})
ALL_DROPPED = Stated(
    "weights all 0", THREE | {"sample_weight": [0, 0, 0]}, 0, gradient=[[0.0] * 3] * 3, warnings={"nothing_to_average"}
)
NAN_IGNORED = Stated(
    "NaN where ignored",
    {"prediction": [[INF - INF, 1.0], [0.0, 0.0]], "target": [-100, 0]},
    float(np.log(2)),
    {"gamma": 0.0},
    gradient=[[0.0, 0.0], [-0.5, 0.5]],
)

CASES = (
    Case(
        "cross_entropy",
        indices,
        cross_entropy,
        variant="indices",
        parameters=(
            {},
            {"class_weight": [0.5, 1.0, 2.0, 0.0]},
            {"ignore_index": -1, "label_smoothing": 0.1},
            {"ignore_index": 2, "class_weight": [0.5, 1.0, 2.0, 3.0]},
            {"ignore_index": None, "label_smoothing": 0.2, "class_weight": [0.0, 1.0, 2.0, 3.0]},
            {"label_smoothing": 0.1, "smoothing_mode": "others", "class_weight": [0.5, 1.0, 2.0, 0.0]},
        ),
        vary={"label_smoothing": (0.0, 0.1, 1.0)},
        stated=(
            Stated("a tutorial's numbers", THREE, 0.24889, within=1e-5),
            Stated("huge scores", {"prediction": [[-1e4, 1e4, 0.0]], "target": [0]}, 2e4, gradient=[[-1.0, 1.0, 0.0]]),
            Stated("certain and right", SATURATED, 0, gradient=[[0.0, 0.0, 0.0]]),
            # softmax: 0.0900, 0.2447, 0.6652
            Stated(
                "scores beyond exp's range",
                {"prediction": [[1000.0, 1001.0, 1002.0]], "target": [0]},
                2.407606,
                gradient=[[0.09003057 - 1, 0.24472847, 0.66524096]],
            ),
            Stated(
                "a class masked",
                {"prediction": [[0.0, -INF, 0.0]], "target": [0]},
                float(np.log(2)),
                gradient=[[-0.5, 0.0, 0.5]],
            ),
            Stated(
                "the target's class masked",
                {"prediction": [[0.0, -INF]], "target": [1]},
                "Infinity",
                gradient=[[1.0, -1.0]],
                warnings={"non_finite"},
            ),
            Stated(
                "one class",
                {"prediction": [[3.0]], "target": [0]},
                0,
                {"label_smoothing": 0.5, "smoothing_mode": "others"},
                gradient=[[0.0]],
            ),
            Stated(
                "narrow targets",
                {"prediction": np.zeros((2, 200)), "target": np.array([199, 255], np.uint8)},
                float(np.log(200)),
                {"ignore_index": 255},
            ),
            ALL_IGNORED,
            ALL_DROPPED,
        ),
        refused=(
            *BAD_CLASS,
            Refused(InvalidRequest, "label_smoothing.*less than or equal to 1", {"label_smoothing": 1.5}),
        ),
    ),
    Case(
        "cross_entropy",
        shares,
        soft_cross_entropy,
        variant="probabilities",
        parameters=(
            {},
            {"class_weight": [0.5, 1.0, 2.0, 0.0], "label_smoothing": 0.1},
            {"label_smoothing": 0.1, "smoothing_mode": "others"},
        ),
        vary={"label_smoothing": (0.0, 0.1, 1.0)},
        stated=(
            Stated(
                "masked and not expected",
                {"prediction": [[0.0, -INF]], "target": [[1.0, 0.0]]},
                0,
                gradient=[[0.0, 0.0]],
            ),
            Stated(
                "integers",
                {"prediction": [[0.0, 0.0]], "target": [[1, 0]]},
                float(np.log(2)),
                gradient=[[-0.5, 0.5]],
                warnings=set(),
            ),
            Stated(
                "several classes at once",
                {"prediction": np.zeros((2, 4)), "target": [[1, 1, 0, 0], [0, 0, 0, 1]]},
                1.5 * float(np.log(4)),
                warnings={"not_a_distribution"},
            ),
            Stated(
                "thirds in half precision",
                {"prediction": np.zeros((1, 3)), "target": [[1 / 3] * 3]},
                float(np.log(3)),
                warnings={"zero_gradient"},
                dtype=torch.bfloat16,
                within=0.02,
            ),
            Stated(
                "classes last",
                {"prediction": np.zeros((1, 2, 4)), "target": [[[1.0, 0, 0, 0], [1.0, 0, 0, 0]]]},
                0.5 * float(np.log(2)),
                warnings={"not_a_distribution", "zero_gradient"},
            ),
        ),
        refused=(
            Refused(
                InvalidValue,
                r"found -0.5 at target\[0, 1\]",
                inputs={"prediction": [[0.0, 0.0]], "target": [[1.0, -0.5]]},
            ),
        ),
    ),
    Case(
        "cross_entropy",
        indices,
        extended,
        variant="extended",
        parameters=(
            {"z_loss": 0.01},
            {"prior": [0.4, 0.3, 0.2, 0.1]},
            {"prior": [4.0, 3.0, 2.0, 1.0], "tau": 0.5, "ignore_index": 2, "class_weight": [0.5, 1.0, 2.0, 3.0]},
            {"poly": 2.0, "label_smoothing": 0.1, "class_weight": [0.5, 1.0, 2.0, 0.0]},
            {"poly": -0.5, "z_loss": 0.1, "prior": [1.0, 2.0, 1.0, 0.5], "ignore_index": -1},
        ),
        vary={"label_smoothing": (0.0, 0.1, 1.0)},
        stated=(
            Stated(
                "a prior",
                {"prediction": [[1.0, 0.0, -1.0]], "target": [2]},
                4.063197,
                {"prior": [0.7, 0.2, 0.1]},
                within=5e-7,
            ),
            Stated("poly", {"prediction": [[1.0, 0.0, -1.0]], "target": [0]}, 1.077124, {"poly": 2.0}, within=5e-7),
            # TransformerEngine: the softmax times 1 + 2 z lse, of lse = ln 2.
            Stated(
                "z",
                {"prediction": [[0.0, 0.0, -INF]], "target": [0]},
                float(np.log(2) + np.log(2) ** 2 / 2),
                {"z_loss": 0.5},
                gradient=[[0.5 * (1 + np.log(2)) - 1, 0.5 * (1 + np.log(2)), 0.0]],
            ),
            Stated(
                "an infinite score has an infinite square",
                {"prediction": [[INF, 0.0]], "target": [0]},
                None,
                {"z_loss": 0.5},
                warnings={"non_finite"},
            ),
            Stated(
                "ignored positions have no square",
                {"prediction": [[9.0, 9.0], [0.0, 0.0]], "target": [-100, 0]},
                float(np.log(2) + np.log(2) ** 2),
                {"z_loss": 1.0},
            ),
        ),
        refused=(
            Refused(InvalidRequest, "prior has 3 entries, prediction has 4", {"prior": [1.0, 1.0, 1.0]}),
            Refused(InvalidRequest, "prior.*greater than 0", {"prior": [1.0, 0.0, 1.0, 1.0]}),
            Refused(InvalidRequest, "tau is the exponent of the prior; send prior", {"tau": 0.5}),
            Refused(InvalidRequest, "z_loss.*greater than or equal to 0", {"z_loss": -1.0}),
        ),
    ),
    Case(
        "cross_entropy",
        shares,
        extended,
        variant="extended_probabilities",
        parameters=(
            {"z_loss": 0.01, "poly": 1.0},
            {"prior": [0.4, 0.3, 0.2, 0.1], "poly": 1.0, "class_weight": [0.5, 1.0, 2.0, 0.0], "label_smoothing": 0.1},
        ),
        vary={"label_smoothing": (0.0, 0.1, 1.0)},
        refused=(Refused(InvalidRequest, "poly", {"poly": "1"}),),
    ),
    Case(
        "focal",
        indices,
        focal,
        parameters=(
            {},
            {"gamma": 0.0},
            {"gamma": 0.5, "alpha": [0.1, 0.2, 0.3, 1.4]},
            {"gamma": 3.5, "alpha": 0.25, "ignore_index": 1},
            {"alpha": 0.25, "alpha_mode": "foreground", "ignore_index": None},
            {"class_weight": [0.5, 1.0, 2.0, 0.0], "alpha": 2, "ignore_index": -7},
        ),
        vary={"gamma": (0.0, 0.5, 2.0)},
        stated=(
            *(
                Stated(f"certain and right, gamma {gamma}", SATURATED, 0, {"gamma": gamma}, gradient=[[0.0] * 3])
                for gamma in (0.0, 0.5, 2.0)
            ),
            Stated("certain and wrong", {"prediction": [[-1e4, 1e4]], "target": [0]}, 2e4, gradient=[[-1.0, 1.0]]),
            Stated("gamma 0 is cross_entropy", THREE, 0.24889, {"gamma": 0.0}, within=1e-5),
            Stated(
                "the target's class masked",
                {"prediction": [[0.0, -INF]], "target": [1]},
                "Infinity",
                gradient=[[1.0, -1.0]],
                warnings={"non_finite"},
            ),
            ALL_IGNORED,
            ALL_DROPPED,
            NAN_IGNORED,
        ),
        refused=(
            *BAD_CLASS,
            Refused(
                DtypeMismatch,
                r"target has the shape \(1,\) of class indices and the dtype float64",
                inputs={"prediction": [[0.0, 1.0]], "target": [0.0]},
            ),
            Refused(InvalidRequest, "alpha has 3 entries, prediction has 4", {"alpha": [1.0, 1.0, 1.0]}),
            Refused(InvalidRequest, "needs alpha as one number", {"alpha": [1.0] * 4, "alpha_mode": "foreground"}),
            Refused(InvalidRequest, "needs alpha as one number", {"alpha": 1.5, "alpha_mode": "foreground"}),
            Refused(InvalidRequest, "gamma.*greater than or equal to 0", {"gamma": -1.0}),
            Refused(InvalidRequest, "did you mean gamma", {"gama": 1.0}),
        ),
    ),
    Case(
        "focal",
        shares,
        focal_of_shares,
        variant="probabilities",
        parameters=(
            {},
            {"gamma": 0.5, "alpha": [0.1, 0.2, 0.3, 1.4], "class_weight": [0.5, 1.0, 2.0, 0.0]},
            {"alpha": 0.25, "alpha_mode": "foreground", "label_smoothing": 0.1},
        ),
        vary={"gamma": (0.0, 0.5, 2.0)},
        stated=(
            *(
                Stated(
                    f"certain and right, gamma {gamma}",
                    {"prediction": [[-1e4, 1e4, 0.0]], "target": [[0.0, 1.0, 0.0]]},
                    0,
                    {"gamma": gamma},
                    gradient=[[0.0] * 3],
                )
                for gamma in (0.0, 0.5, 2.0)
            ),
            Stated(
                "masked and not expected",
                {"prediction": [[0.0, 0.0, -INF]], "target": [[0.5, 0.5, 0.0]]},
                0.25 * float(np.log(2)),
                gradient=[[0.0, 0.0, 0.0]],
            ),
            Stated(
                "several classes at once",
                {"prediction": np.zeros((1, 2)), "target": [[1, 1]]},
                0.5 * float(np.log(2)),
                warnings={"not_a_distribution", "zero_gradient"},
            ),
        ),
        refused=(
            Refused(
                InvalidValue,
                r"found -0.5 at target\[0, 1\]",
                inputs={"prediction": [[0.0, 0.0]], "target": [[1.0, -0.5]]},
            ),
        ),
    ),
    Case(
        "focal",
        indices,
        focal_of_shares,
        variant="smoothed",
        parameters=(
            {"label_smoothing": 0.1},
            {"label_smoothing": 0.2, "ignore_index": 2, "class_weight": [0.5, 1.0, 2.0, 3.0], "alpha": 0.5},
        ),
        vary={"gamma": (0.0, 0.5, 2.0)},
        stated=(
            Stated(
                "gamma 0 is cross_entropy",
                {"prediction": [[2.0, 0.0]], "target": [0]},
                float(np.log1p(np.exp(-2))) + 0.1,
                {"gamma": 0.0, "label_smoothing": 0.1},
            ),
        ),
        refused=(Refused(InvalidRequest, "label_smoothing", {"label_smoothing": -0.1}),),
    ),
    Case(
        "nll",
        log_probabilities,
        nll,
        parameters=({}, {"class_weight": [0.5, 1.0, 2.0, 0.0], "ignore_index": 2}, {"ignore_index": None}),
        stated=(
            ALL_IGNORED,
            ALL_DROPPED,
            Stated("another class masked", {"prediction": [[0.0, -INF]], "target": [0]}, 0, gradient=[[-1.0, 0.0]]),
            Stated(
                "scores that are no log-probabilities",
                {"prediction": [[2.0, -1.0], [3.0, -1.0]], "target": [0, 1]},
                -0.5,
                warnings={"positive_log_probability"},
            ),
            Stated(
                "scores that are none where they do not count",
                {"prediction": [[2.0, -1.0], [3.0, -1.0], [4.0, -1.0]], "target": [-100, 1, 1]},
                1.0,
                warnings=set(),
            ),
        ),
        refused=BAD_CLASS,
    ),
    Case(
        "kl_div",
        distributions,
        kl_div,
        parameters=({}, {"log_target": True}, {"reduction": "mean"}),
        stated=(
            Stated(
                "nothing expected, nothing possible",
                {"prediction": [[0.0, -INF]], "target": [[1.0, 0.0]]},
                0,
                gradient=[[-1.0, 0.0]],
            ),
            Stated(
                "the same as logarithms",
                {"prediction": [[0.0, -INF]], "target": [[0.0, -INF]]},
                0,
                {"log_target": True},
                gradient=[[-1.0, 0.0]],
            ),
            Stated(
                "batchmean",
                {"prediction": np.log([[0.5, 0.5]] * 2), "target": [[1, 0]] * 2},
                float(np.log(2)),
                warnings=set(),
            ),
            # Scores instead of log-probabilities: less than no divergence.
            Stated(
                "scores", {"prediction": [[2.0, 0.0]], "target": [[1.0, 0.0]]}, -2, warnings={"negative_divergence"}
            ),
            # Half of a distribution: 0.5 ln 0.5 - 0.5 ln 0.9.
            Stated(
                "half a target",
                {"prediction": np.log([[0.9, 0.1]]), "target": [[0.5, 0.0]]},
                float(0.5 * np.log(0.5 / 0.9)),
                warnings={"negative_divergence", "not_a_distribution"},
            ),
            Stated(
                "mean",
                {"prediction": np.log([[0.5, 0.5]] * 2), "target": [[1, 0]] * 2},
                float(np.log(2)) / 2,
                {"reduction": "mean"},
            ),
        ),
        refused=(
            Refused(
                InvalidValue,
                r"probabilities expected in \[0, 1\], found 2 at target\[0, 1\]",
                inputs={"prediction": [[0.0, 0.0]], "target": [[0.0, 2.0]]},
            ),
            Refused(
                ShapeMismatch,
                r"target has shape \(1, 3\), expected \(1, 2\)",
                inputs={"prediction": [[0.0, 0.0]], "target": [[0.0, 0.5, 0.5]]},
            ),
        ),
    ),
    Case(
        "soft_f1",
        flat,
        soft_f1,
        parameters=({}, {"eps": 0.1}, {"absent": "ignore"}),
        vary={"eps": (1e-7, 1e-3, 0.4)},
        stated=(
            Stated("perfect, a class absent", PERFECT, 1 / 3, {"absent": "penalize"}),
            Stated("perfect, a class absent and left out", PERFECT, 0, {"absent": "ignore"}),
            # The class of two is clipped to 1−eps, the absent one to eps; that of one has P = R = 1 / 1.1.
            Stated("clipped at both ends", PERFECT, (0.1 + 1 - 2 / 1.1**2 / (2 / 1.1 + 0.1) + 0.9) / 3, {"eps": 0.1}),
            # TP, FP and FN are ½ each: P = R = ½ / 1.1, F1 = 2P² / (2P + 0.1).
            Stated(
                "undecided",
                {"prediction": [[0.0, 0.0]] * 2, "target": [0, 1]},
                1 - 2 * (0.5 / 1.1) ** 2 / (1 / 1.1 + 0.1),
                {"eps": 0.1},
            ),
        ),
        refused=(
            OUT_OF_RANGE,
            Refused(InvalidRequest, "eps.*greater than 0", {"eps": 0.0}),
            Refused(InvalidRequest, "eps.*less than 0.5", {"eps": 0.5}),
        ),
    ),
)
