"""How Numba compiles kernels: only the passes that they need, and no machine code for the functions within them.

Numba's own pipeline rewrites what kernels do not contain, such as closures, literals and array expressions. It also
makes machine code of each function, but only kernels are called. Inner functions are still optimised by themselves
before a kernel is, because LLVM makes vector instructions of fewer of their loops within a kernel.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    FixupArgs,
    GenericRewrites,
    InlineInlinables,
    IRProcessing,
    ReconstructSSA,
    TranslateByteCode,
)

__all__ = ["InnerPipeline", "KernelPipeline"]

PASSES = (
    TranslateByteCode, FixupArgs, IRProcessing, GenericRewrites, InlineInlinables, ReconstructSSA,
    NopythonTypeInference, PreLowerStripPhis, IRLegalization, NativeLowering, NoPythonBackend,
)  # fmt: skip


class _InnerLibrary(JITCodeLibrary):
    """The optimised code of an inner function, to be linked into kernels. It has no address to be called by."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0

    @property
    def codegen(self) -> _InnerLibrary:
        return self

    def set_env(self, name: str, environment: Any) -> None:
        """Do nothing: only Python's wrapper of a kernel reads an environment."""


class KernelPipeline(CompilerBase):
    """Compiles a kernel."""

    def define_pipelines(self) -> list[PassManager]:
        """Return the passes, in their order."""
        manager = PassManager("lossd")
        for each in PASSES:
            manager.add_pass(each, each.name())
        manager.finalize()
        return [manager]


class InnerPipeline(KernelPipeline):
    """Compiles a function that only kernels call."""

    def define_pipelines(self) -> list[PassManager]:
        """Return the passes, in their order; the code they make is not made executable."""
        self.state.library = _InnerLibrary(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return super().define_pipelines()
