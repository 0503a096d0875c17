"""``lossd.Run``: the score of a whole data set, the same for every order and every split of its rows.

Each batch contributes to the parts of the metrics (:mod:`lossd.metrics.parts`), which are added up exactly
(:mod:`lossd.runs.totals`). The result is the task's metrics of the totals. Memory does not grow with the number of
rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from lossd.arrangement import arrange_one
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.columns import columns_in
from lossd.evaluation.device_errors import usable
from lossd.exact.table import ROWS
from lossd.job import Job
from lossd.metrics.registry import METRICS, Array
from lossd.runs import encoding
from lossd.runs.comparing import Side, compared
from lossd.runs.definition import GROUPS, RunDocument
from lossd.runs.measuring import COVERED, fingerprints, measured
from lossd.runs.reading import LEVEL, result_of
from lossd.runs.result import RunResult
from lossd.runs.rows.content import content_digest
from lossd.runs.rows.grouping import MOST_GROUPS, key_of_name
from lossd.runs.rows.places import (
    CLUSTER_ID,
    SAMPLE_ID,
    check_integers,
    check_place,
    codes_of_batch,
    groups_of_rows,
    is_about_rows,
    placement_of,
    slice_input,
)
from lossd.runs.rows.strata import groups_of, slices_of
from lossd.runs.state import Measured, RunState
from lossd.runs.totals.sums import rows_by_slot
from lossd_client.errors import DefinitionChanged, Fault, InvalidRequest
from lossd_client.messages import Record, compose
from lossd_client.run_messages import slice_codes
from lossd_client.wire import Tensor, json, safetensors

__all__ = ["Run", "RunResult"]


class Run:
    """The loss and the metrics of a data set, counted batch by batch.

    The order and the split of the rows do not change the result.

    >>> run = Run(task="binary", metrics=["accuracy"])
    >>> run.add([2.0, -1.0], [1, 1]), run.add([3.0, 0.5], [1, 0])
    (2, 2)
    >>> run.result().metrics.accuracy
    0.5

    Counts, and metrics computed from counts, are bit-identical to those of one evaluation of all rows. Means are
    computed from exact sums and rounded once. Areas and quantiles are exact while their table has room for all scores.
    Otherwise their error is within the bound in the result's ``bounds``. A refused batch changes nothing.

    Args:
        task: The task whose metrics are computed; None for the loss's task.
        loss: The loss's name, or an object of its name and parameters; None for metrics alone.
        metrics: Names of metrics, or an object of options, as for :func:`lossd.evaluate`.
        identity: What identifies the rows, so that no row counts twice: ``position`` (each batch has the position of
            its first row), ``id`` (each row has an integer), or ``batch`` (each batch may have a name).
        rows: The number of rows of the data set. The result then lists the missing rows. None if it is unknown.
        scope: ``batch`` allows metrics that compare the rows of a batch with each other. Their result is the mean of
            the batches' values, which depends on the split. ``rows`` refuses such metrics.
        limit: The maximum number of rows in the tables of one metric. A row of scores takes 20 bytes.
        groups: The number of groups of rows from which intervals are computed: 64, 32 or 16; 0 for no intervals.
        slices: The values of each slice by its name, such as ``{"site": ["A", "B"]}``. The metrics are also computed
            for the rows of each value.
        crossed: Slices whose combinations are slices too, such as ``[["site", "sex"]]``.
        device: The torch device: cpu, cuda, cuda:0.
        **parameters: The loss's parameters.

    Raises:
        Problem: The definition is invalid. The service answers with the same error.
        ValueError: The device cannot be used.
    """

    def __init__(
        self,
        task: str | None = None,
        *,
        loss: str | Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | Sequence[str] | str | None = None,
        identity: Literal["position", "id", "batch"] = "batch",
        rows: int | None = None,
        scope: Literal["rows", "batch"] = "rows",
        limit: int = ROWS,
        groups: int = GROUPS,
        slices: Mapping[str, Sequence[str]] | None = None,
        crossed: Sequence[Sequence[str]] = (),
        device: str = "cpu",
        **parameters: Any,
    ) -> None:
        outputs = ["metrics"] if loss is None else ["loss"] if metrics in ([], ()) else ["loss", "metrics"]
        subject = {"loss": loss, "task": None} if loss is not None else {"loss": None, "task": task}
        options: Any = metrics if metrics not in ([], ()) else None
        if loss is not None and task is not None:
            options = {**(options if isinstance(options, Mapping) else {"names": options}), "task": task}
            options = {name: value for name, value in options.items() if value is not None}
        composed = compose(
            **subject, prediction=None, target=None, outputs=outputs, metrics=options, keywords=parameters
        )
        _, metadata = safetensors.decode(b"".join(composed.body.pieces))
        request = json.loads(metadata["request"].encode())
        document = {name: value for name, value in request.items() if name != "outputs"}
        if metrics in ([], ()):
            document["metrics"] = []
        document |= {"identity": identity, "scope": scope, "limit": limit, "dataset": {"rows": rows}, "groups": groups}
        document["slices"] = {of_slice: list(values) for of_slice, values in (slices or {}).items()}
        document["crossed"] = [list(names) for names in crossed]
        self._start(RunDocument.parse(document), device)

    def _start(self, document: RunDocument, device: str) -> None:
        self._state = RunState(document.definition)
        self._device = usable(device)
        self._plan = document.plan

    # Counting

    def add(
        self,
        prediction: Any = None,
        target: Any = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        first: int | None = None,
        sample_id: Any = None,
        name: str | None = None,
        cluster_id: Any = None,
        slices: Mapping[str, Any] | None = None,
        **further: Any,
    ) -> int:
        """Count a batch of rows.

        Args:
            prediction: A NumPy array, a torch tensor or a nested list.
            target: As ``prediction``.
            inputs: Further inputs by name.
            first: The position of the batch's first row in the data set, for the identity ``position``.
            sample_id: The ids of the rows, (N,) integers, for the identity ``id``.
            name: The batch's name, for the identity ``batch``. A second batch with this name is refused if its content
                differs. With the same content it counts nothing.
            cluster_id: The cluster of each row, such as a patient or a document, (N,) integers. Intervals then treat
                clusters as independent, and not rows. Send it with every batch or with none.
            slices: The values of each declared slice: one text for the whole batch, (N,) texts, or (N,) integers, the
                indices of the declared values. None and -1 mean that a row has no value.
            **further: Further inputs: ``sample_weight`` (N,), and so on.

        Returns:
            The number of rows that were counted: N, or 0 for a batch that was counted before.

        Raises:
            BatchConflict: A batch with this name was counted with other data.
            DuplicateRows: A row was counted before.
            Problem: An input, a shape or a dtype is invalid.
        """
        composed = compose(
            loss="", prediction=prediction, target=target, inputs={**(inputs or {}), **further}, keywords={}
        )
        tensors, _ = safetensors.decode(b"".join(composed.body.pieces))
        definition, state = self._state.definition, self._state
        batch_values, by_row = self._slices(slices or {})
        beside = {name: tensors.pop(name) for name in list(tensors) if is_about_rows(name)}
        beside |= {slice_input(of_slice): Tensor.of(codes) for of_slice, codes in by_row.items()}
        if cluster_id is not None:
            beside[CLUSTER_ID] = Tensor.of(np.asarray(cluster_id))
        ids = beside.pop(SAMPLE_ID).numpy() if SAMPLE_ID in beside else sample_id
        codes = codes_of_batch(definition, batch_values, list(beside))
        job = self._plan.job({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
        for of_input, tensor in beside.items():
            check_integers(of_input, tensor.dtype, tensor.shape, job.rows)
        digest = None
        if name is not None:
            digest = content_digest({**tensors, **beside}, {"slices": codes} if codes else {})
        place = self._place(job.rows, first, ids, name, digest)
        if state.identity.check(*place) == 0:
            return 0
        about_rows = {of_input: tensor.numpy() for of_input, tensor in beside.items()}
        if ids is not None:
            ids = about_rows[SAMPLE_ID] = np.asarray(ids)
        keys = [first if first is not None else state.rows if name is None else key_of_name(name)]
        by_batch = {of_slice: [code] for of_slice, code in codes.items()}
        placement = placement_of(definition, [job.rows], keys, about_rows, by_batch)
        facts, [totals] = measured(_in_memory(job, tensors, self._device), placement, definition["limit"])
        facts.clustered = CLUSTER_ID in beside
        [by_slot] = rows_by_slot(placement)
        covered = {of_input: tensors[of_input].numpy() for of_input in COVERED if of_input in tensors}
        firsts = None if first is None else [first]
        [targets] = fingerprints([job.rows], covered, firsts=firsts, sample_id=ids)
        grouping = None
        if groups_of(definition) and (definition["identity"] == "batch" or facts.clustered):
            all_groups = groups_of_rows({"groups": MOST_GROUPS}, [job.rows], keys, about_rows)
            [grouping] = fingerprints([job.rows], covered, firsts=firsts, sample_id=ids, groups=all_groups)
        found = Measured(facts, totals, by_slot, targets, grouping)
        state.check(found)
        state.add(found, self._versions(facts.names))
        return state.identity.add(*place)

    def _slices(self, slices: Mapping[str, Any]) -> tuple[dict[str, str | None], dict[str, Array]]:
        """Return the slices of which the batch has one value, and the codes of those that have one a row."""
        declared = slices_of(self._state.definition)
        batch_values: dict[str, str | None] = {}
        codes: dict[str, Array] = {}
        for name, value in slices.items():
            if value is None or isinstance(value, str):
                batch_values[name] = value
            else:
                codes[name] = slice_codes(name, value, declared.get(name))
        return batch_values, codes

    def _place(
        self, rows: int, first: int | None, sample_id: Any, name: str | None, digest: bytes | None
    ) -> tuple[Any, ...]:
        """Return the arguments that tell the run's identity which rows these are.

        Raises:
            InvalidRequest: They are missing, or belong to another identity.
        """
        kind = self._state.definition["identity"]
        check_place(kind, {"first": first, "sample_id": sample_id, "name": name})
        if kind == "position":
            return first, rows
        if kind == "id":
            ids = np.asarray(sample_id)
            if ids.shape != (rows,):
                detail = f"sample_id has shape {ids.shape}, the batch has {rows} rows"
                raise InvalidRequest(detail, errors=[Fault(pointer="/inputs/sample_id", detail=detail)])
            return (ids,)
        return rows, name, digest

    def merge(self, other: Run) -> None:
        """Add the rows of another run to this one. The other run does not change.

        Raises:
            DefinitionChanged: The definition of a metric has changed between the runs.
            DuplicateRows: A row is in both runs.
            InvalidRequest: The definitions of the runs differ.
        """
        self._state.merge(other._state)

    def state(self) -> bytes:
        """Return the run's state as bytes, for another process: equal for equal definitions and rows."""
        return self._state.encode()

    @classmethod
    def from_state(cls, data: bytes, *, device: str = "cpu") -> Run:
        """Return a run with the state that :meth:`state` returned.

        Args:
            data: The bytes. They are checked, so they may come from an untrusted source.
            device: The torch device for further batches: cpu, cuda, cuda:0.

        Raises:
            DefinitionChanged: The definition of a metric has changed since.
            InvalidRequest: The bytes are damaged.
        """
        state = RunState.decode(data)
        run = cls.__new__(cls)
        with encoding.reading():
            run._start(RunDocument.of(state.definition), device)
            versions = run._versions(tuple(state.versions))
            if changed := [name for name, version in state.versions.items() if versions[name] != version]:
                names = ", ".join(changed)
                raise DefinitionChanged(
                    f"the definition of {names} has changed since these rows were counted; count them again"
                )
        run._state = state
        return run

    def _versions(self, names: Sequence[str]) -> dict[str, int]:
        return {name: METRICS[self._plan.task][name].version for name in names}

    def result(self, *, level: float = LEVEL, metrics: Sequence[str] | None = None) -> RunResult:
        """Return the score of the rows counted so far. The run does not change.

        Args:
            level: The level of the intervals, above 0.5 and at most 0.9999.
            metrics: The metrics to return; None for those of the definition. Other metrics of the task are possible if
                the run has counted what they need.

        Raises:
            InvalidRequest: No row was counted, the level is out of range, or the run has not counted what a metric
                needs.
        """
        _check_level(level)
        return result_of(self._state, self._plan, level=level, metrics=metrics)

    def compare(
        self,
        *others: Run,
        level: float = LEVEL,
        metrics: Sequence[str] | None = None,
        classes: bool = False,
        slices: bool = False,
        unpaired: bool = False,
    ) -> Record:
        """Compare other runs with this one, the baseline: each difference, its interval and its p.

        The comparison is paired: it computes the differences on the same rows. This removes the variation that the runs
        have in common.

        Args:
            *others: The other runs, of the same rows.
            level: The level of the intervals, above 0.5 and at most 0.9999. A verdict is undecided unless p, corrected
                by Holm, is below 1 - level.
            metrics: The metrics to compare, which all runs have counted; None for those of all definitions.
            classes: Whether to compare the values of single classes.
            slices: Whether to compare the slices that all runs have.
            unpaired: Whether the runs may have different rows.

        Returns:
            ``level``, ``paired``, ``groups``, ``rows``, ``runs`` and, for each of the others, ``comparisons``:
            ``metrics``, by name: ``baseline``, ``value``, ``difference``, ``low``, ``high``, ``standard_error``, ``p``,
            ``p_holm``, ``better`` and ``verdict`` (``b`` if the other run is better, ``a`` if this one is).

        Raises:
            NotComparable: The runs differ in more than their predictions.
            InvalidRequest: There is no other run, the level is out of range, or a run has not counted what a metric
                needs.
        """
        _check_level(level)
        if not others:
            raise InvalidRequest("there is no other run to compare with")
        sides = [Side(self._state), *(Side(other._state) for other in others)]
        found = compared(
            sides, self._plan, level=level, metrics=metrics, classes=classes, slices=slices, unpaired=unpaired
        )
        return Record(json.numeric(found))


def _check_level(level: float) -> None:
    if not 0.5 < level <= 0.9999:
        raise InvalidRequest(f"level is {level!r}; it is above 0.5 and at most 0.9999")


def _in_memory(job: Job, tensors: Mapping[str, Tensor], device: torch.device) -> TensorBatch:
    """Return a job's tensors as a batch of one request."""
    arrangement, memory = arrange_one(job, {name: tensor.data for name, tensor in tensors.items()})
    inputs, answers = columns_in(memory, job.recipe, arrangement.offsets, job.rows, 1)
    return TensorBatch(job.recipe, [job.rows], [job.numbers], inputs, answers, device)
