"""Which entries of a batch count, and what each weighs: the one place that reads masks, lengths, weights and NaN.

What does not count is replaced by harmless entries before anything reads it: neither a check, nor a loss, nor a metric
sees the NaN or the class -7 that lies there. Results are then selected, never multiplied: 0 times NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lossd.evaluation.validation import check, harmless
from lossd.job import MASKING, Recipe
from lossd.losses.reduction import Segments
from lossd_client.errors import Problem

__all__ = ["Masking", "masking_of"]


@dataclass(frozen=True, slots=True)
class Masking:
    """The entries of a batch that count.

    Attributes:
        recipe: The batch's recipe, with the ``axes`` of its inputs.
        keep: Which entries count, bool: (R, ...) if requests are rows, else (B, ...), then the axes of a mask.
        weight: The weight of each entry, float64, 0 where it does not count; None if those that count weigh the same.
    """

    recipe: Recipe
    keep: Tensor
    weight: Tensor | None

    def factor(self, dtype: torch.dtype) -> Tensor:
        """Return the weight of each entry, 0 where it does not count: in this dtype if all weigh 1, else float64."""
        return self.keep.to(dtype) if self.weight is None else self.weight

    def arguments(self, names: Sequence[str], dtype: torch.dtype) -> dict[str, Tensor]:
        """Return those of ``MASKS`` that a loss function takes, weights in this dtype; without weights if all are 1."""
        weight = {} if self.weight is None else {"element_weight": self.weight.to(dtype)}
        return {name: tensor for name, tensor in {"mask": self.keep, **weight}.items() if name in names}

    def counted(self, flag: Tensor) -> Tensor:
        """Return the flags (R, ...) of rows that are raised where entries count."""
        if flag.shape == self.keep.shape:
            return flag & self.keep
        if flag.ndim == self.keep.ndim - 1 and flag.ndim > 1:  # a flag of all classes of a position
            return flag & self.keep.all(1)
        return flag & self.keep.reshape(len(flag), -1).any(1).reshape(-1, *(1,) * (flag.ndim - 1))

    def ignored(self, *, positions: bool) -> Tensor:
        """Return the entries that metrics leave out: (rows, I), the samples of stacked requests one after the other.

        Args:
            positions: Whether metrics have one entry for all classes, axis 1 of the mask.
        """
        keep = self.keep if self._lead == 0 else self.keep.flatten(0, 1)
        kept = keep.all(1) if positions else keep
        return ~kept.reshape(len(kept), -1)

    def of_input(self, name: str) -> Tensor:
        """Return which entries of an input count: those that a counted entry of the loss reads; it broadcasts to it."""
        return _along(self.keep, self.recipe.axes[name], self._lead)

    def filled(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs with a harmless entry in place of each one that does not count."""
        return {
            name: tensor.masked_fill(~self.of_input(name), harmless(self.recipe, name, tensor))
            if name in self.recipe.axes
            else tensor
            for name, tensor in tensors.items()
        }

    def cleared(self, name: str, gradient: Tensor) -> Tensor:
        """Return the gradient by an input with exact zeros where entries do not count; overwrites it."""
        return gradient.masked_fill_(~self.of_input(name), 0)

    @property
    def _lead(self) -> int:
        """How many axes come before the mask's own: requests that are not rows have an axis of requests."""
        return 0 if self.recipe.kind == "rows" else 1


def masking_of(recipe: Recipe, tensors: Mapping[str, Tensor], segments: Segments) -> tuple[Masking, dict[int, Problem]]:
    """Return which entries count, and the problem of each request whose mask, lengths or weights are wrong.

    Args:
        recipe: The batch's recipe, with ``axes``.
        tensors: Each input: (R, ...) if its column counts rows, else (B, ...).
        segments: The rows of each request; one row each if requests are stacked.
    """
    names = [name for name in tensors if recipe.domains[name] in MASKING]
    sent, problems = check(recipe, {name: tensors[name] for name in names}, segments)
    keep, weight = None, None
    if "mask" in sent:
        keep = sent["mask"] != 0
    if "lengths" in sent:
        lengths = sent["lengths"].long()
        axis = recipe.entries[0 if recipe.kind == "rows" else 1]
        within = torch.arange(axis, device=lengths.device) < lengths.unsqueeze(-1)
        further = len(recipe.entries) - (1 if recipe.kind == "rows" else 2)
        keep = within.reshape(*within.shape, *(1,) * further)
    if "element_weight" in sent:
        weight = sent["element_weight"].double()
        keep = weight != 0 if keep is None else keep & (weight != 0)
    for name in recipe.nan_inputs:
        lacking = _across(tensors[name].isnan(), recipe.axes[name], recipe)
        keep = ~lacking if keep is None else keep & ~lacking
    assert keep is not None, "a recipe has axes only if it says which entries count"
    rows = (len(keep), *recipe.entries)
    keep = keep.expand(rows)
    return Masking(recipe, keep, None if weight is None else weight.masked_fill(~keep, 0)), problems


def _along(keep: Tensor, axes: tuple[int, ...], lead: int) -> Tensor:
    """Return the entries that count along the axes of an input; -1 stands for an axis that the mask lacks."""
    absent = [axis + lead for axis in range(keep.ndim - lead) if axis not in axes]
    kept = keep.any(absent) if absent else keep  # the input's entry belongs to several of the mask's
    for place, axis in enumerate(axes):
        if axis < 0:
            kept = kept.unsqueeze(place + lead)
    return kept


def _across(flags: Tensor, axes: tuple[int, ...], recipe: Recipe) -> Tensor:
    """Return the entries of the mask that a flag of an input touches, broadcasting against the mask."""
    lead = 0 if recipe.kind == "rows" else 1
    mask_axes = [place + lead for place, axis in enumerate(axes) if axis < 0]
    touched = flags.any(mask_axes) if mask_axes else flags
    count = len(recipe.entries) + (1 if recipe.kind == "rows" else 0)
    for axis in range(count):
        if axis not in axes:
            touched = touched.unsqueeze(axis + lead)
    return touched
