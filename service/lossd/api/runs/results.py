"""Results of open runs: the engine computes them from the merged state, and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lossd.api.http.texts import in_thread
from lossd.api.runs.definitions import current_document, problem_of
from lossd.caches import Cache
from lossd.runs.counting import result_job
from lossd_client.wire import json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lossd.api.http.request import HttpRequest
    from lossd.api.observability.telemetry import Telemetry
    from lossd.engine import Engine, Result
    from lossd.recorder.client import Recorder
    from lossd.runs.definition import RunDocument

__all__ = ["Results"]

AT_ONCE = 2
"""How many states are in memory at once: each may have as many bytes as a run."""

CACHED_BYTES = 16 << 20
"""A result of a 32nd of it is not cached."""


class Results:
    """The results of open runs, by run and revision. The most recently used are cached.

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
        self._cache: Cache[tuple[str, int], bytes] = Cache("run_results", CACHED_BYTES)

    async def of_run(
        self, request: HttpRequest, record: Mapping[str, Any], wait: Callable[..., Awaitable[Result]]
    ) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
        """Return a run's present record, and its result: the final one of a sealed run; None if there is none.

        Args:
            request: The request.
            record: The run's record, which may be a little older.
            wait: Waits for the engine's result, as :meth:`lossd.api.route.Route._result`.

        Raises:
            Problem: The state cannot be read or evaluated now.
        """
        if record["status"] == "sealed":
            return record, record["result"]
        if not record["batches"] or problem_of(record) is not None:
            return record, None
        text = self._cache.get((record["id"], record["revision"]))
        if text is None:
            await self._take_turn(request)
            try:
                text = self._cache.get((record["id"], record["revision"]))  # another request may have had it computed
                if text is None:
                    asking = self._recorder.ask("merged", request.deadline, run=record["id"])
                    record, state = await self._telemetry.recording(asking)
                    if record["status"] == "sealed":
                        return record, record["result"]
                    text = await self._evaluated(request, current_document(record), state, wait)
                    self._cache.put((record["id"], record["revision"]), text, 1024 + len(text))
            finally:
                self._turns.release()
        return record, await in_thread(len(text), partial(json.loads, text))

    async def _take_turn(self, request: HttpRequest) -> None:
        """Wait until few enough states are in memory.

        Raises:
            DeadlineExceeded: The request's deadline passed.
        """
        async with request.in_time("the result was not computed"):
            await self._turns.acquire()

    async def _evaluated(
        self, request: HttpRequest, document: RunDocument, state: bytes, wait: Callable[..., Awaitable[Result]]
    ) -> bytes:
        job = result_job(state, document.plan, document.definition)
        request.identify(job.recipe.model, job)
        future = self._engine.submit(job, {"state": memoryview(state)}, request.deadline, request.client)
        result = await wait(request, future)
        try:
            return bytes(result.text)
        finally:
            result.release()
