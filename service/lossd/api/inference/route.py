"""``/v2``, the Open Inference Protocol: the same evaluation for clients of KServe and Triton, as plain ASGI."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Send

from lossd.api.evaluation_route import EvaluationRoute
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import Headers, Pieces, send_whole
from lossd.api.http.texts import INLINE_BYTES, in_thread
from lossd.api.inference import models
from lossd.api.inference.outputs import ParsedRequest, output_values, parse_request
from lossd.caches import memoized
from lossd.engine import Result
from lossd_client.errors import (
    MalformedBody,
    MethodNotAllowed,
    NotEvaluable,
    NotFound,
    Problem,
    TooLarge,
    Unavailable,
)
from lossd_client.wire import json, oip
from lossd_client.wire.quoting import quoted

__all__ = ["PREFIX", "Inference"]

PREFIX = "/v2"
REMEDY = "ask for binary data (the parameter binary_data_output) or for fewer outputs"

_JSON = json.MEDIA_TYPE.encode()
_BINARY = oip.MEDIA_TYPE.encode()
_LENGTH = oip.HEADER_LENGTH.lower().encode()


class NotOfferedError(Problem):
    """A part of the protocol that lossd does not implement."""

    slug, title, status = "not-offered", "Not offered", 501


class Inference(EvaluationRoute[ParsedRequest]):
    """Everything under ``/v2``."""

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
        parsed, future = await self._submit(request, model)
        await self._answer(request, parsed, future, send)

    def _encode(self, request: HttpRequest, answer: ParsedRequest, result: Result) -> tuple[Pieces, Headers, bool]:
        pieces, length = oip.encode_response(
            request.model, output_values(answer, result), id=answer.request.id, undefined=answer.undefined
        )
        if length is None:
            return pieces, [(b"content-type", _JSON)], False
        return pieces, [(b"content-type", _BINARY), (_LENGTH, b"%d" % length)], True

    def _text_bytes(self, answer: ParsedRequest, result: Result) -> int:
        return answer.text_bytes + len(result.text)

    async def _submit(self, request: HttpRequest, model: models.Model) -> tuple[ParsedRequest, asyncio.Future[Result]]:
        given = request.headers.get(_LENGTH)
        streamed = request.decompressor is not None or (request.length or 0) >= self.settings.stream_bytes
        if streamed and given is not None:
            async with request.in_time():
                return await self._stream(request, model, given)
        if given is None:
            request.limit_json(self.settings.max_json_bytes)
        body = await request.body(self.engine.budget)
        return await self._submit_whole(request, model, memoryview(body), self._json_bytes(given, len(body)))

    def _json_bytes(self, given: bytes | None, size: int | None) -> int | None:
        length = oip.header_length(given, size)
        if length is not None and length > self.settings.max_json_bytes:
            raise TooLarge(
                f"the JSON text has {length} bytes, at most {int(self.settings.max_json_bytes)} are read (setting "
                "max_json_bytes; tensors may be larger in binary)"
            )
        return length

    async def _submit_whole(
        self, request: HttpRequest, model: models.Model, body: memoryview, length: int | None
    ) -> tuple[ParsedRequest, asyncio.Future[Result]]:
        text, data = (body, body[:0]) if length is None else (body[:length], body[length:])
        if len(text) <= INLINE_BYTES:
            parsed, tensors = _decoded(text, data, model)
        else:
            with request.holding(self.engine.budget, len(body)):
                parsed, tensors = await in_thread(len(text), lambda: _decoded(text, data, model))
        request.identify(model.name, parsed.job)
        self._check_text(parsed.text_bytes, REMEDY)
        return parsed, self.engine.submit(parsed.job, tensors, _deadline(request, parsed), request.client)

    async def _stream(
        self, request: HttpRequest, model: models.Model, given: bytes
    ) -> tuple[ParsedRequest, asyncio.Future[Result]]:
        """Write the tensors into their slab as they arrive. If they must be converted, collect the body first."""
        length = self._json_bytes(given, request.length if request.decompressor is None else None)
        assert length is not None
        received = bytearray()
        with request.gathering(self.engine.budget) as count:
            while len(received) < length:
                if not request.unread:
                    raise MalformedBody(f"the body ends inside its JSON text: {len(received)} of {length} bytes")
                received += await request.chunk()
                count(len(received))
            parsed = await in_thread(length, lambda: _read(memoryview(received)[:length], model))
            request.identify(model.name, parsed.job)
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
            return await self._submit_whole(request, model, memoryview(received), length)
        self._check_text(parsed.text_bytes, REMEDY)
        return parsed, await request.upload(
            self.engine.upload(parsed.job, _deadline(request, parsed), request.client),
            memoryview(received)[length:],
            [(entry.name, entry.begin, entry.end) for entry in parsed.request.inputs],
            lambda found: _wrong_length(parsed, found),
        )

    # Other paths

    async def _document(self, request: HttpRequest, method: str, path: list[str], send: Send) -> None:
        """Answer a request that is no inference."""
        versioned = len(path) > 3 and path[0] == "models" and path[2] == "versions"
        version = path[3] if versioned else None
        expected = "GET"
        match [*path[:2], *path[4:]] if versioned else path:
            case [""]:
                document: Any = models.server_metadata()
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
                request.limit_json(self.settings.max_json_bytes)
                only_ready = _only_ready(await request.body(self.engine.budget))
                document = models.index(self.engine.obstacle, only_ready=only_ready)
            case ["systemsharedmemory" | "cudasharedmemory", *_, "status"]:
                document = []
            case ["systemsharedmemory" | "cudasharedmemory", *_, "unregister"]:
                expected, document = "POST", {}
            case [*_, "load" | "unload" | "register" | "logging"] | [*_, "trace", "setting"]:
                raise NotOfferedError(
                    "models are not loaded or unloaded, there is no shared memory between client and service, and "
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
        raise MethodNotAllowed(f"this path takes {expected}, not {method}", allow=expected)


def _only_ready(body: bytes | bytearray) -> bool:
    document = json.loads(body) if body else {}
    if not isinstance(document, dict) or not isinstance(document.get("ready", False), bool):
        raise MalformedBody('the body of an index request is empty or {"ready": true or false}')
    return bool(document.get("ready", False))


def _decoded(text: memoryview, data: memoryview, model: models.Model) -> tuple[ParsedRequest, dict[str, memoryview]]:
    parsed = _read(text, model)
    if len(data) != parsed.request.data_bytes:
        raise _wrong_length(parsed, len(data))
    return parsed, {entry.name: oip.read_tensor(entry, data).data for entry in parsed.request.inputs}


def _read(text: memoryview, model: models.Model) -> ParsedRequest:
    """Return the parsed request. Requests are cached, because clients repeat them."""
    return _parsed(bytes(text), model)


def _parsed_bytes(text: bytes, _: models.Model, parsed: ParsedRequest) -> int:
    return 1024 + 16 * len(text) + parsed.job.recipe.nbytes


_parsed = memoized("v2_requests", _parsed_bytes)(parse_request)


def _deadline(request: HttpRequest, parsed: ParsedRequest) -> float:
    if parsed.timeout_s is None:
        return request.deadline
    return min(request.deadline, request.begin + parsed.timeout_s)


def _wrong_length(parsed: ParsedRequest, found: int) -> MalformedBody:
    return MalformedBody(f"the JSON describes {parsed.request.data_bytes} bytes of binary tensors, {found} follow it")
