"""Written losses: what a formula means, what it refuses, and that it never does anything else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from evaluating import alone
from lossd.losses.formula import FormulaError
from lossd.losses.formula_parser import MAX_STEPS, parse
from lossd.losses.operations import OPERATIONS
from lossd.request.planning import make_plan
from lossd_client.errors import InvalidRequest, MissingInput, NotEvaluable, ShapeMismatch, UnknownInput
from rows import in_one_item


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = seeded(4, 3, seed=1), seeded(4, 3, seed=2)
EULER, PER_ROOT = 0.5772156649015329, 2 / math.sqrt(math.pi)
ZERO = torch.zeros(2, 3, dtype=torch.float64)


def value(text: str, tensors: dict[str, Tensor] | None = None, **parameters: float) -> Tensor:
    return parse(text).evaluate({"x": X, "y": Y} if tensors is None else tensors, parameters)


def number(text: str) -> float:
    return float(value(text))


def slope(text: str, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(text, {"x": leaf}).sum(), leaf)
    return gradient


# What a formula means


@in_one_item(
    "text, expected",
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("7 - 2 - 1", 4),
        ("12 / 3 / 2", 2),
        ("2 ** 3 ** 2", 512),
        ("-2 ** 2", -4),
        ("(-2) ** 2", 4),
        ("2 ** -1", 0.5),
        ("2 ** -2 ** 1", 0.25),
        ("--3", 3),
        ("2 - -3", 5),
        ("-2 * -3", 6),
        ("1 + 1 < 3", 1),
        ("2 * 3 == 6", 1),
        ("3 != 3", 0),
        ("2 <= 2", 1),
        ("2 >= 3", 0),
        ("(1 < 2) + (2 > 1)", 2),
        (".5 + 1. + 1e1 + 2.5E-1", 11.75),
        ("a = 3; b = a * a; b - a", 6),
        ("1 / 0", math.inf),
        ("-1 / 0", -math.inf),
        ("9 ** 9 ** 9", math.inf),
        ("9 ** 9 ** 9 ** 9 ** 9", math.inf),
        ("1e308 * 10", math.inf),
        ("9007199254740992 + 1", 9007199254740992.0),
    ],
)
def test_numbers_are_float64_and_operators_bind_as_in_python(text: str, expected: float) -> None:
    assert number(text) == expected


@pytest.mark.parametrize("text", ["0 / 0", "(-8) ** 0.5", "sqrt(-1)", "log(-1)", "9**9**9 - 9**9**9"])
def test_what_has_no_value_is_nan(text: str) -> None:
    assert math.isnan(number(text))


def stirling(z: Tensor) -> Tensor:
    """The logarithm of the gamma function, by Stirling's series of z + 12."""
    shifted, logarithms = z + 12, sum(torch.log(z + k) for k in range(12))
    bernoulli = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
    series = sum(b / shifted ** (2 * k + 1) for k, b in enumerate(bernoulli))
    return (shifted - 0.5) * shifted.log() - shifted + 0.5 * math.log(2 * math.pi) + series - logarithms


