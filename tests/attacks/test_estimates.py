"""What losses and metrics say they take, beside what they took: all of them, at two sizes.

Times are of the processor, and of the quickest of three runs; estimates are made for large requests, and so a fixed
time is allowed for. A small request is mostly that.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from evaluating import Tensors, alone, layout, plan_of
from lossd.losses import REGISTRY
from lossd.metrics import METRICS, TASKS
from losses.cases import CASES
from metrics.measuring import NEEDED
from metrics.tables import TABLES
from rows import each_row

from .test_work import peak_bytes

FACTOR = 6
"""How far an estimate may be off: a machine of another kind, or one that is busy, is by two."""

FIXED_S = 0.01
BLOCK_BYTES = 8 << 20
"""Pairs are compared a block at a time."""

MOST_BYTES_PER_BYTE = 20
"""Temporaries that grow as the tensors do are not stated; docs/security.md says how large they are.

The tensors themselves are counted too.
"""


def single(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def check(request: dict[str, Any], inputs: Tensors, *, compares: bool = False) -> None:
    job = plan_of(request).job(layout(inputs))
    limit_s = FACTOR * job.work_ns / 1e9 + FIXED_S
    begin = time.process_time()
    most = peak_bytes(request, dict(inputs))
    took_s = time.process_time() - begin  # memory is counted meanwhile, which only takes longer
    for _ in range(3):
        if took_s <= limit_s:
            break
        took_s = timed(request, inputs)
    assert took_s <= limit_s
    block_bytes = BLOCK_BYTES if compares else 0
    assert most <= 1.2 * job.cost.scratch_bytes + MOST_BYTES_PER_BYTE * job.nbytes + block_bytes


def timed(request: dict[str, Any], inputs: Tensors) -> float:
    begin = time.process_time()
    alone(request, inputs)
    return time.process_time() - begin


PERCEPTUAL_ROWS = (1, 4)


@each_row(pytest.param(case, larger, id=f"{case}-{larger}") for case in CASES for larger in (False, True))
def test_a_loss_takes_what_it_says(case: Any, larger: bool) -> None:
    kind, pairs = REGISTRY[case.name].kind, REGISTRY[case.name].pairs
    parameters = case.parameters[0]
    few, many = PERCEPTUAL_ROWS if case.name == "perceptual" else (50, 400) if pairs else (500, 8000)
    draws = many if larger and kind != "rows" else few
    inputs = single(case.inputs(parameters, n=draws))
    if "label" in inputs:  # the table has seven
        inputs["label"] = inputs["label"].repeat(draws)[:draws]
    if larger and kind == "rows" and not pairs:
        inputs = {name: torch.cat([tensor] * (many // few)) for name, tensor in inputs.items()}
    check({"outputs": ["loss", "gradient"], "loss": {"name": case.name, **parameters}}, inputs, compares=bool(pairs))


@cache
def large_request(task: str) -> Tensors:
    """The inputs of the task's table, repeated until they are many."""
    request = next(iter(next(table for table in TABLES if table.task == task).requests(0)))[1]
    size = sum(np.asarray(array).nbytes for array in request.values())
    copies = max(1, (30_000 if TASKS[task].compares else 256 << 10) // size)
    return single({n: torch.from_numpy(np.concatenate([np.asarray(array)] * copies)) for n, array in request.items()})


METRICS_OF_TASKS = [
    pytest.param(task, name, id=f"{task}-{name}")
    for task in dict.fromkeys(table.task for table in TABLES)
    for name in (None, *METRICS[task])
]


@each_row(METRICS_OF_TASKS)
def test_a_metric_takes_what_it_says(task: str, name: str | None) -> None:
    inputs = large_request(task)
    metrics: dict[str, Any] = {"names": [name], **NEEDED} if name else {}
    if name == "top_k_accuracy":
        metrics["k"] = 2
    check({"outputs": ["metrics"], "task": task, "metrics": metrics}, inputs, compares=TASKS[task].compares)


def test_a_small_body_of_long_sequences_is_not_small_work() -> None:
    """32 KB: T steps of S labels are T (2 S + 1) places, each with a time and a memory of its own."""
    inputs = {
        "prediction": torch.zeros(2000, 1, 3).log_softmax(2),
        "target": torch.ones(1, 999, dtype=torch.int64),
        "input_lengths": torch.tensor([2000]),
        "target_lengths": torch.tensor([999]),
    }
    request = {"outputs": ["loss", "gradient"], "loss": {"name": "ctc"}}
    cost = plan_of(request).job(layout(inputs)).cost
    assert cost.scratch_bytes >= 2000 * 1999 * 8
    check(request, inputs)
