"""The totals of numbers: batches that are counted together, and their bytes."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from lossd.compiled.passes import Passes
from lossd.exact.integer_sums import IntegerSums
from lossd.metrics.contributions import Extremes
from lossd.runs.rows.slots import placed
from lossd.runs.totals.sums import LargestTotal

SLICED = {"slices": {"site": ["A", "B"]}}


@pytest.mark.parametrize("definition", [{}, SLICED], ids=["all rows", "slices"])
def test_the_largest_of_each_batch(definition: dict[str, object]) -> None:
    rows = np.array([[3.0, -0.0], [math.nan, -1.0], [-math.inf, -math.inf], [-2.0, 5.0]])
    placement = placed(definition, [2, 1, 1], None, {"site": np.array([0, 0, 1, 1])} if definition else {})
    with np.errstate(invalid="ignore"):  # as a worker does
        found = LargestTotal.each(Extremes([*rows.T], placement.combinations.index), placement, 0)
    assert [total.values[0].tolist() for total in found[1:]] == [[-math.inf, -math.inf], [-2.0, 5.0]]
    first, nothing, last = (total.encode() for total in found)
    used = 1 + bool(definition)  # the rows of the first batch are those of the site A, too
    numbers = struct.pack("<2d", np.nan, 0.0)
    assert first == struct.pack(f"<Q{used}I", used, *range(used)) + used * numbers
    assert nothing == bytes(8)
    assert last.endswith(struct.pack("<2d", -2.0, 5.0))


@pytest.mark.parametrize("size", [5, 1000])
@pytest.mark.parametrize("most", [3, 127, 128, 300, 1 << 16, 1 << 40])
def test_sums_that_are_split_have_the_bytes_of_each_part(size: int, most: int, passes: Passes) -> None:
    random = np.random.default_rng(size + most)
    dense = random.integers(-most, most, 4 * size) * (random.random(4 * size) < 5 / size)
    dense[size : 2 * size] = 0
    used = np.flatnonzero(dense)
    for pack in (None, passes.counting["pack_sums"]):
        parts = IntegerSums.split(used, dense[used], size, 4, pack)
        for part, expected in zip(parts, dense.reshape(4, size), strict=True):
            held = np.flatnonzero(expected)
            assert part.encode() == IntegerSums(size, held, expected[held]).encode()
            assert part.dense().tolist() == expected.tolist()
