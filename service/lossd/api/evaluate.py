"""``POST /v1/evaluate``: from the socket to a slab, and from the slab to the socket.

Tensors are parsed in :mod:`lossd_client.wire` and checked in :mod:`lossd.planning` and :mod:`lossd.plan`, not here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qs

from lossd.api.exchange import Exchange, Send
from lossd.api.route import Route
from lossd.api.sending import Headers, Pieces
from lossd.engine import Result
from lossd.job import Job, Recipe, model_name
from lossd.plan import Plan
from lossd.planning import make_plan
from lossd_client.errors import (
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    TooLarge,
    UnsupportedMediaType,
)
from lossd_client.wire import DTYPES, Tensor, json, safetensors
from lossd_client.wire.quoting import quoted
from lossd_client.wire.tensor import check_tensor_count

__all__ = ["Evaluate", "plan_of"]

CACHED_HEADER_BYTES = 8 << 10
MAX_REQUEST_BYTES = 1 << 20

_SAFETENSORS = safetensors.MEDIA_TYPE.encode()
_JSON = json.MEDIA_TYPE.encode()
_FORMATS = {
    _SAFETENSORS: "safetensors",
    b"application/octet-stream": "safetensors",
    _JSON: "json",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """A safetensors header that was read and checked once: the job it describes and where its tensors lie."""

    job: Job
    spans: tuple[tuple[str, int, int], ...]
    data_bytes: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer depends on besides the result: the form of the request, and of each tensor in it."""

    format_in: str
    forms: Mapping[str, json.Form]


