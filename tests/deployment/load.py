"""Load of requests whose every answer is compared with the right one."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from benchmarks.dialects import Safetensors
from lossd_client import LossClient

SMALL, LARGE = (64, 10), (1, 21, 512, 512)
"""The shapes of the scores: 3 KB, and 24 MB with their targets."""
QUESTIONS = 4
"""How many each connection asks in turn."""
GAMMA = 2.0
TRIES_S = 60.0

Ask = Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], tuple[float, np.ndarray[Any, Any]]]


@dataclass(frozen=True)
class Question:
    """A request for the focal loss, and its right answer.

    Attributes:
        prediction: Scores, float32, classes along axis 1.
        target: Classes, int64.
        loss: The mean over the positions, computed in float64.
        gradient: Its gradient with respect to the scores, in float32.
    """

    prediction: np.ndarray[Any, Any]
    target: np.ndarray[Any, Any]
    loss: float
    gradient: np.ndarray[Any, Any]

    def answered_by(self, loss: float, gradient: np.ndarray[Any, Any]) -> bool:
        """Whether an answer is right, to the accuracy of float32."""
        return (
            abs(loss - self.loss) <= 1e-5 * abs(self.loss)
            and gradient.shape == self.gradient.shape
            and float(np.abs(gradient - self.gradient).max()) <= 1e-5 * self.scale
        )

    @cached_property
    def scale(self) -> float:
        """The largest entry of the gradient."""
        return float(np.abs(self.gradient).max())


@cache
def question(shape: tuple[int, ...], seed: int) -> Question:
    """Return a question; its answer is autograd's, of the definition: the mean of -(1 - p)^γ log p."""
    random = np.random.default_rng(seed)
    prediction = random.standard_normal(shape, dtype=np.float32)
    target = random.integers(0, shape[1], (shape[0], *shape[2:]), dtype=np.int64)
    scores = torch.tensor(prediction, dtype=torch.float64, requires_grad=True)
    log_p = scores.log_softmax(1).gather(1, torch.tensor(target).unsqueeze(1))
    loss = (-((1 - log_p.exp()) ** GAMMA) * log_p).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    return Question(prediction, target, loss.item(), scores.grad.float().numpy())


@contextmanager
def without_retries(url: str) -> Iterator[Ask]:
    """Yield what asks over one connection, sends each request once, and raises if the answer is no result."""
    dialect, host = Safetensors("/v1/evaluate"), urlsplit(url).netloc
    connection = http.client.HTTPConnection(host, timeout=TRIES_S)

    def ask(prediction: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        post = dialect.post(({"loss": {"name": "focal"}}, {"prediction": prediction, "target": target}))
        try:
            connection.request("POST", post.path, post.body, dict(post.headers))
            response = connection.getresponse()
            body = response.read()
        except Exception:
            connection.close()  # so that the next request has a connection of its own
            raise
        if response.status != 200:
            raise RuntimeError(f"{response.status} {body[:200]!r}")
        answer = dialect.read({}, body)
        return answer["loss"], answer["gradient"]

    with closing(connection):
        yield ask


@contextmanager
def with_client(client: LossClient) -> Iterator[Ask]:
    """Yield what asks by a client, which sends a request again if it must."""

    def ask(prediction: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        answer = client.evaluate("focal", prediction, target)
        assert answer.loss is not None
        assert answer.gradient is not None
        return float(answer.loss), np.asarray(answer.gradient)

    yield ask


@dataclass
class Load:
    """What became of the requests.

    Attributes:
        right: How many were answered rightly, by the name of their kind.
        lost: What became of those without a result.
        wrong: How many were answered wrongly.
        longest_s: The longest time that a request took, by the name of its kind.
        pause_s: How long each connection waits between two requests.
    """

    right: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    wrong: int = 0
    longest_s: dict[str, float] = field(default_factory=dict)
    pause_s: float = 0.0
    _stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, kind: str, asking: AbstractContextManager[Ask], questions: list[Question]) -> threading.Thread:
        """Start a thread that asks these questions again and again."""
        thread = threading.Thread(target=self._put, args=(kind, asking, questions), daemon=True)
        thread.start()
        return thread

    def _put(self, kind: str, asking: AbstractContextManager[Ask], questions: list[Question]) -> None:
        with asking as ask:
            while not self._stopped.is_set():
                self._ask(kind, ask, questions)

    def _ask(self, kind: str, ask: Ask, questions: list[Question]) -> None:
        for each in questions:
            if self._stopped.wait(self.pause_s):
                return
            begin = time.monotonic()
            try:
                answer = ask(each.prediction, each.target)
            except Exception as error:
                with self._lock:
                    self.lost.append(f"{kind}: {error!r} after {time.monotonic() - begin:.2f} s")
                continue
            taken_s, right = time.monotonic() - begin, each.answered_by(*answer)
            with self._lock:
                self.right[kind] = self.right.get(kind, 0) + right
                self.wrong += not right
                self.longest_s[kind] = max(self.longest_s.get(kind, 0.0), taken_s)

    def wait_for(self, more: int, timeout_s: float = 60.0) -> None:
        """Wait until so many more requests of each kind have ended."""
        goal = {kind: count + more for kind, count in self.right.items()}
        end = time.monotonic() + timeout_s
        while any(self.right[kind] < count for kind, count in goal.items()):
            assert time.monotonic() < end, self
            time.sleep(0.02)


@contextmanager
def under_load(url: str, *, raw: int, small: int, large: int) -> Iterator[Load]:
    """Send requests over so many connections of each kind, until the block ends: first without, then with retries."""
    load, client = Load(), LossClient(url, timeout_s=TRIES_S)
    threads = []
    for number in range(raw + small):
        kind, asking = ("raw", without_retries(url)) if number < raw else ("small", with_client(client))
        threads.append(
            load.put(kind, asking, [question(SMALL, QUESTIONS * number + each) for each in range(QUESTIONS)])
        )
    threads += [load.put("large", with_client(client), [question(LARGE, 0)]) for _ in range(large)]
    kinds = [kind for kind, count in (("raw", raw), ("small", small), ("large", large)) if count]
    end = time.monotonic() + 60
    try:
        while any(not load.right.get(kind) for kind in kinds):
            assert time.monotonic() < end, load
            time.sleep(0.02)
        yield load
    finally:
        load._stopped.set()
        for thread in threads:
            thread.join(TRIES_S + 10)
            assert not thread.is_alive(), "a request does not end"
        client.close()
