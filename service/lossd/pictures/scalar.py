"""Axes of losses of numbers: regression, generative models, and losses made of losses."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lossd.pictures.axis import ONE, Axis, Given, Path, Scene, everywhere

Array = np.ndarray[Any, Any]

DEFAULTS = {"variance": 1.0, "scale": 1.0, "df": 4.0}
"""Inputs besides the target that are not 0 by default."""

ERROR_OF_1 = {"error": Given("error", 1, 0, 4)}

# Regression


def _error(x: Array, scene: Scene) -> Path:
    inputs = {name: np.full((len(x), 1), scene.given.get(name, DEFAULTS.get(name, 0.0))) for name in scene.types}
    return Path({**inputs, "prediction": inputs["target"] + x[:, None]}, {"prediction": ONE}, "the prediction")


def _scale(x: Array, scene: Scene) -> Path:
    error = np.full((len(x), 1), float(scene.given["error"]))
    inputs = {name: np.full_like(error, scene.given.get(name, DEFAULTS.get(name, 0.0))) for name in scene.types}
    return Path({**inputs, "prediction": error, "scale": x[:, None]}, {"scale": ONE}, "the scale")


def _variance(x: Array, scene: Scene) -> Path:
    error = np.full((len(x), 1), float(scene.given["error"]))
    inputs = {"prediction": error, "target": np.zeros_like(error), "variance": x[:, None]}
    return Path(inputs, {"variance": ONE}, "the variance")


def _positive(x: Array, scene: Scene, quantity: str) -> Path:
    """Return predictions of a positive quantity, or of its logarithm."""
    numbers = x[:, None]
    of_logarithm = scene.parameters.get("log_input", False)
    inputs = {name: np.full_like(numbers, scene.given.get(name, 0.0)) for name in scene.types}
    inputs["prediction"] = np.log(numbers) if of_logarithm else numbers
    inputs["target"] = np.full_like(numbers, scene.given["count"])
    return Path(inputs, {"prediction": ONE}, f"the logarithm of the {quantity}" if of_logarithm else f"the {quantity}")


def _levels(x: Array, scene: Scene) -> Path:
    return _several(x, scene, len(scene.parameters["levels"]))


def _members(x: Array, scene: Scene) -> Path:
    return _several(x, scene, 5)


def _several(x: Array, scene: Scene, count: int) -> Path:
    """Return forecasts of several numbers at equal distances around x, of a target of 0."""
    steps = np.arange(count) - (count - 1) / 2
    prediction = x[:, None, None] + scene.given["spread"] * steps / max(count - 1, 1)
    return Path({"prediction": prediction, "target": np.zeros((len(x), 1))}, {"prediction": ONE}, "the middle")


def _middle(x: Array, scene: Scene) -> Path:
    middle, half = x[:, None], scene.given["width"] / 2
    inputs = {"lower": middle - half, "upper": middle + half, "target": np.zeros_like(middle)}
    return Path(inputs, {"lower": ONE, "upper": ONE}, "the middle")


def _width(x: Array, scene: Scene) -> Path:
    half = x[:, None] / 2
    inputs = {"lower": -half, "upper": half, "target": np.full_like(half, scene.given["error"])}
    return Path(inputs, {"lower": -ONE / 2, "upper": ONE / 2}, "the width")


def _feature(x: Array, scene: Scene) -> Path:
    first = x[:, None, None]
    return Path({"prediction.0": first, "target.0": np.zeros_like(first)}, {"prediction.0": ONE}, "the feature")


ERROR = Axis("error", "error (prediction − target)", -3, 3, _error)
NORMAL = replace(ERROR, given={"variance": Given("variance", 1, 0.05, 4)})
VARIANCE = Axis(
    "variance", "variance, where the error is {error}", 0.1, 4, _variance, within=(1e-6, np.inf), given=ERROR_OF_1
)
RATE = Axis(
    "rate",
    "predicted rate, where {count} were counted",
    0.2,
    10,
    partial(_positive, quantity="rate"),
    within=(1e-6, np.inf),
    given={"count": Given("count", 3, 0, 10, 1)},
)
OF_SCALE = {"scale": Given("scale", 1, 0.05, 4)}
OF_DF = {"df": Given("degrees of freedom", 4, 0.5, 100)}
SCALED = replace(ERROR, given=OF_SCALE)
SCALE = Axis("scale", "scale, where the error is {error}", 0.1, 4, _scale, within=(1e-6, np.inf), given=ERROR_OF_1)
HEAVY_TAILED = replace(ERROR, given=OF_SCALE | OF_DF)
SCALE_OF_HEAVY_TAILED = replace(SCALE, given=ERROR_OF_1 | OF_DF)
RELATIVE = replace(
    ERROR, label="error (prediction − target) of a target of {target}", given={"target": Given("target", 1, 0.1, 4)}
)
OF_MEAN = replace(RATE, path=partial(_positive, quantity="mean"))
DISPERSED = replace(
    OF_MEAN,
    label="predicted mean, where {count} were counted",
    given={**RATE.given, "dispersion": Given("dispersion", 0.5, 0.05, 4)},
)
AMOUNT = replace(
    OF_MEAN, label="predicted mean, where the target is {count}", given={"count": Given("target", 3, 0.1, 10)}
)
AMOUNT_OR_NONE = replace(AMOUNT, given={"count": Given("target", 3, 0, 10)})
PREDICTED = replace(
    AMOUNT_OR_NONE,
    label="prediction, where the target is {count}",
    path=partial(_positive, quantity="prediction"),
)
SPREAD = {"spread": Given("distance of the outermost predictions", 2, 0, 6)}
QUANTILES = Axis("error", "middle of the quantiles, {spread} apart, of a target of 0", -3, 3, _levels, given=SPREAD)
MEMBERS = Axis("error", "middle of five members, {spread} apart, of a target of 0", -3, 3, _members, given=SPREAD)
MIDDLE = Axis(
    "error",
    "middle of an interval of width {width}, of a target of 0",
    -3,
    3,
    _middle,
    given={"width": Given("width", 2, 0, 6)},
)
WIDTH = Axis(
    "width",
    "width of an interval, of a target {error} off its middle",
    0,
    6,
    _width,
    within=(0, np.inf),
    given=ERROR_OF_1,
)
FEATURE = Axis("error", "error (prediction − target)", -3, 3, _feature)

# Generative models


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
RECONSTRUCTION = Axis("prediction", "reconstruction of a target of 1", 0.005, 1, _reconstruction, within=(0, 1))
MEAN = Axis("mean", "mean of the latent", -3, 3, _mean)
LOG_VARIANCE = Axis("log_variance", "log-variance of the latent", -4, 3, _log_variance)

# Losses made of losses, each along the quantity that it adds


def _log_variance_of_a_task(x: Array, scene: Scene) -> Path:
    error = np.full((len(x), 1), float(scene.given["error"]))
    inputs = {"prediction": error, "target": np.zeros_like(error), "log_variance": x[:, None]}
    return Path(inputs, {"log_variance": ONE}, "the log-variance")


def _progress(x: Array, scene: Scene) -> Path:
    """Return eleven samples from easy to hard, whose errors grow with their difficulty."""
    difficulty = np.arange(11) / 10
    inputs = {"prediction": 2 * difficulty, "target": 0 * difficulty, "difficulty": difficulty}
    return Path({name: everywhere(tensor, x) for name, tensor in inputs.items()}, {}, None, {"progress": x})


def _weight_of_a_task(x: Array, scene: Scene) -> Path:
    one = np.array([1.0, 1.0])
    inputs = {
        "losses": np.array([scene.given["now"], 0.8]),
        "initial_losses": one,
        "gradient_norms": one,
    }
    weights = np.stack([x, np.ones_like(x)], axis=1)
    tensors = {name: everywhere(tensor, x) for name, tensor in inputs.items()}
    return Path({**tensors, "task_weight": weights}, {"task_weight": np.array([1.0, 0.0])}, "the weight")


MSE = {"loss": {"name": "mse"}}
WEIGHTED = replace(ERROR, start={"terms": [{**MSE, "weight": 0.5}, {"loss": {"name": "mae"}, "weight": 1}]})
UNCERTAIN = Axis(
    "log_variance",
    "log-variance of the task",
    -3,
    3,
    _log_variance_of_a_task,
    given=ERROR_OF_1,
    start={"terms": [MSE]},
)
PROGRESS = Axis("progress", "progress of the curriculum", 0, 1, _progress, within=(0, 1), start=MSE, sets=("progress",))
WEIGHT = Axis(
    "weight",
    "weight of the first of two tasks",
    0,
    3,
    _weight_of_a_task,
    within=(0, np.inf),
    given={"now": Given("its loss now, relative to its first", 0.5, 0.05, 1.5)},
)
FORMULA = replace(ERROR, start={"formula": "e = prediction - target; log1p(square(e / c))", "parameters": {"c": 1}})
