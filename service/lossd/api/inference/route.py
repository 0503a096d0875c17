"""``/v2``, the Open Inference Protocol: the same evaluation for clients of KServe and Triton, as plain ASGI."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.types import Send

from lossd.api.direct_route import DirectEvaluation
from lossd.api.http.asgi import not_allowed
from lossd.api.http.direct import DirectRequest
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import Headers, Pieces, send_whole
from lossd.api.http.texts import INLINE_BYTES, MAX_REQUEST_BYTES, in_thread, small_document
from lossd.api.inference import models
from lossd.api.inference.outputs import ParsedRequest, check_size, output_values, parse_request
from lossd.api.inference.shared_memory import Region, SharedRegions, check_local
from lossd.caches import memoized
from lossd.engine import Result
from lossd_client.errors import (
    InvalidRequest,
    MalformedBody,
    NotEvaluable,
    NotFound,
    Problem,
    TooLarge,
    Unavailable,
)
from lossd_client.wire import json, oip
from lossd_client.wire.quoting import quoted

if TYPE_CHECKING:
    from lossd.api.http.fairness import FairShare
    from lossd.api.observability.telemetry import Telemetry
    from lossd.configuration.settings import Settings
    from lossd.engine import Engine

__all__ = ["PREFIX", "Inference"]

PREFIX = "/v2"
REMEDY = "ask for binary data (the parameter binary_data_output) or for fewer outputs"

_JSON = json.MEDIA_TYPE.encode()
_BINARY = oip.MEDIA_TYPE.encode()
_LENGTH = oip.HEADER_LENGTH.lower().encode()


class NotOfferedError(Problem):
    """A part of the protocol that lossd does not implement."""

    slug, title, status = "not-offered", "Not offered", 501


class IdentifiedRequest(NamedTuple):
    """A request.

    Attributes:
        parsed: Its text without the id, which requests with the same text share.
        id: Its id, to return with the answer; None if it has none.
    """

    parsed: ParsedRequest
    id: str | None


Submitted = tuple[IdentifiedRequest, asyncio.Future[Result]]
"""A request, and the future of its result."""


class Inference(DirectEvaluation[IdentifiedRequest]):
    """Everything under ``/v2``.

    Args:
        settings, engine, telemetry, fair_share: As for every route.
        table: The descriptor of the table of shared memory that the fronts share; by default a new one.
    """

    def __init__(
        self, settings: Settings, engine: Engine, telemetry: Telemetry, fair_share: FairShare, table: int | None = None
    ) -> None:
        super().__init__(settings, engine, telemetry, fair_share)
        self._regions = SharedRegions(settings, table) if settings.shared_memory else None

    async def _serve(self, request: HttpRequest, send: Send) -> None:
        method = request.scope["method"]
        path = request.scope["path"].removeprefix(PREFIX).strip("/").split("/")
        match path:
            case ["models", name, "infer"]:
                await self._infer(request, method, models.find(name), send)
            case ["models", name, "versions", version, "infer"]:
                await self._infer(request, method, models.find(name, version), send)
            case _:
                await self._document(request, method, path, send)

    def _status(self, problem: Problem) -> int:
        # The protocol has no status 422.
        return MalformedBody.status if problem.status == NotEvaluable.status else problem.status

    def _refused(self, request: HttpRequest, outcome: str, status: int | None = None) -> None:
        if request.scope["path"].endswith("/infer"):
            super()._refused(request, outcome, status)

    # Inference

    async def _infer(self, request: HttpRequest, method: str, model: models.Model, send: Send) -> None:
        request.identify(model.name)
        _check_method(method, "POST")
        request.read_headers()
        if request.client:
            await self.fair_share.acquire(request)
        identified, future = await self._submit(request, model)
        await self._answer(request, identified, future, send)
        if not identified.parsed.shares_memory:
            self._learn(request, send, model)

    def _encode(self, request: HttpRequest, answer: IdentifiedRequest, result: Result) -> tuple[Pieces, Headers, bool]:
        parsed = answer.parsed
        pieces, length = oip.encode_response(
            request.model,
            output_values(parsed, result),
            id=answer.id,
            undefined=parsed.undefined,
            places=parsed.places,
        )
        if length is None:
            return pieces, [(b"content-type", _JSON)], False
        return pieces, [(b"content-type", _BINARY), (_LENGTH, b"%d" % length)], True

    def _text_bytes(self, answer: IdentifiedRequest, result: Result) -> int:
        return answer.parsed.text_bytes + len(result.text)

    async def _submit(self, request: HttpRequest, model: models.Model) -> Submitted:
        json_length = request.headers.get(_LENGTH)
        streamed = request.decompressor is not None or (request.length or 0) >= self.settings.stream_bytes
        if streamed and json_length is not None:
            async with request.in_time():
                return await self._stream(request, model, json_length)
        if json_length is None:
            request.limit_json(self.settings.max_json_bytes)
        body = await request.body(self.engine.budget)
        return await self._submit_body(request, model, memoryview(body), self._json_bytes(json_length, len(body)))

    def _json_bytes(self, json_length: bytes | None, size: int | None) -> int | None:
        length = oip.header_length(json_length, size)
        if length is not None and length > self.settings.max_json_bytes:
            raise TooLarge(
                f"the JSON text has {length} bytes, at most {int(self.settings.max_json_bytes)} are read (setting "
                "max_json_bytes; tensors may be larger in binary)"
            )
        return length

    async def _submit_body(
        self, request: HttpRequest, model: models.Model, body: memoryview, length: int | None
    ) -> Submitted:
        text, data = _split(body, length)
        if len(text) <= INLINE_BYTES:
            identified, tensors = _decoded(text, data, model)
        else:
            with request.holding(self.engine.budget, len(body)):
                identified, tensors = await in_thread(len(text), lambda: _decoded(text, data, model))
        parsed = identified.parsed
        if not parsed.shares_memory:
            return identified, self._submit_tensors(request, parsed, tensors)
        self._accept(request, parsed)
        targets = self._targets(request, parsed)
        if len(tensors) == len(parsed.request.inputs):
            future = self.engine.submit(parsed.job, tensors, _deadline(request, parsed), request.client)
        else:
            shared = {entry.name: entry.place for entry in parsed.request.inputs if entry.place is not None}
            future = await self._fetch(request, parsed, tensors, shared)
        return identified, self._delivered(parsed, targets, future)

    def _submit_whole(self, request: DirectRequest, body: memoryview) -> Submitted | None:
        text, data = _split(body, self._json_bytes(request.headers.get(_LENGTH), len(body)))
        identified, tensors = _decoded(text, data, request.known.format)
        if identified.parsed.shares_memory:
            return None
        return identified, self._submit_tensors(request, identified.parsed, tensors)

    def _submit_tensors(
        self, request: HttpRequest, parsed: ParsedRequest, tensors: Mapping[str, memoryview]
    ) -> asyncio.Future[Result]:
        """Submit a request without shared memory, and return the future of its result."""
        self._accept(request, parsed)
        return self.engine.submit(parsed.job, tensors, _deadline(request, parsed), request.client)

    def _accept(self, request: HttpRequest, parsed: ParsedRequest) -> None:
        """Receive a request before it is evaluated.

        Raises:
            TooLarge: Its answer would be too long.
        """
        request.identify(parsed.model, parsed.job)
        self._check_text(parsed.text_bytes, REMEDY)

    # Shared memory

    async def _fetch(
        self,
        request: HttpRequest,
        parsed: ParsedRequest,
        tensors: dict[str, memoryview],
        shared: Mapping[str, oip.Place],
    ) -> asyncio.Future[Result]:
        """Copy inputs from shared memory, submit the job, and return the future of the result.

        Args:
            request: The request.
            parsed: Its text.
            tensors: The inputs that came with it.
            shared: Where the others lie.
        """
        regions = self._regions_for(request)
        sources = {name: (regions.find(request.client, place.region), place) for name, place in shared.items()}
        nbytes = sum(place.byte_size for place in shared.values())
        if nbytes > (most := int(self.settings.max_body_bytes)):
            limit = f"{most} are read (setting max_body_bytes)"
            raise TooLarge(f"the inputs in shared memory have {nbytes} bytes, at most {limit}")
        deadline = _deadline(request, parsed)
        if nbytes < self.settings.stream_bytes:  # it may share a batch
            for name, (region, place) in sources.items():
                tensors[name] = memoryview(bytearray(place.byte_size))
                region.read(tensors[name], place)
            return self.engine.submit(parsed.job, tensors, deadline, request.client)
        upload = self.engine.upload(parsed.job, deadline, request.client)
        try:
            for name, data in tensors.items():
                upload.buffer(name)[:] = data
            for name, (region, place) in sources.items():
                await _copied(partial(region.read, upload.buffer(name), place), place.byte_size)
        except BaseException:
            upload.abandon()
            raise
        return upload.submit()

    def _targets(self, request: HttpRequest, parsed: ParsedRequest) -> dict[str, Region]:
        """Return the regions of the outputs that go to shared memory.

        Raises:
            Problem: The client may not use them, or the outputs do not lie inside them and apart from each other.
        """
        if not parsed.places:
            return {}
        regions = self._regions_for(request)
        targets = {name: regions.find(request.client, place.region) for name, place in parsed.places.items()}
        spans = sorted((*targets[name].span(place), name) for name, place in parsed.places.items())
        for (file, _, end, name), (other_file, begin, _, other) in pairwise(spans):
            if file == other_file and begin < end:
                raise InvalidRequest(f"the outputs {quoted(name)} and {quoted(other)} overlap in shared memory")
        return targets

    def _delivered(
        self, parsed: ParsedRequest, targets: Mapping[str, Region], future: asyncio.Future[Result]
    ) -> asyncio.Future[Result]:
        """Return the future of the result whose outputs for shared memory are written there."""
        return asyncio.ensure_future(self._stored(parsed, targets, future)) if targets else future

    async def _stored(
        self, parsed: ParsedRequest, targets: Mapping[str, Region], future: asyncio.Future[Result]
    ) -> Result:
        """Return the result, after its outputs for shared memory were written there."""
        try:
            result = await future
        except asyncio.CancelledError:
            self.engine.drop(future)  # it may have been answered at the same moment
            raise
        try:
            for name, value, _ in output_values(parsed, result):
                if (place := parsed.places.get(name)) is not None:
                    data = memoryview(oip.elements(value))
                    check_size(name, len(data), place)
                    await _copied(partial(targets[name].write, data, place), len(data))
        except BaseException:
            result.release()
            raise
        return result

    def _regions_for(self, request: HttpRequest) -> SharedRegions:
        """Return the registered regions, if this client may use them.

        Raises:
            NotOfferedError: Shared memory is off.
            Forbidden: The client is not on this machine.
        """
        if self._regions is None:
            raise NotOfferedError(
                "shared memory (shared_memory_region) is off; the setting shared_memory turns it on for clients on the "
                "service's machine"
            )
        check_local(request.scope)
        return self._regions

    async def _shared_memory(self, request: HttpRequest, name: str | None, action: str) -> Any:
        """Answer a request about system shared memory."""
        if self._regions is None and action != "register":  # as Triton answers before anything is registered
            return [] if action == "status" else {}
        regions = self._regions_for(request)
        if action == "status":
            return regions.status(request.client, name)
        if action == "unregister":
            regions.unregister(request.client, name)
            return {}
        document = await self._document_of(request, "the region")
        if name is None:
            raise MalformedBody("a region is registered by its name: POST /v2/systemsharedmemory/region/NAME/register")
        regions.register(request.client, name, document)
        return {}

    async def _stream(self, request: HttpRequest, model: models.Model, json_length: bytes) -> Submitted:
        """Write the tensors into their slab as they arrive. If they must be converted, collect the body first."""
        length = self._json_bytes(json_length, request.length if request.decompressor is None else None)
        assert length is not None
        received = bytearray()
        with request.gathering(self.engine.budget) as count:
            while len(received) < length:
                if not request.unread:
                    raise MalformedBody(f"the body ends inside its JSON text: {len(received)} of {length} bytes")
                received += await request.chunk()
                count(len(received))
            identified = await in_thread(length, lambda: _read(memoryview(received)[:length], model))
            parsed = identified.parsed
            request.identify(parsed.model, parsed.job)
            size = length + parsed.request.data_bytes
            if request.decompressor is None:
                if request.length != size:
                    raise _wrong_length(parsed, (request.length or 0) - length)
            elif size > request.max_body_bytes:
                raise request.too_large(size)
            whole = not parsed.streamable or size < self.settings.stream_bytes
            while whole and request.unread and len(received) <= size:
                received += await request.chunk()
                count(len(received))
        if whole:
            return await self._submit_body(request, model, memoryview(received), length)
        self._check_text(parsed.text_bytes, REMEDY)
        targets = self._targets(request, parsed)
        future = await request.upload(
            self.engine.upload(parsed.job, _deadline(request, parsed), request.client),
            memoryview(received)[length:],
            [(entry.name, entry.begin, entry.end) for entry in parsed.request.inputs],
            lambda found: _wrong_length(parsed, found),
        )
        return identified, self._delivered(parsed, targets, future)

    # Other paths

    async def _document(self, request: HttpRequest, method: str, path: list[str], send: Send) -> None:
        """Answer a request that is no inference."""
        versioned = len(path) > 3 and path[0] == "models" and path[2] == "versions"
        version = path[3] if versioned else None
        expected = "GET"
        match [*path[:2], *path[4:]] if versioned else path:
            case [""]:
                document: Any = models.server_metadata(shared_memory=self._regions is not None)
            case ["health", "live"]:
                document = {"live": True}
            case ["health", "ready"]:
                self._check_ready()
                document = {"ready": True}
            case ["models", "stats"]:
                document = models.statistics(models.models().values(), await self.telemetry.by_model())
            case ["models", name]:
                document = models.metadata(models.find(name, version))
            case ["models", name, "config"]:
                document = models.config(models.find(name, version))
            case ["models", name, "stats"]:
                document = models.statistics([models.find(name, version)], await self.telemetry.by_model())
            case ["models", name, "ready"]:
                document = self._model_ready(models.find(name, version))
            case ["repository", "index"]:
                expected = "POST"
                _check_method(method, expected)
                only_ready = _only_ready(await self._document_of(request, "the index request"))
                document = models.index(self.engine.obstacle, only_ready=only_ready)
            case ["systemsharedmemory", ("status" | "register" | "unregister") as action]:
                expected = "GET" if action == "status" else "POST"
                _check_method(method, expected)
                document = await self._shared_memory(request, None, action)
            case ["systemsharedmemory", "region", name, ("status" | "register" | "unregister") as action]:
                expected = "GET" if action == "status" else "POST"
                _check_method(method, expected)
                document = await self._shared_memory(request, name, action)
            case ["cudasharedmemory", *_, "status"]:
                document = []
            case ["cudasharedmemory", *_, "unregister"]:
                expected, document = "POST", {}
            case [*_, "load" | "unload" | "register" | "logging"] | [*_, "trace", "setting"]:
                raise NotOfferedError(
                    "models are not loaded or unloaded, there is no CUDA shared memory between client and service, and "
                    "tracing and logging have no settings here"
                )
            case _:
                where = quoted(f"{PREFIX}/{'/'.join(path)}")
                raise NotFound(f"nothing is served at {where}; /openapi.json lists all paths")
        _check_method(method, expected)
        body = json.dumps(document)
        headers = [
            (b"content-type", _JSON),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request.request_id.encode("latin-1")),
        ]
        await send_whole(send, headers, body)

    async def _document_of(self, request: HttpRequest, what: str) -> Any:
        """Return the JSON document in a request's body; {} for an empty body."""
        request.read_headers()
        request.limit_body(MAX_REQUEST_BYTES, f"the limit of {what}")
        body = await request.body(self.engine.budget)
        return small_document(body, what) if body else {}

    def _check_ready(self) -> None:
        if not self.engine.ready:
            raise Unavailable(self.engine.obstacle, retry_after_s=1.0)

    def _model_ready(self, model: models.Model) -> dict[str, Any]:
        self._check_ready()
        if model.reason:
            raise Unavailable(model.reason)
        return {"name": model.name, "ready": True}


