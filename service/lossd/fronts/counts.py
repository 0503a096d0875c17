"""Adds up the counters of several fronts: Prometheus families as JSON.

A family's type decides how its samples add up. Counters and histograms are summed. Most gauges are summed too, because
each front measures its part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, Metric

__all__ = ["Family", "cumulative", "family", "merge", "metric", "worker_busy"]

Family = dict[str, Any]
"""A Prometheus family: name, type, documentation, and samples of name, labels and value."""

_GROWING = ("counter", "histogram", "unknown")
_NOT_SUMS: dict[str, Callable[[float, float], float]] = {
    "lossd_ready": min,
    "process_start_time_seconds": min,
    "process_max_fds": min,
    "python_info": max,
    "lossd_build_info": max,
    "last_s": max,
    # Every front sees the same workers.
    "lossd_worker_resident_bytes": max,
    "lossd_device_memory_bytes": max,
    "lossd_compiled_passes": max,
}


def worker_busy(seconds: Mapping[int, float]) -> Metric:
    """Return the counter of workers' busy time. The process that keeps a worker reports it.

    Args:
        seconds: The time of each worker, by its index.
    """
    busy = CounterMetricFamily("lossd_worker_busy_seconds", "Time that a worker had work.", labels=("worker",))
    for index, value in seconds.items():
        busy.add_metric((str(index),), value)
    return busy


def family(metric: Metric) -> Family:
    """Return the JSON form of a metric of Prometheus's library."""
    samples = [[sample.name, dict(sample.labels), sample.value] for sample in metric.samples]
    return {"name": metric.name, "type": metric.type, "documentation": metric.documentation, "samples": samples}


def metric(family: Family) -> Metric:
    """Return the metric of a family in JSON form."""
    metric = Metric(family["name"], family["documentation"], family["type"])
    for name, labels, value in family["samples"]:
        metric.add_sample(name, labels, value)
    return metric


def merge(counted: Iterable[Sequence[Family]]) -> list[Family]:
    """Return the families of several fronts, added up."""
    families: dict[str, Family] = {}
    samples: dict[str, dict[tuple[Any, ...], list[Any]]] = {}
    for front in counted:
        for family in front:
            name = family["name"]
            families.setdefault(name, family)
            merged = samples.setdefault(name, {})
            for sample, labels, value in family["samples"]:
                key = (sample, *sorted(labels.items()))
                entry = merged.get(key)
                if entry is None:
                    merged[key] = [sample, labels, float(value)]
                else:
                    entry[2] = _NOT_SUMS.get(sample, float.__add__)(entry[2], float(value))
    return [{**family, "samples": list(samples[name].values())} for name, family in families.items()]


def cumulative(counted: Sequence[Family]) -> list[Family]:
    """Return the families that outlive their front: Prometheus takes a falling counter for a restart of all."""
    return [family for family in counted if family["type"] in _GROWING]
