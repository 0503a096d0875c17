"""Hessians and products over HTTP, in every format, and through the clients and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from tritonclient.http import InferenceServerClient, InferRequestedOutput

import lossd
from lossd import cli
from lossd_client import LossClient
from lossd_client.errors import InvalidRequest
from serving import Running
from wire.stock import infer_inputs

SCORES = np.array([[1.0, 0.0, -1.0], [0.5, 2.0, 0.25], [0.0, 0.0, 3.0], [9.0, -9.0, 0.5]], np.float32)
TARGET = np.array([0, 2, 1, 1])
DIRECTION = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [-1.0, 0.0, 1.0]], np.float32)
P = np.exp(SCORES.astype(float)) / np.exp(SCORES.astype(float)).sum(1, keepdims=True)
HESSIAN = P * (1 - P)
PRODUCT = P * (DIRECTION - (P * DIRECTION).sum(1, keepdims=True))
"""Of the sum: the softmax's covariance is diag(p) - pp'."""

CLOSE = {"rtol": 2e-6, "atol": 1e-9}
REQUEST: dict[str, Any] = {
    "loss": {"name": "cross_entropy", "reduction": "sum"},
    "outputs": ["gradient", "hessian", "hvp"],
}
TENSORS = {"prediction": SCORES, "target": TARGET, "direction": DIRECTION}


def test_json(http: httpx.Client) -> None:
    inputs = {name: array.tolist() for name, array in TENSORS.items()}
    answer = http.post("/v1/evaluate", json={**REQUEST, "inputs": inputs}).json()
    assert answer.keys() == {"diagnostics", "gradient", "hessian", "hvp"}
    np.testing.assert_allclose(answer["hessian"]["prediction"], HESSIAN, **CLOSE)
    np.testing.assert_allclose(answer["hvp"]["prediction"], PRODUCT, rtol=2e-6, atol=1e-6)


def test_safetensors_by_the_client(service: Running) -> None:
    with LossClient(service.url) as client:
        for layout, hessian in (("as_input", HESSIAN), ("class_first", HESSIAN.T)):
            found = client.evaluate(
                REQUEST["loss"], inputs=TENSORS, outputs=REQUEST["outputs"], gradient={"layout": layout}
            )
            np.testing.assert_allclose(found.hessian, hessian, **CLOSE)
            np.testing.assert_allclose(found.hvp, PRODUCT, rtol=2e-6, atol=1e-6)
            assert found.gradient.shape == found.hessian.shape == hessian.shape
            assert found.hessian.dtype == np.float32
            assert "hessians={'prediction'" in repr(found)
        with pytest.raises(InvalidRequest, match="dice by prediction is not diagonal"):
            client.evaluate("dice", np.zeros((1, 2, 3)), np.zeros((1, 3), int), outputs="hessian")


@pytest.mark.parametrize("name", ["hessian", "hessian.prediction"])
@pytest.mark.parametrize("binary", [True, False])
def test_the_open_inference_protocol(triton: InferenceServerClient, name: str, binary: bool) -> None:
    outputs = [InferRequestedOutput(output, binary_data=binary) for output in ("loss", name, "hvp")]
    parameters = {"reduction": "sum", "hessian.form": "xgboost"}
    found = triton.infer("cross_entropy", infer_inputs(**TENSORS), outputs=outputs, parameters=parameters)
    np.testing.assert_allclose(found.as_numpy(name), 2 * HESSIAN, **CLOSE)
    np.testing.assert_allclose(found.as_numpy("hvp"), PRODUCT, rtol=2e-6, atol=1e-6)


def test_this_process() -> None:
    inputs = {"prediction": SCORES, "target": TARGET}
    found = lossd.evaluate(REQUEST["loss"], inputs=inputs, outputs=["hessian"], hessian={"form": "lightgbm"})
    np.testing.assert_allclose(found.hessian, 1.5 * HESSIAN, **CLOSE)


def test_the_command_line(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", SCORES)
    np.save(tmp_path / "t.npy", TARGET)
    files = [str(tmp_path / name) for name in ("p.npy", "t.npy", "h.npy")]
    options = ["--loss", "cross_entropy", "--reduction", "sum", "--hessian-out", files[2], "--hessian-form", "xgboost"]
    done = CliRunner().invoke(cli.main, ["evaluate", *files[:2], *options])
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(np.load(files[2]), 2 * HESSIAN, **CLOSE)
    done = CliRunner().invoke(cli.main, ["evaluate", *files[:2], "--loss", "mse", "--hessian-form", "exact"])
    assert done.exit_code == 2
    assert "needs --hessian-out" in done.output