FUNCTIONS: list[tuple[str, Callable[[Tensor, Tensor], Tensor]]] = [
    ("abs(x)", lambda x, y: x.abs()),
    ("exp(x)", lambda x, y: x.exp()),
    ("expm1(x)", lambda x, y: x.exp() - 1),
    ("log(exp(x) + 1)", lambda x, y: torch.log1p(x.exp())),
    ("log1p(square(x))", lambda x, y: torch.log(1 + x * x)),
    ("sqrt(1 + x**2)", lambda x, y: (1 + x * x) ** 0.5),
    ("square(x)", lambda x, y: x * x),
    ("sign(x) * x", lambda x, y: x.abs()),
    ("sin(x) / cos(x)", lambda x, y: x.tan()),
    ("tanh(x)", lambda x, y: 2 / (1 + (-2 * x).exp()) - 1),
    ("sigmoid(x)", lambda x, y: 1 / (1 + (-x).exp())),
    ("softplus(x)", lambda x, y: (1 + x.exp()).log()),
    ("logsigmoid(x)", lambda x, y: -(1 + (-x).exp()).log()),
    ("relu(x)", lambda x, y: x * (x > 0)),
    ("minimum(x, y)", lambda x, y: torch.where(x < y, x, y)),
    ("maximum(x, 0.1) + maximum(-1, y)", lambda x, y: x.clamp(min=0.1) + y.clamp(min=-1)),
    ("clamp(x, -0.5, y)", lambda x, y: torch.minimum(torch.maximum(x, torch.full_like(x, -0.5)), y)),
    ("where(x > y, x, 2)", lambda x, y: torch.where(x > y, x, torch.full_like(x, 2))),
    ("where(1, x, 2)", lambda x, y: x),
    ("(x > y) * x", lambda x, y: (x > y) * x),
    ("x ** 3 + 2 ** y", lambda x, y: x * x * x + (y * math.log(2)).exp()),
    ("exp(x) ** y", lambda x, y: (x * y).exp()),
    ("x / (2 + y ** 2)", lambda x, y: x * (2 + y * y) ** -1),
    ("softmax(x)", lambda x, y: x.exp() / x.exp().sum(1, keepdim=True)),
    ("softmax(x, 0)", lambda x, y: x.exp() / x.exp().sum(0, keepdim=True)),
    ("log_softmax(x)", lambda x, y: x - x.exp().sum(1, keepdim=True).log()),
    ("logsumexp(x)", lambda x, y: x.exp().sum(1, keepdim=True).log()),
    ("logsumexp(x, -2)", lambda x, y: x.exp().sum(0, keepdim=True).log()),
    ("sum(x)", lambda x, y: x.sum()),
    ("x - sum(x, 1)", lambda x, y: x - x.sum(1, keepdim=True)),
    ("x - mean(x, 0)", lambda x, y: x - x.sum(0, keepdim=True) / 4),
    ("mean(x)", lambda x, y: x.sum() / 12),
    ("max(x) + max(y, 1)", lambda x, y: x.max() + y.max(1, keepdim=True).values),
    ("min(x) + min(y, -1)", lambda x, y: x.min() + y.min(1, keepdim=True).values),
    ("norm(x) + norm(y, 1)", lambda x, y: (x * x).sum() ** 0.5 + (y * y).sum(1, keepdim=True) ** 0.5),
    ("dot(x, y) + dot(x, y, 0)", lambda x, y: (x * y).sum() + (x * y).sum(0, keepdim=True)),
    ("dot(x, 2)", lambda x, y: 2 * x.sum()),
    ("erf(x)", lambda x, y: 1 - torch.special.erfcx(x) * (-x * x).exp()),
    ("lgamma(exp(x))", lambda x, y: stirling(x.exp())),
    ("log1mexp(-exp(x))", lambda x, y: (1 - (-x.exp()).exp()).log()),
    ("stop(sign(x)) * y", lambda x, y: x.sign() * y),
    ("cumsum(x)", lambda x, y: x @ torch.ones(3, 3, dtype=x.dtype).triu()),
    ("cumsum(x, 0)", lambda x, y: torch.ones(4, 4, dtype=x.dtype).tril() @ x),
    ("logcumsumexp(x)", lambda x, y: (x.exp() @ torch.ones(3, 3, dtype=x.dtype).triu()).log()),
    ("logcumsumexp(x, 0) * y", lambda x, y: (torch.ones(4, 4, dtype=x.dtype).tril() @ x.exp()).log() * y),
    ("sort(x)", lambda x, y: torch.cat([x.kthvalue(k, 1, keepdim=True).values for k in (1, 2, 3)], 1)),
    ("sort(x, 0) * y", lambda x, y: torch.cat([x.kthvalue(k, 0, keepdim=True).values for k in (1, 2, 3, 4)]) * y),
    ("gather(x, sign(y) + 1)", lambda x, y: torch.where(y > 0, x[:, 2:], x[:, :1])),
    ("gather(x, 3 * (sum(y, 0) > 0), 0)", lambda x, y: torch.where(y.sum(0, keepdim=True) > 0, x[3:], x[:1])),
    ("transpose(x)", lambda x, y: x.T),
    ("matmul(x, transpose(y))", lambda x, y: torch.einsum("ij,kj->ik", x, y)),
    ("n = norm(x, 1); dot(x / n, y / norm(y, 1), 1)", lambda x, y: functional.cosine_similarity(x, y)[:, None]),
    ("exp(log_softmax(x)) * (x - y)", lambda x, y: x.softmax(1) * (x - y)),
]


def test_every_function_is_tried() -> None:
    tried = " ".join(text for text, _ in FUNCTIONS)
    assert [name for name in OPERATIONS if name.isidentifier() and f"{name}(" not in tried] == []


@in_one_item("text, by_hand", FUNCTIONS)
def test_value_and_gradient_are_those_written_by_hand(text: str, by_hand: Callable[..., Tensor]) -> None:
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    found, expected = value(text, {"x": x, "y": y}), by_hand(x, y)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    upstream = seeded(*expected.shape, seed=3)
    gradients, hand = (
        torch.autograd.grad(tensor, (x, y), upstream, materialize_grads=True) for tensor in (found, expected)
    )
    torch.testing.assert_close(gradients, hand, rtol=1e-11, atol=1e-12)


@in_one_item("text", [text for text, _ in FUNCTIONS])
def test_gradients_equal_finite_differences(text: str) -> None:
    leaves = (X.clone().requires_grad_(), Y.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: value(text, {"x": x, "y": y}), leaves, fast_mode=True)


