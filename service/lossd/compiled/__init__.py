"""Compiled passes: the losses asked for most, each in one walk over a batch that lies in main memory.

A pass checks the targets, computes loss, gradient and norms, and counts what the metrics are made of, where the general
way takes a tensor operation for each step of it. It answers what needs no explanation: a request with a target out of
range or a number that is not finite is left to the general way, which finds the words. Answers agree to the rounding of
the inputs' dtype.

Nothing is there before :func:`load`; until then, and for every other recipe, :func:`find` knows of no pass.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lossd.job import Recipe

__all__ = ["Outcome", "Pass", "Work", "compile_and_keep", "find", "in_parallel", "load", "prepare", "rates"]

log = logging.getLogger("lossd.compiled")

Array = npt.NDArray[Any]
P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Work:
    """What a pass is given; all floats are in float32, or all in float64.

    Attributes:
        rows: The rows of each request.
        numbers: The parameters that may differ, by name, a value of each for every request.
        inputs: By name.
        answers: By name, to be written.
    """

    rows: Sequence[int]
    numbers: Mapping[str, Sequence[float]]
    inputs: Mapping[str, Array]
    answers: Mapping[str, Array]

    def starts(self) -> Array:
        """The first row of each request, and the one after the last, (B + 1,)."""
        return np.fromiter(accumulate(self.rows, initial=0), np.int64, len(self.rows) + 1)

    def number(self, name: str) -> Array:
        """Each request's value of a parameter, (B,); 0 where the loss has none of that name."""
        return np.array(self.numbers[name]) if name in self.numbers else np.zeros(len(self.rows))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass found; the gradient is written where it belongs.

    Attributes:
        columns: One row per quantity, one number per request: loss, numerator and denominator of its mean, entries that
            count, the norm of the gradient.
        doubtful: Whether the general way must evaluate a request, (B,) bool.
        counted: What the metrics need not count again, by the name the task has for it.
    """

    columns: Array
    doubtful: Array
    counted: Mapping[str, Array] = field(default_factory=dict)


Pass = Callable[[Work], Outcome | None]
"""Evaluates requests of the recipe that it was found for; None where the general way must evaluate all of them."""

_find: Callable[[Recipe], Pass | None] | None = None

_threads: ThreadPoolExecutor | None = None

rates: Callable[..., bool] | None = None
"""See :func:`lossd.compiled.averages.rates`; None until it is loaded."""


def find(recipe: Recipe) -> Pass | None:
    """The pass that evaluates a recipe; None where there is none, or none was loaded."""
    return None if _find is None else _find(recipe)


def prepare(threads: int = 1) -> None:
    """Load the passes; where they are not compiled yet, have a process beside this one do that, and load them then.

    Until then everything goes the general way, so that nobody waits.

    Args:
        threads: How many take the parts of a large request.
    """
    if _complete().exists():
        try:
            load(threads)
        except OSError as error:  # a read-only container without a place for temporary files
            log.warning("the compiled passes cannot be read: %s; every request goes the general way", error)
    elif _find is None:
        threading.Thread(target=_compile_and_load, args=(threads,), name="lossd-compile", daemon=True).start()


def load(threads: int = 1) -> None:
    """Load the passes, or compile them first, which takes some ten seconds.

    Args:
        threads: How many take the parts of a large request.
    """
    global _find, _threads, rates
    _threads = ThreadPoolExecutor(threads, thread_name_prefix="lossd-compiled") if threads > 1 else None
    if _find is not None:
        return
    begin = time.monotonic()
    with _writable(_cache()) as path:
        os.environ["NUMBA_CACHE_DIR"] = str(path)
        from lossd.compiled import averages, passes

    rates = averages.rates
    _find = passes.find
    log.info("compiled passes loaded in %.1f s", time.monotonic() - begin)


def compile_and_keep() -> None:
    """Compile the passes for this machine's processor and keep them on disk; ``python -m lossd.compiled``."""
    load()
    with suppress(OSError):  # nowhere to keep anything
        _complete().touch()


def _compile_and_load(threads: int) -> None:
    try:
        _cache().mkdir(parents=True, exist_ok=True)
        with (_cache() / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # several workers start at once; one compiles
            if not _complete().exists():
                subprocess.run([sys.executable, "-P", "-m", "lossd.compiled"], stdin=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("the compiled passes cannot be had: %s; every request goes the general way", error)
        return
    load(threads)
    gc.freeze()


def in_parallel(function: Callable[[P], R], parts: Sequence[P]) -> Iterable[R]:
    """The results of the parts, in their order."""
    return map(function, parts) if _threads is None or len(parts) == 1 else _threads.map(function, parts)


def _cache() -> Path:
    """Where compiled code is kept, by all sources (Numba looks at one), and by their place and time (as Numba)."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.absolute().glob("*.py")):
        digest.update(f"{path} {path.stat().st_mtime_ns} ".encode() + path.read_bytes())
    caches = os.environ.get("LOSSD_CACHE_DIR")
    home = Path(caches) if caches else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lossd"
    return home / f"compiled-{digest.hexdigest()[:16]}"


@contextmanager
def _writable(path: Path) -> Iterator[Path]:
    """The folder, or a copy of it for as long as it is read: Numba reads nothing where it cannot write."""
    with suppress(OSError):
        path.mkdir(parents=True, exist_ok=True)
    if os.access(path, os.W_OK):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="lossd-") as copy:
        if path.exists():
            shutil.copytree(path, copy, dirs_exist_ok=True)
        yield Path(copy)


def _complete() -> Path:
    """What lies there when all was compiled, for this processor by this Numba."""
    from importlib.metadata import version

    import llvmlite.binding as llvm

    features = hashlib.sha256(llvm.get_host_cpu_features().flatten().encode()).hexdigest()[:8]
    return _cache() / f"complete-{version('numba')}-{llvm.get_host_cpu_name()}-{features}"
