"""What the service counts about its requests, and its page for Prometheus.

The hot path adds to plain numbers; they become Prometheus samples only when somebody reads ``/metrics``.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    UntypedMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from lossd.engine import BATCH_SIZES
from lossd_client.wire.oip import VERSION

if TYPE_CHECKING:
    from lossd.engine import Engine

__all__ = ["STAGES", "Counts", "Telemetry"]

STAGES = ("parse", "queue", "copy", "compute", "encode", "total")
BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


# What dashboards made for Triton read: name, attribute of Counts, and its unit.
_TRITON = (
    ("request_success", "success", 1),
    ("request_failure", "fail", 1),
    ("count", "success", 1),
    ("request_duration_us", "success_s", 1e6),
    ("queue_duration_us", "queue_s", 1e6),
    ("compute_input_duration_us", "copy_s", 1e6),
    ("compute_infer_duration_us", "compute_s", 1e6),
    ("compute_output_duration_us", "encode_s", 1e6),
)


class _Histogram:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        return _cumulative([str(bound) for bound in BOUNDS_S], self.counts)


@dataclass(slots=True)
class Counts:
    """The requests for one loss, or for one task's metrics alone; durations are sums, in seconds.

    Attributes:
        success: Requests answered.
        success_s: How long they took as a whole, and below, in each stage.
        queue_s: Waiting.
        copy_s: To the device.
        compute_s: Computing.
        encode_s: Making the answer.
        fail: Requests answered with a problem.
        fail_s: How long those took.
        last_s: When the last one was answered, in seconds since 1970.
    """

    success: int = 0
    success_s: float = 0.0
    queue_s: float = 0.0
    copy_s: float = 0.0
    compute_s: float = 0.0
    encode_s: float = 0.0
    fail: int = 0
    fail_s: float = 0.0
    last_s: float = 0.0


class Telemetry(Collector):
    """Counters of one service.

    Args:
        engine: The engine whose queue and batches are reported.

    Attributes:
        models: Counts by :func:`lossd.job.model_name`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests: dict[tuple[str, str], int] = {}
        self.stages = {stage: _Histogram() for stage in STAGES}
        self.models: dict[str, Counts] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def answered(self, loss: str, durations_s: tuple[float, ...]) -> None:
        """One more request answered; how long its stages took, in the order of :data:`STAGES`."""
        self._count(loss, "ok")
        for histogram, seconds in zip(self.stages.values(), durations_s, strict=True):
            histogram.observe(seconds)
        counts = self._counts(loss)
        _, queue_s, copy_s, compute_s, encode_s, total_s = durations_s
        counts.success += 1
        counts.success_s += total_s
        counts.queue_s += queue_s
        counts.copy_s += copy_s
        counts.compute_s += compute_s
        counts.encode_s += encode_s
        counts.last_s = time.time()

    def refused(self, loss: str, outcome: str, seconds: float) -> None:
        """One more request that was not: the problem's type, or that the client left; and how long it took."""
        self._count(loss, outcome)
        if loss:
            counts = self._counts(loss)
            counts.fail += 1
            counts.fail_s += seconds

    def _count(self, loss: str, outcome: str) -> None:
        key = (loss, outcome)
        self.requests[key] = self.requests.get(key, 0) + 1

    def _counts(self, loss: str) -> Counts:
        counts = self.models.get(loss)
        if counts is None:
            counts = self.models[loss] = Counts()
        return counts

    def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Everything counted, as Prometheus families."""
        requests = CounterMetricFamily("lossd_requests", "Requests answered.", labels=("loss", "outcome"))
        for (loss, outcome), count in list(self.requests.items()):
            requests.add_metric((loss, outcome), count)
        yield requests
        seconds = HistogramMetricFamily(
            "lossd_request_seconds", "Time a request spent in each stage.", labels=("stage",)
        )
        for stage, histogram in self.stages.items():
            seconds.add_metric((stage,), histogram.buckets(), histogram.total)
        yield seconds
        stats, engine = self.engine.stats, self.engine
        sizes = HistogramMetricFamily("lossd_batch_requests", "Requests that shared a batch.")
        buckets = _cumulative([str(size) for size in BATCH_SIZES], [*stats.batch_sizes, 0])
        sizes.add_metric((), buckets, stats.batch_requests)
        yield sizes
        yield CounterMetricFamily("lossd_batch_bytes", "Bytes of the batches evaluated.", value=stats.batch_bytes)
        yield CounterMetricFamily(
            "lossd_worker_restarts", "Workers started in place of dead ones.", value=stats.restarts
        )
        yield GaugeMetricFamily("lossd_queue_requests", "Requests in progress.", value=engine.in_progress)
        yield GaugeMetricFamily(
            "lossd_queue_bytes", "Bytes that requests in progress hold.", value=engine.budget.held_bytes
        )
        yield GaugeMetricFamily("lossd_slabs_in_use", "Shared-memory slabs in use.", value=engine.pool.in_use)
        yield GaugeMetricFamily("lossd_ready", "Whether the service is ready.", value=float(engine.ready))
        yield from self._triton()

    def _triton(self) -> Iterator[Metric]:
        """The same under the names that Triton has for it; those lack the ``_total`` that counters end in."""
        labels = ("model", "version")
        for name, attribute, factor in _TRITON:
            family = UntypedMetricFamily(f"nv_inference_{name}", "As Triton Inference Server counts it.", labels=labels)
            for model, counts in list(self.models.items()):
                family.add_metric((model, VERSION), round(getattr(counts, attribute) * factor))
            yield family
        family = UntypedMetricFamily("nv_inference_exec_count", "Batches, as Triton counts them.", labels=labels)
        for model, count in list(self.engine.stats.executions.items()):
            family.add_metric((model, VERSION), count)
        yield family


def _cumulative(bounds: list[str], counts: list[int]) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip([*bounds, "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
