"""Health checks and ``/metrics``."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, Field

from lossd import __version__
from lossd.api.observability.telemetry import Telemetry
from lossd.engine import Engine
from lossd_client.errors import Unavailable

__all__ = ["router"]

PROMETHEUS = "text/plain; version=1.0.0; charset=utf-8"


class Compiled(BaseModel):
    """The state of the compiled passes. Requests without a compiled pass are evaluated too, more slowly."""

    ready: int = Field(description="Passes that are in use.")
    failed: int = Field(description="Passes that cannot be compiled on this machine; the log says why.")
    total: int = Field(description="All passes of all CPU workers; 0 if none are to be compiled.")


class Ready(BaseModel):
    """A worker is ready."""

    status: Literal["ready"]
    compiled: Compiled


def router(engine: Engine, telemetry: Telemetry) -> APIRouter:
    """Return the routes.

    Args:
        engine: Reports whether it is ready.
        telemetry: Holds the counters.
    """
    routes = APIRouter(tags=["operations"])

    @routes.get("/health/live", summary="Check that the process is running")
    async def live() -> dict[str, str]:
        return {"status": "live", "version": __version__}

    @routes.get("/health/ready", summary="Check that a worker is ready and new work is accepted")
    async def ready() -> Ready:
        if not engine.ready:
            raise Unavailable(engine.obstacle, retry_after_s=1.0)
        done, failed, total = engine.compiled
        return Ready(status="ready", compiled=Compiled(ready=done, failed=failed, total=total))

    @routes.get("/metrics", summary="Get the counters for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(await telemetry.page(), media_type=PROMETHEUS)

    return routes
