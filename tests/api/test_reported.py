"""What other libraries were reported to get wrong, asked of this one.

``reported.jsonl`` holds a request a line, the public reports it stands for (``seen``), the right answer and why it is
right. Where a request is wrong, ``refused`` is what its refusal must say, and ``never`` what would mislead. What takes
more than one request is written out below.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lossd_client import LossClient
from serving import Running

REPORTED = [json.loads(line) for line in Path(__file__).with_name("reported.jsonl").read_text().splitlines()]
PRECISION = 1e-6
"""Relative, of answers computed in float32."""


def at(answer: Any, path: str) -> Any:
    for name in path.split("."):
        answer = answer[name]
    return answer


def numbers(value: Any) -> np.ndarray:
    return np.array(value, dtype=np.float64)  # which reads "NaN" and "Infinity"


def evaluate(http: httpx.Client, request: dict[str, Any]) -> dict[str, Any]:
    response = http.post("/v1/evaluate", json=request)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refusal(http: httpx.Client, request: dict[str, Any] | bytes) -> str:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    response = http.post("/v1/evaluate", content=body, headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500, response.text
    detail: str = response.json()["detail"]
    return detail


@pytest.mark.parametrize("case", REPORTED, ids=lambda case: case["title"])
def test_what_was_reported_is_right_here(case: dict[str, Any], http: httpx.Client) -> None:
    response = http.post("/v1/evaluate", json=case["request"])
    answer = response.json()
    if response.status_code != 200:
        assert "refused" in case, answer
        assert re.search(case["refused"], answer["detail"])
        assert "never" not in case or not re.search(case["never"], answer["detail"])
        return
    assert "answer" in case or "within" in case, "this is to be refused"
    for path, right in case.get("answer", {}).items():
        within = case.get("relative", PRECISION)
        np.testing.assert_allclose(numbers(at(answer, path)), numbers(right), rtol=within, atol=1e-7, err_msg=path)
    for path, (low, high) in case.get("within", {}).items():
        assert low <= at(answer, path) <= high
    if "warning" in case:
        assert any(case["warning"] in warning["code"] for warning in answer["diagnostics"]["warnings"])


# Thresholds (huggingface/sentence-transformers#384, Lightning-AI/torchmetrics#2489, meta-pytorch/torcheval#212)


@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        ([0.6, 1.4, -1.0, 1.2, 0.7], [1.0, 1.0, 0.0, 1.0, 1.0]),
        ([45.0, 40.0, 38.0], [1, 0, 0]),
        ([45.0, 44.0, 40.0, 39.0], [1, 1, 0, 1]),
        ([-745.0, -744.0, -800.0], [0, 1, 0]),
    ],
)
def test_the_best_threshold_is_the_best_when_it_is_sent_back(
    prediction: list[float], target: list[float], http: httpx.Client
) -> None:
    request = {"loss": "bce_with_logits", "inputs": {"prediction": prediction, "target": target}}
    scores, positive = numbers(prediction), numbers(target) == 1

    def f1(cut: float) -> float:
        chosen = scores >= cut
        return float(2 * (chosen & positive).sum() / (chosen.sum() + positive.sum()))

    found = evaluate(http, {**request, "metrics": ["best_threshold"]})["metrics"]["best_threshold"]
    answer = evaluate(http, {**request, "metrics": {"names": ["f1"], "threshold": found}})
    assert answer["metrics"]["f1"] == pytest.approx(max(map(f1, scores)))


def test_a_decision_does_not_depend_on_how_the_target_is_written(http: httpx.Client) -> None:
    prediction = [0.6, 1.4, -1.0, 1.2, 0.7]
    request = {"loss": {"name": "bce_with_logits"}, "metrics": {"threshold": 0.6456563116804368}}
    integers, floats = (
        evaluate(http, {**request, "inputs": {"prediction": prediction, "target": target}})["metrics"]
        for target in ([1, 1, 0, 1, 1], [1.0, 1.0, 0.0, 1.0, 1.0])
    )
    assert integers == floats


# Weights (keras-team/keras#13641, tensorflow/tensorflow#29965)


def test_weights_of_one_change_nothing_of_large_errors(http: httpx.Client) -> None:
    inputs = {"prediction": [2e30, 1.0], "target": [0.0, 1.0]}
    plain = evaluate(http, {"loss": "mse", "inputs": inputs})
    weighted = evaluate(http, {"loss": "mse", "inputs": {**inputs, "sample_weight": [1.0, 1.0]}})
    assert [plain["loss"], weighted["loss"]] == pytest.approx([2e60, 2e60], rel=1e-6)
    assert plain["gradient"] == weighted["gradient"]


# NaN (psf/requests#5767)


def test_a_bare_nan_is_told_how_to_be_spelled(http: httpx.Client) -> None:
    request = {"loss": {"name": "mse"}, "inputs": {"prediction": [float("nan"), 1.0], "target": [0.0, 1.0]}}
    detail = refusal(http, json.dumps(request).encode())
    assert 'write the string "NaN"' in detail
    request["inputs"]["prediction"][0] = "NaN"
    assert evaluate(http, request)["loss"] == "NaN"


# What does not count (catboost/catboost#3079, kornia#839, Project-MONAI/MONAI#8734)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_a_label_that_is_missing_counts_nowhere(http: httpx.Client) -> None:
    logits, labels = numbers([[0.5, -1.0, 2.0], [0.0, 1.5, -0.5]]), numbers([[1, 0, 1], [0, -1, 1]])
    costs = np.logaddexp(0, np.where(labels == 1, -logits, logits))[labels >= 0]
    answer = evaluate(http, {
        "loss": {"name": "bce_with_logits", "ignore_index": -1},
        "inputs": {"prediction": logits.tolist(), "target": labels.tolist()},
    })  # fmt: skip
    assert answer["loss"] == pytest.approx(costs.mean(), rel=PRECISION)
    assert answer["reduction"]["denominator"] == 5
    assert answer["gradient"]["prediction"][1][1] == 0


SCORES = [[[[2.0, -1.0], [0.5, 1.0]], [[0.0, 1.5], [-0.5, 0.25]], [[1.0, 0.0], [0.75, -2.0]]]]


def cross_entropy_and_dice(target: list[list[list[int]]], ignored: int) -> float:
    probabilities = softmax(numbers(SCORES))[0].reshape(3, -1)
    classes = np.array(target).reshape(-1)
    kept = classes != ignored
    probabilities, classes = probabilities[:, kept], classes[kept]
    there = np.eye(3)[classes].T
    dice = 1 - (2 * (probabilities * there).sum(1) + 1) / (probabilities.sum(1) + there.sum(1) + 1)
    entropy = -np.log((probabilities * there).sum(0))
    return float(0.5 * entropy.mean() + 0.5 * dice.mean())


@pytest.mark.parametrize("ignored", [255, -1, -100])
def test_ignored_pixels_count_in_neither_half(ignored: int, http: httpx.Client) -> None:
    target = [[[0, ignored], [2, 1]]]
    loss = {"name": "ce_dice", "ignore_index": ignored}
    answer = evaluate(http, {"loss": loss, "inputs": {"prediction": SCORES, "target": target}})
    assert answer["loss"] == pytest.approx(cross_entropy_and_dice(target, ignored), rel=PRECISION)


def test_the_class_that_a_refusal_proposes_is_accepted(http: httpx.Client) -> None:
    request: dict[str, Any] = {"loss": "ce_dice", "inputs": {"prediction": SCORES, "target": [[[0, 255], [2, 1]]]}}
    detail = refusal(http, request)
    assert "255" in detail
    if proposed := re.search(r"or (-?\d+) \(ignore_index\)", detail):
        target = [[[0, int(proposed[1])], [2, 1]]]
        request["inputs"]["target"] = target
        right = cross_entropy_and_dice(target, int(proposed[1]))
        assert evaluate(http, request)["loss"] == pytest.approx(right, rel=PRECISION)


def test_the_mean_of_a_street_is_over_the_pixels_that_count(service: Running) -> None:
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(1, 21, 512, 512)).astype(np.float32)
    target = rng.integers(0, 21, (1, 512, 512)).astype(np.uint8)
    target[rng.random(target.shape) < 0.3] = 255
    kept = target != 255
    wide = scores.astype(np.float64)
    highest = wide.max(1)
    costs = highest + np.log(np.exp(wide - highest[:, None]).sum(1))
    costs -= np.take_along_axis(wide, np.where(kept, target, 0)[:, None].astype(int), 1)[:, 0]
    with LossClient(service.url) as client:
        result = client.evaluate("cross_entropy", scores, target, ignore_index=255, outputs=["loss", "gradient"])
    assert result.loss == pytest.approx(costs[kept].mean(), rel=PRECISION)
    assert result.reduction is not None
    assert result.reduction.denominator == kept.sum()
    assert not result.gradient[0, :, ~kept[0]].any()
    assert np.abs(result.gradient.sum(1)).max() < 1e-9
