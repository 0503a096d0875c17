"""What was counted, added up over fronts: samples of Prometheus as JSON.

Nothing here knows what is counted. A family's type says how its samples add up: what only grows is a sum, and so are
most gauges, for each front holds its own share of what they measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client.metrics_core import Metric

__all__ = ["Family", "cumulative", "family", "merged", "metric"]

Family = dict[str, Any]
"""A family: name, type, documentation, and samples of name, labels and value."""

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


def family(metric: Metric) -> Family:
    """A family as Prometheus's library has it, as JSON."""
    samples = [[sample.name, dict(sample.labels), sample.value] for sample in metric.samples]
    return {"name": metric.name, "type": metric.type, "documentation": metric.documentation, "samples": samples}


def metric(family: Family) -> Metric:
    """The way back."""
    metric = Metric(family["name"], family["documentation"], family["type"])
    for name, labels, value in family["samples"]:
        metric.add_sample(name, labels, value)
    return metric


def merged(counted: Iterable[Sequence[Family]]) -> list[Family]:
    """What several have counted, as one."""
    families: dict[str, Family] = {}
    samples: dict[str, dict[tuple[Any, ...], list[Any]]] = {}
    for one in counted:
        for family in one:
            name = family["name"]
            families.setdefault(name, family)
            together = samples.setdefault(name, {})
            for of, labels, value in family["samples"]:
                key = (of, *sorted(labels.items()))
                known = together.get(key)
                if known is None:
                    together[key] = [of, labels, float(value)]
                else:
                    known[2] = _NOT_SUMS.get(of, float.__add__)(known[2], float(value))
    return [{**family, "samples": list(samples[name].values())} for name, family in families.items()]


def cumulative(counted: Sequence[Family]) -> list[Family]:
    """What stays counted of a front that is gone: a counter that fell would be taken for a new start of all."""
    return [family for family in counted if family["type"] in _GROWING]
