"""``PUT /v1/runs/{run}/batches/{batch}``: counts a batch of rows."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Message, Send

from lossd import __version__
from lossd.api.direct_route import DirectRoute
from lossd.api.evaluation_route import server_timing
from lossd.api.http.asgi import BATCH, RUN
from lossd.api.http.direct import DirectRequest
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import Headers, send_whole
from lossd.api.http.texts import INLINE_BYTES, MAX_REQUEST_BYTES, small_document
from lossd.api.runs.definitions import Definition, Definitions
from lossd.api.runs.names import NoQuery, checked_name, query, segments
from lossd.api.tensor_route import JSON, CheckedHeader, TensorRoute
from lossd.caches import Cache
from lossd.engine import Result
from lossd.job import Job
from lossd.request.fields import check_entries, validated
from lossd.request.plan import Layout
from lossd.runs.counting import counting_job, moved
from lossd.runs.rows.places import is_about_rows
from lossd_client.errors import InvalidRequest, NotEvaluable, TooLarge, Unavailable, UnknownRun
from lossd_client.wire import json, safetensors

if TYPE_CHECKING:
    from lossd.api.http.fairness import FairShare
    from lossd.api.observability.telemetry import Telemetry
    from lossd.configuration.settings import Settings
    from lossd.engine import Engine
    from lossd.recorder.client import Recorder

__all__ = ["BatchFields", "BatchRoute"]

ATTEMPTS = 3
AGAIN_S = 1.0

HEADERS_BYTES = 2 << 20

CountResult = Mapping[str, Any]
"""The recorder's answer to a batch."""


class BatchFields(BaseModel):
    """The fields of a batch beside its tensors."""

    model_config = ConfigDict(extra="forbid", strict=True)

    first: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="The position of the batch's first row in the data set; for runs of identity position."
    )
    slices: dict[str, str | None] | None = Field(
        None,
        description='The value that all rows of the batch have of a slice, such as {"site": "A"}; null for none. The '
        "other slices of the run are inputs, such as slice.sex: a code for each row.",
    )


@dataclass(frozen=True, slots=True)
class CountingRequest:
    """Makes the job that counts a batch of a run."""

    definition: Definition
    name: str
    fields: BatchFields

    def kinds(self, name: str) -> frozenset[str]:
        """Return the kinds of dtype that an input may have."""
        return frozenset(("integer",)) if is_about_rows(name) else self.definition.document.plan.kinds(name)

    def job(self, layout: Layout) -> Job:
        """Return the job for tensors of these dtypes and shapes.

        Raises:
            Problem: A tensor does not fit, or the rows are not identified as the run's definition says.
        """
        document, fields = self.definition.document, self.fields
        return counting_job(
            document.plan,
            document.definition,
            layout,
            first=fields.first,
            name=self.name,
            slices=fields.slices,
            content_hash=self.definition.content_hash,
        )


@dataclass(slots=True)
class IncomingBatch:
    """A batch whose body is still to be read.

    Attributes:
        run: The run's name.
        name: The batch's name.
        definition: The run's definition.
        current: Whether the definition was looked up for this request, and not cached before.
        result: The worker's answer, once there is one; its slab is released.
        evaluated: When it came, on the monotonic clock.
    """

    run: str
    name: str
    definition: Definition
    current: bool
    result: Result | None = None
    evaluated: float = 0.0


