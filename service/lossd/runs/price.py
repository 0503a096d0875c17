"""Estimates from the definition how much the slices of a run cost."""

from __future__ import annotations

from lossd.metrics.parts import Rankings
from lossd.metrics.registry import METRICS, TASKS
from lossd.runs.definition import RunDocument
from lossd.runs.rows.slots import slots_of
from lossd.runs.totals.tables import GROUP_ROWS, rows_of_a_slice
from lossd_client.errors import Fault, QuotaExceeded

__all__ = ["check_price"]

CELL_BYTES, ENTRY_BYTES = 5, 2
"""The bytes of a cell of a table by group, and of each label that it has."""


def check_price(document: RunDocument, run_bytes: int) -> None:
    """Check that the tables of the slices fit into a run, once there are many rows.

    Args:
        document: The definition.
        run_bytes: The most bytes of a run.

    Raises:
        QuotaExceeded: They do not; the detail says what to leave out.
    """
    task, slots = document.plan.task, slots_of(document.definition)
    reads = {part: name for name in document.plan.metrics for part in METRICS[task][name].reads or ()}
    tables = {part: name for part, name in reads.items() if isinstance(getattr(TASKS[task], part, None), Rankings)}
    if slots.strata == 1 or not tables:
        return
    rows = min(GROUP_ROWS, document.limit, rows_of_a_slice(slots))
    nbytes = len(tables) * (slots.strata - 1) * rows * (CELL_BYTES + ENTRY_BYTES * 2 * slots.groups)
    if nbytes <= run_bytes:
        return
    detail = (
        f"{', '.join(tables.values())} of {slots.strata - 1} slice values in {slots.groups} groups may take {nbytes} "
        f"bytes, and a run may hold {run_bytes}; declare groups 16, or fewer slices and crossings, or leave out "
        f"{' and '.join(tables.values())}"
    )
    raise QuotaExceeded(detail, errors=[Fault(pointer="/slices", detail=detail)])
