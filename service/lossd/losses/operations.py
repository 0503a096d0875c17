"""The operations of formulas: each with its shape rule and its numerically stable evaluation.

A value is a tensor or, if it depends on no input, a Python float; numbers have no dtype of their own and never widen a
tensor's. Arithmetic follows IEEE 754: 1/0 is infinite, 9**9**9 too, and no integer grows without bound.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lossd.cost import Cost
from lossd.lazy_torch import Tensor, functional, torch
from lossd.losses.elementary import SHARED, in_whole_vectors, log1mexp, sigmoid, softplus

__all__ = ["OPERATIONS", "Operation", "Value"]

Value = Tensor | float
Shape = tuple[int, ...]

PRODUCT_NS = 1
"""What a product within a matrix product takes with its gradients, in nanoseconds of one core."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator or function.

    Attributes:
        name: The name in formulas.
        compute: On as many values as there are operands, at least one a tensor; with the axis where there is one.
        operands: How many values it takes.
        axis: What no axis stands for: ``all`` of them or the ``classes`` (1, or 0 where that is the only one); None
            for an operation that takes no axis and works entry by entry.
        collapses: Whether the axis is left with length 1.
        shaped: Returns the result's shape, given the operands' shapes and the axis; None if the operands are combined
            entry by entry.
        element_bytes: Bytes that an element of the result takes in float64, with what its gradient needs.
        element_ns: Nanoseconds of one core for each element of the result or of an operand, its gradient included.
    """

    name: str
    compute: Callable[..., Tensor]
    operands: int = 1
    axis: Literal["all", "classes"] | None = None
    collapses: bool = False
    shaped: Callable[[Sequence[Shape], int | None], Shape] | None = None
    element_bytes: int = 10
    element_ns: int = 20

    @property
    def signature(self) -> str:
        """The text between the parentheses."""
        values = "one value" if self.operands == 1 else f"{self.operands} values"
        return values + (" and optionally an axis" if self.axis else "")

    def shape(self, operands: Sequence[Shape], axis: int | None) -> Shape:
        """Return the result's shape.

        Raises:
            ValueError: The operands do not combine, or the axis does not exist.
        """
        if self.shaped is not None:
            return self.shaped(operands, self._axis(len(operands[0]), axis))
        shape = combined(operands)
        place = self._axis(len(shape), axis)
        if place is None:
            return () if self.collapses else shape
        return (*shape[:place], 1, *shape[place + 1 :]) if self.collapses else shape

    def cost(self, operands: Sequence[Shape], result: Shape) -> Cost:
        """Return what the result takes, its gradients included."""
        kept = math.prod(result)
        touched = max(kept, *map(math.prod, operands))
        if self.name != "matmul":
            return Cost(self.element_bytes * kept, self.element_ns * touched)
        copied = kept + sum(map(math.prod, operands))  # operands of a narrower dtype are kept in float64
        return Cost(self.element_bytes * copied, self.element_ns * touched + PRODUCT_NS * kept * operands[0][-1])

    def keeps_rows(self, operands: Sequence[Shape], axis: int | None, result: Shape) -> bool:
        """Return whether each row of the result depends on the same row of the operands alone, to the last bit.

        torch sums along a last axis row by row. Along another it vectorizes over the axes beside, and its threads share
        a single long row; the order of additions may then depend on the number of rows. ``False`` may be wrong.

        Args:
            operands: The operands' shapes: numbers, or tensors of equally many rows.
            axis: The axis written in the formula.
            result: The result's shape.
        """
        if self.name == "matmul":
            return False
        if self.name == "transpose":
            return len(result) > 2
        shapes = [shape for shape in operands if shape]
        whole = shapes[0] if self.shaped is not None else combined(shapes)
        if max(math.prod(whole[1:]), math.prod(result[1:])) >= SHARED:
            return False
        if self.axis is not None and not 0 < len(whole) - 1 == self._axis(len(whole), axis):
            return False
        return self.shaped is not None or all(shape == whole or shape[:-1] == whole[:-1] != () for shape in shapes)

    def __call__(self, operands: Sequence[Value], axis: int | None) -> Value:
        """Return the result; a float if every operand is one.

        Raises:
            IndexError: An index does not exist.
        """
        if all(isinstance(value, float) for value in operands):
            wide = [torch.tensor(value, dtype=torch.float64) for value in operands]
            return float(self._compute(wide, axis))
        return self._compute(operands if self.shaped else _spread(operands), axis)

    def _compute(self, operands: Sequence[Value], axis: int | None) -> Tensor:
        if self.axis is None:
            return self.compute(*operands)
        ndim = max(value.ndim for value in operands if isinstance(value, Tensor))
        return self.compute(*operands, axis=self._axis(ndim, axis))

    def _axis(self, ndim: int, axis: int | None) -> int | None:
        """Return the axis counted from 0, or None for all."""
        if axis is None and self.axis == "classes":
            axis = min(1, ndim - 1) if ndim else 0
        if axis is not None and not -ndim <= axis < ndim:
            raise ValueError(f"{self.name} over axis {axis} of a value with {ndim} axes")
        return axis % ndim if axis is not None else None


def _spread(operands: Sequence[Value]) -> Sequence[Value]:
    """Return the operands in one shape, so that gradients are summed along axes of length 1 from contiguous memory.

    torch sums a gradient that is not contiguous in an order that may depend on the number of rows.
    """
    shapes = {tuple(value.shape) for value in operands if isinstance(value, Tensor) and value.ndim}
    if len(shapes) < 2:
        return operands
    shape = combined(list(shapes))

    def gathered(gradient: Tensor | None) -> Tensor | None:
        return None if gradient is None else gradient.contiguous()

    def spread(value: Value) -> Value:
        if not isinstance(value, Tensor) or not value.ndim or tuple(value.shape) == shape:
            return value
        value = value.expand(shape)
        if value.requires_grad:
            value.register_hook(gathered)  # type: ignore[no-untyped-call]  # as torch left it
        return value

    return [spread(value) for value in operands]


def combined(shapes: Sequence[Shape]) -> Shape:
    """Return the shape of an entry-by-entry operation: equal shapes, numbers with anything, and axes of length 1.

    Raises:
        ValueError: The shapes differ otherwise; axes are never added.
    """
    result: Shape = ()
    for shape in shapes:
        if not result or not shape:
            result = result or shape
            continue
        pairs = list(zip(result, shape, strict=False))
        if len(result) != len(shape) or any(a != b and 1 not in (a, b) for a, b in pairs):
            raise ValueError(
                f"shapes {result} and {shape} do not combine; they must be equal, but for axes of length 1, as sum(x, "
                "1) leaves them"
            )
        result = tuple(b if a == 1 else a for a, b in pairs)
    return result


def _steep(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a value whose gradient is 0 without upstream gradient, even if the slope is infinite.

    ``where(x > 0, log(x), 0)`` does not take the logarithm of 0, but autograd multiplies its infinite slope by 0 and
    returns NaN.
    """

    def guarded(*operands: Value) -> Tensor:
        tensors = [value for value in operands if isinstance(value, Tensor)]
        if not any(tensor.requires_grad for tensor in tensors) or not torch.is_grad_enabled():
            return compute(*operands)
        shape = combined([tuple(tensor.shape) for tensor in tensors])
        arrived: list[Tensor] = []
        twice: list[bool] = []

        def stop(gradient: Tensor | None) -> Tensor | None:
            if gradient is None or not arrived:
                return gradient
            idle = arrived[-1] == 0
            # A second derivative may differ from 0 where no upstream gradient arrives, as that of log(x) ** 2 at 1.
            return gradient.masked_fill(idle & ~gradient.isfinite() if any(twice) else idle, 0)

        def arrive(gradient: Tensor | None) -> None:
            if gradient is not None:
                arrived.append(gradient.detach())
            twice.append(torch.is_grad_enabled())

        entries: list[Value] = []
        for value in operands:
            if isinstance(value, Tensor) and value.requires_grad:
                value = value.expand(shape)  # a node of its own, before the sum over axes of length 1
                value.register_hook(stop)  # type: ignore[no-untyped-call]  # as torch left it
            entries.append(value)
        result = compute(*entries)
        result.register_hook(arrive)  # type: ignore[no-untyped-call]  # as torch left it
        return result

    return guarded


