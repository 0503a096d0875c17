"""All kernels, in the order in which they are compiled if no request needs another first."""

from __future__ import annotations

from collections.abc import Sequence

from lossd.compiled import (
    averages,
    boxes,
    confusion,
    dense,
    elementwise,
    formulas,
    hashes,
    multivariate,
    rankings,
    regions,
    softmax,
)
from lossd.compiled.kernels import Kernel, kernel_of
from lossd.counting_kernels import CountingKernels

__all__ = ["COUNTING", "KERNELS"]

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
        confusion.matrices,
        softmax.single_rows,
        formulas.formulas,
        regions.regions,
        boxes.pairs,
        multivariate.multivariate,
        rankings.queries,
        hashes.group_keys,
        hashes.add_words,
        hashes.sum_hashes,
    )
]

COUNTING: CountingKernels = {
    "rates": averages.rates,
    "decisions": elementwise.decisions,
    "errors": elementwise.errors,
    "matrices": confusion.matrices,
    "queries": rankings.queries,
    "group_keys": hashes.group_keys,
    "add_words": hashes.add_words,
    "sum_hashes": hashes.sum_hashes,
}
"""The kernels that metrics and runs call: what these count for a pass, they count for any other loss too."""
