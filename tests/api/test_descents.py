"""Gradient descent of a linear model in one request."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import lossd

RNG = np.random.default_rng(2)
FEATURES = np.round(RNG.normal(size=(12, 2)), 3)
NUMBERS = np.round(FEATURES @ [1.5, -0.5] + 0.1 * RNG.normal(size=12), 3)
CLASSES = (FEATURES @ [1.0, 1.0] > 0).astype(int)


def query(target: Any, **options: Any) -> dict[str, Any]:
    defaults = {
        "features": FEATURES.tolist(),
        "target": np.asarray(target).tolist(),
        "start": [-1, 0.5],
        "rate": 0.2,
        "steps": 9,
    }
    return {key: json.dumps(value) for key, value in (defaults | options).items()}


@pytest.mark.parametrize(
    ("name", "target", "parameters"),
    [
        ("huber", NUMBERS, {"delta": 0.5}),
        ("mae", NUMBERS, {}),
        ("bce_with_logits", CLASSES, {}),
        ("hinge", 2 * CLASSES - 1, {"squared": True}),
        ("focal", CLASSES, {"gamma": 1.5}),
    ],
)
def test_each_step_is_the_gradient_s(http, name: str, target: np.ndarray, parameters: dict[str, Any]) -> None:
    found = http.get(f"/v1/losses/{name}/descent.json", params=query(target, **parameters)).json()
    assert (len(found["at"]), len(found["loss"]), found["diverged"]) == (10, 10, False)
    at = np.array([-1, 0.5])
    for place, loss in zip(found["at"], found["loss"], strict=True):
        np.testing.assert_allclose(place, at, rtol=1e-4, atol=1e-5)
        scores = (FEATURES @ at).astype(np.float32)
        pair = np.stack([np.zeros_like(scores), scores], 1)
        classes = name == "focal"
        inputs = (pair, target) if classes else (scores, target.astype(np.float32))
        result = lossd.evaluate(name, *inputs, outputs=["loss", "gradient"], **parameters)
        assert loss == pytest.approx(float(result.loss), rel=1e-4)
        slope = result.gradient[:, 1] if classes else result.gradient
        at = at - 0.2 * FEATURES.T @ slope.astype(float)
    assert found["loss"][-1] < found["loss"][0]


def test_a_descent_that_diverges_ends_and_says_so(http) -> None:
    found = http.get("/v1/losses/mse/descent.json", params=query(NUMBERS, rate=50, steps=200)).json()
    assert found["diverged"]
    assert len(found["at"]) == len(found["loss"]) < 20


@pytest.mark.parametrize(
    ("name", "options", "status", "detail"),
    [
        ("nothing", {}, 404, "no loss named"),
        ("mse", {"features": [[1, 2], [3]]}, 400, "features must be a list of lists"),
        ("mse", {"features": [[1e7, 0]] * 12}, 400, "between -1e+06 and 1e+06"),
        ("mse", {"features": [[1, 2]] * 501}, 400, "up to 500 rows"),
        ("mse", {"features": "abc"}, 400, "features must be a list of lists"),
        ("mse", {"start": [1]}, 400, "found 12 and 1"),
        ("mse", {"target": [[1, 2]] * 12}, 400, "target must be a list"),
        ("mse", {"rate": 0}, 400, "rate must be above 0"),
        ("mse", {"steps": 201}, 400, "0 to 200 steps"),
        ("mse", {"delta": 1}, 400, "delta"),
        ("dice", {}, 400, "cannot train a linear model"),
        ("triplet", {}, 400, "cannot train a linear model"),
        ("gaussian_nll", {}, 400, "cannot train a linear model"),
        ("bce", {}, 400, "probabilities expected"),
    ],
)
def test_what_is_refused_says_why(http, name: str, options: dict[str, Any], status: int, detail: str) -> None:
    answer = http.get(f"/v1/losses/{name}/descent.json", params=query(**({"target": NUMBERS} | options)))
    assert answer.status_code // 100 == status // 100
    assert detail in answer.json()["detail"]


def test_a_query_of_any_length_is_refused(http) -> None:
    answer = http.get("/v1/losses/mse/descent.json", params=query(NUMBERS, features=[[0.123456, 0.1]] * 2000))
    assert answer.status_code in (413, 414, 431)
