"""What the defaults are made of."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from lossd.configuration import settings
from lossd.configuration.settings import Settings, _cores, _memory_bytes, _part_of_memory


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("800000 100000", 4), ("200000 100000", 2), ("150000 100000", 1.5), ("", 4)]
)
def test_a_container_s_share_of_the_processor_counts(quota: str, cores: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(Path, "read_text", lambda _: quota)
    assert _cores() == cores


GIB = 1 << 30


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"memory.max": str(GIB)}, GIB),
        ("0::/\n", {"memory.max": "max"}, math.inf),
        ("0::/pod/container\n", {"pod/container/memory.max": "max", "pod/memory.max": str(2 * GIB)}, 2 * GIB),
        ("0::/pod/container\n", {"pod/container/memory.max": str(GIB), "pod/memory.max": str(2 * GIB)}, GIB),
        ("0::/a/path/of/the/host\n", {"memory.max": str(GIB)}, GIB),
        ("4:memory:/docker/x\n1:cpu:/\n0::/\n", {"memory/docker/x/memory.limit_in_bytes": str(GIB)}, GIB),
        ("4:memory:/docker/x\n0::/\n", {"memory/memory.limit_in_bytes": str(3 * GIB)}, 3 * GIB),
        ("4:cpu,memory:/\n", {"cpu,memory/memory.limit_in_bytes": "1", "memory/memory.limit_in_bytes": str(GIB)}, GIB),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, math.inf),
        (None, {}, math.inf),
    ],
)
def test_a_container_s_memory_counts_wherever_it_is_limited(
    groups: str | None, files: dict[str, str], limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    read = Path.read_text

    def read_text(path: Path) -> str:
        if path != Path("/proc/self/cgroup"):
            return read(path)
        if groups is None:
            raise FileNotFoundError
        return groups

    monkeypatch.setattr(settings, "CGROUPS", tmp_path)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert _memory_bytes() == limit
    assert _part_of_memory(4 * GIB, 4) == min(4 * GIB, limit / 4)


def test_several_fronts_share_the_memory_that_is_taken_by_default() -> None:
    alone = Settings()
    for fronts in (2, 4):
        shared = Settings(fronts=fronts)
        assert shared.queue_bytes == alone.queue_bytes // fronts
        assert shared.cache_bytes == alone.cache_bytes // fronts
        assert shared.max_body_bytes <= shared.queue_bytes
    assert Settings(fronts=4, queue_bytes=1 << 30).queue_bytes == 1 << 30
