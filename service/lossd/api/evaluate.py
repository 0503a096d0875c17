"""``POST /v1/evaluate``: from the socket to a slab, and from the slab to the socket.

Plain ASGI, taken before FastAPI's routing: at thousands of small requests a second, the framework's own work would be
most of the bill. Tensors are parsed in :mod:`lossd_client.wire` and checked in :mod:`lossd.plan`, not here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs

from lossd.api.telemetry import Telemetry
from lossd.engine import Engine, Result
from lossd.job import Job
from lossd.plan import Plan
from lossd.settings import Settings
from lossd_client.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    Problem,
    TooLarge,
    UnsupportedMediaType,
)
from lossd_client.wire import DTYPES, Tensor, json, safetensors

__all__ = ["Evaluate", "new_request_id", "problem_response"]

log = logging.getLogger("lossd.api")

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CACHED_HEADER_BYTES = 8 << 10
INLINE_ANSWER_BYTES = 256 << 10
CHUNK_BYTES = 256 << 10
TAIL_BYTES = 128 << 10
WATCH_AFTER_S = 0.1
LINGER_S = 2.0

_HEADERS = (
    b"content-type",
    b"content-length",
    b"content-encoding",
    b"accept",
    b"x-request-id",
    b"x-request-timeout-ms",
)
_SAFETENSORS = safetensors.MEDIA_TYPE.encode()
_JSON = json.MEDIA_TYPE.encode()
_FORMATS = {
    _SAFETENSORS: "safetensors",
    b"application/octet-stream": "safetensors",
    _JSON: "json",
}
_ids = itertools.count()
_id_prefix = secrets.token_hex(4)


def new_request_id() -> str:
    """An id for a request that brings none: unique among the running services."""
    return f"{_id_prefix}-{next(_ids):x}"


class DisconnectedError(Exception):
    """The client left; there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A safetensors header that was read and checked once: the job it describes and where its tensors lie."""

    job: Job
    spans: tuple[tuple[str, int, int], ...]
    data_bytes: int


class _Exchange:
    """One request and its answer: what the stages need to hand on."""

    __slots__ = ("accept", "begin", "deadline", "headers", "length", "loss", "query", "receive", "request_id", "unread")

    def __init__(self, scope: Mapping[str, Any], receive: Receive, settings: Settings) -> None:
        self.begin = time.monotonic()
        self.receive = receive
        self.headers = {name: value for name, value in scope["headers"] if name in _HEADERS}
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given.decode("latin-1")[:128] if given else new_request_id()
        self.query = scope["query_string"]
        self.loss = ""
        self.unread = True
        self.length: int | None = None
        self.deadline = self.begin + settings.request_timeout_ms / 1000


class Evaluate:
    """The route.

    Args:
        settings: Limits.
        engine: Where jobs go.
        telemetry: Where requests are counted.
    """

    def __init__(self, settings: Settings, engine: Engine, telemetry: Telemetry) -> None:
        self.settings = settings
        self.engine = engine
        self.telemetry = telemetry

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; every failure becomes a problem document."""
        exchange = _Exchange(scope, receive, self.settings)
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed("/v1/evaluate takes POST")
            await self._evaluate(exchange, send)
        except DisconnectedError:
            self.telemetry.count(exchange.loss, "disconnected")
        except Problem as problem:
            self.telemetry.count(exchange.loss, problem.slug)
            await self._refuse(problem, exchange, send)
        except Exception:
            log.exception("request %s failed", exchange.request_id)
            self.telemetry.count(exchange.loss, InternalError.slug)
            fault = InternalError("the service failed on this request; the log has the details under its request id")
            await self._refuse(fault, exchange, send)

    async def _evaluate(self, exchange: _Exchange, send: Send) -> None:
        format_in = self._read_headers(exchange)
        forms: dict[str, json.Form] = {}
        if format_in == "json":
            future = self._submit_json(exchange, await self._body(exchange), forms)
        elif exchange.length is not None and exchange.length >= self.settings.stream_bytes:
            async with _in_time(exchange):
                future = await self._stream_safetensors(exchange)
        else:
            future = self._submit_safetensors(exchange, await self._body(exchange))
        parsed = time.monotonic()
        result = await self._wait(exchange, future)
        evaluated = time.monotonic()
        try:
            pieces, media_type = _encode(result, self._format_out(exchange, format_in), forms)
            size = sum(len(piece) for piece in pieces)
            body = b"".join(pieces) if size <= INLINE_ANSWER_BYTES else None
            encoded = time.monotonic()
            stages = (parsed - exchange.begin, *result.timings, encoded - evaluated)
            headers = [
                (b"content-type", media_type),
                (b"content-length", b"%d" % size),
                (b"x-request-id", exchange.request_id.encode("latin-1")),
                (b"server-timing", _server_timing(stages, result.batch_requests)),
            ]
            if body is None:
                await _send_pieces(send, headers, pieces)
        finally:
            result.release()
        if body is not None:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        self.telemetry.count(exchange.loss, "ok")
        self.telemetry.observe((*stages, time.monotonic() - exchange.begin))

    async def _refuse(self, problem: Problem, exchange: _Exchange, send: Send) -> None:
        """Answer with a problem; what is still being sent is taken and dropped.

        A socket that is closed over unread bytes is reset, and takes the answer with it: the client would see a broken
        connection in place of the reason.
        """

        async def drain() -> None:
            with suppress(DisconnectedError, TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while exchange.unread:
                        await self._chunk(exchange)

        await problem_response(problem, exchange.request_id, send, drain if exchange.unread else None)

    # In

    def _read_headers(self, exchange: _Exchange) -> str:
        """The body's format, after every check that needs only the headers."""
        headers = exchange.headers
        if length := headers.get(b"content-length"):
            exchange.length = int(length)
            if exchange.length > self.settings.max_body_bytes:
                raise self._too_large(exchange.length)
        if (encoding := headers.get(b"content-encoding", b"identity")) != b"identity":
            raise UnsupportedMediaType(
                f"Content-Encoding {encoding.decode('latin-1')} is not read; send the body as is"
            )
        if timeout := headers.get(b"x-request-timeout-ms"):
            if not timeout.isdigit() or not int(timeout):
                raise InvalidRequest("X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1")
            exchange.deadline = exchange.begin + int(timeout) / 1000
        content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if content_type not in _FORMATS:
            found = content_type.decode("latin-1") or "none"
            raise UnsupportedMediaType(
                f"the Content-Type is {found}; send application/json or {safetensors.MEDIA_TYPE} "
                "(with curl: -H 'Content-Type: application/json')"
            )
        return _FORMATS[content_type]

    def _format_out(self, exchange: _Exchange, format_in: str) -> str:
        accept = exchange.headers.get(b"accept")
        if accept is None or b"*/*" in accept:
            return format_in
        if _SAFETENSORS in accept:
            return "safetensors"
        return "json" if _JSON in accept else format_in

    def _too_large(self, size: int) -> TooLarge:
        limit = int(self.settings.max_body_bytes)
        return TooLarge(f"the body has {size} bytes or more, at most {limit} are read (setting max_body_bytes)")

    async def _chunk(self, exchange: _Exchange) -> bytes:
        """The next piece of the body; ``exchange.unread`` is false after the last."""
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        exchange.unread = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk

    async def _body(self, exchange: _Exchange) -> bytes | bytearray:
        """The whole body, for what is too small to be worth streaming or cannot be."""
        chunk = await self._chunk(exchange)
        if not exchange.unread:
            return chunk
        body = bytearray(chunk)
        async with _in_time(exchange):
            while exchange.unread:
                body += await self._chunk(exchange)
                if len(body) > self.settings.max_body_bytes:
                    raise self._too_large(len(body))
        return body

    def _submit_json(
        self, exchange: _Exchange, body: bytes | bytearray, forms: dict[str, json.Form]
    ) -> asyncio.Future[Result]:
        document = json.loads(body)
        if not isinstance(document, dict):
            raise InvalidRequest("the body must be a JSON object with the fields loss and inputs")
        inputs = document.pop("inputs", None)
        if not isinstance(inputs, dict):
            raise InvalidRequest("inputs must be an object that maps the inputs' names to tensors")
        json.check_depth(document)
        plan = _plan(json.dumps(document))
        exchange.loss = plan.loss.name if plan.loss else plan.task
        tensors: dict[str, Tensor] = {}
        for name, value in inputs.items():
            kinds = plan.kinds(name)
            tensors[name], forms[name] = json.tensor_from_json(
                name, value, floats="float" in kinds, integers="integer" in kinds
            )
        job = plan.job({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
        data = {name: tensor.data for name, tensor in tensors.items()}
        return self.engine.submit(job, data, exchange.deadline)

    def _submit_safetensors(self, exchange: _Exchange, body: bytes | bytearray) -> asyncio.Future[Result]:
        view = memoryview(body)
        start = safetensors.PREFIX_BYTES + safetensors.header_bytes(view[: safetensors.PREFIX_BYTES])
        checked = _read_header(exchange, view, start)
        if len(view) != start + checked.data_bytes:
            raise _wrong_length(checked.data_bytes, len(view) - start)
        tensors = {name: view[start + begin : start + end] for name, begin, end in checked.spans}
        return self.engine.submit(checked.job, tensors, exchange.deadline)

    async def _stream_safetensors(self, exchange: _Exchange) -> asyncio.Future[Result]:
        """Write the body where it will be evaluated, chunk by chunk, as it arrives."""
        received = bytearray()
        start = safetensors.PREFIX_BYTES
        while len(received) < start:
            if not exchange.unread:
                raise MalformedBody(f"the body ends inside the safetensors header: {len(received)} of {start} bytes")
            received += await self._chunk(exchange)
            if len(received) >= safetensors.PREFIX_BYTES:
                start = safetensors.PREFIX_BYTES + safetensors.header_bytes(received[: safetensors.PREFIX_BYTES])
        checked = _read_header(exchange, memoryview(received), start)
        assert exchange.length is not None
        if exchange.length != start + checked.data_bytes:
            raise _wrong_length(checked.data_bytes, exchange.length - start)
        upload = self.engine.upload(checked.job, exchange.deadline)
        try:
            chunk = memoryview(received)[start:]
            for name, begin, end in checked.spans:
                target, at, size = upload.buffer(name), 0, end - begin
                while at < size:
                    if not len(chunk):
                        if not exchange.unread:
                            raise _wrong_length(checked.data_bytes, begin + at)
                        chunk = memoryview(await self._chunk(exchange))
                    step = min(len(chunk), size - at)
                    target[at : at + step] = chunk[:step]
                    chunk, at = chunk[step:], at + step
            while exchange.unread:  # the last chunk may be empty
                if await self._chunk(exchange):
                    raise _wrong_length(checked.data_bytes, checked.data_bytes + 1)
        except BaseException:
            upload.abandon()
            raise
        return upload.submit()

    # Between

    async def _wait(self, exchange: _Exchange, future: asyncio.Future[Result]) -> Result:
        """The result; a request that waits long enough to notice is given up when its client leaves."""
        watcher: list[asyncio.Task[None]] = []

        def watch() -> None:
            watcher.append(asyncio.ensure_future(_cancel_on_disconnect(exchange.receive, future)))

        timer = self.engine.loop.call_later(WATCH_AFTER_S, watch)
        try:
            return await future
        except asyncio.CancelledError:
            if watcher and watcher[0].done():
                raise DisconnectedError from None
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()  # answered and cancelled at the same moment
            else:
                future.cancel()
            raise
        finally:
            timer.cancel()
            if watcher:
                watcher[0].cancel()


@asynccontextmanager
async def _in_time(exchange: _Exchange) -> AsyncIterator[None]:
    """What is inside must be done before the request's deadline."""
    try:
        async with asyncio.timeout(exchange.deadline - time.monotonic()):
            yield
    except TimeoutError:
        raise DeadlineExceeded("the body had not arrived when the request's deadline passed") from None


async def _cancel_on_disconnect(receive: Receive, future: asyncio.Future[Result]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    future.cancel()


@lru_cache(maxsize=1024)
def _plan(text: bytes) -> Plan:
    request = json.loads(text, what="the request")
    json.check_depth(request, what="the request")
    return Plan.of(request)


def _read_header(exchange: _Exchange, view: memoryview, start: int) -> Checked:
    """The checked header; clients repeat themselves, so most are known already."""
    if len(view) < start:
        raise MalformedBody(f"the body ends inside the safetensors header: {len(view)} of {start} bytes")
    text = bytes(view[safetensors.PREFIX_BYTES : start])
    read = _checked if len(text) <= CACHED_HEADER_BYTES else _checked.__wrapped__
    checked = read(text, exchange.query)
    exchange.loss = checked.job.recipe.loss or checked.job.recipe.task or ""
    return checked


@lru_cache(maxsize=1024)
def _checked(text: bytes, query: bytes) -> Checked:
    header = safetensors.read_header(text)
    request = header.metadata.get("request")
    if request is None:
        values = parse_qs(query.decode("latin-1")).get("request")
        if not values:
            raise InvalidRequest(
                "the safetensors metadata holds no request; put the JSON object with the loss there, or in the query "
                "as ?request={...}"
            )
        request = values[0]
    plan = _plan(request.encode())
    job = plan.job({entry.name: (entry.dtype, entry.shape) for entry in header.entries})
    return Checked(job, tuple((e.name, e.begin, e.end) for e in header.entries), header.data_bytes)


def _wrong_length(described: int, found: int) -> MalformedBody:
    return MalformedBody(f"the safetensors header describes {described} bytes of tensors, the body has {found}")


# Out


def _encode(result: Result, format_out: str, forms: Mapping[str, json.Form]) -> tuple[list[bytes | memoryview], bytes]:
    """The answer's pieces and media type."""
    rows = result.job.rows
    columns = result.job.recipe.answers
    if format_out == "safetensors":
        ordered = sorted(columns, key=lambda c: -DTYPES[c.dtype].itemsize) if len(columns) > 1 else columns
        entries = [(c.name, c.dtype, c.shape(rows), len(result.tensors[c.name])) for c in ordered]
        head = safetensors.encode_header(entries, {"result": result.text.decode()})
        return [head, *(result.tensors[c.name] for c in ordered)], _SAFETENSORS
    text = result.text
    gradients = []
    for column in columns:
        tensor = Tensor(column.dtype, column.shape(rows), result.tensors[column.name])
        source = column.name.removeprefix("gradient.")
        value = json.dumps(json.tensor_to_json(tensor, forms.get(source, forms.get("prediction", "list"))))
        if column.name == "loss":
            text = b'{"loss":' + value + b"," + text[1:]
        else:
            gradients.append(json.dumps(source) + b":" + value)
    if gradients:
        text = text[:-1] + b',"gradient":{' + b",".join(gradients) + b"}}"
    return [text], _JSON


def _server_timing(stages: tuple[float, ...], batch_requests: int) -> bytes:
    parse, queue, copy, compute, encode = stages
    return b'parse;dur=%.3f, queue;dur=%.3f, copy;dur=%.3f, compute;dur=%.3f;desc="batch of %d", encode;dur=%.3f' % (
        parse * 1e3,
        queue * 1e3,
        copy * 1e3,
        compute * 1e3,
        batch_requests,
        encode * 1e3,
    )


async def _send_pieces(send: Send, headers: list[tuple[bytes, bytes]], pieces: list[bytes | memoryview]) -> None:
    """Send straight from the slab. When this returns, nothing refers to the slab any more.

    The server keeps what the socket does not take at once, up to its high-water mark of 64 KiB, so the last 128 KiB go
    as copies: once the first half of them was accepted, all that was sent before has left the slab.
    """
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    remaining = sum(len(piece) for piece in pieces)
    for piece in pieces:
        view = memoryview(piece)
        at = 0
        while at < len(view):
            from_slab = remaining - TAIL_BYTES
            if from_slab > 0:
                step = min(CHUNK_BYTES, len(view) - at, from_slab)
                body: bytes | memoryview = view[at : at + step]
            else:
                step = min(TAIL_BYTES // 2, len(view) - at)
                body = bytes(view[at : at + step])
            at += step
            remaining -= step
            await send({"type": "http.response.body", "body": body, "more_body": remaining > 0})


async def problem_response(
    problem: Problem, request_id: str, send: Send, drain: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Answer with a problem document; the connection ends with it where a body has to be drained."""
    problem.request_id = request_id
    body = json.dumps(problem.to_json())
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode("latin-1")),
    ]
    if problem.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(problem.retry_after_s))))
    if problem.status == MethodNotAllowed.status:
        headers.append((b"allow", b"POST"))
    if drain is not None:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": drain is not None})
    if drain is not None:
        await drain()
        await send({"type": "http.response.body", "body": b""})
