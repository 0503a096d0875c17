"""Metrics next to a loss, and alone, through the evaluation: what the parameters of a loss mean for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
import torch

import evaluating
from lossd import metrics
from lossd.losses import REGISTRY
from losses.cases import CASES
from metrics.measuring import NEEDED, alike, measure
from metrics.tables import TABLES


def ask(request: dict[str, Any], *inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The breakdowns of one batch."""
    request = {"outputs": ["metrics"], **request}
    tensors = [{name: torch.as_tensor(value) for name, value in one.items()} for one in inputs]
    answers = evaluating.together([request] * len(inputs), tensors)
    return [answer.document["metrics"] for answer in answers]


MEASURED = [case for case in CASES if REGISTRY[case.name].task in metrics.TASKS]


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_every_loss_has_its_default_breakdown_in_any_batch(case):
    parameters = next(iter(case.parameters))
    inputs = [case.inputs(parameters, seed=seed) for seed in (0, 1)]
    request = {"loss": {"name": case.name, **parameters}, "outputs": ["loss", "metrics"]}
    task = evaluating.make_plan(request).task
    names = metrics.resolve(task, None)
    assert names
    together = [answer.document["metrics"] for answer in evaluating.together([request] * 2, inputs)]
    for one, answer in zip(inputs, together, strict=True):
        assert list(answer) == ["task", *names, *(["undefined"] if "undefined" in answer else [])]
        assert answer["task"] == task
        assert orjson.loads(orjson.dumps(answer)) == answer, "nothing JSON cannot spell"
        alike(answer, evaluating.alone(request, one).document["metrics"], within=1e-12)


def test_what_no_loss_has_a_task_for_is_known():
    """A loss with a task that measures nothing says itself all that there is to say of its inputs."""
    unmeasured = {loss.name for loss in REGISTRY.values() if loss.task not in metrics.TASKS}
    assert unmeasured == {
        "ctc", "curriculum", "expression", "feature_matching", "gradnorm", "perceptual", "uncertainty", "weighted_sum",
        "distillation", "kto",
    }  # fmt: skip


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.task)
def test_metrics_alone_need_no_loss(table):
    requests = [request for _, request in table.requests(5)][:2]
    names = [name for name in table.oracles if name not in ("error_quantiles",)]
    found = ask({"task": table.task, "metrics": {"names": names, "k": 2, **NEEDED}}, *requests)
    expected = measure(table.task, requests, names, activation=table.activation, k=2)
    for mine, theirs in zip(found, expected, strict=True):
        alike(mine, theirs, within=1e-12)


def test_metrics_alone_of_probabilities_and_with_ignored_targets():
    prediction, target = np.array([0.2, 0.6, 0.9]), np.array([0, 255, 1])
    options = {"from_logits": False, "ignore_index": 255, "threshold": 0.9, "names": ["tp", "fp", "tn"]}
    (answer,) = ask({"task": "binary", "metrics": options}, {"prediction": prediction, "target": target})
    assert answer == {"task": "binary", "tp": 1, "fp": 0, "tn": 1}


@pytest.mark.parametrize("parameters", [{}, {"p": 1.0}, {"p": "inf"}, {"squared": True}, {"swap": True}, {"eps": 0.5}])
def test_a_triplet_that_satisfies_the_margin_is_one_without_loss(parameters):
    rng = np.random.default_rng(0)
    inputs = {name: torch.from_numpy(rng.normal(size=(200, 2))) for name in ("anchor", "positive", "negative")}
    loss = {"name": "triplet", "margin": 0.3, "reduction": "none", **parameters}
    answer = evaluating.alone({"loss": loss, "outputs": ["loss", "metrics"]}, inputs)
    satisfied = answer.document["metrics"]["satisfied"]
    assert 0 < satisfied < 1
    assert satisfied == pytest.approx(float((answer.loss == 0).double().mean()))


def test_pairs_are_similar_below_half_their_own_requests_margin():
    inputs = {
        "first": torch.zeros(3, 1),
        "second": torch.tensor([[0.4], [0.9], [1.6]]),
        "similar": torch.tensor([1, 1, 1]),
    }
    requests = [
        {"loss": {"name": "contrastive", "margin": margin}, "outputs": ["metrics"], "metrics": {"names": ["tp"]}}
        for margin in (1.0, 2.0, 4.0)
    ]
    answers = evaluating.together(requests, [inputs] * 3)
    assert [answer.document["metrics"]["tp"] for answer in answers] == [1, 2, 3]


