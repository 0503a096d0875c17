"""Boxes have no unit: the losses, their gradients and the metrics are those of the same boxes at any other scale."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet

from evaluating import Evaluated, alone
from rows import each_row

LOSSES = ("iou", "giou", "diou", "ciou")
FORMATS = ("xyxy", "xywh", "cxcywh")
METRICS = {"names": ["mean_iou", "giou", "per_threshold"]}
# Squares that overlap by half their width: the third of their union, which is all they enclose but for nothing; their
# centres are half a width apart in a box of 1.5 by 1.
HALF = {"iou": 2 / 3, "giou": 2 / 3, "diou": 2 / 3 + 1 / 13, "ciou": 2 / 3 + 1 / 13}


def boxes(form: str, x: float, y: float, size: float, dtype: torch.dtype) -> torch.Tensor:
    """A square by its lower corner."""
    first = (x + size / 2, y + size / 2) if form == "cxcywh" else (x, y)
    second = (x + size, y + size) if form == "xyxy" else (size, size)
    return torch.tensor([[*first, *second]], dtype=torch.float64).to(dtype)


def evaluated(loss: str, form: str, prediction: torch.Tensor, target: torch.Tensor) -> Evaluated:
    request = {"loss": {"name": loss, "format": form}, "outputs": ["loss", "gradient", "metrics"], "metrics": METRICS}
    return alone(request, {"prediction": prediction, "target": target})


PLACES = ((0.5, 1e-3), (0.0, 1.0), (3.0, 100.0), (0.0, 1e-30), (1e-30, 1e-30), (0.0, 1e30), (-1e30, 1e30), (0.5, 1e-9))


def crossed(*values: Sequence[Any]) -> list[ParameterSet]:
    """Rows of every loss with every combination of the values."""
    return [pytest.param(*row, id="-".join(map(str, row))) for row in product(LOSSES, *values)]


@each_row(crossed(FORMATS, PLACES, (torch.float16, torch.float32, torch.float64)))
def test_a_box_is_itself(loss: str, form: str, place: tuple[float, float], dtype: torch.dtype) -> None:
    x, size = place
    if dtype == torch.float16 and not 1e-3 <= size <= 100:  # beyond half precision
        return
    box = boxes(form, x, x, size, dtype)
    answer = evaluated(loss, form, box, box)
    assert answer.loss == 0
    assert torch.equal(answer.gradient(), torch.zeros_like(answer.gradient()))
    assert answer.document["metrics"]["mean_iou"] == 1
    assert answer.document["metrics"]["giou"] == 1
    assert answer.document["metrics"]["per_threshold"]["mean"] == 1


@each_row(crossed(FORMATS, [1e-200, 1e-30, 1e-3, 1.0, 1e6, 1e30, 1e200]))
def test_the_scale_does_not_matter(loss: str, form: str, scale: float) -> None:
    def at(scale: float) -> Evaluated:
        prediction, target = (boxes(form, x * scale, 0.0, scale, torch.float64) for x in (0.5, 0.0))
        return evaluated(loss, form, prediction, target)

    here, there = at(1.0), at(scale)
    assert here.loss == pytest.approx(HALF[loss], rel=1e-14)
    assert there.loss == pytest.approx(HALF[loss], rel=1e-14)
    torch.testing.assert_close(there.gradient() * scale, here.gradient(), rtol=1e-12, atol=1e-14)
    assert there.document["metrics"]["mean_iou"] == pytest.approx(1 - HALF["iou"], rel=1e-14)
    assert there.document["metrics"]["giou"] == pytest.approx(1 - HALF["giou"], rel=1e-14)


@pytest.mark.parametrize("form", ["xywh", "cxcywh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_size_far_below_the_place_keeps_its_digits(form: str, dtype: torch.dtype) -> None:
    # Of one place, the smaller square lies within the larger: a quarter of its area.
    large, small = 1e-20, 5e-21
    place = 0.75
    prediction = torch.tensor([[place, place, small, small]], dtype=dtype)
    target = torch.tensor([[place, place, large, large]], dtype=dtype)
    answer = evaluated("iou", form, prediction, target)
    assert answer.loss == pytest.approx(0.75, rel=1e-6)
    assert answer.document["metrics"]["mean_iou"] == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_epsilon_is_in_squared_units_of_the_coordinates(loss: str) -> None:
    request = {"loss": {"name": loss, "eps": 1e-6}}
    box = boxes("xyxy", 0.0, 0.0, 1e-3, torch.float64)
    # 1 - a / (a + eps) where the area is eps; a square that encloses itself leaves nothing out.
    assert alone(request, {"prediction": box, "target": box}).loss == pytest.approx(0.5, rel=1e-12)
