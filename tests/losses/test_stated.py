"""Extreme inputs and numbers to reproduce, as the table states them; and what is refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from evaluating import alone
from lossd.planning import make_plan
from losses.case import Case, Refused, Stated, tensors
from losses.cases import CASES


@pytest.mark.parametrize(("case", "stated"), [pytest.param(c, s, id=f"{c}-{s.title}") for c in CASES for s in c.stated])
def test_comes_out_as_stated(case: Case, stated: Stated) -> None:
    inputs = tensors(stated.inputs, stated.dtype)
    answer = alone({"loss": {"name": case.name, **stated.parameters}}, inputs)
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


@pytest.mark.parametrize(
    ("case", "refused"), [pytest.param(c, r, id=f"{c}-{i}") for c in CASES for i, r in enumerate(c.refused)]
)
def test_is_refused_with_a_message_that_says_what_to_do(case: Case, refused: Refused) -> None:
    parameters = {n: v for n, v in refused.parameters.items() if n in {k for p in case.parameters for k in p}}
    drawn = {n: t for n, t in case.inputs(parameters).items() if refused.inputs.get(n, t) is not None}
    inputs = drawn | tensors(refused.inputs)
    with pytest.raises(refused.error, match=refused.message):
        alone({"loss": {"name": case.name, **refused.parameters}}, inputs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_default_request_wants_the_prediction_or_every_differentiable_input(case: Case) -> None:
    differentiable = make_plan({"loss": {"name": case.name}}).loss.differentiable
    answer = alone({"loss": {"name": case.name}}, case.inputs(case.parameters[0]))
    assert set(answer.gradients) == ({"prediction"} if "prediction" in differentiable else set(differentiable))
