"""Counts batches of a run, computes a run's result, or compares runs: the worker's side."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import orjson

from lossd.caches import memoized
from lossd.counting_kernels import NO_KERNELS, CountingKernels
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.isolation import isolated
from lossd.exact.integer_sums import IntegerSums
from lossd.job import Recipe
from lossd.metrics.registry import METRICS, Array
from lossd.request.plan import Plan
from lossd.runs import encoding
from lossd.runs.comparing import Side, compared
from lossd.runs.counting import FIRST, STATE
from lossd.runs.definition import RunDocument
from lossd.runs.facts import Facts
from lossd.runs.measuring import COVERED, entries_of, entries_of_row, fingerprints, measured
from lossd.runs.reading import result_of
from lossd.runs.report import BatchReport
from lossd.runs.rows import identity
from lossd.runs.rows.content import canonical, digest_of, text_of_layout
from lossd.runs.rows.fingerprint import Fingerprint
from lossd.runs.rows.grouping import MOST_GROUPS
from lossd.runs.rows.places import CLUSTER_ID, SAMPLE_ID, groups_of_rows, is_about_rows, placement_of, slice_input
from lossd.runs.rows.strata import groups_of
from lossd.runs.state import Measured, RunState, description_of, parts_of
from lossd.runs.totals import RunTotal
from lossd.runs.totals.sums import rows_by_slot
from lossd_client.errors import DefinitionChanged, InternalError, InvalidRequest, Problem

__all__ = ["answer_of"]

log = logging.getLogger("lossd.runs")

BASELINE_BYTES = 32 << 20
"""A baseline with a longer state is not kept for the next comparison."""


def answer_of(
    batch: TensorBatch, arrays: Mapping[str, Array], kernels: CountingKernels = NO_KERNELS
) -> list[bytes | Problem]:
    """Return the answer of each request of a run: the report of a batch, or the JSON of a result or a comparison.

    Args:
        batch: The requests, with their inputs on the device.
        arrays: The inputs as they were sent, in main memory; bfloat16 as the bits.
        kernels: The compiled functions that count and hash, by name; those at hand.

    Raises:
        RuntimeError: The device is broken.
    """
    run = batch.recipe.run
    assert run is not None
    if "result" in run:
        return [_protected(lambda: _result(run["result"], run["options"], arrays[STATE].tobytes()))]
    if "compare" in run:
        states = [arrays[f"{STATE}{number}"].tobytes() for number in range(len(run["compare"]["definitions"]))]
        return [_protected(lambda: _comparison(**run["compare"], data=states))]
    counting = _counting_of(batch.recipe)
    return counting.reports(batch, arrays, kernels)


class _Counting:
    """What the batches of a recipe have in common.

    Args:
        recipe: The recipe of batches of a run.
    """

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.run is not None
        self.recipe = recipe
        self.definition: Mapping[str, Any] = recipe.run["count"]
        self.content_hash: str = recipe.run["hash"]
        self.kind: str = self.definition["identity"]
        self.beside = [column.name for column in recipe.inputs if is_about_rows(column.name)]
        codes = [name for name in recipe.numbers if is_about_rows(name)]
        self.first = recipe.numbers.index(FIRST) if FIRST in recipe.numbers else None
        self.codes = {name: len(recipe.numbers) - len(codes) + k for k, name in enumerate(codes)}
        self.evaluated_numbers = len(recipe.numbers) - len(codes) - (self.first is not None)
        grouped = groups_of(self.definition) > 0
        self.paired = grouped and (self.kind == "batch" or CLUSTER_ID in self.beside)

    @cached_property
    def evaluated(self) -> Recipe:
        """The recipe of the evaluation."""
        recipe = self.recipe
        return replace(
            recipe,
            run=None,
            numbers=recipe.numbers[: self.evaluated_numbers],
            inputs=tuple(column for column in recipe.inputs if column.name not in self.beside),
        )

    @cached_property
    def entries(self) -> int | None:
        """How many entries of each row are judged; None if that depends on the inputs."""
        return entries_of_row(self.recipe)

    @cached_property
    def versions(self) -> Mapping[str, int]:
        """The version of each metric's definition."""
        known = METRICS.get(str(self.recipe.task), {})
        return {name: known[name].version for name in self.recipe.metrics}

    def reports(
        self, batch: TensorBatch, arrays: Mapping[str, Array], kernels: CountingKernels
    ) -> list[bytes | Problem]:
        """Return the report of each batch of the run."""
        outcomes = isolated(batch, partial(self._measured, kernels=kernels))
        sent = _Sent(self.recipe, batch, arrays)
        if self.recipe.kind == "rows":
            prints = self._fingerprints(batch.rows, arrays, batch.numbers, kernels)
        else:
            prints = [
                self._fingerprints([rows], sent.arrays(i), batch.numbers[i : i + 1], kernels)[0]
                for i, rows in enumerate(batch.rows)
            ]
        return [
            outcome if isinstance(outcome, Problem) else _protected(self._report, outcome, prints[i], sent, i)
            for i, outcome in enumerate(outcomes)
        ]

    def _measured(self, batch: TensorBatch, kernels: CountingKernels) -> Sequence[BatchContribution | Problem] | None:
        """Return what each batch contributes; None for several that do not share tensors."""
        if self.recipe.kind != "rows" and len(batch.rows) > 1:
            return None
        beside = {name: batch.inputs[name].numpy(force=True) for name in self.beside}
        codes = {
            name.removeprefix(slice_input("")): [int(numbers[at]) for numbers in batch.numbers]
            for name, at in self.codes.items()
        }
        placement = placement_of(self.definition, batch.rows, self._firsts(batch.numbers), beside, codes, kernels)
        inner = batch._replace(
            recipe=self.evaluated,
            numbers=[numbers[: self.evaluated_numbers] for numbers in batch.numbers],
            inputs={name: tensor for name, tensor in batch.inputs.items() if name not in beside},
            answers={},
        )
        facts, totals = measured(inner, placement, self.definition["limit"], kernels)
        facts.clustered = CLUSTER_ID in beside
        by_slot = rows_by_slot(placement)
        templates: list[encoding.Template] = []
        return [BatchContribution(facts, *found, templates) for found in zip(totals, by_slot, strict=True)]

    def _firsts(self, numbers: Sequence[Sequence[float]]) -> list[int] | None:
        """Return the key of the first row of each batch."""
        return None if self.first is None else [int(of_batch[self.first]) for of_batch in numbers]

    def _fingerprints(
        self,
        lengths: Sequence[int],
        arrays: Mapping[str, Array],
        numbers: Sequence[Sequence[float]],
        kernels: CountingKernels,
    ) -> Sequence[tuple[Fingerprint | None, Fingerprint | None]]:
        """Return the fingerprints of batches whose rows lie one after the other: of targets, and with their groups."""
        covered = {
            name: _widened(arrays[name]) if dtype == "bfloat16" else arrays[name]
            for name, dtype in self.recipe.dtypes.items()
            if name in COVERED
        }
        firsts, ids = self._firsts(numbers), arrays.get(SAMPLE_ID)
        positions = firsts if self.kind == "position" else None
        targets = fingerprints(lengths, covered, firsts=positions, sample_id=ids, kernels=kernels)
        if not self.paired:
            return [(fingerprint, None) for fingerprint in targets]
        beside = {name: arrays[name] for name in self.beside}
        groups = groups_of_rows({"groups": MOST_GROUPS}, lengths, firsts, beside, kernels)
        pairings = fingerprints(lengths, covered, firsts=positions, sample_id=ids, groups=groups, kernels=kernels)
        return list(zip(targets, pairings, strict=True))

    def _report(
        self,
        outcome: BatchContribution,
        prints: tuple[Fingerprint | None, Fingerprint | None],
        sent: _Sent,
        position: int,
    ) -> bytes:
        """Return the report of one batch.

        Raises:
            DuplicateRows, InvalidRequest: The batch has one id twice, or an id beyond int64.
        """
        rows, numbers = sent.batch.rows[position], sent.batch.numbers[position] if sent.batch.numbers else ()
        first = int(numbers[self.first]) if self.kind == "position" and self.first is not None else None
        digest = digest_of(self._fields(first, numbers), sent.layout(rows), sent.contents(position), self.content_hash)
        found = Measured(outcome.facts, outcome.totals, outcome.by_slot, *prints)
        if self.kind == "id":
            counted = identity.bytes_of(self.kind, sent.arrays(position)[SAMPLE_ID])
        else:
            counted = identity.bytes_of(self.kind, *((rows,) if self.kind == "batch" else (first, rows)))
        parts = parts_of(found, counted)
        if not outcome.templates:  # it is the same of all batches that were measured together
            outcome.templates.append(encoding.Template(description_of(self.definition, self.versions, found), parts))
        [template] = outcome.templates
        entries = self.entries * rows if self.entries else entries_of(self.recipe, rows, sent.arrays(position))
        return BatchReport(
            digest, rows, entries, template.text, counted, encoding.packed(template.encode(parts))
        ).encode()

    def _fields(self, first: int | None, numbers: Sequence[float]) -> bytes:
        """Return what the digest covers beside the inputs."""
        if not self.codes:
            return b"{}" if first is None else b'{"%b":%d}' % (FIRST.encode(), first)
        fields: dict[str, Any] = {} if first is None else {FIRST: first}
        fields["slices"] = {name.removeprefix(slice_input("")): int(numbers[at]) for name, at in self.codes.items()}
        return canonical(fields)


