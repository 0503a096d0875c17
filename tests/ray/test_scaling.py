"""How many replicas the load needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lossd.engine.statistics import Load
from lossd.ray import scaling
from lossd.ray.scaling import Meter, policy


def needed(readings: dict[str, dict[str, float]] | None, target: int = 3) -> float:
    replicas, state = policy(SimpleNamespace(aggregated_metrics=readings, target_num_replicas=target))
    assert state == {}
    return replicas


def test_replicas_are_busy_for_six_tenths_of_the_time() -> None:
    """Four replicas that are busy for 0.9 of the time do the work of six at 0.6."""
    readings = {"busy": dict.fromkeys("abcd", 0.9), "backlog_s": dict.fromkeys("abcd", 0.0)}
    assert needed(readings) == pytest.approx(6)


def test_a_backlog_of_half_a_second_needs_a_replica() -> None:
    assert needed({"busy": {"a": 0.1}, "backlog_s": {"a": 2.0}}) == pytest.approx(4)


def test_an_idle_service_needs_none_beyond_the_lowest_number() -> None:
    assert needed({"busy": {"a": 0.0}, "backlog_s": {"a": 0.0}}) == 0


@pytest.mark.parametrize("readings", [None, {}, {"busy": {}}])
def test_without_readings_the_number_stays(readings: dict[str, dict[str, float]] | None) -> None:
    assert needed(readings, target=3) == 3


def read(monkeypatch: pytest.MonkeyPatch, *loads: Load, seconds: float) -> dict[str, float]:
    """The reading between two loads of an engine, some seconds apart."""
    times = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr(scaling.time, "monotonic", lambda: next(times))
    engine: Any = SimpleNamespace(load=loads[0])
    meter = Meter(engine)
    engine.load = loads[1]
    return meter.read()


def test_a_replica_is_as_busy_as_its_front_or_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Load(10.0, {0: 5.0, 1: 7.0}, 0.0)
    after = Load(12.0, {0: 9.0, 1: 13.0}, 0.25)
    assert read(monkeypatch, before, after, seconds=10.0) == {"busy": pytest.approx(0.5), "backlog_s": 0.25}
    busy_front = Load(18.0, {0: 9.0, 1: 13.0}, 0.0)
    assert read(monkeypatch, before, busy_front, seconds=10.0)["busy"] == pytest.approx(0.8)


def test_a_replica_without_time_between_readings_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Load(10.0, {}, 0.5)
    assert read(monkeypatch, load, load, seconds=0.0) == {"busy": 0.0, "backlog_s": 0.5}
