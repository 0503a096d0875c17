"""Makes an OpenTelemetry span of each request when it is over, so that tracing costs nothing in between.

The setting ``tracing`` loads this module. OpenTelemetry's variables, such as ``OTEL_EXPORTER_OTLP_ENDPOINT`` and
``OTEL_TRACES_SAMPLER``, set where spans go and how many are kept.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

try:
    from opentelemetry import propagate, trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ModuleNotFoundError as missing:
    raise RuntimeError(f"tracing needs {missing.name}: pip install 'lossd[otel]'") from None

from lossd import __version__
from lossd.api.observability.access_log import first_shapes, log_text, run_and_batch, short_path
from lossd.api.observability.telemetry import OK, STAGES

if TYPE_CHECKING:
    from lossd.api.http.request import HttpRequest
    from lossd.engine import Result

__all__ = ["Tracing"]


class Tracing:
    """Makes a span of each request for an evaluation.

    Args:
        provider: Makes the spans; by default the one that this process has set, else one that exports over OTLP.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._exporter: TracerProvider | None = None
        if provider is None:
            provider = trace.get_tracer_provider()
            if isinstance(provider, trace.ProxyTracerProvider):
                provider = self._exporter = _otlp_provider()
        self._tracer = provider.get_tracer("lossd", __version__)

    def stop(self) -> None:
        """Export the spans that are left."""
        if self._exporter is not None:
            self._exporter.shutdown()

    def answered(
        self, request: HttpRequest, result: Result, durations_s: tuple[float, ...], size: int, status: int
    ) -> None:
        """Make a span of an answered request; see :class:`lossd.api.observability.telemetry.Observer`."""
        *stages_s, total_s = durations_s
        span, end_ns = self._span(request, total_s)
        if span.is_recording():
            at_ns = end_ns - _ns(total_s)
            for stage, seconds in zip(STAGES, stages_s, strict=False):
                span.add_event(stage, timestamp=at_ns)
                span.set_attribute(f"lossd.{stage}_ms", seconds * 1e3)
                at_ns += _ns(seconds)
            span.set_attributes({"lossd.batch_requests": result.batch_requests, "http.response.body.size": size})
            _describe(span, request, OK, status)
        span.end(end_ns)

    def refused(self, request: HttpRequest, outcome: str, status: int | None, total_s: float) -> None:
        """Make a span of a refused request."""
        span, end_ns = self._span(request, total_s)
        if span.is_recording():
            _describe(span, request, outcome, status)
            if status is None or status >= 500:
                span.set_attribute("error.type", outcome)
                span.set_status(trace.StatusCode.ERROR)
        span.end(end_ns)

    def _span(self, request: HttpRequest, total_s: float) -> tuple[trace.Span, int]:
        """Return a span that began with the request, below the client's span, and the time of its end."""
        end_ns = time.time_ns()
        scope = request.scope
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        span = self._tracer.start_span(
            f"{scope['method']} {_route(scope['path'])}".rstrip(),
            propagate.extract(carrier),
            trace.SpanKind.SERVER,
            start_time=end_ns - _ns(total_s),
        )
        return span, end_ns


def _otlp_provider() -> TracerProvider:
    defaults = Resource.create({"service.name": "lossd", "service.version": __version__})
    provider = TracerProvider(resource=defaults.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _describe(span: trace.Span, request: HttpRequest, outcome: str, status: int | None) -> None:
    scope = request.scope
    attributes: dict[str, Any] = {
        "http.request.method": scope["method"],
        "http.route": _route(scope["path"]),
        "url.path": short_path(scope["path"]),
        "client.address": scope["client"][0] if scope.get("client") else None,
        "http.request.body.size": request.length,
        "http.response.status_code": status,
        "lossd.request_id": request.request_id,
        "lossd.client": request.client,
        "lossd.loss": request.model,
        "lossd.outcome": outcome,
    }
    attributes |= {f"lossd.{key}": name for key, name in run_and_batch(scope)}
    if (job := request.job) is not None:
        attributes |= {f"lossd.shape.{log_text(name)}": shape for name, shape in first_shapes(job)}
    span.set_attributes({name: value for name, value in attributes.items() if value not in (None, "")})


def _route(path: str) -> str:
    """Return the path with placeholders for its parameters; an empty text if no route has it."""
    match path.split("/"):
        case ["", "v1", "evaluate"]:
            return path
        case ["", "v1", "runs", _, "batches", _]:
            return "/v1/runs/{run}/batches/{batch}"
        case ["", "v2", "models", _, "infer"]:
            return "/v2/models/{name}/infer"
        case ["", "v2", "models", _, "versions", _, "infer"]:
            return "/v2/models/{name}/versions/{version}/infer"
    return ""


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
