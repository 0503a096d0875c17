"""The policy-gradient loss under masks, in parts of a batch, and where naive ratios have no gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from evaluating import Evaluated, Tensors, alone, together
from losses.case import Case, Parameters
from losses.cases_policy import AVERAGES, CASES, policy_gradient
from losses.test_dropped import compare

ROWS = [(case, parameters) for case in CASES for parameters in case.parameters]
KEEP = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.bool)


def request(parameters: Parameters, **more: Any) -> dict[str, Any]:
    return {"loss": {"name": "policy_gradient", **parameters, **more}, "outputs": ["loss", "gradient"]}


@pytest.mark.parametrize(("case", "parameters"), ROWS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_tokens_under_a_mask_are_not_there(case: Case, parameters: Parameters, reduction: str) -> None:
    tensors = case.inputs(parameters)
    leaf = tensors["prediction"].clone().requires_grad_()
    value, weight = policy_gradient(**{**tensors, "prediction": leaf}, mask=KEEP, **parameters)
    below = float(weight.sum()) if reduction == "mean" else 1.0
    query = request(parameters, reduction=reduction)
    under = {1: ~KEEP.any(1), 2: ~KEEP}
    sent = {name: tensor.masked_fill(under[tensor.ndim], math.nan) for name, tensor in tensors.items()} | {"mask": KEEP}
    found = alone(query, sent)
    assert found.loss == pytest.approx(value.sum().item() / below, rel=1e-12, abs=1e-14)
    assert found.denominator == float(weight.sum())
    expected = torch.autograd.grad(value.sum() / below, leaf)[0]
    torch.testing.assert_close(found.gradient(), expected, rtol=1e-11, atol=1e-13)
    assert not found.gradient()[~KEEP].any()
    batched, whole = together([query] * 2, [sent, {**tensors, "mask": KEEP | True}])
    assert isinstance(batched, Evaluated)
    assert isinstance(whole, Evaluated)
    compare(batched.document, found.document)
    assert torch.equal(batched.gradient(), found.gradient())
    assert whole.loss == pytest.approx(alone(query, tensors).loss, rel=1e-13)


@pytest.mark.parametrize("parameters", [{}, *AVERAGES, {"form": "gspo", **AVERAGES[0]}], ids=str)
def test_parts_of_a_batch_add_up_to_it(parameters: Parameters) -> None:
    """The mean of means would not: the parts have different numbers of tokens and of sequences."""
    tensors = CASES[0].inputs(parameters, n=9)
    lengths = torch.tensor([4, 1, 0, 2, 3, 0, 4, 1, 2])
    whole = alone(request(parameters), {**tensors, "lengths": lengths})
    parts = [
        alone(request(parameters), {name: t[rows] for name, t in {**tensors, "lengths": lengths}.items()})
        for rows in (slice(0, 2), slice(2, 3), slice(3, 9))
    ]
    below = math.fsum(part.denominator for part in parts)
    assert below == whole.denominator
    assert math.fsum(part.numerator for part in parts) / below == pytest.approx(whole.loss, rel=1e-13)
    summed = [part.gradient() * part.denominator / below for part in parts]
    torch.testing.assert_close(torch.cat(summed), whole.gradient(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("parameters", [{}, *AVERAGES], ids=str)
def test_nothing_sampled(parameters: Parameters) -> None:
    tensors = CASES[0].inputs(parameters, n=2)
    answer = alone(request(parameters), {**tensors, "lengths": torch.zeros(2, dtype=torch.int64)})
    assert answer.loss == 0
    assert not answer.gradient().any()
    # All sequences count in the mean by a constant, those without tokens too.
    code = "zero_gradient" if parameters.get("aggregation") == "constant" else "nothing_to_average"
    assert answer.warnings == {code}


def one(log_ratio: float, advantage: float, dtype: torch.dtype) -> Tensors:
    numbers = {"prediction": -0.5, "sampled": -0.5 - log_ratio, "advantage": advantage}
    return {name: torch.tensor([[number]], dtype=dtype) for name, number in numbers.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["ppo", "gspo", "cispo", "sapo"])
@pytest.mark.parametrize("log_ratio", [199.0, 5000.0, -5000.0])
@pytest.mark.parametrize("advantage", [1.0, 0.0])
def test_a_ratio_that_overflows_has_a_finite_gradient(
    form: str, dtype: torch.dtype, log_ratio: float, advantage: float
) -> None:
    """min(e^199, 1.2) differentiated as it stands is 0 times infinity."""
    answer = alone(request({"form": form}), one(log_ratio, advantage, dtype))
    assert math.isfinite(answer.loss)
    assert answer.gradient().isfinite().all()
    if form in ("ppo", "gspo", "sapo") and log_ratio > 0:
        assert answer.gradient().item() == 0


def test_small_divergences_keep_their_digits() -> None:
    """e^d - d - 1 of d = 1e-4 has three digits left in float32."""
    tensors = {"prediction": [[-1.0]], "advantage": [[0.0]], "reference": [[-1.0 + 2.0**-13]]}
    query = request({"form": "reinforce", "kl_weight": 1.0})
    answer = alone(query, {name: torch.tensor(values) for name, values in tensors.items()})
    d = 2.0**-13
    assert answer.loss == pytest.approx(d * d / 2 + d**3 / 6 + d**4 / 24, rel=1e-9)


def test_gspo_through_tokens_agrees_under_sequence_means() -> None:
    """verl: the ratio of the sequence held constant, times each token's own e^(p - sg(p))."""
    tensors = CASES[0].inputs({}, n=6)
    tensors["advantage"] = tensors["advantage"][:, 0].abs()
    parameters = {"form": "gspo", "ratio_min": 0.1, "ratio_max": 10.0, **AVERAGES[0]}
    leaf = tensors["prediction"].clone().requires_grad_()
    ratio = torch.exp((leaf - tensors["sampled"]).mean(1, keepdim=True)).detach() * torch.exp(leaf - leaf.detach())
    of_verl = -(ratio * tensors["advantage"].unsqueeze(1)).mean(1).mean()
    answer = alone(request(parameters), tensors)
    assert answer.loss == pytest.approx(of_verl.item(), rel=1e-13)
    torch.testing.assert_close(answer.gradient(), torch.autograd.grad(of_verl, leaf)[0])


