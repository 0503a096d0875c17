"""All kernels, in the order in which they are compiled if no request needs another first."""

from __future__ import annotations

from collections.abc import Sequence

from lossd.compiled import averages, dense, elementwise, softmax
from lossd.compiled.kernels import Kernel, kernel_of

__all__ = ["KERNELS"]

KERNELS: Sequence[Kernel] = [
    kernel_of(function)
    for function in (
        softmax.rows,
        averages.rates,
        dense.weigh,
        dense.part,
        elementwise.elements,
        elementwise.decisions,
        elementwise.errors,
        softmax.single_rows,
    )
]
