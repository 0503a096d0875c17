"""Everything under ``/v1/runs`` but counting: definitions, lists, results and seals, as plain ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Send

from lossd import __version__
from lossd.api.drawing import POLICY, Drawer
from lossd.api.http.asgi import BATCH, ROOT, RUN, not_allowed
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import Headers, send_whole
from lossd.api.http.texts import INLINE_BYTES, MAX_REQUEST_BYTES, in_thread, small_document
from lossd.api.runs.definitions import Definitions, current_document
from lossd.api.runs.documents import batch_answer, entry, etag, run_answer, summary_of
from lossd.api.runs.names import BatchesQuery, NoQuery, OwnerQuery, RunQuery, RunsQuery, checked_name, query, segments
from lossd.api.runs.plots import PlotQuery, drawn_document, needed
from lossd.api.runs.recorded import Record, RecordedRoute, id_header
from lossd.api.runs.results import Results
from lossd.api.tensor_route import JSON
from lossd.request.fields import check_entries, validated
from lossd.runs.definition import RunDocument
from lossd.runs.price import check_price
from lossd_client.errors import (
    Conflict,
    Fault,
    Incomplete,
    InvalidRequest,
    NotFound,
    Problem,
    RunSealed,
    Unavailable,
    UnsupportedMediaType,
)
from lossd_client.wire import json
from lossd_client.wire.quoting import quoted

if TYPE_CHECKING:
    from lossd.api.http.fairness import FairShare
    from lossd.api.observability.telemetry import Telemetry
    from lossd.configuration.settings import Settings
    from lossd.engine import Engine
    from lossd.recorder.client import Recorder

__all__ = ["Runs", "SealFields"]

ATTEMPTS = 8
"""How often a seal is tried while batches of the run arrive."""

AGAIN_S = 1.0

Handler = Callable[[HttpRequest, Send], Awaitable[None]]
"""Answers a request of one method. None stands for the method that counts a batch, which another route answers."""


class SealFields(BaseModel):
    """The body of a seal."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rows: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="How many rows the data set has; by default the number in the run's definition."
    )


