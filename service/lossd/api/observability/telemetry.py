"""What is known of a request when it is over: counted for Prometheus here, and handed on to whoever else observes.

The hot path adds to plain numbers; they become Prometheus samples only when somebody reads ``/metrics``.
"""

from __future__ import annotations

import mmap
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    UntypedMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from lossd import __version__
from lossd.caches import CACHES
from lossd.engine import BATCH_BYTES, BATCH_SIZES, Result
from lossd.fronts.counts import Family, family, metric
from lossd_client.wire.oip import VERSION

if TYPE_CHECKING:
    from lossd.api.http.request import HttpRequest
    from lossd.engine import Engine
    from lossd.fronts.member import Member

__all__ = ["DISCONNECTED", "STAGES", "Counts", "Observer", "Telemetry"]

OK, DISCONNECTED = "ok", "disconnected"
_MODELS = "models"  # a family that fronts tell each other, and that is not shown
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
        executions: Batches, as far as somebody asked.
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
    executions: int = 0


class Observer(Protocol):
    """Who is told of every request for an evaluation when it is over."""

    def answered(self, request: HttpRequest, result: Result, durations_s: tuple[float, ...], size: int) -> None:
        """It was answered.

        Args:
            request: The request.
            result: Its answer, whose tensors were let go.
            durations_s: How long its stages took, in the order of :data:`STAGES`.
            size: Bytes of the answer.
        """

    def refused(self, request: HttpRequest, outcome: str, status: int | None, total_s: float) -> None:
        """It was not.

        Args:
            request: The request.
            outcome: The problem's type, or :data:`DISCONNECTED`.
            status: Of the answer; None where there was nobody left to answer.
            total_s: How long that took.
        """