def _check_method(method: str, expected: str) -> None:
    if method != expected:
        raise not_allowed(method, [expected])


def _only_ready(document: Any) -> bool:
    if not isinstance(document, dict) or not isinstance(document.get("ready", False), bool):
        raise MalformedBody('the body of an index request is empty or {"ready": true or false}')
    return bool(document.get("ready", False))


def _split(body: memoryview, length: int | None) -> tuple[memoryview, memoryview]:
    """Return the JSON text and the tensors behind it."""
    return (body, body[:0]) if length is None else (body[:length], body[length:])


def _decoded(
    text: memoryview, data: memoryview, model: models.Model
) -> tuple[IdentifiedRequest, dict[str, memoryview]]:
    identified = _read(text, model)
    parsed = identified.parsed
    if len(data) != parsed.request.data_bytes:
        raise _wrong_length(parsed, len(data))
    if parsed.streamable:
        return identified, {entry.name: data[entry.begin : entry.end] for entry in parsed.request.inputs}
    inside = (entry for entry in parsed.request.inputs if entry.place is None)
    return identified, {entry.name: oip.read_tensor(entry, data).data for entry in inside}


def _read(text: memoryview, model: models.Model) -> IdentifiedRequest:
    """Return the parsed request. Requests are cached without their ids, because clients repeat everything else."""
    whole = bytes(text)
    found = _ID.match(whole)
    if found is not None and b'"id"' not in (rest := b"{" + whole[found.end() :]) and b"\\" not in rest:
        with suppress(Problem):  # it is found again in the whole text
            return IdentifiedRequest(_parsed(rest, model), found[1].decode())
    parsed = _parsed(whole, model)
    return IdentifiedRequest(parsed, parsed.request.id)


