"""Kernels: the functions of the passes. Each is compiled by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numba
from numba.core import serialize
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.sigutils import normalize_signature

from lossd.compiled.pipeline import KernelPipeline

__all__ = ["OPTIONS", "Kernel", "all_ready", "aot", "kernel_of"]

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "fastmath": {"contract"}}
# Only Python calls a kernel, so that no C wrapper is needed.
KERNEL: dict[str, Any] = OPTIONS | {"no_cfunc_wrapper": True, "pipeline_class": KernelPipeline}

_known: dict[Any, Kernel] = {}


@dataclass(slots=True, eq=False)
class Kernel:
    """A function and its state.

    Attributes:
        name: The function's name.
        function: Numba's dispatcher, which calls the compiled code.
        signature: The types of the arguments and of the result.
        ready: Whether it can be called.
        failed: Whether it cannot be compiled on this machine.
        demand: How many batches needed it before it was ready.
    """

    name: str
    function: Any
    signature: str
    ready: bool = False
    failed: bool = False
    demand: int = 0

    def compile(self) -> bytes:
        """Compile the kernel, and return its code for :meth:`load` in a process on the same processor."""
        types, _ = normalize_signature(self.signature)
        self.function.disable_compile(False)
        self.function.compile(self.signature)
        self.function.disable_compile()
        self.ready = True
        return cast("bytes", serialize.dumps(self.function.overloads[tuple(types)]._reduce()))

    def load(self, code: bytes) -> None:
        """Load code that another process compiled; raise any exception if the bytes are not such code.

        A process that was forked while a thread loaded it loads it again. Numba refuses calls of a function that has
        two codes for one signature.
        """
        with global_compiler_lock:
            if not self.function.overloads:
                target = self.function.targetctx
                target.refresh()
                result = CompileResult._rebuild(target, *serialize.loads(code))
                target.insert_user_function(result.entry_point, result.fndesc, [result.library])
                self.function.add_overload(result)
            self.function.disable_compile()
        self.ready = True


def aot(signature: str) -> Callable[[F], F]:
    """Return a decorator that makes a kernel of a function."""

    def make(function: F) -> F:
        dispatcher = numba.njit(**KERNEL)(function)
        _known[dispatcher] = Kernel(function.__name__, dispatcher, signature)
        return cast("F", dispatcher)

    return make


def kernel_of(function: object) -> Kernel:
    """Return the kernel of a function that :func:`aot` decorated."""
    return _known[function]


def all_ready(kernels: Sequence[Kernel]) -> bool:
    """Return whether all kernels are ready; request those that are not."""
    missing = [kernel for kernel in kernels if not kernel.ready]
    for kernel in missing:
        kernel.demand += 1
    return not missing
