"""Differences of runs: against SciPy's tests of means, and Holm's procedure by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from lossd.runs.statistics.comparison import holm, paired, unpaired, verdict


def values(rows: np.ndarray) -> np.ndarray:
    """The mean of all rows, and of all rows but each, (1 + N, 1)."""
    return np.array([rows.mean(), *(np.delete(rows, i).mean() for i in range(len(rows)))])[:, None]


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    shared = rng.normal(size=50)
    return shared + 0.3 * rng.normal(size=50), shared + 0.3 * rng.normal(size=50) + 0.2


def test_a_paired_difference_of_means_is_the_paired_t_test(rows: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = rows
    [found] = paired(values(first), values(second), 0.9)
    expected = scipy.stats.ttest_rel(second, first)
    ends = expected.confidence_interval(0.9)
    assert found is not None
    assert found.difference == pytest.approx((second - first).mean(), rel=1e-12)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-9)
    assert found.standard_error == pytest.approx(scipy.stats.sem(second - first), rel=1e-9)


def test_an_unpaired_difference_of_means_is_welchs_t_test(rows: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = rows[0], 3 * rows[1][:31]
    [found] = unpaired(values(first), values(second), 0.99)
    expected = scipy.stats.ttest_ind(second, first, equal_var=False)
    ends = expected.confidence_interval(0.99)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-9)


def test_equal_runs_do_not_differ() -> None:
    same = values(np.random.default_rng(2).normal(size=20))
    [found] = paired(same, same, 0.95)
    assert found == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert verdict(found.difference, found.p, "higher", 0.95) == "undecided"


def test_a_difference_that_every_group_shows_is_a_sign_test() -> None:
    [found] = paired(np.zeros((65, 1)), np.ones((65, 1)), 0.95)
    assert found is not None
    assert found.p == pytest.approx(scipy.stats.binomtest(64, 64, 0.5).pvalue, rel=1e-12)


def test_what_is_not_defined_has_no_difference() -> None:
    known = np.full((17, 2), 0.5)
    broken = known.copy()
    broken[3, 0] = math.nan
    for function in (paired, unpaired):
        first, second = function(known, broken, 0.95)
        assert first is None
        assert second is not None


def test_holm_is_the_closed_test_of_bonferronis() -> None:
    """A hypothesis's corrected p is the largest of Bonferroni's over all sets of hypotheses with it (Holm, 1979)."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        p = (rng.random(5) ** 3).tolist()
        sets = [subset for size in range(1, 6) for subset in itertools.combinations(range(5), size)]
        expected = [
            max(min(1.0, len(subset) * min(p[i] for i in subset)) for subset in sets if k in subset) for k in range(5)
        ]
        assert holm(p) == pytest.approx(expected, rel=1e-12)
    assert holm([]) == []
    assert holm([None, 0.02, None, 0.5]) == [None, 0.04, None, 0.5]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("difference", "p", "better", "expected"),
    [
        (0.1, 0.049, "higher", "b"),
        (-0.1, 0.049, "higher", "a"),
        (0.1, 0.049, "lower", "a"),
        (-0.1, 0.049, "lower", "b"),
        (0.1, 0.051, "higher", "undecided"),
        (0.1, math.nan, "higher", "undecided"),
        (0.0, 0.0, "higher", "undecided"),
    ],
)
def test_the_verdict_is_by_the_better_side(difference: float, p: float, better, expected: str) -> None:
    assert verdict(difference, p, better, 0.95) == expected