class BatchRoute(TensorRoute[IncomingBatch], DirectRoute[IncomingBatch]):
    """The route that counts batches.

    Args:
        settings: The limits.
        engine: Evaluates batches.
        telemetry: Counts requests.
        fair_share: Decides whose request is read next.
        recorder: Counts what batches contribute.
        definitions: The definitions of the runs.
    """

    fields = "first, slices and inputs"

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        telemetry: Telemetry,
        fair_share: FairShare,
        recorder: Recorder,
        definitions: Definitions,
    ) -> None:
        super().__init__(settings, engine, telemetry, fair_share)
        self.recorder = recorder
        self.definitions = definitions
        self._finishing: set[asyncio.Future[None]] = set()

    async def _serve(self, request: HttpRequest, send: Send) -> None:
        run, _, name = segments(request.scope["path"])
        request.scope[RUN] = checked_name(run, "run")
        request.scope[BATCH] = checked_name(name, "batch")
        if request.query:
            query(request.query, NoQuery)
        format_in = self._read_headers(request)
        if request.client:
            await self.fair_share.acquire(request)
        cached = self.definitions.cached(request.client, run)
        definition = cached or await self.definitions.look_up(request.client, run, request.deadline)
        batch = IncomingBatch(run, name, definition, current=cached is None)
        await self._judged(request, batch, self._read_and_count(request, format_in, batch, send))
        self._learn(request, send, (format_in, run))

    async def _judged(self, request: HttpRequest, batch: IncomingBatch, counting: Awaitable[None]) -> None:
        """Await the answer to a batch. A refusal must be by the run's present definition."""
        try:
            await counting
        except (NotEvaluable, TooLarge):
            if not batch.current:
                await self._check_current(request, batch)
            raise

    async def _check_current(self, request: HttpRequest, batch: IncomingBatch) -> None:
        """Check that a refused batch was judged by the run's present definition.

        Raises:
            Unavailable: The run was deleted and created again; the batch may fit its new definition.
        """
        now = await self.definitions.look_up(request.client, batch.run, request.deadline)
        if now.key != batch.definition.key:
            raise _replaced()

    # Request

    def _maker(self, text: bytes, request: HttpRequest, context: IncomingBatch) -> CountingRequest:
        if len(text) > MAX_REQUEST_BYTES:
            raise TooLarge(f"the batch has {len(text)} bytes beside its tensors; at most {MAX_REQUEST_BYTES} are read")
        document = small_document(text, "the batch")
        if not isinstance(document, dict):
            raise InvalidRequest('the request in the safetensors metadata must be a JSON object, such as {"first": 0}')
        check_entries(document)
        fields = validated(BatchFields, document, "", _elsewhere)
        return CountingRequest(context.definition, context.name, fields)

    def _header(self, text: bytes, request: HttpRequest, context: IncomingBatch) -> CheckedHeader:
        definition = context.definition
        before, first, behind = _split_at_first(text)
        key = definition.key, before, behind
        if (known := _HEADERS.get(key)) is not None:
            job = moved(known.job, definition.document.definition, first=first, name=context.name)
            request.identify(job.recipe.model, job)
            return CheckedHeader(job, known.spans, known.data_bytes)
        header, maker = self._parsed(text, request, context)
        checked = CheckedHeader.of(header, maker)
        request.identify(checked.job.recipe.model, checked.job)
        if first is None:
            found = maker.fields.first is None
        else:  # another number in its place must be another position
            _, other = self._parsed(b"%b%d%b" % (before, first ^ 1, behind), request, context)
            found = (maker.fields.first, other.fields.first) == (first, first ^ 1)
        if found:
            _HEADERS.put(key, checked, 1024 + 8 * len(text) + checked.job.recipe.nbytes)
        return checked

    def _parsed(
        self, text: bytes, request: HttpRequest, context: IncomingBatch
    ) -> tuple[safetensors.Header, CountingRequest]:
        """Return a header and what makes the batch's job."""
        header = safetensors.read_header(text)
        return header, self._maker(header.metadata.get("request", "{}").encode(), request, context)

    def _accept(self, job: Job, context: IncomingBatch, forms: Mapping[str, json.Form]) -> None:
        """Accept every job: the answer is short."""

    def _submit_whole(
        self, request: DirectRequest, body: memoryview
    ) -> tuple[IncomingBatch, asyncio.Future[Result]] | None:
        run, _, name = segments(request.scope["path"])
        request.scope[BATCH] = checked_name(name, "batch")
        definition = self.definitions.cached(request.client, run)
        if definition is None:
            return None
        batch = IncomingBatch(run, name, definition, current=False)
        submit = self._submit_json if request.known.format == "json" else self._submit_safetensors
        return batch, submit(request, body, batch)

    # Answer

    async def _read_and_count(self, request: HttpRequest, format_in: str, batch: IncomingBatch, send: Send) -> None:
        read = self._read_json if format_in == "json" else self._read_safetensors
        future = await read(request, batch)
        await self._count(request, batch, future, time.monotonic(), send)

    async def _count(
        self, request: HttpRequest, batch: IncomingBatch, future: asyncio.Future[Result], parsed: float, send: Send
    ) -> None:
        """Wait for the worker's report on a batch, have it counted, and answer."""
        result = await self._result(request, future)
        result.release()  # the report is no tensor
        batch.result, batch.evaluated = result, time.monotonic()
        held = len(result.text) if len(result.text) > INLINE_BYTES else 0
        self.engine.budget.add(request.client, held)
        try:
            outcome = await self._recorded(request, batch, self._begin_counting(request, batch, result))
        finally:
            self.engine.budget.add(request.client, -held)
        await self._answer(request, batch, result, outcome, parsed, send)

    async def _answer(
        self,
        request: HttpRequest,
        batch: IncomingBatch,
        result: Result,
        outcome: CountResult,
        parsed: float,
        send: Send,
    ) -> None:
        status, headers, body, stages = self._encoded(request, batch, result, outcome, parsed)
        await send_whole(send, headers, body, status)
        self._answered(request, result, stages, len(body), status)

    def complete(self, request: DirectRequest, outcome: Any) -> bool:
        """Have a batch counted once it is evaluated, and answer once it is counted."""
        batch: IncomingBatch = request.answer
        if batch.result is None:
            result: Result = outcome
            if len(result.text) > INLINE_BYTES:
                return False
            counting = self._begin_counting(request, batch, result)
            result.release()
            batch.result, batch.evaluated = result, time.monotonic()
            request.wait_for(counting)
            return True
        self.telemetry.recorder.add_one(time.monotonic() - batch.evaluated)
        document, _ = outcome
        status, headers, body, stages = self._encoded(request, batch, batch.result, document, request.parsed)
        request.send(request.encoded(headers, [body], status))
        if request.client:
            self.fair_share.release(request)
        self._answered(request, batch.result, stages, len(body), status)
        return True

    async def _finish(self, request: DirectRequest, future: asyncio.Future[Any], send: Send) -> None:
        await self._judged(request, request.answer, self._go_on(request, request.answer, future, send))

    async def _go_on(
        self, request: DirectRequest, batch: IncomingBatch, future: asyncio.Future[Any], send: Send
    ) -> None:
        if (result := batch.result) is None:
            await self._count(request, batch, future, request.parsed, send)
        else:
            outcome = await self._recorded(request, batch, future)
            await self._answer(request, batch, result, outcome, request.parsed, send)

    def give_up(self, request: DirectRequest, future: asyncio.Future[Any]) -> None:
        """Drop a batch whose client left; one that is being counted is answered to nobody."""
        if request.answer.result is None:
            super().give_up(request, future)
            return
        finishing = asyncio.ensure_future(self.finish(request, future, request.scope, _nothing, _to_nobody))
        self._finishing.add(finishing)
        finishing.add_done_callback(self._finishing.discard)

    def _encoded(
        self, request: HttpRequest, batch: IncomingBatch, result: Result, outcome: CountResult, parsed: float
    ) -> tuple[int, Headers, bytes, tuple[float, ...]]:
        """Return an answer's status, headers and body, and the durations of its stages but the total."""
        body = json.dumps({name: value for name, value in outcome.items() if name != "created"})
        stages = (parsed - request.begin, *result.timings, time.monotonic() - batch.evaluated)
        headers = [
            (b"content-type", JSON),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request.request_id.encode("latin-1")),
            (b"server-timing", server_timing(stages, result.batch_requests).replace(b"encode", b"record")),
        ]
        return 201 if outcome["created"] else 200, headers, body, stages

    def _answered(
        self, request: HttpRequest, result: Result, stages: tuple[float, ...], size: int, status: int
    ) -> None:
        self.telemetry.batches["counted" if status == 201 else "again"] += 1
        self.telemetry.answered(request, result, (*stages, time.monotonic() - request.begin), size, status)

    def _begin_counting(
        self, request: HttpRequest, batch: IncomingBatch, result: Result
    ) -> asyncio.Future[tuple[CountResult, bytes]]:
        """Ask the recorder to count a batch, and return the future of its answer."""
        return self.recorder.begin(
            "count",
            request.deadline,
            result.text,
            run=batch.definition.run,
            name=batch.name,
            device=self._device,
            build=__version__,
        )

    async def _recorded(
        self, request: HttpRequest, batch: IncomingBatch, counting: asyncio.Future[tuple[CountResult, bytes]]
    ) -> CountResult:
        """Return the recorder's answer to a batch's report: it is committed.

        Args:
            request: The request.
            batch: The batch.
            counting: The recorder's answer to the first attempt.

        Raises:
            Unavailable: The run was deleted and created with another definition.
            Problem: The batch is not counted, or nothing is known.
        """
        assert batch.result is not None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                outcome, _ = await self.telemetry.recording(counting)
            except UnknownRun:  # it was deleted; there may be another of that name
                now = await self.definitions.look_up(request.client, batch.run, request.deadline)
                if now.key != batch.definition.key:
                    raise _replaced() from None
                batch.definition = now
                if attempt < ATTEMPTS:
                    counting = self._begin_counting(request, batch, batch.result)
            else:
                return outcome
        raise _replaced()

    @cached_property
    def _device(self) -> str:
        """The kinds of the devices that evaluate batches."""
        return "+".join(sorted({vitals.device.partition(":")[0] for vitals in self.engine.vitals}))

    def _refused(self, request: HttpRequest, outcome: str, status: int | None = None) -> None:
        self.telemetry.batches["refused" if status is not None and status < 500 else "unknown"] += 1
        super()._refused(request, outcome, status)


