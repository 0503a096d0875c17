"""What the routes that evaluate share: the way from a result in its slab to the socket, and what becomes of failures.

Plain ASGI, taken before FastAPI's routing: at thousands of small requests a second, the framework's own work would be
most of the bill.
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

Asked = TypeVar("Asked")


class Route(ABC, Generic[Asked]):
    """A route that evaluates.

    Args:
        settings: Limits.
        engine: Where jobs go.
        telemetry: Where requests are counted.
        turns: Whose request is read next.
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
            problem.__traceback__ = None  # its frames have the future that has the problem: garbage, for the collector
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
            DisconnectedError: There is nobody to answer.
            Problem: What is wrong with it.
        """

    def _check_text(self, nbytes: int, remedy: str) -> None:
        """Make sure that an answer is not too long as JSON.

        Args:
            nbytes: The most that it will have.
            remedy: What to ask for instead.

        Raises:
            TooLarge: It may be.
        """
        if nbytes > self.settings.max_json_bytes:
            raise TooLarge(
                f"the answer may have {nbytes} bytes as JSON, at most {int(self.settings.max_json_bytes)} are written "
                f"(setting max_json_bytes); {remedy}"
            )

    @abstractmethod
    def _text_bytes(self, asked: Asked, result: Result) -> int:
        """About how many bytes of an answer are JSON."""

    @abstractmethod
    def _encode(self, request: HttpRequest, asked: Asked, result: Result) -> tuple[Pieces, Headers, bool]:
        """An answer's body, what only this route says of it, and whether it is binary.

        Args:
            request: The request.
            asked: What :meth:`_answer` was given.
            result: Whose tensors may be among the pieces.
        """

    async def _answer(self, request: HttpRequest, asked: Asked, future: asyncio.Future[Result], send: Send) -> None:
        """Wait for a result and send it."""
        parsed = time.monotonic()
        result = await self._result(request, future)
        evaluated = time.monotonic()
        budget, held = self.engine.budget, 0
        try:
            if (text_bytes := self._text_bytes(asked, result)) <= INLINE_BYTES:
                pieces, headers, binary = self._encode(request, asked, result)
            else:
                budget.add(request.client, text_bytes)  # to refuse it now would waste its evaluation
                held = text_bytes
                pieces, headers, binary = await in_thread(text_bytes, lambda: self._encode(request, asked, result))
            if (welcome := request.headers.get(b"accept-encoding")) is not None:
                encoding, pieces = await compress(pieces, welcome, binary=binary)
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
        """Return the result; a request that waits long is given up when its client leaves.

        Raises:
            DisconnectedError: The client left.
        """
        watcher: list[asyncio.Task[None]] = []

        def watch() -> None:
            watcher.append(asyncio.ensure_future(cancel_on_disconnect(request.receive, future)))

        self.engine.long_waits.add(future, watch)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()  # answered and cancelled at the same moment
            else:
                future.cancel()
            if watcher and watcher[0].done():
                raise DisconnectedError from None
            raise
        finally:
            self.engine.long_waits.remove(future)
            if watcher:
                watcher[0].cancel()

    async def _refuse(self, problem: Problem, request: HttpRequest, send: Send) -> None:
        status = self._status(problem)
        self._refused(request, problem.slug, status)
        await send_problem(request, problem, send, status)

    def _status(self, problem: Problem) -> int:
        """What a problem is answered with."""
        return problem.status

    def _refused(self, request: HttpRequest, outcome: str, status: int | None = None) -> None:
        """Count a request that was not answered."""
        self.telemetry.refused(request, outcome, status)


def _server_timing(stages: tuple[float, ...], batch_requests: int) -> bytes:
    """The Server-Timing header of parse, queue, copy, compute and encode, in seconds."""
    parse, queue, copy, compute, encode = stages
    return b'parse;dur=%.3f, queue;dur=%.3f, copy;dur=%.3f, compute;dur=%.3f;desc="batch of %d", encode;dur=%.3f' % (
        parse * 1e3,
        queue * 1e3,
        copy * 1e3,
        compute * 1e3,
        batch_requests,
        encode * 1e3,
    )