@in_one_item(
    "text, x, expected, gradient",
    [
        ("softplus(x)", [-1e3, 30.0, 1e3], [0.0, 30 + math.exp(-30), 1e3], [0.0, 1 - math.exp(-30), 1.0]),
        ("logsigmoid(x)", [-1e3, -30.0, 1e3], [-1e3, -30 - math.exp(-30), 0.0], [1.0, 1 - math.exp(-30), 0.0]),
        ("sigmoid(x)", [-1e3, 1e3], [0.0, 1.0], [0.0, 0.0]),
        ("logsumexp(x)", [1e3, 1e3], [1e3 + math.log(2)], [0.5, 0.5]),
        ("softmax(x)", [1000.0, 1001.0, 1002.0], [0.09003057, 0.24472847, 0.66524096], [0.0, 0.0, 0.0]),
        ("norm(x)", [0.0, 0.0], 0.0, [0.0, 0.0]),
        ("norm(x)", [3e200, 4e200], 5e200, [0.6, 0.8]),
        ("norm(x)", [3e-200, 4e-200], 5e-200, [0.6, 0.8]),
        ("abs(x)", [0.0, -2.0], [0.0, 2.0], [0.0, -1.0]),
        ("max(x)", [1.0, 3.0, 3.0], 3.0, [0.0, 0.5, 0.5]),
        ("min(x)", [1.0, 1.0, 3.0], 1.0, [0.5, 0.5, 0.0]),
        ("expm1(x)", [1e-300], [1e-300], [1.0]),
        ("logsumexp(x)", [-math.inf, -math.inf], [-math.inf], [0.0, 0.0]),
        ("logsumexp(x)", [-math.inf, 1.0], [1.0], [0.0, 1.0]),
        ("logcumsumexp(x)", [-math.inf, -math.inf], [-math.inf, -math.inf], [0.0, 0.0]),
        ("logcumsumexp(x)", [-math.inf, 0.0, -math.inf], [-math.inf, 0.0, 0.0], [0.0, 2.0, 0.0]),
        ("logcumsumexp(x)", [1e4, 1e4, -1e4], [1e4, 1e4 + math.log(2), 1e4 + math.log(2)], [2.0, 1.0, 0.0]),
        ("logcumsumexp(x)", [-1e308, 1e308], [-1e308, 1e308], [1.0, 1.0]),
        ("cumsum(x)", [1e308, -1e308, math.inf], [1e308, 0.0, math.inf], [3.0, 2.0, 1.0]),
        ("log1mexp(x)", [0.0, -1e-300, -800.0], [-math.inf, math.log(1e-300), 0.0], [-math.inf, -1e300, 0.0]),
        ("log1mexp(x)", [-math.inf], [0.0], [0.0]),
        ("lgamma(x)", [1.0, 2.0, 1e300], [0.0, 0.0, 1e300 * (math.log(1e300) - 1)], [-EULER, 1 - EULER, 690.7755]),
        ("erf(x)", [0.0, 1e-300, 30.0, -math.inf], [0.0, 1e-300 * PER_ROOT, 1.0, -1.0], [PER_ROOT, PER_ROOT, 0.0, 0.0]),
        ("sort(x)", [math.inf, -0.0, -math.inf], [-math.inf, 0.0, math.inf], [1.0, 1.0, 1.0]),
    ],
)
def test_extremes_come_out_as_stated(text: str, x: list[float], expected: Any, gradient: list[float]) -> None:
    tensor = torch.tensor(x, dtype=torch.float64)
    torch.testing.assert_close(
        value(text, {"x": tensor}), torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=0
    )
    torch.testing.assert_close(slope(text, tensor), torch.tensor(gradient, dtype=torch.float64), rtol=1e-7, atol=1e-15)


def test_sums_of_single_precision_neither_overflow_on_the_way_nor_lose_count() -> None:
    large = torch.full((4,), 2e38)
    assert float(value("mean(x)", {"x": large})) == pytest.approx(2e38)
    ones = torch.ones(1 << 25)
    assert float(value("sum(x)", {"x": ones})) == 1 << 25