def _of_torch(name: str) -> Callable[..., Tensor]:
    def compute(*operands: Value) -> Tensor:
        result: Tensor = getattr(torch, name)(*operands)
        return result

    return compute


_steep_product = _steep(_of_torch("mul"))


def _compared(compare: Callable[[Any, Any], Any]) -> Callable[..., Tensor]:
    """Return 1 where the comparison holds, else 0, in the operands' dtype."""

    def compute(a: Value, b: Value) -> Tensor:
        result: Tensor = compare(a, b)
        return result.to(_like(a, b).dtype)

    return compute


def _like(*values: Value) -> Tensor:
    return next(value for value in values if isinstance(value, Tensor))


def _tensors(*values: Value) -> list[Tensor]:
    """Return numbers as tensors, in the dtype of the others."""
    like = _like(*values)
    numbers = [v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64, device=like.device) for v in values]
    return [number.to(like.dtype) for number in numbers]  # beyond the range of a narrow dtype: infinite


def _times(a: Value, b: Value) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _steep_product(a, b)
    # The slope of a product with a number is that number; two tensors can be 0 and infinity.
    return torch.mul(a, b) if isinstance(a, Tensor) else torch.mul(_like(b), a)


PLAIN_EXPONENTS = (0.0, 0.5, 1.0, 2.0, 3.0)
"""Exponents for which torch takes roots and products, forward and in the gradient."""


