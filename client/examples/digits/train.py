"""Train a classifier of handwritten digits on losses and gradients that a running lossd returns.

The classifier is a softmax regression in plain NumPy: no autograd and no loss function here. Each step sends the
scores of a mini-batch and gets their cross-entropy and its gradient back; the chain rule takes it from there. Held-out
digits are then scored with the service's metrics. The data are the 1797 digits of 8x8 pixels from UCI's "Optical
Recognition of Handwritten Digits" that scikit-learn ships.

    python train.py                              starts a service of its own and stops it at the end
    python train.py --url http://127.0.0.1:8000  asks the one that runs there
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lossd.cli import report
from lossd_client import LossClient

EPOCHS = 20
BATCH = 64
LEARNING_RATE = 0.2
WEIGHT_DECAY = 1e-3
EXPECTED_ACCURACY = 0.95


def main() -> None:
    """Train, with a service of its own unless one is named."""
    parser = argparse.ArgumentParser(description="A digit classifier, trained by lossd.")
    parser.add_argument("--url", help="a running service; by default one is started for the occasion")
    url = parser.parse_args().url
    with nullcontext(url) if url else running_service() as address, LossClient(address) as lossd:
        lossd.wait_until_ready()
        train(lossd, report.console())


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
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://[^\s,]+", process.stdout.readline())
            if address is None:
                sys.exit("the service did not start")
            yield address[0]
        finally:
            process.terminate()


def train(lossd: LossClient, console: Console) -> None:
    """Fit, score, and show both."""
    images, digits = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(images, digits, test_size=0.25, stratify=digits, random_state=0)
    mean, spread = train_x.mean(0), train_x.std(0)
    spread[spread < 0.1] = 1.0  # pixels that are always dark carry nothing, and must not become huge
    train_x, test_x = (train_x - mean) / spread, (test_x - mean) / spread
    random = np.random.default_rng(0)
    weight, bias = np.zeros((64, 10)), np.zeros(10)
    began_s, requests = time.monotonic(), 0

    columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("loss {task.fields[loss]:.4f}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        epochs = progress.add_task("", total=EPOCHS, loss=float("nan"))
        for _ in range(EPOCHS):
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
    elapsed_s = time.monotonic() - began_s
    console.print(f"{requests} losses and gradients in {elapsed_s:.1f} s, {requests / elapsed_s:.0f} a second\n")

    answer = lossd.evaluate("cross_entropy", test_x @ weight + bias, test_y, outputs=["loss", "metrics"])
    console.print(report.render(answer, title=f"{len(test_y)} digits held out"))
    if answer.metrics.accuracy < EXPECTED_ACCURACY:
        sys.exit(f"expected an accuracy of at least {EXPECTED_ACCURACY}")


if __name__ == "__main__":
    main()