@pytest.mark.parametrize(
    ("text", "x", "expected"),
    [
        ("where(x > 0, log(x), 0)", [0.0, -1.0, 2.0], [0.0, 0.0, 0.5]),
        ("where(x > 0, sqrt(x), 0)", [0.0, -1.0, 4.0], [0.0, 0.0, 0.25]),
        ("where(x > 0, x ** 0.5, 0)", [0.0, -1.0, 4.0], [0.0, 0.0, 0.25]),
        ("where(x != 0, 1 / x, x)", [0.0, 2.0], [1.0, -0.25]),
        ("where(x > 0, log1p(-1 - x) + x, x)", [-0.0], [1.0]),
        ("where(x < 9, x, x * exp(x))", [1.0, 1.0], [1.0, 1.0]),
        ("where(x < 9e3, x, x / 9)", [1e3], [1.0]),
        ("where(x > 9, exp(x), exp(-x) * x)", [0.0], [1.0]),
        ("where(x < 2000, x, expm1(x) * exp(x))", [1000.0], [1.0]),
        ("where(x < 0, log1mexp(x), x)", [0.0, -math.log(2)], [1.0, -1.0]),
        ("where(x > 0, lgamma(x), x)", [0.0, -1.0, 1.0], [1.0, 1.0, -EULER]),
        ("l = log(x); where(x > 0, x * l, 0)", [0.0, 1.0], [0.0, 1.0]),
        ("minimum(2, exp(x))", [1000.0, 0.0], [0.0, 1.0]),
    ],
)  # fmt: skip
def test_the_branch_that_is_not_taken_leaves_the_gradient_alone(
    text: str, x: list[float], expected: list[float]
) -> None:
    gradient = slope(text, torch.tensor(x, dtype=torch.float64))
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("x", [-1e-300, -1e-16, -1e-8, -0.1, -0.6931, -math.log(2), -0.6932, -1.0, -37.0, -700.0])
def test_log1mexp_has_all_its_digits(x: float) -> None:
    tensor = torch.tensor([x], dtype=torch.float64)
    with mpmath.workdps(50):
        exact, derivative = mpmath.log(-mpmath.expm1(x)), -1 / mpmath.expm1(-mpmath.mpf(x))
        assert float(value("log1mexp(x)", {"x": tensor})) == pytest.approx(float(exact), rel=3e-16)
        assert float(slope("log1mexp(x)", tensor)) == pytest.approx(float(derivative), rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("x", [1e-30, 0.1, 0.999, 1.0001, 1.9999, 2.001, 7.5, 1e5, -0.5, -2.25])
def test_lgamma_has_the_digits_of_its_dtype(x: float, dtype: torch.dtype) -> None:
    tensor = torch.tensor([x], dtype=dtype)
    with mpmath.workdps(50):
        exact = mpmath.log(abs(mpmath.gamma(float(tensor)))) if x < 1e4 else mpmath.loggamma(float(tensor))
        within = 1e-7 if dtype == torch.float32 else 1e-12
        assert float(value("lgamma(x)", {"x": tensor})) == pytest.approx(float(exact), rel=within)
        assert float(slope("lgamma(x)", tensor)) == pytest.approx(float(mpmath.digamma(float(tensor))), rel=2 * within)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_a_cumulative_logarithm_is_that_of_each_beginning(offset: float) -> None:
    x, weights = 20 * seeded(50, seed=4) + offset, seeded(50, seed=5)
    with mpmath.workdps(50):
        sums = [mpmath.fsum(mpmath.exp(mpmath.mpf(e)) for e in x.tolist()[: k + 1]) for k in range(50)]
        exact = [float(mpmath.log(total)) for total in sums]
        gradient = [
            float(mpmath.fsum(w * mpmath.exp(e) / t for w, t in zip(weights.tolist()[k:], sums[k:], strict=True)))
            for k, e in enumerate(x.tolist())
        ]
    torch.testing.assert_close(value("logcumsumexp(x)", {"x": x}).tolist(), exact, rtol=1e-14, atol=1e-14)
    leaf = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(value("logcumsumexp(x)", {"x": leaf}), leaf, weights)
    torch.testing.assert_close(result.tolist(), gradient, rtol=1e-10, atol=1e-13)


def test_equal_entries_keep_their_order() -> None:
    x = torch.tensor([2.0, 1.0, 2.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    found = value("sort(x)", {"x": x})
    assert found.tolist() == [1, 1, 1, 2, 2]
    assert torch.autograd.grad(found, x, weights)[0].tolist() == [4, 1, 5, 2, 3]


def test_nothing_flows_back_past_a_stop() -> None:
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    ratio = "r = exp(x - y); -stop(clamp(r, 0, 1.2)) * x"
    found = value(ratio, {"x": x, "y": y}).sum()
    by_x, by_y = torch.autograd.grad(found, (x, y), materialize_grads=True)
    torch.testing.assert_close(by_x, -(X - Y).exp().clamp(0, 1.2))
    assert not by_y.any()
    assert float(value("stop(3)")) == 3


@in_one_item("text", [text for text, _ in FUNCTIONS])
def test_second_derivatives_equal_finite_differences(text: str) -> None:
    leaves = (X.clone().requires_grad_(), Y.clone().requires_grad_())
    # A function of the value whose second derivative is not 0 even if the value's is.
    squares = lambda x, y: value(text, {"x": x, "y": y}).pow(2).sum() + 0 * (x.sum() + y.sum()) ** 2  # noqa: E731
    assert torch.autograd.gradgradcheck(squares, leaves, atol=1e-4, fast_mode=True)


def test_an_infinite_slope_that_counts_stays_infinite() -> None:
    assert slope("sum(sqrt(x))", torch.tensor([0.0, 1.0])).tolist() == [math.inf, 0.5]


@in_one_item("dtype", [torch.float32, torch.float64])
@in_one_item("text", [text for text, _ in FUNCTIONS])
def test_numbers_never_change_the_dtype(text: str, dtype: torch.dtype) -> None:
    assert value(text, {"x": X.to(dtype), "y": Y.to(dtype)}).dtype == dtype
    assert value(f"{text} * k", {"x": X.to(dtype), "y": Y.to(dtype)}, k=2.0).dtype == dtype


# Shapes


@in_one_item(
    "text, expected",
    [
        ("x", (4, 3)),
        ("x + 1", (4, 3)),
        ("x * y", (4, 3)),
        ("x - row", (4, 3)),
        ("sum(x, 1) - sum(x, 0)", (4, 3)),
        ("sum(x, 0)", (1, 3)),
        ("sum(x, -1) + x", (4, 3)),
        ("logsumexp(v)", (1,)),
        ("softmax(v)", (5,)),
        ("mean(v) + s", ()),
        ("where(s, x, 0)", (4, 3)),
        ("dot(x, row)", ()),
        ("dot(x, row, 1)", (4, 1)),
        ("cumsum(v) + sort(v)", (5,)),
        ("logcumsumexp(x, 0)", (4, 3)),
        ("transpose(x)", (3, 4)),
        ("transpose(sum(x, 1))", (1, 4)),
        ("matmul(x, transpose(row))", (4, 1)),
        ("gather(x, y > 9)", (4, 3)),
        ("gather(x, i, 0)", (1, 3)),
        ("gather(x, x > 9, -2)", (4, 3)),
        ("gather(row, x > 9, 0)", (4, 3)),
        ("gather(v, s > 9)", (1,)),
        ("gather(x, sum(x, 1) > 99)", (4, 1)),
        ("5", ()),
    ],
)
def test_shapes_are_known_before_the_data(text: str, expected: tuple[int, ...]) -> None:
    shapes = {"x": (4, 3), "y": (4, 3), "row": (1, 3), "v": (5,), "s": (), "i": (3,)}
    assert parse(text).shape(shapes) == expected
    tensors = {name: torch.rand(shape) for name, shape in shapes.items()} | {"i": torch.tensor([0, 3, 1])}
    assert value(text, tensors).shape == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mean(x - v)", r"column 6: x - v: shapes \(4, 3\) and \(3,\) do not combine"),
        ("x * w", r"column 1: x \* w: shapes \(4, 3\) and \(3, 4\)"),
        ("where(x > 0, x, v)", r"column 1: where\(x > 0, x, v\): shapes \(4, 3\) and \(3,\)"),
        ("e = 2 *\n  (x + w); e", r"line 2, column 4: x \+ w: shapes"),
        ("sum(x, 2)", r"sum over axis 2 of a value with 2 axes"),
        ("sum(x, -3)", r"sum over axis -3"),
        ("softmax(s)", r"softmax over axis 0 of a value with 0 axes"),
        ("sum(sum(x), 0)", r"column 1: sum\(sum\(x\), 0\): sum over axis 0"),
        ("transpose(v)", r"column 1: transpose\(v\): transpose exchanges the last two axes, .* has shape \(3,\)"),
        ("transpose(2)", r"has shape \(\)"),
        ("x + matmul(x, x)", r"column 5: matmul\(x, x\): shapes \(4, 3\) and \(4, 3\) are not those of matrices"),
        ("matmul(x, v)", r"shapes \(4, 3\) and \(3,\) are not those of matrices"),
        ("gather(x, w)", r"an index of shape \(3, 4\) does not fit a value of shape \(4, 3\)"),
        ("gather(x, v)", r"without axis 1, or with another length there"),
        ("gather(x, v, 2)", r"gather over axis 2 of a value with 2 axes"),
        ("gather(2, v)", r"gather over axis 0 of a value with 0 axes"),
        ("sort(s)", r"sort over axis 0 of a value with 0 axes"),
        ("cumsum(2)", r"cumsum over axis 0 of a value with 0 axes"),
        ("matmul(column, line)", r"shape \(4096, 4096\), 16777216 elements; .* may have 1048576"),
        ("column - line", r"shape \(4096, 4096\), 16777216 elements; .* may have 1048576"),
    ],
)
def test_shapes_that_do_not_fit_are_named_with_their_place(text: str, message: str) -> None:
    shapes = {"x": (4, 3), "v": (3,), "w": (3, 4), "s": (), "column": (4096, 1), "line": (1, 4096)}
    with pytest.raises(FormulaError, match=message):
        parse(text).shape(shapes)
    with pytest.raises(FormulaError, match=message):
        value(text, {name: torch.zeros(shape) for name, shape in shapes.items()})


def test_results_are_bounded_together() -> None:
    text = "x" + " + x" * 200
    assert parse(text).shape({"x": (1000, 1000)}) == (1000, 1000)
    with pytest.raises(FormulaError, match="send smaller batches"):
        parse(text).shape({"x": (2000, 2000)})


def test_a_table_may_grow_with_the_inputs() -> None:
    table = {"a": (4096, 1), "b": (1, 4096)}
    assert parse("mean(c) * (a - b)").shape({**table, "c": (4096, 64)}) == (4096, 4096)
    with pytest.raises(FormulaError, match="elements"):
        parse("mean(c) * (a - b)").shape({**table, "c": (4096, 63)})


# What is refused


HOSTILE = {
    "attribute": "x.grad",
    "dunder": "x.__class__.__mro__",
    "import": "__import__('os').system('true')",
    "builtin call": "open(x)",
    "eval": "eval(x)",
    "getattr": "getattr(x, y)",
    "unlisted torch": "svd(x)",
    "operator as a function": "neg(x)",
    "index": "x[0]",
    "lambda": "lambda: x",
    "walrus": "(y := x)",
    "comprehension": "[x for x in y]",
    "string": "'x'",
    "backslash": "x \\\n + y",
    "comment": "x # y",
    "modulo": "x % 2",
    "matmul": "x @ y",
    "floor": "x // y",
    "bits": "x & y",
    "semicolons": "x;y;z",
    "empty": "",
    "blank": " \n\t ",
    "null": "x\x00",
    "unicode name": "é + x",
    "unicode digit": "x + \u0661",
    "full-width": "\uff45\uff58\uff50(x)",
    "look-alike": "\u0435xp(x)",
    "surrogate": "\ud800",
    "emoji": "\U0001f600",
    "right to left": "\u202ex",
    "no-break space": "x\u00a0+ y",
    "deep parentheses": "(" * 100_000 + "x" + ")" * 100_000,
    "parentheses": "(" * 2_000 + "x" + ")" * 2_000,
    "deep minus": "-" * 100_000 + "x",
    "minus": "-" * 4_000 + "x",
    "deep calls": "abs(" * 800 + "x" + ")" * 800,
    "powers": "x" + "**x" * 1_000,
    "right operands": "x+(" * 500 + "x" + ")" * 500,
    "long chain": "x" + "+x" * 1_000,
    "many statements": "".join(f"a{i}=x;" for i in range(65)) + "x",
    "too long": "x" + " " * 10_000,
    "long number": "9" * 4_000,
    "no input": "1 + 2",
    "function as a name": "exp + x",
    "shadowed function": "exp = x; exp",
    "shadowed input": "a = x; x = a; x",
    "shadowed by itself": "x = x + 1; x",
    "twice": "a = x; a = y; a",
    "chained": "x < y < 1",
    "only a statement": "a = x",
    "nothing after": "a = x;",
    "two values": "x y",
    "open": "(x",
    "closed": "x)",
    "keyword": "sum(x, axis=1)",
    "computed axis": "sum(x, 1 + 0)",
    "fractional axis": "sum(x, 1.0)",
    "huge axis": "sum(x, " + "9" * 3_000 + ")",
    "max of two": "max(x, y)",
    "too few": "where(x, y)",
    "too many": "exp(x, y)",
    "none": "exp()",
    "reserved input": "cotangent * x",
    "reserved parameter": "formula + x",
}


@in_one_item("text", HOSTILE.values())
def test_anything_else_is_refused_at_once(text: str) -> None:
    began = time.thread_time()
    with pytest.raises(InvalidRequest) as refused:
        make_plan({"loss": {"name": "expression", "formula": text}})
    assert time.thread_time() - began < 1
    assert refused.value.status == 422
    assert refused.value.detail.isascii()
    assert len(refused.value.detail) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x + 3 $ 4", r"column 7: '\$' has no meaning"),
        ("x +\n  * y", r"line 2, column 3: expected a value, found '\*'"),
        ("sofmax(x)", "column 1: there is no function sofmax; did you mean softmax?"),
        ("pw(x)", "there is no function pw; there are abs, exp"),
        ("max(x, y)", "of two values, maximum is the max"),
        ("0 < x < 1", r"comparisons do not chain; write \(a < b\) \* \(b < c\)"),
        ("log + x", r"log is a function; write log\(...\)"),
        ("clamp(x)", r"clamp takes 3 values"),
        ("gather(x)", r"gather takes 2 values and optionally an axis"),
        ("matmul(x, y, 1)", r"expected '\)', found ','; matmul takes 2 values"),
        ("transpose(x, 0)", r"transpose takes one value"),
        ("cumsum(x, y)", "the axis of cumsum is a small integer"),
        ("logcumsum(x)", "did you mean logcumsumexp?"),
        ("sum(x, 1, 2)", "takes one value and optionally an axis"),
        ("-" * 100 + "x", "nested more than 64 levels deep"),
        ("x = 3; x + y", None),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str | None) -> None:
    if message is None:
        assert parse(text).inputs() == ("y",)
        return
    with pytest.raises(FormulaError, match=message):
        parse(text)


