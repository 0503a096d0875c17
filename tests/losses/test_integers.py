"""Integers are welcome where floats are declared, and count what the same floats count, however they were sent."""

from __future__ import annotations

import json as stdlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lossd
from evaluating import alone
from lossd.losses import REGISTRY
from lossd.request.planning import make_plan
from lossd_client.wire import json
from losses.case import Case
from losses.cases import CASES
from rows import each_row

NARROW = (torch.bool, torch.uint8, torch.int8, torch.int16)
WIDE = (torch.int32, torch.int64)


def whole(tensor: Tensor) -> Tensor:
    """0 and 1, which every domain of floats holds; in a box, no side is negative."""
    return (tensor > tensor.mean()).to(tensor.dtype).sort(-1).values if tensor.ndim else tensor.round()


def declared_floats() -> list[Any]:
    found = []
    for case in CASES:
        if REGISTRY[case.name].unavailable():
            continue
        inputs = case.inputs(case.parameters[0])
        plan = make_plan({"loss": {"name": case.name, **case.parameters[0]}}).counted(
            {name: ("float64", tuple(t.shape)) for name, t in inputs.items()}
        )
        found += [
            pytest.param(case, entry.name, id=f"{case}-{entry.name}")
            for entry in plan.inputs
            if entry.name in inputs
            and all(type_.kinds == ("float",) and type_.domain != "negative" for type_ in plan.types(entry))
        ]
    return found


FLOATS = declared_floats()


@each_row(pytest.param(*row.values, turn, id=row.id) for turn, row in enumerate(FLOATS))
def test_integers_of_every_width_give_what_the_same_floats_give(case: Case, name: str, turn: int) -> None:
    """Each input is tried in one narrow and one wide dtype in turn: before any loss is computed, they are floats."""
    inputs = case.inputs(case.parameters[0], dtype=torch.float32)
    numbers = whole(inputs[name])
    request = {"loss": {"name": case.name, **case.parameters[0]}}
    for dtype, wide in ((NARROW[turn % len(NARROW)], False), (WIDE[turn % len(WIDE)], True)):
        query = {**request, "gradient": {"dtype": "float64"}}
        answer = alone(query, {**inputs, name: numbers.to(dtype)})
        right = alone(query, {**inputs, name: numbers.double() if wide else numbers})
        # Where 0 and 1 are all there may be, float32 is as good: the whole request is not widened.
        close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5} if wide else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(torch.tensor(answer.loss), torch.tensor(right.loss), equal_nan=True, **close)
        assert answer.gradients.keys() == right.gradients.keys()
        for key, gradient in right.gradients.items():
            torch.testing.assert_close(answer.gradient(key), gradient, equal_nan=True, **close)


@pytest.mark.parametrize("dtype", NARROW + WIDE)
def test_the_gradient_of_integers_is_float32(dtype: torch.dtype) -> None:
    inputs = {"prediction": torch.tensor([0, 1]).to(dtype), "target": torch.tensor([1.0, 1.0])}
    gradient = alone({"loss": {"name": "mse"}}, inputs).gradient()
    assert gradient.dtype == torch.float32
    assert gradient.tolist() == [-1.0, 0.0]


LARGE = [2**24 + 1, 1_700_000_001]
"""Integers that float32 does not hold: it would have 16777216 and 1700000000."""


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", ["mse", "mae", "huber", "poisson_nll"])
def test_large_integers_keep_their_digits(name: str, dtype: torch.dtype) -> None:
    prediction, target = torch.tensor(LARGE), torch.tensor(LARGE) - 1
    parameters = {"log_input": False} if name == "poisson_nll" else {}
    answer = alone(
        {"loss": {"name": name, **parameters}}, {"prediction": prediction.to(dtype), "target": target.to(dtype)}
    )
    rate, count = np.array(LARGE, np.float64), np.array(LARGE, np.float64) - 1
    right = {"mse": 1.0, "mae": 1.0, "huber": 0.5, "poisson_nll": np.mean(rate - count * np.log(rate + 1e-8))}
    assert answer.loss == pytest.approx(right[name], rel=1e-12)


def test_in_a_list_of_numbers_an_integer_keeps_its_digits_too() -> None:
    def read(value: Any) -> Tensor:
        return json.tensor_from_json("a", stdlib.loads(stdlib.dumps(value)), floats=True, integers=False)[0]

    for value in ([2**24 + 1], [[0.5, 2**24 + 1]], [2**24 + 1, "NaN"], 2**53 - 1, -(2**24) - 1):
        tensor = read(value)
        assert tensor.dtype == "float64"
        assert (
            json.tensor_text(tensor, "list")
            == stdlib.dumps(stdlib.loads(stdlib.dumps(value), parse_int=float), separators=(",", ":")).encode()
        )
    for value in ([2**24], [2**40, 1], [0.1, 3], [16777217.5], [True], ["NaN", 3], []):
        assert read(value).dtype == "float32"


def test_a_target_of_integers_is_one_target_in_every_form() -> None:
    prediction = np.array([2.5, 0.0, 2.0], np.float32)
    for target in ([3, 0, 2], np.array([3, 0, 2]), np.array([3, 0, 2], np.uint8), np.array([3.0, 0, 2], np.float32)):
        result = lossd.evaluate("mse", prediction, target)
        assert result.loss == pytest.approx(0.25 / 3)
        assert result.gradient.dtype == np.float32
