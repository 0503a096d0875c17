"""The common part of the routes that evaluate: answers, refusals, and waiting for a result.

The routes are plain ASGI, before FastAPI's routing. At thousands of small requests a second, the framework would take
most of the time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from starlette.types import Receive, Send

from lossd.api.http.asgi import DisconnectedError, cancel_on_disconnect
from lossd.api.http.compression import compress
from lossd.api.http.fairness import FairShare
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import Headers, Pieces, send_pieces, send_problem, send_whole
from lossd.api.http.shortage import shortage
from lossd.api.http.texts import INLINE_BYTES, in_thread
from lossd.api.observability.telemetry import DISCONNECTED, Telemetry
from lossd.configuration.settings import Settings
from lossd.engine import Engine, Result
from lossd_client.errors import InternalError, Problem, TooLarge

__all__ = ["Route"]

log = logging.getLogger("lossd.api")

INLINE_ANSWER_BYTES = 512 << 10

AnswerFormatT = TypeVar("AnswerFormatT")


class Route(ABC, Generic[AnswerFormatT]):
    """A route that evaluates.

    Args:
        settings: The limits.
        engine: Evaluates jobs.
        telemetry: Counts requests.
        fair_share: Decides whose request is read next.
    """

    def __init__(self, settings: Settings, engine: Engine, telemetry: Telemetry, fair_share: FairShare) -> None:
        self.settings = settings
        self.engine = engine
        self.telemetry = telemetry
        self.fair_share = fair_share

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; every failure becomes a refusal."""
        request = HttpRequest(scope, receive, self.settings)
        try:
            await self._serve(request, send)
        except DisconnectedError:
            self._refused(request, DISCONNECTED)
        except Problem as problem:
            problem.__traceback__ = None  # else a reference cycle through its frames
            await self._refuse(problem, request, send)
        except Exception as error:
            fault: Problem | None = shortage(error)
            if fault is None:
                log.exception("request %s failed", request.request_id)
                fault = InternalError(
                    f"the service failed on this request; its log has the details under {request.request_id}"
                )
            await self._refuse(fault, request, send)
        finally:
            if request.client:
                self.fair_share.release(request)

    @abstractmethod
    async def _serve(self, request: HttpRequest, send: Send) -> None:
        """Answer a request.

        Raises:
            DisconnectedError: The client left.
            Problem: Why the request is refused.
        """

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
        self, request: HttpRequest, answer: AnswerFormatT, future: asyncio.Future[Result], send: Send
    ) -> None:
        """Wait for a result and send it."""
        parsed = time.monotonic()
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
            headers.append((b"content-length", b"%d" % size))
            headers.append((b"x-request-id", request.request_id.encode("latin-1")))
            headers.append((b"server-timing", _server_timing(stages, result.batch_requests)))
            if body is None:
                await send_pieces(send, headers, pieces)
        finally:
            result.release()
            if held:
                budget.add(request.client, -held)
        if body is not None:
            await send_whole(send, headers, body)
        self.telemetry.answered(request, result, (*stages, time.monotonic() - request.begin), size)

    async def _result(self, request: HttpRequest, future: asyncio.Future[Result]) -> Result:
        """Return the result. A request that waits long is cancelled when its client leaves.

        Raises:
            DisconnectedError: The client left.
        """
        watchers: list[asyncio.Task[None]] = []

        def watch() -> None:
            watchers.append(asyncio.ensure_future(cancel_on_disconnect(request.receive, future)))

        self.engine.long_waits.add(future, watch)
        try:
            return await future
        except asyncio.CancelledError:
            self.engine.drop(future)  # it may have been answered at the same moment
            if watchers and watchers[0].done():
                raise DisconnectedError from None
            raise
        finally:
            self.engine.long_waits.remove(future)
            if watchers:
                watchers[0].cancel()

    async def _refuse(self, problem: Problem, request: HttpRequest, send: Send) -> None:
        status = self._status(problem)
        self._refused(request, problem.slug, status)
        await send_problem(request, problem, send, status)

    def _status(self, problem: Problem) -> int:
        """Return the status that answers a problem."""
        return problem.status

    def _refused(self, request: HttpRequest, outcome: str, status: int | None = None) -> None:
        """Count a refused request."""
        self.telemetry.refused(request, outcome, status)


def _server_timing(stages: tuple[float, ...], batch_requests: int) -> bytes:
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
