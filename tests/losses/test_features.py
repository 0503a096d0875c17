"""Losses of features: as many pairs as a request has, and a network whose weights are in a file, or are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import evaluating
from evaluating import Evaluated, alone, together
from lossd.api.catalogue import describe_loss
from lossd.losses import REGISTRY, perceptual
from lossd_client import wire
from lossd_client.errors import (
    InvalidRequest,
    InvalidValue,
    MissingInput,
    NotEvaluable,
    Problem,
    ShapeMismatch,
    UnknownInput,
)
from losses.cases_perceptual import WEIGHTS, images, layers
from serving import running

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def pairs(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in layers(torch.Generator().manual_seed(seed), n).items()}


def matching(**parameters: Any) -> dict[str, Any]:
    return {"loss": {"name": "feature_matching", **parameters}}


def reference(inputs: dict[str, Tensor], weights: list[float]) -> Tensor:
    """One value for each sample, layer by layer with torch.nn.functional."""
    total = torch.zeros((), dtype=torch.float64)
    for i, weight in enumerate(weights):
        error = functional.mse_loss(inputs[f"prediction.{i}"], inputs[f"target.{i}"], reduction="none")
        total = total + weight * error.reshape(len(error), -1).mean(1)
    return total / sum(weights)


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.5]])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_features_are_matched_pair_by_pair(weights: list[float] | None, reduction: str) -> None:
    inputs = pairs(5)
    leaves = {n: t.clone().requires_grad_() if n.startswith("prediction") else t for n, t in inputs.items()}
    values = reference(leaves, weights or [1.0] * 3)
    expected = {"mean": values.mean(), "sum": values.sum(), "none": values}[reduction]
    expected.sum().backward()
    answer = alone(matching(layer_weights=weights, reduction=reduction), inputs)
    torch.testing.assert_close(torch.as_tensor(answer.loss, dtype=torch.float64), expected.detach(), **EXACT)
    assert set(answer.gradients) == {"prediction.0", "prediction.1", "prediction.2"}
    for name, gradient in answer.gradients.items():
        grad = leaves[name].grad
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if grad is None else grad, **EXACT)


def test_sample_weights_weigh_features() -> None:
    weights = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
    answer = alone(matching(), pairs(3) | {"sample_weight": weights})
    assert answer.loss == pytest.approx(float((reference(pairs(3), [1.0] * 3) * weights).sum() / 4), rel=1e-12)
    assert not answer.gradient("prediction.0")[1].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_features_among_strangers_equal_features_alone(dtype: torch.dtype) -> None:
    inputs = [pairs(n, seed=n, dtype=dtype) for n in (4, 1, 3)]
    for batched, tensors in zip(together([matching()] * 3, inputs), inputs, strict=True):
        single = alone(matching(), tensors)
        assert isinstance(batched, Evaluated)
        assert batched.loss == pytest.approx(single.loss, rel=1e-6 if dtype != torch.float64 else 1e-13)
        for name, gradient in single.gradients.items():
            torch.testing.assert_close(batched.gradient(name), gradient)


def test_one_gradient_of_a_series_can_be_asked_for() -> None:
    answer = alone(matching() | {"outputs": ["gradient.prediction.1"]}, pairs(2))
    assert set(answer.gradients) == {"prediction.1"}


@pytest.mark.parametrize(
    ("error", "message", "request_", "changed"),
    [
        (MissingInput, "needs the input target.1", {}, {"target.1": None}),
        (MissingInput, "needs the input prediction.2", {}, {"prediction.2": None}),
        (MissingInput, "needs the input prediction.0", {}, dict.fromkeys(pairs(1))),
        (UnknownInput, "no input 'prediction'", {}, {"prediction": torch.zeros(2)}),
        (ShapeMismatch, r"target.0 has shape \(2, 4\), expected \(2, 4, 3, 5\)", {}, {"target.0": torch.zeros(2, 4)}),
        (ShapeMismatch, r"target.2 has shape \(3,\), expected \(2, ...\)", {}, {"target.2": torch.zeros(3)}),
        (ShapeMismatch, "layer_weights has 2 entries for 3 pairs", matching(layer_weights=[1.0, 1.0]), {}),
        (InvalidRequest, "layer_weights are all 0", matching(layer_weights=[0.0, 0.0, 0.0]), {}),
        (InvalidRequest, r"'prediction\.3' .* not sent", {"outputs": ["gradient.prediction.3"]}, {}),
        (InvalidRequest, "not for 'target.0'", {"outputs": ["gradient.target.0"]}, {}),
        (InvalidValue, r"found NaN at target.1\[0, 0\]", {}, {"target.1": torch.full((2, 2), torch.nan)}),
    ],
)  # fmt: skip
def test_a_fault_in_a_series_is_named(
    error: type[Problem], message: str, request_: dict[str, Any], changed: dict[str, Tensor | None]
) -> None:
    inputs = {name: tensor for name, tensor in (pairs(2) | changed).items() if tensor is not None}
    with pytest.raises(error, match=message):
        alone(matching() | request_, inputs)


def test_a_series_can_be_a_term_of_another_loss() -> None:
    terms = [{"loss": {"name": "feature_matching"}, "weight": 10.0}, {"loss": {"name": "hinge_gan_generator"}}]
    fake = torch.tensor([0.5, -1.5], dtype=torch.float64)
    answer = alone({"loss": {"name": "weighted_sum", "terms": terms}}, pairs(2) | {"fake": fake})
    assert answer.loss == pytest.approx(10 * float(reference(pairs(2), [1.0] * 3).mean()) + 0.5, rel=1e-12)
    assert set(answer.gradients) == {"prediction.0", "prediction.1", "prediction.2", "fake"}
    single = alone(matching(), pairs(2))
    torch.testing.assert_close(answer.gradient("prediction.0"), 10 * single.gradient("prediction.0"), **EXACT)


def looked_at() -> tuple[dict[str, Any], dict[str, Tensor]]:
    inputs = {name: torch.as_tensor(a) for name, a in images(np.random.default_rng(0), 2, {}).items()}
    return {"loss": {"name": "perceptual"}}, inputs


def test_weights_are_read_from_safetensors_as_from_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, inputs = looked_at()
    expected = alone(request, inputs)
    tensors = {n: wire.Tensor("float32", tuple(t.shape), memoryview(t.numpy()).cast("B")) for n, t in WEIGHTS.items()}
    path = tmp_path / "vgg16.safetensors"
    path.write_bytes(b"".join(wire.safetensors.encode(tensors, {})))
    monkeypatch.setenv(perceptual.WEIGHTS, str(path))
    answer = alone(request, inputs)
    assert answer.document == expected.document
    assert torch.equal(answer.gradient(), expected.gradient())


def test_without_weights_the_loss_says_how_to_enable_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, inputs = looked_at()
    assert describe_loss(REGISTRY["perceptual"])["available"] is True
    monkeypatch.setattr(evaluating, "plans", {})  # those kept know the weights
    monkeypatch.setenv(perceptual.WEIGHTS, str(tmp_path / "gone.pth"))
    with pytest.raises(NotEvaluable, match=r"gone.pth, which is not a file: .*--perceptual-weights"):
        alone(request, inputs)
    monkeypatch.delenv(perceptual.WEIGHTS)
    with pytest.raises(NotEvaluable, match=r"is not set: start the service with --perceptual-weights FILE"):
        alone(request, inputs)
    described = describe_loss(REGISTRY["perceptual"])
    assert described["available"] is False
    assert "--perceptual-weights" in described["unavailable_because"]


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", "without a layer", "a layer of another shape"], ids=lambda c: str(c)
)
def test_a_file_that_holds_something_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str
) -> None:
    request, inputs = looked_at()
    path = tmp_path / "other.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "without a layer":
        torch.save({name: t for name, t in WEIGHTS.items() if name != "features.28.bias"}, path)
    else:
        torch.save(WEIGHTS | {"features.2.weight": torch.zeros(4, 5, 3, 3)}, path)
    monkeypatch.setenv(perceptual.WEIGHTS, str(path))
    with pytest.raises(NotEvaluable, match=r"other.pth, which does not hold VGG16's weights"):
        alone(request, inputs)


def test_the_seeds_layers_are_the_poolings() -> None:
    last = [f"relu{block}_{n}" for block, n in enumerate(perceptual.BLOCKS, 1)]
    assert [perceptual._index(layer) for layer in last] == [3, 8, 15, 22, 29]
    features = perceptual._features(perceptual.os.environ[perceptual.WEIGHTS], torch.float32, torch.device("cpu"))
    pools = [i for i, layer in enumerate(features) if isinstance(layer, torch.nn.MaxPool2d)]
    assert pools == [4, 9, 16, 23, 30]


def test_the_setting_reaches_the_catalogue_and_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, inputs = looked_at()
    expected = alone(request, inputs)
    monkeypatch.setenv(perceptual.WEIGHTS, "")  # what the service sets is undone after the test
    path = tmp_path / "vgg16.pth"
    torch.save(WEIGHTS, path)
    with running(perceptual_weights=path) as service:
        assert httpx.get(f"{service.url}/v1/losses/perceptual").json()["available"] is True
        body = request | {"inputs": {name: tensor.tolist() for name, tensor in inputs.items()}}
        answer = httpx.post(f"{service.url}/v1/evaluate", json=body, timeout=30).json()
    assert answer["loss"] == pytest.approx(expected.loss, rel=1e-5)


def test_a_series_is_sent_by_its_numbered_names() -> None:
    inputs = {name: tensor.tolist() for name, tensor in pairs(2).items()} | {"target.2": [1, 2]}
    with running(engine="inline") as service:
        listed = httpx.get(f"{service.url}/v1/losses/feature_matching").json()["inputs"]
        answer = httpx.post(f"{service.url}/v1/evaluate", json=matching() | {"inputs": inputs}).json()
    assert [entry["name"] for entry in listed][:2] == ["prediction.*", "target.*"]
    tensors = pairs(2, dtype=torch.float32) | {"target.2": torch.tensor([1.0, 2.0])}
    assert answer["loss"] == pytest.approx(alone(matching(), tensors).loss, rel=1e-6)
    assert set(answer["gradient"]) == {"prediction.0", "prediction.1", "prediction.2"}
