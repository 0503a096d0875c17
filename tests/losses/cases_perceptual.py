"""Rows of the losses of features, and the weights they are tested with. Reference: the network as a list of layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lossd_client.errors import InvalidRequest, InvalidValue, ShapeMismatch
from losses.case import Array, Case, Composition, Parameters, Refused, Stated, Tensors

# VGG16, layer by layer, as torchvision numbers them: the width of a convolution (64 to 512 there), or what else it is.
LAYERS = (4, "relu", 4, "relu", "pool",
          6, "relu", 6, "relu", "pool",
          8, "relu", 8, "relu", 8, "relu", "pool",
          8, "relu", 8, "relu", 8, "relu", "pool",
          8, "relu", 8, "relu", 8, "relu", "pool")  # fmt: skip
AFTER = {"relu1_2": (3, 4), "relu2_2": (8, 9), "relu3_3": (15, 16), "relu4_3": (22, 23), "relu5_3": (29, 30)}
AFTER |= {"relu1_1": (1, 2), "relu2_1": (6, 7), "relu3_1": (11, 12), "relu3_2": (13, 14), "relu5_2": (27, 28)}


def _weights() -> dict[str, Tensor]:
    generator, inner, state = torch.Generator().manual_seed(0), 3, {}
    for index, layer in enumerate(LAYERS):
        if isinstance(layer, int):
            spread = (2 / (9 * inner)) ** 0.5
            state[f"features.{index}.weight"] = torch.randn(layer, inner, 3, 3, generator=generator) * spread
            state[f"features.{index}.bias"] = torch.randn(layer, generator=generator) * 0.1
            inner = layer
    return state | {"classifier.0.weight": torch.zeros(2, 2)}


WEIGHTS = _weights()


def images(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    size = 32 if parameters.get("tap") == "pool" else 16
    return {name: rng.uniform(0, 1, (n, 3, size, size)) for name in ("prediction", "target")}


def features(image: Tensor, last: int) -> Tensor:
    for index, layer in enumerate(LAYERS[: last + 1]):
        if layer == "relu":
            image = functional.relu(image)
        elif layer == "pool":
            image = functional.max_pool2d(image, 2)
        else:
            weight, bias = WEIGHTS[f"features.{index}.weight"], WEIGHTS[f"features.{index}.bias"]
            image = functional.conv2d(image, weight.double(), bias.double(), padding=1)
    return image


def perceptual(
    prediction: Tensor,
    target: Tensor,
    *,
    network: str = "vgg16",
    layers: tuple[str, ...] = ("relu1_2", "relu2_2", "relu3_3"),
    layer_weights: list[float] | None = None,
    tap: str = "relu",
    normalize: bool = True,
) -> Tensor:
    assert network == "vgg16"
    if normalize:
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).reshape(3, 1, 1)
        deviation = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).reshape(3, 1, 1)
        prediction, target = (prediction - mean) / deviation, (target - mean) / deviation
    weights = layer_weights or [1.0] * len(layers)
    total = torch.zeros(len(prediction), dtype=torch.float64)
    for weight, layer in zip(weights, layers, strict=True):
        last = AFTER[layer][tap == "pool"]
        error = functional.mse_loss(features(prediction, last), features(target, last), reduction="none")
        total = total + weight * error.mean((1, 2, 3))
    return total / sum(weights)


FEATURES = ((4, 3, 5), (2,), ())
"""The axes of three layers' features, after that of the samples."""


def layers(generator: torch.Generator, n: int = 4) -> Tensors:
    return {
        f"{name}.{i}": torch.randn(n, *shape, generator=generator, dtype=torch.float64)
        for i, shape in enumerate(FEATURES)
        for name in ("prediction", "target")
    }


def matched(inputs: Tensors, weights: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    errors = [functional.mse_loss(inputs[f"prediction.{i}"], inputs[f"target.{i}"]) for i in range(3)]
    return sum((w * e for w, e in zip(weights, errors, strict=True)), start=torch.zeros(())) / sum(weights)


PREDICTIONS = tuple(f"prediction.{i}" for i in range(3))
SERIES = (
    Composition("alike", {"name": "feature_matching"}, layers, matched, PREDICTIONS),
    Composition(
        "weighted",
        {"name": "feature_matching", "layer_weights": [0.5, 1.0, 4.0]},
        layers,
        lambda inputs: matched(inputs, (0.5, 1.0, 4.0)),
        PREDICTIONS,
    ),
)
PICTURE = {"prediction": np.full((1, 3, 4, 4), 0.5), "target": np.full((1, 3, 4, 4), 0.5)}
CASES = (
    Case(
        "perceptual",
        images,
        perceptual,
        (
            {},
            {"layers": ["relu1_1", "relu3_2"], "layer_weights": [0.5, 2.0], "normalize": False},
            {"layers": ["relu2_2", "relu4_3", "relu5_3"], "tap": "pool"},
            {"layers": ["relu5_3"], "network": "vgg16"},
        ),
        stated=(Stated("the same picture", PICTURE, 0, gradient=np.zeros((1, 3, 4, 4)).tolist()),),
        refused=(
            Refused(ShapeMismatch, r"prediction has shape \(5, 1, 8, 8\), expected \(N, 3, H, W\)",
                    inputs={"prediction": np.zeros((5, 1, 8, 8))}),
            Refused(ShapeMismatch, "images of 3 by 9 pixels are too small for relu3_3, which needs 4",
                    inputs={"prediction": np.zeros((5, 3, 3, 9)), "target": np.zeros((5, 3, 3, 9))}),
            Refused(InvalidValue, r"found NaN at target\[0, 0, 0, 0\]",
                    inputs={"target": np.full((5, 3, 16, 16), np.nan)}),
            Refused(InvalidRequest, "layer_weights has 1 entries, layers has 3", {"layer_weights": [1.0]}),
            Refused(InvalidRequest, "layer_weights are all 0", {"layer_weights": [0.0, 0.0, 0.0]}),
            Refused(InvalidRequest, "relu3_2 is followed by a convolution", {"layers": ["relu3_2"], "tap": "pool"}),
            Refused(InvalidRequest, "layers", {"layers": ["relu6_1"]}),
            Refused(InvalidRequest, "layers", {"layers": []}),
            Refused(InvalidRequest, "network", {"network": "alexnet"}),
        ),
    ),
)  # fmt: skip
