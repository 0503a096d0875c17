"""Value, gradient and reductions against the independent reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluating import alone
from lossd.losses import REGISTRY
from losses.case import Case, Parameters
from losses.cases import CASES
from rows import each_row

ROWS = [
    pytest.param(case, parameters, id=f"{case}-{position}")
    for case in CASES
    for position, parameters in enumerate(case.parameters)
]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@dataclass(frozen=True)
class Expected:
    """The reference's unreduced loss and weights, and the inputs they can be differentiated by."""

    value: Tensor
    weight: Tensor
    leaves: dict[str, Tensor]

    @property
    def total(self) -> float:
        return float(self.value.detach().sum())

    def gradients(self, upstream: Tensor | float) -> dict[str, Tensor]:
        upstream = torch.as_tensor(upstream, dtype=torch.float64).expand_as(self.value)
        grads = torch.autograd.grad(self.value, list(self.leaves.values()), upstream, retain_graph=True)
        return dict(zip(self.leaves, grads, strict=True))


def expected(case: Case, inputs: dict[str, Tensor], parameters: Parameters, reduction: str = "mean") -> Expected:
    differentiable = REGISTRY[case.name].differentiable
    wide = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    leaves = {name: wide[name].clone().requires_grad_() for name in differentiable}
    arguments = {name: value for name, value in parameters.items() if name != "reduction"}
    if REGISTRY[case.name].reads_reduction:
        arguments["reduction"] = reduction
    result = case.reference(**{**wide, **leaves}, **arguments)
    value, weight = result if isinstance(result, tuple) else (result, torch.ones_like(result))
    return Expected(value, weight.detach(), leaves)


def request(case: Case, parameters: Parameters, **more: Any) -> dict[str, Any]:
    gradients = [f"gradient.{name}" for name in REGISTRY[case.name].differentiable]
    return {"loss": {"name": case.name, **parameters, **more}, "outputs": ["loss", *gradients]}


def denominator(case: Case, reference: Expected, parameters: Parameters, sample_weight: Tensor | None = None) -> float:
    reduction = parameters.get("reduction", REGISTRY[case.name].reductions[0])
    rows = torch.ones(len(reference.value), dtype=torch.float64) if sample_weight is None else sample_weight
    if reduction == "batchmean":
        return float(rows.sum())
    return (
        float((reference.weight * over_rows(rows, reference.weight)).sum())
        if sample_weight is not None
        else float(reference.weight.sum())
    )


def over_rows(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (like.ndim - 1))


@each_row(ROWS)
def test_value_and_gradient_equal_the_reference(case: Case, parameters: Parameters) -> None:
    inputs = case.inputs(parameters)
    reference = expected(case, inputs, parameters)
    answer = alone(request(case, parameters), inputs)
    below = denominator(case, reference, parameters)
    assert answer.numerator == pytest.approx(reference.total, rel=1e-10, abs=1e-10)
    assert answer.denominator == pytest.approx(below, rel=1e-12)
    assert answer.loss == pytest.approx(reference.total / below, rel=1e-10, abs=1e-10)
    assert answer.document["diagnostics"]["finite"] is True
    for name, gradient in reference.gradients(1 / below).items():
        torch.testing.assert_close(answer.gradient(name), gradient, **EXACT)
        norm = answer.document["diagnostics"]["gradient_norm"][name]
        assert norm == pytest.approx(float(gradient.norm()), rel=1e-9, abs=1e-12)


@each_row(ROWS)
def test_sum_and_none_equal_the_reference(case: Case, parameters: Parameters) -> None:
    inputs = case.inputs(parameters)
    reference = expected(case, inputs, parameters, "sum")
    gradients = reference.gradients(1.0)
    summed = alone(request(case, parameters, reduction="sum"), inputs)
    unreduced = alone(request(case, parameters, reduction="none"), inputs)
    assert summed.loss == pytest.approx(reference.total, rel=1e-10, abs=1e-10)
    torch.testing.assert_close(unreduced.loss, reference.value.detach(), **EXACT)
    for answer in (summed, unreduced):
        assert answer.denominator == pytest.approx(float(reference.weight.sum()), rel=1e-12)
        for name, gradient in gradients.items():
            torch.testing.assert_close(answer.gradient(name), gradient, **EXACT)


