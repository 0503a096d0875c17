"""Where gradients jump: the kinks of losses, and of nothing that is smooth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lossd.cli.plot import curve_document
from lossd.pictures.jumps import Jump, jumps, stepped
from rows import in_one_item


def document(name: str, **options: Any) -> dict[str, Any]:
    parameters = options.pop("parameters", {})
    return curve_document(name, parameters, **options)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("mae", {}, [(0, -1, 1)]),
        ("mae", {"points": 44}, [(0, -1, 1)]),  # the kink is between two points
        ("quantile", {"parameters": {"q": [0.9]}}, [(0, -0.9, 0.1)]),
        ("hinge", {"points": 60}, [(1, -1, 0)]),
        ("triplet", {}, [(2, -1, 0)]),
        ("interval_score", {"x": "error"}, [(-1, -20, 0), (1, 0, 20)]),
        ("gradnorm", {"x": "weight"}, [(0.48625, -1, 1)]),
        ("giou", {}, [(0, 0, 1.961)]),  # equal boxes: the gradient is 0 there alone
    ],
)
def test_a_kink_is_a_jump_at_its_place(name: str, options: dict[str, Any], expected: list[Jump]) -> None:
    (line,) = document(name, **options)["series"]
    found = [tuple(jump.values()) for jump in line["jumps"]]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=0.01)


SMOOTH = ("mse", "huber", "log_cosh", "bce", "bce_with_logits", "cross_entropy", "focal", "dice", "nt_xent", "orpo")


@in_one_item("name", [*SMOOTH, "nll", "gaussian_nll", "vae"])
@in_one_item("points", [41, None])
def test_a_continuous_gradient_has_no_jump(name: str, points: int | None) -> None:
    (line,) = document(name, points=points)["series"]
    assert line["jumps"] == []


def test_noise_infinities_and_few_points_are_no_jumps() -> None:
    x = np.linspace(0, 1, 30)
    noise = np.random.default_rng(0).normal(size=30) * 1e-9
    assert jumps(x, x, 1 + noise) == []
    assert jumps(x, x, np.where(x > 0.5, np.nan, 1.0)) == []
    assert jumps(x, x, np.where(x > 0.5, np.inf, 1.0)) == []
    assert jumps(x[:2], x[:2], [0.0, 1.0]) == []


def test_a_step_is_drawn_vertically() -> None:
    x, gradient = [-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]
    at, drawn_gradient = stepped(x, gradient, [Jump(0.0, -1.0, 1.0)])
    assert at.tolist() == [-1.0, 0.0, 0.0, 1.0]
    assert drawn_gradient.tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert stepped(x, gradient, [])[1].tolist() == gradient
