"""Counts requests for Prometheus, and passes them to observers, when they are over.

The hot path adds to plain numbers. They become Prometheus samples when ``/metrics`` is read.
"""

from __future__ import annotations

import mmap
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

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
from lossd.fronts.counts import Family, family, metric, worker_busy
from lossd_client.wire.oip import VERSION

if TYPE_CHECKING:
    from lossd.api.http.request import HttpRequest
    from lossd.engine import Engine
    from lossd.fronts.member import Member
    from lossd.recorder.keeper import Keeper

__all__ = ["COUNTED_TOGETHER", "DISCONNECTED", "STAGES", "ModelCounts", "Observer", "Telemetry"]

T = TypeVar("T")

OK, DISCONNECTED = "ok", "disconnected"
COUNTED_TOGETHER = 256
_MODELS = "models"  # a family that fronts exchange and ``/metrics`` does not show
STAGES = ("parse", "queue", "copy", "compute", "encode", "total")
BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


# The metrics of Triton's dashboards: name, attribute of ModelCounts, and factor to its unit.
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

    def add(self, durations_s: Sequence[float]) -> None:
        for index, count in Counter(map(partial(bisect_left, BOUNDS_S), durations_s)).items():
            self.counts[index] += count
        self.total += sum(durations_s)

    def add_one(self, duration_s: float) -> None:
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.total += duration_s

    def buckets(self) -> list[tuple[str, float]]:
        return _cumulative([str(bound) for bound in BOUNDS_S], self.counts)


