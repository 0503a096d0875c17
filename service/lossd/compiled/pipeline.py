"""How Numba compiles kernels: only the passes that they need, and no machine code for the functions within them.

Numba's own pipeline rewrites what kernels do not contain, such as closures, literals and array expressions. It also
makes machine code of each function, but only kernels are called. Inner functions are still optimised by themselves
before a kernel is, because LLVM makes vector instructions of fewer of their loops within a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
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

__all__ = ["ApartPipeline", "InnerPipeline", "KernelPipeline"]

PASSES = (
    TranslateByteCode, FixupArgs, IRProcessing, GenericRewrites, InlineInlinables, ReconstructSSA,
    NopythonTypeInference, PreLowerStripPhis, IRLegalization, NativeLowering, NoPythonBackend,
)  # fmt: skip


WIDE = '"prefer-vector-width"="512"'
"""LLVM's attribute of a function that may use whole vector registers.

By default LLVM uses half of AVX-512's, because the first processors with AVX-512 lower their clock when whole ones are
used. Without AVX-512 the attribute changes nothing.
"""

SLOWED = ("skylake-avx512", "cascadelake", "cooperlake", "cannonlake")
"""The first processors with AVX-512, as LLVM calls them."""


class _Library(JITCodeLibrary):
    """Code that does not copy the functions that are apart.

    Attributes:
        apart: The libraries of those that it calls.
    """

    apart: Sequence[_ApartLibrary] = ()

    def add_ir_module(self, ir_module: Any) -> None:
        if llvm.get_host_cpu_name() not in SLOWED:
            for function in ir_module.functions:
                if not function.is_declaration:
                    set.add(function.attributes, WIDE)  # its own `add` takes only attributes without a value
        super().add_ir_module(ir_module)

    def finalize(self) -> None:
        found: dict[_ApartLibrary, None] = {}
        others = []
        for library in self._linking_libraries:
            if isinstance(library, _ApartLibrary):
                found[library] = None
            else:
                others.append(library)
            found |= dict.fromkeys(getattr(library, "apart", ()))
        self.apart, self._linking_libraries = tuple(found), others
        super().finalize()


class _KernelLibrary(_Library):
    """The code of a kernel. What is apart is linked after the rest is optimised: it already is."""

    def __init__(self, codegen: Any, name: str) -> None:
        super().__init__(codegen, name)
        self.enable_object_caching()

    def _optimize_final_module(self) -> None:
        super()._optimize_final_module()
        for library in self.apart:
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)


class _InnerLibrary(_Library):
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


class _ApartLibrary(_InnerLibrary):
    """The same of a function that stays a function of its own."""


class KernelPipeline(CompilerBase):
    """Compiles a kernel."""

    library: type[_Library] = _KernelLibrary

    def define_pipelines(self) -> list[PassManager]:
        """Return the passes, in their order."""
        self.state.library = self.library(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        manager = PassManager("lossd")
        for each in PASSES:
            manager.add_pass(each, each.name())
        manager.finalize()
        return [manager]


class InnerPipeline(KernelPipeline):
    """Compiles a function that only kernels call; the code is not made executable."""

    library = _InnerLibrary


class ApartPipeline(KernelPipeline):
    """Compiles a function that only kernels call, and that is not inlined into them."""

    library = _ApartLibrary
