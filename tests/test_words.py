"""What errors say, read as by the one who made the mistake: the culprit, what was found, and a remedy that works."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evaluating import alone
from lossd_client.errors import Problem
from lossd_client.wire.quoting import digits


def refusal(request: dict[str, Any], **inputs: Any) -> str:
    """What a request is refused with."""
    tensors = {name: t if isinstance(t, torch.Tensor) else torch.tensor(t) for name, t in inputs.items()}
    with pytest.raises(Problem) as refused:
        alone(request, tensors)
    return refused.value.detail


# Numbers


@pytest.mark.parametrize(
    ("dtype", "spelled"),
    [
        (torch.float64, "1.0000000000000002"),
        (torch.float32, "1.0000001"),
        (torch.float16, "1.001"),
        (torch.bfloat16, "1.01"),
    ],
)
def test_a_number_has_as_many_digits_as_show_the_fault(dtype: torch.dtype, spelled: str) -> None:
    above = torch.tensor([1 + torch.finfo(dtype).eps], dtype=dtype)
    detail = refusal({"loss": {"name": "bce"}}, prediction=above, target=[1.0])
    assert detail.startswith(f"probabilities expected in [0, 1], found {spelled} at prediction[0]")
    assert torch.tensor(float(spelled), dtype=dtype) == above


def test_an_inverted_box_shows_which_number_is_larger() -> None:
    box = torch.tensor([[0.50000006, 0.0, 0.5, 1.0]])
    detail = refusal({"loss": {"name": "giou"}}, prediction=box, target=[[0.0, 0.0, 1.0, 1.0]])
    assert "x2 = 0.5 is less than x1 = 0.50000006" in detail


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"), (100.0, "100"), (-2.0, "-2"), (1234567.0, "1234567"), (1e22, "1e+22"), (1e-7, "1e-07"),
        (0.1 + 0.2, "0.30000000000000004"), (float("nan"), "NaN"), (float("-inf"), "-Infinity"), (0.0, "0"),
    ],
)  # fmt: skip
def test_digits_lead_back_to_the_number(value: float, text: str) -> None:
    assert digits(value) == text
    assert float(text) == pytest.approx(value, rel=0, abs=0, nan_ok=True)


def test_a_threshold_just_out_of_range_shows_it() -> None:
    request = {"task": "binary", "outputs": ["metrics"], "metrics": {"threshold": 1.0000000000000002}}
    assert "found 1.0000000000000002" in refusal(request, prediction=[0.5], target=[1.0])


@pytest.mark.parametrize(("entry", "word"), [(float("nan"), "NaN"), (float("inf"), "Infinity")])
def test_what_is_not_finite_is_spelled_as_it_is_sent(entry: float, word: str) -> None:
    assert f"found {word} at target[1]" in refusal({"loss": {"name": "mse"}}, prediction=[0.0] * 2, target=[0.0, entry])
