"""Real-valued predictions: numbers that are exact, large or not numbers."""

from __future__ import annotations

import numpy as np
import pytest

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
