"""The common part of the routes whose requests are tensors: reads a body into a slab, as JSON or as safetensors.

A subclass says what job a request's text and the layout of its tensors make.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from lossd.api.http import number_lists
from lossd.api.http.request import HttpRequest
from lossd.api.http.texts import INLINE_BYTES, in_thread
from lossd.api.route import Route
from lossd.engine import Result
from lossd.job import Job
from lossd.request.plan import Layout
from lossd_client.errors import InvalidRequest, MalformedBody, Problem, UnsupportedMediaType
from lossd_client.wire import Tensor, json, safetensors
from lossd_client.wire.quoting import quoted
from lossd_client.wire.tensor import check_tensor_count

__all__ = ["JSON", "NO_FORMS", "SAFETENSORS", "CheckedHeader", "JobMaker", "TensorRoute"]

SAFETENSORS = safetensors.MEDIA_TYPE.encode()
JSON = json.MEDIA_TYPE.encode()

_FORMATS = {
    SAFETENSORS: "safetensors",
    b"application/octet-stream": "safetensors",
    JSON: "json",
}


NO_FORMS: Mapping[str, json.Form] = MappingProxyType({})
"""The JSON forms of the tensors of a binary request."""


Decoded = tuple[Job, dict[str, memoryview], dict[str, json.Form]]
"""The job of a JSON text, its tensors' bytes and their forms."""

ContextT = TypeVar("ContextT")
"""What a route knows of a request before its body is read."""


class JobMaker(Protocol):
    """Makes the job of a request whose text is checked, such as a :class:`lossd.request.plan.Plan`."""

    def kinds(self, name: str) -> frozenset[str]:
        """Return the kinds of dtype that an input may have."""

    def job(self, layout: Layout) -> Job:
        """Return the job for tensors of these dtypes and shapes.

        Raises:
            Problem: A tensor does not fit.
        """


@dataclass(slots=True)
class CheckedHeader:
    """A checked safetensors header: its job, the name, begin and end of its tensors, and their bytes."""

    job: Job
    spans: tuple[tuple[str, int, int], ...]
    data_bytes: int

    @classmethod
    def of(cls, header: safetensors.Header, maker: JobMaker) -> CheckedHeader:
        """Return the checked header of a file whose tensors fit.

        Raises:
            Problem: A tensor does not fit.
        """
        job = maker.job({entry.name: (entry.dtype, entry.shape) for entry in header.entries})
        return cls(job, tuple((e.name, e.begin, e.end) for e in header.entries), header.data_bytes)


