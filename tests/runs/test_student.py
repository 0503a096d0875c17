"""Student's t against SciPy's."""

from __future__ import annotations

import math

import pytest
import scipy.stats

from lossd.runs.statistics.student import quantile, two_sided

DEGREES = (1, 1.5, 2, 3, 7.3, 15, 31, 63, 126, 1000.5)


@pytest.mark.parametrize("df", DEGREES)
def test_tails_are_scipys(df: float) -> None:
    for t in (0.01, 0.3, 0.9, 1, 1.5, 1.7, 1.8, 2, 2.5, 4, 8, 20, 100, 1e4):
        expected = 2 * scipy.stats.t.sf(t, df)
        assert two_sided(t, df) == pytest.approx(expected, rel=1e-10, abs=1e-290)
        assert two_sided(-t, df) == two_sided(t, df)


@pytest.mark.parametrize("df", DEGREES)
def test_quantiles_are_scipys(df: float) -> None:
    for level in (0.5001, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999):
        assert quantile(level, df) == pytest.approx(scipy.stats.t.ppf((1 + level) / 2, df), rel=1e-10)


def test_ends() -> None:
    assert two_sided(0, 5) == 1
    assert two_sided(math.inf, 5) == 0
    assert math.isnan(two_sided(math.nan, 5))
    # Of one degree it is Cauchy's distribution.
    assert two_sided(1e-9, 1) == pytest.approx(1 - 2e-9 / math.pi, rel=1e-15)
    assert quantile(0.9999, 1) == pytest.approx(math.tan(math.pi / 2 * 0.9999), rel=1e-12)