@pytest.mark.parametrize("parameters", [{}, *AVERAGES, {"form": "gspo", **AVERAGES[1]}], ids=str)
def test_weights_of_tokens(parameters: Parameters) -> None:
    tensors = CASES[0].inputs({})
    leaf = tensors["prediction"].clone().requires_grad_()
    weight = torch.arange(20, dtype=torch.float64).reshape(5, 4) * KEEP
    keep = weight > 0  # the first token has the weight 0
    form = {name: parameters[name] for name in parameters if name == "form"}
    each, _ = policy_gradient(**{**tensors, "prediction": leaf}, mask=keep, **form)
    totals = (each * weight).sum(1)
    expected = {
        "token_mean": lambda: totals.sum() / weight.sum(),
        "sequence_mean": lambda: (totals / weight.sum(1).clamp(min=1)).sum() / 4,
        "sequence_sum": lambda: totals.sum() / 4,
        "constant": lambda: totals.sum() / 8.0 / 5,
    }[parameters.get("aggregation", "token_mean")]()
    found = alone(request(parameters), {**tensors, "element_weight": weight})
    assert found.loss == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(found.gradient(), torch.autograd.grad(expected, leaf)[0], rtol=1e-11, atol=1e-13)
    both = alone(request(parameters), {**tensors, "element_weight": weight + 1.0 * ~KEEP, "mask": KEEP})
    assert both.loss == found.loss


@pytest.mark.parametrize("prediction", [-math.inf, -1e4, 1e4], ids=str)
@pytest.mark.parametrize("form", ["ppo", "importance_sampling", "cispo", "gspo", "sapo", "reinforce"])
def test_a_token_without_advantage_adds_nothing(form: str, prediction: float) -> None:
    """Padding that is not masked: 0 times infinity is not a number."""
    inputs = {"prediction": [[-0.5], [prediction]], "sampled": [[-0.5], [-1.0]], "advantage": [[1.0], [0.0]]}
    tensors = {name: torch.tensor(values) for name, values in inputs.items()}
    found = alone(request({"form": form, "reduction": "sum"}), tensors)
    whole = alone(request({"form": form, "reduction": "sum"}), {name: t[:1] for name, t in tensors.items()})
    assert found.loss == whole.loss
    assert found.gradient()[:1].equal(whole.gradient())
    assert found.gradient()[1].item() == 0


def test_a_penalty_that_one_request_wants_leaves_another_alone() -> None:
    far = {"prediction": [[-900.0]], "sampled": [[-900.0]], "advantage": [[1.0]], "reference": [[-0.5]]}
    tensors = {name: torch.tensor(values) for name, values in far.items()}
    requests = [request({"kl_weight": 0.0}), request({"kl_weight": 0.1})]
    without, _ = together(requests, [tensors] * 2)
    assert isinstance(without, Evaluated)
    assert without.loss == alone(requests[0], tensors).loss == -1
    assert without.gradient().item() == -1


def test_metrics_of_tokens_that_count() -> None:
    """Ratios e^0.5 of an advantage of 1, e^-0.5 of -1; the third token is under the mask."""
    ratios = np.exp([0.5, -0.5])
    inputs = {
        "prediction": [[-1.0, -2.0, math.nan]],
        "sampled": [[-1.5, -1.5, -9.0]],
        "advantage": [[1.0, -1.0, 1.0]],
        "reference": [[-1.2, -1.8, 0.0]],
    }
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in inputs.items()}
    query = {"loss": {"name": "policy_gradient"}, "outputs": ["metrics"]}
    found = alone(query, {**tensors, "mask": torch.tensor([[True, True, False]])}).document["metrics"]
    expected = {
        "clip_low": 0.5, "clip_high": 0.5, "mean_ratio": ratios.mean(), "max_ratio": ratios.max(),
        "sampling_kl_k1": 0.0, "sampling_kl_k3": ratios.mean() - 1,
        "reference_kl_k1": 0.0, "reference_kl_k3": (math.expm1(-0.2) + math.expm1(0.2)) / 2,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-12)
    del tensors["sampled"], tensors["reference"]
    query["loss"]["form"] = "reinforce"
    without = alone(query, {**tensors, "mask": torch.tensor([[True, True, False]])}).document["metrics"]
    assert [without[name] for name in expected] == [None] * 8


def test_rewards_of_dpo_are_those_of_the_loss() -> None:
    inputs = {
        "chosen": [-10.0, -3.0], "rejected": [-12.0, -2.0],
        "reference_chosen": [-10.5, -2.0], "reference_rejected": [-11.7, -2.5],
    }  # fmt: skip
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in inputs.items()}
    found = alone({"loss": {"name": "dpo", "beta": 0.5}, "outputs": ["metrics"]}, tensors).document["metrics"]
    expected = {
        "preference_accuracy": 0.5, "mean_margin": 0.5 * (0.8 - 1.5) / 2,
        "mean_chosen_reward": 0.5 * (0.5 - 1.0) / 2, "mean_rejected_reward": 0.5 * (-0.3 + 0.5) / 2,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)