def _power(base: Value, exponent: Value) -> Tensor:
    if isinstance(exponent, Tensor):
        return in_whole_vectors(torch.pow, *_tensors(base, exponent))
    if exponent in PLAIN_EXPONENTS:
        plain: Tensor = operator.pow(_like(base), exponent)
        return plain
    return in_whole_vectors(lambda entries: operator.pow(entries, exponent), _like(base))


def _where(condition: Value, a: Value, b: Value) -> Tensor:
    condition, a, b = _tensors(condition, a, b)
    return torch.where(condition != 0, a, b)


def _dims(x: Tensor, axis: int | None) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axis is None else (axis,)


def _sum(x: Tensor, axis: int | None) -> Tensor:
    return x.sum(_dims(x, axis), keepdim=axis is not None, dtype=torch.float64).to(x.dtype)


def _mean(x: Tensor, axis: int | None) -> Tensor:
    return x.mean(_dims(x, axis), keepdim=axis is not None, dtype=torch.float64).to(x.dtype)


def _norm(x: Tensor, axis: int | None) -> Tensor:
    # Relative to the largest entry, so that no square leaves the dtype's range; the gradient at 0 is 0.
    dims, keep = _dims(x, axis), axis is not None
    largest = x.detach().abs().amax(dims, keepdim=True)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    length: Tensor = torch.linalg.vector_norm(x / scale, dim=dims, keepdim=True) * scale
    return length if keep else length.reshape(())


def _dot(a: Value, b: Value, axis: int | None) -> Tensor:
    return _sum(_times(a, b), axis)


def _logsumexp(x: Tensor, axis: int) -> Tensor:
    empty = (x == -math.inf).all(axis, keepdim=True)  # autograd's gradient of it is NaN
    total = torch.logsumexp(x.masked_fill(empty, 0), axis, keepdim=True)
    return total.masked_fill(empty, -math.inf)


def _lgamma(x: Tensor) -> Tensor:
    return in_whole_vectors(torch.lgamma, x.double()).to(x.dtype)


def _cumsum(x: Tensor, axis: int) -> Tensor:
    return x.cumsum(axis, dtype=torch.float64).to(x.dtype)


def _logcumsumexp(x: Tensor, axis: int) -> Tensor:
    from lossd.losses.scans import logcumsumexp  # here, because it subclasses what only torch has

    return logcumsumexp(x.double(), axis).to(x.dtype)


def _sort(x: Tensor, axis: int) -> Tensor:
    return torch.sort(x, dim=axis, stable=True).values


def _gather(x: Tensor, index: Value, axis: int) -> Tensor:
    sent = index if isinstance(index, Tensor) else x.new_full((), index)
    place = sent.detach().long()
    bad = (place != sent) | (place < 0) | (place >= x.shape[axis])
    if bool(bad.any()):
        at = [int(i) for i in bad.nonzero()[0]]
        found = sent[tuple(at)].item()
        whole = float(found).is_integer()
        reason = f"out of range: axis {axis} has 0 to {x.shape[axis] - 1}" if whole else "no whole number"
        raise IndexError(f"the index {int(found) if whole else found} at {at} is {reason}")
    return x.gather(axis, place if place.ndim == x.ndim else place.unsqueeze(axis))


def _shape_of_gather(operands: Sequence[Shape], axis: int | None) -> Shape:
    value, index = operands
    assert axis is not None
    before, after = value[:axis], value[axis + 1 :]
    if index == (*before, *after):
        return (*before, 1, *after)
    if len(index) != len(value) or (index[:axis], index[axis + 1 :]) != (before, after):
        raise ValueError(
            f"an index of shape {index} does not fit a value of shape {value}; it needs that shape without axis "
            f"{axis}, or with another length there"
        )
    return index