_HEADERS: Cache[tuple[tuple[str, str], bytes, bytes], CheckedHeader] = Cache("batch_headers", HEADERS_BYTES)
"""The checked headers of batches by the definition's key and their text without ``first``, which they differ in."""

_FIRST = re.compile(rb'\\"first\\": ?(0|[1-9][0-9]{0,17})(?=[,}])')
"""The position of a batch in the text of a safetensors header, where the request is a JSON text in a JSON text."""


def _split_at_first(text: bytes) -> tuple[bytes, int | None, bytes]:
    """Return what stands before a number that looks like the position, the number, and the rest; None without one."""
    found = _FIRST.search(text)
    if found is None:
        return text, None, b""
    return text[: found.start(1)], int(found[1]), text[found.end(1) :]


async def _nothing() -> Message:
    """Receive nothing more of a client that left."""
    return {"type": "http.disconnect"}


async def _to_nobody(_: Message) -> None:
    """Send an answer whose client left."""


def _replaced() -> Unavailable:
    return Unavailable(
        "the run was deleted and created with another definition while this batch was counted; send the batch again",
        retry_after_s=AGAIN_S,
    )


def _elsewhere(name: str) -> str:
    """Return where a field that is no batch's belongs."""
    if name in ("loss", "task", "metrics", "identity", "dataset", "groups", "crossed"):
        return "it is a part of the run's definition: PUT the definition to the run"
    return "it is an input: put it into inputs, as a tensor" if is_about_rows(name) else ""
