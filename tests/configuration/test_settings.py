"""What the defaults are made of."""

from __future__ import annotations

import math

import pytest

from lossd.configuration import settings
from lossd.configuration.settings import Settings, _part_of_memory


def test_a_default_is_a_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for memory in (1 << 30, 64 << 30, math.inf):
        monkeypatch.setattr(settings, "memory_bytes", lambda memory=memory: memory)
        assert _part_of_memory(4 << 30, 4) == min(4 << 30, memory / 4)


def test_several_fronts_share_the_memory() -> None:
    for chosen in ({}, {"queue_bytes": 1 << 30, "cache_bytes": 1 << 28}):
        alone = Settings(**chosen)
        for fronts in (2, 4):
            shared = Settings(fronts=fronts, **chosen)
            assert shared.queue_bytes == alone.queue_bytes // fronts
            assert shared.cache_bytes == alone.cache_bytes // fronts
            assert shared.max_body_bytes <= shared.queue_bytes


def test_a_body_that_fits_into_no_front_s_part_is_refused_with_the_reason() -> None:
    chosen = {"queue_bytes": 1 << 30, "max_body_bytes": 1 << 30}
    assert Settings(**chosen).max_body_bytes == 1 << 30
    with pytest.raises(ValueError, match="queue_bytes, 536870912 for each of 2 fronts"):
        Settings(fronts=2, **chosen)
