"""0/0: null and named, or what ``zero_division`` says; and which classes averages leave out."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from sklearn import metrics as sk

from lossd import metrics
from lossd.compiled import averages
from lossd.request.planning import make_plan
from lossd_client.errors import InvalidRequest
from metrics.measuring import alike, measure

# Class 0 found twice and taken for 1 once; 1 present and found; 2 present, never predicted; 3 predicted, never
# present; 4 in neither.
TRUE = np.array([0, 0, 0, 1, 2, 1])
SAID = np.array([0, 0, 1, 1, 3, 1])
REQUEST = {"prediction": np.eye(5, dtype=np.float32)[SAID], "target": TRUE}
SCORES = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}


def test_what_is_undefined_is_null_and_named():
    (answer,) = measure("multiclass", [REQUEST])
    assert answer["precision"]["per_class"] == [1.0, pytest.approx(2 / 3), None, 0.0, None]
    assert answer["recall"]["per_class"] == [pytest.approx(2 / 3), 1.0, 0.0, None, None]
    assert answer["f1"]["per_class"][2:] == [0.0, 0.0, None]
    assert answer["undefined"] == {"precision": [2, 4], "recall": [3, 4], "f1": [4], "iou": [4]}


def test_with_null_a_class_never_predicted_is_out_of_macro_precision():
    (answer,) = measure("multiclass", [REQUEST])
    assert answer["precision"]["macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert answer["precision"]["macro"] == pytest.approx(
        sk.precision_score(TRUE, SAID, average="macro", zero_division=np.nan)
    )


@pytest.mark.parametrize("zero_division", [0, 1])
@pytest.mark.parametrize("name", SCORES)
def test_with_0_or_1_it_counts_as_that_and_a_class_in_neither_is_left_out_still(name, zero_division):
    (answer,) = measure("multiclass", [REQUEST], [name], zero_division=zero_division)
    for average in ("macro", "micro", "weighted"):
        expected = SCORES[name](TRUE, SAID, average=average, zero_division=zero_division)
        assert answer[name][average] == pytest.approx(expected), average
    per_class = SCORES[name](TRUE, SAID, average=None, labels=range(5), zero_division=zero_division)
    assert answer[name]["per_class"] == pytest.approx(per_class)


# Labels 0 and 1 are there and found at times, 2 is in neither, 3 is never predicted, 4 never there.
LABELS = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [1, 0, 0, 1, 0], [0, 1, 0, 0, 0]])
FOUND = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 1], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]])
OF_LABELS = {
    **SCORES,
    "f_beta": partial(sk.fbeta_score, beta=0.5),
    "iou": sk.jaccard_score,
}


def request_of_labels(task: str, weight: list[float] | None) -> dict[str, np.ndarray]:
    target = LABELS
    if task == "sets":
        target = np.array([[*np.flatnonzero(row), *[-1] * int((row == 0).sum())] for row in LABELS])
    request = {"prediction": FOUND * 2.0 - 1, "target": target}
    return request if weight is None else {**request, "sample_weight": np.array(weight)}


@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 1.0, 0.25]], ids=["plain", "weighted"])
@pytest.mark.parametrize("zero_division", [None, 0, 1])
@pytest.mark.parametrize("name", OF_LABELS)
def test_averages_of_labels_hold_those_in_neither(name, zero_division, weight):
    """As scikit-learn's: a label is there, whether any sample has it or not. In steps and compiled."""
    substitute = np.nan if zero_division is None else zero_division
    common = {"y_true": LABELS, "y_pred": FOUND, "sample_weight": weight}
    if name == "iou" and zero_division is None:  # scikit-learn's Jaccard index knows no NaN
        per_class = sk.jaccard_score(**common, average=None, zero_division=0)
        per_class[2] = np.nan
        support = (LABELS * (np.ones(4) if weight is None else np.array(weight))[:, None]).sum(0)
        kept = ~np.isnan(per_class)
        expected = {
            "macro": np.nanmean(per_class),
            "micro": sk.jaccard_score(**common, average="micro"),
            "weighted": np.average(per_class[kept], weights=support[kept]),
        }
    else:
        score = partial(OF_LABELS[name], **common, zero_division=substitute)
        expected = {average: score(average=average) for average in ("macro", "micro", "weighted")}
        per_class = score(average=None)
    expected["per_class"] = [None if np.isnan(value) else value for value in per_class]
    for task in ("multilabel", "sets"):
        for kernels in ({}, {"rates": averages.rates}):
            request = request_of_labels(task, weight)
            (answer,) = measure(task, [request], [name], zero_division=zero_division, beta=0.5, kernels=kernels)
            alike(answer[name], expected, place=f"{task}, {list(kernels)}")


@pytest.mark.parametrize("zero_division", [None, 0, 1])
@pytest.mark.parametrize("name", ["specificity", "balanced_accuracy", "mcc"])
def test_the_macro_average_of_labels_is_the_mean_of_what_is_shown(name, zero_division):
    (answer,) = measure("multilabel", [request_of_labels("multilabel", None)], [name], zero_division=zero_division)
    shown = [value for value in answer[name]["per_class"] if value is not None]
    assert answer[name]["macro"] == pytest.approx(np.mean(shown))
    assert len(shown) == 5 or zero_division is None