def test_the_deepest_formula_is_read_on_a_deep_stack() -> None:
    """The bound on nesting leaves a server's own frames their room."""

    def below(frames: int) -> Any:
        return below(frames - 1) if frames else parse("(-" * 31 + "x" + ")" * 31).names

    assert below(500) == ("x",)


def test_a_long_formula_that_is_within_the_limits_is_evaluated() -> None:
    terms = (MAX_STEPS - 1) // 2
    assert float(value("x" + " + 1" * terms, {"x": torch.zeros(())})) == terms


# As a loss of the service


REQUEST = {"name": "expression", "formula": "k * (prediction - target) ** 2", "parameters": {"k": 2}}


def test_the_value_is_reduced_as_any_loss() -> None:
    inputs = {"prediction": X, "target": Y}
    exact = 2 * (X - Y) ** 2
    answer = alone({"loss": REQUEST}, inputs)
    assert answer.loss == pytest.approx(float(exact.mean()))
    assert (answer.numerator, answer.denominator) == (pytest.approx(float(exact.sum())), 12)
    torch.testing.assert_close(answer.gradient(), 4 * (X - Y) / 12)
    assert "metrics" not in answer.document
    upstream = seeded(4, 3, seed=5)
    answer = alone({"loss": {**REQUEST, "reduction": "none"}}, inputs | {"cotangent": upstream})
    torch.testing.assert_close(answer.loss, exact)
    torch.testing.assert_close(answer.gradient(), 4 * (X - Y) * upstream)
    assert alone({"loss": {**REQUEST, "reduction": "sum"}}, inputs).loss == pytest.approx(float(exact.sum()))


