"""Axes of losses of regions, boxes and embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from lossd.pictures.axis import ONE, UNIT, Axis, Given, Path, Scene, everywhere

Array = np.ndarray[Any, Any]

PIXELS = 256
PAIRS = 4
SIMILAR = {"similar": Given("the pair is", 1, 0, 1, 1, {1: "similar", 0: "dissimilar"})}

# Regions


def _overlap(x: Array, scene: Scene) -> Path:
    """Return an image of class 0 and class 1, in which every pixel gives its class probability x."""
    pattern = scene.types["prediction"].pattern
    foreground = round(scene.given["share"] * PIXELS)
    target = np.repeat([0, 1], [PIXELS - foreground, foreground])
    one_hot = np.stack([1 - target, target])  # (class, pixel)
    p = np.where(one_hot, x[:, None, None], 1 - x[:, None, None])
    several = "C" in pattern
    if scene.types["prediction"].domain != "probability":
        p = np.log(p) if several and scene.types["target"].domain == "class" else np.log(p) - np.log1p(-p)
    toward = one_hot.astype(float) if scene.types["target"].domain == "class" else 2.0 * one_hot - 1
    if not several:
        prediction, toward, truth = p[:, None, 1], toward[1], one_hot[None, 1].astype(float)
    elif "*" in pattern:
        prediction, truth = p[:, None], one_hot[None].astype(float)
    else:  # every pixel is a sample
        prediction, toward, truth = p.transpose(0, 2, 1), toward.T, target
    if scene.types["target"].domain == "class":
        truth = target[None] if "*" in pattern else target
    inputs = {"prediction": prediction, "target": everywhere(truth, x)}
    return Path(inputs, {"prediction": toward}, "every pixel's score of its own class")


OVERLAP = Axis(
    "overlap",
    "overlap: the probability of every pixel's own class",
    0.01,
    0.99,
    _overlap,
    within=UNIT,
    given={"share": Given("foreground", 0.5, 0.05, 0.95)},
    picture="image",
)


def _offset(x: Array, scene: Scene) -> Path:
    """Return a predicted box beside a target of side 1; x is the offset of their centres."""
    form = scene.parameters["format"]
    target = _box(np.array([[0.5, 0.5]]), 1.0, form)
    centres = np.stack([0.5 + x, np.full_like(x, 0.5 + scene.given.get("below", 0.0))], axis=1)
    prediction = _box(centres, scene.given.get("size", 1.0), form)[:, None, :]
    moved = np.array([1.0, 0.0, 1.0 if form == "xyxy" else 0.0, 0.0])
    inputs = {"prediction": prediction, "target": everywhere(target, x)}
    return Path(inputs, {"prediction": moved}, "the offset")


def _box(centres: Array, side: float, form: str) -> Array:
    """Return square boxes, (N, 4), of centres, (N, 2)."""
    first = centres if form == "cxcywh" else centres - side / 2
    last = centres + side / 2 if form == "xyxy" else np.full_like(centres, side)
    return np.concatenate([first, last], axis=1)


def _boxes_overlap(x: Array, scene: Scene) -> Path:
    return _offset((1 - x) / (1 + x), scene)


OFFSET = Axis(
    "offset",
    "offset of the predicted box, in widths of the target",
    0,
    2,
    _offset,
    given={"size": Given("its size", 1, 0.2, 3), "below": Given("its offset below", 0, 0, 2)},
    picture="boxes",
)
BOXES_OVERLAP = Axis(
    "overlap", "intersection over union of equal boxes", 0, 1, _boxes_overlap, within=(0, 1), picture="iou"
)

# Embeddings


def _pair(x: Array, scene: Scene) -> Path:
    still = np.zeros((len(x), 1, 2))
    similar = np.full((len(x), 1), float(scene.given["similar"]))
    inputs = {"first": still, "second": still + x[:, None, None] * [1.0, 0.0], "similar": similar}
    return Path(inputs, {"second": np.array([1.0, 0.0])}, "the distance")


def _given_distance(x: Array, scene: Scene) -> Path:
    sign = np.full((len(x), 1), 1.0 if scene.given["similar"] else -1.0)
    return Path({"prediction": x[:, None], "target": sign}, {"prediction": ONE}, "the distance")


def _triplet(x: Array, scene: Scene) -> Path:
    still = np.zeros((len(x), 1, 2))
    away, aside = np.eye(2)
    inputs = {
        "anchor": still,
        "positive": still + scene.given["positive"] * aside,
        "negative": still + x[:, None, None] * away,
    }
    return Path(inputs, {"negative": away}, "the negative's distance")


def _classes_apart(x: Array, scene: Scene) -> Path:
    """Return two classes of two samples each, 1 apart within a class, whose centres are x apart."""
    still = np.array([[0.5, 0, 0], [-0.5, 0, 0], [0, 0.5, 0], [0, -0.5, 0]])
    away = np.array([[0.0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1]])
    label = everywhere(np.array([0, 0, 1, 1]), x)
    return Path({"embedding": still + x[:, None, None] * away, "label": label}, {"embedding": away}, "the distance")


def _turned(x: Array) -> tuple[Array, Array, Array]:
    """Return vectors, partners at cosine x to one vector each and orthogonal to the rest, and the partners' slope."""
    first, aside = np.eye(2 * PAIRS)[:PAIRS], np.eye(2 * PAIRS)[PAIRS:]
    cosine = x[:, None, None]
    sine = np.sqrt(1 - cosine**2)
    return everywhere(first, x), cosine * first + sine * aside, first - cosine / sine * aside


