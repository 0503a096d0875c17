"""The functions that losses are made of: their digits, and that these depend on the argument alone."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import lossd.losses
from lossd.losses import elementary, operations
from losses.test_splitting import SHARED, threads
from rows import in_one_item

FLOATS = (torch.float32, torch.float64)


@cache
def normal(n: int, dtype: torch.dtype) -> Tensor:
    return (3 * torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))).to(dtype)


@cache
def positive(n: int, dtype: torch.dtype) -> Tensor:
    return normal(n + 1, dtype)[:n].abs() + 0.01


OURS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "sigmoid": (elementary.sigmoid, (normal,)),
    "softplus": (elementary.softplus, (normal,)),
    **{f"power {e}": (lambda x, e=e: elementary.power(x, e), (positive,)) for e in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.5)},
    "powers": (elementary.power, (positive, positive)),
    "atan2": (lambda x, y: elementary.in_whole_vectors(torch.atan2, x, y), (normal, normal)),
    **{
        f"{name} of a formula": (lambda *x, o=operation: o.compute(*x), (positive,) * operation.operands)
        for name, operation in operations.OPERATIONS.items()
        if operation.axis is None and name not in ("transpose", "matmul")  # of matrices, not of entries
    },
    **{
        f"** {e} of a formula": (lambda x, e=e: operations.OPERATIONS["**"].compute(x, e), (positive,))
        for e in (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 4.0)
    },
    "a number ** of a formula": (lambda x: operations.OPERATIONS["**"].compute(1.5, x), (normal,)),
}
"""Functions of lossd, and how their arguments are drawn."""

CLEAN: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    **{name: (getattr(torch, name), (normal,)) for name in ("abs", "exp", "expm1", "tanh", "relu", "square", "sgn")},
    **{name: (getattr(torch, name), (positive,)) for name in ("log", "log1p", "sqrt", "reciprocal")},
    "logsigmoid": (functional.logsigmoid, (normal,)),
    "mul": (torch.mul, (normal, normal)),
    "div": (torch.div, (normal, positive)),
    "maximum": (torch.maximum, (normal, normal)),
    "minimum": (torch.minimum, (normal, normal)),
    "binary_cross_entropy": (
        lambda z, t: functional.binary_cross_entropy(elementary.sigmoid(z), t / (1 + t), reduction="none"),
        (normal, positive),
    ),
}
"""What losses take of torch as it is."""


def ways(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> Iterator[tuple[str, Any]]:
    """The function's values and slopes: of all entries, of parts, and of tensors that are not contiguous."""

    def values(*tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            value = function(*tensors)
        leaves = [t.detach().requires_grad_() for t in tensors]
        result = function(*leaves)
        if not result.requires_grad:
            return (value,)
        gradients = torch.autograd.grad(result, leaves, torch.full_like(result, 0.7), allow_unused=True)
        return (value, *(g for g in gradients if g is not None))

    n = len(arguments[0])
    yield "at once", values(*arguments)
    for sizes in ([1, 2, n - 3], [n - 17, 17]) if n < SHARED else ([n // 2 + 1, n - n // 2 - 1],):
        parts = [values(*part) for part in zip(*(t.split(sizes) for t in arguments), strict=True)]
        yield f"in parts of {sizes}", tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))
    yield "of every other number", values(*(torch.stack([t, t], 1)[:, 0] for t in arguments))
    if n % 3 == 0:
        flat = (t.reshape(3, -1).t() for t in arguments)
        yield "transposed", tuple(v.t().reshape(-1) for v in values(*flat))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@in_one_item("name", [*OURS, *CLEAN])
def test_a_value_and_its_slope_depend_on_the_argument_alone(name: str, dtype: torch.dtype) -> None:
    function, draws = (OURS | CLEAN)[name]
    for n in (63, 64, 67):
        arguments = tuple(draw(n, dtype) for draw in draws)
        (_, expected), *others = ways(function, arguments)
        for how, found in others:
            assert_equal(found, expected, f"{n} numbers {how}")
    arguments = tuple(draw(2 * SHARED + 35, dtype) for draw in draws)
    with threads(1):
        _, expected = next(ways(function, arguments))
    with threads(3):
        for how, found in islice(ways(function, arguments), 2):
            assert_equal(found, expected, f"by three threads, {how}")


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], how: str) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        same = (mine == theirs) | (mine.isnan() & theirs.isnan())
        assert same.all(), f"{int((~same).sum())} differ of {how}"


@pytest.mark.parametrize("unlike", ["sigmoid", "pow"])
def test_torch_rounds_differently_where_no_vector_is_filled(unlike: str) -> None:
    """The test above can fail; where this one does, torch has changed, and the module could go."""
    function = {"sigmoid": torch.sigmoid, "pow": lambda x: torch.pow(x.abs(), 1.7)}[unlike]
    x = normal(1003, torch.float32)
    assert not torch.equal(function(x), torch.cat([function(part) for part in x.split(1)]))


# Their digits

