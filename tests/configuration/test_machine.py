"""Which limits of control groups count, in both versions, wherever on the path they are."""

from __future__ import annotations

import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lossd.configuration import machine

GIB = 1 << 30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, dict[str, str]], None]:
    """Return a function that sets the process's control groups, and the files of the mounted hierarchy."""

    def arrange(membership: str | None, files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        read = Path.read_text

        def read_text(path: Path) -> str:
            if path != Path("/proc/self/cgroup"):
                return read(path)
            if membership is None:
                raise FileNotFoundError
            return membership

        monkeypatch.setattr(machine, "CGROUPS", tmp_path)
        monkeypatch.setattr(Path, "read_text", read_text)

    return arrange


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 4),
        ("0::/\n", {"cpu.max": "800000 100000"}, 4),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "what"}, 4),
        ("0::/pod/box\n", {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "100000 100000"}, 1),
        ("0::/pod/box\n", {"pod/box/cpu.max": "50000 100000", "pod/cpu.max": "100000 100000"}, 0.5),
        ("0::/a/path/of/the/host\n", {"cpu.max": "300000 100000"}, 3),
        (
            "3:cpu,cpuacct:/docker/x\n0::/\n",
            {"cpu/docker/x/cpu.cfs_quota_us": "250000", "cpu/docker/x/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        (
            "3:cpuacct,cpu:/docker/x\n",
            {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"},
            2,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("1:cpuset:/\n0::/box\n", {"unified/box/cpu.max": "100000 100000"}, 1),
        (None, {}, 4),
    ],
)
def test_the_smallest_quota_counts(
    membership: str | None,
    files: dict[str, str],
    cores: float,
    groups: Callable[[str | None, dict[str, str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    groups(membership, files)
    assert machine.cores() == cores


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
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
def test_the_smallest_memory_limit_counts(
    membership: str | None, files: dict[str, str], limit: float, groups: Callable[[str | None, dict[str, str]], None]
) -> None:
    groups(membership, files)
    assert machine.memory_bytes() == limit


FAULTS = """
import resource
from lossd.configuration.machine import tune_allocator

tune_allocator()
block = b"x" * (40 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    block = None
    block = b"x" * (40 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize("threshold", [None, "131072"])
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(threshold: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    if threshold is not None:
        environment["MALLOC_MMAP_THRESHOLD_"] = threshold
    run = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    pages = 4 * (40 << 20) // resource.getpagesize()
    assert int(run.stdout) < pages // 8 if threshold is None else int(run.stdout) > pages // 2


def test_a_c_library_without_mallopt_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: SimpleNamespace())
    machine.tune_allocator()


def test_an_older_glibc_gets_the_highest_threshold_that_it_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        if parameter == -3 and value > 32 << 20:
            return 0
        accepted[parameter] = value
        return 1

    for name in machine.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    machine.tune_allocator()
    assert accepted == {-3: 32 << 20, -1: 512 << 20, -2: 16 << 20}
