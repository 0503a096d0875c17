"""A worker looks for its next request before it sleeps where they come one by one, and soon."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from lossd.engine import worker
from lossd.engine.protocol import Reply
from lossd.evaluation.in_memory import Text

POLL_S = 0.02


class Asking:
    """A front that asks again after a pause, as often as there are pauses; notes whether it was looked for."""

    def __init__(self, pauses_s: list[float], requests: int = 1) -> None:
        self.pauses_s = pauses_s
        self.requests = requests
        self.looked: list[bool] = []
        self.now_s = 0.0

    def __bool__(self) -> bool:
        return len(self.looked) < len(self.pauses_s)

    def receive(self, *, wait: bool, poll_s: float) -> list[tuple[Any, dict[str, Any]]]:
        assert wait
        self.now_s += self.pauses_s[len(self.looked)]
        self.looked.append(poll_s > 0)
        front = Mock(gone=False)
        front.slab.return_value = b""
        return [(front, {"batch": len(self.looked), "requests": self.requests})]

    def reply(self, front: Any, reply: Reply) -> None:
        pass


def looked(monkeypatch: pytest.MonkeyPatch, pauses_s: list[float], requests: int = 1) -> list[bool]:
    def evaluated(manifest: dict[str, Any], *_: Any) -> tuple[list[Text], int]:
        return [(False, b"{}")] * manifest["requests"], 0

    monkeypatch.setattr(worker, "answer_in_memory", evaluated)
    asking = Asking(pauses_s, requests)
    clock = SimpleNamespace(perf_counter=lambda: asking.now_s, perf_counter_ns=lambda: 0)
    monkeypatch.setattr(worker, "time", clock)  # on a busy machine a pause of none may be longer than polling
    worker.serve(asking, torch.device("cpu"), Mock(), POLL_S)  # type: ignore[arg-type]
    return asking.looked


def test_the_worker_polls_after_several_lone_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked(monkeypatch, [0.0] * 12) == [False] * worker.ALONE + [True] * (12 - worker.ALONE)


def test_the_worker_does_not_poll_after_batches_of_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(looked(monkeypatch, [0.0] * 12, requests=2))


def test_the_worker_sleeps_if_the_last_wait_was_longer_than_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses_s = [0.0] * worker.ALONE + [2 * POLL_S, 0.0, 0.0]
    assert looked(monkeypatch, pauses_s)[worker.ALONE :] == [True, False, True]
