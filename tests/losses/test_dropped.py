"""A sample of weight 0 is as if it had not been sent, whatever it holds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluating import Evaluated, alone, together
from lossd.losses import REGISTRY
from lossd_client.errors import InvalidValue
from losses.case import Case, Parameters
from losses.test_values import ROWS
from rows import each_row

KEPT = [0, 2, 4]
DROPPED = [1, 3]
OF_ROWS = [row for row in ROWS if REGISTRY[row.values[0].name].kind == "rows"]
NAN = math.nan


def poisoned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with rows that no check would let pass, and that no sum survives."""
    spoiled = {}
    for name, tensor in tensors.items():
        entry = NAN if tensor.is_floating_point() else 99
        spoiled[name] = tensor.clone().index_fill_(0, torch.tensor(DROPPED), entry)
    return spoiled


def same(answer: Evaluated, without: Evaluated) -> None:
    left = dict(answer.document)
    right = dict(without.document)
    assert left.pop("diagnostics")["warnings"] == right.pop("diagnostics")["warnings"]
    assert answer.document["diagnostics"]["valid_count"] == without.document["diagnostics"]["valid_count"]
    compare(left, right)
    for name, gradient in answer.gradients.items():
        torch.testing.assert_close(gradient[KEPT], without.gradients[name])
        assert not gradient[DROPPED].any()


def compare(found: Any, expected: Any) -> None:
    """Documents, whose numbers agree to the last digits."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            compare(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            compare(one, other)
    elif isinstance(expected, float) and isinstance(found, float):
        assert found == expected or math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)
    else:
        assert found == expected


@each_row(OF_ROWS)
def test_a_dropped_sample_changes_nothing(case: Case, parameters: Parameters) -> None:
    tensors = case.inputs(parameters, n=5)
    request = {"loss": {"name": case.name, **parameters}, "outputs": ["loss", "gradient", "metrics"]}
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.5])
    without = alone(request, {name: t[KEPT] for name, t in tensors.items()} | {"sample_weight": weight[KEPT]})
    same(alone(request, poisoned(tensors) | {"sample_weight": weight}), without)
    if parameters is not case.parameters[0]:  # none is read where a batch's samples are dropped
        return
    whole = {**tensors, "sample_weight": torch.ones(5)}
    batched, neighbour = together([request] * 2, [poisoned(tensors) | {"sample_weight": weight}, whole])
    assert isinstance(batched, Evaluated)
    assert isinstance(neighbour, Evaluated)
    same(batched, without)
    compare(neighbour.document["loss"], alone(request, whole).document["loss"])


def test_a_target_that_is_missing() -> None:
    inputs = {
        "prediction": torch.tensor([1.0, 5.0, 2.0]),
        "target": torch.tensor([0.0, NAN, 0.0]),
        "sample_weight": torch.tensor([1.0, 0.0, 1.0]),
    }
    answer = alone({"loss": {"name": "mse"}}, inputs)
    assert answer.loss == 2.5
    assert answer.gradient().tolist() == [1.0, 0.0, 2.0]
    every = alone({"loss": {"name": "mse", "reduction": "none"}}, inputs)
    assert every.loss.tolist() == [1.0, 0.0, 4.0]
    nothing = alone({"loss": {"name": "mse"}}, {**inputs, "sample_weight": torch.zeros(3)})
    assert nothing.loss == 0
    assert nothing.warnings == {"nothing_to_average"}
    with pytest.raises(InvalidValue, match=r'found NaN at target\[1\]; set nan_targets to "ignore"'):
        alone({"loss": {"name": "mse"}}, {**inputs, "sample_weight": torch.tensor([1.0, 1e-30, 1.0])})


def test_a_weight_that_is_no_number_drops_nothing() -> None:
    inputs = {"prediction": torch.ones(2), "target": torch.tensor([0.0, NAN])}
    with pytest.raises(InvalidValue, match=r"found NaN at sample_weight\[1\]|found NaN at target\[1\]"):
        alone({"loss": {"name": "mse"}}, {**inputs, "sample_weight": torch.tensor([1.0, NAN])})


@pytest.mark.parametrize(
    ("task", "target"),
    [
        ("regression", torch.tensor([1.0, NAN, 0.5])),
        ("binary", torch.tensor([1.0, NAN, 0.0])),
        ("distances", torch.tensor([1, 7, -1])),
    ],
)
def test_metrics_alone_do_not_see_it(task: str, target: Tensor) -> None:
    prediction, weight = torch.tensor([0.7, NAN, -0.2]), torch.tensor([1.0, 0.0, 3.0])
    request = {"task": task, "outputs": ["metrics"]}
    found = alone(request, {"prediction": prediction, "target": target, "sample_weight": weight})
    kept = {"prediction": prediction[[0, 2]], "target": target[[0, 2]], "sample_weight": weight[[0, 2]]}
    compare(found.document["metrics"], alone(request, kept).document["metrics"])


def test_a_composed_loss_leaves_its_terms_to_their_weights() -> None:
    inputs = {
        "prediction": torch.tensor([1.0, 5.0, 2.0]),
        "target": torch.tensor([0.0, NAN, 0.0]),
        "sample_weight": torch.tensor([1.0, 0.0, 1.0]),
    }
    terms = [{"loss": {"name": "mse"}}, {"loss": {"name": "mae"}, "weight": 2.0}]
    answer = alone({"loss": {"name": "weighted_sum", "terms": terms}}, inputs)
    assert answer.loss == 2.5 + 2 * 1.5
    assert answer.gradient().tolist() == [2.0, 0.0, 3.0]
