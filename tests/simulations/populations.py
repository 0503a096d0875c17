"""Populations of which the true value of a metric is known, and samples of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

Array = np.ndarray[Any, np.dtype[Any]]
Sample = Callable[[np.random.Generator, int], dict[str, Array]]

IMAGE = 8
"""The width and the height of an image."""


@dataclass(frozen=True)
class Population:
    """A population.

    Attributes:
        task: The task of its metrics.
        metrics: The metrics.
        true: The true value of each number, by name.
        sample: Draws the inputs of so many rows.
        options: Further arguments of a run.
    """

    task: str
    metrics: tuple[str, ...]
    true: Mapping[str, float]
    sample: Sample
    options: Mapping[str, Any] = field(default_factory=dict)


def classes(shares: Array, confusion: Array) -> Population:
    """Return entries of several classes.

    Args:
        shares: The share of each class among the targets, (C,).
        confusion: The share of each prediction among the targets of a class, (C, C).
    """
    cells = shares[:, None] * confusion
    hits, actual, predicted = np.diagonal(cells), cells.sum(1), cells.sum(0)

    def sample(rng: np.random.Generator, rows: int) -> dict[str, Array]:
        target, prediction = np.divmod(rng.choice(cells.size, rows, p=cells.ravel()), len(shares))
        scores = np.zeros((rows, len(shares)), "f4")
        scores[np.arange(rows), prediction] = 1
        return {"prediction": scores, "target": target}

    true = {
        "accuracy": hits.sum(),
        "f1.macro": (2 * hits / (actual + predicted)).mean(),
        "recall.macro": (hits / actual).mean(),
    }
    return Population("multiclass", ("accuracy", "f1", "recall"), true, sample)


def mixed(shares: Array, right: float) -> Population:
    """Return classes of which a part is predicted rightly, and the rest as each other class alike."""
    count = len(shares)
    confusion = np.full((count, count), (1 - right) / (count - 1))
    np.fill_diagonal(confusion, right)
    return classes(shares, confusion)


def decisions(right: float) -> Population:
    """Return decisions of which a part is right."""

    def sample(rng: np.random.Generator, rows: int) -> dict[str, Array]:
        target = rng.integers(0, 2, rows)
        return {"prediction": np.where(rng.random(rows) < right, target, 1 - target) * 2.0 - 1, "target": target}

    return Population("binary", ("accuracy",), {"accuracy": right}, sample)


def scores(positive: float, distance: float) -> Population:
    """Return normally distributed scores, those of a part of the rows higher by a distance."""

    def sample(rng: np.random.Generator, rows: int) -> dict[str, Array]:
        target = (rng.random(rows) < positive).astype(int)
        return {"prediction": rng.normal(size=rows) + distance * target, "target": target}

    return Population("binary", ("auroc",), {"auroc": float(stats.norm.cdf(distance / np.sqrt(2)))}, sample)


def numbers(correlation: float) -> Population:
    """Return normally distributed targets with the best linear prediction."""

    def sample(rng: np.random.Generator, rows: int) -> dict[str, Array]:
        prediction = correlation * rng.normal(size=rows)
        return {"prediction": prediction, "target": prediction + np.sqrt(1 - correlation**2) * rng.normal(size=rows)}

    true = {"r2": correlation**2, "pearson": correlation, "mse": 1 - correlation**2}
    return Population("regression", tuple(true), true, sample)


def images() -> Population:
    """Return images with an object each, of which a part that differs from image to image is found."""
    pixels = IMAGE * IMAGE

    def sample(rng: np.random.Generator, rows: int) -> dict[str, Array]:
        size, found = rng.integers(16, 49, rows)[:, None], rng.beta(6, 2, (rows, 1))
        order = np.arange(pixels)
        target = (order < size).astype("i8")
        noise = rng.random((rows, pixels))
        positive = np.where(target == 1, noise < found, noise < (1 - found) / 4)
        return {"prediction": np.where(positive, 1.0, -1.0).astype("f4"), "target": target}

    # The pixels of an image are independent given its size and its part, so that the mean is an integral over both.
    rng = np.random.default_rng(0)
    drawn = [_overlap(sample(rng, 20_000)) for _ in range(50)]
    return Population("binary", ("per_image_iou",), {"per_image_iou": float(np.mean(drawn))}, sample)


def _overlap(inputs: Mapping[str, Array]) -> float:
    positive, target = inputs["prediction"] > 0, inputs["target"] == 1
    return float(((positive & target).sum(1) / (positive | target).sum(1)).mean())


def clusters(size: int) -> Population:
    """Return decisions of clusters of rows; the part that is right differs from cluster to cluster."""

    def sample(rng: np.random.Generator, rows: int) -> dict[str, Array]:
        count = rows // size
        target = rng.integers(0, 2, count * size)
        right = rng.random(count * size) < np.repeat(rng.beta(8, 2, count), size)
        return {
            "prediction": np.where(right, target, 1 - target) * 2.0 - 1,
            "target": target,
            "cluster_id": np.repeat(np.arange(count), size),
        }

    return Population("binary", ("accuracy",), {"accuracy": 0.8}, sample)


def zipf(count: int) -> Array:
    """Return shares of classes that fall as one over the rank."""
    shares = 1 / np.arange(1, count + 1)
    return shares / shares.sum()
