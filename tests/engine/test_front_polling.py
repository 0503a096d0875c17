"""A front looks for an answer that is due soon, and for no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lossd.engine import polling
from lossd.engine.polling import Polling

LONGEST_S = 0.002


class Clock:
    """Monotonic, as far as the polling sees; a turn of the loop takes a tenth of a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns = 0

    def monotonic(self) -> float:
        return self.now

    def turn(self) -> None:
        self.now += 1e-4
        self.turns += 1


def run_story(
    monkeypatch: pytest.MonkeyPatch, story: Callable[[Polling, Clock], Any], longest_s: float = LONGEST_S
) -> None:
    clock = Clock()
    monkeypatch.setattr(polling.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(polling.os, "sched_yield", clock.turn)

    async def tell() -> None:
        await story(Polling(longest_s), clock)

    asyncio.run(tell())


async def turns(clock: Clock, most: int = 1000) -> int:
    """How often the loop was kept from sleeping since the last time."""
    before = clock.turns
    for _ in range(most):
        at = clock.turns
        await asyncio.sleep(0)
        if clock.turns == at:
            break
    return clock.turns - before


def test_the_front_polls_until_the_answer_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(looking: Polling, clock: Clock) -> None:
        for _ in range(3):
            looking.sent(alone=True)
            assert await turns(clock, most=5) == 5
            looking.answered()
            assert await turns(clock) == 0

    run_story(monkeypatch, story)


def test_the_front_stops_polling_until_answers_come_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(looking: Polling, clock: Clock) -> None:
        looking.sent(alone=True)
        assert await turns(clock) == pytest.approx(LONGEST_S / 1e-4, abs=1)
        clock.now += 0.01
        looking.answered()
        looking.sent(alone=True)
        assert await turns(clock) == 0, "the last one took longer"
        clock.now += 0.001
        looking.answered()
        looking.sent(alone=True)
        assert await turns(clock, most=5) == 5

    run_story(monkeypatch, story)


def test_the_front_does_not_poll_for_several_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(looking: Polling, clock: Clock) -> None:
        looking.sent(alone=False)
        assert await turns(clock) == 0
        looking.sent(alone=True)
        assert await turns(clock, most=5) == 5
        looking.sent(alone=False)
        assert await turns(clock) == 0
        looking.answered()
        looking.answered()
        looking.sent(alone=True)
        assert await turns(clock, most=5) == 5, "what was not alone says nothing of how long that takes"

    run_story(monkeypatch, story)


def test_the_front_never_polls_if_polling_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(looking: Polling, clock: Clock) -> None:
        looking.sent(alone=True)
        assert await turns(clock) == 0

    run_story(monkeypatch, story, longest_s=0.0)
