"""Compiled passes answer as the general way does, and leave to it what they cannot answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import evaluating
from evaluating import Evaluated, Tensors, generally, layout, together
from lossd.compiled import averages
from lossd.compiled.passes import Passes
from lossd.evaluation import evaluate as evaluation
from lossd.evaluation import inputs as device_inputs
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.columns import Columns
from lossd.job import Recipe
from lossd.losses import REGISTRY
from lossd.metrics import METRICS
from lossd.request.planning import make_plan
from lossd_client.errors import Problem
from metrics.measuring import NEEDED

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}

Request = Mapping[str, Any]


pytestmark = pytest.mark.usefixtures("compiled_passes")


@pytest.fixture
def threads(request: pytest.FixtureRequest, passes: Passes, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """How many threads share a large request; a parameter of the test."""
    with ThreadPoolExecutor(request.param) as pool:
        monkeypatch.setattr(passes, "threads", pool if request.param > 1 else None)
        yield request.param


def assert_both_ways(requests: Sequence[Request], inputs: Sequence[Tensors], within: float) -> list[Any]:
    """Check that requests are answered as the general way answers them, and return the answers."""
    found = together(requests, inputs)
    for f, e in zip(found, generally(requests, inputs), strict=True):
        assert_equal(f, e, within)
    return found


@contextmanager
def noted(*case: object) -> Iterator[None]:
    """Name the case of a test of several cases in which it fails."""
    try:
        yield
    except BaseException as failure:  # pytest.fail raises no Exception
        failure.add_note(f"of {case}")
        raise


def uses_a_pass(request: Request, tensors: Tensors) -> bool:
    recipe = make_plan({"outputs": ["loss", "gradient"], **request}).job(layout(tensors)).recipe
    assert evaluating.passes is not None
    return evaluating.passes.find(recipe) is not None


def scores(rows: int, classes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    prediction = 4 * torch.randn(rows, classes, generator=random, dtype=torch.float64)
    return {"prediction": prediction.to(dtype), "target": torch.randint(0, classes, (rows,), generator=random)}


def assert_equal(found: Evaluated | Problem, expected: Evaluated | Problem, tolerance: float) -> None:
    if isinstance(expected, Problem):
        assert isinstance(found, Problem)
        assert found.to_json() == expected.to_json()
        return
    assert isinstance(found, Evaluated)
    assert_like(found.document, expected.document, tolerance)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        scale = float(tensor[tensor.isfinite()].abs().max()) if tensor.isfinite().any() else 1.0
        torch.testing.assert_close(
            found.tensors[name], tensor, rtol=10 * tolerance, atol=tolerance * scale, equal_nan=True
        )


def assert_like(found: Any, expected: Any, tolerance: float, path: str = "") -> None:
    """The same JSON but for the rounding of numbers, field order included."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), path
        for name in expected:
            assert_like(found[name], expected[name], tolerance, f"{path}/{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for position, (f, e) in enumerate(zip(found, expected, strict=True)):
            assert_like(f, e, tolerance, f"{path}/{position}")
    elif isinstance(expected, float) and not isinstance(found, str):
        assert found == pytest.approx(expected, rel=10 * tolerance, abs=tolerance), path
    else:
        assert found == expected, path


CLASS_SCORES: list[dict[str, Any]] = [
    {"name": "cross_entropy"},
    {"name": "cross_entropy", "label_smoothing": 0.1},
    {"name": "cross_entropy", "label_smoothing": 0.3, "smoothing_mode": "others", "class_weight": [1, 0.5, 2, 0, 1]},
    {"name": "cross_entropy", "class_weight": [1, 0.5, 2, 0, 1], "ignore_index": 1},
    {"name": "cross_entropy", "reduction": "sum"},
    {"name": "focal", "gamma": 2.0},
    {"name": "focal", "gamma": 0.0},
    {"name": "focal", "gamma": 0.5, "alpha": 0.25, "alpha_mode": "foreground"},
    {"name": "focal", "gamma": 1.7, "alpha": [0.1, 0.2, 0.3, 0.4, 0.5], "class_weight": [1, 0.5, 2, 0, 1]},
    {"name": "focal", "gamma": 3.0, "alpha": 0.5, "ignore_index": 0, "reduction": "sum"},
    {"name": "nll"},
    {"name": "nll", "class_weight": [1, 0.5, 2, 0, 1], "ignore_index": 1},
    {"name": "nll", "class_weight": [1, 0.5, 2, 0.1, 1], "ignore_index": 3, "reduction": "sum"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loss", CLASS_SCORES, ids=str)
def test_class_scores_answer_as_the_general_way(loss: dict[str, Any], dtype: torch.dtype) -> None:
    request = {"loss": loss, "outputs": ["loss", "gradient", "metrics"]}
    inputs = [scores(rows, 5, dtype, seed=rows) for rows in (7, 1, 64, 131)]
    assert uses_a_pass(request, inputs[0])
    assert_both_ways([request] * 4, inputs, TOLERANCE[dtype])


@pytest.mark.parametrize(
    "request_",
    [
        {"outputs": ["loss"]},
        {"outputs": ["gradient"]},
        {"outputs": ["metrics"]},
        {"outputs": ["loss", "metrics"], "metrics": {"names": ["default", "mcc", "cohen_kappa", "balanced_accuracy"]}},
        {"outputs": ["metrics"], "metrics": {"names": ["top_k_accuracy", "tn", "f_beta"], "k": 2, "beta": 2.0}},
        {"outputs": ["metrics"], "metrics": {"zero_division": 0}},
        {"outputs": ["metrics"], "metrics": {"zero_division": 1}},
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [1, 2, 9, 49, 300])
def test_whatever_is_asked_of_class_scores_is_answered(classes: int, request_: Request) -> None:
    request = {"loss": {"name": "focal", "ignore_index": 0}, **request_}
    names = request_.get("metrics", {}).get("names", [])
    if classes <= 2 and "top_k_accuracy" in names:
        pytest.skip("two classes have no two best")
    inputs = [scores(rows, classes, seed=rows) for rows in (5, 2)]
    assert_both_ways([request] * 2, inputs, 2e-6)


@pytest.mark.parametrize(
    ("shape", "threads"),
    [((3, 5, 4), 1), ((2, 5, 300, 2), 1), ((1, 5, 70_001), 3), ((1, 5, 1, 1), 1)],
    ids=str,
    indirect=["threads"],
)
@pytest.mark.parametrize("loss", CLASS_SCORES, ids=str)
def test_dense_scores_answer_as_the_general_way(
    loss: dict[str, Any], shape: tuple[int, ...], threads: int, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of several threads have the bits of one thread."""
    request = {"loss": loss, "outputs": ["loss", "gradient", "metrics"]}
    inputs = [dense(shape, seed) for seed in (1, 2)]
    inputs[0]["target"].view(-1)[-1] = loss.get("ignore_index", -100)
    assert uses_a_pass(request, inputs[0])
    found = assert_both_ways([request] * 2, inputs, 3e-6)
    monkeypatch.setattr(passes, "threads", None)
    for f, tensors in zip(found, inputs, strict=True):
        (alone,) = together([request], [tensors])
        if "label_smoothing" in loss and math.prod(shape[2:]) > 1:  # the general way
            assert_equal(f, alone, 1e-7)
        else:
            assert_bits_equal(f, alone)


def dense(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    prediction = 4 * torch.randn(shape, generator=random, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=random)
    return {"prediction": prediction.to(dtype), "target": target}


@pytest.mark.parametrize(("smoothings", "batches"), [((0.1, 0.1, 0.1), 1), ((0.0, 0.1, 0.1), 2), ((0.1, 0.2, 0.3), 3)])
def test_dense_scores_smoothed_alike_stay_one_batch(
    smoothings: tuple[float, ...], batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [{"loss": {"name": "cross_entropy", "label_smoothing": s}} for s in smoothings]
    inputs = [dense((2, 5, 7), seed) for seed in range(3)]
    expected = generally(requests, inputs)
    the_general_way = Mock(wraps=device_inputs.check)
    monkeypatch.setattr(device_inputs, "check", the_general_way)
    for f, e in zip(together(requests, inputs), expected, strict=True):
        assert_equal(f, e, 2e-6)
    assert the_general_way.call_count == batches


@pytest.mark.parametrize("how", ["class", "nan", "inf", "-inf"])
def test_a_doubtful_position_is_left_to_the_general_way(how: str) -> None:
    request = {"loss": {"name": "focal"}, "outputs": ["loss", "gradient", "metrics"]}
    inputs = [dense((2, 4, 7), seed, torch.float64) for seed in (1, 2)]
    if how == "class":
        inputs[1]["target"][1, 3] = 4
    else:
        inputs[1]["prediction"][1, 2, 3] = float(how)
    found, expected = together([request] * 2, inputs), generally([request] * 2, inputs)
    for f, e in zip(found, expected, strict=True):
        assert_equal(f, e, 1e-12)


ERRORS: list[dict[str, Any]] = [
    {"name": "mse"},
    {"name": "mae", "reduction": "sum"},
    {"name": "huber", "delta": 0.7},
    {"name": "smooth_l1", "beta": 0.4},
    {"name": "smooth_l1", "beta": 0.0},
    {"name": "log_cosh"},
    {"name": "quantile", "q": 0.2},
]
LOGITS: list[dict[str, Any]] = [
    {"name": "bce_with_logits"},
    {"name": "sigmoid_focal", "gamma": 2.0},
    {"name": "sigmoid_focal", "gamma": 0.0, "alpha": 0.9},
    {"name": "sigmoid_focal", "gamma": 0.5, "alpha": 2.0, "alpha_mode": "scale", "reduction": "sum"},
    {"name": "sigmoid_focal", "gamma": 1.5, "alpha": None},
]


def pairs(loss: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    prediction = 3 * torch.randn(shape, generator=random, dtype=torch.float64)
    target = torch.rand(shape, generator=random, dtype=torch.float64)
    if loss in ERRORS:
        target = (4 * target - 2).round(decimals=1)
        prediction = prediction.round(decimals=1)  # errors of exactly 0 and exactly at the bends
    elif seed % 2:
        target = target.round()
    return {"prediction": prediction.to(dtype), "target": target.to(dtype)}


@pytest.mark.parametrize("loss", ERRORS + LOGITS, ids=str)
def test_elements_answer_as_the_general_way(loss: dict[str, Any]) -> None:
    request = {"loss": loss, "outputs": ["loss", "gradient", "metrics"]}
    for trailing, dtype in product([(), (5,), (2, 3), (300,)], [torch.float32, torch.float64]):
        inputs = [pairs(loss, (rows, *trailing), dtype, seed=rows) for rows in (7, 1, 30)]
        with noted(trailing, dtype):
            assert uses_a_pass(request, inputs[0])
            assert_both_ways([request] * 3, inputs, TOLERANCE[dtype])


REGIONS: list[dict[str, Any]] = [
    {"name": "dice"},
    {"name": "jaccard", "per_image": True, "include_background": False, "reduction": "sum"},
    {"name": "tversky", "alpha": 0.3, "beta": 0.8, "ignore_index": 1, "smooth": 0.1, "absent": "ignore"},
    {"name": "focal_tversky", "gamma": 1.5, "class_weight": [1, 0.5, 0], "from_logits": False},
    {"name": "dice", "mode": "multilabel", "smooth": 0.0, "per_image": True, "absent": "ignore"},
    {"name": "focal_tversky", "mode": "binary", "ignore_index": 255, "per_image": True},
    {"name": "jaccard", "mode": "binary", "from_logits": False},
]


def regions(loss: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    random, mode = torch.Generator().manual_seed(seed), loss.get("mode", "multiclass")
    prediction = 2 * torch.randn(shape[:1] + shape[2:] if mode == "binary" else shape, generator=random).to(dtype)
    if not loss.get("from_logits", True):
        prediction = prediction.softmax(1) if mode == "multiclass" else prediction.sigmoid()
    target = torch.randint(0, 2, (shape[0], *shape[2:]) if mode != "multilabel" else shape, generator=random)
    target[0, ..., 0] = loss.get("ignore_index", 0)
    if mode == "multilabel":
        target[:, -1] = 0
    return {"prediction": prediction, "target": target if mode == "multiclass" else target.to(dtype)}


@pytest.mark.parametrize("loss", REGIONS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "shape", "threads"),
    [(torch.float32, (2, 3, 5, 7), 1), (torch.float64, (2, 3, 9), 1), (torch.float32, (2, 3, 66_001), 3)],
    ids=str,
    indirect=["threads"],
)
def test_regions_answer_as_the_general_way(
    loss: dict[str, Any],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    threads: int,
    passes: Passes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = {"loss": loss, "outputs": ["loss", "gradient", "metrics"]}
    inputs = [regions(loss, shape, dtype, seed) for seed in (1, 2)]
    assert uses_a_pass(request, inputs[0])
    found = assert_both_ways([request] * 2, inputs, TOLERANCE[dtype])
    monkeypatch.setattr(passes, "threads", None)
    for f, tensors in zip(found, inputs, strict=True):
        assert_bits_equal(f, together([request], [tensors])[0])


@pytest.mark.parametrize(
    ("position", "where", "value"),
    [
        (0, "prediction", torch.nan), (0, "prediction", -torch.inf), (0, "target", 3), (0, "target", -1),
        (3, "prediction", 1.5), (5, "target", 1.5), (5, "target", torch.nan), (6, "prediction", torch.nan),
    ],
)  # fmt: skip
def test_regions_out_of_range_are_left_to_the_general_way(position: int, where: str, value: float) -> None:
    request = {"loss": REGIONS[position], "outputs": ["loss", "gradient", "metrics"]}
    inputs = [regions(REGIONS[position], (2, 3, 9), torch.float32, seed) for seed in range(3)]
    inputs[1][where].view(-1)[-1] = value
    assert_both_ways([request] * 3, inputs, 2e-6)


def test_a_region_whose_value_is_noise_is_left_to_the_general_way() -> None:
    request = {"loss": {"name": "dice", "smooth": 1e-8}}
    inputs = [regions(REGIONS[0], (2, 3, 9), torch.float32, seed) for seed in range(2)]
    inputs[0]["target"][0, 0] = 2
    found = assert_both_ways([request] * 2, inputs, 2e-6)
    assert [isinstance(f, Evaluated) and f.warnings for f in found] == [set(), {"tiny_smooth"}]


@pytest.mark.parametrize("task", ["binary", "multilabel"])
@pytest.mark.parametrize("mode", ["binary", "multilabel"])
def test_decisions_on_regions_are_counted_as_the_task_says(mode: str, task: str) -> None:
    loss = {"name": "dice", "mode": mode}
    request = {"loss": loss, "metrics": {"task": task, "threshold": 0.4}, "outputs": ["metrics"]}
    inputs = [regions(loss, (2, 3, 4, 5), torch.float32, seed) for seed in range(2)]
    assert_both_ways([request] * 2, inputs, 2e-6)


@pytest.mark.parametrize("step", [0.0, 0.5, 8.0], ids=["any", "equal errors", "certain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "more"),
    [
        ((2, 4, 16, 16), {}), ((3, 5, 33), {"per_image": True}), ((1, 3, 7), {"reduction": "sum"}), ((2, 1, 9), {}),
        ((1, 21, 65, 33), {}), ((2, 2, 101, 3), {"per_image": True, "reduction": "sum"}),
    ],
    ids=str,
)  # fmt: skip
def test_lovasz_answers_as_the_general_way(
    shape: tuple[int, ...], more: dict[str, Any], dtype: torch.dtype, step: float
) -> None:
    """Errors are sorted as the general way sorts them, also equal ones."""
    request = {"loss": {"name": "lovasz", **more}, "outputs": ["loss", "gradient", "metrics"]}
    count = 12 if math.prod(shape) < 5000 else 4
    inputs = [dense(shape, seed, dtype) for seed in range(count)]
    for tensors in inputs if step else ():
        tensors["prediction"] = (tensors["prediction"] / step).round() * step
    inputs[1]["target"][:] = 0
    assert uses_a_pass(request, inputs[0])
    found = assert_both_ways([request] * count, inputs, TOLERANCE[torch.float32])
    for f, tensors in zip(found[:3], inputs, strict=False):
        assert_bits_equal(f, together([request], [tensors])[0])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8], ids=str)
@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "nll"])
def test_masked_class_scores_have_a_pass(loss: str, dtype: torch.dtype) -> None:
    """Inputs are in the order of their names: the mask comes before the scores."""
    request = {"loss": {"name": loss}, "outputs": ["loss", "gradient", "metrics"]}
    inputs = [{**scores(40, 5, seed=seed), "mask": (torch.arange(40) % 3 > 0).to(dtype)} for seed in range(3)]
    for tensors in inputs if loss == "nll" else ():
        tensors["prediction"] = tensors["prediction"].log_softmax(1)
    assert uses_a_pass(request, inputs[0])
    assert_both_ways([request] * 3, inputs, TOLERANCE[torch.float32])


def test_lovasz_has_the_same_bits_in_any_batch_on_several_threads() -> None:
    """With two threads, torch's softmax of these shapes depends on the number of images."""
    request, threads = {"loss": {"name": "lovasz"}}, torch.get_num_threads()
    inputs = [dense((1, 5, 4, 4), seed) for seed in range(6)]
    torch.set_num_threads(2)
    try:
        for f, tensors in zip(together([request] * 6, inputs), inputs, strict=True):
            assert_bits_equal(f, together([request], [tensors])[0])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("where", "value"), [("prediction", torch.nan), ("prediction", torch.inf), ("prediction", -torch.inf),
                         ("prediction", 1e30), ("target", 3), ("target", -1)],
)  # fmt: skip
def test_lovasz_out_of_range_is_left_to_the_general_way(where: str, value: float) -> None:
    request = {"loss": {"name": "lovasz"}, "outputs": ["loss", "gradient", "metrics"]}
    inputs = [dense((2, 3, 9), seed) for seed in range(3)]
    inputs[1][where].view(-1)[-1] = value
    assert_both_ways([request] * 3, inputs, 2e-6)


@pytest.mark.parametrize("more", [{"mode": "binary"}, {"ignore_index": 0}, {"from_logits": False}], ids=str)
def test_lovasz_of_other_regions_goes_the_general_way(more: dict[str, Any]) -> None:
    loss = {"name": "lovasz", **more}
    assert not uses_a_pass({"loss": loss}, regions(loss, (2, 3, 4), torch.float32, 1))


def boxes(form: str, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """Pairs that overlap, that are far apart, that are equal, that touch, points, equal points, and lines."""
    random = torch.Generator().manual_seed(seed)
    first, size = torch.rand(2, 9, 2, generator=random), torch.rand(2, 9, 2, generator=random) + 0.2
    first[0, 1] += 5
    size[:, 2:5], first[:, 2:5] = 1.0, 0.5
    first[0, 3] += 1
    first[1, 4] -= 1
    size[0, 5] = 0
    size[:, 6], first[:, 6] = 0, 0.25
    size[:, 7, 1], first[:, 7, 1] = 0, 0.5
    first, second = {"xyxy": (first, first + size), "xywh": (first, size), "cxcywh": (first + size / 2, size)}[form]
    return dict(zip(("prediction", "target"), torch.cat([first, second], -1).to(dtype), strict=True))


@pytest.mark.parametrize(
    ("form", "dtype", "more"),
    [
        ("xyxy", torch.float32, {}),
        ("xywh", torch.float64, {"eps": 1e-3}),
        ("cxcywh", torch.float32, {"reduction": "sum"}),
    ],
)
@pytest.mark.parametrize("name", ["iou", "giou", "diou", "ciou"])
def test_boxes_answer_as_the_general_way(name: str, form: str, dtype: torch.dtype, more: dict[str, Any]) -> None:
    names = ["default", "giou", "per_threshold"]
    request = {
        "loss": {"name": name, "format": form, **more},
        "outputs": ["loss", "gradient", "metrics"],
        "metrics": {"names": names, "iou_threshold": 0.3},
    }
    inputs = [boxes(form, dtype, seed) for seed in range(4)]
    inputs[2]["prediction"][4, 2] = -torch.inf
    inputs[3]["target"][1, 1] = torch.nan
    assert uses_a_pass(request, inputs[0])
    found = assert_both_ways([request] * 4, inputs, TOLERANCE[dtype])
    for f, tensors in zip(found[:2], inputs, strict=False):
        assert_bits_equal(f, together([request], [tensors])[0])


def sums() -> list[tuple[dict[str, Any], list[Tensors]]]:
    """Weighted sums, and three requests of each; those of the last also weigh and share a tensor."""
    masks = [{n: t[:, 0] for n, t in regions(REGIONS[4], (2, 3, 4, 5), torch.float32, seed).items()} for seed in (1, 2)]
    dense_scores = [dense((2, 3, 9), seed) for seed in (1, 2)]
    ignored = dense((2, 3, 9), 3)
    ignored["target"][:] = -100
    terms = [
        {"loss": {"name": "mse"}, "weight": -2.0},
        {"loss": {"name": "iou"}, "inputs": {"prediction": "box", "target": "true_box"}},
        {"loss": {"name": "huber", "reduction": "sum"}, "inputs": {"target": "other"}},
    ]
    several = [
        {"box": box["prediction"], "true_box": box["target"], **pair, "other": pair["target"].flip(0)}
        for box, pair in ((boxes("xyxy", torch.float64, n), pairs(ERRORS[0], (9, 3), torch.float32, n)) for n in (1, 2))
    ]
    return [
        ({"name": "bce_dice", "bce_weight": 0.3}, masks),
        ({"name": "ce_dice", "smooth": 0.5}, [*dense_scores, ignored]),
        ({"name": "weighted_sum", "terms": terms}, several),
    ]


@pytest.mark.parametrize("position", range(3))
def test_a_sum_of_losses_answers_as_the_general_way(position: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, inputs = sums()[position]
    request = {"loss": loss, "outputs": ["loss", "gradient", *(["metrics"] if position < 2 else [])]}
    expected = generally([request] * len(inputs), inputs)
    composed = Mock(wraps=evaluation.compose)
    monkeypatch.setattr(evaluation, "compose", composed)
    found = together([request] * 2, inputs[:2])
    assert not composed.called
    found += together([request] * len(inputs), inputs)[2:]
    for f, e in zip(found, expected, strict=True):
        assert_equal(f, e, 2e-6)
    for f, tensors in zip(found, inputs, strict=True):
        assert_bits_equal(f, together([request], [tensors])[0])


@pytest.mark.parametrize(
    ("more", "value"),
    [({"gradient": {"clip_norm": 1e-3}}, 1.0), ({}, torch.nan), ({"gradient": {"dtype": "float16"}}, 1.0)],
    ids=str,
)
def test_a_sum_that_no_pass_takes_is_left_to_the_general_way(more: Mapping[str, Any], value: float) -> None:
    loss, inputs = sums()[1]
    inputs[0]["prediction"].view(-1)[3] = value
    request = {"loss": loss, "outputs": ["loss", "gradient", "metrics"], **more}
    assert_both_ways([request] * 3, inputs, 2e-6)


def test_a_sum_beside_one_that_no_pass_takes_has_the_bits_of_itself_alone() -> None:
    loss, inputs = sums()[2]
    inputs[0]["prediction"].view(-1)[3] = torch.nan
    request = {"loss": loss, "outputs": ["loss", "gradient"]}
    assert_bits_equal(together([request] * 2, inputs)[1], together([request], inputs[1:])[0])


KINKS: list[tuple[dict[str, Any], list[float]]] = [
    ({"name": "hinge"}, [0.1, 0.7, -0.3]),
    ({"name": "hinge_embedding"}, [0.1, 0.7, 1.3]),
]
"""Losses with a bend at their margin, and margins that float32 rounds."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("loss", "margins"), KINKS, ids=lambda value: str(value))
def test_a_score_at_the_margin_has_the_gradient_of_the_general_way(
    loss: dict[str, Any], margins: list[float], dtype: torch.dtype
) -> None:
    prediction = torch.tensor([[m, -m, m + 0.5, m - 0.5] for m in margins], dtype=torch.float64).to(dtype)
    target = torch.tensor([[1, -1, -1, 1], [-1, -1, 1, -1], [-1, 1, -1, -1]]).to(dtype)
    inputs = [{"prediction": prediction, "target": target}] * 3
    requests = [{"loss": {**loss, "margin": margin}} for margin in margins]
    assert uses_a_pass(requests[0], inputs[0])
    assert_both_ways(requests, inputs, TOLERANCE[dtype])


class NoOperation(TorchDispatchMode):
    """Refuses every operation on tensors; to make one of an array is none."""

    def __torch_dispatch__(self, operation: Any, _: Any, arguments: Any, __: Any = None) -> Any:
        assert operation is torch.ops.aten.lift_fresh.default
        return arguments[0]


def counted_inputs(
    loss: dict[str, Any], rows: int, trailing: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Inputs of a loss for whose metrics the pass counts, with scores at margins and thresholds among them."""
    if loss["name"] in ("cross_entropy", "nll"):
        tensors = dense((rows, 3, *trailing[1:]), seed, dtype)
        if loss["name"] == "nll":
            tensors["prediction"] = torch.log_softmax(tensors["prediction"].double(), 1).to(dtype)
        return tensors
    random, name, shape = torch.Generator().manual_seed(seed), loss["name"], (rows, *trailing)
    first, second = (torch.randint(-8, 9, shape, generator=random).to(dtype) / 10 for _ in range(2))
    yes = torch.randint(0, 2, shape, generator=random).to(dtype)
    if name.endswith("_generator"):
        return {"fake": first}
    if name == "margin_ranking":
        return {"first": first, "second": second, "target": 2 * yes - 1}
    if name == "hinge_embedding":
        return {"prediction": first.abs(), "target": 2 * yes - 1}
    return {"prediction": first.abs() if name == "bce" else first, "target": yes if name == "bce" else second}


COUNTING = [
    CLASS_SCORES[0], {"name": "nll"}, {"name": "bce"}, {"name": "expectile"}, {"name": "hinge_embedding"},
    {"name": "margin_ranking"}, {"name": "wgan_generator"}, {"name": "lsgan_generator"},
]  # fmt: skip
"""Losses whose passes count what the default metrics are made of, one of each task."""


@pytest.mark.parametrize("trailing", [(), (5,), (5, 300)], ids=str)
@pytest.mark.parametrize("loss", [loss for loss in COUNTING if loss["name"] != "expectile"], ids=str)
def test_what_a_pass_has_counted_is_not_looked_at_again(loss: dict[str, Any], trailing: tuple[int, ...]) -> None:
    tensors = counted_inputs(loss, 7, trailing, 1)
    job = make_plan({"loss": loss, "outputs": ["loss", "gradient", "metrics"]}).job(layout(tensors))
    columns = {c.name: np.zeros((7, *c.trailing), c.dtype) for c in job.recipe.answers}
    inputs = Columns({name: tensor.numpy() for name, tensor in tensors.items()}, frozenset())
    batch = TensorBatch(job.recipe, [job.rows], [job.numbers], inputs, Columns(columns, frozenset()))
    with NoOperation():
        (answer,) = evaluation.evaluate(batch, evaluating.passes)
    assert not isinstance(answer, Problem)
    assert answer["metrics"]["task"] == job.recipe.task


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("position", "metrics", "margins"),
    [
        (1, {}, ()), (2, {"threshold": 0.3}, ()), (2, {"task": "multilabel", "threshold": [0.1, 0.3, 0.5]}, ()),
        (3, {}, ()), (4, {}, (0.2, 0.6, 1.4)), (4, {}, (0.6, 0.6, 0.6)), (4, {"threshold": 0.3}, (1.0, 0.5, 1.0)),
        (5, {}, (0.0, 0.3, 0.7)), (5, {}, (0.3, 0.3, 0.3)), (6, {}, ()), (6, {"threshold": {"score": 0.3}}, ()),
        (6, {"threshold": 0.6}, ()), (7, {"threshold": 0.3}, ()),
    ],
)  # fmt: skip
def test_what_a_pass_counts_is_what_metrics_count(
    position: int, metrics: dict[str, Any], margins: tuple[float, ...], dtype: torch.dtype
) -> None:
    loss = COUNTING[position]
    inputs = [counted_inputs(loss, rows, (3, 2), rows, dtype) for rows in (4, 1, 9)]
    requests = [
        {"loss": loss | ({"margin": margins[n]} if margins else {}), "outputs": ["loss", "metrics"], "metrics": metrics}
        for n in range(3)
    ]
    assert uses_a_pass(requests[0], inputs[0])
    assert_both_ways(requests, inputs, TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32])


@pytest.mark.parametrize(
    ("loss", "metrics"),
    [
        ("mse", {"names": ["default", "explained_variance", "pearson", "mape", "error_quantiles"]}),
        ("sigmoid_focal", {"task": "multilabel"}),
        ("sigmoid_focal", {"task": "multilabel", "threshold": 0.3, "names": ["default", "mcc", "auroc"]}),
        ("bce_with_logits", {"threshold": 0.0, "names": ["default", "auroc", "brier", "per_image_iou"]}),
        ("bce_with_logits", {"threshold": 1.0}),
    ],
    ids=str,
)
def test_whatever_is_asked_of_elements_is_answered(loss: str, metrics: dict[str, Any]) -> None:
    request = {"loss": {"name": loss}, "outputs": ["metrics"], "metrics": metrics}
    kind = next(known for known in ERRORS + LOGITS if known["name"] == loss)
    inputs = [pairs(kind, (rows, 4), torch.float32, seed=rows) for rows in (9, 3)]
    assert_both_ways([request] * 2, inputs, 2e-6)


@pytest.mark.parametrize("loss", [ERRORS[0], ERRORS[5], *LOGITS[:3]], ids=str)
def test_elements_out_of_range_are_left_to_the_general_way(loss: dict[str, Any]) -> None:
    request = {"loss": loss, "outputs": ["loss", "gradient", "metrics"]}
    values = (torch.nan, torch.inf, -torch.inf, 1.5, 80.0, -800.0)
    for value, where in product(values, ("prediction", "target")):
        inputs = [pairs(loss, (4, 3), torch.float32, seed) for seed in range(3)]
        inputs[1][where][2, 1] = value
        with noted(value, where):
            found = assert_both_ways([request] * 3, inputs, 2e-6)
            for position in (0, 2):
                (alone,) = together([request], [inputs[position]])
                assert_bits_equal(found[position], alone)


def test_the_ratios_of_the_metrics_are_compiled_too(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes.counting["rates"] is averages.rates
    rates = Mock(wraps=averages.rates)
    monkeypatch.setattr(passes, "counting", {**passes.counting, "rates": rates})
    together([{"loss": {"name": "focal"}, "outputs": ["metrics"]}] * 2, [scores(6, 4, seed=1), scores(6, 4, seed=2)])
    assert rates.call_count == 1


COUNTED = {
    "errors": ({"name": "mape", "eps": 0.1}, lambda n, seed: pairs(ERRORS[0], (n, 3), torch.float32, seed)),
    "decisions": ({"name": "bce", "eps": 0.01}, lambda n, seed: {
        "prediction": torch.rand(n, 3), "target": torch.randint(0, 2, (n, 3)).float()}),
    "matrices": ({"name": "cross_entropy", "poly": 0.5}, lambda n, seed: scores(n, 4, seed=seed)),
}  # fmt: skip
"""By the kernel that counts for the metrics: a loss without a pass, and its inputs."""


@pytest.mark.parametrize("name", COUNTED)
def test_metrics_of_losses_without_a_pass_are_counted_by_kernels(
    name: str, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, draw = COUNTED[name]
    requests, inputs = [{"loss": loss, "outputs": ["loss", "metrics"]}] * 2, [draw(4, 1), draw(7, 2)]
    assert not uses_a_pass(requests[0], inputs[0])
    kernel = Mock(wraps=passes.counting[name])
    monkeypatch.setattr(passes, "counting", {**passes.counting, name: kernel})
    found = together(requests, inputs)
    assert kernel.call_count == 1
    for f, e in zip(found, generally(requests, inputs), strict=True):
        assert_equal(f, e, 1e-12)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30], ids=str)
@pytest.mark.parametrize("name", COUNTED)
def test_kernels_count_extreme_scores_as_the_general_way(name: str, value: float) -> None:
    _, draw = COUNTED[name]
    request, inputs = {"task": {"errors": "regression", "decisions": "binary", "matrices": "multiclass"}[name]}, []
    for seed in range(2):
        drawn = {k: t for k, t in draw(5, seed).items() if k in ("prediction", "target")}
        drawn["prediction"][1, 1:] = value
        drawn["prediction"][2, 0] = value
        inputs.append(drawn)
    metrics_request = {"outputs": ["metrics"], **request}
    assert_both_ways([metrics_request] * 2, inputs, 1e-12)


@pytest.mark.parametrize("positions", [(), (3,), (20, 30)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_matrices_are_exact(dtype: torch.dtype, positions: tuple[int, ...]) -> None:
    """Of ties the first class is predicted, and ignored targets do not count."""
    random = torch.Generator().manual_seed(1)
    prediction = torch.randint(0, 3, (6, 5, *positions), generator=random).to(dtype)
    target = torch.randint(0, 5, (6, *positions), generator=random)
    target[0] = -100
    request = {"loss": {"name": "nll"}, "outputs": ["metrics"], "metrics": {"names": ["confusion_matrix"]}}
    inputs = [{"prediction": prediction, "target": target}]
    (found,), (expected,) = together([request], inputs), generally([request], inputs)
    assert found.document == expected.document


def test_gammas_differ_within_a_batch() -> None:
    requests = [{"loss": {"name": "focal", "gamma": gamma}} for gamma in (0.0, 0.3, 2.0, 5.0)]
    inputs = [scores(6, 4, torch.float64, seed) for seed in range(4)]
    assert_both_ways(requests, inputs, 1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_targets_of_every_integer_dtype_are_read(dtype: torch.dtype) -> None:
    tensors = scores(20, 6)
    request = {"loss": {"name": "cross_entropy"}, "outputs": ["loss", "gradient", "metrics"]}
    (expected,) = together([request], [tensors])
    (found,) = together([request], [{**tensors, "target": tensors["target"].to(dtype)}])
    assert isinstance(found, Evaluated)
    assert isinstance(expected, Evaluated)
    assert found.document == expected.document
    assert torch.equal(found.gradient(), expected.gradient())


@pytest.mark.parametrize("gradient", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", [CLASS_SCORES[1], CLASS_SCORES[5], CLASS_SCORES[-2], ERRORS[0], LOGITS[1]], ids=str)
def test_half_precision_is_single_precision_of_the_rounded_inputs(
    loss: dict[str, Any], dtype: torch.dtype, gradient: str
) -> None:
    task = REGISTRY[loss["name"]].task
    request = {
        "loss": loss,
        "outputs": ["loss", "gradient", "metrics"],
        "gradient": {"dtype": gradient},
        "metrics": {"names": list(METRICS[task]), "k": 2, **NEEDED},  # those that the pass does not count as well
    }
    tensors = scores(9, 5, dtype) if loss in CLASS_SCORES else pairs(loss, (9, 5), dtype)
    assert uses_a_pass(request, tensors)
    (found,) = together([request], [tensors])
    wide = {name: tensor.float() if tensor.dtype == dtype else tensor for name, tensor in tensors.items()}
    (expected,) = together([request], [wide])
    assert isinstance(found, Evaluated)
    assert isinstance(expected, Evaluated)
    assert found.document == expected.document
    assert torch.equal(found.gradient(), expected.gradient().to(found.gradient().dtype))


def poisoned(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    prediction, target = tensors["prediction"].clone(), tensors["target"].clone()
    match how:
        case "class too high":
            target[1] = prediction.shape[1]
        case "class too low":
            target[1] = -2
        case "nan":
            prediction[1, 2] = torch.nan
        case "first nan":
            prediction[1, 0], target[1] = torch.nan, prediction.shape[1] - 1
        case "inf":
            prediction[1, 2] = torch.inf
        case "-inf at the target":
            prediction[1, target[1]] = -torch.inf
        case "-inf elsewhere":
            prediction[1, (target[1] + 1) % prediction.shape[1]] = -torch.inf
        case "all -inf":
            prediction[1] = -torch.inf
        case "all ignored":
            target[:] = -100
        case "saturated":
            prediction[:] = 0
            prediction[torch.arange(len(target)), target] = 1e4
        case "wrong and sure":
            prediction[:] = 0
            prediction[torch.arange(len(target)), (target + 1) % prediction.shape[1]] = 1e30
    return {"prediction": prediction, "target": target}


POISONS = (
    "class too high", "class too low", "nan", "first nan", "inf", "-inf at the target", "-inf elsewhere", "all -inf",
    "all ignored", "saturated", "wrong and sure",
)  # fmt: skip


@pytest.mark.parametrize(
    "loss", [{"name": "focal"}, {"name": "cross_entropy", "label_smoothing": 0.1}, {"name": "nll"}], ids=str
)
@pytest.mark.parametrize("how", POISONS)
def test_what_a_pass_doubts_is_answered_the_general_way(loss: dict[str, Any], how: str) -> None:
    request = {"loss": loss, "outputs": ["loss", "gradient", "metrics"]}
    inputs = [scores(4, 5, seed=1), poisoned(scores(4, 5, seed=2), how), scores(4, 5, seed=3)]
    found, expected = together([request] * 3, inputs), generally([request] * 3, inputs)
    for f, e in zip(found, expected, strict=True):
        assert_equal(f, e, 2e-6)
    for position in (0, 2):
        (alone,) = together([request], [inputs[position]])
        assert_bits_equal(found[position], alone)


def assert_bits_equal(found: Evaluated | Problem, expected: Evaluated | Problem) -> None:
    assert isinstance(found, Evaluated)
    assert isinstance(expected, Evaluated)
    assert found.document == expected.document
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 30),
    st.sampled_from([*CLASS_SCORES[:2], CLASS_SCORES[-3]]),
)
def test_a_batch_never_changes_a_bit_of_an_answer(rows: list[int], classes: int, loss: dict[str, Any]) -> None:
    request = {"loss": loss, "outputs": ["loss", "gradient", "metrics"]}
    inputs = [scores(n, classes, seed=position) for position, n in enumerate(rows)]
    for found, tensors in zip(together([request] * len(rows), inputs), inputs, strict=True):
        (alone,) = together([request], [tensors])
        assert_bits_equal(found, alone)


NUMBERS = st.sampled_from([0.0, 0.5, 1.0, -1.0, 3.0, 80.0, -800.0, math.nan, math.inf, -math.inf])


@st.composite
def anything(draw: st.DrawFn) -> tuple[Request, list[dict[str, torch.Tensor]]]:
    """Requests of one recipe, most of them with something in them that nobody can answer."""
    loss = draw(
        st.sampled_from(
            [CLASS_SCORES[1], CLASS_SCORES[5], CLASS_SCORES[-3], LOGITS[0], LOGITS[1], ERRORS[0], ERRORS[2]]
        )
    )
    classes, trailing = draw(st.integers(1, 4)), draw(st.sampled_from([(), (), (3,)]))
    inputs = []
    for rows in draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)):
        shape = (rows, classes, *trailing)
        listed = loss in CLASS_SCORES
        tensors = {}
        for name in ("prediction", "target"):
            indices = listed and name == "target"
            tensor_shape = (rows, *trailing) if indices else shape
            values = st.integers(-2, classes) if indices else NUMBERS
            drawn = draw(st.lists(values, min_size=math.prod(tensor_shape), max_size=math.prod(tensor_shape)))
            tensors[name] = torch.tensor(drawn, dtype=torch.int64 if indices else torch.float64).reshape(tensor_shape)
        inputs.append(tensors)
    return {"loss": loss, "outputs": ["loss", "gradient", "metrics"]}, inputs


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(anything())
def test_whatever_the_numbers_are_they_are_answered_as_the_general_way(
    batch: tuple[Request, list[dict[str, torch.Tensor]]],
) -> None:
    request, inputs = batch
    found, expected = together([request] * len(inputs), inputs), generally([request] * len(inputs), inputs)
    for f, e in zip(found, expected, strict=True):
        assert_equal(f, e, 1e-12)


@pytest.mark.parametrize(
    ("request_", "change"),
    [
        ({"loss": {"name": "focal", "reduction": "none"}}, {}),
        ({"loss": {"name": "focal"}, "gradient": {"clip_norm": 1.0}}, {}),
        ({"loss": {"name": "focal"}}, {"sample_weight": torch.ones(8)}),
        ({"loss": {"name": "cross_entropy"}}, {"target": torch.zeros(8, 5)}),
        ({"loss": {"name": "nll"}, "gradient": {"clip_value": 1.0}}, {}),
        ({"loss": {"name": "cross_entropy", "poly": 0.5}}, {}),
    ],
    ids=str,
)
def test_what_no_pass_covers_goes_the_general_way(request_: Request, change: Tensors) -> None:
    assert not uses_a_pass(request_, {**scores(8, 5), **change})


@pytest.mark.parametrize("loss", [*CLASS_SCORES, *LOGITS, *ERRORS], ids=str)
def test_everything_between_single_precision_and_the_gradient_is_double_precision(loss: dict[str, Any]) -> None:
    single = scores(33, 5) if loss in CLASS_SCORES else pairs(loss, (33, 5), torch.float32)
    double = {name: t.double() if t.is_floating_point() else t for name, t in single.items()}
    request = {"loss": loss, "outputs": ["loss", "gradient"]}
    assert uses_a_pass(request, single)
    (found,), (expected,) = together([request], [single]), together([request], [double])
    assert found.loss == pytest.approx(expected.loss, rel=1e-14)
    assert torch.equal(found.gradient(), expected.gradient().float())


def callable_from_python(function: Any) -> Any:
    """What compiled code alone calls."""
    import numba

    return numba.njit(lambda x: function(x))


@pytest.mark.parametrize(("name", "largest"), [("log1p", 1.0), ("log_of_one_and", 1e300)])
def test_the_logarithms_are_exact_to_two_units_in_the_last_place(name: str, largest: float) -> None:
    from lossd.compiled import arithmetic

    log = callable_from_python(getattr(arithmetic, name))
    x = np.concatenate([np.linspace(0, min(largest, 9), 20_001), np.geomspace(1e-300, largest, 20_001)])
    found = np.array([log(v) for v in x])
    expected = np.log1p(x.astype(np.longdouble))
    assert np.abs((found - expected) / np.spacing(found)).max() <= 2
    assert np.isnan(log(np.nan))


def test_the_exponential_is_exact_to_two_units_in_the_last_place() -> None:
    from lossd.compiled import arithmetic

    exp = callable_from_python(arithmetic.exp)
    x = -np.concatenate([np.linspace(0, 707.9, 20_001), np.geomspace(1e-300, 1, 20_001)])
    found = np.array([exp(v) for v in x])
    expected = np.exp(x.astype(np.longdouble))
    assert np.abs((found - expected) / np.spacing(found)).max() <= 2
    assert exp(-709.0) == exp(-np.inf) == 0
    assert np.isnan(exp(np.nan))


def dice_recipe(pixels: int = 4) -> Recipe:
    tensors = {"prediction": ("float32", (1, 2, pixels)), "target": ("int64", (1, pixels))}
    return make_plan({"loss": {"name": "dice"}}).job(tensors).recipe


def test_a_recipe_is_looked_up_once(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Mock(wraps=passes._look_up)
    monkeypatch.setattr(passes, "_look_up", found)
    passes._found.clear()
    recipe = dice_recipe()
    assert passes.find(recipe) is None
    assert passes.find(Recipe.read(recipe.text)) is None
    assert found.call_count == 1


def test_what_is_known_of_recipes_is_bounded_in_bytes(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = passes._found
    cache.clear()
    monkeypatch.setattr(cache, "limit_bytes", 1 << 20)
    for pixels in range(1, 1000):
        passes.find(dice_recipe(pixels))
    assert 0.9 * cache.limit_bytes < cache.nbytes <= cache.limit_bytes
    assert len(cache) < 999


def test_each_has_passes_of_its_own(passes: Passes) -> None:
    """Others that are not prepared know none, and a forked process takes what is ready, but no threads."""
    recipe = make_plan({"loss": {"name": "mse"}}).job(layout(pairs(ERRORS[0], (3,), torch.float32))).recipe
    other = Passes(threads=2)
    assert other.find(recipe) is None
    assert (other.progress, other.counting) == ((0, 0, 0), {})
    other._kernels, other._look_up, other.counting = passes._kernels, passes._look_up, passes.counting
    forked = other.forked()
    assert forked.find(recipe) is not None
    assert (forked.threads, forked.counting, forked.progress) == (None, passes.counting, passes.progress)
    assert other.threads is not None
    other.threads.shutdown()
