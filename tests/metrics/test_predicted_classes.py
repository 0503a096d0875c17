"""Predicted classes in place of scores: what they score, which metrics refuse them, and what else is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

import evaluating
import lossd
from lossd.metrics import METRICS, TASKS
from lossd.request.planning import make_plan
from lossd.runs.measuring import entries_of
from lossd_client.errors import InvalidRequest, Problem
from metrics.measuring import Array, alike

CLASSES, IGNORED = 4, 255
TASK_NAMES = ("multiclass", "segmentation")
INTEGERS = ("uint8", "int8", "int32", "int64", "uint64")


def from_scores(task: str) -> list[str]:
    """The metrics of a task that need scores."""
    return [name for name, entry in METRICS[task].items() if not TASKS[task].of_scores.isdisjoint(entry.reads or ())]


def from_classes(task: str) -> list[str]:
    return [name for name in METRICS[task] if name not in from_scores(task)]


def drawn(*shape: int, seed: int = 0, weighted: bool = False, ignoring: bool = False) -> dict[str, Array]:
    """Predictions that are right more often than not; where no target counts, anything."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, CLASSES, shape)
    prediction = np.where(rng.random(shape) < 0.4, rng.integers(0, CLASSES, shape), target)
    if ignoring:
        ignored = rng.random(shape) < 0.3
        target[ignored] = IGNORED
        prediction[ignored] = rng.choice([0, 3, 77, IGNORED], ignored.sum())
    weights = {"sample_weight": rng.integers(0, 4, shape[0]) * 0.75} if weighted else {}
    return {"prediction": prediction, "target": target, **weights}


def scored(task: str, inputs: Mapping[str, Any], names: list[str] | None = None, **options: Any) -> Any:
    metrics = {"classes": CLASSES, **({} if names is None else {"names": names}), **options}
    return lossd.evaluate(task=task, inputs=inputs, metrics=metrics).metrics


def refusal_of(**request: Any) -> str:
    with pytest.raises(Problem) as refused:
        lossd.evaluate(**request)
    return str(refused.value)


