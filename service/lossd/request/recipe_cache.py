"""Recipes found by what they depend on: requests that differ in how many rows they have, or in numbers, have the same.

To check a layout and to build its recipe takes most of a small request's time in the front. Where nothing of either
depends on the number of rows, the layout without it says which recipe it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

from lossd.job import Recipe
from lossd.lru import LRU

__all__ = ["RECIPES", "only_rows_lead", "outline"]

Outline = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype and shape of each tensor, without the number of its rows."""


def outline(layout: Mapping[str, tuple[str, tuple[int, ...]]], leading: Set[str]) -> tuple[int, Outline] | None:
    """The number of rows, and the rest of the layout; None where the tensors do not agree on a number.

    Args:
        layout: Dtype and shape of each tensor.
        leading: Those whose first axis counts the rows.
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
    """Whether the number of rows is met nowhere but as the first axis of what it leads.

    Args:
        patterns: Of each type that a tensor may have: whether the rows lead it, and its axes.
    """
    return not any(
        axis.partition("-")[0] == "N" for leads, pattern in patterns for axis in (pattern[1:] if leads else pattern)
    )


RECIPES: Final[LRU[tuple[int, Outline], Recipe]] = LRU()
"""The latest, by their plans' family and the outline of their layouts."""
