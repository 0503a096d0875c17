"""Where rows are counted: in a slot for each stratum and group of their batch's run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lossd.counting_kernels import NO_KERNELS, CountingKernels
from lossd.metrics.combinations import Combinations
from lossd.metrics.registry import Array
from lossd.runs.rows.fingerprint import starts_of
from lossd.runs.rows.strata import crossed_of, groups_of, slices_of, strata_of

__all__ = ["Placement", "Slots", "in_groups", "placed", "slots_of"]

MOST_NUMBERED = 1 << 62

Codes = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots of a run: stratum times groups plus group.

    Attributes:
        strata: The number of strata.
        groups: The number of groups; 1 without groups.
    """

    strata: int
    groups: int

    @property
    def count(self) -> int:
        """The number of slots."""
        return self.strata * self.groups


@dataclass(frozen=True)
class Placement:
    """The slots of the rows of several batches of one run.

    Attributes:
        slots: The run's slots.
        lengths: The rows of each batch.
        combinations: Which rows are counted together.
        maps: The slot of each combination, (U,) int64, -1 for none: among all rows, then by each slice and crossing.
            Slots of all batches are numbered one after the other.
        simple: Whether each combination is the slot of its own number.
        pack: The compiled function that makes the bytes of sums; None if it is not at hand.
    """

    slots: Slots
    lengths: Sequence[int]
    combinations: Combinations
    maps: tuple[Array, ...]
    simple: bool
    pack: Callable[..., None] | None = None

    @property
    def batches(self) -> int:
        """The number of batches."""
        return len(self.lengths)

    @property
    def count(self) -> int:
        """The number of slots of all batches."""
        return self.batches * self.slots.count

    @cached_property
    def whole(self) -> Placement:
        """The placement of batches that cannot be divided, as one row each: in the group of their first row.

        A batch is in a stratum if all of its rows are.
        """
        starts = np.concatenate([[0], np.cumsum(self.lengths[:-1])]).astype(np.int64)
        group = self.maps[0][self.combinations.index[starts]] % self.slots.groups
        maps = []
        for of_combination in self.maps:
            stratum = np.where(of_combination < 0, -1, of_combination // self.slots.groups)[self.combinations.index]
            low, high = np.minimum.reduceat(stratum, starts), np.maximum.reduceat(stratum, starts)
            maps.append(np.where((low == high) & (low >= 0), low * self.slots.groups + group, -1))
        together = Combinations(np.arange(self.batches), self.batches)
        return Placement(self.slots, [1] * self.batches, together, tuple(maps), simple=False)

    def moved(self, key: Array, values: Array, cells: int) -> tuple[Array, Array]:
        """Return sums of combinations as sums of slots.

        Args:
            key: The combination of each sum times ``cells`` plus its cell, (m,), rising, each once.
            values: The sums, (m,) integers.
            cells: The number of cells of a slot.

        Returns:
            The slot times ``cells`` plus the cell, rising, each once, and the sums.
        """
        if self.simple:
            return key, values
        place, index = np.divmod(key, cells)
        keys, numbers = [], []
        for of_combination in self.maps:
            slot = of_combination[place]
            inside = slot >= 0
            keys.append((slot * cells + index)[inside])
            numbers.append(values[inside])
        key, number = np.concatenate(keys), np.concatenate(numbers)
        order = np.argsort(key, kind="stable")
        key = key[order]
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        return key[starts], np.add.reduceat(number[order], starts) if len(starts) else number


def slots_of(definition: Mapping[str, Any]) -> Slots:
    """Return the slots of a run's definition."""
    return Slots(len(strata_of(definition)) if "slices" in definition else 1, groups_of(definition) or 1)


def in_groups(
    definition: Mapping[str, Any], lengths: Sequence[int], index: Array | None, kernels: CountingKernels = NO_KERNELS
) -> Placement:
    """Return where the rows of batches of a run without slices are counted.

    Args:
        definition: The run's definition.
        lengths: The rows of each batch.
        index: The group of each row, (R,) int64, numbered one batch after the other; None without groups.
        kernels: The compiled functions, by name; those at hand.
    """
    slots = slots_of(definition)
    if index is None:
        index = np.repeat(np.arange(len(lengths)), lengths)
    count = len(lengths) * slots.groups
    together = Combinations(index, count, starts_of(lengths), kernels.get("tally"))
    return Placement(slots, lengths, together, (np.arange(count),), simple=True, pack=kernels.get("pack_sums"))


def placed(definition: Mapping[str, Any], lengths: Sequence[int], groups: Array | None, codes: Codes) -> Placement:
    """Return where the rows of batches are counted.

    Args:
        definition: The run's definition.
        lengths: The rows of each batch.
        groups: The group of each row, (R,) int64; None without groups.
        codes: For each slice the number of each row's value, (R,) int64, -1 for none.
    """
    slots = slots_of(definition)
    batch = np.repeat(np.arange(len(lengths)), lengths)
    index = batch if groups is None else batch * slots.groups + groups
    if slots.strata == 1:
        return in_groups(definition, lengths, index)
    slices = slices_of(definition)
    names, size, number = sorted(slices), len(lengths) * slots.groups, index
    for name in names:
        if size * (len(slices[name]) + 1) > MOST_NUMBERED:
            used, number = np.unique(number, return_inverse=True)
            size = len(used)
        size *= len(slices[name]) + 1
        number = number * (len(slices[name]) + 1) + (codes[name] + 1)
    used, rows, inverse = np.unique(number, return_index=True, return_inverse=True)
    first = batch[rows] * slots.count + (0 if groups is None else groups[rows])
    maps, stratum = [first], 1
    for crossing in [*([name] for name in names), *crossed_of(definition)]:
        code, inside, values = np.zeros(len(rows), np.int64), np.ones(len(rows), bool), 1
        for name in crossing:
            slice_codes = codes[name][rows]
            code, inside = code * len(slices[name]) + slice_codes, inside & (slice_codes >= 0)
            values *= len(slices[name])
        maps.append(np.where(inside, first + (stratum + code) * slots.groups, -1))
        stratum += values
    return Placement(slots, lengths, Combinations(inverse.astype(np.int64), len(used)), tuple(maps), simple=False)
