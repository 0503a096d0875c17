"""The compiled functions that metrics and runs call, and their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

__all__ = ["NO_KERNELS", "CountingKernels"]


class CountingKernels(TypedDict, total=False):
    """The functions that are ready, by name. Each has its docstring in ``lossd.compiled``.

    They compute in one call what takes many operations of torch or NumPy, and to the same bits.
    """

    rates: Callable[[Any, Any, float, bool, Any, Any], bool]
    decisions: Callable[[Any, Any, int, Any, int, Any, Any], None]
    errors: Callable[[Any, Any, int, Any, Any, Any, Any, Any], None]
    matrices: Callable[[Any, int, Any, Any, int, Any], None]
    highest: Callable[[Any, int, int, Any], None]
    queries: Callable[[Any, int, Any, int, Any, bool, bool, Any, Any], None]
    place_rows: Callable[[Any, Any, Any, Any, bool, Any], None]
    add_words: Callable[[Any, Any, int, int, int, Any, Any], bool]
    sum_hashes: Callable[[Any, Any, Any, Any, Any, Any], None]
    tally: Callable[[Any, Any, int, Any, int, Any, Any, int, int, Any, Any], int]
    pack_sums: Callable[[Any, Any, int, Any, Any], None]


NO_KERNELS: CountingKernels = {}