def test_without_a_prediction_every_input_has_its_gradient() -> None:
    answer = alone({"loss": {"name": "expression", "formula": "sum(a * b)"}}, {"a": X.float(), "b": Y.half()})
    assert {name: g.dtype for name, g in answer.gradients.items()} == {"a": torch.float32, "b": torch.float32}
    torch.testing.assert_close(answer.gradient("a"), Y.half().float())


def test_an_input_the_loss_does_not_depend_on_has_gradient_zero() -> None:
    answer = alone({"loss": {"name": "expression", "formula": "unused = y; sum(0 * x + 1)"}}, {"x": X, "y": Y})
    assert answer.loss == 12
    assert not answer.gradient("x").any()
    assert not answer.gradient("y").any()
    assert answer.warnings == {"zero_gradient"}


def test_a_value_that_is_not_finite_is_answered_and_flagged() -> None:
    answer = alone({"loss": {"name": "expression", "formula": "9**9**9 + sum(x)"}}, {"x": X})
    assert answer.loss == "Infinity"
    assert "non_finite" in answer.warnings


def test_a_formula_may_be_a_term_of_a_composed_loss() -> None:
    terms = [{"loss": {"name": "mse"}}, {"loss": REQUEST, "weight": 0.5}]
    answer = alone({"loss": {"name": "weighted_sum", "terms": terms}}, {"prediction": X, "target": Y})
    assert answer.loss == pytest.approx(2 * float(functional.mse_loss(X, Y)))
    torch.testing.assert_close(answer.gradient(), 4 * (X - Y) / 12)


