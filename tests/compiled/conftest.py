"""Every kernel that a test of this folder calls has its arrays beside guards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from compiled.guards import Guards

guards = cache(Guards)


@pytest.fixture(scope="module", autouse=True)
def _guarded_arrays() -> Iterator[None]:
    with guards().watch():
        yield
