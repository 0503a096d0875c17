"""Chooses the route of a request about runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import Receive, Scope, Send

from lossd.api.observability.access_log import AccessLog, PageLog
from lossd.api.route import Route
from lossd.api.runs.batches import BatchRoute
from lossd.api.runs.compare import Compare
from lossd.api.runs.definitions import Definitions
from lossd.api.runs.names import COMPARE
from lossd.api.runs.route import Runs
from lossd_client.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from lossd.api.http.fairness import FairShare
    from lossd.api.http.request import HttpRequest
    from lossd.api.observability.telemetry import Telemetry
    from lossd.configuration.settings import Settings
    from lossd.engine import Engine
    from lossd.recorder.client import Recorder

__all__ = ["Entrance", "NoRuns"]

BATCHES = "batches"
DEPTH = len(["", "v1", "runs", "{run}", "batches", "{batch}"])


class Entrance:
    """``/v1/runs`` and ``/v1/compare`` as plain ASGI. Batches have a route of their own, because they are many.

    Args:
        settings: The limits.
        engine: Evaluates batches and results.
        telemetry: Counts requests.
        fair_share: Decides whose request is read next.
        recorder: Keeps the runs.
        access_log: Logs the requests that count no batch; the others are logged as evaluations.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        telemetry: Telemetry,
        fair_share: FairShare,
        recorder: Recorder,
        access_log: AccessLog,
    ) -> None:
        self.recorder = recorder
        definitions = Definitions(recorder)
        self._batches = BatchRoute(settings, engine, telemetry, fair_share, recorder, definitions)
        self._runs = PageLog(Runs(settings, engine, telemetry, fair_share, recorder, definitions), access_log)
        self._compare = PageLog(Compare(settings, engine, telemetry, fair_share, recorder), access_log)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the coroutine that answers a request."""
        path = scope["path"].split("/")
        if scope["method"] == "PUT" and len(path) == DEPTH and path[-2] == BATCHES:
            return self._batches(scope, receive, send)
        if scope["path"] == COMPARE:
            return self._compare(scope, receive, send)
        return self._runs(scope, receive, send)


class NoRuns(Route):
    """The routes of runs, in a service that keeps none."""

    async def _serve(self, request: HttpRequest, send: Send) -> None:
        raise NotFound("this service keeps no runs, because its setting runs is off")

    def _refused(self, request: HttpRequest, outcome: str, status: int | None = None) -> None:
        """Count nothing: the log of pages has the request."""
