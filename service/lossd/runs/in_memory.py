"""Counts batches of a run, or computes a run's result: the worker's side."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import orjson

from lossd.caches import memoized
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.evaluate import isolated
from lossd.job import Recipe
from lossd.metrics.registry import METRICS, Array
from lossd.runs import encoding, identity
from lossd.runs.counting import FIRST, SAMPLE_ID, STATE
from lossd.runs.definition import RunDocument
from lossd.runs.fingerprint import Fingerprint
from lossd.runs.measuring import COVERED, Measured, fingerprints, measured
from lossd.runs.reading import result_of
from lossd.runs.report import BatchReport
from lossd.runs.state import RunState
from lossd_client.errors import DefinitionChanged, InternalError, InvalidRequest, Problem
from lossd_client.wire import Tensor

__all__ = ["answer_of"]

log = logging.getLogger("lossd.runs")


def answer_of(batch: TensorBatch, arrays: Mapping[str, Array]) -> list[bytes | Problem]:
    """Return the answer of each request of a run: the report of a batch, or the JSON of a result.

    Args:
        batch: The requests, with their inputs on the device.
        arrays: The inputs as they were sent, in main memory; bfloat16 as the bits.

    Raises:
        RuntimeError: The device is broken.
    """
    run = batch.recipe.run
    assert run is not None
    if "result" in run:
        return [_protected(lambda: _result(run["result"], arrays[STATE].tobytes()))]
    counting = _counting_of(batch.recipe)
    return counting.reports(batch, arrays)


class _Counting:
    """What the batches of a recipe have in common.

    Args:
        recipe: The recipe of batches of a run.
    """

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.run is not None
        self.recipe = recipe
        self.definition: Mapping[str, Any] = recipe.run["count"]
        self.kind: str = self.definition["identity"]

    @cached_property
    def evaluated(self) -> Recipe:
        """The recipe of the evaluation."""
        recipe = self.recipe
        return replace(
            recipe,
            run=None,
            numbers=recipe.numbers[:-1] if self.kind == "position" else recipe.numbers,
            inputs=tuple(column for column in recipe.inputs if column.name != SAMPLE_ID),
        )

    @cached_property
    def versions(self) -> Mapping[str, int]:
        """The version of each metric's definition."""
        known = METRICS.get(str(self.recipe.task), {})
        return {name: known[name].version for name in self.recipe.metrics}

    def reports(self, batch: TensorBatch, arrays: Mapping[str, Array]) -> list[bytes | Problem]:
        """Return the report of each batch of the run."""
        numbers: Sequence[Sequence[float]] = batch.numbers
        firsts: list[int] | None = None
        if self.kind == "position":
            firsts, numbers = [int(own[-1]) for own in numbers], [own[:-1] for own in numbers]
        inputs = {name: tensor for name, tensor in batch.inputs.items() if name != SAMPLE_ID}
        inner = batch._replace(recipe=self.evaluated, numbers=numbers, inputs=inputs, answers={})
        outcomes = isolated(inner, _measured)
        own = [
            self._arrays_of(arrays, position, stop, batch.rows) for position, stop in enumerate(accumulate(batch.rows))
        ]
        if self.recipe.kind == "rows":
            targets = self._targets(batch.rows, arrays, firsts)
        else:
            targets = [
                self._targets([rows], own[i], None if firsts is None else firsts[i : i + 1])[0]
                for i, rows in enumerate(batch.rows)
            ]
        return [
            outcome
            if isinstance(outcome, Problem)
            else _protected(
                self._report, outcome, own[i], batch.rows[i], None if firsts is None else firsts[i], targets[i]
            )
            for i, outcome in enumerate(outcomes)
        ]

    def _arrays_of(
        self, arrays: Mapping[str, Array], position: int, stop: int, rows: Sequence[int]
    ) -> dict[str, Array]:
        """Return the inputs of one batch, whose last row is before ``stop``."""
        own = slice(stop - rows[position], stop)
        return {c.name: arrays[c.name][own] if c.per_row else arrays[c.name][position] for c in self.recipe.inputs}

    def _targets(
        self, lengths: Sequence[int], arrays: Mapping[str, Array], firsts: Sequence[int] | None
    ) -> Sequence[Fingerprint | None]:
        """Return the fingerprints of batches whose rows lie one after the other."""
        covered = {
            name: _widened(arrays[name]) if dtype == "bfloat16" else arrays[name]
            for name, dtype in self.recipe.dtypes.items()
            if name in COVERED
        }
        return fingerprints(lengths, covered, firsts=firsts, sample_id=arrays.get(SAMPLE_ID))

    def _report(
        self,
        outcome: Measured,
        arrays: Mapping[str, Array],
        rows: int,
        first: int | None,
        targets: Fingerprint | None,
    ) -> bytes:
        """Return the report of one batch.

        Raises:
            DuplicateRows, InvalidRequest: The batch has one id twice, or an id beyond int64.
        """
        facts, contributions = outcome
        sent = {
            name: Tensor(dtype, arrays[name].shape, arrays[name].reshape(-1).view(np.uint8).data)
            for name, dtype in self.recipe.dtypes.items()
        }
        digest = identity.content_digest(sent, {} if first is None else {FIRST: first})
        state = RunState(self.definition)
        state.add(facts, self.versions, contributions, targets)
        ids = arrays.get(SAMPLE_ID)
        place: tuple[Any, ...] = (rows,) if self.kind == "batch" else (ids,) if ids is not None else (first, rows)
        state.identity.add(*place)
        return BatchReport(digest, rows, encoding.packed(state.encode())).encode()


def _widened(bits: Array) -> Array:
    """Return bfloat16 as float32, exactly."""
    wide: Array = (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return wide


@memoized("run_countings", lambda text, counting: 6 * len(text))
def _counting_of_text(text: str) -> _Counting:
    return _Counting(Recipe.parse(text))


def _counting_of(recipe: Recipe) -> _Counting:
    return _counting_of_text(recipe.text)


def _measured(batch: TensorBatch) -> Sequence[Measured | Problem] | None:
    """Return what each request contributes; None for several that do not share tensors."""
    return None if batch.recipe.kind != "rows" and len(batch.rows) > 1 else measured(batch)


def _result(definition: Mapping[str, Any], data: bytes) -> bytes:
    """Return the JSON of the result of a state.

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
    with np.errstate(all="ignore"):
        return orjson.dumps(result_of(state, document.plan).to_dict())


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
