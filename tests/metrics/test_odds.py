"""What classes are ranked by: their log-odds, where probabilities round and sums change with the row's place."""

from __future__ import annotations

from decimal import Decimal, localcontext
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.metrics import average_precision_score, roc_auc_score

from lossd.metrics.odds import log_odds
from metrics.measuring import measure

NAMES = ["auroc", "average_precision"]


def exact_log_odds(row: list[float]) -> list[Decimal]:
    """In two hundred digits."""
    with localcontext() as context:
        context.prec = 200
        z = [Decimal(x) for x in row]
        return [logit - sum((other - max(z)).exp() for j, other in enumerate(z) if j != k).ln() - max(z)
                for k, logit in enumerate(z)]  # fmt: skip


def ranks(values: list[Any]) -> list[int]:
    """Equal numbers have equal ranks."""
    order = sorted(set(values))
    return [order.index(value) for value in values]


@pytest.mark.parametrize("shift", [0.0, 1.0, -1000.0, 3e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_certain_rows_are_ranked_by_their_margins(dtype: Any, shift: float) -> None:
    """51 and 45 against 40.5 and 39.5, whatever is added to a row."""
    prediction = np.array([[52.0, 1.0], [47.0, 2.0], [41.5, 1.0], [40.0, 0.5]])
    prediction[1] += shift
    request = {"prediction": prediction.astype(dtype), "target": np.array([0, 0, 1, 1])}
    (answer,) = measure("multiclass", [request], NAMES)
    assert answer["auroc"]["per_class"] == answer["average_precision"]["per_class"] == [1.0, 1.0]
    # Of both classes' entries together, margins: 51 and 45 right, 40.5 and 39.5 wrong, and their negatives.
    flat = np.array([51, 45, -40.5, -39.5, 40.5, 39.5, -51, -45])
    true = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    assert answer["auroc"]["micro"] == roc_auc_score(true, flat)
    assert answer["average_precision"]["micro"] == pytest.approx(average_precision_score(true, flat), rel=1e-15)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.integers(-400, 400).map(lambda n: n / 8), min_size=3, max_size=3), min_size=2, max_size=7
    ),
    steps=st.lists(st.integers(-1000, 1000), min_size=7, max_size=7),
)
def test_log_odds_rank_as_exact_ones(rows: list[list[float]], steps: list[int]) -> None:
    """Ties included: of rows that differ by a whole number, or by the order of the other classes."""
    rows += [[x + step for x in row] for row, step in zip(rows, steps, strict=False)]
    rows += [[row[0], row[2], row[1]] for row in rows]
    found = log_odds(torch.tensor(rows, dtype=torch.float64).unsqueeze(-1))[:, :, 0]
    exact = [exact_log_odds(row) for row in rows]
    for k in range(3):
        of_class = [(float(f), e) for f, e in zip(found[:, k], (row[k] for row in exact), strict=True)]
        for mine, theirs in of_class:
            assert mine == pytest.approx(float(theirs), rel=1e-14, abs=1e-15)
        # What float64 can tell apart ranks as it is; what is equal in two hundred digits is equal.
        by_exact = sorted(of_class, key=lambda pair: pair[1])
        for (low, exact_low), (high, exact_high) in pairwise(by_exact):
            if abs(exact_high - exact_low) < Decimal("1e-150"):
                assert low == high
            elif float(exact_high - exact_low) > 4e-15 * max(1, abs(high)):
                assert low < high


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 1000])
def test_log_odds_are_the_logarithm_of_the_odds(classes: int) -> None:
    scores = np.random.default_rng(classes).normal(size=(20, classes, 3)) * 9
    found = log_odds(torch.from_numpy(scores)).numpy()
    for k in {0, classes // 2, classes - 1}:
        others = np.delete(scores, k, axis=1)
        expected = scores[:, k] - logsumexp(others, axis=1) if classes > 1 else np.full((20, 3), np.inf)
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-12, atol=1e-13)


def test_the_order_of_the_other_classes_makes_no_difference() -> None:
    row = np.random.default_rng(0).normal(size=6).tolist()
    orders = torch.tensor([[row[0], *rest] for rest in permutations(row[1:])], dtype=torch.float64)
    assert len(log_odds(orders.unsqueeze(-1))[:, 0].unique()) == 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([np.inf, 0, 1], [np.inf, -np.inf, -np.inf]),
        ([-np.inf, 0, 1], [-np.inf, -1, 1]),
        ([np.inf, np.inf, 0], [0, 0, -np.inf]),
        ([-np.inf, -np.inf, 0], [-np.inf, -np.inf, np.inf]),
        ([3e38, -3e38], [6e38, -6e38]),
    ],
)
def test_infinite_logits_have_the_odds_of_their_limit(row: list[float], expected: list[float]) -> None:
    assert log_odds(torch.tensor(row, dtype=torch.float64).reshape(1, -1, 1)).flatten().tolist() == expected


def test_a_nan_has_no_rank() -> None:
    request = {"prediction": np.array([[np.nan, 0.0, 1.0], [0.0, 1.0, 2.0]]), "target": np.array([0, 1])}
    (answer,) = measure("multiclass", [request], NAMES)
    assert answer["auroc"]["per_class"][:2] == ["NaN", "NaN"]


@pytest.mark.parametrize("activation", ["probability", "log_probability"])
def test_what_is_given_as_a_probability_is_ranked_as_it_is(activation: str) -> None:
    """Log-probabilities of -800 and -900 are no longer told apart as probabilities."""
    p = np.array([[-800.0, -1e-9], [-900.0, -1e-10], [-750.0, -1e-8], [-850.0, -2e-10]])
    request = {
        "prediction": p if activation == "log_probability" else np.exp(p / 100),
        "target": np.array([0, 1, 0, 1]),
    }
    (answer,) = measure("multiclass", [request], NAMES, activation=activation)
    assert answer["auroc"]["per_class"] == [1.0, 1.0] if activation == "log_probability" else [1.0, 0.0]


@pytest.mark.parametrize("shift", [0.0, 2.0**20, -(2.0**24)])
@pytest.mark.parametrize("name", ["log_loss", "brier", "ece", "auroc"])
def test_a_constant_added_to_a_row_changes_nothing(name: str, shift: float) -> None:
    rng = np.random.default_rng(0)
    prediction, target = rng.integers(-40, 40, (50, 4)) / 8.0, rng.integers(0, 4, 50)
    (plain,) = measure("multiclass", [{"prediction": prediction, "target": target}], [name])
    (moved,) = measure("multiclass", [{"prediction": prediction + shift, "target": target}], [name])
    assert moved == plain
