"""Likelihoods whose gamma functions cancel, against the same formulas with fifty digits."""

from __future__ import annotations

import mpmath
import pytest
import torch

from evaluating import alone
from rows import in_one_item

DIGITS = 50


def derivatives(function, at: float) -> list[float]:
    """The function, its slope and its curvature."""
    with mpmath.workdps(DIGITS):
        return [float(mpmath.diff(function, mpmath.mpf(at), n)) for n in range(3)]


def found(name: str, by: str, **inputs: float) -> list[float]:
    tensors = {key: torch.tensor([value], dtype=torch.float64) for key, value in inputs.items()}
    answer = alone({"loss": {"name": name}, "outputs": ["loss", f"gradient.{by}"]}, tensors)
    curved = alone({"loss": {"name": name}, "outputs": [f"hessian.{by}"]}, tensors)
    return [float(answer.loss), answer.gradient(by).item(), curved.tensors[f"hessian.{by}"].item()]


pytestmark = [
    pytest.mark.parametrize("either_way", ["compiled", "general"], indirect=True),
    pytest.mark.usefixtures("either_way"),
]


@in_one_item("alpha", [1e-12, 1e-8, 1e-4, 0.0099, 0.0101, 0.5, 30.0, 1e6])
@in_one_item("mean, count", [(2.0, 0.0), (2.0, 3.0), (700.0, 1000.0)])
def test_a_negative_binomial_keeps_its_digits(alpha: float, mean: float, count: float) -> None:
    def nll(a: mpmath.mpf) -> mpmath.mpf:
        r = 1 / a
        return (
            mpmath.loggamma(r)
            - mpmath.loggamma(count + r)
            + mpmath.loggamma(count + 1)
            + r * mpmath.log1p(a * mean)
            - count * mpmath.log(a * mean / (1 + a * mean))
        )

    expected = derivatives(nll, alpha)
    results = found("negative_binomial_nll", "dispersion", prediction=mean, target=count, dispersion=alpha)
    assert results[0] == pytest.approx(expected[0], rel=1e-12)
    assert results[1] == pytest.approx(expected[1], rel=1e-9)
    assert results[2] == pytest.approx(expected[2], rel=1e-6)


@in_one_item("df", [0.3, 4.0, 199.0, 201.0, 1e4, 1e8])
@in_one_item("error", [0.0, 1.5, 1e3])
def test_student_t_keeps_its_digits(df: float, error: float) -> None:
    def nll(v: mpmath.mpf) -> mpmath.mpf:
        z = mpmath.mpf(error) / 2
        return (
            mpmath.loggamma(v / 2)
            - mpmath.loggamma((v + 1) / 2)
            + mpmath.log(v * mpmath.pi) / 2
            + mpmath.log(2)
            + (v + 1) / 2 * mpmath.log1p(z * z / v)
        )

    expected = derivatives(nll, df)
    results = found("student_t_nll", "df", prediction=error, target=0.0, scale=2.0, df=df)
    assert results[0] == pytest.approx(expected[0], rel=1e-12)
    assert results[1] == pytest.approx(expected[1], rel=1e-7)
