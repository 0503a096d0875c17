"""All kernels, in the order in which they are compiled if no request needs another first."""

from __future__ import annotations

from collections.abc import Sequence

from lossd.compiled import averages, dense, elementwise, softmax
from lossd.compiled.kernels import Kernel, kernels_of

__all__ = ["KERNELS"]

HOTTEST_FIRST = (
    softmax.rows,
    averages.rates,
    dense.weigh,
    dense.part,
    elementwise.elements,
    elementwise.decisions,
    elementwise.errors,
    softmax.single_rows,
)

KERNELS: Sequence[Kernel] = sorted(
    (kernel for function in HOTTEST_FIRST for kernel in kernels_of(function)),
    key=lambda kernel: kernel.dtype == "float64",  # last: JSON's numbers are float32
)
