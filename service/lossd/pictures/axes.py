"""The axes along which a loss can be drawn, and the inputs at each of their points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lossd.losses.registry import Loss
from lossd.losses.types import TensorType
from lossd_client.errors import NotEvaluable

__all__ = ["Axis", "Path", "Scene", "axes_of"]

Array = np.ndarray[Any, Any]

PIXELS = 256
PAIRS = 4

ONE = np.ones(1)


class Scene(NamedTuple):
    """What a line shows: the types of the loss's inputs, its parameters, and one of the axis's cases."""

    types: Mapping[str, TensorType]
    parameters: Mapping[str, Any]
    case: str


class Path(NamedTuple):
    """Inputs along an axis.

    Attributes:
        inputs: The inputs by name; the first axis counts the points, the rest is one request's tensor.
        toward: The direction in which the gradient is measured, by input; broadcasts against the inputs.
        subject: The name of what the gradient is with respect to.
    """

    inputs: Mapping[str, Array]
    toward: Mapping[str, Array]
    subject: str


@dataclass(frozen=True)
class Axis:
    """An axis along which losses can be drawn.

    Attributes:
        name: The name in requests; losses with the same axis can share a plot.
        label: The label on the plot.
        low: The lowest point by default.
        high: The highest point by default.
        path: Returns the inputs for points on the axis.
        cases: Cases with a line each, such as similar and dissimilar pairs.
        within: The range of valid points.
    """

    name: str
    label: str
    low: float
    high: float
    path: Callable[[Array, Scene], Path]
    cases: tuple[str, ...] = ("",)
    within: tuple[float, float] = (-np.inf, np.inf)


# Regression


def _error(x: Array, scene: Scene) -> Path:
    inputs = {name: np.full((len(x), 1), float(name == "variance")) for name in scene.types}
    return Path({**inputs, "prediction": x[:, None]}, {"prediction": ONE}, "the prediction")


def _variance(x: Array, scene: Scene) -> Path:
    inputs = {"prediction": np.ones((len(x), 1)), "target": np.zeros((len(x), 1)), "variance": x[:, None]}
    return Path(inputs, {"variance": ONE}, "the variance")


def _count(x: Array, scene: Scene) -> Path:
    rate = x[:, None]
    prediction = np.log(rate) if scene.parameters["log_input"] else rate
    subject = "the logarithm of the rate" if scene.parameters["log_input"] else "the rate"
    return Path({"prediction": prediction, "target": np.full_like(rate, 3)}, {"prediction": ONE}, subject)


def _feature(x: Array, scene: Scene) -> Path:
    first = x[:, None, None]
    return Path({"prediction.0": first, "target.0": np.zeros_like(first)}, {"prediction.0": ONE}, "the feature")


ERROR = Axis("error", "error (prediction − target)", -3, 3, _error)
VARIANCE = Axis("variance", "variance, where the error is 1", 0.1, 4, _variance, within=(1e-6, np.inf))
RATE = Axis("rate", "predicted rate, where 3 were counted", 0.2, 10, _count, within=(1e-6, np.inf))
FEATURE = Axis("error", "error (prediction − target)", -3, 3, _feature)

# Classification: two classes of which the first is true, or one score


def _probability(x: Array, scene: Scene) -> Path:
    return _classified(np.log(x) - np.log1p(-x), x, scene)


def _margin(x: Array, scene: Scene) -> Path:
    return _classified(x, 1 / (1 + np.exp(-x)), scene)


def _classified(margin: Array, p: Array, scene: Scene) -> Path:
    domain = scene.types["prediction"].domain
    subject = {"logits": "score", "probability": "probability"}.get(domain, "log-probability")
    scores = {"logits": (margin, 0 * margin), "probability": (p, 1 - p)}.get(
        domain, (-np.logaddexp(0, -margin), -np.logaddexp(0, margin))
    )
    target_domain = scene.types["target"].domain
    if "C" not in scene.types["prediction"].pattern or target_domain == "indicator":
        axes = (1,) * len([axis for axis in scene.types["prediction"].pattern if axis != "*"])
        one = scores[0].reshape(-1, *axes)
        return Path({"prediction": one, "target": np.ones_like(one)}, {"prediction": ONE}, f"the {subject}")
    prediction = np.stack(scores, axis=1)[:, None, :]
    share = np.array([[0.75, 0.25]])
    known = {"class": np.array([0]), "class_set": np.array([[0, -1]]), "log_probability": np.log(share)}
    target = known.get(target_domain, share)
    return Path(
        {"prediction": prediction, "target": _everywhere(target, p)},
        {"prediction": np.array([1.0, 0.0])},
        f"the class's {subject}",
    )


def _everywhere(tensor: Array, x: Array) -> Array:
    """Return a tensor repeated for every point."""
    return np.tile(tensor, (len(x), *[1] * tensor.ndim))


UNIT = (1e-6, 1 - 1e-6)
PROBABILITY = Axis("probability", "probability of the true class", 0.005, 0.995, _probability, within=UNIT)
SHARE = Axis("probability", "probability of a class whose target is 0.75", 0.005, 0.995, _probability, within=UNIT)
MARGIN = Axis("margin", "margin: the true class's score less the other's", -5, 5, _margin, within=(-500, 500))

# Regions


def _overlap(x: Array, scene: Scene) -> Path:
    """Return an image, half of class 0 and half of class 1, in which every pixel gives its class probability x."""
    pattern = scene.types["prediction"].pattern
    target = np.repeat([0, 1], PIXELS // 2)
    truth_by_class = np.stack([1 - target, target])  # (class, pixel)
    p = np.where(truth_by_class, x[:, None, None], 1 - x[:, None, None])
    several = "C" in pattern
    if scene.types["prediction"].domain != "probability":
        p = np.log(p) if several and scene.types["target"].domain == "class" else np.log(p) - np.log1p(-p)
    toward = truth_by_class.astype(float) if scene.types["target"].domain == "class" else 2.0 * truth_by_class - 1
    if not several:
        prediction, toward, truth = p[:, None, 1], toward[1], truth_by_class[None, 1].astype(float)
    elif "*" in pattern:
        prediction, truth = p[:, None], truth_by_class[None].astype(float)
    else:  # every pixel is a sample
        prediction, toward, truth = p.transpose(0, 2, 1), toward.T, target
    if scene.types["target"].domain == "class":
        truth = target[None] if "*" in pattern else target
    inputs = {"prediction": prediction, "target": _everywhere(truth, x)}
    return Path(inputs, {"prediction": toward}, "every pixel's score of its own class")


OVERLAP = Axis("overlap", "overlap: the probability of every pixel's own class", 0.01, 0.99, _overlap, within=UNIT)


def _offset(x: Array, scene: Scene) -> Path:
    last = [1.0, 1.0]
    first = [0.5, 0.5] if scene.parameters["format"] == "cxcywh" else [0.0, 0.0]
    target = _everywhere(np.array([[*first, *last]]), x)
    moved = np.array([1.0, 0.0, 1.0 if scene.parameters["format"] == "xyxy" else 0.0, 0.0])
    return Path(
        {"prediction": target + x[:, None, None] * moved, "target": target}, {"prediction": moved}, "the offset"
    )


def _boxes_overlap(x: Array, scene: Scene) -> Path:
    return _offset((1 - x) / (1 + x), scene)


OFFSET = Axis("offset", "offset of a box from its equal, in widths", 0, 2, _offset)
BOXES_OVERLAP = Axis("overlap", "intersection over union of equal boxes", 0, 1, _boxes_overlap, within=(0, 1))

# Embeddings


def _pair(x: Array, scene: Scene) -> Path:
    still = np.zeros((len(x), 1, 2))
    similar = np.full((len(x), 1), float(scene.case == "similar"))
    inputs = {"first": still, "second": still + x[:, None, None] * [1.0, 0.0], "similar": similar}
    return Path(inputs, {"second": np.array([1.0, 0.0])}, "the distance")


def _given_distance(x: Array, scene: Scene) -> Path:
    sign = np.full((len(x), 1), 1.0 if scene.case == "similar" else -1.0)
    return Path({"prediction": x[:, None], "target": sign}, {"prediction": ONE}, "the distance")


def _triplet(x: Array, scene: Scene) -> Path:
    still = np.zeros((len(x), 1, 2))
    away, aside = np.eye(2)
    inputs = {"anchor": still, "positive": still + aside, "negative": still + x[:, None, None] * away}
    return Path(inputs, {"negative": away}, "the negative's distance")


def _classes_apart(x: Array, scene: Scene) -> Path:
    """Return two classes of two samples each, 1 apart within a class, whose centres are x apart."""
    still = np.array([[0.5, 0, 0], [-0.5, 0, 0], [0, 0.5, 0], [0, -0.5, 0]])
    away = np.array([[0.0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1]])
    label = _everywhere(np.array([0, 0, 1, 1]), x)
    return Path({"embedding": still + x[:, None, None] * away, "label": label}, {"embedding": away}, "the distance")


def _turned(x: Array) -> tuple[Array, Array, Array]:
    """Return vectors, partners at cosine x to one vector each and orthogonal to the rest, and the partners' slope."""
    first, aside = np.eye(2 * PAIRS)[:PAIRS], np.eye(2 * PAIRS)[PAIRS:]
    cosine = x[:, None, None]
    sine = np.sqrt(1 - cosine**2)
    return _everywhere(first, x), cosine * first + sine * aside, first - cosine / sine * aside


