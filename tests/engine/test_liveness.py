"""When a worker is taken for dead: judged from what a front sees of it, and the time."""

from __future__ import annotations

import pytest

from lossd.engine.heartbeat import Pulse, Unwanted
from lossd.engine.liveness import Sight, Watch

IDLE = Sight(steps=4, beats=0, busy=False, wanted=True)


def at_work(*, steps: int = 5, beats: int = 0, wanted: bool = True, others_wait: bool = False) -> Sight:
    return Sight(steps, beats, busy=True, wanted=wanted, others_wait=others_wait)


def verdict(sights: list[Sight], every_s: float = 1.0) -> str | None:
    watch = Watch(10.0)
    watch.reset(0.0)
    for look, sight in enumerate(sights):
        if (why := watch.look(sight, look * every_s)) is not None:
            return why
    return None


def test_a_worker_without_work_may_be_as_silent_as_it_likes():
    assert verdict([IDLE] * 100) is None


def test_a_worker_that_goes_from_batch_to_batch_lives():
    assert verdict([at_work(steps=step) for step in range(100)]) is None


def test_a_worker_that_answers_while_it_works_lives():
    assert verdict([at_work(beats=look // 9) for look in range(100)]) is None


def test_a_worker_that_does_not_answer_is_given_its_time_and_no_more():
    assert verdict([at_work()] * 11) == "has work and gave no sign of life for 10.0 s"
    assert verdict([at_work()] * 10) is None


def test_the_time_begins_with_the_work():
    assert verdict([IDLE] * 50 + [at_work(steps=4)] * 10) is None
    assert verdict([IDLE] * 50 + [at_work(steps=4)] * 11) is not None


def test_a_worker_that_is_busy_for_nobody_is_given_its_time_and_no_more():
    busy = [at_work(beats=look, wanted=False) for look in range(11)]
    assert verdict(busy) == "has been evaluating for 10.0 s what nobody waits for"
    assert verdict([*busy[:10], at_work(steps=7, beats=10, wanted=False)]) is None


def test_a_worker_that_is_busy_for_nobody_while_somebody_waits_has_two_seconds():
    busy = [at_work(beats=look, wanted=False, others_wait=True) for look in range(3)]
    assert verdict(busy) == "has been evaluating for 2.0 s what nobody waits for"
    assert verdict(busy[:2]) is None
    assert verdict([at_work(beats=look, others_wait=True) for look in range(100)]) is None


def test_a_front_that_was_stopped_itself_blames_nobody_for_it():
    assert verdict([at_work()] * 5, every_s=3600) is None


def test_it_asks_once_a_look_went_by_without_a_sign():
    watch = Watch(10.0)
    watch.reset(0.0)
    asked = []
    for look, sight in enumerate([at_work(), at_work(), at_work(beats=1), at_work(beats=1), IDLE, IDLE]):
        watch.look(sight, float(look))
        asked.append(watch.silent)
    assert asked == [False, True, False, True, False, False]


def test_a_short_time_out_is_looked_at_more_often():
    assert Watch(120.0).interval_s == 1.0
    assert Watch(0.4).interval_s == 0.1


def test_the_pulse_shows_the_batch_that_is_being_evaluated_to_whoever_shares_it():
    pulse = Pulse()
    shared = Pulse(pulse.fd)
    assert shared.at_work is None
    pulse.begin(3, 2**40)
    assert shared.at_work == (3, 2**40)
    pulse.beat()
    pulse.end()
    assert (shared.at_work, shared.steps, shared.beats) == (None, 2, 1)


def test_only_the_batch_that_is_unwanted_ends_early_and_only_where_it_may():
    pulse = Pulse()
    front = Pulse(pulse.fd)
    pulse.begin(3, 2**40)
    front.mark_unwanted(3, 2**40)
    pulse.beat()  # between two evaluations nothing ends
    pulse.may_stop = True
    for other in ((2, 2**40), (3, 2**40 + 1)):
        front.mark_unwanted(*other)
        pulse.beat()
    front.mark_unwanted(3, 2**40)
    with pytest.raises(Unwanted):
        pulse.beat()
    pulse.beat()  # once is enough
    pulse.end()
    pulse.may_stop = True
    pulse.beat()
