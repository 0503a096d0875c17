"""Logs a line for each request.

A line contains no key and no value of a tensor. The lines a second are limited; a further line says how many were left
out, and the metrics count all requests. Problems and answers have separate limits.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lossd.api.http.asgi import BATCH, CLIENT, RUN
from lossd.api.observability.telemetry import OK, STAGES
from lossd.logs import LogLine

if TYPE_CHECKING:
    from lossd.api.http.request import HttpRequest
    from lossd.configuration.settings import Settings
    from lossd.engine import Result
    from lossd.job import Job

__all__ = ["AccessLog", "PageLog", "first_shapes", "log_text", "run_and_batch", "short_path"]

log = logging.getLogger("lossd.access")

WINDOW_S = 1.0
MAX_PATH, MAX_PART = 160, 40
MAX_SHAPES, MAX_NAME = 16, 60
PROBES = ("/health/", "/v2/health/", "/metrics")


class AccessLog:
    """Logs requests when they are over.

    Args:
        settings: Which requests are logged, and how many a second.
    """

    def __init__(self, settings: Settings) -> None:
        per_s = settings.access_log_per_s
        self._problems = Allowance(per_s, "problems") if settings.access_log != "none" else None
        self._answers = Allowance(per_s, "answers") if settings.access_log == "all" else None
        if not log.isEnabledFor(logging.INFO):
            self._answers = None

    def answered(
        self, request: HttpRequest, result: Result, durations_s: tuple[float, ...], size: int, status: int
    ) -> None:
        """Log an answered request; see :class:`lossd.api.observability.telemetry.Observer`."""
        if self._answers is not None and self._answers.take(request.begin):
            stages_ms = {stage: _ms(seconds) for stage, seconds in zip(STAGES, durations_s, strict=True)}
            log.info(_line(request, status, OK, bytes_out=size, batch_requests=result.batch_requests, ms=stages_ms))

    def refused(self, request: HttpRequest, outcome: str, status: int | None, total_s: float) -> None:
        """Log a refused request."""
        if self._problems is not None and self._problems.take(request.begin):
            log.warning(_line(request, status, outcome, ms={"total": _ms(total_s)}))

    def page(self, scope: Scope, request_id: str, status: int, total_s: float) -> None:
        """Log a request that is not an evaluation; a probe's only if it failed."""
        failed = status >= 400
        allowance = self._problems if failed else self._answers
        if (failed or not scope["path"].startswith(PROBES)) and allowance and allowance.take(time.monotonic()):
            line = _identity(scope, request_id, scope.get(CLIENT, ""))
            log.log(
                logging.WARNING if failed else logging.INFO, LogLine(line, status=status, ms={"total": _ms(total_s)})
            )


class Allowance:
    """Limits lines a second, and logs how many were left out.

    Args:
        per_s: The limit; 0 for none.
        kind: What the lines are about, for the log.
    """

    def __init__(self, per_s: int, kind: str) -> None:
        self.limit = per_s or sys.maxsize
        self.kind = kind
        self._window_end_s = 0.0
        self._lines = 0

    def take(self, now: float) -> bool:
        """Count a line, and return whether it may be logged at this time of the monotonic clock."""
        if now >= self._window_end_s:
            if self._lines > self.limit:
                log.info(LogLine(left_out=self._lines - self.limit, of=self.kind))
            self._window_end_s = now + WINDOW_S
            self._lines = 0
        self._lines += 1
        return self._lines <= self.limit


def _line(request: HttpRequest, status: int | None, outcome: str, **more: Any) -> LogLine:
    """Return the line of a request, without fields that have no value."""
    line = _identity(request.scope, request.request_id, request.client)
    line |= {"status": status, "outcome": outcome, "loss": request.model, "bytes_in": request.length}
    if (job := request.job) is not None:
        line["shapes"] = {log_text(name): shape for name, shape in first_shapes(job)}
    return LogLine(((name, value) for name, value in line.items() if value not in (None, "")), **more)


def _identity(scope: Mapping[str, Any], request_id: str, client: str) -> LogLine:
    line = LogLine(request_id=request_id, method=scope["method"], path=short_path(scope["path"]))
    for key, name in run_and_batch(scope):
        line[key] = name
    if client:
        line["client"] = client
    if scope.get("client"):
        line["peer"] = scope["client"][0]
    for name, value in scope["headers"]:
        if name == b"traceparent":
            line["trace_id"] = log_text(value[3:35].decode("latin-1"))
    return line


def run_and_batch(scope: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the run and the batch that a request's path names."""
    if RUN in scope:
        yield "run", log_text(scope[RUN])
        if BATCH in scope:
            yield "batch", log_text(scope[BATCH])


def first_shapes(job: Job) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a job's first 16 tensors. A job may have a thousand, with names of any length."""
    for column in job.recipe.inputs[:MAX_SHAPES]:
        yield column.name, column.shape(job.rows)


def log_text(text: str) -> str:
    """Return a client's text for the log: at most 60 of its characters, all printable."""
    return _only_printable(text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}...")


def short_path(path: str) -> str:
    """Return the path for the log, with long parts cut: a client may have put its key there."""
    parts = path[:MAX_PATH].split("/")
    return _only_printable("/".join(part if len(part) <= MAX_PART else f"{part[:8]}..." for part in parts))


def _only_printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


class PageLog:
    """An application that logs requests which are not evaluations.

    Args:
        app: The application that answers them, with an ``X-Request-ID``.
        log: The access log.
    """

    def __init__(self, app: ASGIApp, log: AccessLog) -> None:
        self.app = app
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request and log it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.monotonic()

        async def send_and_log(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                request_id = next(
                    (value.decode("latin-1") for name, value in message["headers"] if name == b"x-request-id"), ""
                )
                self.log.page(scope, request_id, message["status"], time.monotonic() - begin)

        await self.app(scope, receive, send_and_log)
