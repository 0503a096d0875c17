"""What is measured next to a loss: one family a file, registered by name. See :mod:`lossd.metrics.registry`."""

from __future__ import annotations

from lossd.metrics import binary, calibration, classes, counts, ranking, regression
from lossd.metrics.registry import (
    METRICS,
    TASKS,
    Metric,
    Task,
    View,
    breakdown,
    check_options,
    check_task,
    describe,
    inputs,
    metric,
    resolve,
    task,
)

__all__ = [
    "METRICS",
    "TASKS",
    "Metric",
    "Task",
    "View",
    "binary",
    "breakdown",
    "calibration",
    "check_options",
    "check_task",
    "classes",
    "counts",
    "describe",
    "inputs",
    "metric",
    "ranking",
    "regression",
    "resolve",
    "task",
]
