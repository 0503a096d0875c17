"""The application: its routes, its lifespan, and the answers to errors."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from lossd import __version__
from lossd.api.access import Access, load_keys
from lossd.api.catalogue import router as catalogue_router
from lossd.api.curves import router as curves_router
from lossd.api.descents import router as descents_router
from lossd.api.docs import mount as mount_docs
from lossd.api.evaluate import EvaluateRoute
from lossd.api.explorer import mount as mount_explorer
from lossd.api.headers import PageHeaders
from lossd.api.http.asgi import TELEMETRY, not_allowed, problem_body, request_id
from lossd.api.http.compression import MIN_BYTES, CompressedPages
from lossd.api.http.fairness import FairShare
from lossd.api.http.sending import AnswerHead
from lossd.api.http.shortage import shortage
from lossd.api.inference.route import PREFIX, Inference
from lossd.api.manual import mount as mount_manual
from lossd.api.observability import operations
from lossd.api.observability.access_log import AccessLog, PageLog
from lossd.api.observability.telemetry import Telemetry
from lossd.api.openapi import document as openapi_document
from lossd.api.origins import Origins
from lossd.api.prefix import Prefix
from lossd.api.problems import mount as mount_problems
from lossd.api.runs.entrance import Entrance, NoRuns
from lossd.api.runs.names import COMPARE, RUNS
from lossd.configuration.preflight import check_variables
from lossd.configuration.settings import Settings
from lossd.engine import Engine, create_engine
from lossd.fronts.member import Member
from lossd.recorder.client import Recorder
from lossd.recorder.keeper import Keeper
from lossd.recorder.place import kept
from lossd_client.errors import Fault, InternalError, InvalidRequest, MethodNotAllowed, NotFound, Problem
from lossd_client.wire.quoting import quoted

if TYPE_CHECKING:
    from lossd.api.observability.tracing import Tracing

__all__ = ["create_app"]

log = logging.getLogger("lossd.api")

EVALUATE = "/v1/evaluate"


class ServiceApp(FastAPI):
    """FastAPI, with routes that evaluate before its routing.

    Attributes:
        evaluate: ``POST /v1/evaluate``, as plain ASGI.
        inference: ``/v2``, as plain ASGI.
        documents: The paths of ``/v2`` that are no inference, with a log.
        runs: ``/v1/runs`` and ``/v1/compare``, as plain ASGI.
        pages: FastAPI's routes, with a log and headers for browsers.
        entrance: The outermost application: checks of the origin and of keys, then :meth:`answer`.
        access: The check of keys; None if the service has no keys.
    """

    evaluate: EvaluateRoute
    inference: Inference
    documents: ASGIApp
    pages: ASGIApp
    runs: ASGIApp
    entrance: ASGIApp
    access: Access | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.entrance(scope, receive, send)

    def answer(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the coroutine that answers a request. The server awaits it directly, not through each layer."""
        if scope["type"] == "http":
            path = scope["path"]
            if path == EVALUATE:
                return self.evaluate(scope, receive, send)
            if path.startswith(f"{PREFIX}/") and path.endswith("/infer"):
                return self.inference(scope, receive, send)
            if path.startswith(RUNS) or path == COMPARE:
                return self.runs(scope, receive, send)
            if path == PREFIX or path.startswith(f"{PREFIX}/"):
                return self.documents(scope, receive, send)
        return self.pages(scope, receive, send)

    def framework(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the coroutine of FastAPI's routing."""
        if scope["type"] == "lifespan":
            scope.setdefault("state", {})  # Starlette requires it, and ASGI does not
        return super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, with a schema of every loss."""
        if not self.openapi_schema:
            self.openapi_schema = openapi_document(super().openapi())
        return self.openapi_schema


def create_app(
    settings: Settings | None = None,
    engine: Engine | None = None,
    member: Member | None = None,
    *,
    wait_ready: bool = False,
) -> ServiceApp:
    """Return the service as an ASGI application.

    By default the lifespan's startup returns before a worker is ready. Requests then wait for one, and
    ``/health/ready`` is answered 503.

    Args:
        settings: The settings; from the environment by default.
        engine: Evaluates losses; by default, the engine that the settings name. The application starts and stops it.
        member: The connection to the parent; None for a single front.
        wait_ready: Whether the startup returns once a worker is ready, and raises :class:`StartError
            <lossd.configuration.preflight.StartError>` with the reason if none can start. For servers and balancers
            that send requests to whatever has started.
    """
    if settings is None:
        check_variables(os.environ)
        settings = Settings()
    engine = engine or create_engine(settings, member.config.workers if member else None)
    keeper = Keeper(settings) if member is None and kept(settings) else None
    address = member.config.recorder if member else keeper.address if keeper else None
    recorder = None if address is None else Recorder(address, settings.run_bytes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        tracing = _tracing() if settings.tracing else None
        if tracing is not None:
            telemetry.observers.append(tracing)
        try:
            await (engine.start_ready() if wait_ready else engine.start())
            if keeper is not None:
                keeper.start()
            if member is not None:
                await member.join(telemetry.counted)
            gc.collect()
            gc.freeze()  # exempts the modules loaded so far, torch above all, from every full collection
            gc.set_threshold(20_000, 50, 100)
            yield {TELEMETRY: telemetry}  # for refusals by a connection
        finally:
            await engine.stop()
            if recorder is not None:
                await recorder.close()
            if keeper is not None:
                await keeper.stop()
            if member is not None:
                member.leave()
            if tracing is not None:
                await asyncio.to_thread(tracing.stop)

    app = ServiceApp(
        title="lossd",
        version=__version__,
        summary="Loss as a service: losses, gradients and metrics over HTTP.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        servers=[{"url": settings.root_path or "/"}],
        license_info={"name": "MIT License", "identifier": "MIT"},
    )
    telemetry, fair_share = Telemetry(engine, member, keeper), FairShare(settings.requests_per_key)
    app.evaluate = EvaluateRoute(settings, engine, telemetry, fair_share)
    app.inference = Inference(settings, engine, telemetry, fair_share, member.config.regions if member else None)
    access_log = AccessLog(settings)
    telemetry.observers.append(access_log)
    app.documents = PageLog(AnswerHead(app.inference), access_log)
    app.runs = (
        PageLog(NoRuns(settings, engine, telemetry, fair_share), access_log)
        if recorder is None
        else Entrance(settings, engine, telemetry, fair_share, recorder, access_log)
    )
    app.pages = PageLog(AnswerHead(PageHeaders(CompressedPages(app.framework, MIN_BYTES))), access_log)
    app.include_router(catalogue_router())
    app.include_router(curves_router(engine, settings))
    app.include_router(descents_router(engine, settings))
    app.include_router(operations.router(engine, telemetry))
    mount_docs(app)
    assets = mount_explorer(app)
    mount_problems(app, assets)
    mount_manual(app, assets)
    app.entrance = app.answer
    if (keys := load_keys(settings)) is not None:
        app.entrance = app.access = Access(app.entrance, keys, settings, telemetry)
    if settings.cors_origins:
        app.entrance = _cors(app.entrance, settings.cors_origins)
    app.entrance = Origins.wrap(app.entrance, settings, telemetry)
    if settings.root_path:
        app.entrance = Prefix(app.entrance, settings.root_path)
    # Starlette raises an error again after the handler of Exception, and uvicorn logs it. Handlers of narrower classes
    # prevent that.
    for kind in (Problem, HTTPException, RequestValidationError, OSError, MemoryError, RuntimeError, Exception):
        app.add_exception_handler(kind, _answer_error)
    return app


def _tracing() -> Tracing:
    """Return the tracing. It is imported here, because it is an extra and slow to load."""
    from lossd.api.observability.tracing import Tracing

    return Tracing()


def _cors(app: ASGIApp, origins: str) -> ASGIApp:
    """Return the application with CORS, outside the check of keys: preflights have no key, and pages read refusals."""
    return CORSMiddleware(
        app,
        allow_origins=origins.split(","),
        allow_methods=("GET", "HEAD", "POST", "PUT", "DELETE"),
        allow_headers=(
            "Authorization",
            "Content-Encoding",
            "If-None-Match",
            "Inference-Header-Content-Length",
            "traceparent",
            "tracestate",
            "X-API-Key",
            "X-Request-ID",
            "X-Request-Timeout-Ms",
        ),
        expose_headers=(
            "ETag",
            "Inference-Header-Content-Length",
            "Location",
            "Retry-After",
            "Server-Timing",
            "X-Request-ID",
        ),
    )


async def _answer_error(request: Request, error: Exception) -> Response:
    """Return the problem document of an error in FastAPI's routes."""
    problem = _as_problem(request, error)
    problem.request_id = request_id(request.headers.get("x-request-id", ""))
    if isinstance(problem, InternalError):
        log.error("request %s failed", problem.request_id, exc_info=error)
    headers = {"x-request-id": problem.request_id}
    if problem.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(problem.retry_after_s)))
    if isinstance(error, HTTPException) and error.headers:
        headers |= {name.lower(): value for name, value in error.headers.items()}
    if isinstance(problem, MethodNotAllowed):
        headers["allow"] = problem.allow
    media_type, content = problem_body(request.scope, problem)
    return Response(content, problem.status, headers, media_type=media_type.decode())


def _invalid(error: RequestValidationError) -> InvalidRequest:
    """Return the problem of query parameters, which names each one."""
    faults = []
    for found in error.errors():
        name, message = str(found["loc"][-1]), found["msg"]
        stated = f"{name}: {message[0].lower()}{message[1:]}, found {quoted(found.get('input'))}"
        detail = f"{name} is required" if found["type"] == "missing" else stated
        faults.append(Fault(pointer=f"/{name}", detail=detail))
    return InvalidRequest("; ".join(fault["detail"] for fault in faults), errors=faults)


def _as_problem(request: Request, error: Exception) -> Problem:
    path = request.url.path
    if (short := shortage(error)) is not None:
        return short
    match error:
        case Problem():
            return error
        case HTTPException(status_code=404):
            return NotFound(f"nothing is served at {quoted(path)}; /openapi.json lists all paths")
        case HTTPException(status_code=405):
            return not_allowed(request.method, ((error.headers or {}).get("Allow") or "GET").split(", "))
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            return Problem.from_json({"detail": error.detail, "status": error.status_code})
    return InternalError("the service failed on this request; the log has the details under its request id")