class _Sent:
    """The inputs of the batches of one message, as they were sent.

    Args:
        recipe: The recipe of the batches.
        batch: The batches.
        arrays: Their inputs, one after the other.
    """

    def __init__(self, recipe: Recipe, batch: TensorBatch, arrays: Mapping[str, Array]) -> None:
        self.recipe, self.batch, self._arrays = recipe, batch, arrays
        self._starts = [0, *accumulate(batch.rows)]
        columns = sorted(recipe.inputs, key=lambda column: column.name)
        self._bytes = [(arrays[c.name].reshape(-1).view(np.uint8).data, c.unit_bytes, c.per_row) for c in columns]
        self._layouts: dict[int, bytes] = {}

    def arrays(self, position: int) -> dict[str, Array]:
        """Return the inputs of one batch."""
        rows = slice(*self._starts[position : position + 2])
        return {
            c.name: self._arrays[c.name][rows] if c.per_row else self._arrays[c.name][position]
            for c in self.recipe.inputs
        }

    def contents(self, position: int) -> Iterator[memoryview]:
        """Yield the bytes of each input of one batch, in the order of the names."""
        first, last = self._starts[position : position + 2]
        for data, size, per_row in self._bytes:
            yield data[first * size : last * size] if per_row else data[position * size : (position + 1) * size]

    def layout(self, rows: int) -> bytes:
        """Return what the digest covers of the dtypes and the shapes of a batch of so many rows."""
        if (layout := self._layouts.get(rows)) is None:
            shapes = {c.name: (c.dtype, (rows, *c.trailing) if c.per_row else c.trailing) for c in self.recipe.inputs}
            layout = self._layouts[rows] = text_of_layout(shapes)
        return layout


