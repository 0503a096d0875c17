"""Passes of embeddings that are each other's neighbours answer as the general way does, and know their doubts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from compiled.test_passes import assert_bits_equal, assert_both_ways, assert_equal, uses_a_pass
from compiled.test_vectors import Request
from evaluating import Evaluated, generally, together
from lossd.compiled import neighbours
from lossd.compiled.passes import Passes
from lossd.losses import REGISTRY

pytestmark = pytest.mark.usefixtures("compiled_passes")

LOSSES: list[dict[str, Any]] = [
    {"name": "info_nce"},
    {"name": "nt_xent", "reduction": "sum"},
    {"name": "clip"},
    {"name": "clip", "reduction": "sum"},
    {"name": "supcon"},
    {"name": "supcon", "reduction": "sum"},
    {"name": "mined_triplet"},
    {"name": "mined_triplet", "squared": True, "active_only": True, "reduction": "sum"},
]
EACH = [loss["name"] for loss in LOSSES if "reduction" not in loss] + ["nt_xent"]


def drawn(name: str, rows: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randn(rows, 6, generator=random, dtype=torch.float64)
    if REGISTRY[name].task == "labelled_embeddings":  # the last label is that of one embedding alone
        return {"embedding": vectors.to(dtype), "label": torch.arange(rows).clamp(max=rows - 2) % 3 - 7}
    second = vectors + torch.randn(rows, 6, generator=random, dtype=torch.float64)
    return {"first": vectors.to(dtype), "second": second.to(dtype)}


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 3e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_neighbours_answer_as_the_general_way(
    loss: dict[str, Any], dtype: torch.dtype, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 2 * 20 * 20)  # two requests of two together
    number = "margin" if loss["name"] == "mined_triplet" else "temperature"
    requests = [{"loss": {**loss, number: n}, "outputs": ["loss", "gradient", "metrics"]} for n in (0.3, 0.2, 1.0)]
    inputs = [drawn(loss["name"], 20, dtype, seed) for seed in range(3)]
    assert uses_a_pass(requests[0], inputs[0])
    found = assert_both_ways(requests, inputs, within)
    (alone,) = together(requests[1:2], inputs[1:2])
    assert_bits_equal(found[1], alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["clip", "mined_triplet"])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    request = {"loss": {"name": name}, "outputs": ["loss", "gradient", "metrics"], "gradient": {"dtype": "float32"}}
    inputs = [drawn(name, 12, dtype)]
    assert uses_a_pass(request, inputs[0])
    assert_both_ways([request], inputs, 3e-6)


@pytest.mark.parametrize(
    "request_",
    [
        {"outputs": ["loss"]},
        {"outputs": ["gradient.second"]},
        {"outputs": ["metrics"], "metrics": {"names": ["first_to_second@k", "uniformity"], "k": 2}},
        {"outputs": ["metrics"], "metrics": {"names": ["second_to_first@1"]}},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["info_nce", "clip"])
def test_whatever_is_asked_of_views_is_answered(name: str, request_: Request) -> None:
    request = {"loss": {"name": name}, **request_}
    assert_both_ways([request] * 2, [drawn(name, 9, seed=seed) for seed in range(2)], 3e-6)


def test_of_ties_the_first_is_the_nearest() -> None:
    """Vectors of few directions, so that cosines are equal or differ by rounding alone."""
    request = {"outputs": ["metrics"]}
    vectors = torch.tensor([[3.0, 4.0], [0.6, 0.8], [4.0, 3.0], [0.1, -0.2], [8.0, 6.0], [0.3, -0.6]])
    for loss, inputs in (
        ("clip", {"first": vectors, "second": vectors.flip(0) * 0.7}),
        ("info_nce", {"first": vectors * 1.3, "second": vectors[[0, 1, 4, 3, 2, 5]]}),
        ("supcon", {"embedding": vectors, "label": torch.tensor([0, 1, 0, 1, 2, 0])}),
    ):
        arguments = [{**request, "loss": {"name": loss}}], [inputs]
        (found,), (expected,) = together(*arguments), generally(*arguments)
        assert isinstance(found, Evaluated)
        assert isinstance(expected, Evaluated)
        for metric, value in expected.document["metrics"].items():
            assert found.document["metrics"][metric] == (value if isinstance(value, str) else pytest.approx(value))


def doubtful(what: str, tensors: dict[str, Tensor]) -> None:
    """Make a request doubtful, in place."""
    vectors = next(iter(tensors.values()))
    match what:
        case "no direction":
            vectors[1] = 0
        case "not finite":
            vectors[0, 1] = torch.inf
        case "no number":
            vectors[0, 1] = torch.nan
        case "no positive":
            tensors["label"][:] = torch.arange(len(vectors))
        case "no negative":
            tensors["label"][:] = 3
        case "twice":
            vectors[5] = vectors[2]
        case "two as far":  # 0 and 3 are of one label, and the others on a line through 0
            vectors[:, 1:] = 0
            vectors[:, 0] = torch.tensor([0.0, 2, 5, 4, -2, 9, -4, 11, 12])
        case "at the margin":
            vectors[:, 1:] = 0
            vectors[:, 0] = torch.tensor([0.0, 1.5, 50, 1, 81, 150, 30, 201, 450])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("info_nce", "no direction"), ("clip", "not finite"), ("supcon", "no number"), ("supcon", "no positive"),
        ("supcon", "no negative"), ("supcon", "no direction"), ("mined_triplet", "no positive"),
        ("mined_triplet", "no negative"), ("mined_triplet", "twice"), ("mined_triplet", "two as far"),
        ("mined_triplet", "at the margin"), ("mined_triplet", "not finite"), ("mined_triplet", "no direction"),
    ],
)  # fmt: skip
def test_a_doubtful_request_is_left_to_the_general_way(name: str, what: str) -> None:
    number = {"margin": 0.5} if what == "at the margin" else {}
    request = {"loss": {"name": name, **number}, "outputs": ["loss", "gradient", "metrics"]}
    inputs = [drawn(name, 9, seed=seed) for seed in range(3)]
    doubtful(what, inputs[1])
    found = together([request] * 3, inputs)
    (expected,) = generally([request], [inputs[1]])
    assert_equal(found[1], expected, 0)
    for position in (0, 2):
        (alone,) = together([request], [inputs[position]])
        assert_bits_equal(found[position], alone)


@pytest.mark.parametrize(
    ("loss", "more"),
    [
        ({"name": "info_nce", "variant": "one_sided_duplicate"}, {}),
        ({"name": "mined_triplet", "mining": "all"}, {}),
        ({"name": "supcon"}, {"mask": torch.ones(9, dtype=torch.bool)}),
        ({"name": "clip"}, {"second": torch.ones(9, 6, dtype=torch.float64)}),
    ],
    ids=str,
)
def test_what_has_no_pass(loss: dict[str, Any], more: dict[str, Tensor]) -> None:
    assert not uses_a_pass({"loss": loss}, {**drawn(loss["name"], 9), **more})


@pytest.mark.parametrize("name", ["clip", "supcon"])
def test_threads_share_the_requests_of_a_batch(name: str, passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 1)
    requests, inputs = [{"loss": {"name": name}}] * 4, [drawn(name, 9, seed=seed) for seed in range(4)]
    expected = together(requests, inputs)
    with ThreadPoolExecutor(3) as pool:
        monkeypatch.setattr(passes, "threads", pool)
        for f, e in zip(together(requests, inputs), expected, strict=True):
            assert_bits_equal(f, e)
        monkeypatch.setattr(neighbours, "MANY", 9)
        (found,), (expected,) = together(requests[:1], inputs[:1]), generally(requests[:1], inputs[:1])
    assert_bits_equal(found, expected)


def test_one_pair_has_no_pass() -> None:
    assert not uses_a_pass({"loss": {"name": "clip"}}, drawn("clip", 1))
