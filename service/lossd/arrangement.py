"""Where the columns of a batch lie in one piece of memory, and how many rows and requests fit into it."""

from __future__ import annotations

from dataclasses import dataclass

from lossd.cost import NOTHING, Cost
from lossd.job import MAX_PAIRS, Recipe

__all__ = ["Arrangement", "arrange", "arrange_shared"]

SCRATCH, SHARED_NS = 16, 500_000_000
"""Most temporaries of requests that share a batch, in sizes of one, and most work: others wait until it is done."""

ALIGNMENT = 64
MAX_REQUESTS = 512


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where a recipe's columns lie in a slab, and how much fits.

    Attributes:
        offsets: Bytes from the slab's start, per column.
        rows: Capacity in rows.
        requests: Capacity in requests.
        nbytes: Bytes used when full.
    """

    offsets: tuple[int, ...]
    rows: int
    requests: int
    nbytes: int

    def holds(self, recipe: Recipe, rows: int, requests: int) -> bool:
        """Whether so many rows of so many requests have room; rows that no column counts need none."""
        return requests <= self.requests and (rows <= self.rows or not recipe.row_bytes)


def arrange(recipe: Recipe, rows: int, requests: int) -> Arrangement:
    """Columns for that many rows and requests, one after the other, each on a 64-byte boundary.

    Raises:
        ValueError: There is not even one of either: the columns would lie in each other.
    """
    if rows < 1 or requests < 1:
        raise ValueError(f"a slab is arranged for at least one row of one request, not {rows} of {requests}")
    offsets, at = [], 0
    for column in recipe.columns:
        offsets.append(at)
        size = column.unit_bytes * (rows if column.per_row else requests)
        at += -(-size // ALIGNMENT) * ALIGNMENT
    return Arrangement(tuple(offsets), rows, requests, at)


def arrange_shared(recipe: Recipe, budget_bytes: int, cost: Cost = NOTHING) -> Arrangement | None:
    """Columns for as many requests as a budget holds; None where it does not even hold one row of one request.

    Args:
        recipe: What the requests share.
        budget_bytes: For the columns.
        cost: What the first request takes besides; those that join it take about the same.
    """
    usable = budget_bytes - ALIGNMENT * len(recipe.columns)
    most = min(MAX_REQUESTS, budget_bytes // recipe.text_bytes)  # the answers are as long as they are
    if recipe.pairs:
        most = min(most, MAX_PAIRS // recipe.pairs)
    if cost.scratch_bytes:
        most = min(most, SCRATCH * budget_bytes // cost.scratch_bytes)
    if cost.work_ns:
        most = min(most, SHARED_NS // cost.work_ns)
    most = max(1, most)
    if not recipe.row_bytes:
        rows = requests = min(most, usable // recipe.request_bytes)
    else:
        requests = min(most, max(1, usable // (2 * recipe.request_bytes))) if recipe.request_bytes else most
        rows = (usable - requests * recipe.request_bytes) // recipe.row_bytes
    return arrange(recipe, rows, requests) if rows >= 1 and requests >= 1 else None
