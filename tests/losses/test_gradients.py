"""Gradients: autograd against finite differences, and what is written out against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lossd.evaluation.validation import INDICES
from lossd.losses import REGISTRY, softmax
from lossd.losses.autograd import vjp
from lossd.losses.registry import Loss, Unreduced
from losses.case import Case, Parameters
from losses.cases import CASES
from losses.test_values import ROWS
from rows import each_row


def arguments(loss: Loss, parameters: Parameters) -> dict[str, object]:
    values = {p.name: p.default for p in loss.parameters} | dict(parameters)
    numbers = {p.name for p in loss.parameters if p.varies}
    return {name: float(v) if name in numbers and isinstance(v, int) else v
            for name, v in values.items() if name != "reduction"}  # fmt: skip


def computed(loss: Loss, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs as the evaluation hands them on: all but class indices are floats."""
    target_like = {i.name for i in loss.inputs if any(t.domain in INDICES for t in i.types)}
    return {n: t if n in target_like or t.is_floating_point() else t.double() for n, t in inputs.items()}


@each_row(row for row in ROWS if not row.values[0].held_constant)
def test_autograd_equals_finite_differences(case: Case, parameters: Parameters) -> None:
    loss = REGISTRY[case.name]
    inputs = computed(loss, case.inputs(parameters, n=3, seed=1))
    leaves = [inputs[name].clone().requires_grad_() for name in loss.differentiable]

    def value(*leaves: Tensor) -> Tensor:
        unreduced = loss.function(
            **{**inputs, **dict(zip(loss.differentiable, leaves, strict=True))}, **arguments(loss, parameters)
        )
        return unreduced.value if isinstance(unreduced, Unreduced) else unreduced

    assert torch.autograd.gradcheck(value, leaves, fast_mode=True)


def both(
    loss: Loss, inputs: dict[str, Tensor], options: dict[str, object]
) -> tuple[tuple[Tensor, Tensor | None, dict[str, Tensor]], tuple[Tensor, Tensor | None, dict[str, Tensor]]]:
    """Value, weight and gradients, by the closed form and by autograd, of one random upstream gradient."""
    leaves = {name: inputs[name].clone().requires_grad_() for name in loss.differentiable}
    plain = loss.function(**{**inputs, **leaves}, **options)
    value, weight = (plain.value, plain.weight) if isinstance(plain, Unreduced) else (plain, None)
    factor = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(0))
    gradients = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), factor), strict=True))
    weights: list[Tensor | None] = []

    def upstream(weight: Tensor | None) -> Tensor:
        weights.append(weight)
        return factor

    written = {name: torch.full_like(inputs[name], torch.nan) for name in loss.differentiable}
    with torch.no_grad():
        closed = loss.closed_forms[0](upstream, written, **inputs, **options)
    own_value, own_weight = (closed.value, closed.weight) if isinstance(closed, Unreduced) else (closed, None)
    assert len(weights) == 1, "the upstream gradient is asked for once"
    if own_weight is None:
        assert weights == [None]
    else:
        assert weights[0] is not None
        torch.testing.assert_close(weights[0], own_weight)
    return (own_value, own_weight, written), (value.detach(), weight, gradients)


CLOSED = [row for row in ROWS if REGISTRY[row.values[0].name].closed_forms]


@pytest.mark.parametrize("blocked", [False, True], ids=["whole", "blocked"])
@each_row(CLOSED)
def test_what_is_written_out_equals_autograd(
    case: Case, parameters: Parameters, blocked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocked:
        monkeypatch.setattr(softmax, "BLOCK_ELEMENTS", 16)
    loss = REGISTRY[case.name]
    closed, plain = both(loss, computed(loss, case.inputs(parameters, n=7)), arguments(loss, parameters))
    torch.testing.assert_close(closed, plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", [c for c in CASES if REGISTRY[c.name].closed_forms and c.vary], ids=str)
@pytest.mark.parametrize("blocked", [False, True], ids=["whole", "blocked"])
def test_what_is_written_out_equals_autograd_with_a_number_for_each_row(
    case: Case, blocked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocked:
        monkeypatch.setattr(softmax, "BLOCK_ELEMENTS", 16)
    loss = REGISTRY[case.name]
    inputs = computed(loss, case.inputs({}, n=7))
    with torch.no_grad():
        plain = loss.function(**inputs, **arguments(loss, {}))
    ndim = (plain.value if isinstance(plain, Unreduced) else plain).ndim
    numbers = {
        name: torch.tensor([values[i % len(values)] for i in range(7)], dtype=torch.float64).reshape(
            -1, *(1,) * (ndim - 1)
        )
        for name, values in case.vary.items()
    }
    closed, plain = both(loss, inputs, arguments(loss, {}) | numbers)
    torch.testing.assert_close(closed, plain, rtol=1e-12, atol=1e-13)


def test_a_vjp_is_what_torch_documents() -> None:
    """It calls what torch.autograd.grad ends in, by an undocumented name."""
    random = torch.Generator().manual_seed(0)
    x, absent = (torch.randn(6, 3, generator=random, dtype=torch.float64).requires_grad_() for _ in range(2))
    value, upstream = (x.sigmoid() * x).logsumexp(1), torch.randn(6, generator=random, dtype=torch.float64)
    first, zero = vjp(value, [x, absent], upstream, twice=True)
    expected, _ = torch.autograd.grad(value, [x, absent], upstream, create_graph=True, materialize_grads=True)
    assert torch.equal(first, expected)
    assert torch.equal(zero, torch.zeros_like(absent))
    second = vjp(first, [x], torch.ones_like(first), keep=True)
    assert torch.equal(*second, *torch.autograd.grad(expected, x, torch.ones_like(expected), retain_graph=True))
    assert torch.equal(*second, *vjp(first, [x], torch.ones_like(first)))
    assert torch.equal(*vjp(zero, [absent], torch.ones_like(zero)), torch.zeros_like(absent))
    assert torch.equal(*vjp(upstream, [absent], upstream), torch.zeros_like(absent))
