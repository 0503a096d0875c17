"""Compiled passes: the losses asked for most, each in one walk over a batch that lies in main memory.

A pass checks the targets, computes loss, gradient and norms, and counts what the metrics are made of, where the general
way takes a tensor operation for each step of it. It answers what needs no explanation: a request with a target out of
range or a number that is not finite is left to the general way, which finds the words. Answers agree to the rounding of
the inputs' dtype.

Nothing is there before :func:`load` or :func:`prepare`; then each pass is used as soon as its kernels are ready. Until
then, and for every other recipe, :func:`find` knows of no pass.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lossd.compiled.kernels import Kernel
    from lossd.compiled.store import Store
    from lossd.job import Recipe

__all__ = [
    "Outcome",
    "Pass",
    "Progress",
    "Work",
    "compile_and_keep",
    "find",
    "go_alone",
    "in_parallel",
    "load",
    "prepare",
    "progress",
    "rates",
]

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

_kernels: Sequence[Kernel] = ()

_threads: ThreadPoolExecutor | None = None

rates: Callable[..., bool] | None = None
"""See :func:`lossd.compiled.averages.rates`; None until it is ready."""


def find(recipe: Recipe) -> Pass | None:
    """The pass that evaluates a recipe; None where there is none, or none was loaded."""
    return None if _find is None else _find(recipe)


class Progress(NamedTuple):
    """How many kernels can be used, how many cannot be compiled here, and how many there are.

    All are 0 before the first is looked for.
    """

    ready: int = 0
    failed: int = 0
    total: int = 0


def progress() -> Progress:
    """How far they are."""
    return Progress(sum(k.ready for k in _kernels), sum(k.failed for k in _kernels), len(_kernels))


def prepare(threads: int = 1, changed: Callable[[Progress], None] = lambda _: None) -> None:
    """Load the kernels whose code is kept, and have a process beside this one compile the others.

    Nobody waits for those: until a kernel is there, what needs it goes the general way.

    Args:
        threads: How many take the parts of a large request.
        changed: Told of the progress now and whenever there is some, then by another thread.
    """
    try:
        from lossd.compiled.building import Compiler, build, pending

        store = _open(threads)
    except Exception as error:  # a Numba that does not fit its NumPy, among others
        log.warning("the compiled passes cannot be had: %s; every request goes the general way", error)
        return

    def tell() -> None:
        _look_at_rates()
        changed(progress())

    def build_beside() -> None:
        compiler = Compiler()
        try:
            build(_kernels, store, compiler, tell)
        finally:
            compiler.close()
        gc.freeze()

    tell()
    if pending(_kernels):
        threading.Thread(target=build_beside, name="lossd-compile", daemon=True).start()


def load(threads: int = 1) -> None:
    """Load the kernels, and compile here those whose code is not kept, which takes some ten seconds.

    Args:
        threads: How many take the parts of a large request.
    """
    from lossd.compiled.building import build, pending
    from lossd.compiled.kernels import Kernel

    store = _open(threads)
    if pending(_kernels):
        build(_kernels, store, Kernel.compile, lambda: None)
    _look_at_rates()


def go_alone() -> None:
    """Evaluate large requests in this thread from now on, in a process that was forked and has no other."""
    global _threads
    _threads = None


def compile_and_keep() -> bool:
    """Compile for this machine's processor what is not kept yet; whether all is kept now."""
    from lossd.compiled.building import build, load_kept, pending
    from lossd.compiled.kernels import Kernel
    from lossd.compiled.order import KERNELS
    from lossd.compiled.store import Store

    store = Store()
    load_kept(KERNELS, store)
    if pending(KERNELS):
        gc.disable()  # see lossd.compiled.beside
        build(KERNELS, store, Kernel.compile, lambda: None)
    kept = [kernel.name for kernel in KERNELS if store.read(kernel.name) is not None]
    log.info("the code of %d of %d passes lies in %s", len(kept), len(KERNELS), store)
    return len(kept) == len(KERNELS)


def _open(threads: int) -> Store:
    """Load what is kept, and use whatever becomes ready from now on."""
    global _find, _kernels, _threads
    begin = time.monotonic()
    from lossd.compiled import order, passes
    from lossd.compiled.building import load_kept
    from lossd.compiled.store import Store

    store = Store()
    load_kept(order.KERNELS, store)
    _threads = ThreadPoolExecutor(threads, thread_name_prefix="lossd-compiled") if threads > 1 else None
    _find, _kernels = passes.find, order.KERNELS
    now = progress()
    log.info("%d of %d compiled passes loaded in %.1f s", now.ready, now.total, time.monotonic() - begin)
    return store


def _look_at_rates() -> None:
    global rates
    from lossd.compiled import averages
    from lossd.compiled.kernels import kernels_of

    if all(kernel.ready for kernel in kernels_of(averages.rates)):
        rates = averages.rates


def in_parallel(function: Callable[[P], R], parts: Sequence[P]) -> Iterable[R]:
    """The results of the parts, in their order."""
    return map(function, parts) if _threads is None or len(parts) == 1 else _threads.map(function, parts)
