"""Metrics without a service: requests as dictionaries of arrays, a view of a batch of them, answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lossd import metrics
from lossd.losses.reduction import Segments
from lossd.request.options import MetricOptions

Array = npt.NDArray[Any]
Request = Mapping[str, Array]

NEEDED: Mapping[str, Any] = {"by": "range", "scale": 2.0}
"""The options that have no default."""


def view(
    requests: Sequence[Request],
    *,
    activation: str = "logits",
    ignore_index: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    device: str = "cpu",
    kernels: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
    **options: Any,
) -> metrics.View:
    """The batch of these requests, as the evaluation would show it to the metrics."""
    joined = {name: torch.from_numpy(np.concatenate([r[name] for r in requests])).to(device) for name in requests[0]}
    weight = joined.pop("sample_weight", None)
    return metrics.View(
        tensors=joined,
        segments=Segments([len(next(iter(r.values()))) for r in requests], device),
        activation=activation,
        sample_weight=weight,
        ignore_index=ignore_index,
        parameters=parameters or {},
        options=MetricOptions(**{**NEEDED, **options}).model_dump(exclude={"names", "task"}),
        kernels=kernels,
    )


def measure(
    task: str, requests: Sequence[Request], names: Sequence[str] | None = None, **of_view: Any
) -> list[dict[str, Any]]:
    """The breakdown of each request of a batch."""
    return metrics.breakdown(task, metrics.resolve(task, names), view(requests, **of_view))[0]


def alike(found: Any, expected: Any, *, within: float = 1e-9, place: str = "") -> None:
    """Fail unless two answers agree: the same form, None where None, numbers within a relative tolerance."""
    if isinstance(expected, Mapping):
        assert isinstance(found, Mapping), place
        assert list(found) == list(expected), place
        for key in expected:
            alike(found[key], expected[key], within=within, place=f"{place}.{key}")
    elif isinstance(expected, list | tuple):
        assert isinstance(found, list), f"{place}: {found!r} is not a list"
        assert len(found) == len(expected), place
        for position, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
            alike(mine, theirs, within=within, place=f"{place}[{position}]")
    elif expected is None or isinstance(expected, str):
        assert found == expected, f"{place}: {found!r} instead of {expected!r}"
    elif math.isnan(expected):
        raise AssertionError(f"{place}: a reference of NaN says nothing")
    else:
        assert isinstance(found, int | float), f"{place}: {found!r} instead of {expected}"
        near = abs(found - expected) <= max(within * abs(expected), 1e-12)
        assert found == expected or near, f"{place}: {found!r} instead of {expected} ± {within} of it"
