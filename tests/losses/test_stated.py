"""Extreme inputs and numbers to reproduce, as the table states them; and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from evaluating import alone
from lossd.request.planning import make_plan
from losses.case import Case, Refused, Stated, tensors
from losses.cases import CASES
from rows import each_row, in_one_item

STATED = [pytest.param(c, s, id=f"{c}-{s.title}") for c in CASES for s in c.stated]


@each_row(STATED, both_ways=True)
def test_comes_out_as_stated(case: Case, stated: Stated) -> None:
    inputs = tensors(stated.inputs, stated.dtype)
    request: dict[str, Any] = {"loss": {"name": case.name, **stated.parameters}}
    if isinstance(stated.gradient, Mapping):
        request["outputs"] = ["loss", *(f"gradient.{name}" for name in stated.gradient)]
    answer = alone(request, inputs)
    if isinstance(stated.loss, str):
        assert answer.loss == stated.loss
    elif stated.loss is not None:
        found = torch.as_tensor(answer.loss, dtype=torch.float64)
        torch.testing.assert_close(
            found, torch.tensor(stated.loss, dtype=torch.float64), rtol=stated.within, atol=stated.within
        )
    if stated.gradient is not None:
        gradients = stated.gradient if isinstance(stated.gradient, Mapping) else {"prediction": stated.gradient}
        for name, gradient in gradients.items():
            found = answer.gradient(name)
            torch.testing.assert_close(found, torch.tensor(gradient, dtype=found.dtype), rtol=stated.within, atol=1e-7)
    if stated.warnings is not None:
        assert answer.warnings == stated.warnings


REST = 1 / (1 + math.exp(17))
NLL = math.log1p(math.exp(-17))
FADED = REST**2 * (1 + 2 * (1 - REST) * NLL / REST)


CERTAIN = [
    ("cross_entropy", [[0.0, 17.0]], [1], NLL, -REST),
    ("focal", [[0.0, 17.0]], [1], REST**2 * NLL, -REST * FADED),
    ("bce_with_logits", [[17.0]], [[1.0]], NLL, -REST),
    ("bce_with_logits", [[-17.0]], [[0.0]], NLL, REST),
    ("multilabel_soft_margin", [[-17.0]], [[0.0]], NLL, REST),
    ("sigmoid_focal", [[17.0]], [[1.0]], 0.25 * REST**2 * NLL, -0.25 * REST * FADED),
    ("sigmoid_focal", [[-17.0]], [[0.0]], 0.75 * REST**2 * NLL, 0.75 * REST * FADED),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_row((pytest.param(*row, id=f"{row[0]}-{row[1]}") for row in CERTAIN), both_ways=True)
def test_what_is_all_but_certain_and_right_keeps_its_digits(
    name: str, prediction: list[list[float]], target: Any, value: float, slope: float, dtype: torch.dtype
) -> None:
    inputs = tensors({"prediction": prediction, "target": target}, dtype)
    both = alone({"loss": {"name": name}}, inputs)
    only = alone({"loss": {"name": name}, "outputs": ["loss"]}, inputs)
    within = 1e-5 if dtype == torch.float32 else 1e-12
    assert [both.loss, only.loss] == pytest.approx([value] * 2, rel=within, abs=0)
    assert both.gradient().flatten()[-1].item() == pytest.approx(slope, rel=within, abs=0)


@each_row(pytest.param(c, r, id=f"{c}-{i}") for c in CASES for i, r in enumerate(c.refused))
def test_is_refused_with_a_message_that_says_what_to_do(case: Case, refused: Refused) -> None:
    parameters = {n: v for n, v in refused.parameters.items() if n in {k for p in case.parameters for k in p}}
    drawn = {n: t for n, t in case.inputs(parameters).items() if refused.inputs.get(n, t) is not None}
    inputs = drawn | tensors(refused.inputs)
    with pytest.raises(refused.error, match=refused.message):
        alone({"loss": {"name": case.name, **refused.parameters}}, inputs)


@in_one_item("case", CASES)
def test_the_default_request_wants_the_prediction_or_every_differentiable_input(case: Case) -> None:
    differentiable = make_plan({"loss": {"name": case.name}}).loss.differentiable
    answer = alone({"loss": {"name": case.name}}, case.inputs(case.parameters[0]))
    assert set(answer.gradients) == ({"prediction"} if "prediction" in differentiable else set(differentiable))