class TensorRoute(Route, Generic[ContextT]):
    """A route whose requests are tensors.

    Attributes:
        fields: The fields of a JSON body, for errors.
    """

    fields: str

    @abstractmethod
    def _maker(self, text: bytes, request: HttpRequest, context: ContextT) -> JobMaker:
        """Return what makes the job of a request, given its JSON text without the tensors.

        Raises:
            Problem: The text is refused.
        """

    @abstractmethod
    def _header(self, text: bytes, request: HttpRequest, context: ContextT) -> CheckedHeader:
        """Return the checked header of a safetensors file, given the header's text, and identify the request.

        Raises:
            Problem: The header, the request in it, or a tensor is refused.
        """

    @abstractmethod
    def _accept(self, job: Job, context: ContextT, forms: Mapping[str, json.Form]) -> None:
        """Receive a job before it is evaluated, with the JSON form of each tensor.

        Raises:
            TooLarge: Its answer would be too long.
        """

    def _read_headers(self, request: HttpRequest) -> str:
        """Return the body's format, after all checks of the headers."""
        request.read_headers()
        stated = request.headers.get(b"content-type", b"")
        format_in = _FORMATS.get(stated) or _format_in(stated)
        if format_in == "json":
            request.limit_json(self.settings.max_json_bytes)
        return format_in

    # JSON

    async def _read_json(self, request: HttpRequest, context: ContextT) -> asyncio.Future[Result]:
        """Read a JSON body, submit its job, and return the future of the result."""
        body = await request.body(self.engine.budget)
        if len(body) <= INLINE_BYTES:
            return self._submit_json(request, body, context)
        with request.holding(self.engine.budget, len(body)):
            decoded = await in_thread(len(body), lambda: self._decoded(body, request, context))
        return self._submit_decoded(request, decoded, context)

    def _submit_json(
        self, request: HttpRequest, body: bytes | bytearray | memoryview, context: ContextT
    ) -> asyncio.Future[Result]:
        return self._submit_decoded(request, self._decoded(body, request, context), context)

    def _submit_decoded(self, request: HttpRequest, decoded: Decoded, context: ContextT) -> asyncio.Future[Result]:
        job, data, forms = decoded
        request.identify(job.recipe.model, job)
        self._accept(job, context, forms)
        return self.engine.submit(job, data, request.deadline, request.client)

    def _decoded(self, body: bytes | bytearray | memoryview, request: HttpRequest, context: ContextT) -> Decoded:
        """Return the job of a JSON text, its tensors' bytes and their forms."""
        if len(body) >= number_lists.LEAST_BYTES and (document := number_lists.read(body)) is not None:
            with suppress(Problem):  # the error is found again in the lists, as they were written
                return self._job_of(document, request, context)
        return self._job_of(json.loads(body), request, context)

    def _job_of(self, document: Any, request: HttpRequest, context: ContextT) -> Decoded:
        if not isinstance(document, dict):
            raise InvalidRequest(f"the body must be a JSON object with the fields {self.fields}")
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
        maker = self._maker(text, request, context)
        tensors: dict[str, Tensor] = {}
        forms: dict[str, json.Form] = {}
        for name, value in inputs.items():
            if value is None:  # generated clients send null for unset inputs
                continue
            kinds = maker.kinds(name)
            tensors[name], forms[name] = json.tensor_from_json(
                name, value, floats="float" in kinds, integers="integer" in kinds
            )
        job = maker.job({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
        return job, {name: tensor.data for name, tensor in tensors.items()}, forms

    # Safetensors

    async def _read_safetensors(self, request: HttpRequest, context: ContextT) -> asyncio.Future[Result]:
        """Read a safetensors body, submit its job, and return the future of the result."""
        if request.length is None or request.length >= self.settings.stream_bytes or request.decompressor is not None:
            async with request.in_time():
                return await self._stream_safetensors(request, context)
        return self._submit_safetensors(request, await request.body(self.engine.budget), context)

    def _submit_safetensors(
        self, request: HttpRequest, body: bytes | bytearray | memoryview, context: ContextT
    ) -> asyncio.Future[Result]:
        view = memoryview(body)
        start = safetensors.PREFIX_BYTES + safetensors.header_bytes(view[: safetensors.PREFIX_BYTES])
        if len(view) < start:
            raise _cut_off(len(view), start)
        checked = self._header(bytes(view[safetensors.PREFIX_BYTES : start]), request, context)
        if len(view) != start + checked.data_bytes:
            raise _wrong_length(checked.data_bytes, len(view) - start)
        self._accept(checked.job, context, NO_FORMS)
        tensors = {name: view[start + begin : start + end] for name, begin, end in checked.spans}
        return self.engine.submit(checked.job, tensors, request.deadline, request.client)

    async def _stream_safetensors(self, request: HttpRequest, context: ContextT) -> asyncio.Future[Result]:
        """Write the body into its slab as it arrives."""
        received = bytearray()
        start = safetensors.PREFIX_BYTES
        while len(received) < start:
            if not request.unread:
                raise _cut_off(len(received), start)
            received += await request.chunk()
            if len(received) >= safetensors.PREFIX_BYTES:
                start = safetensors.PREFIX_BYTES + safetensors.header_bytes(received[: safetensors.PREFIX_BYTES])
        checked = self._header(bytes(received[safetensors.PREFIX_BYTES : start]), request, context)
        size = start + checked.data_bytes
        if request.decompressor is None and request.length is not None:
            if request.length != size:
                raise _wrong_length(checked.data_bytes, request.length - start)
        elif size > request.max_body_bytes:
            raise request.too_large(size)
        elif size < self.settings.stream_bytes:  # small enough to share a batch
            while request.unread and len(received) <= size:
                received += await request.chunk()
            return self._submit_safetensors(request, received, context)
        self._accept(checked.job, context, NO_FORMS)
        return await request.upload(
            self.engine.upload(checked.job, request.deadline, request.client),
            memoryview(received)[start:],
            checked.spans,
            lambda found: _wrong_length(checked.data_bytes, found),
        )


def _format_in(content_type: bytes) -> str:
    """Return the format of a body.

    Raises:
        UnsupportedMediaType: The format is not read.
    """
    name = content_type.partition(b";")[0].strip().lower()
    if name in _FORMATS:
        return _FORMATS[name]
    found = quoted(name.decode("latin-1")) if name else "none"
    raise UnsupportedMediaType(
        f"the Content-Type is {found}; send application/json or {safetensors.MEDIA_TYPE} "
        "(with curl: -H 'Content-Type: application/json')"
    )


def _cut_off(found: int, start: int) -> MalformedBody:
    return MalformedBody(f"the body ends inside the safetensors header: {found} of {start} bytes")


def _wrong_length(described: int, found: int) -> MalformedBody:
    return MalformedBody(f"the safetensors header describes {described} bytes of tensors, the body has {found}")
