"""Many comparisons at once: how many states they hold together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from lossd.api.runs.comparisons import ComparisonCache
from lossd.runs.definition import RunDocument

DOCUMENT = RunDocument.parse({"task": "binary", "metrics": ["accuracy"]})
REQUESTS, RUNS = 16, 4


def record(number: int) -> dict[str, Any]:
    fields = {"document": DOCUMENT.to_dict(), "digest": DOCUMENT.digest, "status": "open", "owner": ""}
    return {**fields, "id": f"id-{number}", "name": f"run-{number}", "revision": 1, "touched": 0.0, "batches": 1}


def test_simultaneous_comparisons_hold_two_states_in_all() -> None:
    """A state may have as many bytes as a run, by default 256 MiB, and a comparison names up to 32 runs."""
    held = most = 0

    class Engine:
        def submit(self, job: Any, states: Any, deadline: float, client: str) -> int:
            return len(states)

    class Recorder:
        async def ask(self, op: str, deadline: float, *, run: str) -> Any:
            return record(int(run.removeprefix("id-"))), b"state"

    async def recording(answer: Awaitable[Any]) -> Any:
        return await answer

    async def wait(request: Any, states: int) -> Any:
        nonlocal held, most
        held += states
        most = max(most, held)
        await asyncio.sleep(0)
        held -= states
        return SimpleNamespace(text=b"{}", release=lambda: None)

    @asynccontextmanager
    async def in_time(what: str) -> AsyncIterator[None]:
        yield

    async def scenario() -> int:
        comparisons = ComparisonCache(Recorder(), Engine(), SimpleNamespace(recording=recording))  # type: ignore[arg-type]
        request = SimpleNamespace(deadline=0.0, client="", identify=lambda *_: None, in_time=in_time)
        answers = [
            comparisons.of_runs(request, [record(RUNS * n + i) for i in range(RUNS)], {}, wait)  # type: ignore[arg-type]
            for n in range(REQUESTS)
        ]
        return sum(len(pairs) for _, pairs in await asyncio.gather(*answers))

    assert asyncio.run(scenario()) == REQUESTS * (RUNS - 1)
    assert most == 2
