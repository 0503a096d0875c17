"""The part of a route that answers requests with known heads without a task; see :mod:`lossd.api.http.direct`."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from typing import Generic

from starlette.types import Receive, Scope, Send

from lossd.api.evaluation_route import INLINE_ANSWER_BYTES, AnswerFormatT, EvaluationRoute, common_headers
from lossd.api.http.asgi import CONNECTION, RAW_HEAD
from lossd.api.http.compression import compress_inline
from lossd.api.http.direct import DirectRequest
from lossd.api.http.request import HttpRequest
from lossd.api.http.texts import INLINE_BYTES
from lossd.api.http.uvicorn_internals import own_cycle
from lossd.api.observability.telemetry import DISCONNECTED
from lossd.engine import Result

__all__ = ["DirectRoute"]


class DirectRoute(EvaluationRoute[AnswerFormatT], Generic[AnswerFormatT]):
    """A route whose small requests need no task once their heads are known."""

    @abstractmethod
    def _submit_whole(
        self, request: DirectRequest, body: memoryview
    ) -> tuple[AnswerFormatT, asyncio.Future[Result]] | None:
        """Submit a request, and return its answer's format and the future of its result.

        None leaves the request to the usual way; nothing was submitted then.

        Raises:
            Problem: The request is refused; nothing was submitted.
        """

    def _learn(self, request: HttpRequest, send: Send, form: object) -> None:
        """Keep the head of a request that was answered in the usual way.

        Args:
            request: The request.
            send: ASGI's channel.
            form: What :meth:`_submit_whole` will read as ``known.format``.
        """
        if RAW_HEAD in request.scope and (cycle := own_cycle(send)) is not None and cycle.keep_alive:
            request.scope[CONNECTION].learn(request, self, form)

    def begin(self, request: DirectRequest, body: memoryview) -> bool:
        """Submit a request.

        Returns:
            Whether it was submitted. If not, nothing has happened, and the usual way finds out why.
        """
        try:
            if request.client and not self.fair_share.admits(request):
                return False
            submitted = self._submit_whole(request, body)
        except Exception:
            submitted = None
        if submitted is None:
            if request.client:
                self.fair_share.release(request)
            return False
        request.submitted(*submitted)
        return True

    def complete(self, request: DirectRequest, result: Result) -> bool:
        """Send the answer of a request that was submitted by :meth:`begin`.

        Returns:
            Whether it was sent. If not, nothing has happened, and :meth:`finish` must answer.
        """
        evaluated = time.monotonic()
        if self._text_bytes(request.answer, result) > INLINE_BYTES:
            return False
        pieces, headers, binary = self._encode(request, request.answer, result)
        if (accept_encoding := request.headers.get(b"accept-encoding")) is not None:
            if (compressed := compress_inline(pieces, accept_encoding, binary=binary)) is None:
                return False
            encoding, pieces = compressed
            if encoding:
                headers.append((b"content-encoding", encoding))
        size = sum(map(len, pieces))
        if size > INLINE_ANSWER_BYTES:
            return False
        encoded = time.monotonic()
        stages = (request.parsed - request.begin, *result.timings, encoded - evaluated)
        headers += common_headers(request, size, stages, result.batch_requests)
        answer = request.encoded(headers, pieces)
        result.release()
        request.send(answer)
        if request.client:
            self.fair_share.release(request)
        self.telemetry.answered(request, result, (*stages, time.monotonic() - request.begin), size)
        return True

    def give_up(self, request: DirectRequest, future: asyncio.Future[Result]) -> None:
        """Drop a request that was submitted by :meth:`begin`: its client left."""
        self.engine.drop(future)
        if request.client:
            self.fair_share.release(request)
        self._refused(request, DISCONNECTED)

    async def finish(
        self, request: DirectRequest, future: asyncio.Future[Result], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request that was submitted by :meth:`begin`, as an ASGI application."""
        request.receive = receive
        answering = self._answer(request, request.answer, future, send, request.parsed)
        await self._answer_or_refuse(request, answering, send)
