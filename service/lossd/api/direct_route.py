"""The part of a route that answers requests with known heads without a task; see :mod:`lossd.api.http.direct`."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from typing import Any, Generic

from starlette.types import Receive, Scope, Send

from lossd.api.evaluation_route import INLINE_ANSWER_BYTES, AnswerFormatT, EvaluationRoute, common_headers
from lossd.api.http.asgi import CONNECTION, RAW_HEAD
from lossd.api.http.compression import compress_inline
from lossd.api.http.direct import DirectRequest
from lossd.api.http.request import HttpRequest
from lossd.api.http.texts import INLINE_BYTES
from lossd.api.http.uvicorn_internals import own_cycle
from lossd.api.observability.telemetry import DISCONNECTED
from lossd.api.route import Route
from lossd.engine import Result

__all__ = ["DirectEvaluation", "DirectRoute"]


class DirectRoute(Route, Generic[AnswerFormatT]):
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

    @abstractmethod
    def complete(self, request: DirectRequest, outcome: Any) -> bool:
        """Go on with a request that was submitted by :meth:`begin`.

        Args:
            request: The request.
            outcome: The result of the future that it waited for.

        Returns:
            Whether it was answered, or waits for another future. If not, nothing has happened, and :meth:`finish` must
            answer.
        """

    @abstractmethod
    async def _finish(self, request: DirectRequest, future: asyncio.Future[Any], send: Send) -> None:
        """Answer a request that waits for a future, in a task."""

    def give_up(self, request: DirectRequest, future: asyncio.Future[Any]) -> None:
        """Drop a request that was submitted by :meth:`begin`: its client left."""
        self.engine.drop(future)
        if request.client:
            self.fair_share.release(request)
        self._refused(request, DISCONNECTED)

    async def finish(
        self, request: DirectRequest, future: asyncio.Future[Any], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request that was submitted by :meth:`begin`, as an ASGI application."""
        request.receive = receive
        await self._answer_or_refuse(request, self._finish(request, future, send), send)


class DirectEvaluation(DirectRoute[AnswerFormatT], EvaluationRoute[AnswerFormatT]):
    """Such a route whose answers are evaluations."""

    def complete(self, request: DirectRequest, outcome: Result) -> bool:
        """Send the answer of a request; see :meth:`DirectRoute.complete`."""
        evaluated, result = time.monotonic(), outcome
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

    async def _finish(self, request: DirectRequest, future: asyncio.Future[Result], send: Send) -> None:
        await self._answer(request, request.answer, future, send, request.parsed)