POINTS = (
    0.0,
    -0.0,
    1e-30,
    -1e-30,
    0.3,
    -0.3,
    1.0,
    -1.0,
    17.0,
    -17.0,
    80.0,
    -80.0,
    87.5,
    -87.5,
    700.0,
    -700.0,
    1e30,
    -1e30,
)
EXACT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "sigmoid": (elementary.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), lambda x: 1 / (2 + 2 * mpmath.cosh(x))),
    "softplus": (elementary.softplus, lambda x: mpmath.log1p(mpmath.exp(x)), lambda x: 1 / (1 + mpmath.exp(-x))),
}
"""The function, its value and its slope."""


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_values_keep_their_digits_at_both_ends(name: str, dtype: torch.dtype) -> None:
    function, value, slope = EXACT[name]
    x = torch.tensor(POINTS, dtype=dtype, requires_grad=True)
    y = function(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    limits = torch.finfo(dtype)
    with mpmath.workdps(50):
        for point, found, steepness in zip(x.tolist(), y.tolist(), gradient.tolist(), strict=True):
            exact = value(mpmath.mpf(point))
            assert abs(found - exact) <= 4 * limits.eps * abs(exact) + limits.tiny, point
            assert abs(steepness - slope(mpmath.mpf(point))) <= 4 * limits.eps, point


def test_infinities_have_their_limits_and_nan_stays_nan() -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan], requires_grad=True)
    for function, limits, slopes in (
        (elementary.sigmoid, [1.0, 0.0], [0.0, 0.0]),
        (elementary.softplus, [math.inf, 0.0], [1.0, 0.0]),
    ):
        y = function(x)
        (gradient,) = torch.autograd.grad(y, x, torch.ones(3))
        assert y.tolist()[:2] == limits
        assert gradient.tolist()[:2] == slopes
        assert y[2].isnan()
        assert gradient[2].isnan()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_power_is_the_same_for_a_number_and_for_a_tensor_of_it(dtype: torch.dtype) -> None:
    base = torch.cat([torch.tensor([0.0, 1.0, 1e-30], dtype=dtype), positive(100, dtype)])
    for exponent in (0.0, 0.5, 1.0, 1.7, 2.0, 3.0):
        of_number = elementary.power(base, exponent)
        assert torch.equal(of_number, elementary.power(base, torch.full_like(base, exponent)))
        torch.testing.assert_close(of_number, base.double().pow(exponent).to(dtype))


@pytest.mark.parametrize("name", ["**", "sigmoid", "softplus"])
def test_the_gradients_of_formulas_are_right(name: str) -> None:
    operation = operations.OPERATIONS[name]
    x = positive(7, torch.float64).requires_grad_()
    y = normal(7, torch.float64).requires_grad_()
    arguments = (x, y) if operation.operands == 2 else (y,)
    assert torch.autograd.gradcheck(lambda *operands: operation.compute(*operands), arguments)


# What nothing else may use

UNCLEAN = {
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "arctan2", "binary_cross_entropy_with_logits", "celu",
    "cosh", "digamma", "elu", "erf", "erfc", "erfinv", "float_power", "gelu", "hypot", "lgamma", "logaddexp",
    "logaddexp2", "logit", "mish", "pow", "selu", "sigmoid", "silu", "sinh", "softplus", "tan", "xlogy",
}  # fmt: skip
"""Names of torch whose last digits depend on the position, or nobody has looked at."""

SOURCES = Path(lossd.losses.__file__).parents[1]


def faults(tree: ast.AST) -> Iterator[str]:
    """Uses of these names, and powers of which neither part is a plain number."""
    nodes = list(ast.walk(tree))
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    padded = {id(a) for call in calls if call.func.id == "in_whole_vectors" for a in call.args}  # type: ignore[attr-defined]
    named = {id(a) for call in calls if call.func.id == "_of_torch" for a in call.args}  # type: ignore[attr-defined]
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="math" | "np" | "operator")):
                pass
            case ast.Attribute(attr=name) if name.rstrip("_") in UNCLEAN and id(node) not in padded:
                yield f"line {node.lineno}: {name}"
            case ast.Constant(value=str(name)) if name in UNCLEAN and id(node) in named:
                yield f"line {node.lineno}: {name}"
            case ast.BinOp(left=ast.Constant(), op=ast.Pow()) | ast.BinOp(op=ast.Pow(), right=ast.Constant()):
                pass
            case ast.BinOp(op=ast.Pow(), right=ast.UnaryOp(operand=ast.Constant())):
                pass
            case ast.BinOp(op=ast.Pow()):
                yield f"line {node.lineno}: {ast.unparse(node)}"


@in_one_item(
    "path",
    [p for p in chain(*((SOURCES / room).glob("*.py") for room in ("losses", "metrics"))) if p.stem != "elementary"],
)
def test_no_loss_and_no_metric_uses_what_depends_on_the_position(path: Path) -> None:
    found = list(faults(ast.parse(path.read_text())))
    assert not found, f"{path.name}: {found}; use lossd.losses.elementary"


def test_the_check_of_sources_finds_them() -> None:
    source = "y = torch.sigmoid(x); y = x.pow_(gamma); y = x**gamma; y = _of_torch('tan'); y = x**2 + 2.0**-n"
    assert len(list(faults(ast.parse(source)))) == 4
