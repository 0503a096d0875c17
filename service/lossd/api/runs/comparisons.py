"""Comparisons of runs: the engine computes them from two merged states at a time, and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lossd.api.http.texts import in_thread
from lossd.api.runs.definitions import readable_document
from lossd.api.runs.documents import version
from lossd.api.runs.recorded import Record
from lossd.api.runs.results import Wait, evaluated, merged, take_turn
from lossd.caches import Cache
from lossd.runs.counting import STATE, compare_job
from lossd_client.errors import DefinitionChanged, NotComparable
from lossd_client.wire import json
from lossd_client.wire.quoting import quoted

if TYPE_CHECKING:
    from lossd.api.http.request import HttpRequest
    from lossd.api.observability.telemetry import Telemetry
    from lossd.engine import Engine
    from lossd.recorder.client import Recorder

__all__ = ["ComparisonCache"]

AT_ONCE = 1
"""How many requests compare states at once: each has two of them in memory."""

CACHED_BYTES = 8 << 20

Key = tuple[str, tuple[int, float], str, tuple[int, float], bytes]


class ComparisonCache:
    """Comparisons of two runs, by their ids and revisions and by what is asked. The most recently used are cached.

    Args:
        recorder: Merges states.
        engine: Compares them.
        telemetry: Measures the recorder.
    """

    def __init__(self, recorder: Recorder, engine: Engine, telemetry: Telemetry) -> None:
        self._recorder = recorder
        self._engine = engine
        self._telemetry = telemetry
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._cache: Cache[Key, bytes] = Cache("run_comparisons", CACHED_BYTES)

    async def of_runs(
        self, request: HttpRequest, records: Sequence[Record], options: Mapping[str, Any], wait: Wait
    ) -> tuple[list[Record], list[Mapping[str, Any]]]:
        """Return the runs' present records, and the comparison of each run but the first with the first.

        Args:
            request: The request.
            records: The runs' records, which may be a little older; the first is the baseline.
            options: What is asked, as of :func:`~lossd.runs.counting.compare_job`.
            wait: Waits for the engine's result, as :meth:`lossd.api.route.Route._result`.

        Raises:
            NotComparable: Runs differ from the baseline in more than their predictions; ``runs`` names each.
            InvalidRequest: The runs have not counted what a metric is made of.
            Problem: A state cannot be read or compared now.
        """
        options_text = json.dumps(options)
        first, *others = records
        texts = [self._cache.get(_key(first, other, options_text)) for other in others]
        found = [text for text in texts if text is not None]
        if len(found) < len(others):
            await take_turn(request, self._turns)
            try:
                first, others, found = await self._compared(request, first, others, options, wait)
            finally:
                self._turns.release()
        nbytes = sum(map(len, found))
        return [first, *others], await in_thread(nbytes, lambda: [json.loads(text) for text in found])

    async def _compared(
        self,
        request: HttpRequest,
        first: Record,
        others: Sequence[Record],
        options: Mapping[str, Any],
        wait: Wait,
    ) -> tuple[Record, list[Record], list[bytes]]:
        """Return the present records, and the JSON of each comparison. One state is read after the other."""
        _check_readable(first, first)
        first, baseline = await merged(self._recorder, self._telemetry, request, first)
        options_text = json.dumps(options)
        present: list[Record] = []
        found: list[bytes] = []
        apart: list[tuple[Record, NotComparable]] = []
        for other in others:
            record = other
            text = self._cache.get(_key(first, record, options_text))
            try:
                if text is None:
                    _check_readable(record, first)
                    record, state = await merged(self._recorder, self._telemetry, request, record)
                    documents = [readable_document(each) for each in (first, record)]
                    states = [baseline, state]
                    job = compare_job(states, documents[0].plan, [each.definition for each in documents], options)
                    data = {f"{STATE}{number}": each for number, each in enumerate(states)}
                    text = await evaluated(self._engine, request, job, data, wait)
                    self._cache.put(_key(first, record, options_text), text, 1024 + len(text))
            except NotComparable as problem:
                apart.append((record, problem))
                continue
            present.append(record)
            found.append(text)
        if apart:
            raise _not_comparable(first, apart)
        return first, present, found


def _key(first: Record, other: Record, options: bytes) -> Key:
    return first["id"], version(first), other["id"], version(other), options


def _check_readable(record: Record, first: Record) -> None:
    """Check that a run has a state which this version of lossd can read.

    Raises:
        NotComparable: It has counted nothing, or a metric was defined differently.
    """
    problem: NotComparable | None = None
    if not record["batches"]:
        name = quoted(record["name"])
        detail = f"the run {name} has counted no rows; send its batches, then compare it"
        problem = NotComparable(detail, differs=["rows"])
    else:
        try:
            readable_document(record)
        except DefinitionChanged as changed:
            problem = NotComparable(changed.detail, differs=["versions"])
    if problem is not None:
        raise _not_comparable(first, [(record, problem)]) if record is first else problem


def _not_comparable(first: Record, apart: Sequence[tuple[Record, NotComparable]]) -> NotComparable:
    """Return the problem of runs that cannot be compared with the first one."""
    runs = [
        {"run": record["name"], "owner": record["owner"], "differs": problem.differs, "detail": problem.detail}
        for record, problem in apart
    ]
    details = "; ".join(
        problem.detail
        if quoted(record["name"]) in problem.detail
        else f"{quoted(record['name'])} with {quoted(first['name'])}: {problem.detail}"
        for record, problem in apart
    )
    differs = list(dict.fromkeys(name for _, problem in apart for name in problem.differs))
    return NotComparable(f"the runs cannot be compared: {details}", differs=differs, runs=runs)
