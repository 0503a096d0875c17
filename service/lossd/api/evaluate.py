"""``POST /v1/evaluate``: reads a request into a slab and sends the answer from it.

:mod:`lossd_client.wire` parses tensors and :mod:`lossd.request` checks them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.types import Send

from lossd.api.direct_route import DirectEvaluation
from lossd.api.header_forms import found_by_form, learn_form
from lossd.api.http.asgi import not_allowed
from lossd.api.http.direct import DirectRequest
from lossd.api.http.negotiation import media_weight, parse_weights
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import Headers, Pieces
from lossd.api.http.texts import INLINE_BYTES, MAX_REQUEST_BYTES, small_document
from lossd.api.tensor_route import JSON, NO_FORMS, SAFETENSORS, CheckedHeader, TensorRoute
from lossd.caches import Cache, memoized
from lossd.engine import Result
from lossd.job import Job, Recipe
from lossd.request.plan import Plan
from lossd.request.planning import make_plan, plan_bytes
from lossd_client.errors import InvalidRequest, TooLarge
from lossd_client.wire import DTYPES, Tensor, json, safetensors

__all__ = ["EvaluateRoute", "plan_of"]

SURELY_SHORT_BYTES = INLINE_BYTES >> 5  # a number takes less than 32 times its bytes
HEADERS_BYTES = 6 << 20


@dataclass(slots=True)
class AnswerFormat:
    """The format of an answer.

    Attributes:
        media: ``json`` or ``safetensors``.
        forms: The JSON form of each tensor of the request.
        text_bytes: The most bytes of its tensors as JSON; 0 if they are few, or not JSON.
    """

    media: str
    forms: Mapping[str, json.Form]
    text_bytes: int = 0

    def form(self, column: str) -> json.Form:
        """Return the JSON form of a tensor of the answer: the form of its input."""
        return self.forms.get(column.partition(".")[2], self.forms.get("prediction", "list"))


class EvaluateRoute(TensorRoute[AnswerFormat], DirectEvaluation[AnswerFormat]):
    """The route ``/v1/evaluate``."""

    fields = "loss and inputs"

    async def _serve(self, request: HttpRequest, send: Send) -> None:
        if request.scope["method"] != "POST":
            raise not_allowed(request.scope["method"], ["POST"])
        format_in = self._read_headers(request)
        if request.client:
            await self.fair_share.acquire(request)
        answer = AnswerFormat(_format_out(request.headers.get(b"accept"), format_in), NO_FORMS)
        read = self._read_json if format_in == "json" else self._read_safetensors
        await self._answer(request, answer, await read(request, answer), send)
        self._learn(request, send, (format_in, answer.media))

    # Request

    def _submit_whole(self, request: DirectRequest, body: memoryview) -> tuple[AnswerFormat, asyncio.Future[Result]]:
        format_in, media = request.known.format
        answer = AnswerFormat(media, NO_FORMS)
        submit = self._submit_json if format_in == "json" else self._submit_safetensors
        return answer, submit(request, body, answer)

    def _maker(self, text: bytes, request: HttpRequest, context: AnswerFormat) -> Plan:
        plan = plan_of(text)
        request.identify(plan.model)
        return plan

    def _header(self, text: bytes, request: HttpRequest, context: AnswerFormat) -> CheckedHeader:
        checked = _checked(text, request.query)
        request.identify(checked.job.recipe.model, checked.job)
        return checked

    def _accept(self, job: Job, context: AnswerFormat, forms: Mapping[str, json.Form]) -> None:
        """Refuse an answer that would be too long as JSON, before it is computed."""
        context.forms = forms
        if context.media == "json" and job.nbytes > SURELY_SHORT_BYTES:
            answers = ((c.name, c.dtype, c.shape(job.rows)) for c in job.recipe.answers)
            context.text_bytes = sum(
                json.most_bytes(dtype, shape, context.form(name)) for name, dtype, shape in answers
            )
            self._check_text(
                context.text_bytes,
                f"ask for safetensors (Accept: {safetensors.MEDIA_TYPE}), for fewer outputs, or send tensors as base64",
            )

    # Answer

    def _text_bytes(self, answer: AnswerFormat, result: Result) -> int:
        return answer.text_bytes + len(result.text)

    def _encode(self, request: HttpRequest, answer: AnswerFormat, result: Result) -> tuple[Pieces, Headers, bool]:
        if answer.media == "json":
            return [_json(result, answer)], [(b"content-type", JSON)], False
        names, entries = _layout(result.job.recipe, result.job.rows)
        head = safetensors.header_of(entries, b'{"result":%b}' % json.escaped(result.text))
        pieces: Pieces = [head, *(result.tensors[name] for name in names)]
        return pieces, [(b"content-type", SAFETENSORS)], True


def _format_out(accept: bytes | None, format_in: str) -> str:
    """Return the format with the greater weight in Accept; the request's format if the weights are equal."""
    if accept is None:
        return format_in
    stated = parse_weights(accept)
    weights = {"json": media_weight(stated, JSON), "safetensors": media_weight(stated, SAFETENSORS)}
    best = max(weights, key=weights.__getitem__)
    return best if weights[best] > weights[format_in] else format_in


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
    return make_plan(small_document(text, "the request"))


def _checked_bytes(text: bytes, query: bytes, checked: CheckedHeader) -> int:
    return 1024 + 8 * (len(text) + len(query)) + checked.job.recipe.nbytes


@memoized("headers", _checked_bytes, HEADERS_BYTES, repeated=True)
def _checked(text: bytes, query: bytes) -> CheckedHeader:
    """Return the checked header of a request. Headers are cached, because clients repeat them."""
    found = found_by_form(text)
    if found is not None:
        return found
    header = safetensors.read_header(text)
    request = header.metadata.get("request")
    if request is None:
        values = parse_qs(query.decode("latin-1")).get("request", [])
        if len(values) > 1:
            raise InvalidRequest("the query has 'request' twice")
        if not values:
            raise InvalidRequest(
                "the safetensors metadata holds no request; put the JSON object with the loss there, or in the query "
                "as ?request={...}"
            )
        return CheckedHeader.of(header, plan_of(values[0].encode()))
    plan = plan_of(request.encode())
    checked = CheckedHeader.of(header, plan)
    learn_form(text, header, plan, checked.job.recipe)
    return checked


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
    derivatives: dict[str, list[bytes]] = {}
    for column in result.job.recipe.answers:
        tensor = Tensor(column.dtype, column.shape(result.job.rows), result.tensors[column.name])
        value = json.tensor_text(tensor, answer.form(column.name))
        if column.name == "loss":
            text = b'{"loss":' + value + b"," + text[1:]
        else:
            kind, _, name = column.name.partition(".")
            derivatives.setdefault(kind, []).append(json.dumps(name) + b":" + value)
    for kind, entries in derivatives.items():
        text = text[:-1] + b',"' + kind.encode() + b'":{' + b",".join(entries) + b"}}"
    return text