class Evaluate(Route[Asked]):
    """The route."""

    async def _serve(self, exchange: Exchange, send: Send) -> None:
        if exchange.scope["method"] != "POST":
            raise MethodNotAllowed("/v1/evaluate takes POST")
        format_in = self._read_headers(exchange)
        if exchange.client:
            await self.turns.take(exchange)
        forms: dict[str, json.Form] = {}
        if format_in == "json":
            future = self._submit_json(exchange, await exchange.body(self.engine.budget), forms)
        elif exchange.length is None or exchange.length >= self.settings.stream_bytes or exchange.unpacker is not None:
            async with exchange.in_time():
                future = await self._stream_safetensors(exchange)
        else:
            future = self._submit_safetensors(exchange, await exchange.body(self.engine.budget))
        await self._answer(exchange, Asked(format_in, forms), future, send)

    # In

    def _read_headers(self, exchange: Exchange) -> str:
        """The body's format, after every check that needs only the headers."""
        exchange.read_headers()
        content_type = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if content_type not in _FORMATS:
            found = quoted(content_type.decode("latin-1")) if content_type else "none"
            raise UnsupportedMediaType(
                f"the Content-Type is {found}; send application/json or {safetensors.MEDIA_TYPE} "
                "(with curl: -H 'Content-Type: application/json')"
            )
        format_in = _FORMATS[content_type]
        if format_in == "json":
            exchange.limit_json(self.settings.max_json_bytes)
        return format_in

    def _submit_json(
        self, exchange: Exchange, body: bytes | bytearray, forms: dict[str, json.Form]
    ) -> asyncio.Future[Result]:
        document = json.loads(body)
        if not isinstance(document, dict):
            raise InvalidRequest("the body must be a JSON object with the fields loss and inputs")
        if "inputs" not in document:
            raise InvalidRequest('the body has no inputs: put the tensors there, as {"prediction": ..., "target": ...}')
        inputs = document.pop("inputs")
        if not isinstance(inputs, dict):
            raise InvalidRequest("inputs must be an object that maps the inputs' names to tensors")
        check_tensor_count(len(inputs))
        try:
            text = json.dumps(document)
        except TypeError:  # what nests some hundreds deep
            json.check_depth(document)
            raise
        plan = plan_of(text)
        exchange.loss = model_name(plan.loss.name if plan.loss else None, plan.task)
        tensors: dict[str, Tensor] = {}
        for name, value in inputs.items():
            kinds = plan.kinds(name)
            tensors[name], forms[name] = json.tensor_from_json(
                name, value, floats="float" in kinds, integers="integer" in kinds
            )
        job = exchange.job = plan.job({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
        data = {name: tensor.data for name, tensor in tensors.items()}
        return self.engine.submit(job, data, exchange.deadline, exchange.client)

    def _submit_safetensors(self, exchange: Exchange, body: bytes | bytearray) -> asyncio.Future[Result]:
        view = memoryview(body)
        start = safetensors.PREFIX_BYTES + safetensors.header_bytes(view[: safetensors.PREFIX_BYTES])
        checked = _read_header(exchange, view, start)
        if len(view) != start + checked.data_bytes:
            raise _wrong_length(checked.data_bytes, len(view) - start)
        tensors = {name: view[start + begin : start + end] for name, begin, end in checked.spans}
        return self.engine.submit(checked.job, tensors, exchange.deadline, exchange.client)

    async def _stream_safetensors(self, exchange: Exchange) -> asyncio.Future[Result]:
        """Write the body where it will be evaluated, chunk by chunk, as it arrives."""
        received = bytearray()
        start = safetensors.PREFIX_BYTES
        while len(received) < start:
            if not exchange.unread:
                raise MalformedBody(f"the body ends inside the safetensors header: {len(received)} of {start} bytes")
            received += await exchange.chunk()
            if len(received) >= safetensors.PREFIX_BYTES:
                start = safetensors.PREFIX_BYTES + safetensors.header_bytes(received[: safetensors.PREFIX_BYTES])
        checked = _read_header(exchange, memoryview(received), start)
        size = start + checked.data_bytes
        if exchange.unpacker is None and exchange.length is not None:
            if exchange.length != size:
                raise _wrong_length(checked.data_bytes, exchange.length - start)
        elif size > exchange.max_body_bytes:
            raise exchange.too_large(size)
        elif size < self.settings.stream_bytes:  # small enough to join others
            while exchange.unread and len(received) <= size:
                received += await exchange.chunk()
            return self._submit_safetensors(exchange, received)
        return await exchange.pour(
            self.engine.upload(checked.job, exchange.deadline, exchange.client),
            memoryview(received)[start:],
            checked.spans,
            lambda found: _wrong_length(checked.data_bytes, found),
        )

    # Out

    def _encode(self, exchange: Exchange, asked: Asked, result: Result) -> tuple[Pieces, Headers, bool]:
        if self._format_out(exchange, asked.format_in) == "json":
            return [_json(result, asked.forms)], [(b"content-type", _JSON)], False
        names, entries = _layout(result.job.recipe.text, result.job.rows)
        head = safetensors.header_of(entries, {"result": result.text.decode()})
        pieces: Pieces = [head, *(result.tensors[name] for name in names)]
        return pieces, [(b"content-type", _SAFETENSORS)], True

    def _format_out(self, exchange: Exchange, format_in: str) -> str:
        accept = exchange.headers.get(b"accept")
        if accept is None or b"*/*" in accept:
            return format_in
        if _SAFETENSORS in accept:
            return "safetensors"
        return "json" if _JSON in accept else format_in


def plan_of(text: bytes) -> Plan:
    """The plan of a request's JSON text; clients repeat themselves, so most are known already.

    Raises:
        TooLarge: The text is no request without its tensors.
        Problem: See :func:`lossd.planning.make_plan`.
    """
    if len(text) <= CACHED_HEADER_BYTES:
        return _known_plan(text)
    if len(text) > MAX_REQUEST_BYTES:
        raise TooLarge(f"the request has {len(text)} bytes beside its tensors; at most {MAX_REQUEST_BYTES} are read")
    return _plan_of(text)


def _plan_of(text: bytes) -> Plan:
    request = json.loads(text, what="the request")
    if text.count(b"[") + text.count(b"{") > json.MAX_DEPTH:  # what has no more brackets is no deeper
        json.check_depth(request, what="the request")
    return make_plan(request)


_known_plan = lru_cache(maxsize=1024)(_plan_of)


def _read_header(exchange: Exchange, view: memoryview, start: int) -> Checked:
    """The checked header; clients repeat themselves, so most are known already."""
    if len(view) < start:
        raise MalformedBody(f"the body ends inside the safetensors header: {len(view)} of {start} bytes")
    text = bytes(view[safetensors.PREFIX_BYTES : start])
    read = _checked if len(text) <= CACHED_HEADER_BYTES else _checked.__wrapped__
    checked = read(text, exchange.query)
    exchange.job, exchange.loss = checked.job, checked.job.recipe.model
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
    plan = plan_of(request.encode())
    job = plan.job({entry.name: (entry.dtype, entry.shape) for entry in header.entries})
    return Checked(job, tuple((e.name, e.begin, e.end) for e in header.entries), header.data_bytes)


def _wrong_length(described: int, found: int) -> MalformedBody:
    return MalformedBody(f"the safetensors header describes {described} bytes of tensors, the body has {found}")


@lru_cache(maxsize=1024)
def _layout(recipe: str, rows: int) -> tuple[tuple[str, ...], bytes]:
    """The tensors of an answer, those of the widest dtype first, and what the file's header says of them."""
    columns = sorted(Recipe.parse(recipe).answers, key=lambda c: -DTYPES[c.dtype].itemsize)
    entries = [(c.name, c.dtype, c.shape(rows), c.unit_bytes * c.units(rows)) for c in columns]
    return tuple(c.name for c in columns), safetensors.encode_entries(entries)


def _json(result: Result, forms: Mapping[str, json.Form]) -> bytes:
    """The answer as a JSON text, each tensor in the form of the input that it belongs to."""
    text = result.text
    gradients = []
    for column in result.job.recipe.answers:
        tensor = Tensor(column.dtype, column.shape(result.job.rows), result.tensors[column.name])
        source = column.name.removeprefix("gradient.")
        value = json.dumps(json.tensor_to_json(tensor, forms.get(source, forms.get("prediction", "list"))))
        if column.name == "loss":
            text = b'{"loss":' + value + b"," + text[1:]
        else:
            gradients.append(json.dumps(source) + b":" + value)
    if gradients:
        text = text[:-1] + b',"gradient":{' + b",".join(gradients) + b"}}"
    return text
