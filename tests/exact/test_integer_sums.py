"""Sums of integers: bytes that are read one by one or all at once, and bytes that are no such sums."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossd.exact.integer_sums import IntegerSums

WIDE = st.one_of(st.integers(-9, 9), st.integers(-(2**40), 2**40))


def bytes_of(numbers: list[int]) -> bytes:
    """The bytes of these sums."""
    dense = np.array(numbers, np.int64)
    used = np.flatnonzero(dense)
    return IntegerSums(len(dense), used, dense[used]).encode()


@given(
    st.integers(1, 400).flatmap(
        lambda size: st.lists(st.dictionaries(st.integers(0, size - 1), WIDE), max_size=6).map(
            lambda many: (size, many)
        )
    )
)
def test_many_are_read_at_once(drawn: tuple[int, list[dict[int, int]]]) -> None:
    size, many = drawn
    batches = [[each.get(k, 0) for k in range(size)] for each in many]
    expected = [sum(column) for column in zip(*batches, strict=True)] if batches else [0] * size
    merged = IntegerSums.merged([bytes_of(batch) for batch in batches], size)
    assert merged.dense().tolist() == expected
    assert merged.encode() == bytes_of(expected)


@given(st.binary(max_size=40), st.integers(1, 5))
def test_what_is_refused_alone_is_refused_among_others(noise: bytes, size: int) -> None:
    alone: Any = None
    with suppress(ValueError):
        alone = IntegerSums.decode(noise, size)
    if alone is not None:
        assert IntegerSums.merged([bytes_of([1] * size), noise], size).dense().tolist() == (alone.dense() + 1).tolist()
        return
    with pytest.raises(ValueError, match="integer sum"):
        IntegerSums.merged([bytes_of([1] * size), noise], size)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<IBB", 1, 1, 1) + b"\x05\x01",  # sum 5 of 5
        struct.pack("<IBB", 1, 1, 1) + b"\x00\x00",  # a zero
        struct.pack("<IBB", 2, 1, 1) + b"\x03\x01\x01\x01",  # beyond the last by two gaps
        struct.pack("<IBB", 1, 8, 1) + b"\xff" * 8 + b"\x01",
        struct.pack("<IBB", 1, 3, 1) + b"\x00\x00\x00\x01",
    ],
)
def test_bytes_of_another_form_are_refused(data: bytes) -> None:
    for many in ([data], [bytes_of([0, 1, 0, 0, 7]), data]):
        with pytest.raises(ValueError, match="integer sum"):
            IntegerSums.merged(many, 5)