def _shape_of_transpose(operands: Sequence[Shape], _: int | None) -> Shape:
    (shape,) = operands
    if len(shape) < 2:
        raise ValueError(f"transpose exchanges the last two axes, and the value has shape {shape}")
    return (*shape[:-2], shape[-1], shape[-2])


def _shape_of_matmul(operands: Sequence[Shape], _: int | None) -> Shape:
    a, b = operands
    if len(a) != len(b) or len(a) < 2 or a[-1] != b[-2] or a[:-2] != b[:-2]:
        raise ValueError(
            f"shapes {a} and {b} are not those of matrices to multiply: (..., m, k) and (..., k, n) with equal axes "
            "before the last two"
        )
    return (*a[:-1], b[-1])


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a.double(), b.double()).to(a.dtype)


def _table(*operations: Operation) -> dict[str, Operation]:
    return {operation.name: operation for operation in operations}


OPERATIONS = _table(
    Operation("+", operator.add, 2),
    Operation("-", operator.sub, 2),
    Operation("*", _times, 2),
    Operation("/", _steep(operator.truediv), 2),
    Operation("**", _steep(_power), 2),
    Operation("-x", operator.neg),
    *(
        Operation(sign, _compared(compare), 2)
        for sign, compare in (
            ("<", operator.lt),
            ("<=", operator.le),
            (">", operator.gt),
            (">=", operator.ge),
            ("==", operator.eq),
            ("!=", operator.ne),
        )
    ),
    Operation("abs", _of_torch("abs")),
    Operation("exp", _steep(_of_torch("exp"))),
    Operation("expm1", _steep(_of_torch("expm1"))),
    Operation("log", _steep(_of_torch("log"))),
    Operation("log1p", _steep(_of_torch("log1p"))),
    Operation("sqrt", _steep(_of_torch("sqrt"))),
    Operation("square", _of_torch("square")),
    Operation("sign", _of_torch("sign")),
    Operation("sin", _of_torch("sin")),
    Operation("cos", _of_torch("cos")),
    Operation("tanh", _of_torch("tanh")),
    Operation("erf", lambda x: in_whole_vectors(torch.erf, x)),
    Operation("lgamma", _steep(_lgamma), element_bytes=20, element_ns=100),
    Operation("log1mexp", _steep(log1mexp), element_bytes=90),
    Operation("sigmoid", sigmoid),
    Operation("softplus", softplus),
    Operation("logsigmoid", lambda x: functional.logsigmoid(x)),
    Operation("relu", _of_torch("relu")),
    Operation("minimum", lambda a, b: torch.minimum(*_tensors(a, b)), 2),
    Operation("maximum", lambda a, b: torch.maximum(*_tensors(a, b)), 2),
    Operation("clamp", lambda x, low, high: torch.clamp(*_tensors(x, low, high)), 3),
    Operation("where", _where, 3),
    Operation("stop", lambda x: x.detach()),
    Operation("softmax", lambda x, axis: torch.softmax(x, axis), axis="classes"),
    Operation("log_softmax", lambda x, axis: torch.log_softmax(x, axis), axis="classes"),
    Operation("logsumexp", _logsumexp, axis="classes", collapses=True),
    Operation("cumsum", _cumsum, axis="classes"),
    Operation("logcumsumexp", _logcumsumexp, axis="classes", element_bytes=30, element_ns=300),
    Operation("sort", _sort, axis="classes", element_bytes=20, element_ns=200),
    Operation("gather", _gather, 2, axis="classes", shaped=_shape_of_gather, element_bytes=30, element_ns=40),
    Operation("sum", _sum, axis="all", collapses=True),
    Operation("mean", _mean, axis="all", collapses=True),
    Operation("max", lambda x, axis: x.amax(_dims(x, axis), keepdim=axis is not None), axis="all", collapses=True),
    Operation("min", lambda x, axis: x.amin(_dims(x, axis), keepdim=axis is not None), axis="all", collapses=True),
    Operation("norm", _norm, axis="all", collapses=True),
    Operation("dot", _dot, 2, axis="all", collapses=True),
    Operation("transpose", lambda x: x.transpose(-2, -1).contiguous(), shaped=_shape_of_transpose),
    Operation("matmul", _matmul, 2, shaped=_shape_of_matmul),
)
"""Every operation, by the name a formula writes."""
