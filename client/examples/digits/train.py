"""Train a classifier of handwritten digits on losses and gradients that a running lossd returns.

The classifier is a softmax regression in plain NumPy: no autograd and no loss function here. Each step sends the
scores of a mini-batch and gets their cross-entropy and its gradient back; the chain rule takes it from there. Held-out
digits are then scored with the service's metrics. At the end two runs compare the model with itself after one epoch: is
it better, by more than chance? The data are the 1797 digits of 8x8 pixels from UCI's "Optical Recognition of
Handwritten Digits" that scikit-learn ships.

    python train.py                              starts a service of its own and stops it at the end
    python train.py --url http://127.0.0.1:8000  asks the one that runs there
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lossd.cli import fitting, report
from lossd_client import LossClient

EPOCHS = 20
BATCH = 64
LEARNING_RATE = 0.2
WEIGHT_DECAY = 1e-3
EXPECTED_ACCURACY = 0.95

Floats = npt.NDArray[np.float64]


def main() -> None:
    """Train, with a service of its own unless one is named."""
    parser = argparse.ArgumentParser(description="A digit classifier, trained by lossd.")
    parser.add_argument("--url", help="a running service; by default one is started for the occasion")
    url = parser.parse_args().url
    with nullcontext(url) if url else running_service() as address, LossClient(address) as lossd:
        lossd.wait_until_ready()
        console, data = fitting.console(), digits()
        first, last = count(lossd, data, train(lossd, data, console))
        console.print(f"\n{lossd.compare(first, last, metrics=['accuracy', 'f1']).sentence}", soft_wrap=True)
        console.print(f"{address.rstrip('/')}/#/compare?run={first}&run={last}", soft_wrap=True)
        if url is None and sys.stdin.isatty():
            with suppress(EOFError, KeyboardInterrupt):
                console.input("Open it, and press Enter to stop the service. ")


@contextmanager
def running_service() -> Iterator[str]:
    """A service on a free port of this machine, for as long as the block lasts."""
    command = [
        sys.executable,
        "-m",
        "lossd.cli",
        "serve",
        "--port",
        "0",
        "--log-level",
        "warning",
        "--access-log",
        "none",
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command, env={**os.environ, "LOSSD_RUNS": f"{folder}/runs.db"}, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            address = re.search(r"http://[^\s,]+", process.stdout.readline())
            if address is None:
                sys.exit("the service did not start")
            yield address[0]
        finally:
            process.terminate()


class Digits(NamedTuple):
    """The digits to learn from and those held out; ``ink`` says which of these are faint and which are bold."""

    train_x: Floats
    test_x: Floats
    train_y: npt.NDArray[np.int64]
    test_y: npt.NDArray[np.int64]
    ink: list[str]


def digits() -> Digits:
    """Split the digits, and standardise their pixels."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
    mean, spread = train_x.mean(0), train_x.std(0)
    spread[spread < 0.1] = 1.0  # pixels that are always dark carry nothing, and must not become huge
    darkness = test_x.sum(1)
    ink = ["faint" if each < np.median(darkness) else "bold" for each in darkness]
    return Digits((train_x - mean) / spread, (test_x - mean) / spread, train_y, test_y, ink)


def train(lossd: LossClient, data: Digits, console: Console) -> dict[str, Floats]:
    """Fit, score, and show both.

    Returns:
        The scores of the held-out digits by the model after its first epoch and after the last.
    """
    train_x, test_x, train_y, test_y, _ = data
    random = np.random.default_rng(0)
    weight, bias = np.zeros((64, 10)), np.zeros(10)
    began_s, requests = time.monotonic(), 0
    scores: dict[str, Floats] = {}

    columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("loss {task.fields[loss]:.4f}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        epochs = progress.add_task("", total=EPOCHS, loss=float("nan"))
        for epoch in range(EPOCHS):
            order = random.permutation(len(train_x))
            numerator = denominator = 0.0
            for start in range(0, len(order), BATCH):
                x, y = train_x[order[start : start + BATCH]], train_y[order[start : start + BATCH]]
                answer = lossd.evaluate("cross_entropy", x @ weight + bias, y, outputs=["loss", "gradient"])
                weight -= LEARNING_RATE * (x.T @ answer.gradient + WEIGHT_DECAY * weight)
                bias -= LEARNING_RATE * answer.gradient.sum(0)
                numerator += answer.reduction.numerator  # sums of these give the epoch's exact mean
                denominator += answer.reduction.denominator
                requests += 1
            progress.update(epochs, advance=1, loss=numerator / denominator)
            if epoch in (0, EPOCHS - 1):
                scores["1-epoch" if epoch == 0 else f"{EPOCHS}-epochs"] = test_x @ weight + bias
    elapsed_s = time.monotonic() - began_s
    console.print(f"{requests} losses and gradients in {elapsed_s:.1f} s, {requests / elapsed_s:.0f} a second\n")

    answer = lossd.evaluate("cross_entropy", test_x @ weight + bias, test_y, outputs=["loss", "metrics"])
    console.print(report.render(answer, title=f"{len(test_y)} digits held out"))
    if answer.metrics.accuracy < EXPECTED_ACCURACY:
        sys.exit(f"expected an accuracy of at least {EXPECTED_ACCURACY}")
    return scores


def count(lossd: LossClient, data: Digits, scores: Mapping[str, Floats]) -> list[str]:
    """Count the scores of each model in a run of its own, and return the runs' names."""
    began = time.strftime("%Y%m%d-%H%M%S")  # a service keeps its runs, and another training has other scores
    names = []
    for model, rows_of_scores in scores.items():
        name = f"digits-{began}-{model}"
        size = len(rows_of_scores)
        run = lossd.run(name, task="multiclass", dataset="digits", rows=size, slices={"ink": ["faint", "bold"]})
        for first in range(0, size, BATCH):
            rows = slice(first, first + BATCH)
            run.add(rows_of_scores[rows], data.test_y[rows], first=first, slices={"ink": data.ink[rows]})
        run.seal()
        names.append(name)
    return names


if __name__ == "__main__":
    main()
