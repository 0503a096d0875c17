"""Axes of losses of answers: preferences, single answers that are desirable or not, and sampled tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from lossd.pictures.axis import ONE, Axis, Given, Path, Scene

Array = np.ndarray[Any, Any]


def _preferred(x: Array, scene: Scene) -> Path:
    """Return the chosen answer x above the rejected one, which is where the reference has both."""
    chosen = x[:, None]
    others = [name for name in ("rejected", "reference_chosen", "reference_rejected") if name in scene.types]
    return Path({"chosen": chosen, **dict.fromkeys(others, 0 * chosen)}, {"chosen": ONE}, "the chosen answer")


def _likely(x: Array, scene: Scene) -> Path:
    chosen = np.log(x)[:, None]
    rejected = np.full_like(chosen, np.log(scene.given["rejected"]))
    return Path({"chosen": chosen, "rejected": rejected}, {"chosen": ONE}, "the chosen answer's log-probability")


def _desirable(x: Array, scene: Scene) -> Path:
    ratio = x[:, None]
    inputs = {"log_ratio": ratio, "desirable": np.full_like(ratio, scene.given["desirable"])}
    return Path(inputs, {"log_ratio": ONE}, "the log-ratio")


def _sampled(x: Array, scene: Scene) -> Path:
    """Return a token that is x times as likely as when it was sampled with probability 1/2."""
    log_ratio = np.log(x)[:, None, None]
    advantage = np.full_like(log_ratio, scene.given["advantage"])
    sampled = np.full_like(log_ratio, np.log(0.5))
    inputs = {"prediction": sampled + log_ratio, "advantage": advantage, "sampled": sampled}
    return Path(inputs, {"prediction": ONE}, "the token's log-probability")


GAINED = Axis("margin", "log-ratio of the chosen answer minus the rejected one's", -30, 30, _preferred)
REWARDED = Axis("margin", "reward of the chosen answer minus the rejected one's", -4, 4, _preferred)
LIKELY = Axis(
    "probability",
    "mean probability of the chosen answer's tokens; the rejected one's is {rejected}",
    0.005,
    0.995,
    _likely,
    within=(1e-6, 1 - 1e-6),
    given={"rejected": Given("probability of the rejected", 0.5, 0.05, 0.95)},
)
DESIRABLE = Axis(
    "log_ratio",
    "log-ratio of the answer",
    -30,
    30,
    _desirable,
    cases="desirable",
    given={"desirable": Given("the answer is", 1, 0, 1, 1, {1: "desirable", 0: "not desirable"})},
)
RATIO = Axis(
    "ratio",
    "ratio of the token's probability to that when it was sampled",
    0.05,
    2,
    _sampled,
    cases="advantage",
    within=(1e-6, np.inf),
    given={"advantage": Given("the advantage is", 1, -1, 1, 1, {1: "positive", -1: "negative"})},
)
