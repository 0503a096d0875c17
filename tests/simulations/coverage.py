"""How often the intervals of runs contain the true value, how wide they are, and how often a difference is found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import lossd
from simulations.populations import Population


class Coverage(NamedTuple):
    """What a simulation found for one number.

    Attributes:
        draws: How many samples were drawn.
        covered: The part of all intervals that contain the true value.
        interval_share: The part of samples that have an interval.
        ratio: The mean standard error over the standard deviation of the values.
    """

    draws: int
    covered: float
    interval_share: float
    ratio: float


def run_of(population: Population, inputs: Mapping[str, Any], **options: Any) -> lossd.Run:
    """Return a run that has counted these inputs as one batch."""
    run = lossd.Run(
        task=population.task,
        metrics=list(population.metrics),
        identity="position",
        groups=64,
        **population.options,
        **options,
    )
    tensors = {name: tensor for name, tensor in inputs.items() if name != "cluster_id"}
    run.add(inputs=tensors, first=0, cluster_id=inputs.get("cluster_id"))
    return run


def coverage(population: Population, rows: int, draws: int, seed: int, *, level: float = 0.95) -> dict[str, Coverage]:
    """Return what intervals of samples of so many rows cover, by the number's name."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[bool, bool, float, float]]] = {name: [] for name in population.true}
    for _ in range(draws):
        result = run_of(population, population.sample(rng, rows)).result(level=level)
        values = result.flat()
        for name, true in population.true.items():
            interval = result.intervals.get(name)
            if interval is None:
                found[name].append((False, False, np.nan, np.nan))
            else:
                within = interval.low <= true <= interval.high
                found[name].append((True, within, interval.standard_error, values[name]))
    answers = {}
    for name, entries in found.items():
        intervals = [entry[1:] for entry in entries if entry[0]]
        if not intervals:
            answers[name] = Coverage(draws, math.nan, 0.0, math.nan)
            continue
        within, errors, values_of = (np.array(column) for column in zip(*intervals, strict=True))
        ratio = errors.mean() / values_of.std()
        answers[name] = Coverage(draws, float(within.mean()), len(intervals) / draws, float(ratio))
    return answers


class Power(NamedTuple):
    """How often runs are said to differ: compared over the same rows, and as if the rows were different ones."""

    paired: float
    unpaired: float


def power(rows: int, better: float, draws: int, seed: int) -> Power:
    """Return how often a difference of two models is found that err on the same hard rows.

    Args:
        rows: The rows of a sample.
        better: How many errors of the first model the second one does not make, as a part of all rows. 0 for two
            models that are equally good.
        draws: How many samples are drawn.
        seed: Of the samples.
    """
    rng = np.random.default_rng(seed)
    found = np.zeros(2)
    for _ in range(draws):
        target = rng.integers(0, 2, rows)
        hard = rng.random(rows) < 0.25
        runs = []
        for of_hard in (0.7, 0.7 - 4 * better):
            wrong = rng.random(rows) < np.where(hard, of_hard, 0.02)
            prediction = np.where(wrong, 1 - target, target) * 2.0 - 1
            run = lossd.Run(task="binary", metrics=["f1"], identity="position", groups=64)
            run.add(prediction, target, first=0)
            runs.append(run)
        for number, unpaired in enumerate((False, True)):
            comparison = runs[0].compare(runs[1], unpaired=unpaired).comparisons[0]
            found[number] += comparison.metrics["f1"].verdict != "undecided"
    paired, unpaired = (found / draws).tolist()
    return Power(paired, unpaired)
