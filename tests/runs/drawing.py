"""Random data sets of every task, as inputs by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import lossd
from lossd.metrics import METRICS, TASKS
from lossd_client.messages import Evaluation

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]

UNWEIGHTED = ("gan", "lsgan", "labelled_embeddings", "paired_views")
"""The tasks without sample weights."""


def draw(task: str, rng: np.random.Generator, n: int, dtype: str = "float32", *, weighted: bool = False) -> Inputs:
    """Return a data set of n rows; a fifth of its weights are 0."""

    def real(*shape: int) -> Array:
        return rng.normal(size=(n, *shape)).astype(dtype)

    def whole(below: int, *shape: int) -> Array:
        return rng.integers(0, below, (n, *shape))

    def boxes() -> Array:
        low = rng.random((n, 2))
        return np.concatenate([low, low + rng.random((n, 2))], 1).astype(dtype)

    def sets() -> Array:
        several = rng.permuted(np.broadcast_to(np.arange(5), (n, 5)), axis=1)
        return np.where(np.arange(5) < whole(5)[:, None], several, -1)

    inputs: dict[str, Array]
    match task:
        case "binary":
            inputs = {"prediction": real(3), "target": whole(2, 3)}
        case "multilabel":
            inputs = {"prediction": real(4, 2), "target": whole(2, 4, 2)}
        case "sets":
            inputs = {"prediction": real(5), "target": sets()}
        case "multiclass":
            inputs = {"prediction": real(6), "target": whole(6)}
        case "segmentation":
            inputs = {"prediction": real(3, 5, 4), "target": whole(3, 5, 4)}
        case "regression":
            inputs = {"prediction": real(3), "target": real(3)}
            if rng.random() < 0.5:  # of logarithms and deviances
                inputs = {name: np.exp(array) for name, array in inputs.items()}
        case "quantiles" | "ensembles":
            inputs = {"prediction": real(4, 2), "target": real(2)}
        case "intervals":
            inputs = {"lower": real(2) - 1, "upper": real(2) + 1, "target": real(2)}
        case "pairs":
            inputs = {"first": real(4), "second": real(4), "similar": whole(2)}
        case "cosine_pairs":
            inputs = {"first": real(4), "second": real(4), "similar": 2 * whole(2) - 1}
        case "distances":
            inputs = {"prediction": np.abs(real()), "target": 2 * whole(2) - 1}
        case "gan" | "lsgan":
            inputs = {"real": real(2), "fake": real(2)}
        case "gan_generator" | "lsgan_generator":
            inputs = {"fake": real(2)}
        case "boxes":
            inputs = {"prediction": boxes(), "target": boxes()}
        case "vae":
            target = rng.random((n, 6)).astype(dtype)
            inputs = {"prediction": real(6), "target": target, "mean": real(3), "log_variance": real(3)}
        case "triplets":
            inputs = {"anchor": real(4), "positive": real(4), "negative": real(4)}
        case "queries":
            inputs = {"prediction": real(6).round(1), "target": whole(4, 6) * (rng.random((n, 1)) > 0.2)}
        case "preferences":
            inputs = {"chosen": real(), "rejected": real()}
        case "policy":
            inputs = {"prediction": real(4), "sampled": real(4), "advantage": real(4), "reference": real(4)}
        case "ranking":
            inputs = {"first": real(2), "second": real(2), "target": 2 * whole(2, 2) - 1}
        case "labelled_embeddings":
            inputs = {"embedding": real(4), "label": whole(3)}
        case "paired_views":
            inputs = {"first": real(4), "second": real(4)}
        case _:
            raise AssertionError(f"there is no data set of task {task}; draw one")
    if weighted:
        inputs["sample_weight"] = rng.random(n) * (rng.random(n) > 0.2)
    return inputs


NEEDED = {"by": "std", "scale": 2.0}
"""The options that have no default."""


def decomposable(task: str) -> list[str]:
    """Return the metrics of a task that a run has."""
    return [name for name, metric in METRICS[task].items() if metric.reads is not None]


def tasks() -> list[str]:
    """Return the tasks with such a metric."""
    return [task for task in TASKS if decomposable(task)]


def options(task: str, rng: np.random.Generator) -> dict[str, Any]:
    """Return all metrics with random options."""
    chosen: dict[str, Any] = {"names": decomposable(task), "zero_division": rng.choice([None, 0.0, 1.0])}
    chosen["k"] = {"multiclass": 3, "segmentation": 2}.get(task, 5)
    chosen |= {"bins": int(rng.integers(1, 12)), "weights": str(rng.choice(["none", "linear", "quadratic"]))}
    chosen |= {"scale": 3.0, "by": str(rng.choice(["mean", "range", "std", "l2"])), "p": float(rng.choice([1, 2, 3.5]))}
    chosen |= {"levels": [0.1, 0.9], "power": float(rng.choice([-1, 0, 1, 1.5, 2, 3]))}
    chosen |= {"top": float(rng.uniform(0.01, 1)), "normalize": str(rng.choice(["true", "pred", "all"]))}
    chosen |= {f"min_{name}": float(rng.random()) for name in ("precision", "recall", "specificity", "sensitivity")}
    if rng.random() < 0.5:
        chosen["max_fpr"] = float(rng.uniform(0.05, 1))
    chosen |= {
        "quantiles": [0.0, 0.1, 0.5, 0.99],
        "beta": 2.0,
        "points": int(rng.integers(2, 30)),
        "iou_threshold": 0.3,
    }
    if task == "queries":
        chosen |= {"gain": str(rng.choice(["linear", "exponential"])), "ties": str(rng.choice(["averaged", "stable"]))}
    if task in ("binary", "multilabel", "sets", "gan"):
        chosen["threshold"] = float(rng.random())
    return chosen


def rows(inputs: Inputs, first: int, last: int) -> dict[str, Array]:
    """Return the rows from ``first`` up to but without ``last``."""
    return {name: array[first:last] for name, array in inputs.items()}


def splits(rng: np.random.Generator, n: int, most: int = 50) -> list[tuple[int, int]]:
    """Return up to ``most`` batches of n rows, in random order."""
    cuts = np.unique(rng.integers(1, n, rng.integers(0, min(n, most)))) if n > 1 else np.array([], int)
    bounds = [0, *cuts.tolist(), n]
    batches = list(itertools.pairwise(bounds))
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluated(task: str, inputs: Inputs, metrics: Mapping[str, Any]) -> Evaluation:
    """Return the evaluation of all rows at once."""
    return lossd.evaluate(task=task, inputs=inputs, metrics=metrics)


def differences(found: Any, expected: Any, within: float, place: str = "") -> Iterator[str]:
    """Yield where two values differ by more than ``within``, relative to the larger of 1 and the expected number."""
    if isinstance(expected, Mapping):
        if set(found) != set(expected):
            yield f"{place}: {sorted(found)} instead of {sorted(expected)}"
            return
        for name, value in expected.items():
            yield from differences(found[name], value, within, f"{place}/{name}")
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for position, value in enumerate(expected):
            yield from differences(found[position], value, within, f"{place}/{position}")
    elif isinstance(expected, float) and isinstance(found, int | float) and np.isfinite(expected):
        if not abs(found - expected) <= within * max(1, abs(expected)):
            yield f"{place}: {found} instead of {expected}"
    elif not (found == expected or (found != found and expected != expected)):
        yield f"{place}: {found} instead of {expected}"