def _cosine_pair(x: Array, scene: Scene) -> Path:
    first, second, toward = (target_domain[:, :1] for target_domain in _turned(x))
    sign = np.full((len(x), 1), 1.0 if scene.case == "similar" else -1.0)
    return Path({"first": first, "second": second, "similar": sign}, {"second": toward}, "the cosine")


def _views(x: Array, scene: Scene) -> Path:
    first, second, toward = _turned(x)
    return Path({"first": first, "second": second}, {"second": toward}, "the cosine")


def _labelled(x: Array, scene: Scene) -> Path:
    first, second, toward = _turned(x)
    label = _everywhere(np.tile(np.arange(PAIRS), 2), x)
    inputs = {"embedding": np.concatenate([first, second], axis=1), "label": label}
    return Path(inputs, {"embedding": np.concatenate([0 * toward, toward], axis=1)}, "the cosine")


PAIR = ("similar", "dissimilar")
FAR = (0, np.inf)
CIRCLE = (-0.999, 0.999)
ORTHOGONAL = f"cosine of each of {PAIRS} pairs, all others being at right angles"
DISTANCE = Axis("distance", "distance between the two", 0.01, 2.5, _pair, PAIR, FAR)
GIVEN_DISTANCE = Axis("distance", "distance between the two", 0.01, 2.5, _given_distance, PAIR, FAR)
TRIPLET = Axis("distance", "distance of the negative, where the positive's is 1", 0.01, 3, _triplet, within=FAR)
CLASSES_APART = Axis("distance", "distance of two classes whose samples are 1 apart", 0, 3, _classes_apart, within=FAR)
COSINE = Axis("cosine", "cosine of the two", -0.99, 0.99, _cosine_pair, PAIR, CIRCLE)
VIEWS = Axis("cosine", ORTHOGONAL, -0.99, 0.99, _views, within=CIRCLE)
LABELLED = Axis("cosine", ORTHOGONAL, -0.99, 0.99, _labelled, within=CIRCLE)


