"""``POST /v1/evaluate``: reads a request into a slab and sends the answer from it.

:mod:`lossd_client.wire` parses tensors and :mod:`lossd.request` checks them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.types import Send

from lossd.api.evaluation_route import Route
from lossd.api.http.negotiation import media_weight, parse_weights
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import Headers, Pieces
from lossd.api.http.texts import INLINE_BYTES, in_thread
from lossd.caches import Cache, memoized
from lossd.engine import Result
from lossd.job import Job, Recipe, model_name
from lossd.request.plan import Plan
from lossd.request.planning import make_plan, plan_bytes
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

MAX_REQUEST_BYTES = 512 << 10
MAX_BRACKETS = 4096
SURELY_SHORT_BYTES = INLINE_BYTES >> 5  # a number takes less than 32 times its bytes

_SAFETENSORS = safetensors.MEDIA_TYPE.encode()
_JSON = json.MEDIA_TYPE.encode()
_FORMATS = {
    _SAFETENSORS: "safetensors",
    b"application/octet-stream": "safetensors",
    _JSON: "json",
}


@dataclass(frozen=True, slots=True)
class CheckedHeader:
    """A checked safetensors header: its job, the name, begin and end of its tensors, and their bytes."""

    job: Job
    spans: tuple[tuple[str, int, int], ...]
    data_bytes: int


@dataclass(slots=True)
class AnswerFormat:
    """The format of an answer.

    Attributes:
        media: ``json`` or ``safetensors``.
        forms: The JSON form of each tensor of the request.
        text_bytes: The most bytes of its tensors as JSON; 0 if they are few, or not JSON.
    """

    media: str
    forms: dict[str, json.Form]
    text_bytes: int = 0

    def form(self, column: str) -> json.Form:
        """Return the JSON form of a tensor of the answer: the form of its input."""
        return self.forms.get(column.removeprefix("gradient."), self.forms.get("prediction", "list"))


class Evaluate(Route[AnswerFormat]):
    """The route ``/v1/evaluate``."""

    async def _serve(self, request: HttpRequest, send: Send) -> None:
        if request.scope["method"] != "POST":
            raise MethodNotAllowed("/v1/evaluate takes POST", allow="POST")
        format_in = self._read_headers(request)
        if request.client:
            await self.fair_share.acquire(request)
        answer = AnswerFormat(_format_out(request.headers.get(b"accept"), format_in), {})
        if format_in == "json":
            future = await self._read_json(request, await request.body(self.engine.budget), answer)
        elif request.length is None or request.length >= self.settings.stream_bytes or request.decompressor is not None:
            async with request.in_time():
                future = await self._stream_safetensors(request, answer)
        else:
            future = self._submit_safetensors(request, await request.body(self.engine.budget), answer)
        await self._answer(request, answer, future, send)

    # Request

    def _read_headers(self, request: HttpRequest) -> str:
        """Return the body's format, after all checks of the headers."""
        request.read_headers()
        content_type = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if content_type not in _FORMATS:
            found = quoted(content_type.decode("latin-1")) if content_type else "none"
            raise UnsupportedMediaType(
                f"the Content-Type is {found}; send application/json or {safetensors.MEDIA_TYPE} "
                "(with curl: -H 'Content-Type: application/json')"
            )
        format_in = _FORMATS[content_type]
        if format_in == "json":
            request.limit_json(self.settings.max_json_bytes)
        return format_in

    async def _read_json(
        self, request: HttpRequest, body: bytes | bytearray, answer: AnswerFormat
    ) -> asyncio.Future[Result]:
        if len(body) <= INLINE_BYTES:
            job, data = _decoded(body, request, answer.forms)
        else:
            with request.holding(self.engine.budget, len(body)):
                job, data = await in_thread(len(body), lambda: _decoded(body, request, answer.forms))
        request.identify(job.recipe.model, job)
        self._limit_text(job, answer)
        return self.engine.submit(job, data, request.deadline, request.client)

    def _limit_text(self, job: Job, answer: AnswerFormat) -> None:
        """Refuse an answer that would be too long as JSON, before it is computed."""
        if answer.media == "json" and job.nbytes > SURELY_SHORT_BYTES:
            answers = ((c.name, c.dtype, c.shape(job.rows)) for c in job.recipe.answers)
            answer.text_bytes = sum(json.most_bytes(dtype, shape, answer.form(name)) for name, dtype, shape in answers)
            self._check_text(
                answer.text_bytes,
                f"ask for safetensors (Accept: {safetensors.MEDIA_TYPE}), for fewer outputs, or send tensors as base64",
            )

    def _submit_safetensors(
        self, request: HttpRequest, body: bytes | bytearray, answer: AnswerFormat
    ) -> asyncio.Future[Result]:
        view = memoryview(body)
        start = safetensors.PREFIX_BYTES + safetensors.header_bytes(view[: safetensors.PREFIX_BYTES])
        checked = _read_header(request, view, start)
        if len(view) != start + checked.data_bytes:
            raise _wrong_length(checked.data_bytes, len(view) - start)
        self._limit_text(checked.job, answer)
        tensors = {name: view[start + begin : start + end] for name, begin, end in checked.spans}
        return self.engine.submit(checked.job, tensors, request.deadline, request.client)

    async def _stream_safetensors(self, request: HttpRequest, answer: AnswerFormat) -> asyncio.Future[Result]:
        """Write the body into its slab as it arrives."""
        received = bytearray()
        start = safetensors.PREFIX_BYTES
        while len(received) < start:
            if not request.unread:
                raise MalformedBody(f"the body ends inside the safetensors header: {len(received)} of {start} bytes")
            received += await request.chunk()
            if len(received) >= safetensors.PREFIX_BYTES:
                start = safetensors.PREFIX_BYTES + safetensors.header_bytes(received[: safetensors.PREFIX_BYTES])
        checked = _read_header(request, memoryview(received), start)
        size = start + checked.data_bytes
        if request.decompressor is None and request.length is not None:
            if request.length != size:
                raise _wrong_length(checked.data_bytes, request.length - start)
        elif size > request.max_body_bytes:
            raise request.too_large(size)
        elif size < self.settings.stream_bytes:  # small enough to share a batch
            while request.unread and len(received) <= size:
                received += await request.chunk()
            return self._submit_safetensors(request, received, answer)
        self._limit_text(checked.job, answer)
        return await request.upload(
            self.engine.upload(checked.job, request.deadline, request.client),
            memoryview(received)[start:],
            checked.spans,
            lambda found: _wrong_length(checked.data_bytes, found),
        )

    # Answer

    def _text_bytes(self, answer: AnswerFormat, result: Result) -> int:
        return answer.text_bytes + len(result.text)

    def _encode(self, request: HttpRequest, answer: AnswerFormat, result: Result) -> tuple[Pieces, Headers, bool]:
        if answer.media == "json":
            return [_json(result, answer)], [(b"content-type", _JSON)], False
        names, entries = _layout(result.job.recipe, result.job.rows)
        head = safetensors.header_of(entries, {"result": result.text.decode()})
        pieces: Pieces = [head, *(result.tensors[name] for name in names)]
        return pieces, [(b"content-type", _SAFETENSORS)], True


