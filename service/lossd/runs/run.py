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
from lossd.job import Job
from lossd.metrics.registry import METRICS
from lossd.runs import encoding, identity
from lossd.runs.definition import RunDocument
from lossd.runs.measuring import COVERED, fingerprints, measured
from lossd.runs.places import check_place
from lossd.runs.reading import result_of
from lossd.runs.result import RunResult
from lossd.runs.state import RunState
from lossd.runs.table import ROWS
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.messages import compose
from lossd_client.wire import Tensor, json, safetensors

__all__ = ["Run", "RunResult"]


class Run:
    """The metrics and the loss of all rows that batches have brought, exact in any order and any split.

    >>> run = Run(task="binary", metrics=["accuracy"])
    >>> run.add([2.0, -1.0], [1, 1]), run.add([3.0, 0.5], [1, 0])
    (2, 2)
    >>> run.result().metrics.accuracy
    0.5

    Counts, and metrics made of counts, equal those of one evaluation of all rows to the last bit. Means are the sum of
    the rows' values, rounded once. Areas and quantiles are exact while their table has room for all scores, and else
    within a bound that the result states. A batch that is refused changes nothing.

    Args:
        task: The task whose metrics are computed; None for the loss's own.
        loss: The loss's name, or an object of its name and parameters; None for metrics alone.
        metrics: Names of metrics, or the options' object, as for :func:`lossd.evaluate`.
        identity: How rows are told apart, so that none counts twice: ``position`` (each batch says where it begins),
            ``id`` (each row has an integer), or ``batch`` (each batch may have a name).
        rows: The number of rows of the data set, to tell which are missing; None if it is not known.
        scope: ``batch`` allows metrics that compare the rows of a batch with each other: the result is the mean of the
            batches' values, which depends on the split. ``rows`` refuses them.
        limit: The most rows of the tables of one metric. A row of scores takes 20 bytes.
        device: Where to compute: cpu, cuda, cuda:0.
        **parameters: The loss's parameters.

    Raises:
        Problem: The service would answer such a request with this error.
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
        document |= {"identity": identity, "scope": scope, "limit": limit, "dataset": {"rows": rows}}
        self._start(RunDocument.parse(document), device)

    def _start(self, document: RunDocument, device: str) -> None:
        self._state = RunState(document.definition)
        self._device = torch.device(device)
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
        **further: Any,
    ) -> int:
        """Count a batch of rows.

        Args:
            prediction: An array, a tensor or a nested list.
            target: An array, a tensor or a nested list.
            inputs: Further inputs by name.
            first: The position of the batch's first row in the data set, for the identity ``position``.
            sample_id: The rows' ids, (N,) integers, for the identity ``id``.
            name: The batch's name, for the identity ``batch``. A second batch of that name counts nothing if it has
                the same content, and is refused otherwise.
            **further: Further inputs: ``sample_weight`` (N,), and so on.

        Returns:
            How many rows were counted: N, or 0 for a batch that was counted before.

        Raises:
            DuplicateRows: A row was counted before.
            Problem: The batch is wrong.
        """
        composed = compose(
            loss="", prediction=prediction, target=target, inputs={**(inputs or {}), **further}, keywords={}
        )
        tensors, _ = safetensors.decode(b"".join(composed.body.pieces))
        job = self._plan.job({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
        place = self._place(job.rows, tensors, first, sample_id, name)
        state = self._state
        if state.identity.check(*place) == 0:
            return 0
        batch = _in_memory(job, tensors, self._device)
        [(facts, contributions)] = measured(batch)
        state.check(facts, contributions)
        ids = None if sample_id is None else np.asarray(sample_id)
        covered = {name: tensors[name].numpy() for name in COVERED if name in tensors}
        firsts = None if first is None else [first]
        [targets] = fingerprints([job.rows], covered, firsts=firsts, sample_id=ids)
        state.add(facts, self._versions(facts.names), contributions, targets)
        return state.identity.add(*place)

    def _place(
        self, rows: int, tensors: Mapping[str, Tensor], first: int | None, sample_id: Any, name: str | None
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
        return rows, name, None if name is None else identity.content_digest(tensors)

    def merge(self, other: Run) -> None:
        """Count the rows of another run, which keeps its own.

        Raises:
            DuplicateRows: Both counted a row.
            InvalidRequest: The other run is defined differently.
        """
        self._state.merge(other._state)

    def state(self) -> bytes:
        """Return the run as bytes, for another process: the same bytes for the same rows, however they were counted."""
        return self._state.encode()

    @classmethod
    def from_state(cls, data: bytes, *, device: str = "cpu") -> Run:
        """Return the run whose :meth:`state` these bytes are.

        Args:
            data: The bytes, which may come from anybody.
            device: Where to compute what is added.

        Raises:
            InvalidRequest: The bytes are damaged, or of a metric whose definition has changed since.
        """
        state = RunState.decode(data)
        run = cls.__new__(cls)
        with encoding.reading():
            run._start(RunDocument.of(state.definition), device)
            if state.versions != run._versions(tuple(state.versions)):
                raise InvalidRequest(
                    "the definition of a metric has changed since these rows were counted; count them again"
                )
        run._state = state
        return run

    def _versions(self, names: Sequence[str]) -> dict[str, int]:
        return {name: METRICS[self._plan.task][name].version for name in names}

    def result(self) -> RunResult:
        """Return the score of the rows counted so far; it changes nothing.

        Raises:
            InvalidRequest: No row was counted.
        """
        return result_of(self._state, self._plan)


def _in_memory(job: Job, tensors: Mapping[str, Tensor], device: torch.device) -> TensorBatch:
    """Return a job's tensors as a batch of one request."""
    arrangement, memory = arrange_one(job, {name: tensor.data for name, tensor in tensors.items()})
    inputs, answers = columns_in(memory, job.recipe, arrangement.offsets, job.rows, 1)
    return TensorBatch(job.recipe, [job.rows], [job.numbers], inputs, answers, device)
