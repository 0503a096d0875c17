"""Yes-or-no decisions: thresholds, soft targets, labels and what does not count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit

from lossd.metrics import ranking
from lossd_client.errors import InvalidRequest
from metrics.measuring import alike, measure


@settings(max_examples=40)
@given(
    probability=st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=12),
    threshold=st.integers(0, 20).map(lambda n: n / 20),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_a_threshold_includes_its_value(probability, threshold, dtype):
    prediction = np.array(probability, dtype)
    request = {"prediction": prediction, "target": np.ones(len(probability))}
    (answer,) = measure("binary", [request], ["tp"], activation="probability", threshold=threshold)
    assert answer["tp"] == sum(p >= threshold for p in probability)


@pytest.mark.parametrize(
    ("threshold", "found"), [(0.0, 4), (0.5, 2), (0.75, 1), (1.0, 0), (None, 2)], ids=lambda v: str(v)
)
def test_thresholds_of_logits_are_probabilities(threshold, found):
    request = {"prediction": np.array([-30.0, -0.1, 0.0, 2.0]), "target": np.ones(4)}
    (answer,) = measure("binary", [request], ["tp"], threshold=threshold)
    assert answer["tp"] == found


def test_log_probabilities_are_thresholded_as_probabilities():
    request = {"prediction": np.log([0.2, 0.5, 0.9]), "target": np.ones(3)}
    (answer,) = measure("binary", [request], ["tp"], activation="log_probability")
    assert answer["tp"] == 2


def test_a_nan_prediction_is_never_positive():
    request = {"prediction": np.array([np.nan, 1.0]), "target": np.array([1.0, 1.0])}
    (answer,) = measure("binary", [request], ["tp", "fn", "brier", "log_loss", "auroc", "average_precision"])
    assert answer["tp"] == answer["fn"] == 1
    assert answer["brier"] == answer["log_loss"] == answer["average_precision"] == "NaN"
    assert answer["auroc"] is None, "there is no negative, NaN or not"


def test_soft_targets_and_signs_are_positive_from_a_half_on():
    prediction = np.array([1.0, 1.0, 1.0, -1.0])
    soft = {"prediction": prediction, "target": np.array([0.5, 0.49, 1.0, 0.9])}
    signs = {"prediction": prediction, "target": np.array([1.0, -1.0, 1.0, 1.0])}
    assert measure("binary", [soft]) == measure("binary", [signs])
    assert measure("binary", [soft], ["tp", "fp"])[0] == {"task": "binary", "tp": 2, "fp": 1}


def test_binary_flattens_and_multilabel_keeps_the_second_axis():
    rng = np.random.default_rng(0)
    request = {"prediction": rng.normal(size=(6, 3, 4)), "target": (rng.random((6, 3, 4)) < 0.5).astype(float)}
    flat = {name: np.ascontiguousarray(value).reshape(-1) for name, value in request.items()}
    (labels,) = measure("multilabel", [request], ["tp", "precision", "auroc"])
    (together,) = measure("binary", [request], ["tp", "precision", "auroc"])
    assert together == measure("binary", [flat], ["tp", "precision", "auroc"])[0]
    assert sum(labels["tp"]) == together["tp"]
    assert labels["precision"]["micro"] == together["precision"]
    assert labels["auroc"]["micro"] == together["auroc"]
    for k in range(3):
        one = {name: np.ascontiguousarray(value[:, k]) for name, value in request.items()}
        (alone,) = measure("binary", [one], ["tp", "precision", "auroc"])
        assert labels["tp"][k] == alone["tp"]
        assert labels["precision"]["per_class"][k] == alone["precision"]
        assert labels["auroc"]["per_class"][k] == alone["auroc"]


def test_a_tensor_without_second_axis_has_one_label():
    request = {"prediction": np.array([1.0, -1.0]), "target": np.array([1.0, 1.0])}
    (answer,) = measure("multilabel", [request], ["recall"])
    assert answer["recall"] == {"macro": 0.5, "micro": 0.5, "weighted": 0.5, "per_class": [0.5]}


@pytest.mark.parametrize("name", ["default", "brier", "ece", "auroc", "best_threshold", "mcc"])
def test_an_ignored_label_is_as_if_the_sample_had_not_had_it(name):
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(9, 2)), (rng.random((9, 2)) < 0.5).astype(float)
    target[::3, 0] = 255
    (found,) = measure("multilabel", [{"prediction": prediction, "target": target}], [name], ignore_index=255)
    kept = target[:, 0] != 255
    for k, rows in ((0, kept), (1, np.ones(9, bool))):
        (alone,) = measure("binary", [{"prediction": prediction[rows, k], "target": target[rows, k]}], [name])
        for key in alone.keys() & found.keys() - {"task", "undefined", "accuracy", "brier", "ece"}:
            mine = found[key]
            alike(mine["per_class"][k] if isinstance(mine, dict) else mine[k], alone[key])
    flat = target.ravel() != 255
    pooled = {"prediction": prediction.ravel()[flat], "target": target.ravel()[flat]}
    (together,) = measure("binary", [pooled], [name])
    for key in together.keys() & found.keys() & {"accuracy", "brier", "ece"}:
        alike(found[key], together[key])


def test_images_of_masks_are_averaged_one_by_one():
    target = np.array([[1.0, 1, 0], [0, 0, 0], [1, 0, 0]])
    prediction = np.array([[1.0, 0, 0], [0, 0, 0], [1, 1, 0]])
    (answer,) = measure(
        "binary", [{"prediction": prediction * 2 - 1, "target": target}], ["per_image_iou", "per_image_dice"]
    )
    assert answer["per_image_iou"] == pytest.approx((1 / 2 + 1 / 2) / 2), "the empty image has no IoU"
    assert answer["per_image_dice"] == pytest.approx(2 / 3)


def test_the_best_threshold_is_one():
    """Used as the threshold it gives the F1 it was chosen for."""
    rng = np.random.default_rng(3)
    target = (rng.random(200) < 0.3).astype(float)
    prediction = (rng.normal(size=200) + target).astype(np.float32)
    request = {"prediction": prediction, "target": target}
    (answer,) = measure("binary", [request], ["best_threshold"])
    best = answer["best_threshold"]
    candidates = [measure("binary", [request], ["f1"], threshold=float(t))[0]["f1"] for t in np.linspace(0, 1, 50)]
    assert measure("binary", [request], ["f1"], threshold=best)[0]["f1"] >= max(f for f in candidates if f is not None)
    assert np.isclose(prediction, logit(best)).any(), "it is one of the scores"


@pytest.mark.parametrize("name", ["roc_curve", "pr_curve"])
def test_a_long_curve_is_thinned_to_its_points_and_keeps_its_ends(name):
    rng = np.random.default_rng(0)
    request = {"prediction": rng.normal(size=5000), "target": (rng.random(5000) < 0.5).astype(float)}
    (whole,) = measure("binary", [request], [name], points=100_000)
    (thinned,) = measure("binary", [request], [name], points=50)
    for key, values in thinned[name].items():
        assert len(values) == 50 - (key == "thresholds" and name == "pr_curve")
        assert len(whole[name][key]) > 1000
        assert values[-1] == whole[name][key][-1]
        assert set(values) <= set(whole[name][key])
        assert values[0] == whole[name][key][0]


def test_too_many_scores_to_sort_are_refused(monkeypatch):
    monkeypatch.setattr(ranking, "MOST_SCORES", 9)
    request = {"prediction": np.arange(10.0), "target": np.ones(10)}
    with pytest.raises(InvalidRequest, match="at most 9 scores at once, found 10"):
        measure("binary", [request], ["auroc"])
