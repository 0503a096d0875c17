"""The answers of the routes that evaluate."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from typing import Generic, TypeVar

from starlette.types import Send

from lossd.api.http.asgi import CONNECTION
from lossd.api.http.compression import compress
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import Headers, Pieces, send_pieces, send_whole
from lossd.api.http.texts import INLINE_BYTES, in_thread
from lossd.api.route import Route
from lossd.engine import Result
from lossd_client.errors import TooLarge

__all__ = ["INLINE_ANSWER_BYTES", "EvaluationRoute", "common_headers", "server_timing"]

INLINE_ANSWER_BYTES = 512 << 10

AnswerFormatT = TypeVar("AnswerFormatT")


class EvaluationRoute(Route, Generic[AnswerFormatT]):
    """A route whose answers are evaluations."""

    def _check_text(self, nbytes: int, remedy: str) -> None:
        """Check that an answer is not too long as JSON.

        Args:
            nbytes: The most bytes it may have.
            remedy: What to request instead, for the error.

        Raises:
            TooLarge: It may be too long.
        """
        if nbytes > self.settings.max_json_bytes:
            raise TooLarge(
                f"the answer may have {nbytes} bytes as JSON, at most {int(self.settings.max_json_bytes)} are written "
                f"(setting max_json_bytes); {remedy}"
            )

    @abstractmethod
    def _text_bytes(self, answer: AnswerFormatT, result: Result) -> int:
        """Return an estimate of an answer's bytes of JSON."""

    @abstractmethod
    def _encode(self, request: HttpRequest, answer: AnswerFormatT, result: Result) -> tuple[Pieces, Headers, bool]:
        """Return an answer's body, the headers of this route, and whether the body is binary.

        Args:
            request: The request.
            answer: The answer's format, as passed to :meth:`_answer`.
            result: The result; the body may refer to its tensors.
        """

    async def _answer(
        self,
        request: HttpRequest,
        answer: AnswerFormatT,
        future: asyncio.Future[Result],
        send: Send,
        parsed: float | None = None,
    ) -> None:
        """Wait for a result and send it.

        Args:
            request: The request.
            answer: The answer's format.
            future: The result.
            send: ASGI's channel.
            parsed: When the request was submitted, on the monotonic clock; now by default.
        """
        parsed = parsed or time.monotonic()
        result = await self._result(request, future)
        evaluated = time.monotonic()
        budget, held = self.engine.budget, 0
        try:
            if (text_bytes := self._text_bytes(answer, result)) <= INLINE_BYTES:
                pieces, headers, binary = self._encode(request, answer, result)
            else:
                budget.add(request.client, text_bytes)  # not refused now: it has been evaluated
                held = text_bytes
                pieces, headers, binary = await in_thread(text_bytes, lambda: self._encode(request, answer, result))
            if (accept_encoding := request.headers.get(b"accept-encoding")) is not None:
                encoding, pieces = await compress(pieces, accept_encoding, binary=binary)
                if encoding:
                    headers.append((b"content-encoding", encoding))
            size = sum(map(len, pieces))
            body = b"".join(pieces) if size <= INLINE_ANSWER_BYTES else None
            encoded = time.monotonic()
            stages = (parsed - request.begin, *result.timings, encoded - evaluated)
            headers += common_headers(request, size, stages, result.batch_requests)
            if body is None:
                await send_pieces(send, headers, pieces, copied=CONNECTION not in request.scope)
        finally:
            result.release()
            if held:
                budget.add(request.client, -held)
        if body is not None:
            await send_whole(send, headers, body)
        self.telemetry.answered(request, result, (*stages, time.monotonic() - request.begin), size)


def common_headers(request: HttpRequest, size: int, stages: tuple[float, ...], batch_requests: int) -> Headers:
    """Return the headers that every answer has."""
    return [
        (b"content-length", b"%d" % size),
        (b"x-request-id", request.request_id.encode("latin-1")),
        (b"server-timing", server_timing(stages, batch_requests)),
    ]


def server_timing(stages: tuple[float, ...], batch_requests: int) -> bytes:
    """Return the Server-Timing header of parse, queue, copy, compute and encode, given in seconds."""
    parse, queue, copy, compute, encode = stages
    return b'parse;dur=%.3f, queue;dur=%.3f, copy;dur=%.3f, compute;dur=%.3f;desc="batch of %d", encode;dur=%.3f' % (
        parse * 1e3,
        queue * 1e3,
        copy * 1e3,
        compute * 1e3,
        batch_requests,
        encode * 1e3,
    )
