"""What is measured next to a loss: one family a file, registered by name. See :mod:`lossd.metrics.registry`."""

from __future__ import annotations

from lossd.metrics.registry import (
    METRICS,
    TASKS,
    Metric,
    Task,
    View,
    breakdown,
    check_task,
    inputs,
    metric,
    resolve,
    task,
)

__all__ = ["METRICS", "TASKS", "Metric", "Task", "View", "breakdown", "check_task", "inputs", "metric", "resolve", "task"]
