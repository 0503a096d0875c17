"""Kernels: the functions that passes are made of, each compiled for one dtype, by itself, when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numba
from numba.core import serialize
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.sigutils import normalize_signature

__all__ = ["OPTIONS", "Kernel", "all_ready", "aot", "kernels_of"]

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "fastmath": {"contract"}}
KERNEL: dict[str, Any] = OPTIONS | {"no_cfunc_wrapper": True}  # called from Python alone: nothing needs its address

_known: dict[Any, list[Kernel]] = {}


@dataclass(slots=True, eq=False)
class Kernel:
    """A function for one dtype.

    Attributes:
        name: The function's name, and the dtype if there are several.
        dtype: Of what differs between its kernels; "" if there is one.
        function: Numba's dispatcher, which calls the kernel of its arguments' dtype.
        signature: The types of the arguments and of the result.
        ready: Whether it can be called.
        failed: Whether it cannot be compiled here.
        asked: How many batches wanted it while it was not ready.
    """

    name: str
    dtype: str
    function: Any
    signature: str
    ready: bool = False
    failed: bool = False
    asked: int = 0

    def compile(self) -> bytes:
        """Compile it; the code, for :meth:`load` of a process on the same processor."""
        types, _ = normalize_signature(self.signature)
        self.function.disable_compile(False)
        self.function.compile(self.signature)
        self.function.disable_compile()
        self.ready = True
        return cast("bytes", serialize.dumps(self.function.overloads[tuple(types)]._reduce()))

    def load(self, code: bytes) -> None:
        """Use code that another process compiled; any exception means that it is none."""
        with global_compiler_lock:
            target = self.function.targetctx
            target.refresh()
            result = CompileResult._rebuild(target, *serialize.loads(code))
            target.insert_user_function(result.entry_point, result.fndesc, [result.library])
            self.function.add_overload(result)
            self.function.disable_compile()
        self.ready = True


def aot(signature: str, *dtypes: str) -> Callable[[F], F]:
    """A function of kernels: one for each dtype, which takes the place of ``{0}`` in the signature."""

    def make(function: F) -> F:
        dispatcher = numba.njit(**KERNEL)(function)
        _known[dispatcher] = [
            Kernel(f"{function.__name__} {dtype}".strip(), dtype, dispatcher, signature.format(dtype))
            for dtype in dtypes or ("",)
        ]
        return cast("F", dispatcher)

    return make


def kernels_of(function: Callable[..., Any]) -> Sequence[Kernel]:
    """Those of a function that is :func:`aot`."""
    return _known[function]


def all_ready(kernels: Sequence[Kernel]) -> bool:
    """Return whether all kernels are ready; each that is not is asked for."""
    missing = [kernel for kernel in kernels if not kernel.ready]
    for kernel in missing:
        kernel.asked += 1
    return not missing