def _cosine_pair(x: Array, scene: Scene) -> Path:
    first, second, toward = (vectors[:, :1] for vectors in _turned(x))
    sign = np.full((len(x), 1), 1.0 if scene.given["similar"] else -1.0)
    return Path({"first": first, "second": second, "similar": sign}, {"second": toward}, "the cosine")


def _views(x: Array, scene: Scene) -> Path:
    first, second, toward = _turned(x)
    return Path({"first": first, "second": second}, {"second": toward}, "the cosine")


def _labelled(x: Array, scene: Scene) -> Path:
    first, second, toward = _turned(x)
    label = everywhere(np.tile(np.arange(PAIRS), 2), x)
    inputs = {"embedding": np.concatenate([first, second], axis=1), "label": label}
    return Path(inputs, {"embedding": np.concatenate([0 * toward, toward], axis=1)}, "the cosine")


FAR = (0, np.inf)
CIRCLE = (-0.999, 0.999)
ORTHOGONAL = f"cosine of each of {PAIRS} pairs, all others being at right angles"
APART = ("distance", "distance between the two", 0.01, 2.5)
DISTANCE = Axis(*APART, _pair, "similar", FAR, SIMILAR, picture="pair")
GIVEN_DISTANCE = Axis(*APART, _given_distance, "similar", FAR, SIMILAR, picture="pair")
TRIPLET = Axis(
    "distance",
    "distance of the negative, where the positive's is {positive}",
    0.01,
    3,
    _triplet,
    within=FAR,
    given={"positive": Given("distance of the positive", 1, 0, 3)},
    picture="triplet",
)
CLASSES_APART = Axis("distance", "distance of two classes whose samples are 1 apart", 0, 3, _classes_apart, within=FAR)
COSINE = Axis("cosine", "cosine of the two", -0.99, 0.99, _cosine_pair, "similar", CIRCLE, SIMILAR, picture="cosine")
VIEWS = Axis("cosine", ORTHOGONAL, -0.99, 0.99, _views, within=CIRCLE, picture="cosine")
LABELLED = Axis("cosine", ORTHOGONAL, -0.99, 0.99, _labelled, within=CIRCLE, picture="cosine")
