"""A valid request for every loss, with every set of parameters that the tables of the losses' tests have."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import torch

from fuzz.mutations import Sent, as_json, as_safetensors
from losses.cases import CASES

__all__ = ["of_every_loss"]


def _single(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.numpy()
    return array.astype(np.float32) if array.dtype == np.float64 else array


@lru_cache(maxsize=1)
def of_every_loss() -> tuple[Sent, ...]:
    """Mostly in JSON, every fourth as safetensors."""
    found = []
    for case in CASES:
        for parameters in case.parameters:
            request = json.loads(json.dumps({"loss": {"name": case.name, **parameters}}))
            tensors = {name: _single(t) for name, t in case.inputs(parameters, n=4).items()}
            if len(found) % 4 == 3:
                found.append(as_safetensors(request, **tensors))
            else:
                found.append(as_json({**request, "inputs": {name: a.tolist() for name, a in tensors.items()}}))
    return tuple(found)
