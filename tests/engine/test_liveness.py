"""When a worker counts as dead, given its heartbeat and the time."""

from __future__ import annotations

import importlib
import subprocess
import sys
from unittest.mock import Mock

import pytest

from lossd.configuration.settings import Settings
from lossd.engine.heartbeat import Heartbeat, Unwanted
from lossd.engine.liveness import Liveness, Observation
from lossd.engine.remote_worker import RemoteWorker

IDLE = Observation(steps=4, probes_answered=0, busy=False, awaited=True)


def evaluating(
    *, steps: int = 5, probes_answered: int = 0, awaited: bool = True, others_wait: bool = False
) -> Observation:
    return Observation(steps, probes_answered, busy=True, awaited=awaited, others_wait=others_wait)


def verdict(sights: list[Observation], every_s: float = 1.0) -> str | None:
    watch = Liveness(10.0)
    watch.reset(0.0)
    for look, observation in enumerate(sights):
        if (why := watch.check(observation, look * every_s)) is not None:
            return why
    return None


def test_an_idle_worker_may_be_silent():
    assert verdict([IDLE] * 100) is None


def test_a_worker_that_ends_batches_is_alive():
    assert verdict([evaluating(steps=step) for step in range(100)]) is None


def test_a_worker_that_answers_probes_is_alive():
    assert verdict([evaluating(probes_answered=look // 9) for look in range(100)]) is None


def test_a_silent_worker_is_killed_after_the_timeout():
    assert verdict([evaluating()] * 11) == "has work and gave no sign of life for 10.0 s"
    assert verdict([evaluating()] * 10) is None


def test_idle_time_does_not_count_as_silence():
    assert verdict([IDLE] * 50 + [evaluating(steps=4)] * 10) is None
    assert verdict([IDLE] * 50 + [evaluating(steps=4)] * 11) is not None


def test_a_worker_with_unwanted_work_is_killed_after_the_timeout():
    busy = [evaluating(probes_answered=look, awaited=False) for look in range(11)]
    assert verdict(busy) == "has been evaluating for 10.0 s what nobody waits for"
    assert verdict([*busy[:10], evaluating(steps=7, probes_answered=10, awaited=False)]) is None


def test_a_worker_with_unwanted_work_is_killed_after_two_seconds_if_others_wait():
    busy = [evaluating(probes_answered=look, awaited=False, others_wait=True) for look in range(3)]
    assert verdict(busy) == "has been evaluating for 2.0 s what nobody waits for"
    assert verdict(busy[:2]) is None
    assert verdict([evaluating(probes_answered=look, others_wait=True) for look in range(100)]) is None


def test_time_in_which_the_front_was_stopped_does_not_count():
    assert verdict([evaluating()] * 5, every_s=3600) is None


def test_a_probe_is_sent_after_a_silent_interval():
    watch = Liveness(10.0)
    watch.reset(0.0)
    probes = []
    for look, observation in enumerate(
        [evaluating(), evaluating(), evaluating(probes_answered=1), evaluating(probes_answered=1), IDLE, IDLE]
    ):
        watch.check(observation, float(look))
        probes.append(watch.silent)
    assert probes == [False, True, False, True, False, False]


def test_a_short_timeout_is_checked_more_often():
    assert Liveness(120.0).interval_s == 1.0
    assert Liveness(0.4).interval_s == 0.1


def test_the_heartbeat_shows_which_batch_is_evaluated():
    heartbeat = Heartbeat()
    shared = Heartbeat(heartbeat.fd)
    assert shared.evaluating is None
    heartbeat.begin(3, 2**40)
    assert shared.evaluating == (3, 2**40)
    heartbeat.answer_probe()
    heartbeat.end()
    assert (shared.evaluating, shared.steps, shared.probes_answered) == (None, 2, 1)


def test_only_an_unwanted_batch_ends_early_and_only_within_an_evaluation():
    heartbeat = Heartbeat()
    front = Heartbeat(heartbeat.fd)
    heartbeat.begin(3, 2**40)
    front.mark_unwanted(3, 2**40)
    heartbeat.answer_probe()  # between two evaluations nothing ends
    heartbeat.may_stop = True
    for other in ((2, 2**40), (3, 2**40 + 1)):
        front.mark_unwanted(*other)
        heartbeat.answer_probe()
    front.mark_unwanted(3, 2**40)
    with pytest.raises(Unwanted):
        heartbeat.answer_probe()
    heartbeat.answer_probe()  # once is enough
    heartbeat.end()
    heartbeat.may_stop = True
    heartbeat.answer_probe()


def test_a_batch_is_abandoned_when_its_front_has_ended():
    heartbeat = Heartbeat()
    with subprocess.Popen(["sleep", "60"]) as front:
        heartbeat.begin(3, 7, front.pid)
        assert not heartbeat.abandoned
        front.kill()
        front.wait()
    assert heartbeat.abandoned
    heartbeat.begin(3, 8)  # the front that started the worker: the worker ends with it
    assert not heartbeat.abandoned


def test_an_import_is_not_cut_off(tmp_path, monkeypatch):
    """torch imports sympy with the first gradient; half a module would make every later gradient fail."""
    heartbeat = Heartbeat()
    heartbeat.begin(3, 7)
    heartbeat.mark_unwanted(3, 7)
    heartbeat.may_stop = True
    monkeypatch.setattr("lossd.engine.heartbeat.probed", heartbeat, raising=False)
    (tmp_path / "slowly_imported.py").write_text(
        "import sys\n"
        "from lossd.engine.heartbeat import probed\n"
        "probed.answer_probe(10, sys._getframe())\n"
        "whole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("slowly_imported").whole
    with pytest.raises(Unwanted):
        heartbeat.answer_probe(10, sys._getframe())


def test_a_batch_that_ends_during_a_check_is_no_fault() -> None:
    """The worker's page may change between two reads of it."""
    seen = [(1, 5)]

    class Page:
        steps, probes_answered, abandoned = 3, 0, False
        evaluating = property(lambda _: seen.pop() if seen else None)

    worker = RemoteWorker(Mock(settings=Settings()), "cpu", "nowhere")
    worker._heartbeat, worker._number = Page(), 1  # type: ignore[assignment]
    worker._check_liveness()
    assert not seen
