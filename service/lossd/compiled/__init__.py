"""Compiled passes: the losses asked for most, each in one walk over a batch that lies in main memory.

A pass checks the targets, computes loss, gradient and norms, and counts what the metrics are made of, where the general
way takes a tensor operation for each step of it. It answers what needs no explanation: a request with a target out of
range or a number that is not finite is left to the general way, which finds the words. Answers agree to the rounding of
the inputs' dtype.

Nothing is compiled before :func:`load`; until then, and for every other recipe, :func:`find` knows of no pass.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy.typing as npt

if TYPE_CHECKING:
    from lossd.job import Recipe

__all__ = ["Outcome", "Pass", "find", "in_parallel", "load", "rates"]

log = logging.getLogger("lossd.compiled")

Array = npt.NDArray[Any]
P = TypeVar("P")
R = TypeVar("R")


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


Pass = Callable[["Recipe", Sequence[int], Sequence[Sequence[float]], Mapping[str, Array], Mapping[str, Array]], Outcome]
"""Called with a recipe, the rows and the numbers of its requests, and their inputs and answers by name; all floats are
in float32, or all in float64."""

_find: Callable[[Recipe], Pass | None] | None = None

_threads: ThreadPoolExecutor | None = None

rates: Callable[..., bool] | None = None
"""See :func:`lossd.compiled.averages.rates`; None until it is loaded."""


def find(recipe: Recipe) -> Pass | None:
    """The pass that evaluates a recipe; None where there is none, or none was loaded."""
    return None if _find is None else _find(recipe)


def load(threads: int = 1) -> None:
    """Compile, or read what an earlier process compiled; takes about ten seconds, or half of one.

    Args:
        threads: How many take the parts of a large request.
    """
    global _find, _threads, rates
    _threads = ThreadPoolExecutor(threads, thread_name_prefix="lossd-compiled") if threads > 1 else None
    if _find is not None:
        return
    begin = time.monotonic()
    # Numba tells by a module's own time of change whether what it kept is still true, not by what it imports.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(_cache_path()))
    from lossd.compiled import averages, passes

    rates = averages.rates
    _find = passes.find
    log.info("compiled passes ready after %.1f s", time.monotonic() - begin)


def in_parallel(function: Callable[[P], R], parts: Sequence[P]) -> Iterable[R]:
    """The results of the parts, in their order."""
    return map(function, parts) if _threads is None or len(parts) == 1 else _threads.map(function, parts)


def _cache_path() -> Path:
    here = Path(__file__).parent
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(here.glob("*.py"))))
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "lossd" / f"compiled-{sources.hexdigest()[:16]}"
