"""The layout of a batch's columns in one block of memory, and how many rows and requests fit into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lossd.cost import NOTHING, Cost
from lossd.job import MAX_PAIRS, Job, Recipe

__all__ = ["Arrangement", "arrange", "arrange_one", "arrange_shared"]

SCRATCH, SHARED_NS = 16, 500_000_000
"""The most temporaries of a shared batch, in multiples of the batch's size, and its most work; other batches wait."""

ALIGNMENT = 64
MAX_REQUESTS = 512


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The layout of a recipe's columns in a slab, with its capacity.

    Attributes:
        offsets: Bytes from the slab's start to each column.
        rows: Capacity in rows.
        requests: Capacity in requests.
        nbytes: Bytes used when full.
    """

    offsets: tuple[int, ...]
    rows: int
    requests: int
    nbytes: int

    def holds(self, recipe: Recipe, rows: int, requests: int) -> bool:
        """Return whether so many rows of so many requests fit; rows that no column counts take no room."""
        return requests <= self.requests and (rows <= self.rows or not recipe.row_bytes)


def arrange(recipe: Recipe, rows: int, requests: int) -> Arrangement:
    """Return a layout for that many rows and requests: one column after the other, each on a 64-byte boundary.

    Raises:
        ValueError: A number is under 1: the columns would overlap.
    """
    if rows < 1 or requests < 1:
        raise ValueError(f"a slab is arranged for at least one row of one request, not {rows} of {requests}")
    offsets, at = [], 0
    for column in recipe.columns:
        offsets.append(at)
        size = column.unit_bytes * (rows if column.per_row else requests)
        at += -(-size // ALIGNMENT) * ALIGNMENT
    return Arrangement(tuple(offsets), rows, requests, at)


def arrange_one(job: Job, data: Mapping[str, memoryview]) -> tuple[Arrangement, bytearray]:
    """Return a layout for one job, and memory of that layout with the bytes of the job's inputs in it."""
    arrangement = arrange(job.recipe, job.rows, 1)
    memory = bytearray(arrangement.nbytes)
    for column, offset in zip(job.recipe.inputs, arrangement.offsets, strict=False):
        column_bytes = data[column.name]
        memory[offset : offset + len(column_bytes)] = column_bytes
    return arrangement, memory


def arrange_shared(recipe: Recipe, budget_bytes: int, cost: Cost = NOTHING) -> Arrangement | None:
    """Return a layout for as many requests as fit into a budget; None if not even one row fits.

    Args:
        recipe: What the requests share.
        budget_bytes: The budget for the columns.
        cost: The first request's cost; the requests that join it cost about the same.
    """
    usable = budget_bytes - ALIGNMENT * len(recipe.columns)
    most = min(MAX_REQUESTS, budget_bytes // recipe.text_bytes)  # the texts of the answers count too
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
