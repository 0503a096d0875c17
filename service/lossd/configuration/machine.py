"""How many cores, how much memory and how many open files this process may use.

Control groups limit cores and memory. A container may see its own group as the root, or a path of which it sees only
its part. So each limit is looked for in every group on the path up to the root, and the smallest one applies.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

__all__ = ["cores", "files", "memory_bytes", "raise_file_limit", "tune_allocator"]

CGROUPS = Path("/sys/fs/cgroup")
UNIFIED = Path("unified")
"""Where version 2 is mounted beside version 1."""

NO_LIMIT = 1 << 60
"""Version 1 states no limit of memory as a number close to 2**63."""

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 256 << 20),
    "MALLOC_TRIM_THRESHOLD_": (-1, 512 << 20),
    "MALLOC_TOP_PAD_": (-2, 16 << 20),
}
"""The variables that set glibc's allocator: the number of each in ``mallopt``, and the value set here, in bytes."""

HIGHEST_THRESHOLD = 32 << 20
"""The highest mmap threshold that glibc before 2.35 accepts, in bytes: ``mallopt(3)``."""


def cores() -> float:
    """Return how many cores this process may use: those of its affinity, or its groups' quota if that is less.

    Version 2 has ``cpu.max``, a quota and a period ("max" for no quota); version 1 has both in files of their own (-1
    for no quota).
    """
    count: float = len(os.sched_getaffinity(0))
    for folder, version in _groups("cpu"):
        with suppress(OSError, ValueError):
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                count = min(count, int(quota) / int(period))
    return count


def files() -> float:
    """Return how many files this process may have open; infinite if there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def raise_file_limit() -> None:
    """Raise the limit of open files as far as this process may. It is often 1024 at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tune_allocator() -> None:
    """Let glibc's allocator keep the memory that is freed, as far as the environment does not set it.

    A body arrives in chunks over glibc's mmap threshold of 128 KiB, so each chunk would be mapped anew and its pages
    faulted in one by one. Other C libraries do not have ``mallopt``, and keep their own ways.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, (parameter, value) in ALLOCATOR.items():
        if mallopt is not None and name not in os.environ and not mallopt(parameter, value):
            mallopt(parameter, min(value, HIGHEST_THRESHOLD))


def memory_bytes() -> float:
    """Return the memory limit of this process, in bytes; infinite if there is none.

    Version 2 has ``memory.max`` ("max" for no limit), version 1 ``memory.limit_in_bytes``.
    """
    limit = math.inf
    for folder, version in _groups("memory"):
        with suppress(OSError, ValueError):
            name = "memory.max" if version == 2 else "memory.limit_in_bytes"
            limit = min(limit, int((folder / name).read_text()))
    return limit if limit < NO_LIMIT else math.inf


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folders of the groups that may limit this process, and the version of each."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                roots, version = [CGROUPS, CGROUPS / UNIFIED], 2
            elif controller in controllers.split(","):
                roots, version = [CGROUPS / controller], 1
            else:
                continue
            group = PurePosixPath("/", path)
            for root in roots:
                for folder in (group, *group.parents):
                    yield root / folder.relative_to("/"), version
