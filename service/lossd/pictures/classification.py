"""Axes of losses of classes, labels, rankings and sequences."""

from __future__ import annotations

from typing import Any

import numpy as np

from lossd.pictures.axis import ONE, UNIT, Axis, Given, Path, Scene, everywhere

Array = np.ndarray[Any, Any]

POSITIVE = {"target": Given("the true class", 1, 0, 1, 1, {1: "positive", 0: "negative"})}
CLASSES = {"classes": Given("classes", 2, 2, 20, 1)}
LABELS = {"labels": Given("labels", 1, 1, 10, 1)}


def _probability(x: Array, scene: Scene) -> Path:
    return _classified(np.log(x) - np.log1p(-x), scene)


def _margin(x: Array, scene: Scene) -> Path:
    return _classified(x, scene)


def _classified(margin: Array, scene: Scene) -> Path:
    """Return scores, probabilities or log-probabilities of the true class and of the others.

    All others have the same score. The margin is that of the true class over all others together.
    """
    prediction, target = scene.types["prediction"], scene.types["target"].domain
    subject = {"logits": "score", "probability": "probability"}.get(prediction.domain, "log-probability")
    if "C" not in prediction.pattern or target == "indicator":
        return _scored(margin, scene, subject)
    others = int(scene.given.get("classes", 2)) - 1
    rest = -np.log(others)
    if prediction.domain == "logits":
        scores = [margin, *[np.full_like(margin, rest)] * others]
    elif prediction.domain == "probability":
        scores = [_sigmoid(margin), *[_sigmoid(-margin) / others] * others]
    else:
        scores = [-np.logaddexp(0, -margin), *[rest - np.logaddexp(0, margin)] * others]
    share = scene.given.get("share", 0.75)
    shares = np.array([[share, 1 - share]])
    known = {"class": np.array([0]), "log_probability": np.log(np.maximum(shares, np.exp(-100)))}
    return Path(
        {
            "prediction": np.stack(scores, axis=1)[:, None, :],
            "target": everywhere(known.get(target, shares), margin),
        },
        {"prediction": np.eye(1 + others)[0]},
        f"the class's {subject}",
    )


def _scored(margin: Array, scene: Scene, subject: str) -> Path:
    """Return a score for each label of a sample whose first label applies, or one score of a binary sample."""
    prediction, target = scene.types["prediction"], scene.types["target"].domain
    positive, labels = scene.given.get("target", 1), int(scene.given.get("labels", 1))
    sides = np.array([1.0 if positive else -1.0, *[-1.0] * (labels - 1)])
    scores = margin[:, None] * sides
    if prediction.domain == "probability":
        scores = _sigmoid(scores)
    axes = len([axis for axis in prediction.pattern if axis != "*"])
    shape = (len(margin), *[1] * (axes - 1), labels) if labels > 1 else (len(margin), *[1] * axes)
    truth = sides if target == "sign" else (sides > 0).astype(float)
    inputs = {"prediction": scores.reshape(shape), "target": np.broadcast_to(truth, shape).copy()}
    return Path(inputs, {"prediction": sides}, f"the {subject}" if labels == 1 else "the margin")


def _hinged(x: Array, scene: Scene) -> Path:
    """Return the true class's score x; the scores of the others are 0."""
    classes = int(scene.given["classes"])
    others = np.zeros((len(x), classes - 1))
    several = scene.types["target"].domain == "class_set"
    target = np.array([[0, *[-1] * (classes - 1)]]) if several else np.array([0])
    inputs = {
        "prediction": np.concatenate([x[:, None], others], axis=1)[:, None, :],
        "target": everywhere(target, x),
    }
    return Path(inputs, {"prediction": np.eye(classes)[0]}, "the class's score")


def _taught(x: Array, scene: Scene) -> Path:
    """Return a student's scores of two classes, whose probabilities by the teacher are ``share`` and the rest."""

    def scores(p: Array) -> Array:
        return np.stack([np.log(p), np.log1p(-p)], axis=1)[:, None, :]

    teacher = scores(np.full_like(x, scene.given["share"]))
    slope = np.stack([1 / x, -1 / (1 - x)], axis=1)[:, None, :]
    return Path({"prediction": scores(x), "teacher": teacher}, {"prediction": slope}, "the probability")


