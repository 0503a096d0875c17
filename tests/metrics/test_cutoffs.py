"""Where a number of the request decides: the same whatever the target's dtype, the batch or the way of evaluating."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

import evaluating
from lossd.metrics.activation import least_score, probabilities, threshold_between
from lossd_client.errors import InvalidRequest
from metrics.measuring import Request, measure

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


pytestmark = pytest.mark.usefixtures("compiled_passes")


def metrics(loss: str | dict[str, Any] | None, inputs: Mapping[str, Any], *names: str, **options: Any) -> Any:
    """One request's metrics; lists become float32, or integers, as they do from JSON."""
    task = options.pop("alone", None)
    named = {"loss": {"name": loss} if isinstance(loss, str) else loss} if loss else {"task": task}
    tensors = {name: torch.as_tensor(value) for name, value in inputs.items()}
    request = {**named, "outputs": ["metrics"], "metrics": {"names": list(names), **options}}
    return evaluating.alone(request, tensors).document["metrics"]


# Given scores


@pytest.mark.parametrize("threshold", [0.6456563116804368, 0.6456563062257954], ids=["float32's", "the decimal's"])
@pytest.mark.parametrize("target", [[1, 1, 0, 1, 1], [1.0, 1.0, 0.0, 1.0, 1.0]], ids=["integers", "floats"])
def test_a_logit_reaches_its_own_probability(target: list[float], threshold: float) -> None:
    """sigmoid(0.6), of 0.6 as float32 and as it was written."""
    found = metrics("bce_with_logits", {"prediction": [0.6, 1.4, -1, 1.2, 0.7], "target": target}, "f1", "tp",
                    threshold=threshold)  # fmt: skip
    assert found["f1"] == 1.0
    assert found["tp"] == 4


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=9),
    index=st.integers(0, 8),
    free=st.floats(0, 1),
    dtype=st.sampled_from(sorted(DTYPES)),
    data=st.data(),
)
def test_what_a_threshold_decides_depends_on_scores_alone(
    logits: list[float], index: int, free: float, dtype: str, data: st.DataObject
) -> None:
    """Not on the target's dtype, nor on weights, on strangers in the batch, on the place in it or the way taken."""
    prediction = torch.tensor(logits).to(DTYPES[dtype])
    threshold = float(expit(float(prediction[index % len(logits)]))) if data.draw(st.booleans()) else free
    target = torch.ones(len(logits))
    request = {"loss": {"name": "bce_with_logits"}, "outputs": ["metrics"],
               "metrics": {"names": ["tp"], "threshold": threshold}}  # fmt: skip
    found = set()
    for target_dtype in (torch.float32, torch.float64, torch.int64, torch.bool, DTYPES[dtype]):
        inputs = {"prediction": prediction, "target": target.to(target_dtype)}
        found.add(evaluating.alone(request, inputs).document["metrics"]["tp"])
    weighted = {"prediction": prediction, "target": target, "sample_weight": torch.ones(len(logits))}
    found.add(evaluating.alone(request, weighted).document["metrics"]["tp"])
    one = {"prediction": prediction, "target": target.to(prediction.dtype)}
    before = {"prediction": torch.randn(data.draw(st.integers(1, 70))).to(prediction.dtype)}
    before["target"] = torch.ones_like(before["prediction"])
    found.add(evaluating.together([request] * 2, [before, one])[1].document["metrics"]["tp"])
    found.add(sum(evaluating.alone(request, {n: t[i : i + 1] for n, t in one.items()}).document["metrics"]["tp"]
                  for i in range(len(logits))))  # fmt: skip
    assert len(found) == 1
    least = least_score(threshold, "logits", dtype)
    assert found == {int((prediction.double() >= least).sum())}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_decimal_reaches_itself(dtype: str) -> None:
    """In whatever dtype the probabilities come, the target in a wider one or not."""
    for decimal, target in itertools.product(range(11), (torch.float32, torch.float64, torch.int64)):
        prediction = torch.tensor([decimal / 10], dtype=torch.float64).to(DTYPES[dtype])
        inputs = {"prediction": prediction, "target": torch.ones(1, dtype=target)}
        assert metrics("bce", inputs, "tp", threshold=decimal / 10)["tp"] == 1, (decimal / 10, target)


