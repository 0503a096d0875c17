"""A line in the log for each request.

Never a tensor's values, never a key, and no more lines a second than are set: a line says how many were left out, and
the metrics count them all. Problems have their own allowance, so that answers in their thousands cannot hide them, nor
they the answers.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lossd.api.http.asgi import CLIENT
from lossd.api.observability.telemetry import OK, STAGES
from lossd.logs import Line

if TYPE_CHECKING:
    from lossd.api.http.request import HttpRequest
    from lossd.configuration.settings import Settings
    from lossd.engine import Result
    from lossd.job import Job

__all__ = ["AccessLog", "PageLog", "path_told", "shapes_told", "told"]

log = logging.getLogger("lossd.access")

WINDOW_S = 1.0
MAX_PATH, MAX_PART = 160, 40
MAX_SHAPES, MAX_NAME = 16, 60
PROBES = ("/health/", "/v2/health/", "/metrics")


class AccessLog:
    """A line for a request that is over.

    Args:
        settings: How many lines, and of what.
    """

    def __init__(self, settings: Settings) -> None:
        most = settings.access_log_per_s
        self._problems = Allowance(most, "problems") if settings.access_log != "none" else None
        self._answers = Allowance(most, "answers") if settings.access_log == "all" else None
        if not log.isEnabledFor(logging.INFO):
            self._answers = None

    def answered(self, request: HttpRequest, result: Result, durations_s: tuple[float, ...], size: int) -> None:
        """It was answered; see :class:`lossd.api.observability.telemetry.Observer`."""
        if self._answers is not None and self._answers.take(request.begin):
            stages_ms = {stage: _ms(seconds) for stage, seconds in zip(STAGES, durations_s, strict=True)}
            log.info(_line(request, 200, OK, bytes_out=size, batch_requests=result.batch_requests, ms=stages_ms))

    def refused(self, request: HttpRequest, outcome: str, status: int | None, total_s: float) -> None:
        """It was not."""
        if self._problems is not None and self._problems.take(request.begin):
            log.warning(_line(request, status, outcome, ms={"total": _ms(total_s)}))

    def page(self, scope: Scope, request_id: str, status: int, total_s: float) -> None:
        """A request for something else than an evaluation is over; one by a probe is news only where it failed."""
        failed = status >= 400
        allowance = self._problems if failed else self._answers
        if (failed or not scope["path"].startswith(PROBES)) and allowance and allowance.take(time.monotonic()):
            line = _who(scope, request_id, scope.get(CLIENT, ""))
            log.log(logging.WARNING if failed else logging.INFO, Line(line, status=status, ms={"total": _ms(total_s)}))


class Allowance:
    """So many lines a second, and a count of what is over.

    Args:
        per_s: How many; 0 for any number.
        what: What they are about.
    """

    def __init__(self, per_s: int, what: str) -> None:
        self.most = per_s or sys.maxsize
        self.what = what
        self._ends = 0.0
        self._asked = 0

    def take(self, now: float) -> bool:
        """Whether there is one left at this time, on the monotonic clock."""
        if now >= self._ends:
            if self._asked > self.most:
                log.info(Line(left_out=self._asked - self.most, of=self.what))
            self._ends = now + WINDOW_S
            self._asked = 0
        self._asked += 1
        return self._asked <= self.most


def _line(request: HttpRequest, status: int | None, outcome: str, **more: Any) -> Line:
    """What is known of a request however it ended; what is unknown is left out."""
    line = _who(request.scope, request.request_id, request.client)
    line |= {"status": status, "outcome": outcome, "loss": request.model, "bytes_in": request.length}
    if (job := request.job) is not None:
        line["shapes"] = {told(name): shape for name, shape in shapes_told(job)}
    return Line(((name, value) for name, value in line.items() if value not in (None, "")), **more)


def _who(scope: Mapping[str, Any], request_id: str, client: str) -> Line:
    line = Line(request_id=request_id, method=scope["method"], path=path_told(scope["path"]))
    if client:
        line["client"] = client
    if scope.get("client"):
        line["peer"] = scope["client"][0]
    for name, value in scope["headers"]:
        if name == b"traceparent":
            line["trace_id"] = told(value[3:35].decode("latin-1"))
    return line


def shapes_told(job: Job) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the first tensors of a job; there may be a thousand, with names of any length."""
    for column in job.recipe.inputs[:MAX_SHAPES]:
        yield column.name, column.shape(job.rows)


def told(text: str) -> str:
    """A text that a client chose, as a line may repeat it: short, and printable."""
    cut = text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}..."
    return cut if cut.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)


def path_told(path: str) -> str:
    """The path, cut: it may be of any length, and a key that somebody sent as one is not to be read here."""
    cut = "/".join(part if len(part) <= MAX_PART else f"{part[:8]}..." for part in path[:MAX_PATH].split("/"))
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


class PageLog:
    """Logs the requests for anything but an evaluation.

    Args:
        app: Who answers them, each with an ``X-Request-ID``.
        log: Where to.
    """

    def __init__(self, app: ASGIApp, log: AccessLog) -> None:
        self.app = app
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have it answered, and note how that went."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.monotonic()

        async def noted(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                request_id = next(
                    (value.decode("latin-1") for name, value in message["headers"] if name == b"x-request-id"), ""
                )
                self.log.page(scope, request_id, message["status"], time.monotonic() - begin)

        await self.app(scope, receive, noted)
