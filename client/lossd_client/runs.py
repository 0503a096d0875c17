"""``RemoteRun`` and ``AsyncRemoteRun``: the score of a data set, which a service counts batch by batch and keeps.

:mod:`lossd_client.run_messages` composes definitions and batches; :mod:`lossd_client.run_batches` decides which batches
of a loader are sent.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from lossd_client.calls import Conversation
from lossd_client.concurrent_calls import call_each, call_each_async
from lossd_client.errors import DuplicateRows, InvalidRequest, LossdError
from lossd_client.messages import Record, tensors_by_name
from lossd_client.run_batches import (
    OnDuplicate,
    RunBatch,
    RunScore,
    Scoring,
    name_of_ids,
    name_of_position,
    name_of_positions,
    rows_of,
    without,
)
from lossd_client.run_messages import Identity, RunResult, compose_batch, compose_definition
from lossd_client.score import BatchInputs, progress_of
from lossd_client.service import Service

__all__ = ["AsyncRemoteRun", "RemoteRun", "open_run"]

T = TypeVar("T")


class _Perform(Protocol):
    def __call__(self, conversation: Conversation[T], /) -> T: ...


class _PerformAsync(Protocol):
    async def __call__(self, conversation: Conversation[T], /) -> T: ...


def open_run(
    service: Service,
    name: str,
    *,
    identity: Identity,
    owner: str | None,
    task: str | None,
    loss: str | Mapping[str, Any] | None,
    parameters: Mapping[str, Any],
    **definition: Any,
) -> Conversation[Record]:
    """Return the conversation that creates or opens a run: PUT with a definition, GET without one.

    Raises:
        TypeError: Arguments contradict each other.
    """
    defined = task is not None or loss is not None
    if not defined and not parameters and all(value is None for value in definition.values()):
        return service.run(name, owner=owner)
    if owner is not None:
        raise TypeError("a run of another owner can only be read; give owner alone, without a definition")
    document = compose_definition(task=task, loss=loss, parameters=parameters, identity=identity, **definition)
    return service.put_run(name, document)


class _Run:
    """What both kinds of runs share, without I/O.

    Attributes:
        name: The run's name.
        document: The service's answer when the run was opened.
        identity: How rows are told apart: ``position``, ``id`` or ``batch``.
    """

    def __init__(self, service: Service, document: Record, owner: str | None) -> None:
        self._service = service
        self._owner = owner
        self.name: str = document.run
        self.document = document
        self.identity: Identity = document.identity

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def _add(
        self,
        prediction: Any,
        target: Any,
        *,
        name: str | None,
        first: int | None,
        sample_id: Any,
        cluster_id: Any,
        slices: Mapping[str, Any] | None,
        inputs: Mapping[str, Any] | None,
        further: Mapping[str, Any],
        timeout_s: float | None,
        on_duplicate: OnDuplicate,
    ) -> Conversation[Record]:
        named = {"cluster_id": cluster_id} if cluster_id is not None else None
        tensors = tensors_by_name(prediction, target, inputs, further, named)
        rows = rows_of(tensors) if on_duplicate == "drop" else 0
        if name is None and rows and first is not None:
            name = name_of_positions(first, rows)  # a longer batch from the same position is another one
        name = name or self._name(first, sample_id)
        batch = RunBatch(name, tensors, rows, first, sample_id, 0, slices or {})
        return self._count(batch, timeout_s, on_duplicate)

    def _name(self, first: int | None, sample_id: Any) -> str:
        """Return the name of a batch that was given none.

        Raises:
            InvalidRequest: The batch has nothing to be named after.
        """
        if first is not None:
            return name_of_position(first)
        if sample_id is not None:
            return name_of_ids(sample_id)
        needed = {"position": "first", "id": "sample_id", "batch": "name"}[self.identity]
        raise InvalidRequest(f"a run of identity {self.identity} needs {needed} with every batch")

    def _count(self, batch: RunBatch, timeout_s: float | None, on_duplicate: OnDuplicate) -> Conversation[Record]:
        """Return the conversation that counts a batch, without rows that the run has counted if they are dropped."""
        if on_duplicate not in ("error", "drop"):
            raise TypeError(f"on_duplicate is {on_duplicate!r}; it is error or drop")
        return self._put(batch, timeout_s) if on_duplicate == "error" else self._put_rest(batch, timeout_s)

    def _put(self, batch: RunBatch, timeout_s: float | None) -> Conversation[Record]:
        body = compose_batch(
            None,
            None,
            batch.inputs,
            first=batch.first,
            sample_id=batch.sample_id,
            slices=batch.slices,
            declared=self.document.get("slices"),
        )
        return self._service.put_batch(self.name, batch.name, body, timeout_s)

    def _put_rest(self, batch: RunBatch, timeout_s: float | None) -> Conversation[Record]:
        waiting, counted, dropped, answer = [batch], 0, 0, Record()
        while waiting:
            part, *waiting = waiting
            try:
                answer = yield from self._put(part, timeout_s)
            except DuplicateRows as problem:
                rest = without(part, problem.rows)
                if rest is None:
                    raise
                dropped += part.rows - sum(piece.rows for piece in rest)
                waiting = [*rest, *waiting]
            else:
                counted += answer.counted.rows
        return Record({**answer, "batch": batch.name, "counted": {"rows": counted}, "dropped": dropped})

    def _send(self, batch: RunBatch, timeout_s: float | None, on_duplicate: OnDuplicate) -> Conversation[Record]:
        """Return the conversation about a loader's batch; its errors name the batch."""
        place = f"batch {batch.name} (index {batch.index})"
        try:
            return (yield from self._count(batch, timeout_s, on_duplicate))
        except TypeError as error:
            raise TypeError(f"{place}: {error}") from error
        except LossdError as error:
            error.detail = f"{place}: {error.detail}"
            error.args = (error.detail,)
            raise

    def _result(
        self, metrics: Sequence[str] | str | None, level: float | None, slices: bool
    ) -> Conversation[RunResult]:
        names = metrics if metrics is None or isinstance(metrics, str) else ",".join(metrics)
        query = {
            "owner": self._owner,
            "metrics": names,
            "level": None if level is None else repr(level),
            "slices": None if slices else "false",
        }
        return RunResult.of((yield from self._service.run(self.name, **query)))

    def _seal(self, rows: int | None) -> Conversation[RunResult]:
        return RunResult.of((yield from self._service.seal(self.name, rows)))

    def _batches(self) -> Conversation[list[Record]]:
        return self._service.batches(self.name, owner=self._owner)


