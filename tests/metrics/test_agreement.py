"""Agreement beyond chance: weighted kappas, and samples that weigh next to nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn import metrics as sk

from metrics.measuring import Array, measure


def drawn(n: int, classes: int, seed: int = 0) -> dict[str, Array]:
    """Predictions that are near the target more often than not."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, n)
    prediction = np.clip(target + rng.integers(-2, 3, n), 0, classes - 1)
    return {"prediction": np.eye(classes, dtype=np.float32)[prediction], "target": target}


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "classes"), [(60, 5), (40, 2), (500, 300), (6, 5)])
def test_kappa_equals_scikit_learns_with_each_of_its_weights(n, classes, weighted, weights):
    requests = [drawn(n, classes, seed) for seed in (0, 1)]
    if weighted:
        requests = [{**r, "sample_weight": np.random.default_rng(2).random(n) + 0.1} for r in requests]
    for request, answer in zip(
        requests, measure("multiclass", requests, ["cohen_kappa"], weights=weights), strict=True
    ):
        expected = sk.cohen_kappa_score(
            request["target"], request["prediction"].argmax(1), labels=range(classes),
            weights=None if weights == "none" else weights, sample_weight=request.get("sample_weight"),
        )  # fmt: skip
        assert answer["cohen_kappa"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_kappa_leaves_ignored_targets_out(weights):
    request = drawn(50, 4)
    ignoring = {**request, "target": np.where(np.arange(50) % 3 == 0, 255, request["target"])}
    kept = {name: value[np.arange(50) % 3 != 0] for name, value in request.items()}
    options = {"names": ["cohen_kappa"], "weights": weights}
    assert measure("multiclass", [ignoring], ignore_index=255, **options) == measure("multiclass", [kept], **options)


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
@pytest.mark.parametrize("name", ["mcc", "cohen_kappa"])
def test_what_weighs_next_to_nothing_is_not_lost(name, weights):
    """All right, the second class by samples that vanish in a sum with the first's."""
    request = {
        "prediction": np.eye(3)[[0, 0, 1, 1]],
        "target": np.array([0, 0, 1, 1]),
        "sample_weight": np.array([1.0, 1.0, 1e-20, 1e-20]),
    }
    (answer,) = measure("multiclass", [request], [name], weights=weights)
    assert answer[name] == pytest.approx(1)
    binary = {**request, "prediction": np.array([-1.0, -1, 1, 1])}
    (answer,) = measure("binary", [binary], [name])
    assert answer[name] == pytest.approx(1)


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_one_class_alone_on_both_sides_has_no_kappa(weights):
    request = {"prediction": np.eye(3)[[1, 1]], "target": np.array([1, 1])}
    (answer,) = measure("multiclass", [request], ["cohen_kappa"], weights=weights)
    assert answer == {"task": "multiclass", "cohen_kappa": None, "undefined": {"cohen_kappa": []}}


def test_binary_kappa_is_that_of_two_classes():
    for cells in itertools.product((0, 1, 4), repeat=4):
        if not any(cells):
            continue
        tn, fp, fn, tp = cells
        target = np.repeat([0, 0, 1, 1], [tn, fp, fn, tp])
        prediction = np.repeat([0, 1, 0, 1], [tn, fp, fn, tp])
        (one,) = measure("binary", [{"prediction": prediction * 2.0 - 1, "target": target}], ["cohen_kappa"])
        (two,) = measure("multiclass", [{"prediction": np.eye(2)[prediction], "target": target}], ["cohen_kappa"])
        assert one["cohen_kappa"] == pytest.approx(two["cohen_kappa"])


@pytest.mark.parametrize("beta", [1e-200, 1e200])
def test_f_beta_of_any_beta_is_between_precision_and_recall(beta):
    request = drawn(40, 4)
    (answer,) = measure("multiclass", [request], ["f_beta", "precision", "recall"], beta=beta)
    assert answer["f_beta"] == answer["precision" if beta < 1 else "recall"]


def test_decisions_are_laid_out_as_scikit_learn_does():
    target, prediction = np.array([0, 1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0, 0])
    (answer,) = measure("binary", [{"prediction": prediction * 2.0 - 1, "target": target}], ["confusion_matrix"])
    assert answer["confusion_matrix"] == [[3, 1], [1, 2]] == sk.confusion_matrix(target, prediction).tolist()
