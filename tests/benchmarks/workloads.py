"""What is asked: focal loss with its gradient and the default metrics, small, medium and large, and a mixture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossd_client.wire import Tensor, safetensors

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Workload:
    """Requests of one kind, and how many at a time they are sent.

    Attributes:
        name: How the table calls it.
        requests: Each the request's JSON object and its tensors; sent in turn.
        connections: The numbers of connections it is measured at.
    """

    name: str
    requests: Sequence[tuple[Mapping[str, Any], Arrays]]
    connections: tuple[int, ...]

    @property
    def large(self) -> bool:
        """Whether one request takes long enough that a round counts requests, not seconds."""
        return max(a.nbytes for _, arrays in self.requests for a in arrays.values()) > 1 << 24


def _focal(shape: tuple[int, ...]) -> tuple[Mapping[str, Any], Arrays]:
    random = np.random.default_rng(0)
    logits = random.standard_normal(shape, dtype=np.float32)
    target = random.integers(0, shape[1], (shape[0], *shape[2:]), dtype=np.int64)
    return {"loss": {"name": "focal", "gamma": 2.0}}, {"prediction": logits, "target": target}


def _mixture() -> list[tuple[Mapping[str, Any], Arrays]]:
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
    requests = []
    for index in range(20 * len(kinds)):
        name, parameter, inputs = kinds[index % len(kinds)]
        parameters = {parameter: round(float(random.uniform(0.05, 0.95)), 3)} if parameter else {}
        requests.append(({"loss": {"name": name, **parameters}}, inputs(int(random.integers(1, 257)))))
    return requests


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "S": lambda: Workload("S", [_focal((64, 10))], (1, 16, 64)),
    "M": lambda: Workload("M", [_focal((4096, 21))], (1, 8)),
    "L": lambda: Workload("L", [_focal((1, 21, 1024, 1024))], (1, 2)),
    "X": lambda: Workload("X", _mixture(), (64,)),
}
"""Each workload by its letter; built when it is measured, since L is 97 MB."""


def safetensors_body(request: Mapping[str, Any], arrays: Arrays) -> bytes:
    """A request as lossd reads it, as one piece."""
    tensors = {name: Tensor.of(array) for name, array in arrays.items()}
    return b"".join(safetensors.encode(tensors, {"request": json.dumps(request)}))
