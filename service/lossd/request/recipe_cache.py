"""A cache of recipes: requests that differ only in their number of rows, or in plain-number parameters, share one.

Checking a layout and building its recipe takes most of a small request's time in the front. If neither depends on the
number of rows, then the plan's template and the layout without its rows (the shape key) identify the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

from lossd.caches import Cache
from lossd.job import Recipe

__all__ = ["RECIPES", "only_rows_lead", "shape_key"]

ShapeKey = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype and shape of each tensor, without the number of rows."""


def shape_key(layout: Mapping[str, tuple[str, tuple[int, ...]]], leading: Set[str]) -> tuple[int, ShapeKey] | None:
    """Return the number of rows and the rest of the layout; None if the tensors differ in their number of rows.

    Args:
        layout: Dtype and shape of each tensor.
        leading: The tensors whose first axis counts the rows.
    """
    rows = 0
    rest = []
    for name, (dtype, shape) in layout.items():
        if name not in leading:
            rest.append((name, dtype, shape))
        elif shape and shape[0] and rows in (0, shape[0]):
            rows = shape[0]
            rest.append((name, dtype, shape[1:]))
        else:
            return None
    return (rows, tuple(rest)) if rows else None


def only_rows_lead(patterns: Iterable[tuple[bool, Sequence[str]]]) -> bool:
    """Return whether the number of rows is a length of first axes only.

    Args:
        patterns: For each type that a tensor may have: whether its first axis counts the rows, and its axes.
    """
    return not any(
        axis.partition("-")[0] == "N" for leads, pattern in patterns for axis in (pattern[1:] if leads else pattern)
    )


RECIPES: Final[Cache[tuple[int, ShapeKey], Recipe]] = Cache("recipes_by_shape")
"""The latest recipes, by their plan's template and their layout's shape key."""
