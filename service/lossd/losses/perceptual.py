"""Losses between the features of two images: given as tensors, or computed by a network whose weights a file holds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Len

from lossd.cost import Cost
from lossd.lazy_torch import Tensor, nn, torch
from lossd.losses.elementary import row_total
from lossd.losses.registry import Refinement, loss
from lossd.losses.types import FIRST_FAULT, Finite, NonNegative, Real
from lossd_client.errors import NotEvaluable
from lossd_client.wire import safetensors

WEIGHTS = "LOSSD_PERCEPTUAL_WEIGHTS"
"""The environment variable of the setting: where the weights are, for this process and the workers that inherit it."""

Weights = Annotated[list[NonNegative], FIRST_FAULT]
Tap = Literal["relu", "pool"]
Layer = Literal[
    "relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_2", "relu3_3",
    "relu4_1", "relu4_2", "relu4_3", "relu5_1", "relu5_2", "relu5_3",
]  # fmt: skip

BLOCKS = (2, 2, 3, 3, 3)
"""Convolutions of each of VGG16's blocks; each is followed by a ReLU, each block by a pooling."""


def _check_weights(parameters: Mapping[str, Any]) -> Refinement:
    weights = parameters["layer_weights"]
    if weights is not None and not any(weights):
        raise ValueError("layer_weights are all 0: there is nothing to average")
    layers = parameters.get("layers", weights)
    if weights is not None and len(weights) != len(layers):
        raise ValueError(f"layer_weights has {len(weights)} entries, layers has {len(layers)}")
    if parameters.get("tap") == "pool":
        for layer in layers:
            if not _ends_block(layer):
                raise ValueError(f'{layer} is followed by a convolution, not by a pooling; tap must be "relu"')
    return Refinement()


