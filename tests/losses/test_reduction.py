"""Sums that stay exact where a serial sum in single precision does not, and never leave their request."""

from __future__ import annotations

import pytest
import torch

from lossd.losses import reduction
from lossd.losses.reduction import LONG, PARTIAL, Segments, ratio, row_sums


def test_ones_are_counted_beyond_the_integers_of_single_precision() -> None:
    count = 2**24 + PARTIAL + 3
    assert row_sums(torch.ones(1, count)).tolist() == [count]
    assert Segments([count]).sum(torch.ones(count)).tolist() == [count]


@pytest.mark.parametrize("entries", [1, LONG - 1, LONG, LONG + 1, 5 * LONG + 17])
def test_long_rows_sum_to_what_double_precision_gives(entries: int) -> None:
    value = torch.rand(3, entries, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(row_sums(value), value.double().sum(1), rtol=2e-8, atol=0)


@pytest.mark.parametrize("entries", [17, PARTIAL + 17], ids=["short", "long"])
def test_the_sum_of_a_row_does_not_depend_on_the_number_of_rows(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "LONG", PARTIAL)
    row = torch.rand(1, entries, generator=torch.Generator().manual_seed(0))
    few = row_sums(row.expand(2, entries))
    for count in (1, 67, 2**16 + 1):
        assert row_sums(row.expand(count, entries)).unique().equal(few[:1])


@pytest.mark.parametrize("rows", [[2, 2, 2], [1, 3, 2]], ids=["equal", "ragged"])
def test_a_request_keeps_its_nan_to_itself(rows: list[int]) -> None:
    segments = Segments(rows)
    value = torch.arange(6.0)
    value[1] = torch.nan
    sums = segments.sum(value)
    owner = int(segments.index[1])
    for request, (part, found) in enumerate(zip(segments.split(value), sums, strict=True)):
        assert bool(found.isnan()) == (request == owner)
        assert request == owner or found == part.sum()


def test_integers_sum_as_integers() -> None:
    total = Segments([2, 1]).sum(torch.tensor([2**53, 1, 7]))
    assert total.dtype == torch.int64
    assert total.tolist() == [2**53 + 1, 7]


def test_nothing_over_nothing_is_nothing() -> None:
    found = ratio(torch.tensor([3.0, 0.0]), torch.tensor([2.0, 0.0]))
    assert found.tolist() == [1.5, 0.0]
