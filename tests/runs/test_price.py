"""The price of slices: a definition whose tables cannot fit into a run is refused, with what to leave out."""

from __future__ import annotations

from typing import Any

import pytest

from lossd.runs.definition import RunDocument
from lossd.runs.price import check_price
from lossd_client.errors import QuotaExceeded

MIB = 1 << 20
SITES = {"site": [str(number) for number in range(1000)]}


def check(run_bytes: int, **fields: Any) -> None:
    check_price(RunDocument.parse({"task": "binary", "metrics": ["auroc"], **fields}), run_bytes)


def test_tables_of_many_slices_do_not_fit() -> None:
    with pytest.raises(QuotaExceeded, match=r"auroc of 1000 slice values in 64 groups .* groups 16, or fewer"):
        check(100 * MIB, slices=SITES)
    check(100 * MIB, slices=SITES, groups=16)
    check(100 * MIB, slices={"site": SITES["site"][:100]})


def test_what_has_no_tables_or_no_slices_is_not_priced() -> None:
    check(1 << 10)
    check(1 << 10, metrics=["accuracy"], slices=SITES)