def test_a_threshold_of_1_is_reached_where_the_probability_rounds_to_it() -> None:
    logits = np.array([16.0, 36.0, 36.7, 36.8, 40.0, 1e4, np.inf])
    found = metrics("bce_with_logits", {"prediction": logits, "target": np.ones(7)}, "tp", threshold=1.0)
    assert found["tp"] == (expit(logits) == 1).sum() == 4


@pytest.mark.parametrize(("threshold", "found"), [(0.0, 3), ({"score": -2.5}, 2), ({"score": 0}, 1), (1.0, 0)])
def test_a_threshold_may_be_a_score(threshold: Any, found: int) -> None:
    inputs = {"prediction": [-3.0, -2.5, 1.5], "target": [1, 1, 1]}
    assert metrics("bce_with_logits", inputs, "tp", threshold=threshold)["tp"] == found
    inputs["target"] = [1.0, 1.0, 1.0]
    assert metrics("bce_with_logits", inputs, "tp", threshold=threshold)["tp"] == found


@pytest.mark.parametrize(
    ("threshold", "words"),
    [
        (-0.5, r"in \[0, 1\], found -0.5; \{\"score\": -0.5\} compares the scores"),
        (1.0000000001, r"in \[0, 1\], found 1.0000000001"),
        ({"scores": 1.0}, r"a number or \{\"score\": number\}"),
        ({"score": None}, r"a number or \{\"score\": number\}"),
        ("0.5", r"a number or \{\"score\": number\}"),
        (True, r"a number or \{\"score\": number\}"),
    ],
)
def test_what_is_no_threshold_is_refused(threshold: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        metrics("bce_with_logits", {"prediction": [1.0], "target": [1]}, "tp", threshold=threshold)


def test_a_distance_is_no_score() -> None:
    with pytest.raises(InvalidRequest, match="a distance here"):
        metrics("hinge_embedding", {"prediction": [1.0], "target": [1]}, "tp", threshold={"score": 1.0})


# Thresholds in answers, sent back


def promised(task: str, request: dict[str, Any], **of_view: Any) -> float:
    """The highest F1 of a cut at any score: what best_threshold promises."""
    score = request["prediction"].astype(float) * (-1 if task == "distances" else 1)
    true = request["target"] >= 0.5 if task != "distances" else request["target"] > 0
    weight = request.get("sample_weight", np.ones(len(score)))
    of_cut = []
    for s in score:
        found = weight[score >= s].sum()
        of_cut.append(2 * weight[(score >= s) & true].sum() / (found + weight[true].sum()))
    return max(of_cut)


KINDS: dict[str, Any] = {
    "logits": lambda rng, n: rng.normal(size=n) * 3,
    "near 0": lambda rng, n: rng.normal(size=n) * 1e-12,
    "saturated": lambda rng, n: rng.normal(size=n) * 3 + rng.choice([-90, 22, 45, 1e4]),
    "neighbours": lambda rng, n: np.float32(rng.choice([0.3, 7, 20, 30])) * (1 + rng.integers(-3, 4, n) * 2.0**-23),
    "infinite": lambda rng, n: rng.choice([np.inf, 50, 1, -1, -800, -np.inf], size=n),
    "probability": lambda rng, n: rng.random(n) ** rng.choice([1, 9]),
    "log_probability": lambda rng, n: -(rng.random(n) ** rng.choice([1, 9, 90])) * rng.choice([1, 1e3]),
    "distances": lambda rng, n: rng.random(n) * rng.choice([1, 1e-6, 1e6]),
    "far distances": lambda rng, n: rng.choice([-np.inf, -0.9, -0.6, 0, 0.6, 0.9], size=n) * np.finfo(float).max,
    "decimals": lambda rng, n: rng.integers(0, 11, n) / 10,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_best_threshold_sent_back_keeps_its_promise(kind: str, dtype: Any) -> None:
    task = "distances" if "distances" in kind else "binary"
    activation = {"decimals": "probability", "distances": "real", "far distances": "real"}.get(
        kind, kind if "prob" in kind else "logits"
    )
    rng = np.random.default_rng(0)
    requests: dict[bool, list[Request]] = {False: [], True: []}
    for _ in range(100):
        n = int(rng.integers(1, 9))
        with np.errstate(under="ignore", over="ignore"):
            prediction = KINDS[kind](rng, n).astype(dtype)
        if dtype == np.float32 and kind == "far distances":
            prediction[prediction == np.inf] = np.finfo(np.float32).max  # nothing is below a threshold of infinity
        target = rng.choice([0.0, 1.0] if task == "binary" else [-1.0, 1.0], size=n)
        target[0] = 1
        request = {"prediction": prediction, "target": target}
        weighted = bool(rng.random() < 0.3)
        if weighted:
            request["sample_weight"] = rng.integers(1, 4, n).astype(float)
        requests[weighted].append(request)
    for sent in requests.values():
        for request, answer in zip(sent, measure(task, sent, ["best_threshold"], activation=activation), strict=True):
            best = answer["best_threshold"]
            (again,) = measure(task, [request], ["f1"], activation=activation, threshold=best)
            assert again["f1"] == pytest.approx(promised(task, request), abs=1e-12), (request, best)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", ["logits", "saturated", "near 0", "infinite", "neighbours"])
def test_every_point_of_a_curve_is_what_its_threshold_decides(kind: str, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    for _ in range(8):
        request = {"prediction": KINDS[kind](rng, 12).astype(dtype), "target": np.arange(12.0) % 2}
        (answer,) = measure("binary", [request], ["roc_curve", "pr_curve"])
        roc, pr = answer["roc_curve"], answer["pr_curve"]
        for name, curve in (("roc", roc), ("pr", pr)):
            thresholds = [str(t) for t in curve["thresholds"]]
            assert len(set(thresholds)) == len(thresholds), f"{name}: no threshold twice"
        for fpr, tpr, threshold in list(zip(roc["fpr"], roc["tpr"], roc["thresholds"], strict=True))[1:]:
            (cells,) = measure("binary", [request], ["tp", "fp"], threshold=threshold)
            assert (cells["fp"] / 6, cells["tp"] / 6) == (fpr, tpr)
        for precision, recall, threshold in zip(pr["precision"], pr["recall"], pr["thresholds"], strict=False):
            (cells,) = measure("binary", [request], ["tp", "fp"], threshold=threshold)
            assert (cells["tp"] / (cells["tp"] + cells["fp"]), cells["tp"] / 6) == (precision, recall)


@pytest.mark.parametrize("target", [[1, 0], [1.0, 0.0]], ids=["integers", "floats"])
def test_the_best_threshold_of_certain_logits_is_a_score(target: list[float]) -> None:
    inputs = {"prediction": [45.0, 40.0], "target": target}
    best = metrics("bce_with_logits", inputs, "best_threshold")["best_threshold"]
    assert best == {"score": 45.0}
    found = metrics("bce_with_logits", inputs, "tp", "fp", "f1", threshold=best)
    assert (found["tp"], found["fp"], found["f1"]) == (1, 0, 1.0)
    assert metrics("bce_with_logits", {"prediction": [45.0, 4.0], "target": target}, "best_threshold")[
        "best_threshold"
    ] == 1.0, "the probability will do where nothing else rounds to it"  # fmt: skip


def test_the_best_threshold_of_each_label_sent_back() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        prediction = torch.randn(12, 3, generator=generator) * torch.tensor([1.0, 9.0, 40.0])
        target = (torch.rand(12, 3, generator=generator) < 0.5).float()
        target[0] = 1
        multilabel = {"alone": "multilabel"}
        inputs = {"prediction": prediction, "target": target}
        best = metrics(None, inputs, "best_threshold", **multilabel)["best_threshold"]
        for k, threshold in enumerate(best["per_class"]):
            request = {"prediction": prediction[:, k].numpy(), "target": target[:, k].numpy()}
            f1 = metrics(None, inputs, "f1", threshold=threshold, **multilabel)["f1"]["per_class"][k]
            assert f1 == pytest.approx(promised("binary", request), abs=1e-12)
        pooled = {"prediction": prediction.numpy().ravel(), "target": target.numpy().ravel()}
        f1 = metrics(None, inputs, "f1", threshold=best["micro"], **multilabel)["f1"]["micro"]
        assert f1 == pytest.approx(promised("binary", pooled), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["alone", "weighted"])
@pytest.mark.parametrize("task", ["multilabel", "sets"])
def test_the_best_thresholds_of_all_labels_are_sent_back_as_a_list(
    task: str, weighted: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    for trailing in ((), (), (2,)) if task == "multilabel" else ((),) * 3:
        prediction = (torch.randn(16, 3, *trailing, generator=generator) * 30).to(dtype)
        target = (torch.rand(prediction.shape, generator=generator) < 0.4).long()
        target[0], target[:, 2] = 1, 0  # the last label has no positive, and no best threshold
        weight = torch.randint(1, 4, (16,), generator=generator).double() if weighted else torch.ones(16)
        inputs = {"prediction": prediction, "target": target if task == "multilabel" else as_sets(target)}
        inputs |= {"sample_weight": weight} if weighted else {}
        best = metrics(None, inputs, "best_threshold", alone=task)["best_threshold"]["per_class"]
        assert best[2] is None
        found = metrics(None, inputs, "f1", "tp", alone=task, threshold=best)
        for k in range(2):
            of_label = prediction[:, k].double().numpy().reshape(-1)
            request = {"prediction": of_label, "target": target[:, k].numpy().reshape(-1),
                       "sample_weight": weight.repeat_interleave(len(of_label) // 16).numpy()}  # fmt: skip
            assert found["f1"]["per_class"][k] == pytest.approx(promised("binary", request), abs=1e-12)
        assert found["tp"][2] == 0


def as_sets(target: torch.Tensor) -> torch.Tensor:
    """The indices of each row's labels, then -1."""
    rows = [row.nonzero().flatten().tolist() for row in target]
    return torch.tensor([row + [-1] * (target.shape[1] - len(row)) for row in rows])


@pytest.mark.parametrize("target", [torch.float32, torch.int64], ids=["compiled", "general"])
def test_each_label_is_decided_by_its_own_threshold(target: torch.dtype) -> None:
    logits = torch.tensor([[0.6, 0.6, 0.6, -1.0]]).repeat(2, 1)
    inputs = {"prediction": logits, "target": torch.ones(2, 4, dtype=target)}
    limits: list[Any] = [0.6456563116804368, 0.7, {"score": 0.6}, None]
    found = metrics("bce_with_logits", inputs, "tp", task="multilabel", threshold=limits)
    assert found["tp"] == [2, 0, 2, 0]


@pytest.mark.parametrize(
    ("task", "threshold", "words"),
    [
        ("multilabel", [0.5], "threshold is a list of 1 for 2 labels; send one for each label"),
        ("multilabel", [], r"a number or \{\"score\": number\}; several labels may have a list of one for each"),
        ("multilabel", [0.5, 1.5], r"in \[0, 1\], found 1.5"),
        ("multilabel", [0.5, [0.5]], "several labels may have a list of one for each"),
        ("binary", [0.5, 0.5], "the task binary has no labels: send one threshold"),
    ],
    ids=str,
)
def test_a_list_of_thresholds_has_one_for_each_label(task: str, threshold: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        metrics(None, {"prediction": [[1.0, 2.0]], "target": [[1, 0]]}, "tp", alone=task, threshold=threshold)
    assert refused.value.errors is not None
    assert refused.value.errors[0]["pointer"].startswith("/metrics/threshold")


@pytest.mark.parametrize("task", ["distances", "lsgan"])
def test_pairs_have_one_threshold(task: str) -> None:
    inputs = {"real": [1.0], "fake": [0.0]} if task == "lsgan" else {"prediction": [1.0], "target": [1]}
    with pytest.raises(InvalidRequest, match=f"the task {task} has no labels: send one threshold"):
        metrics(None, inputs, "f1", alone=task, threshold=[0.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("loss", ["contrastive", "cosine_embedding"])
def test_the_best_threshold_of_pairs_sent_back(loss: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 1e-3, 1.0, 100.0) * 4:
        first, second = (torch.randn(7, 2, generator=generator, dtype=torch.float64) for _ in range(2))
        second = first + scale * 1e-3 * second if scale == 100.0 else second
        similar = (torch.rand(7, generator=generator) < 0.6).long()
        similar[0] = 1
        inputs = {"first": (scale * first).to(dtype), "second": (scale * second).to(dtype),
                  "similar": similar if loss == "contrastive" else 2 * similar - 1}  # fmt: skip
        answer = metrics(loss, inputs, "best_threshold", "f1")
        found = metrics(loss, inputs, "f1", threshold=answer["best_threshold"])["f1"]
        a, b = (inputs[name].double().numpy() for name in ("first", "second"))
        if loss == "contrastive":
            distance = np.linalg.norm(a - b, axis=1)
        else:
            distance = 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        request = {"prediction": distance, "target": 2.0 * similar.numpy() - 1}
        assert found == pytest.approx(promised("distances", request), abs=1e-12)


def test_thresholds_of_least_squares_scores_are_scores() -> None:
    inputs = {"real": [-0.5, 1.7], "fake": [-1.0, -2.0]}
    best = metrics("lsgan_discriminator", inputs, "best_threshold")["best_threshold"]
    assert best == -0.5
    assert metrics("lsgan_discriminator", inputs, "f1", threshold=best)["f1"] == 1.0
    assert metrics("lsgan_generator", {"fake": [1.5, 1.7]}, "fooled", threshold=1.7)["fooled"] == 0.5


@given(score=st.floats(-800, 800), other=st.floats(-800, 800), dtype=st.sampled_from(["float32", "float64"]))
def test_a_threshold_between_two_scores_is_between_them(score: float, other: float, dtype: str) -> None:
    low, high = sorted(float(np.dtype(dtype).type(s)) for s in (score, other))
    if low < high:
        assert low < least_score(threshold_between(high, low, "logits", dtype), "logits", dtype) <= high


# What is computed: distances, bins, overlaps


@pytest.mark.parametrize(("threshold", "found"), [(0.7, 1), (0.6, 0), (None, 1)])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_distance_is_not_below_itself(dtype: str, threshold: float | None, found: int) -> None:
    inputs = {"prediction": torch.tensor([0.6, 0.7], dtype=torch.float64).to(DTYPES[dtype]), "target": [1, 1]}
    loss = {"name": "hinge_embedding", "margin": 1.4}
    assert metrics(loss, inputs, "tp", threshold=threshold)["tp"] == found


@pytest.mark.parametrize("k", range(1, 10))
def test_the_distance_of_embeddings_is_not_below_itself(k: int) -> None:
    """Of the legs 3 and 4 the distance is 5: equal to the threshold in decimals, above and below it in float32."""
    second = [[0.3 * k, 0.4 * k], [0.03 * k, 0.04 * k]]
    inputs = {"first": [[0.0, 0.0]] * 2, "second": second, "similar": [1, 1]}
    assert metrics("contrastive", inputs, "tp", threshold=0.5 * k)["tp"] == 1
    assert metrics({"name": "contrastive", "margin": 0.1 * k}, inputs, "tp")["tp"] == 0
    assert metrics("contrastive", inputs, "tp", threshold=0.05001 * k)["tp"] == 1


@pytest.mark.parametrize(("cosine", "sine"), [(0.6, 0.8), (0.8, 0.6), (0.28, 0.96), (0.96, 0.28)])
def test_the_cosine_distance_is_not_below_itself(cosine: float, sine: float) -> None:
    inputs = {"first": [[1.0, 0.0]], "second": [[cosine, sine]], "similar": [1]}
    assert metrics("cosine_embedding", inputs, "tp", threshold=1 - cosine)["tp"] == 0
    assert metrics({"name": "cosine_embedding", "margin": 2 * cosine - 1}, inputs, "tp")["tp"] == 0
    assert metrics("cosine_embedding", inputs, "tp", threshold=1.00001 - cosine)["tp"] == 1


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_ten_bins_hold_a_decile_each(dtype: str) -> None:
    prediction = (torch.arange(1, 11, dtype=torch.float64) / 10).to(DTYPES[dtype])
    for target in (torch.float32, torch.float64, torch.int64):
        inputs = {"prediction": prediction, "target": (torch.arange(10) > 3).to(target)}
        found = metrics("bce", inputs, "reliability", "ece", bins=10)
        assert found["reliability"]["count"] == [1] * 10
        # Mean |p - y|: (0.1 + 0.2 + 0.3 + 0.4 + 0.5 + 0.4 + 0.3 + 0.2 + 0.1 + 0) / 10.
        assert found["ece"] == pytest.approx(0.25, abs=4 * float(torch.finfo(DTYPES[dtype]).eps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bins", [3, 7, 10, 15, 20])
def test_logits_of_the_edges_are_in_the_bin_below(bins: int, dtype: torch.dtype) -> None:
    p = torch.arange(1, bins, dtype=torch.float64) / bins
    inputs = {"prediction": (p / (1 - p)).log().to(dtype), "target": torch.ones(bins - 1, dtype=torch.int64)}
    found = metrics("bce_with_logits", inputs, "reliability", bins=bins)["reliability"]["count"]
    assert found == [1] * (bins - 1) + [0]
    both = torch.stack([torch.zeros(bins - 1, dtype=dtype), inputs["prediction"]], 1)
    found = metrics("cross_entropy", {**inputs, "prediction": both}, "reliability", bins=bins)["reliability"]["count"]
    upper = [1 if 2 * k >= bins else 0 for k in range(1, bins)] + [0]  # of the class that is predicted
    lower = [1 if 2 * k > bins else 0 for k in range(1, bins)] + [0]
    assert found == [u + w for u, w in zip(upper, lower, strict=True)]


@pytest.mark.parametrize("percent", range(50, 100, 5))
def test_an_overlap_reaches_itself(percent: int) -> None:
    """The target's lower part, of widths and places that are no binary fractions; in each form of boxes."""
    for form in ("xyxy", "xywh", "cxcywh"):
        assert_reached(percent, form)


def assert_reached(percent: int, form: str) -> None:
    boxes = []
    for left, low, width, height in [(0, 0, 1, 1), (0.1, 0.1, 0.8, 0.8), (0.3, 0.2, 0.1, 0.2), (10.1, 3.7, 5.3, 7.9)]:
        for part in (percent / 100, 1):
            h = height * part
            boxes.append({"xyxy": [left, low, left + width, low + h], "xywh": [left, low, width, h],
                          "cxcywh": [left + width / 2, low + h / 2, width, h]}[form])  # fmt: skip
    for dtype in (torch.float32, torch.float64):
        inputs = {"prediction": torch.tensor(boxes[::2], dtype=dtype), "target": torch.tensor(boxes[1::2], dtype=dtype)}
        loss = {"name": "iou", "format": form}
        found = metrics(loss, inputs, "f1", "per_threshold", iou_threshold=percent / 100)
        assert found["f1"] == 1.0, form
        reached = dict(zip(found["per_threshold"]["iou_threshold"], found["per_threshold"]["f1"], strict=True))
        assert reached == {t / 100: float(t <= percent) for t in range(50, 100, 5)}, form


def test_an_overlap_that_is_less_is_less() -> None:
    """Whole coordinates are exact: 8999 of 10 000 parts are not nine tenths."""
    inputs = {"prediction": [[0.0, 0, 8999, 1]], "target": [[0.0, 0, 10000, 1]]}
    assert metrics("iou", inputs, "f1", iou_threshold=0.9)["f1"] == 0.0
    assert metrics("iou", inputs, "f1", iou_threshold=0.8999)["f1"] == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_what_is_as_hard_as_the_progress_is_kept(dtype: torch.dtype) -> None:
    inputs = {"prediction": torch.arange(1.0, 11), "target": torch.zeros(10),
              "difficulty": (torch.arange(1, 11, dtype=torch.float64) / 10).to(dtype)}  # fmt: skip
    for kept in range(1, 11):
        loss = {"name": "curriculum", "loss": {"name": "mse"}, "progress": kept / 10}
        answer = evaluating.alone({"loss": loss, "outputs": ["loss"]}, inputs)
        assert answer.denominator == kept
        assert answer.loss == pytest.approx(sum(n * n for n in range(1, kept + 1)) / kept)


@pytest.mark.parametrize("parameters", [{}, {"p": 1.0}, {"squared": True}, {"swap": True}, {"eps": 0.0}])
def test_what_has_no_loss_is_satisfied_and_nothing_else(parameters: dict[str, Any]) -> None:
    """Decimals whose distances differ by the margin exactly, so that rounding decides what the loss is."""
    rng = np.random.default_rng(0)
    inputs = {name: torch.from_numpy(rng.integers(-9, 10, (300, 1)) / 10).float()
              for name in ("anchor", "positive", "negative")}  # fmt: skip
    for margin in (0.0, 0.1, 0.3, 0.7):
        loss = {"name": "triplet", "margin": margin, "reduction": "none", **parameters}
        answer = evaluating.alone({"loss": loss, "outputs": ["loss", "metrics"]}, inputs)
        assert answer.document["metrics"]["satisfied"] == float((answer.loss == 0).double().mean())
    ordered = {"first": inputs["anchor"], "second": inputs["positive"], "target": inputs["negative"].sign() + 0.5}
    ordered["target"] = ordered["target"].sign()
    for margin in (0.0, 0.1, 0.3, 0.7):
        loss = {"name": "margin_ranking", "margin": margin, "reduction": "none"}
        answer = evaluating.alone({"loss": loss, "outputs": ["loss", "metrics"]}, ordered)
        assert answer.document["metrics"]["satisfied"] == float((answer.loss == 0).double().mean())


def test_margins_that_differ_in_a_batch_are_each_their_requests_own() -> None:
    inputs = {"anchor": torch.zeros(9, 1), "positive": torch.full((9, 1), 0.1),
              "negative": torch.arange(2, 11).unsqueeze(1) / 10}  # fmt: skip
    losses = [{"name": "triplet", "margin": m, "eps": 0.0, "reduction": "none"} for m in (0.1, 0.3, 0.7)]
    requests = [{"loss": loss, "outputs": ["loss", "metrics"]} for loss in losses]
    together = evaluating.together(requests, [inputs] * 3)
    for request, answer in zip(requests, together, strict=True):
        assert answer.document["metrics"]["satisfied"] == float((answer.loss == 0).double().mean())
        alone = evaluating.alone(request, inputs)
        assert answer.document["metrics"] == alone.document["metrics"]


@pytest.mark.parametrize(("spread", "active"), [(0.1, 0), (0.2, 1), (0.10001, 1)])
def test_a_unit_that_varies_by_a_hundredth_is_not_active(spread: float, active: int) -> None:
    inputs = {"prediction": [[0.5], [0.5]], "target": [[0.0], [1.0]], "mean": [[spread], [-spread]],
              "log_variance": [[0.0], [0.0]]}  # fmt: skip
    assert metrics("vae", inputs, "active_units")["active_units"] == active


# Positions


@pytest.mark.parametrize("activation", ["logits", "log_probability"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_probability_is_the_same_wherever_its_score_stands(activation: str, dtype: torch.dtype) -> None:
    """torch's sigmoid gives other last bits at a tensor's end than in its body."""
    scores = torch.randn(1003, generator=torch.Generator().manual_seed(0), dtype=dtype).mul_(9)
    scores = scores if activation == "logits" else -scores.abs()
    of_all = probabilities(scores, activation)
    assert torch.equal(of_all, torch.cat([probabilities(one, activation) for one in scores.split(1)]))
    expected = expit(scores.double().numpy()) if activation == "logits" else np.exp(scores.double().numpy())
    np.testing.assert_allclose(of_all.numpy(), expected, rtol=1e-15)
