"""What the ways to identify a run's rows share: limits, gaps, and the errors of duplicates and of damaged bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from lossd_client.errors import DuplicateRows, Fault, InvalidRequest
from lossd_client.wire.quoting import quoted

__all__ = [
    "APART",
    "BEFORE",
    "BOTH",
    "LAST_POSITION",
    "MAX_BYTES",
    "MAX_LISTED",
    "MAX_NAMED",
    "MAX_RANGES",
    "NEW_ONLY",
    "Array",
    "damaged",
    "duplicate",
    "gaps",
    "halves",
]

Array = np.ndarray[Any, Any]

MAX_BYTES = 1 << 28
"""The memory that the identity of a run may take: 256 MiB, which hold the ids 0 to 10⁹, or 16 million random ones."""

MAX_NAMED, MAX_LISTED = 10, 10_000
"""The rows that the text of an error names, and those that it lists for a client that drops them."""

MAX_RANGES = 1000
LAST_POSITION = np.iinfo(np.int64).max

BEFORE, NEW_ONLY = "the run has counted these rows before", "send only rows that it has not counted"
BOTH, APART = "both runs counted these rows", "merge runs of different rows"


def gaps(runs: Iterable[tuple[int, int]], end: int, limit: int) -> list[range]:
    """Return the first ranges from 0 to ``end`` that increasing runs leave out."""
    gaps: list[range] = []
    position = 0
    for start, stop in runs:
        if start >= end or len(gaps) >= limit:
            break
        if start > position:
            gaps.append(range(position, start))
        position = stop
    if position < end and len(gaps) < limit:
        gaps.append(range(position, end))
    return gaps


def duplicate(
    what: str, rows: Sequence[int] | Sequence[str], count: int, remedy: str, *, pointer: str = ""
) -> DuplicateRows:
    """Return the error of rows that were counted before, or that stand twice in a batch.

    Args:
        what: What is wrong.
        rows: The first of them: positions, ids, or names of batches. The text names the first few.
        count: How many there are.
        remedy: What to do.
        pointer: The place in the request.
    """
    named = rows[:MAX_NAMED]
    shown = ", ".join(quoted(row) if isinstance(row, str) else str(row) for row in named)
    more = f", ... ({count} in all)" if count > len(named) else ""
    detail = f"{what}: {shown}{more}; {remedy}"
    errors = [Fault(pointer=pointer, detail=detail)] if pointer else ()
    return DuplicateRows(detail, rows=rows, count=count, errors=errors)


def halves(data: memoryview, check: Callable[[int], None]) -> tuple[Array, Array]:
    """Return two vectors of int64, as many as ``check`` allows."""
    count, rest = divmod(len(data), 16)
    if rest:
        raise damaged("it is cut off")
    check(count)
    numbers = np.frombuffer(data, "<i8").astype(np.int64)
    return numbers[:count], numbers[count:]


def damaged(reason: str) -> InvalidRequest:
    """Return the error of bytes that no ``encode`` returns."""
    return InvalidRequest(f"the record of the counted rows is damaged: {reason}")