class Telemetry(Collector):
    """Counters of one front; what it shows is what all fronts of the service have counted.

    Args:
        engine: The engine whose queue and batches are reported.
        member: Its place among several fronts, if there are several.

    Attributes:
        models: Counts by :func:`lossd.job.model_name`.
        observers: Who else is told.
    """

    def __init__(self, engine: Engine, member: Member | None = None) -> None:
        self.engine = engine
        self.member = member
        self.observers: list[Observer] = []
        self.requests: dict[tuple[str, str, str], int] = {}
        self.stages = {stage: _Histogram() for stage in STAGES}
        self.models: dict[str, Counts] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def answered(self, request: HttpRequest, result: Result, durations_s: tuple[float, ...], size: int) -> None:
        """One more request answered; see :meth:`Observer.answered`."""
        self._count(request, OK)
        for histogram, seconds in zip(self.stages.values(), durations_s, strict=True):
            histogram.counts[bisect_left(BOUNDS_S, seconds)] += 1
            histogram.total += seconds
        counts = self._counts(request.model)
        _, queue_s, copy_s, compute_s, encode_s, total_s = durations_s
        counts.success += 1
        counts.success_s += total_s
        counts.queue_s += queue_s
        counts.copy_s += copy_s
        counts.compute_s += compute_s
        counts.encode_s += encode_s
        counts.last_s = time.time()
        for observer in self.observers:
            observer.answered(request, result, durations_s, size)

    def refused(self, request: HttpRequest, outcome: str, status: int | None = None) -> None:
        """One more request that was not; see :meth:`Observer.refused`."""
        total_s = time.monotonic() - request.begin
        self._count(request, outcome)
        if request.model:
            counts = self._counts(request.model)
            counts.fail += 1
            counts.fail_s += total_s
        for observer in self.observers:
            observer.refused(request, outcome, status, total_s)

    def _count(self, request: HttpRequest, outcome: str) -> None:
        key = (request.model, request.client, outcome)
        self.requests[key] = self.requests.get(key, 0) + 1

    def _counts(self, loss: str) -> Counts:
        counts = self.models.get(loss)
        if counts is None:
            counts = self.models[loss] = Counts()
        return counts

    async def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        if self.member is None:
            return generate_latest(self._registry)
        return generate_latest(_Read([f for f in await self.member.totals() if f["name"] != _MODELS]))

    async def by_model(self) -> dict[str, Counts]:
        """Counts by :func:`lossd.job.model_name`."""
        if self.member is None:
            return self._with_executions()
        counts: dict[str, Counts] = {}
        (models,) = (family for family in await self.member.totals() if family["name"] == _MODELS)
        for name, labels, value in models["samples"]:
            of_model = counts.setdefault(labels["model"], Counts())
            setattr(of_model, name, type(getattr(of_model, name))(value))
        return counts

    def counted(self) -> list[Family]:
        """What this front has counted, for the others."""
        samples = [
            [field.name, {"model": model}, getattr(counts, field.name)]
            for model, counts in self._with_executions().items()
            for field in fields(counts)
        ]
        models = {"name": _MODELS, "type": "unknown", "documentation": "", "samples": samples}
        return [models, *(family(metric) for metric in self._registry.collect())]

    def _with_executions(self) -> dict[str, Counts]:
        for model, count in self.engine.stats.executions.items():
            self._counts(model).executions = count
        return self.models

    def collect(self) -> Iterator[Metric]:
        """Everything counted, as Prometheus families."""
        yield _by("lossd_requests", "Requests for an evaluation, by loss.", ("loss", "outcome"), self._sums(0, 2))
        yield _by(
            "lossd_client_requests", "The same, by the name of the API key.", ("client", "outcome"), self._sums(1, 2)
        )
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
        weights = HistogramMetricFamily("lossd_batch_bytes", "Bytes of a batch, inputs and answers.")
        weights.add_metric((), _cumulative([str(size) for size in BATCH_BYTES], stats.batch_weights), stats.batch_bytes)
        yield weights
        yield CounterMetricFamily(
            "lossd_worker_restarts", "Workers started in place of dead ones.", value=stats.restarts
        )
        yield GaugeMetricFamily("lossd_queue_requests", "Requests in progress.", value=engine.in_progress)
        yield GaugeMetricFamily(
            "lossd_queue_bytes", "Bytes that requests in progress hold.", value=engine.budget.held_bytes
        )
        yield GaugeMetricFamily("lossd_slabs_in_use", "Shared-memory slabs in use.", value=engine.pool.in_use)
        yield GaugeMetricFamily("lossd_ready", "Whether the service is ready.", value=float(engine.ready))
        yield from self._memory()
        yield self._compiled()
        yield from _caches()
        yield InfoMetricFamily("lossd_build", "What is running.", value={"version": __version__})
        yield from self._triton()

    def _sums(self, *parts: int) -> dict[tuple[str, ...], int]:
        """How many requests there were, by some parts of what they are counted under."""
        sums: dict[tuple[str, ...], int] = {}
        for key, count in list(self.requests.items()):
            part = tuple(key[index] for index in parts)
            sums[part] = sums.get(part, 0) + count
        return sums

    def _memory(self) -> Iterator[Metric]:
        """The workers' memory; this process's own is ProcessCollector's."""
        labels = ("worker", "device")
        resident = GaugeMetricFamily("lossd_worker_resident_bytes", "Main memory of a worker process.", labels=labels)
        device = GaugeMetricFamily(
            "lossd_device_memory_bytes",
            "Memory of a worker's GPU: reserved by the worker, free, and total.",
            labels=(*labels, "state"),
        )
        for index, vitals in enumerate(self.engine.vitals):
            names = (str(index), vitals.device)
            if vitals.pid is not None and (size := _resident_bytes(vitals.pid)):
                resident.add_metric(names, size)
            for state, size in zip(("reserved", "free", "total"), vitals.device_memory or (), strict=False):
                device.add_metric((*names, state), size)
        yield resident
        yield device

    def _compiled(self) -> Metric:
        """How far the workers' compiled passes are; no samples where there are to be none."""
        passes = GaugeMetricFamily(
            "lossd_compiled_passes",
            "Compiled passes of a CPU worker: ready, pending while they are compiled, and failed.",
            labels=("worker", "device", "state"),
        )
        for index, vitals in enumerate(self.engine.vitals):
            ready, failed, total = vitals.compiled
            if total:
                for state, count in (("ready", ready), ("pending", total - ready - failed), ("failed", failed)):
                    passes.add_metric((str(index), vitals.device, state), count)
        return passes

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


def _caches() -> Iterator[Metric]:
    """Yield what the caches of this front hold, and how often they were asked."""
    hits = CounterMetricFamily("lossd_cache_hits", "Look-ups in a cache that found an entry.", labels=("cache",))
    misses = CounterMetricFamily("lossd_cache_misses", "Look-ups in a cache that found none.", labels=("cache",))
    nbytes = GaugeMetricFamily("lossd_cache_bytes", "Bytes of a cache's entries.", labels=("cache",))
    for name, cache in CACHES.items():
        hits.add_metric((name,), cache.hits)
        misses.add_metric((name,), cache.misses)
        nbytes.add_metric((name,), cache.nbytes)
    yield from (hits, misses, nbytes)


def _resident_bytes(pid: int) -> int:
    """Memory of a process; 0 where it has just ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0


class _Read(Collector):
    """Families that others counted."""

    def __init__(self, families: list[Family]) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        """Them."""
        return map(metric, self.families)


def _by(name: str, text: str, labels: tuple[str, ...], counts: dict[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _cumulative(bounds: list[str], counts: list[int]) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip([*bounds, "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
