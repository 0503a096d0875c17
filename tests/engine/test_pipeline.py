"""Batches through a GPU. Where there is none, a stand-in for its streams says what it was asked, and in which order."""

from __future__ import annotations

import contextlib
import mmap
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
import torch

from engine.sending import Sender
from lossd.engine import pipeline as module
from lossd.engine.busy_time import BusyTime
from lossd.engine.heartbeat import Heartbeat
from lossd.engine.pipeline import Pipeline
from lossd.engine.worker import serve_ahead
from lossd.engine.worker_connections import FrontConnections
from lossd_client.errors import TooLarge


class StandIn:
    """Streams and events of a device that does at once what it is asked; its clock counts what it was asked."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.pinned: dict[int, int] = {}

    def Stream(self, device: torch.device) -> SimpleNamespace:  # noqa: N802  (torch's name)
        return SimpleNamespace(synchronize=lambda: None)

    def current_stream(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(wait_event=lambda event: self.log.append("wait"))

    @contextlib.contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.log.append("copy in")
        yield

    def Event(self, *, enable_timing: bool) -> SimpleNamespace:  # noqa: N802
        event = SimpleNamespace(at=None, synchronize=lambda: None)
        event.record = lambda stream=None: setattr(event, "at", len(self.log))
        event.elapsed_time = lambda later: float(later.at - event.at)
        return event

    def cudart(self) -> SimpleNamespace:
        return SimpleNamespace(
            cudaHostRegister=lambda address, size, flags: self.pinned.update({address: size}) or 0,
            cudaHostUnregister=self.pinned.pop,
        )


class Served:
    """A pipeline that serves one front in a thread."""

    def __init__(self, pipeline: Pipeline) -> None:
        ours, theirs = socket.socketpair()
        self.sender = Sender(ours)
        fronts = FrontConnections(theirs, None, lambda front: None, pipeline.pin, pipeline.unpin)
        self.busy = BusyTime()
        self.thread = threading.Thread(target=serve_ahead, args=(fronts, pipeline, Heartbeat(), self.busy))

    def __enter__(self) -> Sender:
        return self.sender

    def __exit__(self, *_: object) -> None:
        self.sender.connection.close()
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    one, answers_of = StandIn(), module.answers_of

    def evaluate_and_say_so(batch, arrays):
        one.log.append("evaluate")
        return answers_of(batch, arrays)

    monkeypatch.setattr(module, "answers_of", evaluate_and_say_so)
    return one


def losses(sender: Sender, count: int) -> dict[int, float]:
    return {reply.batch: orjson.loads(reply.answers[0][1])["loss"] for reply in sender.replies(count)}


def test_a_batch_is_copied_in_before_the_one_ahead_of_it_is_evaluated(stand_in):
    served = Served(Pipeline(torch.device("cpu"), stand_in))
    with served as sender:
        expected = {batch: sender.send(batch, seed=batch) for batch in (1, 2)}
        served.thread.start()
        assert losses(sender, 2) == pytest.approx(expected, rel=1e-6)
        np.testing.assert_allclose(sender.gradient_in(2), sender.gradient[1], rtol=1e-6)
    assert stand_in.log == ["copy in", "copy in", "wait", "evaluate", "wait", "evaluate"]


def test_a_worker_that_copies_ahead_is_busy_from_the_first_copy_to_the_last_answer(stand_in, monkeypatch):
    answers_of = module.answers_of

    def evaluate_slowly(batch, arrays):
        time.sleep(0.1)
        return answers_of(batch, arrays)

    monkeypatch.setattr(module, "answers_of", evaluate_slowly)
    served = Served(Pipeline(torch.device("cpu"), stand_in))

    def at_rest() -> float:
        seen = -1.0
        while (now := served.busy.seconds) != seen:  # an answer is sent before the state changes
            seen = now
            time.sleep(0.05)
        return now

    with served as sender:
        served.thread.start()
        for batch in (1, 2):
            before, begun = at_rest(), time.monotonic()
            sender.send(batch, seed=batch)
            sender.replies(1)
            assert 0.1 <= at_rest() - before <= time.monotonic() - begun
            time.sleep(0.2)  # waits for work


def test_slabs_are_page_locked_while_they_are_mapped(stand_in):
    pipeline = Pipeline(torch.device("cpu"), stand_in)
    served = Served(pipeline)
    with served as sender:
        sender.send(1)
        served.thread.start()
        sender.replies(1)
        assert list(stand_in.pinned.values()) == [sender.slabs[1].size]
    assert stand_in.pinned == {}


def test_a_batch_without_room_is_tried_again_without_the_batches_copied_ahead(stand_in, monkeypatch):
    answers_of, tries = module.answers_of, []

    def full_at_first(batch, arrays):
        tries.append(type(batch.inputs).__name__)
        if len(tries) == 1:
            return [TooLarge("there is no room")]
        return answers_of(batch, arrays)

    monkeypatch.setattr(module, "answers_of", full_at_first)
    served = Served(Pipeline(torch.device("cpu"), stand_in))
    with served as sender:
        expected = {batch: sender.send(batch, seed=batch) for batch in (1, 2)}
        served.thread.start()
        assert losses(sender, 2) == pytest.approx(expected, rel=1e-6)
    assert tries == ["dict", "Columns", "Columns"], "what was copied ahead must be given back"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_answers_are_right_and_times_are_measured():
    pipeline = Pipeline(torch.device("cuda:0"))
    served = Served(pipeline)
    with served as sender:
        expected = {batch: sender.send(batch, rows=100_000, seed=batch) for batch in (1, 2, 3)}
        served.thread.start()
        replies = sender.replies(3)
        assert {r.batch: orjson.loads(r.answers[0][1])["loss"] for r in replies} == pytest.approx(expected, rel=1e-5)
        assert all(reply.copy_ns > 0 and reply.compute_ns > 0 for reply in replies)
        np.testing.assert_allclose(sender.gradient_in(3), sender.gradient[1], rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_slab_is_page_locked():
    with mmap.mmap(-1, 1 << 20) as memory:
        pipeline = Pipeline(torch.device("cuda:0"))
        pipeline.pin(memory)
        assert torch.frombuffer(memory, dtype=torch.uint8).is_pinned()
        pipeline.unpin(memory)
