"""What an operator asks: is it alive, is it ready, how is it doing."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from lossd import __version__
from lossd.api.telemetry import Telemetry
from lossd.engine import Engine
from lossd_client.errors import Unavailable

__all__ = ["router"]

PROMETHEUS = "text/plain; version=1.0.0; charset=utf-8"


def router(engine: Engine, telemetry: Telemetry) -> APIRouter:
    """The routes.

    Args:
        engine: Whose readiness is reported.
        telemetry: Whose counters are shown.
    """
    routes = APIRouter(tags=["operations"])

    @routes.get("/health/live", summary="The process is up")
    async def live() -> dict[str, str]:
        return {"status": "live", "version": __version__}

    @routes.get("/health/ready", summary="A worker is there, and new work is taken")
    async def ready() -> dict[str, str]:
        if not engine.ready:
            raise Unavailable(engine.obstacle, retry_after_s=1.0)
        return {"status": "ready"}

    @routes.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(await telemetry.page(), media_type=PROMETHEUS)

    return routes
