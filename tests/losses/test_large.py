"""Sums over many entries: what float16 and serial float32 sums get wrong."""

from __future__ import annotations

import pytest
import torch

from evaluating import alone


def test_dice_of_four_thousand_squared_in_float16() -> None:
    """Its sums are beyond float16's range and beyond float32's 24 bits; the answer is right to 1e-3 of what is lost."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4096, 4096, generator=generator).half()
    target = (torch.rand(1, 4096, 4096, generator=generator) > 0.3).to(torch.uint8)
    p, t = torch.sigmoid(logits.double()), target.double()
    hits, below = (p * t).sum(), p.sum() + t.sum() + 1
    expected = 1 - (2 * hits + 1) / below
    request = {"loss": {"name": "dice", "mode": "binary"}, "outputs": ["loss", "gradient"]}
    answer = alone(request, {"prediction": logits, "target": target})
    assert answer.loss == pytest.approx(float(expected), rel=1e-5)
    p, t, gradient = (tensor[:, ::64] for tensor in (p, t, answer.gradient()))
    derivative = -(2 * t - (2 * hits + 1) / below) / below * p * (1 - p)
    torch.testing.assert_close(gradient.double(), derivative, rtol=1e-3, atol=1e-12)


def test_the_mean_of_many_ones_is_one() -> None:
    """A serial float32 sum stops at 16777216."""
    ones = torch.ones(2, 10_000_000)
    answer = alone(
        {"loss": {"name": "mae"}, "outputs": ["loss"]}, {"prediction": ones, "target": torch.zeros_like(ones)}
    )
    assert answer.loss == 1.0
    assert answer.numerator == 20_000_000