def _format_out(accept: bytes | None, format_in: str) -> str:
    """Return the format with the greater weight in Accept; the request's format if the weights are equal."""
    if accept is None:
        return format_in
    stated = parse_weights(accept)
    weights = {"json": media_weight(stated, _JSON), "safetensors": media_weight(stated, _SAFETENSORS)}
    best = max(weights, key=weights.__getitem__)
    return best if weights[best] > weights[format_in] else format_in


def _decoded(
    body: bytes | bytearray, request: HttpRequest, forms: dict[str, json.Form]
) -> tuple[Job, dict[str, memoryview]]:
    """Return the job of a JSON text and its tensors' bytes. Write the tensors' forms into ``forms``."""
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
    except TypeError:  # nested some hundreds deep
        json.check_depth(document)
        raise
    plan = plan_of(text)
    request.identify(model_name(plan.loss.name if plan.loss else None, plan.task))
    tensors: dict[str, Tensor] = {}
    for name, value in inputs.items():
        if value is None:  # generated clients send null for unset inputs
            continue
        kinds = plan.kinds(name)
        tensors[name], forms[name] = json.tensor_from_json(
            name, value, floats="float" in kinds, integers="integer" in kinds
        )
    job = plan.job({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
    return job, {name: tensor.data for name, tensor in tensors.items()}


def plan_of(text: bytes) -> Plan:
    """Return the plan of a request's JSON text. Plans are cached, because clients repeat requests.

    Raises:
        TooLarge: The text is too long for a request without tensors.
        Problem: See :func:`lossd.request.planning.make_plan`.
    """
    if len(text) > MAX_REQUEST_BYTES:
        raise TooLarge(f"the request has {len(text)} bytes beside its tensors; at most {MAX_REQUEST_BYTES} are read")
    return _plan_of(text)


@memoized("plans", plan_bytes)
def _plan_of(text: bytes) -> Plan:
    brackets = text.count(b"[") + text.count(b"{")
    if brackets > MAX_BRACKETS:  # walking them takes longer than parsing
        raise TooLarge(
            f"the request has {brackets} lists and objects beside its tensors; at most {MAX_BRACKETS} are read"
        )
    request = json.loads(text, what="the request")
    if brackets > json.MAX_DEPTH:  # fewer brackets cannot nest deeper
        json.check_depth(request, what="the request")
    return make_plan(request)


def _read_header(request: HttpRequest, view: memoryview, start: int) -> CheckedHeader:
    """Return the checked header. Headers are cached, because clients repeat them."""
    if len(view) < start:
        raise MalformedBody(f"the body ends inside the safetensors header: {len(view)} of {start} bytes")
    text = bytes(view[safetensors.PREFIX_BYTES : start])
    checked = _checked(text, request.query)
    request.identify(checked.job.recipe.model, checked.job)
    return checked


def _checked_bytes(text: bytes, query: bytes, checked: CheckedHeader) -> int:
    return 1024 + 8 * (len(text) + len(query)) + checked.job.recipe.nbytes


@memoized("headers", _checked_bytes)
def _checked(text: bytes, query: bytes) -> CheckedHeader:
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
    return CheckedHeader(job, tuple((e.name, e.begin, e.end) for e in header.entries), header.data_bytes)


def _wrong_length(described: int, found: int) -> MalformedBody:
    return MalformedBody(f"the safetensors header describes {described} bytes of tensors, the body has {found}")


_LAYOUTS: Cache[tuple[str, int], tuple[tuple[str, ...], bytes]] = Cache("layouts")


def _layout(recipe: Recipe, rows: int) -> tuple[tuple[str, ...], bytes]:
    """Return the names of an answer's tensors, widest dtype first, and their entries of the file's header."""
    key = recipe.text, rows
    found = _LAYOUTS.get(key)
    if found is None:
        columns = sorted(recipe.answers, key=lambda c: -DTYPES[c.dtype].itemsize)
        entries = [(c.name, c.dtype, c.shape(rows), c.unit_bytes * c.units(rows)) for c in columns]
        found = tuple(c.name for c in columns), safetensors.encode_entries(entries)
        _LAYOUTS.put(key, found, 1024 + 2 * len(recipe.text) + 2 * len(found[1]))
    return found


def _json(result: Result, answer: AnswerFormat) -> bytes:
    """Return the answer as a JSON text, each tensor in the form of its input."""
    text = result.text
    gradients = []
    for column in result.job.recipe.answers:
        tensor = Tensor(column.dtype, column.shape(result.job.rows), result.tensors[column.name])
        value = json.tensor_text(tensor, answer.form(column.name))
        if column.name == "loss":
            text = b'{"loss":' + value + b"," + text[1:]
        else:
            gradients.append(json.dumps(column.name.removeprefix("gradient.")) + b":" + value)
    if gradients:
        text = text[:-1] + b',"gradient":{' + b",".join(gradients) + b"}}"
    return text
