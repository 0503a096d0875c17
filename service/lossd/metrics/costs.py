"""What a task's metrics cost beyond reading the tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lossd.cost import Cost
from lossd.metrics.registry import METRICS, TASKS

__all__ = ["byte_ns", "cost", "costs", "pairs"]

SCORE_BYTES, SORTED_NS, COMPARED_NS = 64, 300, 100
"""Measured on one core: the bytes and nanoseconds of a sorted score, and the nanoseconds of a compared pair."""

COUNTED_BYTES, COUNTED_NS = 512, 400
"""Measured on one core: the bytes and nanoseconds of the counts of a class and of the ratios of these."""


def pairs(task_name: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many pairs of entries a task's metrics compare, if there are more pairs than entries."""
    return TASKS[task_name].compared(shapes)


def cost(
    task_name: str, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], predicted_classes: int | None = None
) -> Cost:
    """Return the cost of a task's metrics beyond reading the tensors.

    Args:
        task_name: The task.
        names: The metrics' names.
        shapes: The shapes of the tensors.
        predicted_classes: The number of classes of which predictions are indices: no tensor's size tells it. None if
            they are none.
    """
    if predicted_classes is not None:
        return Cost(COUNTED_BYTES * predicted_classes, COUNTED_NS * predicted_classes)
    sorts = sum(METRICS[task_name][name].sorts for name in names)
    if TASKS[task_name].sorts_once:
        sorts = min(sorts, 1)
    compared, scores = TASKS[task_name].compared(shapes), max(math.prod(shape) for shape in shapes.values())
    return Cost(bool(sorts) * SCORE_BYTES * scores, COMPARED_NS * compared + sorts * SORTED_NS * scores)


def byte_ns(task_name: str, names: Sequence[str]) -> float:
    """Return about how many nanoseconds a task's metrics take for each byte of the tensors."""
    return max((METRICS[task_name][name].byte_ns for name in names), default=0.0)


def costs(task_name: str, names: Sequence[str]) -> bool:
    """Return whether a task's metrics take more than reading the tensors."""
    return TASKS[task_name].compares or any(METRICS[task_name][name].sorts for name in names)