@pytest.mark.parametrize("shape", [(300,), (5, 8, 9), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignoring", [False, True])
def test_they_score_what_scikit_learn_says(shape: tuple[int, ...], weighted: bool, ignoring: bool) -> None:
    inputs = drawn(*shape, weighted=weighted, ignoring=ignoring)
    options = {"ignore_index": IGNORED} if ignoring else {}
    names = ["accuracy", "precision", "recall", "f1", "iou", "f_beta", "mcc", "cohen_kappa", "balanced_accuracy"]
    found = scored("segmentation", inputs, [*names, "confusion_matrix", "support"], beta=2.0, **options)
    kept = inputs["target"].ravel() != IGNORED
    true, predicted = inputs["target"].ravel()[kept], inputs["prediction"].ravel()[kept]
    weight = np.repeat(inputs.get("sample_weight", np.ones(shape[0])), np.prod(shape[1:], dtype=int))[kept]
    known = {"labels": range(CLASSES), "sample_weight": weight}

    def near(value: Any) -> Any:
        return pytest.approx(value, rel=1e-12, abs=1e-12)

    assert found.accuracy == near(sk.accuracy_score(true, predicted, sample_weight=weight))
    assert found.mcc == near(sk.matthews_corrcoef(true, predicted, sample_weight=weight))
    assert found.cohen_kappa == near(sk.cohen_kappa_score(true, predicted, **known))
    assert found.balanced_accuracy == near(sk.balanced_accuracy_score(true, predicted, sample_weight=weight))
    assert np.array(found.confusion_matrix) == near(sk.confusion_matrix(true, predicted, **known))
    for name, function, more in (
        ("precision", sk.precision_score, {}),
        ("recall", sk.recall_score, {}),
        ("f1", sk.f1_score, {}),
        ("iou", sk.jaccard_score, {}),
        ("f_beta", sk.fbeta_score, {"beta": 2.0}),
    ):
        for average in ("macro", "micro", "weighted"):
            expected = function(true, predicted, average=average, **known, **more)
            assert getattr(found, name)[average] == near(expected), (name, average)
        assert found[name].per_class == near(function(true, predicted, average=None, **known, **more).tolist())
    assert found.support == near([weight[true == k].sum() for k in range(CLASSES)])


@pytest.mark.parametrize("task", TASK_NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_each_metric_of_decisions_is_that_of_one_hot_scores(task: str, weighted: bool) -> None:
    inputs = drawn(3, 9, 7, weighted=weighted)
    one_hot = np.moveaxis(np.eye(CLASSES)[inputs["prediction"]], -1, 1)
    names = from_classes(task)
    expected = lossd.evaluate(task=task, inputs={**inputs, "prediction": one_hot}, metrics={"names": names}).metrics
    assert scored(task, inputs, names) == expected


@pytest.mark.parametrize("dtype", INTEGERS)
def test_any_integers_are_classes(dtype: str) -> None:
    inputs = drawn(50)
    sent = {name: array.astype(dtype) for name, array in inputs.items()}
    assert scored("multiclass", sent) == scored("multiclass", inputs)
    two = {name: array > 1 for name, array in inputs.items()}
    assert scored("multiclass", two, classes=2).accuracy == np.mean(two["prediction"] == two["target"])


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_metric_either_takes_predicted_classes_or_is_refused_by_its_name(task: str) -> None:
    inputs = drawn(4, 6, 6)
    for name in METRICS[task]:
        if name in from_classes(task):
            assert name in scored(task, inputs, [name])
        else:
            with pytest.raises(InvalidRequest, match="cannot be computed from predicted classes") as refused:
                scored(task, inputs, ["accuracy", name])
            assert str(refused.value).startswith(name)
            assert [fault["pointer"] for fault in refused.value.errors] == ["/metrics/names/1"]
    assert {"auroc", "average_precision", "log_loss", "brier", "ece", "top_k_accuracy"} <= set(from_scores(task))
    assert set(METRICS[task]) >= {n for n, entry in METRICS[task].items() if entry.default} <= set(from_classes(task))


def test_the_documentation_names_the_metrics_that_need_scores() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    _, _, after = text.partition("These metrics need scores, and are refused: ")
    named = re.findall(r"`(\w+)`", after.partition(".")[0])
    assert sorted(named) == sorted({name for task in TASK_NAMES for name in from_scores(task)})


def test_only_tasks_of_classes_take_the_option() -> None:
    numbers = {"prediction": np.zeros(3), "target": np.zeros(3)}
    for task in ("binary", "regression"):
        assert "metrics.classes is for the tasks multiclass and segmentation" in refusal_of(
            task=task, **numbers, metrics={"classes": 2}
        )


def test_a_class_out_of_range_is_refused_with_its_place() -> None:
    inputs = drawn(3, 4)
    for wrong in (CLASSES, -1, 2**40):
        prediction = inputs["prediction"].copy()
        prediction[1, 2] = wrong
        refusal = refusal_of(
            task="multiclass", prediction=prediction, target=inputs["target"], metrics={"classes": CLASSES}
        )
        assert f"class {wrong} at prediction[1, 2] is out of range: classes 0 to 3 expected" in refusal
    target = np.where(inputs["target"] == 0, IGNORED, inputs["target"])
    outside = np.where(target == IGNORED, 0, IGNORED)  # ignored is the target, and not what is predicted
    assert f"class {IGNORED} at prediction" in refusal_of(
        task="multiclass", prediction=outside, target=target, metrics={"classes": CLASSES, "ignore_index": IGNORED}
    )
    assert "classes 0 to 2 expected, as many as metrics.classes says" in refusal_of(
        task="multiclass", **{**inputs, "prediction": np.zeros((3, 4), int)}, metrics={"classes": 3}
    )


def test_scores_where_classes_are_announced_are_refused() -> None:
    inputs = drawn(3, 4)
    scores = np.moveaxis(np.eye(CLASSES)[inputs["prediction"]], -1, 1)
    options = {"classes": CLASSES}
    for prediction in (scores, scores.astype(int), inputs["prediction"].astype(float)):
        refusal = refusal_of(task="multiclass", prediction=prediction, target=inputs["target"], metrics=options)
        assert "leave out metrics.classes if it holds a score for each class" in refusal
    refusal = refusal_of(
        task="multiclass", prediction=inputs["prediction"], target=inputs["target"][:2], metrics=options
    )
    assert "target has shape (2, 4), expected (3, 4)" in refusal
    assert "leave out" not in refusal


def test_a_map_of_two_classes_is_not_taken_for_scores() -> None:
    """Its integers have the shape of a one-hot target, of which a pixel row would be the classes."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (2, 8, 8))
    request = {"task": "segmentation", "prediction": 1 - target, "target": target}
    assert "ones in target[0, :, 0]; for predicted classes, set metrics.classes" in refusal_of(**request)
    assert lossd.evaluate(**request, metrics={"classes": 2}).metrics.accuracy == 0
    one_hot = np.eye(3, dtype=int)[[0, 2, 1]]
    answer = lossd.evaluate(task="multiclass", prediction=one_hot, target=one_hot, metrics="accuracy")
    assert answer.metrics.accuracy == 1
    dropped = np.where(np.arange(3)[:, None] == 1, 0, one_hot)
    weights = {"sample_weight": np.array([1.0, 0, 1])}
    answer = lossd.evaluate(task="multiclass", prediction=one_hot, target=dropped, inputs=weights, metrics="accuracy")
    assert answer.metrics.accuracy == 1


def test_boundaries_need_images() -> None:
    assert "a prediction of the shape (N, H, W), found (50,)" in refusal_of(
        task="segmentation", **drawn(50), metrics={"classes": CLASSES, "names": ["boundary_iou"]}
    )


def test_a_request_among_strangers_is_answered_as_alone() -> None:
    request = {"task": "segmentation", "metrics": {"names": from_classes("segmentation"), "classes": CLASSES}}
    batch = [drawn(rows, 6, 5, seed=rows, weighted=True) for rows in (1, 7, 3)]
    batch[1]["prediction"][4, 0, 0], batch[1]["sample_weight"][4] = CLASSES, 1
    tensors = [{name: torch.from_numpy(array) for name, array in inputs.items()} for inputs in batch]
    answers = evaluating.together([{**request, "outputs": ["metrics"]}] * 3, tensors)
    for position in (0, 2):
        answer = answers[position]
        assert isinstance(answer, evaluating.Evaluated)
        lone = evaluating.alone({**request, "outputs": ["metrics"]}, tensors[position])
        alike(answer.document["metrics"], lone.document["metrics"], within=1e-12)
    assert isinstance(answers[1], Problem)
    assert f"class {CLASSES} at prediction[4, 0, 0]" in str(answers[1])


@pytest.mark.parametrize("ignoring", [False, True])
def test_a_run_of_them_is_one_evaluation_however_it_is_split(ignoring: bool) -> None:
    inputs = drawn(60, 6, 5, ignoring=ignoring)
    metrics: dict[str, Any] = {"names": from_classes("segmentation"), "classes": CLASSES}
    if ignoring:
        metrics["ignore_index"] = IGNORED
    whole = lossd.Run(task="segmentation", metrics=metrics, identity="position", rows=60)
    whole.add(**inputs, first=0)
    parts = lossd.Run(task="segmentation", metrics=metrics, identity="position", rows=60)
    for first, last in ((37, 60), (0, 5), (5, 37)):
        parts.add(**{name: array[first:last] for name, array in inputs.items()}, first=first)
    assert parts.state() == whole.state()
    result = parts.result()
    alike(result.to_dict()["metrics"], lossd.evaluate(task="segmentation", **inputs, metrics=metrics).metrics)
    assert not set(result.readable) & set(from_scores("segmentation"))
    layout = {name: ("int64", array.shape) for name, array in inputs.items()}
    recipe = make_plan({"task": "segmentation", "metrics": metrics}).job(layout).recipe
    assert entries_of(recipe, 60, inputs) == np.count_nonzero(inputs["target"] != IGNORED)


def test_a_run_of_them_compares_with_a_run_of_scores() -> None:
    inputs = drawn(80)
    scores = lossd.Run(task="multiclass", metrics=["accuracy", "f1"], identity="position", rows=80)
    scores.add(np.eye(CLASSES)[inputs["prediction"]], inputs["target"], first=0)
    classes = lossd.Run(
        task="multiclass", metrics={"names": ["accuracy", "f1"], "classes": CLASSES}, identity="position", rows=80
    )
    classes.add(**inputs, first=0)
    (found,) = scores.compare(classes).comparisons
    assert {name: each.difference for name, each in found.metrics.items()} == dict.fromkeys(found.metrics, 0.0)
    assert {"accuracy", "f1.macro"} <= set(found.metrics)
    with pytest.raises(InvalidRequest, match="cannot be computed from predicted classes"):
        lossd.Run(task="multiclass", metrics={"names": ["auroc"], "classes": CLASSES})


def test_many_classes_count_for_what_they_take() -> None:
    layout = {"prediction": ("int64", (2,)), "target": ("int64", (2,))}
    few, many = (
        make_plan({"task": "multiclass", "metrics": {"names": ["accuracy"], "classes": classes}}).job(layout)
        for classes in (4, 1 << 18)
    )
    assert few.held_bytes < 4096
    assert many.held_bytes > (1 << 18) * 100  # four ratios of each class and what they are made of
