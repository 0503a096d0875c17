"""Losses whose terms cancel keep their digits, and those that have limits keep to them."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from evaluating import alone


def evaluated(loss: dict[str, Any], dtype: torch.dtype = torch.float32, **inputs: Any) -> Any:
    tensors = {
        name: t.to(dtype) if (t := torch.as_tensor(np.asarray(value))).is_floating_point() else t
        for name, value in inputs.items()
    }
    return alone({"loss": loss, "outputs": ["loss", "gradient"]}, tensors)


@pytest.mark.parametrize("count", [1e3, 1e6, 1e7, 1e10])
def test_poisson_of_many_counts_with_its_constant(count: float) -> None:
    # rate = count = n: n - n log n + n log n - n + log(2 pi n) / 2.
    count = torch.tensor(count).item()
    answer = evaluated({"name": "poisson_nll", "log_input": False, "full": True}, prediction=[count], target=[count])
    assert answer.loss == pytest.approx(math.log(2 * math.pi * count) / 2, rel=1e-5)
    rate = torch.tensor(count * (1 + 2**-20)).item()
    off = evaluated({"name": "poisson_nll", "log_input": False}, prediction=[rate], target=[count])
    assert off.gradient().item() == pytest.approx((rate - count) / rate, rel=1e-4)


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6])
def test_the_divergence_of_close_distributions(apart: float) -> None:
    with mpmath.workdps(50):
        target = [torch.tensor(0.5 + apart).item(), torch.tensor(0.5 - apart).item()]
        log_p = torch.tensor([math.log(0.5), math.log(0.5)])
        expected = sum(t * (mpmath.log(t) - p) for t, p in zip(target, log_p.tolist(), strict=True))
    answer = evaluated({"name": "kl_div"}, prediction=log_p[None], target=[target])
    assert answer.loss == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("s", [1e-12, -1e-9, 1e-5, -0.049, 0.051, -3.0, 20.0])
def test_the_divergence_of_a_latent_close_to_the_standard_normal(s: float) -> None:
    with mpmath.workdps(60):
        expected = (mpmath.exp(s) - 1 - mpmath.mpf(s)) / 2
        slope = mpmath.expm1(s) / 2
    answer = evaluated(
        {"name": "vae", "reconstruction": "mse"}, torch.float64,
        prediction=[[0.0]], target=[[0.0]], mean=[[0.0]], log_variance=torch.tensor([[s]], dtype=torch.float64),
    )  # fmt: skip
    assert answer.loss == pytest.approx(float(expected), rel=1e-13)
    of_variance = alone(
        {"loss": {"name": "vae", "reconstruction": "mse"}, "outputs": ["gradient.log_variance"]},
        {name: torch.tensor([[value]], dtype=torch.float64)
         for name, value in {"prediction": 0.0, "target": 0.0, "mean": 0.0, "log_variance": s}.items()},
    )  # fmt: skip
    assert of_variance.gradient("log_variance").item() == pytest.approx(float(slope), rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [2, 3, 7, 100])
def test_a_vector_is_at_no_angle_to_itself(width: int, dtype: torch.dtype) -> None:
    vectors = torch.randn(200, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    ones = torch.ones(200, dtype=torch.int64)

    def losses(second: torch.Tensor, sign: int) -> Any:
        loss = {"name": "cosine_embedding", "reduction": "none"}
        return evaluated(loss, dtype, first=vectors, second=second, similar=sign * ones).loss

    assert losses(vectors, 1).tolist() == [0.0] * 200
    assert losses(-vectors, 1).tolist() == [2.0] * 200
    assert losses(vectors, -1).tolist() == [1.0] * 200
    assert losses(-vectors, -1).tolist() == [0.0] * 200
    near = losses(vectors + 1e-3 * torch.randn(200, width, dtype=torch.float64), 1)
    assert ((near >= 0) & (near <= 2)).all()


def test_a_small_angle_keeps_its_digits() -> None:
    # cos = 1 / sqrt(1 + x²), of which float32 keeps nothing.
    x = 2**-20
    answer = evaluated({"name": "cosine_embedding"}, first=[[1.0, 0.0]], second=[[1.0, x]], similar=[1])
    assert answer.loss == pytest.approx(x**2 / 2, rel=1e-6)


def test_orthogonal_vectors_are_no_similar_ones() -> None:
    answer = evaluated({"name": "cosine_embedding"}, first=[[1.0, 1.0]], second=[[1.0, -1.0]], similar=[-1])
    assert answer.loss == 0


def test_a_small_error_within_a_small_bend() -> None:
    answer = evaluated({"name": "smooth_l1", "beta": 1e-199}, torch.float64,
                       prediction=torch.tensor([1e-200], dtype=torch.float64), target=[0.0])  # fmt: skip
    assert answer.loss == pytest.approx(5e-202, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_sum_of_weights_beyond_all_numbers_is_spelled(dtype: torch.dtype) -> None:
    weights = torch.full((3,), 1e308, dtype=torch.float64)
    answer = alone(
        {"loss": {"name": "mse"}, "outputs": ["loss", "gradient"]},
        {"prediction": torch.tensor([1.0, 2.0, 3.0], dtype=dtype), "target": torch.zeros(3, dtype=dtype),
         "sample_weight": weights},
    )  # fmt: skip
    assert answer.denominator == "Infinity"
    assert answer.numerator == "Infinity"
    assert answer.loss == pytest.approx(14 / 3, rel=1e-12)
    torch.testing.assert_close(answer.gradient(), torch.tensor([2 / 3, 4 / 3, 2.0], dtype=dtype))
    assert answer.warnings == set()


def test_weights_of_classes_beyond_all_numbers_are_weights() -> None:
    answer = evaluated(
        {"name": "cross_entropy", "class_weight": [1e308, 1e308]}, prediction=[[0.0, 0.0]] * 3, target=[0, 1, 1]
    )
    assert answer.denominator == "Infinity"
    assert answer.loss == pytest.approx(math.log(2), rel=1e-6)
    torch.testing.assert_close(answer.gradient(), torch.tensor([[-1.0, 1.0], [1.0, -1.0], [1.0, -1.0]]) / 6)


def test_a_mean_is_finite_where_its_sum_is_not() -> None:
    largest = torch.tensor([1.7e308, -1.7e308], dtype=torch.float64)
    answer = evaluated({"name": "mae"}, torch.float64, prediction=largest, target=[0.0, 0.0])
    assert answer.loss == pytest.approx(1.7e308)
    assert answer.numerator == "Infinity"
    assert answer.gradient().tolist() == [0.5, -0.5]


@pytest.mark.parametrize("size", [1e-250, 1e-200, 1e200, 1e300])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_the_norm_of_a_gradient_does_not_leave_the_range(size: float, scope: str) -> None:
    # Gradients 3 s / 2 and -4 s / 2 of the linear part of huber.
    loss = {"name": "huber", "delta": size}
    inputs = {
        "prediction": torch.tensor([9.0, -9.0], dtype=torch.float64) * min(size, 1e300) * 10,
        "target": torch.zeros(2, dtype=torch.float64),
        "sample_weight": torch.tensor([3.0, 4.0]),
    }
    answer = alone({"loss": loss, "outputs": ["loss", "gradient"]}, inputs)
    assert answer.document["diagnostics"]["gradient_norm"]["prediction"] == pytest.approx(5 * size / 7, rel=1e-12)
    options = {"clip_norm": size / 7, "clip_scope": scope}
    clipped = alone({"loss": loss, "outputs": ["gradient"], "gradient": options}, inputs)
    expected = torch.tensor([0.6, -0.8], dtype=torch.float64) * size / 7
    torch.testing.assert_close(clipped.gradient(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("limit", [1e-18, 1e-17, 1e-14, 1.0])
def test_a_large_gradient_is_clipped_to_a_small_norm(limit: float) -> None:
    # The factor, limit / 1e28, is below what float32 holds.
    inputs = {"prediction": torch.ones(1), "target": torch.zeros(1), "sample_weight": torch.tensor([1e28])}
    request = {"loss": {"name": "mae", "reduction": "sum"}, "outputs": ["gradient"], "gradient": {"clip_norm": limit}}
    torch.testing.assert_close(alone(request, inputs).gradient(), torch.tensor([limit]), rtol=1e-6, atol=0)


def test_what_is_too_large_for_the_answer_is_said() -> None:
    request = {"loss": {"name": "mse", "reduction": "sum"}, "gradient": {"dtype": "float16"}}
    answer = alone(request, {"prediction": torch.tensor([4e4, 1.0]), "target": torch.zeros(2)})
    assert answer.gradient().tolist() == [math.inf, 2.0]
    assert answer.document["diagnostics"]["non_finite_gradient_entries"] == {"prediction": 1}
    assert "non_finite" in answer.warnings