@pytest.mark.parametrize(
    ("loss", "inputs", "error", "message"),
    [
        ({}, {"prediction": X}, MissingInput, "needs the input target"),
        ({}, {"prediction": X, "target": Y, "k": X}, UnknownInput, "'k'"),
        ({}, {"prediction": X, "target": X[0]}, ShapeMismatch, r"column 6: prediction - target: .*\(4, 3\) and \(3,\)"),
        ({"parameters": {}}, {"prediction": X, "target": Y}, MissingInput, "needs the input k"),
        ({"parameters": {"k": 2, "j": 1}}, {}, InvalidRequest, "parameter 'j' does not appear in the formula"),
        ({"parameters": {"k": "2"}}, {}, InvalidRequest, "parameters"),
        ({"parameters": {"k": math.inf}}, {}, InvalidRequest, "finite"),
        ({"parameters": {"k": [2]}}, {}, InvalidRequest, "parameters"),
        ({"formula": "k = prediction; k"}, {}, InvalidRequest, "k is a parameter"),
        ({"formula": 3}, {}, InvalidRequest, "formula"),
        ({"formula": "x ++ y"}, {}, InvalidRequest, "column 4: expected a value"),
        ({"name": "expression", "formula": None}, {}, InvalidRequest, "formula"),
    ],
)
def test_a_faulty_request_is_refused(loss: dict[str, Any], inputs: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        alone({"loss": {**REQUEST, **loss}}, inputs)


def test_a_formula_is_required() -> None:
    with pytest.raises(InvalidRequest, match="formula is required"):
        make_plan({"loss": {"name": "expression"}})


# Fuzzed


def answered(text: str, **parameters: float) -> None:
    """Either refused as the client's fault, or evaluated, in the shape that was foretold."""
    shapes = {"x": (2, 3), "y": (2, 1), "z": (3,), "s": ()}
    try:
        request = {"loss": {"name": "expression", "formula": text, "parameters": parameters, "reduction": "none"}}
        plan = make_plan(request)
        names = [entry.name for entry in plan.inputs if not entry.optional]
        alone(
            request,
            {name: torch.linspace(-2, 3, math.prod(s := shapes.get(name, (2, 3)))).reshape(s) for name in names},
        )
    except NotEvaluable as refused:
        assert refused.detail.isascii()  # noqa: PT017  (either outcome is right)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_refused_or_evaluated(text: str) -> None:
    answered(text)


PIECES = [
    *OPERATIONS,
    "x",
    "y",
    "z",
    "s",
    "a",
    "a=",
    ";",
    "(",
    ")",
    ",",
    ",1",
    ",-1",
    "1",
    "2.5",
    "1e300",
    ".",
    "!",
    " ",
]


@settings(max_examples=250, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_jumble_of_its_own_words_is_refused_or_evaluated(text: str) -> None:
    answered(text)


VALID = [
    "e = x - y; mean(where(e > 0, k*e**2, e**2))",
    "a = abs(x - y); where(a <= k, a**2 / 2, k * (a - k / 2))",
    "l = -sum(y * log_softmax(x), 1); (1 - exp(-l)) ** k * l",
    "relu(norm(x, 1) - norm(y, 1) + k) + dot(x, y) / logsumexp(s + z)",
]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 3))):
        at, width = draw(st.integers(0, len(text))), draw(st.integers(0, 4))
        text = text[:at] + draw(st.one_of(st.sampled_from(PIECES), st.characters())) + text[at + width :]
    return text


