"""Numbers in memory, float32 or float64. Kernels compute in float64: the dtype matters only to read and to write.

A kernel is compiled once for both dtypes. It takes memory as an array of float32, and the words of a number: 1 for
float32, 2 for float64. ``load`` and ``store`` branch on the words. LLVM moves this branch out of loops, and makes
vector instructions of what is left.

Numba counts the references to an array at each call that takes it, which takes longer than a row of a few numbers.
``borrowed`` returns an array whose references are not counted. Its owner must be used after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from lossd.compiled.arithmetic import jit, jit_reassociating

__all__ = ["borrowed", "load", "read", "squares_at", "store"]


def _pointers(context: Any, builder: Any, signature: Any, arguments: Any) -> tuple[Any, Any, Any]:
    """Return whether numbers are float64, and the pointers to the number at an index as float64 and as float32."""
    memory, j, words = arguments[:3]
    data = context.make_array(signature.args[0])(context, builder, memory).data
    wide = builder.icmp_signed("==", words, ir.IntType(64)(2))
    return wide, builder.gep(builder.bitcast(data, ir.DoubleType().as_pointer()), [j]), builder.gep(data, [j])


def _load(_: Any, memory: Any, j: Any, words: Any) -> Any:
    """Return the number at index j, as float64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide, double, single = _pointers(context, builder, signature, arguments)
        with builder.if_else(wide) as (then, otherwise):
            with then:
                number, end = builder.load(double), builder.block
            with otherwise:
                widened, other_end = builder.fpext(builder.load(single), ir.DoubleType()), builder.block
        either = builder.phi(ir.DoubleType())
        either.add_incoming(number, end)
        either.add_incoming(widened, other_end)
        return either

    return types.float64(memory, types.int64, types.int64), generate


def _store(_: Any, memory: Any, j: Any, words: Any, number: Any) -> Any:
    """Write a float64 at index j, rounded to float32 if that is what memory holds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide, double, single = _pointers(context, builder, signature, arguments)
        with builder.if_else(wide) as (then, otherwise):
            with then:
                builder.store(arguments[3], double)
            with otherwise:
                builder.store(builder.fptrunc(arguments[3], ir.FloatType()), single)
        return context.get_dummy_value()

    return types.none(memory, types.int64, types.int64, types.float64), generate


def _borrowed(_: Any, array: Any) -> Any:
    """Return an array over the same memory that has no owner."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        view.meminfo = view.parent = ir.Constant(ir.IntType(8).as_pointer(), None)
        return view._getvalue()

    return array(array), generate


borrowed: Callable[..., Any] = intrinsic(_borrowed)
load: Callable[..., float] = intrinsic(_load)
store: Callable[..., None] = intrinsic(_store)


@jit
def read(memory: Any, first: int, words: int, numbers: Any) -> None:
    """Read N numbers from an index on into (N,) float64."""
    for j in range(numbers.shape[0]):
        numbers[j] = load(memory, first + j, words)


@jit_reassociating
def squares_at(memory: Any, first: int, words: int, count: int) -> float:
    """Return the sum of the squares of some numbers from an index on."""
    total = 0.0
    for j in range(count):
        number = load(memory, first + j, words)
        total += number * number
    return total