_ID = re.compile(rb'\{"id":"([ !#-\[\]-~]{0,128})",')
"""The beginning of a request's text, as Triton's clients write it."""


def _parsed_bytes(text: bytes, _: models.Model, parsed: ParsedRequest) -> int:
    return 1024 + 16 * len(text) + parsed.job.recipe.nbytes


_parsed = memoized("v2_requests", _parsed_bytes)(parse_request)


async def _copied(copy: Callable[[], None], nbytes: int) -> None:
    """Copy to or from shared memory, beside the event loop if it takes long; the kernel copies without the GIL."""
    if nbytes <= INLINE_BYTES:
        copy()
        return
    copying = asyncio.get_running_loop().run_in_executor(None, copy)
    try:
        await asyncio.shield(copying)
    except asyncio.CancelledError:
        await asyncio.wait([copying])  # it uses the memory until its end
        raise


def _deadline(request: HttpRequest, parsed: ParsedRequest) -> float:
    if parsed.timeout_s is None:
        return request.deadline
    return min(request.deadline, request.begin + parsed.timeout_s)


def _wrong_length(parsed: ParsedRequest, found: int) -> MalformedBody:
    return MalformedBody(f"the JSON describes {parsed.request.data_bytes} bytes of binary tensors, {found} follow it")
