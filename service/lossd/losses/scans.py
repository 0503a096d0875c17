"""The logarithm of cumulative sums of exponentials, with derivatives of every order. Loads torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["logcumsumexp"]


def logcumsumexp(x: Tensor, axis: int) -> Tensor:
    """Return log of the sum of e^x over the entries up to each one: float64, in the shape of ``x``.

    Where all these entries are -inf, so is the result, and its gradient is 0; that of torch's own function is NaN.
    """
    result: Tensor = _LogCumulativeSum.apply(x, axis)  # type: ignore[no-untyped-call]  # as torch left it
    return result


class _LogCumulativeSum(torch.autograd.Function):
    """y_j = log of the sum of e^x_i over i <= j, whose derivative by x_i is e^(x_i - y_j)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int) -> Tensor:
        y = torch.logcumsumexp(x, axis)
        ctx.save_for_backward(x, y)
        ctx.axis = axis
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors
        return _scan(gradient, -y, x, ctx.axis, reverse=True), None


def _scan(a: Tensor, inner: Tensor, outer: Tensor, axis: int, *, reverse: bool) -> Tensor:
    result: Tensor = _Scan.apply(a, inner, outer, axis, reverse)  # type: ignore[no-untyped-call]  # as torch left it
    return result


class _Scan(torch.autograd.Function):
    """s_i = e^outer_i times the sum of a_j e^inner_j over j <= i, or over j >= i if reversed.

    The exponents may be large if only their sums are not. The function is linear in ``a``, and its transpose is the
    same function in the other direction, with the exponents exchanged.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, inner: Tensor, outer: Tensor, axis: int, reverse: bool) -> Tensor:
        def scanned(sizes: Tensor) -> Tensor:
            exponents = (inner + sizes.log()).masked_fill((sizes == 0) | (inner == math.inf), -math.inf)
            total = exponents.flip(axis).logcumsumexp(axis).flip(axis) if reverse else exponents.logcumsumexp(axis)
            return (outer + total).exp().masked_fill(total == -math.inf, 0)

        result = scanned(a.clamp(min=0)) - scanned((-a).clamp(min=0))
        ctx.save_for_backward(a, inner, outer, result)
        ctx.axis, ctx.reverse = axis, reverse
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        a, inner, outer, result = ctx.saved_tensors
        by_a = _scan(gradient, outer, inner, ctx.axis, reverse=not ctx.reverse)
        return by_a, a * by_a, gradient * result, None, None
