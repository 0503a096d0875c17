"""Predictions that are not what metrics alone take them for, and options that make a metric trivial."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import evaluating
import lossd
from lossd_client.errors import DtypeMismatch, InvalidRequest, InvalidValue, Problem, ShapeMismatch

SIDES = torch.tensor([0, 1, 0, 1])
DECIDED: dict[str, Any] = {
    "binary": {"prediction": SIDES, "target": SIDES},
    "multilabel": {"prediction": SIDES.reshape(2, 2), "target": SIDES.reshape(2, 2)},
    "sets": {"prediction": SIDES.reshape(2, 2), "target": torch.tensor([[1, -1], [1, -1]])},
}
SUSPECT = "probabilities_as_logits"


def ask(task: str, inputs: dict[str, Any], **options: Any) -> evaluating.Evaluated:
    request = {"task": task, "outputs": ["metrics"], "metrics": options}
    return evaluating.alone(request, {name: torch.as_tensor(value) for name, value in inputs.items()})


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize("task", DECIDED)
def test_decisions_are_refused_as_logits_and_taken_as_probabilities(task, dtype):
    inputs = {**DECIDED[task], "prediction": DECIDED[task]["prediction"].to(dtype)}
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(DtypeMismatch, match=rf"prediction of the {task} metrics is {name}.*from_logits to false"):
        ask(task, inputs)
    answer = ask(task, inputs, from_logits=False, names=["accuracy", "f1"])
    assert answer.document["metrics"]["accuracy"] == 1
    assert answer.warnings == set()


SCORES: dict[str, Any] = {
    "binary": {"prediction": [2, -1, 3], "target": [1, 0, 1]},
    "multilabel": {"prediction": [[2, -1], [0, 1]], "target": [[1, 0], [0, 1]]},
    "gan": {"real": [3, 1], "fake": [-2, 0]},
    "gan_generator": {"fake": [0, 1, 5]},
}


@pytest.mark.parametrize("form", [list, np.int8, np.int64, np.uint16], ids=str)
@pytest.mark.parametrize("task", SCORES)
def test_integers_that_are_no_labels_are_scores(task: str, form: Any) -> None:
    """As a page sends them, whose numbers have no decimal point unless they need one."""
    if form is np.uint16 and task != "gan_generator":
        pytest.skip("negative")
    sent = {name: values if form is list else np.array(values, form) for name, values in SCORES[task].items()}
    floats = {name: np.array(values, np.float64) for name, values in SCORES[task].items()}
    found = lossd.evaluate(task=task, inputs=sent)
    assert found.metrics == lossd.evaluate(task=task, inputs=floats).metrics


@pytest.mark.parametrize("form", [list, np.int64, np.bool_], ids=str)
@pytest.mark.parametrize(
    ("task", "inputs", "name"),
    [
        ("binary", {"prediction": [1, 0], "target": [1, 0]}, "prediction"),
        ("gan", {"real": [1, 0], "fake": [-2, 3]}, "real"),
        ("gan", {"real": [-2, 3], "fake": [0, 0]}, "fake"),
        ("gan_generator", {"fake": [1, 0]}, "fake"),
    ],
)
def test_labels_are_no_scores(task: str, inputs: dict[str, list[int]], name: str, form: Any) -> None:
    sent = {key: values if form is list or key != name else np.array(values, form) for key, values in inputs.items()}
    with pytest.raises(DtypeMismatch, match=rf"^{name} of the {task} metrics is .*would be read as logits"):
        lossd.evaluate(task=task, inputs=sent)


@pytest.mark.parametrize(("task", "expected"), [("lsgan", 1.0), ("lsgan_generator", 0.5)])
def test_least_squares_scores_may_be_labels_which_are_what_they_were_taught(task: str, expected: float) -> None:
    inputs = {"real": [1, 1], "fake": [0, 0]} if task == "lsgan" else {"fake": [0, 1]}
    metrics = lossd.evaluate(task=task, inputs=inputs).metrics
    assert metrics["accuracy" if task == "lsgan" else "fooled"] == expected


def test_a_neighbour_s_labels_do_not_matter() -> None:
    request = {"task": "binary", "outputs": ["metrics"], "metrics": {"names": ["accuracy"]}}
    one, other = torch.tensor([0, 1]), torch.tensor([0, -4])
    inputs = [{"prediction": prediction, "target": torch.tensor([1, 0])} for prediction in (one, other, one)]
    refused, answered, also = evaluating.together([request] * 3, inputs)
    assert isinstance(refused, DtypeMismatch)
    assert isinstance(also, DtypeMismatch)
    assert not isinstance(answered, Problem)
    assert answered.document["metrics"]["accuracy"] == 1  # a logit of 0 is a yes


@pytest.mark.parametrize("task", DECIDED)
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_floats_that_look_like_probabilities_bring_a_warning(task, scale):
    inputs = {**DECIDED[task], "prediction": DECIDED[task]["prediction"] * scale}
    assert ask(task, inputs).warnings == {SUSPECT}
    assert ask(task, inputs, from_logits=False).warnings == set()
    assert ask(task, inputs, names=["auroc"]).warnings == set(), "the order is the same"


@pytest.mark.parametrize("prediction", [[0.0, 0.0], [0.2, -0.1], [0.2, 1.5], [1.0, 1.0], [0.3, np.nan]], ids=str)
def test_logits_that_may_well_be_such_bring_none(prediction):
    assert ask("binary", {"prediction": prediction, "target": [1, 0]}).warnings == set()


def test_a_dropped_sample_and_another_request_do_not_matter():
    prediction = {"prediction": torch.tensor([0.2, 0.9, -3.0]), "target": torch.tensor([0, 1, 0])}
    weight = {"sample_weight": torch.tensor([1.0, 1.0, 0.0])}
    request = {"task": "binary", "outputs": ["metrics"]}
    assert ask("binary", {**prediction, **weight}).warnings == {SUSPECT}
    sound = {**prediction, "prediction": torch.tensor([-1.0, 1.0, 0.5])}
    both = evaluating.together([request] * 2, [sound, {name: tensor[:2] for name, tensor in prediction.items()}])
    assert [answer.warnings for answer in both if not isinstance(answer, Problem)] == [set(), {SUSPECT}]


@pytest.mark.parametrize("name", ["log_loss", "brier", "ece", "reliability", "auroc", "average_precision"])
def test_probabilities_of_classes_bring_a_warning_where_it_matters(name):
    inputs = {"prediction": torch.tensor([[0.2, 0.8], [0.5, 0.5]]), "target": [0, 1]}
    assert ask("multiclass", inputs, names=[name]).warnings == {SUSPECT}
    assert ask("multiclass", inputs, names=[name], from_logits=False).warnings == set()
    assert ask("multiclass", inputs, names=["accuracy", "mcc"]).warnings == set()
    assert ask("multiclass", {**inputs, "prediction": torch.tensor([[0.2, 0.9], [0.5, 0.5]])}).warnings == set()


EVEN = [[0.25, 0.75], [0.5, 0.5]]
ROWS: dict[str, Any] = {"prediction": torch.tensor(EVEN), "target": torch.tensor([0, 1])}
SAME: dict[str, Any] = {"prediction": torch.tensor([0.25, 0.75]), "target": torch.tensor([0.0, 1.0])}
IMAGES: dict[str, Any] = {"prediction": torch.tensor(EVEN)[..., None], "target": torch.tensor([[0], [1]])}


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("either_way", ["compiled", "general"], indirect=True)
@pytest.mark.parametrize(
    ("loss", "inputs"),
    [
        ({"name": "bce_with_logits"}, SAME), ({"name": "sigmoid_focal"}, SAME),
        ({"name": "dice", "mode": "binary"}, SAME),
        ({"name": "soft_margin"}, SAME | {"target": torch.tensor([-1, 1])}),
        ({"name": "cross_entropy"}, ROWS), ({"name": "focal"}, ROWS), ({"name": "soft_f1"}, ROWS),
        ({"name": "cross_entropy"}, IMAGES), ({"name": "dice"}, IMAGES), ({"name": "lovasz"}, IMAGES),
    ],
    ids=lambda value: value.get("name", "-".join(map(str, value["prediction"].shape)) if "prediction" in value else ""),
)  # fmt: skip
def test_probabilities_in_place_of_a_loss_s_logits_bring_a_warning(loss, inputs):
    """Among others that look like logits, or are dropped; with metrics and without; in each dtype."""
    everything = ["loss", "gradient", "metrics"]
    for dtype, outputs in ((torch.float64, everything), (torch.float32, ["loss"]), (torch.bfloat16, everything)):
        inputs = {**inputs, "prediction": inputs["prediction"].to(dtype)}
        logits = {**inputs, "prediction": inputs["prediction"] + 1}
        request = {"loss": loss, "outputs": outputs}
        answers = evaluating.together([request] * 3, [logits, inputs, logits])
        assert [SUSPECT in answer.warnings for answer in answers if not isinstance(answer, Problem)] == [
            False,
            True,
            False,
        ]
        assert SUSPECT in evaluating.alone(request, inputs).warnings
        assert SUSPECT not in evaluating.alone(request, logits).warnings


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("either_way", ["compiled", "general"], indirect=True)
def test_scores_in_place_of_log_probabilities_bring_a_warning():
    """Among others that are log-probabilities, and unless they do not count."""
    request = {"loss": {"name": "nll"}, "outputs": ["loss", "gradient", "metrics"]}
    scores = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    sound = {"prediction": scores.log_softmax(1), "target": torch.tensor([0, 1])}
    answers = evaluating.together([request] * 3, [sound, {**sound, "prediction": scores}, sound])
    warned = [answer.warnings for answer in answers if not isinstance(answer, Problem)]
    assert warned == [set(), {"positive_log_probability"}, set()]
    ignored = {"prediction": torch.tensor([[2.0, -1.0], [-0.5, -3.0]]), "target": torch.tensor([-100, 1])}
    assert evaluating.alone(request, ignored).warnings == set()


def test_a_dropped_sample_does_not_matter_to_a_loss_either():
    inputs = {**SAME, "sample_weight": torch.tensor([1.0, 1.0, 0.0])}
    inputs |= {"prediction": torch.tensor([0.25, 0.75, 9.0]), "target": torch.tensor([0.0, 1.0, 0.0])}
    request = {"loss": {"name": "bce_with_logits"}, "outputs": ["loss"]}
    assert evaluating.alone(request, inputs).warnings == {SUSPECT}
    assert evaluating.alone(request, {**inputs, "sample_weight": torch.ones(3)}).warnings == set()


@pytest.mark.parametrize("loss", ["hinge", "multi_margin", "multilabel_margin"])
def test_a_margin_loss_compares_scores_as_they_are(loss):
    """A score of 0.25 is no probability there, whatever the task."""
    rows = {"prediction": torch.tensor(EVEN), "target": torch.tensor([[0, -1], [1, -1]])}
    same = {**SAME, "target": torch.tensor([-1.0, 1.0])}
    inputs = {"hinge": same, "multi_margin": ROWS, "multilabel_margin": rows}[loss]
    assert SUSPECT not in evaluating.alone({"loss": {"name": loss}, "outputs": ["loss"]}, inputs).warnings


@pytest.mark.parametrize("loss", [{"name": "bce"}, {"name": "sigmoid_focal", "from_logits": False}])
def test_a_loss_of_probabilities_wants_them(loss):
    assert evaluating.alone({"loss": loss, "outputs": ["loss", "metrics"]}, SAME).warnings == set()


@pytest.mark.parametrize("options", [{}, {"k": 3}, {"k": 7}])
@pytest.mark.parametrize("request_", [{"task": "multiclass"}, {"loss": {"name": "cross_entropy"}}], ids=str)
def test_the_best_of_all_classes_are_refused(request_, options):
    inputs = {"prediction": torch.eye(3), "target": torch.arange(3)}
    request = {**request_, "outputs": ["metrics"], "metrics": {"names": ["top_k_accuracy"], **options}}
    with pytest.raises(InvalidRequest, match=r"there are 3 classes; set metrics\.k below 3") as refused:
        evaluating.alone(request, inputs)
    assert [fault["pointer"] for fault in refused.value.errors] == ["/metrics/k"]
    evaluating.alone({**request, "metrics": {"names": ["top_k_accuracy"], "k": 2}}, inputs)
    evaluating.alone({**request, "metrics": {**options}}, inputs)


@pytest.mark.parametrize(("k", "warned"), [(2, False), (3, True)])
def test_neighbours_that_are_all_there_are_bring_a_warning(k, warned):
    points = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    labelled = {"embedding": points, "label": torch.tensor([0, 0, 1, 1])}
    views = {"first": points[:3], "second": points[1:]}
    expected = {"k_is_all"} if warned else set()
    assert ask("labelled_embeddings", labelled, names=["recall@k"], k=k).warnings == expected
    assert ask("paired_views", views, names=["first_to_second@k"], k=k).warnings == expected
    assert ask("labelled_embeddings", labelled, k=k).warnings == set(), "it is not asked for"


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)])
def test_predicted_classes_in_place_of_their_scores_are_told_so(shape):
    of_classes = torch.full(shape, 2)
    for dtype in (torch.int64, torch.float32):
        inputs = {"prediction": of_classes.to(dtype), "target": of_classes}
        with pytest.raises((ShapeMismatch, InvalidValue), match=r"second axis"):
            ask("multiclass", inputs)


def test_an_empty_tensor_has_no_metrics():
    with pytest.raises(ShapeMismatch, match="an empty tensor has no metrics"):
        ask("regression", {"prediction": torch.zeros(0), "target": torch.zeros(0)})


def test_an_ignored_class_that_is_predicted_counts_in_iou():
    """Targets 0, 0, 1 and one ignored, predicted as 0, 2, 1 and 1: class 2 has no entry that counts, and one for it."""
    inputs = {"prediction": torch.eye(3)[[0, 2, 1, 1]], "target": torch.tensor([0, 0, 1, 2])}
    found = ask("multiclass", inputs, names=["iou"], ignore_index=2).document["metrics"]["iou"]
    assert found["per_class"] == [0.5, 1, 0]
    assert found["macro"] == 0.5


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"k": 20000}, "/metrics/k"),
        ({"quantiles": [0.5, 2.0]}, "/metrics/quantiles/1"),
        ({"quantiles": []}, "/metrics/quantiles"),
        ({"names": ["f1", 3]}, "/metrics/names/1"),
        ({"weights": "cubic"}, "/metrics/weights"),
        ({"zero_division": 2}, "/metrics/zero_division"),
        ({"beta": -1.0}, "/metrics/beta"),
        ({"wieghts": "none"}, "/metrics/wieghts"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_pointed_at(options, pointer):
    with pytest.raises(InvalidRequest) as refused:
        evaluating.make_plan({"task": "regression", "metrics": options})
    (fault,) = refused.value.errors
    assert fault["pointer"] == pointer
    assert fault["detail"].startswith(pointer[1:].replace("/", "."))


def test_an_option_of_the_gradient_is_pointed_at():
    with pytest.raises(InvalidRequest) as refused:
        evaluating.make_plan({"loss": {"name": "mse"}, "gradient": {"clip_norm": -1.0}})
    assert [fault["pointer"] for fault in refused.value.errors] == ["/gradient/clip_norm"]