@pytest.mark.parametrize("kernels", [{}, {"rates": averages.rates}], ids=["in steps", "compiled"])
@pytest.mark.parametrize(("zero_division", "expected"), [(0, 0.4889), (1, 0.8222), (None, 0.7333)])
def test_a_label_in_neither_counts_as_zero_division(zero_division, expected, kernels):
    """F1 of the labels: 4/5, 2/3 and 0/0."""
    request = {
        "prediction": np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]]) * 2.0 - 1,
        "target": np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0]]),
    }
    (answer,) = measure("multilabel", [request], ["f1"], zero_division=zero_division, kernels=kernels)
    assert answer["f1"]["macro"] == pytest.approx(expected, abs=1e-4)
    assert answer["undefined"] == {"f1": [2]}


def test_what_counts_as_a_number_is_named_all_the_same():
    (answer,) = measure("multiclass", [REQUEST], ["precision"], zero_division=1)
    assert answer["undefined"] == {"precision": [2, 4]}


def test_nothing_undefined_leaves_no_field():
    request = {"prediction": np.eye(3, dtype=np.float32), "target": np.arange(3)}
    (answer,) = measure("multiclass", [request])
    assert "undefined" not in answer


def test_undefined_belongs_to_its_own_request():
    whole = {"prediction": np.eye(5, dtype=np.float32), "target": np.arange(5)}
    answers = measure("multiclass", [whole, REQUEST, whole], ["precision"])
    assert ["undefined" in answer for answer in answers] == [False, True, False]


def test_a_binary_metric_names_the_positive_class():
    request = {"prediction": np.array([-1.0, -2.0, -3.0]), "target": np.array([0.0, 0.0, 0.0])}
    (answer,) = measure("binary", [request])
    assert answer["undefined"] == {name: [1] for name in ("precision", "recall", "f1", "iou")}
    assert [answer[name] for name in ("precision", "recall", "specificity", "accuracy", "tn")] == [None, None, 1, 1, 3]


@pytest.mark.parametrize("zero_division", [0, 1])
def test_a_binary_metric_with_zero_division(zero_division):
    request = {"prediction": np.array([-1.0, -2.0]), "target": np.array([0.0, 0.0])}
    (answer,) = measure("binary", [request], ["precision", "mcc"], zero_division=zero_division)
    assert answer["precision"] == answer["mcc"] == float(zero_division)
    assert isinstance(answer["precision"], float)


def test_a_number_of_no_class_is_named_without_one():
    request = {"prediction": np.array([1.0, 2.0]), "target": np.array([3.0, 3.0])}
    (answer,) = measure("regression", [request], activation="real")
    assert answer["r2"] is None
    assert answer["undefined"] == {"r2": []}


def test_a_target_that_is_constant_but_for_rounding_of_its_mean_is_constant():
    request = {"prediction": np.random.default_rng(0).normal(size=3), "target": np.full(3, 0.1)}
    assert np.var(request["target"]) > 0, "or the test tests nothing"
    (answer,) = measure("regression", [request], ["r2", "pearson", "explained_variance"], activation="real")
    assert [answer[name] for name in ("r2", "pearson", "explained_variance")] == [None] * 3


def test_weighted_counts_of_one_class_make_nothing_of_rounding():
    """Sums of weights in different orders differ in the last bit; what is 0/0 must be found by other means."""
    rng = np.random.default_rng(1)
    n = 1001
    request = {
        "prediction": np.eye(3, dtype=np.float32)[np.full(n, 1)],
        "target": rng.integers(0, 3, n),
        "sample_weight": rng.random(n),
    }
    one = {**request, "target": np.full(n, 1)}
    for constant in (request, one):
        (answer,) = measure("multiclass", [constant], ["mcc"])
        assert answer["mcc"] is None
    (answer,) = measure("multiclass", [one], ["cohen_kappa", "specificity", "fp", "fn"])
    assert answer["cohen_kappa"] is None
    assert answer["specificity"]["per_class"] == [1.0, None, 1.0]
    assert answer["fp"] == answer["fn"] == [0.0, 0.0, 0.0]


def test_a_task_refuses_a_threshold_that_is_no_probability():
    with pytest.raises(InvalidRequest, match=r"threshold is a probability here, in \[0, 1\], found 50"):
        make_plan({"task": "binary", "metrics": {"threshold": 50.0}})


def test_an_unknown_metric_is_answered_with_the_nearest():
    with pytest.raises(InvalidRequest, match="did you mean precision"):
        metrics.resolve("binary", ["percision"])


def test_default_stands_for_the_defaults_among_others():
    names = metrics.resolve("binary", ["auroc", "default", "f1"])
    assert names == ("auroc", *metrics.resolve("binary", None))
