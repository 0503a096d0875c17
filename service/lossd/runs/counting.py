"""A batch of a run, and the result of a run, as jobs of the engine. This module loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from lossd.caches import Cache
from lossd.job import Column, Job, Recipe
from lossd.request.plan import Layout, Plan
from lossd.runs import identity
from lossd.runs.places import check_place
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire import DTYPES

__all__ = ["FIRST", "SAMPLE_ID", "STATE", "counting_job", "result_job"]

SAMPLE_ID, FIRST, STATE = "sample_id", "first", "state"

REPORT_BYTES = 4096
"""About how many bytes the report of a batch has, without tables."""

RESULT_BYTES = 1 << 16
"""About how many bytes a result has."""

HASH_NS, READ_NS = 4.0, 20.0
"""About how many nanoseconds of one core the digests take for a byte of a batch, and a result for a byte of state."""


def counting_job(plan: Plan, definition: Mapping[str, Any], layout: Layout, *, first: int | None = None) -> Job:
    """Return the job of a batch of a run.

    Args:
        plan: The plan of the definition's request.
        definition: The run's definition.
        layout: The dtype and the shape of each input; ``sample_id`` among them if the run identifies rows by id.
        first: The position of the batch's first row, if the run identifies rows by position.

    Raises:
        InvalidRequest: ``first`` or ``sample_id`` is missing, wrong or belongs to another identity.
        MissingInput, UnknownInput, DtypeMismatch, ShapeMismatch: A tensor does not fit; the detail names it.
    """
    kind = definition["identity"]
    ids = layout.get(SAMPLE_ID)
    check_place(kind, {FIRST: first, SAMPLE_ID: ids})
    job = plan.job(layout if ids is None else {name: found for name, found in layout.items() if name != SAMPLE_ID})
    numbers = job.numbers
    if first is not None:
        if type(first) is not int:
            detail = f"first is {first!r}; it is the position of the batch's first row, an integer"
            raise InvalidRequest(detail, errors=[Fault(pointer="/first", detail=detail)])
        identity.Positions().check(first, job.rows)
        numbers = (*numbers, first)
    if ids is not None:
        _check_ids(*ids, job.rows)
    return Job(_counting(job.recipe, definition, ids), job.rows, numbers, job.cost)


def _check_ids(dtype: str, shape: tuple[int, ...], rows: int) -> None:
    detail = ""
    if DTYPES[dtype].kind != "integer" or dtype == "bool":
        detail = f"sample_id is {dtype}; ids are integers"
    elif shape != (rows,):
        detail = f"sample_id has shape {shape}, the batch has {rows} rows"
    if detail:
        raise InvalidRequest(detail, errors=[Fault(pointer=identity.IDS, detail=detail)])


_COUNTING: Cache[tuple[Any, ...], Recipe] = Cache("run_recipes")
"""The recipes of batches, by the recipe of their evaluation, the definition and the ids."""


def _counting(recipe: Recipe, definition: Mapping[str, Any], ids: tuple[str, tuple[int, ...]] | None) -> Recipe:
    """Return the recipe of a batch, given that of its evaluation."""
    by_row = recipe.kind == "rows"
    column = None if ids is None else Column(SAMPLE_ID, ids[0], () if by_row else ids[1], by_row)
    key = recipe.text, orjson.dumps(definition, option=orjson.OPT_SORT_KEYS), column
    found = _COUNTING.get(key)
    if found is None:
        found = replace(
            recipe,
            run={"count": definition},
            numbers=(*recipe.numbers, FIRST) if definition["identity"] == "position" else recipe.numbers,
            inputs=recipe.inputs if column is None else (*recipe.inputs, column),
            domains=recipe.domains if column is None else {**recipe.domains, SAMPLE_ID: "integer"},
            answers=(),
            text_bytes=max(recipe.text_bytes, REPORT_BYTES),
            byte_ns=recipe.byte_ns + HASH_NS,
        ).shared()
        _COUNTING.put(key, found, found.nbytes + len(recipe.text) + len(key[1]))
    return found


def result_job(state: bytes, plan: Plan, definition: Mapping[str, Any]) -> Job:
    """Return the job that computes the result of a run; its one input ``state`` holds the state's bytes.

    Args:
        state: The bytes of the run's state.
        plan: The plan of the definition's request.
        definition: The run's definition.
    """
    recipe = Recipe(
        loss=plan.loss.name if plan.loss else None,
        task=plan.task,
        kind="alone",
        parameters={},
        numbers=(),
        reduction=plan.reduction,
        want_loss=False,
        gradients=(),
        gradient_options={},
        metrics=(),
        metric_options={},
        terms=(),
        domains={STATE: "integer"},
        classes=None,
        pairs=0,
        text_bytes=RESULT_BYTES,
        value=(),
        inputs=(Column(STATE, "uint8", (len(state),), per_row=False),),
        answers=(),
        byte_ns=READ_NS,
        run={"result": definition},
    )
    return Job(recipe, 1)
