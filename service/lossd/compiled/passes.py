"""The compiled passes of one worker: which kernels are ready, and the pass of each recipe.

Nothing here loads Numba before :meth:`Passes.load` or :meth:`Passes.prepare`: the process that accepts requests imports
this module too.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, cast

from lossd.caches import Cache

if TYPE_CHECKING:
    from lossd.compiled.kernels import Kernel
    from lossd.compiled.recipes import RecipePass
    from lossd.compiled.store import CodeStore
    from lossd.compiled.work import Pass
    from lossd.counting_kernels import CountingKernels
    from lossd.job import Recipe

__all__ = ["CompileProgress", "Passes"]

log = logging.getLogger("lossd.compiled")


class CompileProgress(NamedTuple):
    """How many kernels are ready, how many cannot be compiled, and how many there are; all 0 until they are loaded."""

    ready: int = 0
    failed: int = 0
    total: int = 0


class Passes:
    """The compiled passes that a worker or an inline engine owns. There are none before ``load`` or ``prepare``.

    Each pass is used as soon as its kernels are ready.

    Args:
        threads: How many threads share a large request.

    Attributes:
        threads: These threads; None if the calling thread is alone.
        counting: The kernels that metrics and runs call, by name; those that are ready.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="lossd-compiled") if threads > 1 else None
        self.counting: CountingKernels = {}
        self._kernels: Sequence[Kernel] = ()
        self._look_up: Callable[[Recipe], RecipePass] | None = None
        self._found: Cache[str, RecipePass] = Cache("passes")

    @property
    def progress(self) -> CompileProgress:
        """How far compilation is."""
        kernels = self._kernels
        return CompileProgress(sum(k.ready for k in kernels), sum(k.failed for k in kernels), len(kernels))

    def find(self, recipe: Recipe) -> Pass | None:
        """Return the pass of a recipe; None if it has none, or if a kernel is not ready. Such a kernel is asked for."""
        found = self._found.get(recipe.text)
        if found is None:
            if self._look_up is None:
                return None
            found = self._look_up(recipe)
            self._found.put(recipe.text, found, found.nbytes)
        return found.run if found.is_ready() else None

    def prepare(self, changed: Callable[[CompileProgress], None] = lambda _: None) -> None:
        """Load the kernels whose code is stored, and start a process that compiles the others.

        Requests that need a kernel go the general way until it is ready.

        Args:
            changed: Called with the progress, now and after each change; later calls come from another thread.
        """
        try:
            from lossd.compiled.building import Compiler, build, pending

            store = self._open()
        except Exception as error:  # a Numba that does not fit its NumPy, among others
            log.warning("the compiled passes cannot be had: %s; every request goes the general way", error)
            return

        def tell() -> None:
            self._look_at_counting()
            changed(self.progress)

        def build_in_background() -> None:
            compiler = Compiler()
            try:
                build(self._kernels, store, compiler, tell)
            finally:
                compiler.close()
            gc.freeze()

        tell()
        if pending(self._kernels):
            threading.Thread(target=build_in_background, name="lossd-compile", daemon=True).start()

    def load(self) -> None:
        """Load the kernels, and compile those whose code is not stored in this process, which takes some 17 s."""
        from lossd.compiled.building import build, pending
        from lossd.compiled.kernels import Kernel

        store = self._open()
        if pending(self._kernels):
            build(self._kernels, store, Kernel.compile, lambda: None)
        self._look_at_counting()

    def forked(self) -> Passes:
        """Return the passes of a forked process: what is ready now, without threads, which a fork does not copy."""
        passes = Passes()
        passes.counting, passes._kernels, passes._look_up = self.counting, self._kernels, self._look_up
        return passes

    def _open(self) -> CodeStore:
        """Load what is stored, and use each kernel that becomes ready from now on."""
        begin = time.monotonic()
        from lossd.compiled import compile_order, recipes
        from lossd.compiled.building import load_kept
        from lossd.compiled.store import CodeStore

        store = CodeStore()
        load_kept(compile_order.KERNELS, store)
        self._kernels, self._look_up = compile_order.KERNELS, recipes.look_up
        now = self.progress
        log.info("%d of %d compiled passes loaded in %.1f s", now.ready, now.total, time.monotonic() - begin)
        return store

    def _look_at_counting(self) -> None:
        from lossd.compiled.compile_order import COUNTING
        from lossd.compiled.kernels import kernel_of

        ready = {name: function for name, function in COUNTING.items() if kernel_of(function).ready}
        self.counting = cast("CountingKernels", ready)