def _ranked(x: Array, scene: Scene) -> Path:
    first = x[:, None]
    inputs = {"first": first, "second": 0 * first, "target": 0 * first + 1}
    return Path(inputs, {"first": ONE}, "the higher one's score")


RANKED = Axis("margin", "score of what should be higher less the other's", -3, 3, _ranked)

# Generative


def _separated(x: Array, scene: Scene) -> Path:
    real = x[:, None]
    return Path({"real": real, "fake": -real}, {"real": ONE, "fake": -ONE}, "the separation")


def _separated_by_one(x: Array, scene: Scene) -> Path:
    real = x[:, None]
    return Path({"real": real, "fake": 1 - real}, {"real": ONE, "fake": -ONE}, "the separation")


def _fake(x: Array, scene: Scene) -> Path:
    return Path({"fake": x[:, None]}, {"fake": ONE}, "the score")


def _reconstruction(x: Array, scene: Scene) -> Path:
    return _autoencoded("prediction", x)


def _mean(x: Array, scene: Scene) -> Path:
    return _autoencoded("mean", x)


def _log_variance(x: Array, scene: Scene) -> Path:
    return _autoencoded("log_variance", x)


def _autoencoded(name: str, x: Array) -> Path:
    one = np.ones((len(x), 1))
    latent = np.zeros((len(x), 1, 1))
    inputs = {"prediction": one, "target": one, "mean": latent, "log_variance": latent}
    inputs[name] = x.reshape(inputs[name].shape)
    return Path(inputs, {name: ONE}, {"log_variance": "the log-variance"}.get(name, f"the {name}"))


