"""Shape patterns: match them with shapes, resolve them, and show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["axis_names", "expected_shape", "is_empty", "match", "resolve", "show"]

OPTIONAL = frozenset("S")
"""Axes that may have length 0: a batch of sequences may have no label (S) at all."""


def match(pattern: Sequence[str], shape: tuple[int, ...], dims: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the lengths of the pattern's names, or None if the shape does not fit; ``...`` fits any shape."""
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
    """Return whether a shape that fits a pattern has length 0 along an axis that must not be empty."""
    named = [*pattern, *("*",) * (len(shape) - len(pattern))]
    return any(length == 0 and axis not in OPTIONAL for axis, length in zip(named, shape, strict=False))


def resolve(pattern: Sequence[str], dims: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of a pattern, given the lengths of its names."""
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


def axis_names(pattern: Sequence[str], ndim: int) -> list[str]:
    """Return a name for each of ``ndim`` axes: those of ``*`` have names of their own, the same in every pattern."""
    names: list[str] = []
    for axis in pattern:
        further = ndim - len(pattern) + 1 if axis in ("*", "...") else 0
        names += [f"{axis}{i}" for i in range(further)] if axis in ("*", "...") else [axis]
    return names


def expected_shape(pattern: Sequence[str], dims: Mapping[str, Any]) -> str:
    """Return the pattern as text, with known lengths in place of names."""
    axes: list[str] = []
    for axis in pattern:
        if axis == "*" and "*" in dims:
            axes.extend(str(length) for length in dims["*"])
        else:
            axes.append(str(dims.get(axis, axis)))
    return f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"


def show(shape: Sequence[int]) -> str:
    """Return a shape as text."""
    return str(tuple(shape))
