"""What is asked: a loss, its gradient and the metrics of its task, small, medium and large, and a mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.dialects import Arrays, Question

MIXED_REQUESTS = 2000
"""No two alike, and more of them than any cache keeps: whoever shares a service meets strangers."""


@dataclass(frozen=True)
class Workload:
    """Requests of one kind, and how many at a time they are sent.

    Attributes:
        name: How the table calls it.
        requests: Each the request's JSON object and its tensors; sent in turn.
        connections: The numbers of connections it is measured at.
    """

    name: str
    requests: Sequence[Question]
    connections: tuple[int, ...]


def focal(shape: tuple[int, ...]) -> Question:
    """The focal loss (γ = 2, the default everywhere) of standard normal scores, classes along axis 1."""
    random = np.random.default_rng(0)
    logits = random.standard_normal(shape, dtype=np.float32)
    target = random.integers(0, shape[1], (shape[0], *shape[2:]), dtype=np.int64)
    return {"loss": {"name": "focal"}}, {"prediction": logits, "target": target}


def mixture() -> list[Question]:
    """What a shared service sees: ten losses, parameters and sizes that differ from request to request."""
    random = np.random.default_rng(1)
    classes = 10

    def scores(rows: int) -> Arrays:
        target = random.integers(0, classes, rows, dtype=np.int64)
        return {"prediction": random.standard_normal((rows, classes), dtype=np.float32), "target": target}

    def values(rows: int) -> Arrays:
        shape = (rows, classes)
        return {name: random.standard_normal(shape, dtype=np.float32) for name in ("prediction", "target")}

    def labels(rows: int) -> Arrays:
        shape = (rows, classes)
        target = random.integers(0, 2, shape).astype(np.float32)
        return {"prediction": random.standard_normal(shape, dtype=np.float32), "target": target}

    kinds: list[tuple[str, str | None, Callable[[int], Arrays]]] = [
        ("mse", None, values),
        ("mae", None, values),
        ("huber", "delta", values),
        ("smooth_l1", "beta", values),
        ("log_cosh", None, values),
        ("quantile", "q", values),
        ("cross_entropy", "label_smoothing", scores),
        ("focal", "gamma", scores),
        ("bce_with_logits", None, labels),
        ("sigmoid_focal", "gamma", labels),
    ]
    requests: list[Question] = []
    for index in range(MIXED_REQUESTS):
        name, parameter, inputs = kinds[index % len(kinds)]
        parameters = {parameter: round(float(random.uniform(0.05, 0.95)), 3)} if parameter else {}
        requests.append(({"loss": {"name": name, **parameters}}, inputs(int(random.integers(1, 257)))))
    return requests


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "S": lambda: Workload("S", [focal((64, 10))], (1, 16, 64)),
    "M": lambda: Workload("M", [focal((4096, 21))], (1, 8)),
    "L": lambda: Workload("L", [focal((1, 21, 1024, 1024))], (1, 2)),
    "X": lambda: Workload("X", mixture(), (64,)),
}
"""Each workload by its letter; built when it is measured, since L is 97 MB."""
