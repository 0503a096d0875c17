"""The same answers on a GPU: every row of the tables, single and in a batch, and the whole engine."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
import torch

from evaluating import Evaluated, alone, together
from losses.case import Case, Composition, Parameters
from losses.cases_composed import COMPOSITIONS
from losses.test_batching import requests, row_counts
from losses.test_values import ROWS
from rows import in_one_item
from serving import running

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def assert_equal(on_gpu: object, on_cpu: object, within: float) -> None:
    assert isinstance(on_gpu, Evaluated), on_gpu
    assert isinstance(on_cpu, Evaluated), on_cpu
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=within, abs=within)
    assert on_gpu.denominator == pytest.approx(on_cpu.denominator, rel=within)
    assert on_gpu.warnings == on_cpu.warnings
    for name, gradient in on_cpu.gradients.items():
        torch.testing.assert_close(on_gpu.gradient(name), gradient, rtol=100 * within, atol=within)


@in_one_item("case, parameters", [row.values for row in ROWS])
def test_a_batch_on_the_gpu_equals_the_cpu(case: Case, parameters: Parameters) -> None:
    queries = [{**request, "outputs": [*request["outputs"], "metrics"]} for request in requests(case, parameters)]
    for dtype, within in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        inputs = [case.inputs(parameters, n, seed=n + i, dtype=dtype) for i, n in enumerate(row_counts(case))]
        on_cpu = together(queries, inputs)
        for gpu, cpu in zip(together(queries, inputs, "cuda"), on_cpu, strict=True):
            assert_equal(gpu, cpu, within)


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.name}-{row.title}") for row in COMPOSITIONS])
def test_a_composed_loss_on_the_gpu_equals_the_cpu(row: Composition) -> None:
    inputs = row.draw(torch.Generator().manual_seed(0))
    request = {"loss": dict(row.loss), "outputs": ["loss", *(f"gradient.{name}" for name in row.gradients)]}
    assert_equal(alone(request, inputs, "cuda"), alone(request, inputs), 1e-10)


def test_the_service_answers_from_a_gpu() -> None:
    rng = np.random.default_rng(0)
    tensors = {"prediction": rng.standard_normal((64, 10)).tolist(), "target": rng.integers(0, 10, 64).tolist()}
    body = {"loss": {"name": "focal"}, "inputs": tensors}
    with running() as cpu, running(device="cuda") as gpu:
        expected = httpx.post(f"{cpu.url}/v1/evaluate", json=body).json()
        found = httpx.post(f"{gpu.url}/v1/evaluate", json=body, timeout=60).json()
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["metrics"] == expected["metrics"]
    np.testing.assert_allclose(
        found["gradient"]["prediction"], expected["gradient"]["prediction"], rtol=1e-4, atol=1e-7
    )
