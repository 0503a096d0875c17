"""Spans: one for each request of a sampled trace, with its stages; none without the setting."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from lossd.configuration.keys import fresh_key
from serving import Running, command, running

KEY = fresh_key()
MSE = {"loss": {"name": "mse"}, "inputs": {"prediction": [271.828125, 0.25], "target": [3.0, 0.5]}}
OIP = {"inputs": [{"name": n, "shape": [1], "datatype": "FP32", "data": [1]} for n in ("prediction", "target")]}
TRACE, PARENT = "ab" * 16, "cd" * 8
STAGES = ["parse", "queue", "copy", "compute", "encode"]


@pytest.fixture(scope="module")
def spans() -> Iterator[InMemorySpanExporter]:
    """Whoever embeds the service has set a provider of their own; its spans stay in memory."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "get_tracer_provider", lambda: provider)
        yield exporter


@pytest.fixture(scope="module")
def traced(spans: InMemorySpanExporter) -> Iterator[Running]:
    with running(engine="inline", api_key=KEY, tracing=True) as service:
        yield service


@pytest.fixture
def http(traced: Running, spans: InMemorySpanExporter) -> Iterator[httpx.Client]:
    spans.clear()
    headers = {"X-API-Key": KEY, "X-Request-ID": "mine"}
    with httpx.Client(base_url=traced.url, headers=headers, timeout=30) as http:
        yield http


def one(spans: InMemorySpanExporter) -> ReadableSpan:
    """The span there is; it is made just after the answer has arrived."""
    for _ in range(500):
        if found := spans.get_finished_spans():
            (span,) = found
            return span
        time.sleep(0.01)
    raise AssertionError("no span")


def traceparent(*, sampled: bool) -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{PARENT}-{int(sampled):02}"}


def test_an_answered_request_is_a_span_under_the_client_s(http: httpx.Client, spans: InMemorySpanExporter) -> None:
    before_ns = time.time_ns()
    assert http.post("/v1/evaluate", json=MSE, headers=traceparent(sampled=True)).is_success
    span = one(spans)
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert (span.name, span.kind, span.status.status_code) == ("POST /v1/evaluate", SpanKind.SERVER, StatusCode.UNSET)
    attributes = dict(span.attributes or {})
    stages_ms = [attributes.pop(f"lossd.{stage}_ms") for stage in STAGES]
    assert attributes.pop("http.response.body.size") > 100
    assert attributes.pop("http.request.body.size") > 50
    assert attributes == {
        "http.request.method": "POST", "http.route": "/v1/evaluate", "url.path": "/v1/evaluate",
        "client.address": "127.0.0.1", "http.response.status_code": 200, "lossd.request_id": "mine",
        "lossd.client": "default", "lossd.loss": "mse", "lossd.outcome": "ok", "lossd.batch_requests": 1,
        "lossd.shape.prediction": (2,), "lossd.shape.target": (2,),
    }  # fmt: skip
    assert span.start_time is not None
    assert span.end_time is not None
    assert before_ns - 5e6 < span.start_time < span.end_time <= time.time_ns()
    assert [event.name for event in span.events] == STAGES
    times = [event.timestamp for event in span.events]
    assert times[0] == span.start_time
    assert times == sorted(times)
    assert times[-1] < span.end_time
    assert [round((b - a) / 1e6, 4) for a, b in itertools.pairwise(times)] == [
        pytest.approx(ms, abs=1e-3) for ms in stages_ms[:-1]
    ]


def test_the_client_decides_what_is_kept(http: httpx.Client, spans: InMemorySpanExporter) -> None:
    assert http.post("/v1/evaluate", json=MSE, headers=traceparent(sampled=False)).is_success
    assert http.post("/v1/evaluate", json=MSE, headers={"traceparent": "not one"}).is_success
    span = one(spans)
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE


def test_v2_is_one_route_whatever_the_model(http: httpx.Client, spans: InMemorySpanExporter) -> None:
    assert http.post("/v2/models/mse/versions/1/infer", json=OIP).is_success
    span = one(spans)
    assert span.name == "POST /v2/models/{name}/versions/{version}/infer"
    assert span.attributes is not None
    assert span.attributes["url.path"] == "/v2/models/mse/versions/1/infer"
    assert span.attributes["lossd.loss"] == "mse"


@pytest.mark.parametrize(
    ("path", "headers", "status", "outcome"),
    [
        ("/v1/evaluate", {}, 422, "invalid-request"),
        ("/v2/models/nothing/infer", {}, 404, "not-found"),
        ("/v1/losses", {"X-API-Key": "none"}, 401, "unauthorized"),
    ],
)
def test_a_problem_is_a_span_but_no_error_of_the_service(
    path: str, headers: dict[str, str], status: int, outcome: str, http: httpx.Client, spans: InMemorySpanExporter
) -> None:
    assert http.post(path, json={}, headers=headers).status_code == status
    span = one(spans)
    assert span.attributes is not None
    assert (span.attributes["http.response.status_code"], span.attributes["lossd.outcome"]) == (status, outcome)
    assert span.status.status_code == StatusCode.UNSET
    assert span.name == {401: "POST", 404: "POST /v2/models/{name}/infer", 422: "POST /v1/evaluate"}[status]


def test_a_fault_of_the_service_is_an_error(
    traced: Running, http: httpx.Client, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traced.engine, "draining", True)
    assert http.post("/v1/evaluate", json=MSE).status_code == 503
    span = one(spans)
    assert span.status.status_code == StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "unavailable"


def test_no_value_and_no_key_is_in_a_span(http: httpx.Client, spans: InMemorySpanExporter) -> None:
    http.post("/v1/evaluate", json=MSE)
    text = one(spans).to_json()
    assert KEY not in text
    assert "271.828125" not in text


def test_without_the_setting_it_is_not_even_loaded() -> None:
    script = "import sys; from lossd.api import create_app; from lossd.configuration.settings import Settings; "
    script += (
        "create_app(Settings(engine='inline')); print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)  # forked, it would have what tests import
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


def test_spans_are_exported_where_opentelemetry_s_variables_say() -> None:
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
        }
        with command("--tracing=true", **variables) as (url, process, _):
            assert httpx.post(f"{url}/v1/evaluate", json=MSE, headers=traceparent(sampled=True)).is_success
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, "and what was held is exported before the end"
        collector.shutdown()
    (resource,) = (resource for request in received for resource in request.resource_spans)
    attributes = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert (attributes["service.name"], attributes["deployment.environment"]) == ("lossd", "test")
    (span,) = (span for scope in resource.scope_spans for span in scope.spans)
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("POST /v1/evaluate", TRACE, PARENT)


def test_a_batch_of_a_run_has_its_names_and_its_status(http: httpx.Client, spans: InMemorySpanExporter) -> None:
    run = f"/v1/runs/{'r' * 100}"
    http.put(run, json={"task": "regression", "metrics": ["mae"]})
    inputs = {"prediction": [271.828125], "target": [3.0]}
    assert http.put(f"{run}/batches/part-7", json={"inputs": inputs}).status_code == 201
    span = one(spans)
    assert span.name == "PUT /v1/runs/{run}/batches/{batch}"
    assert span.attributes is not None
    assert span.attributes["lossd.run"] == "r" * 60 + "..."
    assert span.attributes["lossd.batch"] == "part-7"
    assert span.attributes["http.response.status_code"] == 201