SEPARATION = Axis("score", "score of the real; the generated have the opposite", -4, 4, _separated)
LEAST_SQUARES = Axis("score", "score s of the real; the generated have 1 − s", -1, 2, _separated_by_one)
FAKE = Axis("score", "score of the generated", -4, 4, _fake)
FAKE_LEAST_SQUARES = Axis("score", "score of the generated", -1, 2, _fake)
RECONSTRUCTION = Axis("prediction", "reconstruction of what is 1", 0.005, 1, _reconstruction, within=(0, 1))
MEAN = Axis("mean", "mean of the latent", -3, 3, _mean)
LOG_VARIANCE = Axis("log_variance", "log-variance of the latent", -4, 3, _log_variance)

# The axes of each task, and of the losses whose axes differ from their task's

BY_TASK: Mapping[str, tuple[Axis, ...]] = {
    "regression": (ERROR,),
    "binary": (PROBABILITY, MARGIN),
    "multiclass": (PROBABILITY, MARGIN),
    "multilabel": (PROBABILITY, MARGIN),
    "segmentation": (OVERLAP,),
    "boxes": (OFFSET, BOXES_OVERLAP),
    "pairs": (DISTANCE,),
    "cosine_pairs": (COSINE,),
    "distances": (GIVEN_DISTANCE,),
    "triplets": (TRIPLET,),
    "paired_views": (VIEWS,),
    "labelled_embeddings": (LABELLED,),
    "ranking": (RANKED,),
    "sets": (MARGIN,),
    "gan": (SEPARATION,),
    "lsgan": (LEAST_SQUARES,),
    "gan_generator": (FAKE,),
    "lsgan_generator": (FAKE_LEAST_SQUARES,),
    "vae": (RECONSTRUCTION, MEAN, LOG_VARIANCE),
    "features": (FEATURE,),
    "custom": (ERROR,),
}
BY_NAME: Mapping[str, tuple[Axis, ...]] = {
    "gaussian_nll": (ERROR, VARIANCE),
    "poisson_nll": (RATE,),
    "soft_margin": (MARGIN,),
    "multi_margin": (MARGIN,),
    "kl_div": (SHARE,),
    "soft_f1": (OVERLAP,),
    "bce_dice": (OVERLAP,),
    "mined_triplet": (CLASSES_APART,),
}
WITHOUT: Mapping[str, str] = {
    "composed": "it is made of the losses that its request names; ask for the curve of one of those",
    "sequences": "it depends on every path through a whole sequence",
    "perceptual": "it depends on whole images, as a network sees them",
}


def axes_of(loss: Loss) -> tuple[Axis, ...]:
    """Return the axes along which a loss can be drawn, the default first.

    Raises:
        NotEvaluable: No single axis shows the loss; the detail says why.
    """
    reason = WITHOUT.get(loss.name) or WITHOUT.get(loss.task)
    if reason is not None:
        raise NotEvaluable(f"{loss.name} has no curve: {reason}")
    axes = BY_NAME.get(loss.name) or BY_TASK.get(loss.task)
    if axes is None:
        raise NotEvaluable(f"{loss.name} has no curve: no axis is defined for losses of {loss.task}")
    return axes