@pytest.mark.parametrize(("margin", "found"), [(0.0, 1), (-0.9, 2), (0.9, 0)])
def test_cosine_pairs_are_similar_half_way_to_the_margin(margin, found):
    cosines = torch.tensor([0.9, 0.2, -0.5])
    second = torch.stack([cosines, (1 - cosines**2).sqrt()], 1) * 7
    inputs = {"first": torch.tensor([[1.0, 0]] * 3), "second": second, "similar": torch.tensor([1, 1, 1])}
    loss = {"name": "cosine_embedding", "margin": margin}
    (answer,) = ask({"loss": loss, "metrics": {"names": ["tp"]}}, inputs)
    assert answer["tp"] == found


def test_the_best_threshold_of_distances_is_one():
    inputs = {"prediction": torch.tensor([0.1, 0.2, 0.4, 0.8]), "target": torch.tensor([1, 1, -1, 1])}
    (answer,) = ask({"task": "distances", "metrics": {"names": ["best_threshold"]}}, inputs)
    assert answer["best_threshold"] > 0.8, "all of them: F1 is 6/7"
    (answer,) = ask({"task": "distances", "metrics": {"threshold": answer["best_threshold"], "names": ["f1"]}}, inputs)
    assert answer["f1"] == pytest.approx(6 / 7)


def test_a_discriminator_may_see_more_real_than_fake_samples():
    inputs = {"real": torch.tensor([1.0, -1, 2]), "fake": torch.tensor([-1.0, 1])}
    for answer in ask({"loss": {"name": "gan_discriminator"}}, inputs, inputs):
        assert answer["precision"] == answer["recall"] == pytest.approx(2 / 3)
        assert answer["accuracy"] == pytest.approx(3 / 5)


def test_least_squares_adversaries_decide_at_a_half():
    real, fake = torch.tensor([0.6, 0.4]), torch.tensor([0.4, 0.1])
    (answer,) = ask({"loss": {"name": "lsgan_discriminator"}}, {"real": real, "fake": fake})
    assert answer["recall"] == 0.5
    assert answer["precision"] == 1
    (answer,) = ask({"loss": {"name": "lsgan_generator"}}, {"fake": real})
    assert answer["fooled"] == 0.5


def test_log_rates_are_measured_as_rates():
    rate, count = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])
    (of_logs,) = ask({"loss": {"name": "poisson_nll"}}, {"prediction": rate.log(), "target": count})
    (of_rates,) = ask({"loss": {"name": "poisson_nll", "log_input": False}}, {"prediction": rate, "target": count})
    alike(of_logs, of_rates, within=1e-6)
    assert of_rates["mae"] == 1.5


@pytest.mark.parametrize("form", ["xyxy", "xywh", "cxcywh"])
@pytest.mark.parametrize("with_loss", [True, False])
def test_boxes_in_any_format_have_the_same_metrics(form, with_loss):
    corners = torch.tensor([[10.0, 10, 50, 50], [20, 20, 60, 60]])

    def as_form(boxes: torch.Tensor) -> torch.Tensor:
        low, high = boxes[:, :2], boxes[:, 2:]
        match form:
            case "xywh":
                return torch.cat([low, high - low], 1)
            case "cxcywh":
                return torch.cat([(low + high) / 2, high - low], 1)
            case _:
                return boxes

    inputs = {"prediction": as_form(corners), "target": as_form(corners + 5)}
    options = {"names": ["mean_iou", "giou", "f1"], "iou_threshold": 0.37}
    request = (
        {"loss": {"name": "iou", "format": form}, "metrics": options}
        if with_loss
        else {"task": "boxes", "metrics": {**options, "format": form}}
    )
    (answer,) = ask(request, inputs)
    assert answer["mean_iou"] == pytest.approx(1225 / 1975)
    assert answer["f1"] == 1


def test_the_parts_of_an_autoencoders_loss_add_up():
    rng = np.random.default_rng(0)
    inputs = {
        "prediction": torch.from_numpy(rng.random((6, 4))),
        "target": torch.from_numpy(rng.random((6, 4))),
        "mean": torch.from_numpy(rng.normal(size=(6, 2))),
        "log_variance": torch.from_numpy(rng.normal(size=(6, 2))),
    }
    for reconstruction in ("bce", "mse"):
        loss = {"name": "vae", "beta": 3.0, "reconstruction": reconstruction}
        answer = evaluating.alone({"loss": loss, "outputs": ["loss", "metrics"]}, inputs)
        measured = answer.document["metrics"]
        assert measured["reconstruction"] + 3 * measured["kl"] == pytest.approx(answer.loss)


def test_cross_entropy_and_log_loss_are_one():
    rng = np.random.default_rng(0)
    inputs = {
        "prediction": torch.from_numpy(rng.normal(size=(9, 4))),
        "target": torch.from_numpy(rng.integers(0, 4, 9)),
    }
    request = {"loss": {"name": "cross_entropy"}, "outputs": ["loss", "metrics"], "metrics": {"names": ["log_loss"]}}
    answer = evaluating.alone(request, inputs)
    assert answer.document["metrics"]["log_loss"] == pytest.approx(answer.loss)