@each_row(ROWS)
def test_cotangent_makes_the_gradient_a_vector_jacobian_product(case: Case, parameters: Parameters) -> None:
    inputs = case.inputs(parameters)
    reference = expected(case, inputs, parameters, "none")
    upstream = torch.linspace(-1, 2, reference.value.numel(), dtype=torch.float64).reshape(reference.value.shape)
    answer = alone(request(case, parameters, reduction="none"), inputs | {"cotangent": upstream})
    for name, gradient in reference.gradients(upstream).items():
        torch.testing.assert_close(answer.gradient(name), gradient, **EXACT)
    if parameters is not case.parameters[0]:  # none is read where a mean's cotangent is
        return
    reference = expected(case, inputs, parameters)
    answer = alone(request(case, parameters), inputs | {"cotangent": torch.tensor(-2.5, dtype=torch.float64)})
    for name, gradient in reference.gradients(-2.5 / denominator(case, reference, parameters)).items():
        torch.testing.assert_close(answer.gradient(name), gradient, **EXACT)


@each_row(r for r in ROWS if REGISTRY[r.values[0].name].kind == "rows")
def test_sample_weights_weigh_numerator_and_denominator(case: Case, parameters: Parameters) -> None:
    inputs = case.inputs(parameters)
    reference = expected(case, inputs, parameters)
    sample_weight = torch.tensor([0.5, 0.0, 2.0, 1.0, 0.25], dtype=torch.float64)
    weights = over_rows(sample_weight, reference.value)
    below = denominator(case, reference, parameters, sample_weight)
    answer = alone(request(case, parameters), inputs | {"sample_weight": sample_weight})
    assert answer.denominator == pytest.approx(below, rel=1e-12)
    assert answer.loss == pytest.approx(float((weights * reference.value).detach().sum()) / below, rel=1e-10, abs=1e-10)
    for name, gradient in reference.gradients(weights / below).items():
        torch.testing.assert_close(answer.gradient(name), gradient, **EXACT)
    unreduced = alone(request(case, parameters, reduction="none"), inputs | {"sample_weight": sample_weight})
    torch.testing.assert_close(unreduced.loss, (weights * reference.value).detach(), **EXACT)


@each_row(ROWS)
def test_single_precision_is_close(case: Case, parameters: Parameters) -> None:
    inputs = case.inputs(parameters, dtype=torch.float32)
    reference = expected(case, inputs, parameters)
    answer = alone(request(case, parameters), inputs)
    below = denominator(case, reference, parameters)
    assert answer.loss == pytest.approx(reference.total / below, rel=1e-5, abs=1e-6)
    for name, gradient in reference.gradients(1 / below).items():
        scale = float(gradient.abs().max())
        assert answer.gradient(name).dtype == torch.float32
        torch.testing.assert_close(answer.gradient(name).double(), gradient, rtol=1e-5, atol=1e-5 * scale)


@each_row(ROWS)
def test_half_precision_equals_single_precision_of_the_rounded_inputs(case: Case, parameters: Parameters) -> None:
    position = case.parameters.index(parameters)
    halves = (torch.float16, torch.bfloat16)
    for dtype in (halves[position % 2],) if position else halves:
        rounded = case.inputs(parameters, dtype=dtype)
        half = alone(request(case, parameters), rounded)
        single = alone(
            request(case, parameters), {n: t.float() if t.is_floating_point() else t for n, t in rounded.items()}
        )
        assert half.document == single.document, dtype
        for name, gradient in single.gradients.items():
            assert half.gradient(name).dtype == torch.float32, dtype
            assert torch.equal(half.gradient(name), gradient), dtype