def _samples(x: Array, scene: Scene) -> Path:
    """Return four samples of two classes, each with probability x for its own class."""
    one_hot = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    logits = (np.log(x) - np.log1p(-x))[:, None, None] * one_hot
    target = everywhere(np.array([0, 0, 1, 1]), x)
    return Path({"prediction": logits, "target": target}, {"prediction": one_hot}, "every sample's score of its class")


def _frames(x: Array, scene: Scene) -> Path:
    """Return four frames of the symbols 1 1 2 2, each with probability x for its own symbol."""
    one_hot = np.eye(3)[[1, 1, 2, 2]][:, None, :]
    p = np.where(one_hot > 0, x[:, None, None, None], (1 - x[:, None, None, None]) / 2)
    inputs = {
        "prediction": np.log(p),
        "target": everywhere(np.array([[1, 2]]), x),
        "input_lengths": everywhere(np.array([4]), x),
        "target_lengths": everywhere(np.array([2]), x),
    }
    return Path(inputs, {"prediction": one_hot}, "every frame's log-probability of its symbol")


def _sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


TRUE_CLASS = ("probability", "probability of the true class", 0.005, 0.995)
OVER_OTHERS = ("margin", "margin: the true class's score minus the other's", -5, 5)
FINITE = (-500, 500)
BINARY = (
    Axis(*TRUE_CLASS, _probability, within=UNIT, given=POSITIVE),
    Axis(*OVER_OTHERS, _margin, within=FINITE, given=POSITIVE),
)
MULTICLASS = (
    Axis(*TRUE_CLASS, _probability, within=UNIT, given=CLASSES),
    Axis(*OVER_OTHERS, _margin, within=FINITE, given=CLASSES),
)
MULTILABEL = (
    Axis(*TRUE_CLASS, _probability, within=UNIT, given=LABELS),
    Axis(*OVER_OTHERS, _margin, within=FINITE, given=LABELS),
)
HINGED = Axis(*OVER_OTHERS, _hinged, within=FINITE, given=CLASSES)
SHARE = Axis(
    "probability",
    "probability of a class whose target is {share}",
    0.005,
    0.995,
    _probability,
    within=UNIT,
    given={"share": Given("target", 0.75, 0, 1, 0.01)},
)
TAUGHT = Axis(
    "probability",
    "student's probability of a class that the teacher gives {share}",
    0.005,
    0.995,
    _taught,
    within=UNIT,
    given={"share": Given("teacher's probability", 0.75, 0.05, 0.95)},
)
SAMPLES = Axis("probability", "probability of every sample's own class", 0.005, 0.995, _samples, within=UNIT)
FRAMES = Axis("probability", "probability of every frame's own symbol", 0.005, 0.995, _frames, within=UNIT)

# Rankings


def _ranked(x: Array, scene: Scene) -> Path:
    first = x[:, None]
    inputs = {"first": first, "second": 0 * first, "target": 0 * first + scene.given["higher"]}
    return Path(inputs, {"first": ONE}, "the first one's score")


def _queried(x: Array, scene: Scene) -> Path:
    """Return queries of two documents: the relevant one has the score x, the other 0."""
    scores = np.stack([x, np.zeros_like(x)], axis=1)[:, None, :]
    inputs = {"prediction": scores, "target": everywhere(np.array([[1.0, 0.0]]), x)}
    return Path(inputs, {"prediction": np.eye(2)[0]}, "the relevant document's score")


QUERIED = Axis("margin", "margin: the relevant document's score minus the other's", -5, 5, _queried, within=FINITE)
RANKED = Axis(
    "margin",
    "score of the first minus the second's",
    -3,
    3,
    _ranked,
    given={"higher": Given("should be higher", 1, -1, 1, 1, {1: "the first", -1: "the second"})},
)