def _check_pairs(parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    pairs = sum(name.startswith("prediction.") for name in shapes)
    weights = parameters["layer_weights"]
    if weights is not None and len(weights) != pairs:
        raise ValueError(f"layer_weights has {len(weights)} entries for {pairs} pairs of features")
    for i in range(pairs):
        prediction, target = shapes[f"prediction.{i}"], shapes[f"target.{i}"]
        if prediction != target:
            raise ValueError(f"target.{i} has shape {target}, expected {prediction} as prediction.{i} has")
    return (shapes["prediction.0"][0],)


@loss(task="features", kind="rows", refine=_check_weights, shape=_check_pairs, elementwise=True)
def feature_matching(
    prediction: list[Real[Tensor, "N ..."]],
    target: list[Finite[Tensor, "N ..."]],
    *,
    layer_weights: Weights | None = None,
) -> Real[Tensor, "N"]:
    r"""Mean squared error of several pairs of features, averaged over the pairs.

    .. math:: \frac{\sum_l w_l \operatorname{mean}(p_l - t_l)^2}{\sum_l w_l}

    Args:
        prediction: Features p of each layer, sent as prediction.0, prediction.1, …; shapes may differ between layers.
        target: Features t of each layer, sent as target.0, target.1, …, each in the shape of its prediction.
        layer_weights: Weight w of each pair, not all 0; null for one each.

    Returns:
        One value per sample, >= 0, unreduced.

    Gradient:
        With respect to each ``prediction``.

    References:
        T. Salimans et al., Improved Techniques for Training GANs, 2016, arXiv:1606.03498.
        T.-C. Wang et al., High-Resolution Image Synthesis with Conditional GANs, 2018, arXiv:1711.11585.
    """
    return _average([_squared_error(p, t) for p, t in zip(prediction, target, strict=True)], layer_weights)


def _check_images(parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    n, _, height, width = shapes["prediction"]
    for layer in parameters["layers"]:
        pools = int(layer[4]) - 1 + (parameters["tap"] == "pool")
        if min(height, width) < 2**pools:
            raise ValueError(f"images of {height} by {width} pixels are too small for {layer}, which needs {2**pools}")
    return (n,)


# Of a pixel of both images: what the network holds for the gradient, and the time up to each block.
PIXEL_BYTES, PIXEL_NS = 2800, (6_000, 15_000, 24_000, 30_000, 33_000)


def _cost(parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Cost:
    n, _, height, width = shapes["prediction"]
    deepest = max(int(layer[4]) for layer in parameters["layers"])
    return Cost(PIXEL_BYTES * n * height * width, PIXEL_NS[deepest - 1] * n * height * width)


def unavailable() -> str | None:
    """Return why there are no weights, and how to get them; None if there are."""
    path = os.environ.get(WEIGHTS)
    if path and Path(path).is_file():
        return None
    found = f"{WEIGHTS} names {path}, which is not a file" if path else f"{WEIGHTS} is not set"
    return (
        f"perceptual needs the weights of VGG16, and {found}: start the service with --perceptual-weights FILE, "
        "torchvision's vgg16 state dict as .pth or .safetensors"
    )


@loss(task="features", kind="rows", refine=_check_weights, shape=_check_images, cost=_cost, unavailable=unavailable)
def perceptual(
    prediction: Real[Tensor, "N 3 H W"],
    target: Finite[Tensor, "N 3 H W"],
    *,
    network: Literal["vgg16"] = "vgg16",
    layers: Annotated[list[Layer], FIRST_FAULT, Len(1)] = ["relu1_2", "relu2_2", "relu3_3"],  # noqa: B006  (never changed)
    layer_weights: Weights | None = None,
    tap: Tap = "relu",
    normalize: bool = True,
) -> Real[Tensor, "N"]:
    r"""Mean squared error of two images' features in a network trained to classify, averaged over its layers.

    .. math:: \frac{\sum_l w_l \operatorname{mean}(\phi_l(x') - \phi_l(x))^2}{\sum_l w_l}

    Args:
        prediction: Images x', RGB.
        target: Images x.
        network: The network φ; its weights are the service's, see the setting ``perceptual_weights``.
        layers: Where features are taken: relu1_2 is the second of the first block.
        layer_weights: Weight w of each layer, not all 0; null for one each.
        tap: "relu" takes them where the layer's name says (torchvision's features 3, 8, 15, 22, 29 are the last of the
            blocks); "pool" at the pooling thereafter (4, 9, 16, 23, 30).
        normalize: Whether images are in [0, 1] and are to be normalised by ImageNet's means and deviations; otherwise
            they are already.

    Returns:
        One value per image, >= 0, unreduced.

    Gradient:
        With respect to ``prediction``.

    References:
        J. Johnson, A. Alahi, L. Fei-Fei, Perceptual Losses for Real-Time Style Transfer and Super-Resolution, 2016,
            arXiv:1603.08155.
        K. Simonyan, A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014,
            arXiv:1409.1556.
    """
    features = _features(os.environ.get(WEIGHTS, ""), prediction.dtype, prediction.device)
    taps = [_index(layer) + (tap == "pool") for layer in layers]

    def compared(predicted_image: Tensor, target_image: Tensor) -> Tensor:
        with torch.no_grad():
            of_target = dict(_tapped(features, _normalized(target_image) if normalize else target_image, taps))
        of_prediction = dict(_tapped(features, _normalized(predicted_image) if normalize else predicted_image, taps))
        return _average([_squared_error(of_prediction[i], of_target[i]) for i in taps], layer_weights)

    # A CPU's convolutions round an image differently beside others.
    together = len(prediction) if prediction.is_cuda else 1
    pairs = zip(torch.split(prediction, together), torch.split(target, together), strict=True)
    return torch.cat([compared(*pair) for pair in pairs])


def _squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean over each sample's entries, (N,) float64."""
    error = (prediction - target).reshape(prediction.shape[0], -1)
    return row_total(error * error, dtype=torch.float64) / error.shape[1]


def _average(values: Sequence[Tensor], weights: Sequence[float] | None) -> Tensor:
    weights = [1.0] * len(values) if weights is None else weights
    shares = [w / sum(weights) for w in weights]
    return torch.stack([w * v for w, v in zip(shares, values, strict=True)]).sum(0)


def _normalized(image: Tensor) -> Tensor:
    mean = image.new_tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    deviation = image.new_tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    return (image - mean) / deviation


def _tapped(features: nn.Sequential, x: Tensor, taps: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    for index, layer in zip(range(max(taps) + 1), features, strict=False):
        x = layer(x)
        if index in taps:
            yield index, x


def _ends_block(layer: str) -> bool:
    return int(layer[6]) == BLOCKS[int(layer[4]) - 1]


def _index(layer: str) -> int:
    """Return the index of relu<block>_<convolution> among the network's layers."""
    block, convolution = int(layer[4]), int(layer[6])
    return sum(2 * n + 1 for n in BLOCKS[: block - 1]) + 2 * convolution - 1


@lru_cache(maxsize=4)
def _features(path: str, dtype: torch.dtype, device: torch.device) -> nn.Sequential:
    """Return VGG16 up to its last pooling, as wide as the file's weights."""
    try:
        state = {k.removeprefix("features."): v for k, v in _state(Path(path)).items() if k.startswith("features.")}
        layers: list[nn.Module] = []
        width = 3
        for convolutions in BLOCKS:
            for _ in range(convolutions):
                out = len(state[f"{len(layers)}.bias"])
                layers += [nn.Conv2d(width, out, 3, padding=1, device="meta"), nn.ReLU()]
                width = out
            layers.append(nn.MaxPool2d(2, 2))
        features = nn.Sequential(*layers)
        features.load_state_dict(state, assign=True)
    except Exception as error:  # whatever is in the file, it is not what it should be
        raise NotEvaluable(f"{WEIGHTS} names {path}, which does not hold VGG16's weights: {error}") from None
    return features.to(device, dtype).requires_grad_(False).eval()


def _state(path: Path) -> Mapping[str, Tensor]:
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    tensors, _ = safetensors.decode(bytearray(path.read_bytes()))
    return {
        name: torch.frombuffer(tensor.data, dtype=getattr(torch, tensor.dtype)).reshape(tensor.shape)
        for name, tensor in tensors.items()
    }
