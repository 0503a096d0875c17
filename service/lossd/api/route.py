"""The common part of the plain ASGI routes: refusals, and waiting for a result of the engine.

They run before FastAPI's routing. At thousands of small requests a second, the framework would take most of the time.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable

from starlette.types import Receive, Scope, Send

from lossd.api.http.asgi import DisconnectedError, cancel_on_disconnect
from lossd.api.http.fairness import FairShare
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import send_problem
from lossd.api.http.shortage import shortage
from lossd.api.observability.telemetry import DISCONNECTED, Telemetry
from lossd.configuration.settings import Settings
from lossd.engine import Engine, Result
from lossd_client.errors import InternalError, Problem

__all__ = ["Route"]

log = logging.getLogger("lossd.api")


class Route(ABC):
    """A route as plain ASGI.

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure becomes a refusal."""
        request = HttpRequest(scope, receive, self.settings)
        await self._answer_or_refuse(request, self._serve(request, send), send)

    async def _answer_or_refuse(self, request: HttpRequest, serving: Awaitable[None], send: Send) -> None:
        """Await the answer of a request; every failure becomes a refusal."""
        try:
            await serving
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