@settings(max_examples=250, deadline=None)
@given(mutated())
def test_a_mutated_formula_is_refused_or_evaluated(text: str) -> None:
    answered(text, k=0.5)
    answered(text)


CALLS = {
    "abs": torch.abs, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "minimum": torch.minimum, "maximum": torch.maximum,
    "where": lambda c, a, b: torch.where(c, a, b), "square": torch.square,
}  # fmt: skip


def texts() -> st.SearchStrategy[str]:
    """Arithmetic with parentheses here and there, whose meaning Python shares."""
    space = st.sampled_from(["", " ", "\n"])

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        binary = st.tuples(inner, space, st.sampled_from("+-*/"), space, inner).map("".join)
        return st.one_of(
            binary,
            binary.map("({})".format),
            inner.map("-{}".format),
            inner.map("(2+{})**2".format),
            st.tuples(inner, inner).map(lambda p: f"2**-tanh({p[0]})**2*{p[1]}"),
            st.tuples(st.sampled_from(["abs", "tanh", "sigmoid", "square"]), inner).map(lambda p: f"{p[0]}({p[1]})"),
            st.tuples(st.sampled_from(["minimum", "maximum"]), inner, inner).map(lambda p: f"{p[0]}({p[1]}, {p[2]})"),
            st.tuples(inner, st.sampled_from(["<", "<=", ">", ">="]), inner, inner).map(
                lambda p: f"where({p[0]} {p[1]} {p[2]}, {p[3]}, {p[0]})"
            ),
        )

    return st.recursive(st.sampled_from(["x", "y", "one"]), grown, max_leaves=20)


@settings(max_examples=150, deadline=None)
@given(texts())
def test_a_formula_means_what_the_same_text_means_in_python(text: str) -> None:
    names = {"x": X, "y": Y, "one": torch.ones(4, 3, dtype=torch.float64)}
    try:
        found = parse(text).evaluate(names, {})
    except FormulaError as refused:
        assert "nested" in str(refused)  # noqa: PT017  (anything else would be a difference)
        return
    expected = eval(f"({text})", {"__builtins__": {}}, {**names, **CALLS})
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
