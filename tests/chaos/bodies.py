"""Requests to misbehave with: the focal loss of some random scores, as large as it is to be."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np

from lossd_client.wire import Tensor, safetensors

PATH = "/v1/evaluate"
HEADERS = {"Content-Type": safetensors.MEDIA_TYPE}
JSON = {"Content-Type": "application/json"}

SMALL = json.dumps({"loss": {"name": "mse"}, "inputs": {"prediction": [1.0, 2.0], "target": [1.0, 4.0]}}).encode()
"""A small request in JSON; its loss is 2."""


@cache
def focal(rows: int = 64, seed: int = 0) -> bytes:
    """A request's safetensors body: 48 bytes of tensors for each row, and 40 of gradient in its answer."""
    random = np.random.default_rng(seed)
    prediction = random.standard_normal((rows, 10), dtype=np.float32)
    return safetensors_body(
        {"loss": {"name": "focal", "gamma": 2.0}}, prediction=prediction, target=random.integers(0, 10, rows)
    )


def safetensors_body(request: dict[str, Any], **arrays: np.ndarray[Any, Any]) -> bytes:
    tensors = {name: Tensor.of(array) for name, array in arrays.items()}
    return b"".join(bytes(piece) for piece in safetensors.encode(tensors, {"request": json.dumps(request)}))