class RemoteRun(_Run):
    """The score of a data set, which a service counts batch by batch and keeps.

    :meth:`LossClient.run` returns it. Threads and processes may share the run: each batch counts once, in any order.

    >>> run = lossd.run("resnet50-v3", task="multiclass", rows=50_000)  # doctest: +SKIP
    >>> run.score(loader)                                             # doctest: +SKIP
    >>> run.seal().metrics.f1.macro                                   # doctest: +SKIP

    Attributes:
        name: The run's name.
        document: The service's answer when the run was opened.
        identity: How rows are told apart: ``position``, ``id`` or ``batch``.
    """

    def __init__(self, perform: _Perform, service: Service, document: Record, owner: str | None = None) -> None:
        super().__init__(service, document, owner)
        self._perform = perform

    def add(
        self,
        prediction: Any = None,
        target: Any = None,
        *,
        name: str | None = None,
        first: int | None = None,
        sample_id: Any = None,
        cluster_id: Any = None,
        slices: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        on_duplicate: OnDuplicate = "error",
        **further: Any,
    ) -> Record:
        """Count a batch of rows; a batch that was counted before, with the same data, changes nothing.

        Args:
            prediction: The input ``prediction``: a NumPy array, a torch tensor, or a nested list of numbers.
            target: The input ``target``, of the same types.
            name: The batch's name: 1 to 200 letters, digits and ``. _ ~ -``. The default is derived from ``first`` or
                ``sample_id``; a run of identity ``batch`` needs a name.
            first: The position of the batch's first row in the data set, for the identity ``position``.
            sample_id: The rows' ids, (N,) integers, for the identity ``id``.
            cluster_id: The ids of the rows' clusters, (N,) integers: patients, documents, videos. Intervals then treat
                clusters as independent, and not rows. All batches of a run have it, or none.
            slices: The values of each declared slice, such as ``{"site": "A"}``: one text for the whole batch, (N,)
                texts, or (N,) integers, the indices of the declared values. None and -1 mean that a row has no value.
            inputs: Further inputs by name.
            timeout_s: Seconds this call may take, retries included; the default is the client's.
            on_duplicate: ``"drop"`` leaves out the rows that were counted in other batches, and counts the others in
                batches that are named after their rows. Which of two batches counts a row depends on their order. The
                first axis of every input must count the rows.
            **further: Further inputs: ``sample_weight`` (N,), and so on.

        Returns:
            The batch's name (``batch``), its number of rows (``counted.rows``), and the numbers of ``rows`` and
            ``batches`` that the ``run`` has counted (``run``). With ``"drop"``, also the number of rows that were left
            out (``dropped``). If all rows were left out, there is no ``run``.

        Raises:
            BatchConflict: A batch of that name was counted with other data.
            DuplicateRows: One of the rows was counted in another batch, or is in this one twice.
            RunSealed: The run is sealed.
            LossdError: The batch is invalid, or no answer came.
            TypeError: An input is given twice, or the wire does not carry a tensor's dtype.
        """
        conversation = self._add(
            prediction,
            target,
            name=name,
            first=first,
            sample_id=sample_id,
            cluster_id=cluster_id,
            slices=slices,
            inputs=inputs,
            further=further,
            timeout_s=timeout_s,
            on_duplicate=on_duplicate,
        )
        return self._perform(conversation)

    def score(
        self,
        batches: Iterable[BatchInputs],
        *,
        in_flight: int = 8,
        progress: bool | None = None,
        timeout_s: float | None = None,
        on_duplicate: OnDuplicate = "error",
    ) -> RunScore:
        """Count all batches of a loader that the run has not counted, several at a time.

        After a crash, call it again with the same batches in the same order: it asks what is counted and sends the
        rest. Batches are named by their order, 00000000 and so on, and rows have the positions of that order. If
        ``sample_id`` identifies the rows, the ids name the batches, so that many processes can score parts of one data
        set at the same time.

        Args:
            batches: The inputs of each batch: (prediction, target), or a mapping of names to tensors, with
                ``sample_id`` if the run has identity ``id``, and ``cluster_id`` and ``slices`` as in :meth:`add`. The
                first axis of ``target`` (N, …) counts the rows.
            in_flight: The maximum number of batches that are held and sent at a time.
            progress: Whether to draw a progress bar on standard error; the default is only on a terminal.
            timeout_s: Seconds each batch may take, retries included; the default is the client's.
            on_duplicate: As for :meth:`add`.

        Returns:
            The numbers of batches that were sent and that were counted before, their rows, the rows that were left
            out, and the duration in seconds.

        Raises:
            BatchConflict: A batch was counted under the same name with other rows or other data.
            LossdError: A batch was refused, or no answer came. The detail has the batch's name and index. No further
                batch is drawn, and the error is raised when those in flight have ended.
            TypeError: A batch has no rows, or lacks what identifies them.
        """
        begin = time.monotonic()
        counted = self._perform(self._batches())
        with progress_of(batches, progress) as bar:
            scoring = Scoring(self.name, self.identity, counted, bar)
            call_each(
                lambda batch: self._perform(self._send(batch, timeout_s, on_duplicate)),
                scoring.to_send(batches),
                scoring.received,
                in_flight=in_flight,
            )
        return scoring.score(time.monotonic() - begin)

    def result(
        self, metrics: Sequence[str] | str | None = None, *, level: float | None = None, slices: bool = True
    ) -> RunResult:
        """Return the score of the rows counted so far.

        Args:
            metrics: Only these metrics; the default is those of the definition. Other metrics are possible if the run
                has counted what they need, such as ``roc_curve`` for a run with ``auroc``.
            level: The level of the intervals, above 0.5; the default is 0.95.
            slices: Whether the result has the slices.

        Raises:
            InvalidRequest: The run has not counted what a metric needs, or the level is out of range.
        """
        return self._perform(self._result(metrics, level, slices))

    def seal(self, rows: int | None = None) -> RunResult:
        """Check that the run is complete, freeze its result, and return it. A second call returns the same result.

        Args:
            rows: The number of rows of the data set, if it is not in the definition; None checks no number.

        Raises:
            Incomplete: Rows are missing; ``missing`` lists the first ranges. The run stays open.
            OtherTargets: The targets are not those of the definition. The run stays open.
        """
        return self._perform(self._seal(rows))

    def batches(self) -> list[Record]:
        """Return the counted batches in their order: ``batch`` (the name), ``counted.rows``, ``first``, ``digest``."""
        return self._perform(self._batches())

    def delete(self) -> None:
        """Delete the run and all its batches."""
        self._perform(self._service.delete_run(self.name))


