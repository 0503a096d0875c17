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
    tallies,
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
        confusion.highest,
        hashes.place_rows,
        hashes.add_words,
        hashes.sum_hashes,
        tallies.tally,
        tallies.pack_sums,
    )
]

COUNTING: CountingKernels = {
    "rates": averages.rates,
    "decisions": elementwise.decisions,
    "errors": elementwise.errors,
    "matrices": confusion.matrices,
    "highest": confusion.highest,
    "queries": rankings.queries,
    "place_rows": hashes.place_rows,
    "add_words": hashes.add_words,
    "sum_hashes": hashes.sum_hashes,
    "tally": tallies.tally,
    "pack_sums": tallies.pack_sums,
}
"""The kernels that metrics and runs call: what these count for a pass, they count for any other loss too."""
