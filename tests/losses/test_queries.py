"""Losses of queries of ragged lists: a query with padding is as the query alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evaluating import Evaluated, alone, together
from losses.case import Case, Parameters
from losses.cases_queries import CASES

LENGTHS = torch.tensor([4, 0, 1, 3, 2])
ROWS = [(case, parameters) for case in CASES for parameters in case.parameters]


def padded(case: Case, parameters: Parameters, mask: Tensor) -> dict[str, Tensor]:
    tensors = case.inputs(parameters, n=len(mask))
    return {
        "prediction": tensors["prediction"].masked_fill(~mask, torch.nan),
        "target": tensors["target"].masked_fill(~mask, -7),
    }


def request(case: Case, parameters: Parameters, **more: Any) -> dict[str, Any]:
    return {"loss": {"name": case.name, "reduction": "none", **parameters}, "outputs": ["loss", "gradient"], **more}


@pytest.mark.parametrize("anywhere", [False, True], ids=["behind", "anywhere"])
@pytest.mark.parametrize(("case", "parameters"), ROWS, ids=str)
def test_a_padded_query_is_the_query_alone(case: Case, parameters: Parameters, anywhere: bool) -> None:
    mask = torch.arange(4) < LENGTHS.unsqueeze(1)
    mask = mask.flip(1) if anywhere else mask
    inputs = padded(case, parameters, mask)
    found = alone(request(case, parameters), {**inputs, "mask": mask})
    for row, keep in enumerate(mask):
        gradient = found.gradient()[row]
        assert not gradient[~keep].any()
        if not keep.any():
            assert found.loss[row] == 0
            continue
        query = {name: tensor[row, keep].unsqueeze(0) for name, tensor in inputs.items()}
        expected = alone(request(case, parameters), query)
        torch.testing.assert_close(found.loss[row], expected.loss[0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient[keep], expected.gradient()[0], rtol=1e-12, atol=1e-14)
    mean = {**request(case, parameters), "loss": {"name": case.name, **parameters}}
    whole = alone(mean, {**inputs, "mask": mask})
    queries = [
        alone(mean, {name: tensor[row, keep].unsqueeze(0) for name, tensor in inputs.items()})
        for row, keep in enumerate(mask)
        if keep.any()
    ]
    assert whole.denominator == sum(query.denominator for query in queries)
    assert whole.numerator == pytest.approx(sum(query.numerator for query in queries), rel=1e-12)


@pytest.mark.parametrize(("case", "parameters"), ROWS, ids=str)
def test_lengths_are_masks_and_share_a_batch(case: Case, parameters: Parameters) -> None:
    mask = torch.arange(4) < LENGTHS.unsqueeze(1)
    inputs = padded(case, parameters, mask)
    by_mask = alone(request(case, parameters), {**inputs, "mask": mask})
    by_length = {**inputs, "lengths": LENGTHS}
    single = [{name: tensor[row : row + 1] for name, tensor in by_length.items()} for row in (0, 2, 4)]
    batch = together([request(case, parameters)] * 4, [by_length, *single])
    for answer, rows in zip(batch, (slice(None), slice(0, 1), slice(2, 3), slice(4, 5)), strict=True):
        assert isinstance(answer, Evaluated)
        assert torch.equal(answer.loss, by_mask.loss[rows])
        assert torch.equal(answer.gradient(), by_mask.gradient()[rows])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_second_derivatives_under_a_mask(case: Case) -> None:
    mask = torch.arange(4) < LENGTHS.unsqueeze(1)
    inputs = padded(case, {}, mask)
    body = request(case, {}, outputs=["hessian", "hvp"])
    ones = torch.ones_like(inputs["prediction"])
    found = alone(body, {**inputs, "mask": mask, "direction": ones})
    for row, keep in enumerate(mask):
        for name in ("hessian.prediction", "hvp.prediction"):
            assert not found.tensors[name][row][~keep].any()
        if keep.any():
            query = {name: tensor[row, keep].unsqueeze(0) for name, tensor in inputs.items()}
            of_query = alone(body, {**query, "direction": ones[row, keep].unsqueeze(0)})
            for name in ("hessian.prediction", "hvp.prediction"):
                torch.testing.assert_close(
                    found.tensors[name][row, keep], of_query.tensors[name][0], rtol=1e-10, atol=1e-12
                )


def test_a_ranking_that_is_right_costs_less() -> None:
    target = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    for case in CASES:
        right, wrong = (
            float(alone({"loss": {"name": case.name}}, {"prediction": scores, "target": target}).loss)
            for scores in (target, target.flip(1))
        )
        assert right < wrong, case.name


def test_xgboosts_form_is_twice_the_second_derivative() -> None:
    inputs = CASES[0].inputs({})
    for name in ("ranknet", "lambda_loss"):
        exact, xgboost = (
            alone({"loss": {"name": name}, "outputs": ["hessian"], "hessian": {"form": form}}, inputs)
            for form in ("exact", "xgboost")
        )
        counted = exact.tensors["hessian.prediction"] > 0
        assert counted.any()
        doubled = 2 * exact.tensors["hessian.prediction"][counted]
        torch.testing.assert_close(xgboost.tensors["hessian.prediction"][counted], doubled, rtol=1e-12, atol=0)