class AsyncRemoteRun(_Run):
    """:class:`RemoteRun` for asyncio: the same methods as coroutines.

    Attributes:
        name: The run's name.
        document: The service's answer when the run was opened.
        identity: How rows are told apart: ``position``, ``id`` or ``batch``.
    """

    def __init__(self, perform: _PerformAsync, service: Service, document: Record, owner: str | None = None) -> None:
        super().__init__(service, document, owner)
        self._perform = perform

    async def add(
        self,
        prediction: Any = None,
        target: Any = None,
        *,
        name: str | None = None,
        first: int | None = None,
        sample_id: Any = None,
        cluster_id: Any = None,
        slices: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        on_duplicate: OnDuplicate = "error",
        **further: Any,
    ) -> Record:
        """As :meth:`RemoteRun.add`."""
        conversation = self._add(
            prediction,
            target,
            name=name,
            first=first,
            sample_id=sample_id,
            cluster_id=cluster_id,
            slices=slices,
            inputs=inputs,
            further=further,
            timeout_s=timeout_s,
            on_duplicate=on_duplicate,
        )
        return await self._perform(conversation)

    async def score(
        self,
        batches: Iterable[BatchInputs],
        *,
        in_flight: int = 8,
        progress: bool | None = None,
        timeout_s: float | None = None,
        on_duplicate: OnDuplicate = "error",
    ) -> RunScore:
        """As :meth:`RemoteRun.score`."""
        begin = time.monotonic()
        counted = await self._perform(self._batches())
        with progress_of(batches, progress) as bar:
            scoring = Scoring(self.name, self.identity, counted, bar)
            await call_each_async(
                lambda batch: self._perform(self._send(batch, timeout_s, on_duplicate)),
                scoring.to_send(batches),
                scoring.received,
                in_flight=in_flight,
                finish=True,
            )
        return scoring.score(time.monotonic() - begin)

    async def result(
        self, metrics: Sequence[str] | str | None = None, *, level: float | None = None, slices: bool = True
    ) -> RunResult:
        """As :meth:`RemoteRun.result`."""
        return await self._perform(self._result(metrics, level, slices))

    async def seal(self, rows: int | None = None) -> RunResult:
        """As :meth:`RemoteRun.seal`."""
        return await self._perform(self._seal(rows))

    async def batches(self) -> list[Record]:
        """As :meth:`RemoteRun.batches`."""
        return await self._perform(self._batches())

    async def delete(self) -> None:
        """As :meth:`RemoteRun.delete`."""
        await self._perform(self._service.delete_run(self.name))
