"""What a run costs: the parts that it adds up, and a batch in a run beside the same batch evaluated."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import lossd
from benchmarks.comparison import Step
from lossd.exact.sums import ExactSums
from lossd.exact.table import Table
from lossd.runs.rows.fingerprint import Fingerprint
from lossd.runs.rows.identity import Positions
from lossd.runs.run import Run

ROWS, BATCH = 1 << 22, 1 << 16
CELLS = 441

Array = npt.NDArray[Any]
Add = Callable[[int, Array], object]


def parts() -> Iterator[tuple[str, Callable[[], Add]]]:
    """Yield each kind of part: its name, and what begins one and returns how a batch is added to it."""

    def sums() -> Add:
        total = ExactSums()
        return lambda _, values: total.add(values)

    def cells() -> Add:
        totals, index = ExactSums(CELLS), np.arange(BATCH) % CELLS
        return lambda _, values: totals.add(values, index)

    def products() -> Add:
        total = ExactSums()
        return lambda _, values: total.add_products(values, values)

    def table() -> Add:
        scores, positive = Table(), np.arange(BATCH) % 3 == 0
        return lambda _, values: scores.add(values, positive)

    def weighted_table() -> Add:
        scores, positive, weight = Table(weighted=True), np.arange(BATCH) % 3 == 0, np.full(BATCH, 0.3)
        return lambda _, values: scores.add(values, positive, weight)

    def targets() -> Add:
        found = Fingerprint()
        return lambda first, values: found.add({"target": values}, first=first)

    def identity() -> Add:
        rows = Positions()
        return lambda first, _: rows.add(first, BATCH)

    yield "a sum", sums
    yield f"sums in {CELLS} cells", cells
    yield "a sum of squares", products
    yield "a table of scores", table
    yield "a table of weighted scores", weighted_table
    yield "the fingerprint of the targets", targets
    yield "rows by position", identity


def batches(task: str) -> list[Mapping[str, Array]]:
    """Return data in batches."""
    rng = np.random.default_rng(0)
    found: list[Mapping[str, Array]] = []
    for _ in range(ROWS // BATCH):
        if task == "multiclass":
            scores, target = rng.normal(size=(BATCH, 10)), rng.integers(0, 10, BATCH)
        else:
            scores, target = rng.normal(size=BATCH), rng.integers(0, 2, BATCH).astype(np.float32)
        found.append({"prediction": scores.astype(np.float32), "target": target})
    return found


def seconds(function: Callable[[], object]) -> float:
    """Return the CPU time of a call."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def added(begin: Callable[[], Add]) -> float:
    """Return the CPU time of adding all rows to a part."""
    values = np.random.default_rng(0).normal(size=(ROWS // BATCH, BATCH))
    add = begin()
    return seconds(lambda: [add(number * BATCH, batch) for number, batch in enumerate(values)])


def compared(task: str, metrics: list[str], rounds: int) -> tuple[float, float]:
    """Return the median CPU time of counting all rows in a run, and that of evaluating the batches, alternately."""
    data = batches(task)

    def run() -> None:
        counted = Run(task=task, metrics=metrics, identity="position")
        for number, batch in enumerate(data):
            counted.add(inputs=batch, first=number * BATCH)
        counted.result()

    def evaluated() -> None:
        for batch in data:
            lossd.evaluate(task=task, inputs=batch, metrics=metrics)

    pairs = [(seconds(run), seconds(evaluated)) for _ in range(rounds + 1)][1:]
    counted, alone = zip(*pairs, strict=True)
    return statistics.median(counted), statistics.median(alone)


READ_CLASSES, READ_ROWS = 21, 10_000_000


def reading(metrics: list[str], rows: int = READ_ROWS, times: int = 5) -> float:
    """Return the least CPU time of reading a result with its intervals, of 21 classes in 64 groups.

    The same batch is counted again and again, at other positions, so that its rows are in other groups.
    """
    rng = np.random.default_rng(0)
    target = rng.integers(0, READ_CLASSES, BATCH)
    scores = rng.normal(size=(BATCH, READ_CLASSES)).astype(np.float32)
    scores[np.arange(BATCH), target] += 2
    run = Run(task="multiclass", metrics=metrics, identity="position", groups=64)
    for first in range(0, rows, BATCH):
        run.add(scores, target, first=first)
    return min(seconds(run.result) for _ in range(times))


COMPARED = (
    ("multiclass", ["default"]),
    ("multiclass", ["default", "log_loss"]),
    ("binary", ["default"]),
    ("binary", ["auroc"]),
    ("regression", ["default"]),
)


def rows_of_parts(rounds: int, step: Step) -> Iterator[tuple[Any, ...]]:
    """Yield each part with its rows a second."""
    for name, begin in parts():
        step(name)
        taken = statistics.median(added(begin) for _ in range(rounds))
        yield name, ROWS / taken / 1e6, taken / ROWS * 1e9, ""


def rows_of_runs(rounds: int, step: Step) -> Iterator[tuple[Any, ...]]:
    """Yield each task with its rows a second in a run, and how much longer that takes than evaluating the batches."""
    for task, metrics in COMPARED:
        step(task)
        run, alone = compared(task, metrics, rounds)
        yield f"a run: {task}, {', '.join(metrics)}", ROWS / run / 1e6, run / ROWS * 1e9, run / alone


def measured(rounds: int, step: Step) -> list[tuple[Any, ...]]:
    """Return the rows of the table, measured with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*rows_of_parts(rounds, step), *rows_of_runs(rounds, step)]
    finally:
        torch.set_num_threads(threads)
