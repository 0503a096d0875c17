"""The loss whose formula the client writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossd.cost import Cost
from lossd.lazy_torch import Tensor
from lossd.losses.formula import FormulaError, parse
from lossd.losses.registry import Refinement, loss
from lossd.losses.types import Real, TensorType

# What the evaluation and the function itself call other things.
ELEMENT_BYTES, ELEMENT_NS, STEP_NS = 10, 20, 500_000
"""As measured, in float64: what a result's element takes, and what a step takes however small."""

RESERVED = ("cotangent", "sample_weight", "formula", "parameters")


def _refine(parameters: Mapping[str, Any]) -> Refinement:
    """Return the inputs: the names in the formula that are no parameters."""
    inputs = parse(parameters["formula"]).inputs(parameters["parameters"])
    for name in inputs:
        if name in RESERVED:
            raise FormulaError(f"{name} cannot be an input's name: it means something else; choose another")
    return Refinement(inputs=dict.fromkeys(inputs, TensorType("real", ("float",), ("...",))))


def _shape(parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    formula = parse(parameters["formula"])
    return formula.shape({name: shapes[name] for name in formula.inputs(parameters["parameters"])})


def _cost(parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Cost:
    """Return the cost: autograd keeps all results, with what their gradients need."""
    formula = parse(parameters["formula"])
    elements = formula.elements({name: shapes[name] for name in formula.inputs(parameters["parameters"])})
    return Cost(ELEMENT_BYTES * elements, ELEMENT_NS * elements + STEP_NS * len(formula.steps))


@loss(task="custom", kind="alone", differentiable=(), refine=_refine, shape=_shape, cost=_cost)
def expression(
    *,
    formula: str,
    parameters: dict[str, float] = {},  # noqa: B006  (never written to)
    **inputs: Real[Tensor, "..."],
) -> Real[Tensor, "..."]:
    r"""A loss the request writes as a formula over its own inputs, with its gradient.

    .. math:: L = f(x_1, x_2, \dots;\ p_1, p_2, \dots)

    A formula is ``name = …;`` any number of times, then the value. There are ``+ - * / **``, comparisons (1 where they
    hold, else 0: ``a * b`` is and, ``maximum(a, b)`` or, ``1 - a`` not), numbers, names, and these functions.

    Entry by entry: abs, exp, expm1, log, log1p, sqrt, square, sign, sin, cos, tanh, sigmoid, softplus, logsigmoid,
    relu, minimum(a, b), maximum(a, b), clamp(x, low, high), where(condition, a, b).

    Over all entries, or over an axis that is left with length 1, as in sum(x, 1): sum, mean, max, min, norm (L2),
    dot(a, b).

    Over an axis, by default 1 (0 where it is the only one): softmax, log_softmax, and logsumexp, which leaves it with
    length 1.

    Shapes must be equal, but that numbers go with everything and an axis of length 1 with any other length. The value
    may have any shape; what is not a number yet is reduced by ``reduction``. ``where`` computes both branches and
    takes one: where the other is infinite or NaN neither value nor gradient suffers. Multiplying by 0 instead does
    not have that effect.

    Args:
        formula: For example ``e = prediction - target; where(e > 0, k * e**2, e**2)``.
        parameters: The formula's constants by name, for example ``{"k": 3}``.
        inputs: Every other name in the formula is a tensor of the request.

    Returns:
        The formula's value, unreduced.

    Gradient:
        With respect to every input, by autograd: 0 for ``abs`` and ``norm`` at 0, shared evenly between equal entries
        of ``max`` and ``min``; an entry that the loss does not depend on has gradient 0.

    References:
        A. Griewank, A. Walther, Evaluating Derivatives, 2nd edition, 2008, doi:10.1137/1.9780898717761.
    """
    return parse(formula).evaluate(inputs, parameters)
