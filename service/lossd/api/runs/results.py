"""Results of runs: the engine computes them from the merged state, and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lossd.api.http.texts import in_thread
from lossd.api.runs.definitions import problem_of, readable_document
from lossd.api.runs.documents import version
from lossd.api.runs.names import RunQuery
from lossd.caches import Cache
from lossd.runs.counting import STATE, result_job
from lossd_client.wire import json

if TYPE_CHECKING:
    from lossd.api.http.request import HttpRequest
    from lossd.api.observability.telemetry import Telemetry
    from lossd.engine import Engine, Result
    from lossd.job import Job
    from lossd.recorder.client import Recorder

__all__ = ["Record", "Results", "Wait", "evaluated", "merged", "take_turn"]

Record = Mapping[str, Any]
Wait = Callable[..., Awaitable["Result"]]

ALL = RunQuery()
LEVEL = 0.95
"""The level of a result that was asked without one."""

AT_ONCE = 2
"""How many states are in memory at once: each may have as many bytes as a run."""

CACHED_BYTES = 16 << 20
"""A result of a 32nd of it is not cached."""


class Results:
    """The results of runs, by run, revision and what is asked. The most recently used are cached.

    Args:
        recorder: Merges states.
        engine: Computes results of them.
        telemetry: Measures the recorder.
    """

    def __init__(self, recorder: Recorder, engine: Engine, telemetry: Telemetry) -> None:
        self._recorder = recorder
        self._telemetry = telemetry
        self._engine = engine
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._cache: Cache[tuple[str, tuple[int, float], bytes], bytes] = Cache("run_results", CACHED_BYTES)

    async def of_run(
        self, request: HttpRequest, record: Record, wait: Wait, parameters: RunQuery = ALL
    ) -> tuple[Record, dict[str, Any] | None]:
        """Return a run's present record, and its result; None if there is none.

        The result of a sealed run is the final one, unless the request asks for more: another level, or metrics that
        the definition does not name. A result may have more than the request asks for.

        Args:
            request: The request.
            record: The run's record, which may be a little older.
            wait: Waits for the engine's result, as :meth:`lossd.api.route.Route._result`.
            parameters: What is asked for.

        Raises:
            DefinitionChanged: The run is sealed, and another version of lossd defined its metrics.
            InvalidRequest: The run has not counted what a metric is made of.
            Problem: The state cannot be read or evaluated now.
        """
        sealed = record["status"] == "sealed"
        if sealed and not _beyond(parameters, record["result"]["metrics"], record["result"].get("level")):
            return record, record["result"]
        if not record["batches"] or (not sealed and problem_of(record) is not None):
            return record, None
        options = _beyond(parameters, readable_document(record).plan.metrics, LEVEL)
        asked_for = json.dumps(options)
        text = self._cache.get((record["id"], version(record), asked_for))
        if text is None:
            await take_turn(request, self._turns)
            try:
                key = record["id"], version(record), asked_for
                text = self._cache.get(key)  # another request may have had it computed
                if text is None:
                    record, state = await merged(self._recorder, self._telemetry, request, record)
                    if record["status"] == "sealed" and not options:
                        return record, record["result"]
                    document = readable_document(record)
                    job = result_job(state, document.plan, document.definition, options)
                    text = await evaluated(self._engine, request, job, {STATE: state}, wait)
                    self._cache.put((record["id"], version(record), asked_for), text, 1024 + len(text))
            finally:
                self._turns.release()
        return record, await in_thread(len(text), partial(json.loads, text))


def _beyond(parameters: RunQuery, metrics: Container[str], level: float | None) -> dict[str, Any]:
    """Return the options of a result that is more than a part of another one; {} if that one has all.

    Args:
        parameters: What is asked for.
        metrics: The names of the other result's metrics.
        level: Its level.
    """
    names = parameters.names
    more = names is not None and any(name not in metrics for name in names)
    if not more and parameters.level in (None, level):
        return {}
    return {
        **({} if names is None else {"metrics": names}),
        **({} if parameters.level is None else {"level": parameters.level}),
        **({} if parameters.slices else {"slices": False}),
    }


async def take_turn(request: HttpRequest, turns: asyncio.Semaphore) -> None:
    """Wait until few enough states are in memory.

    Raises:
        DeadlineExceeded: The request's deadline passed.
    """
    async with request.in_time("the result was not computed"):
        await turns.acquire()


async def merged(
    recorder: Recorder, telemetry: Telemetry, request: HttpRequest, record: Record
) -> tuple[Record, bytes]:
    """Return a run's present record and the bytes of its state.

    Raises:
        Problem: The recorder cannot answer now, or the run was deleted.
    """
    found: tuple[Record, bytes] = await telemetry.recording(recorder.ask("merged", request.deadline, run=record["id"]))
    return found


async def evaluated(engine: Engine, request: HttpRequest, job: Job, states: Mapping[str, bytes], wait: Wait) -> bytes:
    """Return the JSON that the engine makes of states.

    Raises:
        Problem: The states cannot be read so, or not now.
    """
    request.identify(job.recipe.model, job)
    data = {name: memoryview(state) for name, state in states.items()}
    result = await wait(request, engine.submit(job, data, request.deadline, request.client))
    try:
        return bytes(result.text)
    finally:
        result.release()
