"""The loss whose formula the client writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossd.cost import Cost
from lossd.lazy_torch import Tensor
from lossd.losses.formula import Formula, FormulaError
from lossd.losses.formula_parser import parse
from lossd.losses.registry import Refinement, loss
from lossd.losses.types import Real, TensorType

# What the evaluation and the function itself call other things.
RESERVED = ("cotangent", "sample_weight", "direction", "formula", "parameters")


def _refine(parameters: Mapping[str, Any]) -> Refinement:
    """Return the inputs: the names in the formula that are no parameters."""
    formula = parse(parameters["formula"])
    inputs = formula.inputs(parameters["parameters"])
    for name in inputs:
        if name in RESERVED:
            raise FormulaError(f"{name} cannot be an input's name: it means something else; choose another")

    index, number = TensorType("integer", ("integer",), ("...",)), TensorType("real", ("float",), ("...",))
    return Refinement(inputs={name: index if name in formula.indices else number for name in inputs})


def _parsed(
    parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Formula, Mapping[str, tuple[int, ...]]]:
    """Return the formula, and the shapes of its own inputs."""
    formula = parse(parameters["formula"])
    return formula, {name: shapes[name] for name in formula.inputs(parameters["parameters"])}


def _shape(parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    formula, of_inputs = _parsed(parameters, shapes)
    return formula.shape(of_inputs)


def _cost(parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Cost:
    formula, of_inputs = _parsed(parameters, shapes)
    return formula.cost(of_inputs)


def _keeps_rows(parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    formula, of_inputs = _parsed(parameters, shapes)
    return formula.keeps_rows(of_inputs)


def _elementwise(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the inputs by which the formula's Hessian is diagonal."""
    formula = parse(parameters["formula"])
    return tuple(name for name in formula.names if formula.separates(name))


@loss(
    task="custom",
    kind="alone",
    differentiable=(),
    refine=_refine,
    shape=_shape,
    keeps_rows=_keeps_rows,
    cost=_cost,
    elementwise=_elementwise,
)
def expression(
    *,
    formula: str,
    parameters: dict[str, float] = {},  # noqa: B006  (never written to)
    **inputs: Real[Tensor, "..."],
) -> Real[Tensor, "..."]:
    r"""A formula of the request over its own inputs, with its gradient.

    .. math:: L = f(x_1, x_2, \dots;\ p_1, p_2, \dots)

    A formula is any number of assignments ``name = …;``, then the value. It may use ``+ - * / **``, comparisons, which
    are 1 where they hold and else 0, numbers, names, and the functions below. For comparisons, ``a * b`` means and,
    ``maximum(a, b)`` means or, and ``1 - a`` means not.

    Entry by entry: abs, exp, expm1, log, log1p, sqrt, square, sign, sin, cos, tanh, sigmoid, softplus, logsigmoid,
    relu, erf, lgamma, log1mexp (the logarithm of 1 - exp(x) for x <= 0), minimum(a, b), maximum(a, b),
    clamp(x, low, high), where(condition, a, b), and stop(x), which is x with gradient 0.

    Over all entries, or over one axis, as in sum(x, 1), which then has length 1: sum, mean, max, min, norm (L2),
    dot(a, b).

    Along an axis, by default 1, or 0 if it is the only one: softmax, log_softmax, cumsum, logcumsumexp, sort
    (ascending, with equal entries in their order), logsumexp, after which the axis has length 1, and gather(x, index),
    which takes the entries of x at whole numbers from 0. An index without that axis takes one entry of each row, and
    the axis then has length 1; another takes as many entries as it has. An input that is used only as an index is a
    tensor of integers.

    Of matrices: transpose(x) exchanges the last two axes, and matmul(a, b) multiplies (..., m, k) and (..., k, n).

    Shapes must be equal. Numbers fit every shape, and an axis of length 1 fits every length. The value may have any
    shape; ``reduction`` reduces it to a number. ``where`` computes both branches: NaN and infinities in the branch that
    is not taken change neither value nor gradient. If you multiply a branch by 0 instead, they do.

    Requests with one formula share a batch if no operation combines rows (axis 0): if each works entry by entry or
    along the last axis. Leave a final mean over the rows to ``reduction``.

    Args:
        formula: For example ``e = prediction - target; where(e > 0, k * e**2, e**2)``.
        parameters: The formula's constants by name, for example ``{"k": 3}``.
        inputs: Every other name in the formula is a tensor of the request, of floats unless it is an index.

    Returns:
        The formula's value, unreduced.

    Gradient:
        With respect to every input, by autograd: 0 for ``abs`` and ``norm`` at 0, shared evenly between equal entries
        of ``max`` and ``min``; an entry that the loss does not depend on has gradient 0.

    References:
        A. Griewank, A. Walther, Evaluating Derivatives, 2nd edition, 2008, doi:10.1137/1.9780898717761.
    """
    return parse(formula).evaluate(inputs, parameters, checked=True)
