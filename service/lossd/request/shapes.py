"""Shape patterns: what an input's axes are called, bound, computed and shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["expected", "is_empty", "match", "resolve", "show"]

OPTIONAL = frozenset("S")
"""Axes whose length may be 0: a batch of sequences may have no label (S) at all."""


def match(pattern: Sequence[str], shape: tuple[int, ...], dims: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the pattern's names are bound to, or None where the shape does not fit; ``...`` fits and binds nothing."""
    fixed = [axis for axis in pattern if axis not in ("*", "...")]
    if len(shape) < len(fixed) or (len(fixed) == len(pattern) and len(shape) != len(fixed)):
        return None
    bound: dict[str, Any] = {}
    for axis, length in zip(fixed, shape, strict=False):
        if axis.isdigit():
            if int(axis) != length:
                return None
        elif dims.get(axis, length) != length or bound.get(axis, length) != length:
            return None
        else:
            bound[axis] = length
    if "*" in pattern:
        rest = shape[len(fixed) :]
        if dims.get("*", rest) != rest:
            return None
        bound["*"] = rest
    return bound


def is_empty(pattern: Sequence[str], shape: tuple[int, ...]) -> bool:
    """Whether a shape that fits a pattern has length 0 along an axis that must have something."""
    named = [*pattern, *("*",) * (len(shape) - len(pattern))]
    return any(length == 0 and axis not in OPTIONAL for axis, length in zip(named, shape, strict=False))


def resolve(pattern: Sequence[str], dims: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape a pattern stands for, given what its names are bound to."""
    shape: list[int] = []
    for axis in pattern:
        if axis == "*":
            shape.extend(dims["*"])
        elif axis.isdigit():
            shape.append(int(axis))
        else:
            name, _, less = axis.partition("-")
            shape.append(dims[name] - int(less or 0))
    return tuple(shape)


def expected(pattern: Sequence[str], dims: Mapping[str, Any]) -> str:
    """The pattern as a shape, with the lengths that are known in place of their names."""
    axes: list[str] = []
    for axis in pattern:
        if axis == "*" and "*" in dims:
            axes.extend(str(length) for length in dims["*"])
        else:
            axes.append(str(dims.get(axis, axis)))
    return f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"


def show(shape: Sequence[int]) -> str:
    """A shape as a reader writes it."""
    return str(tuple(shape))
