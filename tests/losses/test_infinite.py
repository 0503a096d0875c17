"""Infinite scores that are right cost nothing; those that are wrong cost infinitely much, and the answer says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from evaluating import alone
from rows import in_one_item

INF = math.inf
SIGMOID = 1 / (1 + math.exp(-0.5))
SOFTPLUS = math.log1p(math.exp(-0.5))  # of -1/2
# Of the classes 0 and 1 with scores 0 and 1.
SECOND = 1 / (1 + math.exp(-1))
NLL = math.log1p(math.exp(-1))


def evaluated(loss: Mapping[str, Any], inputs: Mapping[str, Any], dtype: torch.dtype) -> Any:
    tensors = {
        name: t.to(dtype) if (t := torch.as_tensor(np.asarray(value))).is_floating_point() else t
        for name, value in inputs.items()
    }
    return alone({"loss": loss, "outputs": ["loss", "gradient"]}, tensors)


LOGITS = {"prediction": [[-INF, 0.5]], "target": [[0, 1]]}
CLASSES = {"prediction": [[-INF, 0.0, 1.0]], "target": [2]}
CERTAIN = {"prediction": [[INF, 0.0, -INF], [0.0, 0.0, 1e4]], "target": [0, 2]}
MASKED = [0.0, 1 - SECOND, SECOND - 1]
DENSE = {"prediction": [[[INF, -INF], [0.0, 5.0]]], "target": [[0, 1]]}
REGION = {"smooth": 0.0}
ONE_MINUS = 1 - SIGMOID


@in_one_item("dtype", [torch.float32, torch.float64])
@in_one_item("loss, inputs, value, gradient", [
        ({"name": "bce_with_logits"}, LOGITS, SOFTPLUS / 2, [[0.0, -ONE_MINUS / 2]]),
        ({"name": "bce_with_logits"}, {"prediction": [INF, 1.0], "target": [1.0, 0.0]},
         math.log1p(math.e) / 2, [0.0, SECOND / 2]),
        ({"name": "bce_with_logits", "pos_weight": 3.0}, LOGITS, 1.5 * SOFTPLUS, [[0.0, -1.5 * ONE_MINUS]]),
        ({"name": "bce_with_logits", "pos_weight": 0.0}, {"prediction": [-INF, 0.0], "target": [1, 0]},
         math.log(2) / 2, [0.0, 0.25]),
        ({"name": "multilabel_soft_margin"}, LOGITS, SOFTPLUS / 2, [[0.0, -ONE_MINUS / 2]]),
        ({"name": "multilabel_soft_margin", "class_weight": [0.0, 1.0]},
         {"prediction": [[INF, 0.5]], "target": [[0, 1]]},
         SOFTPLUS / 2, None),
        # d/dz of f = a (1-p)² softplus(-z) is -a (1-p)² (2 p softplus(-z) + 1 - p).
        ({"name": "sigmoid_focal"}, LOGITS, 0.125 * ONE_MINUS**2 * SOFTPLUS,
         [[0.0, -0.125 * ONE_MINUS**2 * (2 * SIGMOID * SOFTPLUS + ONE_MINUS)]]),
        ({"name": "sigmoid_focal", "gamma": 0.0, "alpha": None}, LOGITS, SOFTPLUS / 2, [[0.0, -ONE_MINUS / 2]]),
        ({"name": "sigmoid_focal", "gamma": 0.5, "alpha": 0.0}, {"prediction": [-INF, INF], "target": [1, 1]}, 0.0,
         [0.0, 0.0]),
        ({"name": "soft_margin"}, {"prediction": [INF, -INF], "target": [1, -1]}, 0.0, [0.0, 0.0]),
        ({"name": "cross_entropy"}, CLASSES, NLL, [MASKED]),
        ({"name": "cross_entropy"}, {"prediction": [[-INF, 0.0, 1.0]], "target": [[0.0, 0.25, 0.75]]},
         NLL + 0.25, [[0.0, 0.75 - SECOND, SECOND - 0.75]]),
        ({"name": "cross_entropy"}, CERTAIN, 0.0, [[0.0] * 3] * 2),
        ({"name": "cross_entropy"}, {"prediction": [[INF, 0.0]], "target": [[1.0, 0.0]]}, 0.0, [[0.0, 0.0]]),
        ({"name": "cross_entropy", "label_smoothing": 0.3, "class_weight": [0.0, 1.0, 1.0]}, CLASSES,
         0.8 * NLL + 0.1 * (1 + NLL), None),
        ({"name": "cross_entropy"}, DENSE, 0.0, [[[0.0, 0.0], [0.0, 0.0]]]),
        ({"name": "focal"}, CERTAIN, 0.0, [[0.0] * 3] * 2),
        ({"name": "focal", "gamma": 0.0}, CLASSES, NLL, [MASKED]),
        ({"name": "nll"}, {"prediction": [[-INF, 0.0]], "target": [1]}, 0.0, [[0.0, -1.0]]),
        ({"name": "kl_div"}, {"prediction": [[-INF, 0.0]], "target": [[0.0, 1.0]]}, 0.0, [[0.0, -1.0]]),
        ({"name": "kl_div", "log_target": True}, {"prediction": [[-INF, 0.0]], "target": [[-INF, 0.0]]}, 0.0,
         [[0.0, -1.0]]),
        ({"name": "poisson_nll"}, {"prediction": [-INF, 0.0], "target": [0.0, 1.0]}, 0.5, [0.0, 0.0]),
        ({"name": "multi_margin"}, CERTAIN, 0.0, [[0.0] * 3] * 2),
        ({"name": "dice", "mode": "binary", **REGION}, {"prediction": [[INF, -INF]], "target": [[1, 0]]}, 0.0,
         [[0.0, 0.0]]),
        ({"name": "dice", **REGION}, DENSE, 0.0, [[[0.0, 0.0], [0.0, 0.0]]]),
        ({"name": "jaccard", **REGION}, DENSE, 0.0, [[[0.0, 0.0], [0.0, 0.0]]]),
        ({"name": "generalized_dice", **REGION}, DENSE, 0.0, [[[0.0, 0.0], [0.0, 0.0]]]),
        ({"name": "lovasz"}, DENSE, 0.0, [[[0.0, 0.0], [0.0, 0.0]]]),
        ({"name": "lovasz", "mode": "binary"}, {"prediction": [[INF, -INF]], "target": [[1, 0]]}, 0.0, [[0.0, 0.0]]),
        ({"name": "bce_dice", "smooth": 0.0}, {"prediction": [[INF, -INF]], "target": [[1, 0]]}, 0.0, [[0.0, 0.0]]),
        ({"name": "ce_dice", "smooth": 0.0}, DENSE, 0.0, [[[0.0, 0.0], [0.0, 0.0]]]),
    ],
)  # fmt: skip
def test_infinite_and_right(
    loss: Mapping[str, Any], inputs: Mapping[str, Any], value: float, gradient: Any, dtype: torch.dtype
) -> None:
    answer = evaluated(loss, inputs, dtype)
    assert answer.loss == pytest.approx(value, rel=1e-6, abs=1e-12)
    assert "non_finite" not in answer.warnings
    if gradient is not None:
        expected = torch.tensor(gradient, dtype=dtype)
        torch.testing.assert_close(answer.gradient(), expected, rtol=1e-5, atol=1e-12)


@in_one_item("dtype", [torch.float32, torch.float64])
@in_one_item(
    "name, inputs",
    [
        ("bce_with_logits", {"prediction": [-INF, 1.0], "target": [0.9, 0.0]}),
        ("sigmoid_focal", {"prediction": [INF], "target": [0]}),
        ("multilabel_soft_margin", {"prediction": [[INF]], "target": [[0]]}),
        ("soft_margin", {"prediction": [-INF], "target": [1]}),
        ("cross_entropy", {"prediction": [[INF, 0.0]], "target": [1]}),
        ("cross_entropy", {"prediction": [[-INF, 0.0]], "target": [0]}),
        ("focal", {"prediction": [[-INF, 0.0]], "target": [0]}),
        ("kl_div", {"prediction": [[-INF, 0.0]], "target": [[0.5, 0.5]]}),
        ("multi_margin", {"prediction": [[INF, 0.0]], "target": [1]}),
        ("mse", {"prediction": [INF], "target": [1.0]}),
    ],
)
def test_infinite_and_wrong(name: str, inputs: Mapping[str, Any], dtype: torch.dtype) -> None:
    answer = evaluated({"name": name}, inputs, dtype)
    assert answer.loss == "Infinity"
    assert "non_finite" in answer.warnings


@in_one_item("prediction", [[[INF, INF, 0.0]], [[-INF, -INF, -INF]], [[INF, math.nan, 0.0]]])
@in_one_item("name", ["cross_entropy", "focal", "soft_f1"])
def test_scores_without_a_softmax_have_none(name: str, prediction: Any) -> None:
    assert evaluated({"name": name}, {"prediction": prediction, "target": [0]}, torch.float32).loss == "NaN"


LEAST, LARGEST = -3.4028234663852886e38, 65504.0


@pytest.mark.parametrize("target", [[1, 1], [1.0, 1.0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_lowest_number_stands_for_minus_infinity(target: Any, dtype: torch.dtype) -> None:
    answer = evaluated({"name": "sigmoid_focal"}, {"prediction": [LEAST, 0.0], "target": target}, dtype)
    # Where p = 0 the loss is -α z; at 0 it is α (1-p)² log 2 with the slope -α/4 (log 2 + 1/2). Over two elements.
    expected = torch.tensor([-0.125, -0.25 / 4 * (math.log(2) + 0.5) / 2], dtype=dtype)
    torch.testing.assert_close(answer.gradient(), expected, rtol=1e-6, atol=0)


@in_one_item("dtype", [torch.float16, torch.float32, torch.float64])
@in_one_item("gamma", [0.0, 0.5, 2.0, 100.0])
@in_one_item("size", ["max", "tiny", "smallest_normal"])
@in_one_item("target", [[1, 0], [1.0, 0.0], [0.5, 0.5]])
def test_sigmoid_focal_is_finite_at_the_limits_of_every_dtype(
    target: Any, size: str, gamma: float, dtype: torch.dtype
) -> None:
    number = getattr(torch.finfo(dtype), size)
    loss = {"name": "sigmoid_focal", "gamma": gamma}
    wrong = evaluated(loss, {"prediction": [-number, number], "target": target}, dtype)
    right = evaluated(loss, {"prediction": [number, -number], "target": target}, dtype)
    # By symmetry: α and 1 - α add up to 1, and soft targets are as far from either.
    each = 0.5 ** (gamma + 2) if target[0] == 0.5 else 0.5
    if size == "max":
        assert wrong.loss == pytest.approx(number * each, rel=2e-3)
        if target[0] != 0.5:
            assert right.loss == 0
            assert wrong.gradient().tolist() == pytest.approx([-0.125, 0.375])
            assert right.gradient().tolist() == [0, 0]
    else:
        factor = math.log(2) * 0.5 ** (gamma + 1)
        within = 1e-2 if dtype == torch.float16 else 1e-5  # whose smallest numbers are not so small
        assert wrong.loss == pytest.approx(factor, rel=within)
        assert right.loss == pytest.approx(factor, rel=within)


def test_metrics_of_a_score_that_is_certain() -> None:
    # The first is certain and right; of the second all classes but one have probability 0, and it is right too.
    request = {"loss": {"name": "cross_entropy"}, "metrics": {"names": ["log_loss", "brier", "ece", "accuracy"]}}
    inputs = {"prediction": torch.tensor([[INF, 0.0, 1.0], [-INF, 2.0, -INF]]), "target": torch.tensor([0, 1])}
    metrics = alone({**request, "outputs": ["loss", "metrics"]}, inputs).document["metrics"]
    assert (metrics["log_loss"], metrics["brier"], metrics["ece"], metrics["accuracy"]) == (0, 0, 0, 1)