class BatchContribution(NamedTuple):
    """What a batch contributes.

    Attributes:
        facts: What it has in common with others.
        totals: The total of each contribution, by part and name.
        by_slot: How many rows each slot has.
        templates: The template of its state, once it is known; one list of all batches that were measured together.
    """

    facts: Facts
    totals: Mapping[str, RunTotal]
    by_slot: IntegerSums
    templates: list[encoding.Template]


def _widened(bits: Array) -> Array:
    """Return bfloat16 as float32, exactly."""
    wide: Array = (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return wide


@memoized("run_countings", lambda text, counting: 6 * len(text))
def _counting_of_text(text: str) -> _Counting:
    return _Counting(Recipe.parse(text))


def _counting_of(recipe: Recipe) -> _Counting:
    return _counting_of_text(recipe.text)


def _result(definition: Mapping[str, Any], options: Mapping[str, Any], data: bytes) -> bytes:
    """Return the JSON of the result of a state.

    Args:
        definition: The run's definition.
        options: The keyword arguments of :func:`~lossd.runs.reading.result_of`.
        data: The state.

    Raises:
        DefinitionChanged: A metric's definition has changed since the rows were counted.
        InvalidRequest: The state is damaged, or of another definition, or has not counted what is asked for.
    """
    state, plan = _state(definition, data)
    with np.errstate(all="ignore"):
        return orjson.dumps(result_of(state, plan, **options).to_dict())


def _comparison(definitions: Sequence[Mapping[str, Any]], options: Mapping[str, Any], data: Sequence[bytes]) -> bytes:
    """Return the JSON of the comparison of states with the first one.

    Args:
        definitions: Each run's definition.
        options: The keyword arguments of :func:`~lossd.runs.comparing.compared`.
        data: Each run's state.

    Raises:
        NotComparable: The runs differ in more than their predictions.
        DefinitionChanged, InvalidRequest: As of :func:`_result`.
    """
    first, *others = zip(definitions, data, strict=True)
    baseline, plan = _BASELINE.side(*first)
    sides = [baseline, *(_side(*other)[0] for other in others)]
    with np.errstate(all="ignore"):
        return orjson.dumps(compared(sides, plan, **options))


class _Baseline:
    """The baseline of the latest comparison: many runs are compared with one, a pair at a time."""

    def __init__(self) -> None:
        self._key: tuple[bytes, str] | None = None
        self._found: tuple[Side, Plan] | None = None

    def side(self, definition: Mapping[str, Any], data: bytes) -> tuple[Side, Plan]:
        """Return the run of a state, and its definition's plan; errors are those of :func:`_state`."""
        key = orjson.dumps(definition, option=orjson.OPT_SORT_KEYS), encoding.digest(data)
        if self._found is None or key != self._key:
            self._key = self._found = None  # its memory is free before the next one is read
            found = _side(definition, data)
            if len(data) > BASELINE_BYTES:
                return found
            self._key, self._found = key, found
        return self._found


_BASELINE = _Baseline()


def _side(definition: Mapping[str, Any], data: bytes) -> tuple[Side, Plan]:
    """Return the run of a state, and its definition's plan; errors are those of :func:`_state`."""
    state, plan = _state(definition, data)
    return Side(state, encoding.digest(data) if encoding.is_current(data) else None), plan


def _state(definition: Mapping[str, Any], data: bytes) -> tuple[RunState, Plan]:
    """Return the state of these bytes, and its definition's plan.

    Raises:
        DefinitionChanged: A metric's definition has changed since the rows were counted.
        InvalidRequest: The state is damaged, or of another definition.
    """
    state, document = RunState.decode(data), RunDocument.of(definition)
    if state.definition != definition:
        raise InvalidRequest("the state is of another definition")
    task = document.plan.task  # a task of losses alone is not in METRICS
    if changed := [name for name, version in state.versions.items() if METRICS[task][name].version != version]:
        raise DefinitionChanged(
            f"the definition of {', '.join(changed)} has changed since these rows were counted; start another run"
        )
    return state, document.plan


def _protected(function: Any, *arguments: Any) -> bytes | Problem:
    """Return what a function returns, or the problem that it raises; any other error fails only this request."""
    try:
        answer: bytes = function(*arguments)
    except Problem as problem:
        return problem
    except Exception:
        log.exception("a request of a run failed")
        return InternalError("the run failed on this request; the worker's log says why")
    return answer