class Runs(RecordedRoute):
    """The routes of runs, without the one that counts batches.

    Args:
        settings: The limits.
        engine: Computes results.
        telemetry: Counts what happens to runs.
        fair_share: As for every route.
        recorder: Keeps the runs.
        definitions: The cached definitions of runs, which a deletion changes.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        telemetry: Telemetry,
        fair_share: FairShare,
        recorder: Recorder,
        definitions: Definitions,
    ) -> None:
        super().__init__(settings, engine, telemetry, fair_share, recorder)
        self.definitions = definitions
        self.results = Results(recorder, engine, telemetry)
        self.drawer = Drawer()

    async def _serve(self, request: HttpRequest, send: Send) -> None:
        path = segments(request.scope["path"])
        handlers = self._handlers(path)
        if not handlers:
            where = quoted(request.scope["path"])
            raise NotFound(f"nothing is served at {where}; /openapi.json lists all paths")
        method = request.scope["method"]
        handler = handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            raise not_allowed(method, list(handlers))
        if path:
            request.scope[RUN] = checked_name(path[0], "run")
        if path[2:]:
            request.scope[BATCH] = checked_name(path[2], "batch")
        request.read_headers()
        await handler(request, send)

    def _handlers(self, path: list[str]) -> dict[str, Handler | None]:
        """Return the handler of each method of a path; none if nothing is served there."""
        match path:
            case []:
                return {"GET": self._list}
            case [run] if run:
                return {
                    "GET": partial(self._get, run),
                    "PUT": partial(self._create, run),
                    "DELETE": partial(self._delete, run),
                }
            case [run, "plot.svg"]:
                return {"GET": partial(self._plot, run)}
            case [run, "seal"]:
                return {"POST": partial(self._seal, run)}
            case [run, "batches"]:
                return {"GET": partial(self._batches, run)}
            case [run, "batches", batch]:
                return {"GET": partial(self._batch, run, batch), "PUT": None}
        return {}

    # Runs

    async def _create(self, run: str, request: HttpRequest, send: Send) -> None:
        query(request.query, NoQuery)
        document = RunDocument.parse(await self._body(request, "the definition", needed=True))
        check_price(document, int(self.settings.run_bytes))
        record, created = await self._ask(
            request,
            "create",
            owner=request.client,
            name=run,
            document=document.to_dict(),
            digest=document.digest,
            task=document.plan.task,
        )
        headers: Headers = []
        if created:
            self.telemetry.runs["created"] += 1
            headers.append((b"location", f"{request.scope.get(ROOT, '')}{request.scope['path']}".encode()))
        await self._send(request, send, entry(record), headers, status=201 if created else 200)

    async def _get(self, run: str, request: HttpRequest, send: Send) -> None:
        parameters = query(request.query, RunQuery)
        record = await self._found(request, run, parameters.owner)
        if await self._unchanged(request, send, etag(record)):
            return
        record, result = await self.results.of_run(request, record, self._result, parameters)
        if result is not None and parameters.names is None and parameters.level is None:
            record = await self._summarized(request, record, result)
        await self._send_run(request, send, record, result, parameters)

    async def _summarized(self, request: HttpRequest, record: Record, result: Record) -> Record:
        """Return the record of a run with the summary of its result, which is kept for lists if the run is open."""
        counted = {name: record[name] for name in ("rows", "batches")}
        if record["status"] == "sealed" or record["summarized"] == counted:
            return record
        try:
            kept = await self._ask(request, "summarize", run=record["id"], **counted, summary=summary_of(result))
        except Problem:  # the result is right without it, and the next reader tries again
            return record
        return {**record, "summary": kept["summary"], "summarized": kept["summarized"]}

    async def _plot(self, run: str, request: HttpRequest, send: Send) -> None:
        parameters = query(request.query, PlotQuery)
        record = await self._found(request, run, parameters.owner)
        if await self._unchanged(request, send, etag(record)):
            return
        question = needed(parameters, record["task"])
        record, result = await self.results.of_run(request, record, self._result, question)
        document = await in_thread(INLINE_BYTES + 1, lambda: drawn_document(parameters, result))
        picture = await self.drawer.draw(parameters.kind, document, "svg", parameters.theme)
        headers = [(b"etag", etag(record).encode()), (b"content-security-policy", POLICY.encode())]
        await self._send(request, send, picture, headers, media_type=b"image/svg+xml")

    async def _delete(self, run: str, request: HttpRequest, send: Send) -> None:
        query(request.query, NoQuery)
        await request.body(self.engine.budget)
        await self._ask(request, "delete", owner=request.client, name=run)
        self.definitions.forget(request.client, run)
        self.telemetry.runs["deleted"] += 1
        await send_whole(send, [id_header(request)], b"", 204)

    async def _list(self, request: HttpRequest, send: Send) -> None:
        parameters = query(request.query, RunsQuery)
        page = await self._ask(request, "list", owner=request.client, **parameters.model_dump())
        await self._send(request, send, {"runs": [entry(record) for record in page["runs"]], "next": page["next"]})

    # Batches

    async def _batch(self, run: str, batch: str, request: HttpRequest, send: Send) -> None:
        parameters = query(request.query, OwnerQuery)
        record = await self._found(request, run, parameters.owner)
        found = await self._ask(request, "batch", run=record["id"], name=batch)
        await self._send(request, send, batch_answer(found))

    async def _batches(self, run: str, request: HttpRequest, send: Send) -> None:
        parameters = query(request.query, BatchesQuery)
        record = await self._found(request, run, parameters.owner)
        page = await self._ask(request, "batches", run=record["id"], after=parameters.after, limit=parameters.limit)
        await self._send(request, send, {"batches": [batch_answer(b) for b in page["batches"]], "next": page["next"]})

    # Sealing

    async def _seal(self, run: str, request: HttpRequest, send: Send) -> None:
        query(request.query, NoQuery)
        document = await self._body(request, "the seal", needed=False)
        if not isinstance(document, dict):
            raise InvalidRequest('the body of a seal is empty or a JSON object, such as {"rows": 50000}')
        check_entries(document)
        rows = validated(SealFields, document, "").rows
        record = await self._found(request, run, request.client)
        for _ in range(ATTEMPTS):
            if record["status"] == "sealed":
                break
            definition = current_document(record)
            expected = _expected_rows(definition, rows)
            record, result = await self.results.of_run(request, record, self._result)
            if record["status"] == "sealed":
                break
            if result is None:
                raise Incomplete(f"the run {quoted(run)} has counted no rows", expected=expected or 0)
            signature = definition.signature(record["rows"], result["targets"], __version__)
            final = {**result, "signature": signature, "versions": definition.versions, "build": __version__}
            try:
                record = await self._ask(
                    request,
                    "seal",
                    run=record["id"],
                    revision=record["revision"],
                    rows=expected,
                    result=final,
                    summary=summary_of(result),
                )
            except Conflict as problem:
                if type(problem) not in (Conflict, RunSealed):  # the run changed, or another request sealed it
                    raise
                record = await self._found(request, run, request.client)
            else:
                self.telemetry.runs["sealed"] += 1
                record = {**record, "result": final}
                break
        else:
            raise Unavailable(
                f"batches of the run {quoted(run)} arrived while it was sealed; seal it when all are counted",
                retry_after_s=AGAIN_S,
            )
        if rows is not None and rows != record["rows"]:
            raise RunSealed(f"the run {quoted(run)} is sealed with {record['rows']} rows, not {rows}")
        await self._send_run(request, send, record, record["result"])

    # Bodies

    async def _body(self, request: HttpRequest, what: str, *, needed: bool) -> Any:
        """Return the JSON document in a request's body; {} for an empty body that is not needed."""
        media_type = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if media_type != JSON and (media_type or needed):
            found = quoted(media_type.decode("latin-1")) if media_type else "none"
            raise UnsupportedMediaType(
                f"the Content-Type is {found}; send application/json (with curl: -H 'Content-Type: application/json')"
            )
        request.limit_body(MAX_REQUEST_BYTES, f"the limit of {what}")
        body = await request.body(self.engine.budget)
        if not body and not needed:
            return {}
        if not media_type:
            raise UnsupportedMediaType("the body has no Content-Type; send application/json")
        return small_document(body, what)

    async def _send_run(
        self,
        request: HttpRequest,
        send: Send,
        record: Record,
        result: Record | None,
        parameters: RunQuery | None = None,
    ) -> None:
        """Send the answer about one run."""
        nbytes = 0 if result is None else INLINE_BYTES + 1  # the values of a thousand classes take a while
        text = await in_thread(nbytes, lambda: json.dumps(run_answer(record, result, parameters)))
        await self._send(request, send, text, [(b"etag", etag(record).encode())])


def _expected_rows(definition: RunDocument, rows: int | None) -> int | None:
    """Return how many rows a run must have to be sealed; None if any number is right.

    Raises:
        InvalidRequest: The seal's number differs from the definition's.
    """
    declared = definition.dataset.get("rows")
    if rows is not None and declared is not None and rows != declared:
        detail = f"rows is {rows}; the run's definition says that the data set has {declared} rows"
        raise InvalidRequest(detail, errors=[Fault(pointer="/rows", detail=detail)])
    return declared if rows is None else rows
