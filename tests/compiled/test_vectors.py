"""Passes of embeddings answer as the general way does, and leave to it the rows at a bend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from compiled.test_passes import assert_bits_equal, assert_both_ways, assert_equal, uses_a_pass
from evaluating import Evaluated, generally, together

pytestmark = pytest.mark.usefixtures("compiled_passes")

Request = Mapping[str, Any]

LOSSES: list[dict[str, Any]] = [
    {"name": "contrastive"},
    {"name": "contrastive", "eps": 1e-2, "factor": 1.0, "reduction": "sum"},
    {"name": "cosine_embedding"},
    {"name": "cosine_embedding", "margin": -0.3, "reduction": "sum"},
    {"name": "triplet"},
    {"name": "triplet", "swap": True, "eps": 0.0, "margin": 2.0},
    {"name": "triplet", "swap": True, "squared": True, "reduction": "sum"},
]


def drawn(name: str, rows: int, dtype: torch.dtype = torch.float32, width: int = 7, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    names = ("anchor", "positive", "negative") if name == "triplet" else ("first", "second")
    vectors = {n: torch.randn(rows, width, generator=random, dtype=torch.float64) / 2 for n in names}
    if name != "triplet":
        lines = torch.arange(rows) % 4 == 0  # the cosine of some pairs is near 1 or -1
        vectors["second"][lines] = vectors["first"][lines] * (-1) ** seed + 0.1 * vectors["second"][lines]
    tensors = {n: vector.to(dtype) for n, vector in vectors.items()}
    if name != "triplet":
        tensors["similar"] = torch.randint(0, 2, (rows,), generator=random)
    if name == "cosine_embedding":
        tensors["similar"] = 2 * tensors["similar"] - 1
    return tensors


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-6), (torch.float64, 1e-13)], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_rows_answer_as_the_general_way(loss: dict[str, Any], dtype: torch.dtype, within: float) -> None:
    requests = [{"loss": {**loss, "margin": margin}, "outputs": ["loss", "gradient", "metrics"]} for margin in (0.4, 1)]
    inputs = [drawn(loss["name"], rows, dtype, seed=rows) for rows in (40, 3)]
    assert uses_a_pass(requests[0], inputs[0])
    found = assert_both_ways([*requests, requests[0]], [*inputs, drawn(loss["name"], 9, dtype)], within)
    (alone,) = together([requests[1]], [inputs[1]])
    assert_bits_equal(found[1], alone)


@pytest.mark.parametrize(
    "request_",
    [
        {"outputs": ["loss"]},
        {"outputs": ["metrics"], "metrics": {"threshold": 0.8, "names": ["default", "auroc", "mcc"]}},
        {"outputs": ["metrics"], "metrics": {"task": "cosine_pairs"}},
        {"outputs": ["gradient.second"]},
    ],
    ids=str,
)
def test_whatever_is_asked_of_pairs_is_answered(request_: Request) -> None:
    request = {"loss": {"name": "contrastive"}, **request_}
    inputs = [drawn("contrastive", rows, seed=rows) for rows in (12, 5)]
    assert_both_ways([request] * 2, inputs, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["contrastive", "cosine_embedding", "triplet"])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    request = {"loss": {"name": name}, "outputs": ["loss", "gradient", "metrics"], "gradient": {"dtype": "float32"}}
    inputs = [drawn(name, 12, dtype)]
    assert uses_a_pass(request, inputs[0])
    assert_both_ways([request], inputs, 2e-6)


DOUBTFUL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the same": ({"name": "contrastive"}, {"second": "first"}),
    "the same, shifted": ({"name": "contrastive", "eps": 0.1}, {"second": "first"}),
    "no indicator": ({"name": "contrastive"}, {"similar": 2}),
    "no sign": ({"name": "cosine_embedding"}, {"similar": 0}),
    "no direction": ({"name": "cosine_embedding"}, {"second": 0.0}),
    "not finite": ({"name": "cosine_embedding"}, {"first": torch.inf}),
    "no number": ({"name": "triplet"}, {"negative": torch.nan}),
    "on the positive": ({"name": "triplet"}, {"positive": "anchor"}),
    "as far": ({"name": "triplet"}, {"negative": "positive"}),
    "as far, swapped": ({"name": "triplet", "swap": True, "eps": 0.0},
                        {"positive": 0.0, "anchor": 1.0, "negative": 0.5}),
    "at the margin": ({"name": "triplet", "margin": 0.5, "eps": 0.0},
                      {"anchor": 0.0, "positive": 0.5, "negative": 1.0}),
    "at the margin of cosines": ({"name": "cosine_embedding", "margin": 1.0}, {"first": "second", "similar": -1}),
}  # fmt: skip
"""The loss, and what a row has in place of an input: a number, or another input."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("what", DOUBTFUL)
def test_a_doubtful_row_is_left_to_the_general_way(what: str, dtype: torch.dtype) -> None:
    loss, changes = DOUBTFUL[what]
    request = {"loss": loss, "outputs": ["loss", "gradient", "metrics"]}
    inputs = [drawn(loss["name"], 4, dtype, width=1, seed=seed) for seed in range(3)]
    for name, change in changes.items():
        inputs[1][name][2] = inputs[1][change][2] if isinstance(change, str) else change
    found = together([request] * 3, inputs)
    (expected,) = generally([request], [inputs[1]])
    assert_equal(found[1], expected, 0)
    for position in (0, 2):
        (alone,) = together([request], [inputs[position]])
        assert_bits_equal(found[position], alone)


@pytest.mark.parametrize("loss", [{"p": 1}, {"p": 3}, {"p": "inf"}], ids=str)
def test_other_norms_have_no_pass(loss: dict[str, Any]) -> None:
    assert not uses_a_pass({"loss": {"name": "triplet", **loss}}, drawn("triplet", 3))


def test_similar_of_any_dtype_is_read() -> None:
    request = {"loss": {"name": "contrastive"}, "outputs": ["loss", "metrics"]}
    tensors = drawn("contrastive", 9)
    (expected,) = together([request], [tensors])
    for dtype in (torch.bool, torch.uint8, torch.int16, torch.float64, torch.bfloat16):
        sent = {**tensors, "similar": tensors["similar"].to(dtype)}
        (found,) = together([request], [sent])
        assert isinstance(found, Evaluated)
        assert isinstance(expected, Evaluated)
        assert found.document == expected.document
