"""Real-valued predictions: numbers that are exact, large or not numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import evaluating
from lossd.metrics import entries
from metrics.measuring import alike, measure


def test_a_long_float32_sum_is_not_accumulated_in_float32():
    n = 17_000_000 // 8
    request = {"prediction": np.ones((8, n), np.float32), "target": np.zeros((8, n), np.float32)}
    (answer,) = measure("regression", [request], ["mae", "bias"], activation="real")
    assert answer["mae"] == answer["bias"] == 1.0


@pytest.mark.parametrize("name", ["mae", "mse", "r2", "pearson", "max_error", "explained_variance"])
def test_rows_larger_than_a_block_are_summed_part_by_part(monkeypatch, name):
    rng = np.random.default_rng(0)
    request = {key: rng.normal(size=(5, 60)) for key in ("prediction", "target")}
    (whole,) = measure("regression", [request], [name], activation="real")
    monkeypatch.setattr(entries, "BLOCK", 7)
    (parts,) = measure("regression", [request], [name], activation="real")
    alike(parts, whole, within=1e-12)


def test_what_json_cannot_spell_is_a_string_and_stays_with_its_request():
    def request(*prediction: float) -> dict[str, np.ndarray]:
        return {"prediction": np.array(prediction), "target": np.array([0.0, 1.0])}

    infinite, unknown, fine = measure(
        "regression",
        [request(np.inf, 1), request(np.nan, 1), request(1, 1)],
        ["mae", "bias", "max_error", "r2", "error_quantiles"],
        activation="real",
        quantiles=[0.0, 1.0],
    )
    assert [infinite[n] for n in ("mae", "bias", "max_error", "r2")] == [
        "Infinity",
        "Infinity",
        "Infinity",
        "-Infinity",
    ]
    assert [unknown[n] for n in ("mae", "bias", "max_error", "r2")] == ["NaN"] * 4
    assert unknown["error_quantiles"] == ["NaN", "NaN"]
    assert [fine[n] for n in ("mae", "bias", "max_error", "r2")] == [0.5, 0.5, 1.0, -1.0]


def test_float32_is_computed_in_float64():
    rng = np.random.default_rng(0)
    target = (1e6 + rng.normal(size=1000)).astype(np.float32)
    request = {"prediction": (target + rng.normal(size=1000)).astype(np.float32), "target": target}
    wide = {name: value.astype(np.float64) for name, value in request.items()}
    (found,) = measure("regression", [request], activation="real")
    (expected,) = measure("regression", [wide], activation="real")
    alike(found, expected, within=1e-12)


def test_bias_is_positive_where_predictions_are_too_high():
    request = {"prediction": np.array([2.0, 3.0]), "target": np.array([1.0, 1.0])}
    (answer,) = measure("regression", [request], ["bias"], activation="real")
    assert answer["bias"] == 1.5


EVERY = ["default", "explained_variance", "pearson", "mape", "error_quantiles"]
SCALED = ("mae", "rmse", "bias", "max_error")


def numbers(scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    target = rng.normal(size=(9, 2)) + 3
    return {"prediction": (target + rng.normal(size=target.shape) / 3) * scale, "target": target * scale}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("exponent", [-1000, -540, 510, 1015])
def test_numbers_of_any_size_have_the_same_ratios_to_the_last_bit(exponent, weighted):
    """Times a power of two, which no digit depends on; among others that are not."""
    requests = [numbers(), numbers(2.0**exponent)]
    if weighted:
        requests = [{**r, "sample_weight": np.arange(9.0)} for r in requests]
    plain, scaled = measure("regression", requests, EVERY, activation="real")
    assert plain == measure("regression", requests[:1], EVERY, activation="real")[0]
    for name in ("r2", "explained_variance", "pearson"):
        assert scaled[name] == plain[name], name
    for name in SCALED:
        assert scaled[name] == np.ldexp(plain[name], exponent), name
    alike(scaled["error_quantiles"], [np.ldexp(e, exponent) for e in plain["error_quantiles"]], within=1e-15)
    with np.errstate(over="ignore"):
        square = np.ldexp(plain["mse"], 2 * exponent)
    assert scaled["mse"] == (square if np.isfinite(square) else "Infinity")
    assert "undefined" not in scaled


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_a_service_that_has_compiled_its_passes_says_the_same(scale):
    request = {"loss": {"name": "mse"}, "outputs": ["metrics"], "metrics": {"names": EVERY}}

    def answer(factor: float) -> dict[str, Any]:
        tensors = {name: torch.from_numpy(value) for name, value in numbers(factor).items()}
        found: dict[str, Any] = evaluating.alone(request, tensors).document["metrics"]
        return found

    plain, scaled = answer(1.0), answer(scale)
    for name in ("r2", "explained_variance", "pearson"):
        assert scaled[name] == pytest.approx(plain[name], rel=1e-12), name
    for name in SCALED:
        assert scaled[name] == pytest.approx(plain[name] * scale, rel=1e-12), name


def test_large_errors_beside_a_small_target_and_the_other_way_round():
    """r2 is a ratio of two sums that may each be out of range, here 1 - 1e300 / 2e200, and 1 - 1e576 / 2e600."""
    request = {"prediction": np.array([1e150, 0.0]), "target": np.array([1e100, -1e100])}
    (answer,) = measure("regression", [request], ["r2"], activation="real")
    assert answer["r2"] == pytest.approx(-0.5e100)
    request = {"prediction": np.array([1e300, -1e300 * (1 - 1e-12)]), "target": np.array([1e300, -1e300])}
    (answer,) = measure("regression", [request], ["r2", "rmse"], activation="real")
    assert answer["r2"] == pytest.approx(1.0, abs=1e-15)
    assert answer["rmse"] == pytest.approx(1e288 / np.sqrt(2), rel=1e-3)


def test_differences_beyond_float64_leave_what_is_within_it_right():
    """Errors of 2e308, -2e308 and 0, of targets 1e308, -1e308 and 1e308."""
    request = {"prediction": np.array([-1e308, 1e308, 1e308]), "target": np.array([1e308, -1e308, 1e308])}
    (answer,) = measure("regression", [request], EVERY, activation="real")
    assert answer["bias"] == 0
    assert answer["mae"] == pytest.approx(4 / 3 * 1e308)
    assert answer["rmse"] == pytest.approx(np.sqrt(8 / 3) * 1e308)
    assert answer["r2"] == answer["explained_variance"] == pytest.approx(1 - 8 / (8 / 3))
    assert answer["pearson"] == pytest.approx(-0.5)
    assert answer["mape"] == pytest.approx(4 / 3)
    assert answer["max_error"] == "Infinity"


def test_sums_beyond_float64_leave_means_right():
    request = {"prediction": np.full(50, 1e308), "target": np.full(50, -0.5)}
    (answer,) = measure("regression", [request], ["mae", "bias", "mape", "max_error"], activation="real")
    assert answer["mae"] == answer["bias"] == answer["max_error"] == 1e308
    request["target"][:] = -1.0
    (answer,) = measure("regression", [request], ["mape"], activation="real")
    assert answer["mape"] == pytest.approx(1e308)
    scores = {"prediction": np.full(50, -1e308), "target": np.ones(50)}
    assert measure("binary", [scores], ["log_loss"])[0]["log_loss"] == pytest.approx(1e308)


def test_quantiles_between_errors_whose_difference_is_beyond_float64():
    request = {"prediction": np.array([-1.5e308, 1.5e308]), "target": np.zeros(2)}
    (answer,) = measure("regression", [request], ["error_quantiles"], activation="real", quantiles=[0.25, 0.5])
    assert answer["error_quantiles"] == [pytest.approx(-0.75e308), 0]


def test_a_perfect_correlation_is_1():
    """Not one ulp more: a square root of sums of squares rounds."""
    rng = np.random.default_rng(0)
    for n in range(2, 60):
        target = rng.normal(size=n)
        for prediction, expected in ((target * 3, 1), (-target / 7, -1)):
            (answer,) = measure(
                "regression", [{"prediction": prediction, "target": target}], ["pearson"], activation="real"
            )
            assert -1 <= answer["pearson"] <= 1
            assert answer["pearson"] == pytest.approx(expected)


def test_predicted_logarithms_are_exponentiated_in_float64():
    """exp(2) and exp(-3) of float32 have seven digits, exp(89) is infinite."""
    prediction, target = torch.tensor([2.0, -3.0, 89.0]), torch.tensor([7.0, 1.0, 0.0])
    expected = [abs(math.exp(p) - t) for p, t in zip(prediction.tolist(), target.tolist(), strict=True)]
    request = {"loss": {"name": "poisson_nll"}, "outputs": ["metrics"], "metrics": {"names": ["mae", "max_error"]}}
    for kept in (slice(2), slice(3)):
        answer = evaluating.alone(request, {"prediction": prediction[kept], "target": target[kept]})
        assert answer.document["metrics"]["mae"] == pytest.approx(np.mean(expected[kept]), rel=1e-15)
        assert answer.document["metrics"]["max_error"] == pytest.approx(max(expected[kept]), rel=1e-15)
