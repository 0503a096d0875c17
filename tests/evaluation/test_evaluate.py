"""What an evaluation does about a failure that nobody foresaw."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evaluating import Evaluated, together
from lossd.losses import REGISTRY
from lossd_client.errors import InternalError


def test_an_unforeseen_failure_is_one_request_s_alone_and_told_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if (prediction == 13).any():
            raise RuntimeError("a secret of the house")
        return (prediction - target).abs()

    monkeypatch.setitem(REGISTRY, "mae", replace(REGISTRY["mae"], function=broken, closed_forms=[]))
    inputs = [{"prediction": torch.tensor([value, 1.0]), "target": torch.zeros(2)} for value in (2.0, 13.0, 4.0)]
    first, failed, last = together([{"loss": {"name": "mae"}, "outputs": ["loss", "gradient"]}] * 3, inputs)
    assert isinstance(failed, InternalError)
    assert "secret" not in failed.detail
    assert "mae" in failed.detail
    assert "a secret of the house" in caplog.text
    assert isinstance(first, Evaluated)
    assert isinstance(last, Evaluated)
    assert (first.loss, last.loss) == (1.5, 2.5)
    assert last.gradient().tolist() == [0.5, 0.5]
