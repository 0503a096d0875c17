"""A batch of a run, and the result of a run, as jobs of the engine. This module loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from lossd.caches import Cache
from lossd.job import Column, Job, Recipe
from lossd.request.plan import Layout, Plan
from lossd.runs.rows import identity
from lossd.runs.rows.content import NEWEST
from lossd.runs.rows.grouping import key_of_name
from lossd.runs.rows.places import SAMPLE_ID, check_integers, check_place, codes_of_batch, is_about_rows, slice_input
from lossd.runs.rows.strata import groups_of
from lossd_client.errors import Fault, InvalidRequest

__all__ = ["FIRST", "STATE", "by_name", "compare_job", "counting_job", "moved", "result_job"]

FIRST, STATE = "first", "state"

REPORT_BYTES = 4096
"""About how many bytes the report of a batch has, without tables."""

RESULT_BYTES = 1 << 16
"""About how many bytes a result has."""

HASH_NS, READ_NS = 4.0, 20.0
"""About how many nanoseconds of one core the digests take for a byte of a batch, and a result for a byte of state."""


def counting_job(
    plan: Plan,
    definition: Mapping[str, Any],
    layout: Layout,
    *,
    first: int | None = None,
    name: str | None = None,
    slices: Mapping[str, str | None] | None = None,
    content_hash: str = NEWEST,
) -> Job:
    """Return the job of a batch of a run.

    Args:
        plan: The plan of the definition's request.
        definition: The run's definition.
        layout: The dtype and the shape of each input; ``sample_id``, ``cluster_id`` and the codes of slices among them.
        first: The position of the batch's first row, if the run identifies rows by position.
        name: The batch's name, which says the groups of its rows if the run does not identify these.
        slices: The slices of which the batch's rows have one value.
        content_hash: The name of the hash function by which the run tells batches apart.

    Raises:
        InvalidRequest: ``first``, ``sample_id`` or a slice is missing, wrong or belongs to another run.
        MissingInput, UnknownInput, DtypeMismatch, ShapeMismatch: A tensor does not fit; the detail names it.
    """
    kind = definition["identity"]
    check_place(kind, {FIRST: first, SAMPLE_ID: layout.get(SAMPLE_ID)})
    beside = {of_input: found for of_input, found in layout.items() if is_about_rows(of_input)}
    codes = codes_of_batch(definition, slices, list(beside))
    job = plan.job(
        {of_input: found for of_input, found in layout.items() if of_input not in beside} if beside else layout
    )
    numbers: list[float] = [*job.numbers]
    if first is not None:
        if type(first) is not int:
            detail = f"first is {first!r}; it is the position of the batch's first row, an integer"
            raise InvalidRequest(detail, errors=[Fault(pointer="/first", detail=detail)])
        identity.Positions.check_range(first, job.rows)
        numbers.append(first)
    elif by_name(definition):
        numbers.append(key_of_name(name or ""))
    for of_input, (dtype, shape) in beside.items():
        check_integers(of_input, dtype, shape, job.rows)
    recipe = _counting(job.recipe, definition, beside, tuple(codes), content_hash)
    return Job(recipe, job.rows, (*numbers, *codes.values()), job.cost)


def moved(job: Job, definition: Mapping[str, Any], *, first: int | None, name: str) -> Job:
    """Return the job of a batch that differs from another batch of the run in its place or its name alone.

    Args:
        job: The job of the other one.
        definition: The run's definition.
        first: The position of the batch's first row, if the run identifies rows by position.
        name: The batch's name.

    Raises:
        InvalidRequest: There are no such positions.
    """
    if first is not None:
        identity.Positions.check_range(first, job.rows)
    elif by_name(definition):
        first = key_of_name(name)
    else:
        return job
    at = job.recipe.numbers.index(FIRST)
    return Job(job.recipe, job.rows, (*job.numbers[:at], first, *job.numbers[at + 1 :]), job.cost)


def by_name(definition: Mapping[str, Any]) -> bool:
    """Return whether the groups of a batch's rows follow from its name."""
    return definition["identity"] == "batch" and groups_of(definition) > 0


_COUNTING: Cache[tuple[Any, ...], Recipe] = Cache("run_recipes")
"""The recipes of batches, by the recipe of their evaluation, the definition, the hash and what they say beside."""


def _counting(
    recipe: Recipe, definition: Mapping[str, Any], beside: Layout, codes: Sequence[str], content_hash: str
) -> Recipe:
    """Return the recipe of a batch, given that of its evaluation.

    Args:
        recipe: The recipe of the evaluation.
        definition: The run's definition.
        beside: The inputs about rows.
        codes: The slices of which a batch has one value, which are numbers of it.
        content_hash: The name of the hash function by which the run tells batches apart.
    """
    by_row = recipe.kind == "rows"
    columns = tuple(
        Column(name, dtype, () if by_row else tuple(shape), by_row) for name, (dtype, shape) in sorted(beside.items())
    )
    key = recipe.text, orjson.dumps(definition, option=orjson.OPT_SORT_KEYS), columns, codes, content_hash
    found = _COUNTING.get(key)
    if found is None:
        first = (FIRST,) if definition["identity"] == "position" or by_name(definition) else ()
        found = replace(
            recipe,
            run={"count": definition, "hash": content_hash},
            numbers=(*recipe.numbers, *first, *(slice_input(name) for name in codes)),
            inputs=(*recipe.inputs, *columns),
            domains={**recipe.domains, **{column.name: "integer" for column in columns}},
            answers=(),
            text_bytes=max(recipe.text_bytes, REPORT_BYTES),
            byte_ns=recipe.byte_ns + HASH_NS,
        ).shared()
        _COUNTING.put(key, found, found.nbytes + len(recipe.text) + len(key[1]))
    return found


def result_job(
    state: bytes, plan: Plan, definition: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> Job:
    """Return the job that computes the result of a run; its one input ``state`` holds the state's bytes.

    Args:
        state: The bytes of the run's state.
        plan: The plan of the definition's request.
        definition: The run's definition.
        options: What is asked: ``level``, ``metrics`` (names, or None) and ``slices``, as far as they are no defaults.
    """
    return _reading({STATE: len(state)}, plan, {"result": definition, "options": options or {}})


def compare_job(
    states: Sequence[bytes], plan: Plan, definitions: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> Job:
    """Return the job that compares runs with the first one; its inputs ``state0``, ``state1``, … hold their states.

    Args:
        states: The bytes of each run's state.
        plan: The plan of the first run's request.
        definitions: Each run's definition.
        options: What is asked: ``level``, ``metrics`` (names, or None), ``classes``, ``slices`` and ``unpaired``, as
            far as they are no defaults.
    """
    sizes = {f"{STATE}{number}": len(state) for number, state in enumerate(states)}
    return _reading(sizes, plan, {"compare": {"definitions": list(definitions), "options": options}})


def _reading(sizes: Mapping[str, int], plan: Plan, run: Mapping[str, Any]) -> Job:
    """Return a job that reads states of runs.

    Args:
        sizes: The inputs' names, and how many bytes each has.
        plan: The plan that names the loss and the task.
        run: What is read.
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
        domains=dict.fromkeys(sizes, "integer"),
        classes=None,
        pairs=0,
        text_bytes=RESULT_BYTES,
        value=(),
        inputs=tuple(Column(name, "uint8", (size,), per_row=False) for name, size in sizes.items()),
        answers=(),
        byte_ns=READ_NS,
        run=run,
    )
    return Job(recipe, 1)
