"""Requests from several connections at once, each answer compared with the right one."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lossd_client import LossClient

__all__ = ["Ask", "Load", "mean_of_squares", "slow"]

Ask = Callable[[LossClient, np.random.Generator], bool]
"""Sends a request, and returns whether the answer is right."""

ROWS, COLUMNS = 64, 10
PAIRS = 2048
PAUSE_S = 0.01


def mean_of_squares(client: LossClient, random: np.random.Generator, shape: tuple[int, ...] = (ROWS, COLUMNS)) -> bool:
    """Ask for the mean squared error of new numbers and its gradient."""
    prediction, target = random.standard_normal((2, *shape), dtype=np.float32)
    answer = client.evaluate("mse", prediction, target)
    difference = prediction.astype(np.float64) - target
    slope = 2 * difference / difference.size
    loss, gradient = answer.loss, answer.gradients["prediction"]
    return math.isclose(loss, np.mean(difference**2), rel_tol=1e-5) and np.allclose(gradient, slope, 1e-5, 1e-12)


def slow(client: LossClient, _: np.random.Generator) -> bool:
    """Ask for a loss of few bytes and much work: every pair of views is as similar as the right one."""
    same = np.ones((PAIRS, 2), np.float32)
    return math.isclose(
        client.evaluate("nt_xent", inputs={"first": same, "second": same}, outputs="loss").loss,
        math.log(2 * PAIRS - 1),
        rel_tol=1e-5,
    )


@dataclass
class Load:
    """What clients saw while a block ran. Each client has one connection, and repeats nothing.

    Attributes:
        url: The service's address.
        connections: How many clients.
        ask: What each asks again and again.
        pause_s: Between two requests of a client: what is started meanwhile needs the processor too.
        answered: The right answers.
        slowest_s: The longest time to an answer, in seconds.
        wrong: The wrong answers.
        lost: What requests without an answer raised.
    """

    url: str
    connections: int
    ask: Ask = mean_of_squares
    pause_s: float = PAUSE_S
    answered: int = 0
    wrong: int = 0
    slowest_s: float = 0.0
    lost: list[str] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(seed,)) for seed in range(self.connections)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, answers: int) -> None:
        """Wait until there are so many more answers, or 60 s."""
        most, end = self.answered + answers, time.monotonic() + 60
        while self.answered < most and time.monotonic() < end:
            time.sleep(0.05)

    def _client(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        with LossClient(self.url, retries=0) as client:
            while not self._over.wait(self.pause_s):
                begin = time.monotonic()
                try:
                    right = self.ask(client, random)
                except Exception as error:
                    self.lost.append(f"{type(error).__name__}: {error} after {time.monotonic() - begin:.2f} s")
                    continue
                self.slowest_s = max(self.slowest_s, time.monotonic() - begin)
                self.answered += right
                self.wrong += not right