@dataclass(slots=True)
class ModelCounts:
    """The requests for one loss, or for one task's metrics alone; durations are sums, in seconds.

    Attributes:
        success: Requests answered.
        success_s: Their time in all; below, in each stage.
        queue_s: Their time in the queue.
        copy_s: Their time of copies to the device.
        compute_s: Their time of computing.
        encode_s: Their time of encoding the answer.
        fail: Requests answered with a problem.
        fail_s: Their time in all.
        last_s: The time of the last answer, in seconds since 1970.
        executions: Batches, as of the last read.
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
    """Receives every request for an evaluation when it is over."""

    def answered(
        self, request: HttpRequest, result: Result, durations_s: tuple[float, ...], size: int, status: int
    ) -> None:
        """Receive an answered request.

        Args:
            request: The request.
            result: Its result; the tensors are released.
            durations_s: The seconds of each stage, in the order of :data:`STAGES`.
            size: Bytes of the answer.
            status: The answer's status.
        """

    def refused(self, request: HttpRequest, outcome: str, status: int | None, total_s: float) -> None:
        """Receive a refused request.

        Args:
            request: The request.
            outcome: The problem's type, or :data:`DISCONNECTED`.
            status: The answer's status; None if the client left.
            total_s: The request's time in seconds.
        """


class Telemetry(Collector):
    """The counters of one front; it reports the sums of all fronts.

    Args:
        engine: The engine whose queue and batches are reported.
        member: The connection to the parent; None for a single front.
        keeper: Keeps the recorder; None if the service keeps no runs, or the parent keeps it.

    Attributes:
        models: Counts by :func:`lossd.job.model_name`.
        runs: How many runs were created, sealed and deleted.
        batches: How many batches of runs were ``counted``, counted before (``again``), ``refused``, or ended with no
            promise (``unknown``).
        recorder: How long the recorder's answers took.
        observers: Receive each request too.
    """

    def __init__(self, engine: Engine, member: Member | None = None, keeper: Keeper | None = None) -> None:
        self.engine = engine
        self.member = member
        self.keeper = keeper
        self.observers: list[Observer] = []
        self.requests: dict[tuple[str, str, str], int] = {}
        self.stages = {stage: _Histogram() for stage in STAGES}
        self.models: dict[str, ModelCounts] = {}
        self.runs: Counter[str] = Counter()
        self.batches: Counter[str] = Counter()
        self._answered: list[tuple[tuple[str, str], float, tuple[float, ...]]] = []
        self.recorder = _Histogram()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def answered(
        self, request: HttpRequest, result: Result, durations_s: tuple[float, ...], size: int, status: int = 200
    ) -> None:
        """Count an answered request; see :meth:`Observer.answered`."""
        self._answered.append(((request.model, request.client), time.time(), durations_s))
        if len(self._answered) == COUNTED_TOGETHER:
            self._count_answered()
        for observer in self.observers:
            observer.answered(request, result, durations_s, size, status)

    def _count_answered(self) -> None:
        """Count the answered requests that are not counted yet; together they take half the time of one by one."""
        answered, self._answered = self._answered, []
        groups: dict[tuple[str, str], list[tuple[float, ...]]] = {}
        for who, last_s, durations_s in answered:
            groups.setdefault(who, []).append(durations_s)
            self._counts(who[0]).last_s = last_s
        for (model, client), durations in groups.items():
            columns = list(zip(*durations, strict=True))
            for histogram, seconds in zip(self.stages.values(), columns, strict=True):
                histogram.add(seconds)
            counts, (_, queue_s, copy_s, compute_s, encode_s, total_s) = self._counts(model), map(sum, columns)
            counts.success += len(durations)
            counts.success_s += total_s
            counts.queue_s += queue_s
            counts.copy_s += copy_s
            counts.compute_s += compute_s
            counts.encode_s += encode_s
            self._count((model, client, OK), len(durations))

    def refused(self, request: HttpRequest, outcome: str, status: int | None = None) -> None:
        """Count a refused request; see :meth:`Observer.refused`."""
        total_s = time.monotonic() - request.begin
        self._count((request.model, request.client, outcome))
        if request.model:
            counts = self._counts(request.model)
            counts.fail += 1
            counts.fail_s += total_s
        for observer in self.observers:
            observer.refused(request, outcome, status, total_s)

    async def recording(self, asking: Awaitable[T]) -> T:
        """Return the recorder's answer, and measure how long it took."""
        begin = time.monotonic()
        try:
            return await asking
        finally:
            self.recorder.add_one(time.monotonic() - begin)

    def _count(self, key: tuple[str, str, str], times: int = 1) -> None:
        self.requests[key] = self.requests.get(key, 0) + times

    def _counts(self, loss: str) -> ModelCounts:
        counts = self.models.get(loss)
        if counts is None:
            counts = self.models[loss] = ModelCounts()
        return counts

    async def page(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        if self.member is None:
            return generate_latest(self._registry)
        return generate_latest(_FixedCollector([f for f in await self.member.totals() if f["name"] != _MODELS]))

    async def by_model(self) -> dict[str, ModelCounts]:
        """Return the counts of all fronts by :func:`lossd.job.model_name`."""
        if self.member is None:
            return self._with_executions()
        counts: dict[str, ModelCounts] = {}
        (models,) = (family for family in await self.member.totals() if family["name"] == _MODELS)
        for name, labels, value in models["samples"]:
            model = counts.setdefault(labels["model"], ModelCounts())
            setattr(model, name, type(getattr(model, name))(value))
        return counts

    def counted(self) -> list[Family]:
        """Return this front's counters, for the parent."""
        samples = [
            [field.name, {"model": model}, getattr(counts, field.name)]
            for model, counts in self._with_executions().items()
            for field in fields(counts)
        ]
        models = {"name": _MODELS, "type": "unknown", "documentation": "", "samples": samples}
        return [models, *(family(metric) for metric in self._registry.collect())]

    def _with_executions(self) -> dict[str, ModelCounts]:
        self._count_answered()
        for model, count in self.engine.stats.executions.items():
            self._counts(model).executions = count
        return self.models

    def collect(self) -> Iterator[Metric]:
        """Yield all counters as Prometheus families."""
        self._count_answered()
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
        yield from self._of_runs()
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
        yield CounterMetricFamily(
            "lossd_recorder_restarts",
            "Recorders started in place of dead ones.",
            value=0 if self.keeper is None else self.keeper.restarts,
        )
        yield GaugeMetricFamily("lossd_queue_requests", "Requests in progress.", value=engine.in_progress)
        yield GaugeMetricFamily(
            "lossd_queue_bytes", "Bytes that requests in progress hold.", value=engine.budget.held_bytes
        )
        load = engine.load
        yield GaugeMetricFamily(
            "lossd_backlog_seconds",
            "Estimated time until the requests in progress are evaluated.",
            value=load.backlog_s,
        )
        yield CounterMetricFamily(
            "lossd_front_busy_seconds", "CPU time of the event loop, without polling.", value=load.front_busy_s
        )
        yield worker_busy(load.worker_busy_s)
        yield GaugeMetricFamily("lossd_slabs_in_use", "Shared-memory slabs in use.", value=engine.pool.in_use)
        yield GaugeMetricFamily("lossd_ready", "Whether the service is ready.", value=float(engine.ready))
        yield from self._memory()
        yield self._compiled()
        yield from _caches()
        yield InfoMetricFamily("lossd_build", "What is running.", value={"version": __version__})
        yield from self._triton()

    def _of_runs(self) -> Iterator[Metric]:
        """Yield what happened to runs and their batches."""
        runs: dict[tuple[str, ...], int] = {(event,): self.runs[event] for event in ("created", "sealed", "deleted")}
        yield _by("lossd_runs", "Runs created, sealed and deleted.", ("event",), runs)
        outcomes = ("counted", "again", "refused", "unknown")
        batches: dict[tuple[str, ...], int] = {(outcome,): self.batches[outcome] for outcome in outcomes}
        text = "Batches of runs: counted, counted before, refused, or not known to be counted."
        yield _by("lossd_run_batches", text, ("outcome",), batches)
        waits = HistogramMetricFamily("lossd_recorder_seconds", "Time until the recorder answered.")
        waits.add_metric((), self.recorder.buckets(), self.recorder.total)
        yield waits

    def _sums(self, *parts: int) -> dict[tuple[str, ...], int]:
        """Return the number of requests by some parts of their key (loss, client, outcome)."""
        sums: dict[tuple[str, ...], int] = {}
        for key, count in list(self.requests.items()):
            labels = tuple(key[index] for index in parts)
            sums[labels] = sums.get(labels, 0) + count
        return sums

    def _memory(self) -> Iterator[Metric]:
        """Yield the workers' memory. ProcessCollector reports this process's."""
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
        """Return the states of the workers' compiled passes; no samples if there are none."""
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
        """Yield the counters under Triton's names, which lack the suffix ``_total`` of counters."""
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
    """Yield the size, hits and misses of this front's caches."""
    hits = CounterMetricFamily("lossd_cache_hits", "Look-ups in a cache that found an entry.", labels=("cache",))
    misses = CounterMetricFamily("lossd_cache_misses", "Look-ups in a cache that found none.", labels=("cache",))
    nbytes = GaugeMetricFamily("lossd_cache_bytes", "Bytes of a cache's entries.", labels=("cache",))
    for name, cache in CACHES.items():
        hits.add_metric((name,), cache.hits)
        misses.add_metric((name,), cache.misses)
        nbytes.add_metric((name,), cache.nbytes)
    yield from (hits, misses, nbytes)


def _resident_bytes(pid: int) -> int:
    """Return the memory of a process in bytes; 0 if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0


class _FixedCollector(Collector):
    """Families read from the other fronts."""

    def __init__(self, families: list[Family]) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        """Return the metrics."""
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
