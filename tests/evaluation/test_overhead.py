"""What the evaluation of one small request costs besides its arithmetic: the Python functions that it enters.

Each takes about 1 µs, and a client that sends one request at a time waits for all of them. A count of calls is the same
on every machine, busy or not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import pytest
import torch

from evaluating import Tensors, layout
from lossd.arrangement import arrange
from lossd.compiled.passes import Passes
from lossd.evaluation.in_memory import evaluate_in_memory
from lossd.request.planning import make_plan

DECISIONS = ["accuracy", "precision", "recall", "f1", "iou", "confusion_matrix"]
CPU = torch.device("cpu")


def entered(request: Mapping[str, Any], tensors: Tensors, passes: Passes) -> int:
    """The number of Python functions that a worker enters for a request whose recipe it knows."""
    job = make_plan(request).job(layout(tensors))
    arrangement = arrange(job.recipe, job.rows, 1)
    memory = bytearray(arrangement.nbytes)
    for column, offset in zip(job.recipe.inputs, arrangement.offsets, strict=False):
        data = tensors[column.name].numpy().tobytes()
        memory[offset : offset + len(data)] = data
    manifest = {
        "recipe": job.recipe.text,
        "rows": [job.rows],
        "numbers": [job.numbers] if job.recipe.numbers else [],
        "offsets": arrangement.offsets,
    }
    calls = 0

    def count(_: FrameType, event: str, __: Any) -> None:
        nonlocal calls
        calls += event == "call"

    for _ in range(3):  # caches are full after the first
        ((failed, _text),), _ns = evaluate_in_memory(manifest, memory, CPU, passes)
        assert not failed
    sys.setprofile(count)
    try:
        evaluate_in_memory(manifest, memory, CPU, passes)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(
    ("request_", "prediction", "target", "most"),
    [
        pytest.param(
            {"loss": {"name": "focal", "gamma": 2.0}, "metrics": {"names": DECISIONS}},
            2 * torch.eye(10)[torch.arange(64) % 10],  # every metric of every class is defined
            torch.arange(64) % 10,
            93,
            id="focal",
        ),
        pytest.param(
            {"loss": {"name": "focal", "gamma": 2.0}, "metrics": {"names": DECISIONS}},
            torch.linspace(-2, 2, 640).reshape(64, 10),  # one class alone is predicted: the precision of others is 0/0
            torch.arange(64) % 10,
            143,
            id="focal-undefined",
        ),
        pytest.param(
            {"loss": {"name": "bce_with_logits"}},
            torch.linspace(-2, 2, 640),
            (torch.arange(640) % 2).float(),
            121,
            id="bce",
        ),
    ],
)
def test_a_small_request_enters_few_functions(
    request_: Mapping[str, Any], prediction: torch.Tensor, target: torch.Tensor, most: int, passes: Passes
) -> None:
    assert entered(request_, {"prediction": prediction, "target": target}, passes) <= most
