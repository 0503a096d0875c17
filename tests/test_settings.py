"""What the defaults are made of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lossd.settings import _cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("800000 100000", 4), ("200000 100000", 2), ("150000 100000", 1.5), ("", 4)]
)
def test_a_container_s_share_of_the_processor_counts(quota: str, cores: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(Path, "read_text", lambda _: quota)
    assert _cores() == cores
