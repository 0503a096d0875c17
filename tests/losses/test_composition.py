"""Losses of losses: values and gradients through two levels, heads of their own, terms that fail."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from evaluating import Evaluated, alone, together
from lossd.compiled.passes import Passes
from lossd.evaluation import evaluate as evaluation
from lossd.evaluation.batch import TensorBatch
from lossd.losses import REGISTRY
from lossd.losses.registry import Loss
from lossd.request.planning import make_plan
from lossd_client.errors import (
    InvalidRequest,
    InvalidValue,
    MissingInput,
    Problem,
    ShapeMismatch,
    UnknownInput,
    UnknownLoss,
)
from losses.case import Composition, Tensors
from losses.cases_composed import COMPOSITIONS, masks

ROWS = [pytest.param(row, id=f"{row.name}-{row.title}") for row in COMPOSITIONS]


def drawn(row: Composition, seed: int = 0) -> Tensors:
    return row.draw(torch.Generator().manual_seed(seed))


def request(row: Composition) -> dict:
    return {"loss": dict(row.loss), "outputs": ["loss", *(f"gradient.{name}" for name in row.gradients)]}


@pytest.mark.parametrize("row", ROWS)
def test_value_and_gradients_equal_the_reference(row: Composition) -> None:
    inputs = drawn(row)
    leaves = {name: inputs[name].clone().requires_grad_() for name in row.gradients}
    value = row.reference({**inputs, **leaves})
    gradients = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    answer = alone(request(row), inputs)
    assert answer.loss == pytest.approx(float(value.detach()), rel=1e-10)
    for name, gradient in gradients.items():
        torch.testing.assert_close(answer.gradient(name), gradient, rtol=1e-10, atol=1e-12)
        norm = answer.document["diagnostics"]["gradient_norm"][name]
        assert norm == pytest.approx(float(gradient.norm()), rel=1e-9)


@pytest.mark.parametrize("row", ROWS)
def test_single_precision_and_a_cotangent(row: Composition) -> None:
    inputs = drawn(row)
    exact = alone(request(row), inputs)
    single = {n: t.float() if t.is_floating_point() else t for n, t in inputs.items()}
    answer = alone(request(row), single | {"cotangent": torch.tensor(-3.0)})
    assert answer.loss == pytest.approx(exact.loss, rel=1e-5)
    for name in row.gradients:
        assert answer.gradient(name).dtype == torch.float32
        expected = -3.0 * exact.gradient(name)
        torch.testing.assert_close(answer.gradient(name).double(), expected, rtol=1e-4, atol=1e-6)


# Rows of several requests are summed in another order: test_features.py allows for the last bits.
@pytest.mark.parametrize("row", [row for row in ROWS if REGISTRY[row.values[0].name].kind != "rows"])
def test_requests_that_arrive_together_are_answered_as_alone(row: Composition) -> None:
    inputs = [drawn(row, seed) for seed in range(3)]
    for batched, tensors in zip(together([request(row)] * 3, inputs), inputs, strict=True):
        single = alone(request(row), tensors)
        assert batched.document == single.document
        for name, gradient in single.gradients.items():
            assert torch.equal(batched.gradient(name), gradient)


def test_each_term_is_evaluated_once_for_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[tuple[str | None, int]] = []
    evaluate = evaluation.evaluate

    def counting(batch: TensorBatch, passes: Passes | None = None) -> list[dict[str, Any] | Problem]:
        evaluated.append((batch.recipe.loss, len(batch.rows)))
        return evaluate(batch, passes)

    monkeypatch.setattr(evaluation, "evaluate", counting)
    inputs = {"prediction": torch.randn(2, 3, 4, 4), "target": torch.randint(0, 3, (2, 4, 4))}
    together([{"loss": {"name": "ce_dice"}, "outputs": ["loss", "gradient", "metrics"]}] * 5, [inputs] * 5)
    assert evaluated == [("cross_entropy", 5), ("dice", 5)]


def test_a_faulty_request_changes_no_other() -> None:
    query = {"loss": {"name": "ce_dice"}, "outputs": ["loss", "gradient", "metrics"]}
    prediction, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    good, bad = {"prediction": prediction, "target": target}, {"prediction": prediction, "target": target + 7}
    first, refused, last = together([query] * 3, [good, bad, good])
    single = alone(query, good)
    assert isinstance(refused, InvalidValue)
    assert refused.detail.startswith("term 0 (cross_entropy): class ")
    for answer in (first, last):
        assert isinstance(answer, Evaluated)
        assert answer.document == single.document
        assert torch.equal(answer.gradient(), single.gradient())


def test_rows_cover_every_composed_loss_and_every_parameter() -> None:
    names = {name for name, loss in REGISTRY.items() if loss.kind == "composed"}
    names |= {"gradnorm", "expression", "feature_matching"}
    assert {row.name for row in COMPOSITIONS} == names
    for name in names:
        named = {key for row in COMPOSITIONS if row.name == name for key in row.loss} - {"name"}
        assert named == {parameter.name for parameter in REGISTRY[name].parameters}


def test_the_answer_holds_each_terms_value_and_weight() -> None:
    inputs = masks(torch.Generator().manual_seed(1))
    answer = alone({"loss": {"name": "bce_dice", "dice_weight": 3.0}}, inputs).document
    singles = [
        alone({"loss": {"name": "bce_with_logits"}}, inputs).loss,
        alone({"loss": {"name": "dice", "mode": "binary"}}, inputs).loss,
    ]
    assert [term["loss"] for term in answer["terms"]] == ["bce_with_logits", "dice"]
    assert [term["value"] for term in answer["terms"]] == singles
    assert [term["weight"] for term in answer["terms"]] == [1.0, 3.0]
    assert answer["loss"] == pytest.approx(singles[0] + 3 * singles[1])


def test_the_metrics_are_those_of_the_first_term() -> None:
    inputs = masks(torch.Generator().manual_seed(2))
    composed = alone({"loss": {"name": "bce_dice"}, "outputs": ["metrics", "loss"]}, inputs).document
    plain = alone({"loss": {"name": "bce_with_logits"}, "outputs": ["metrics", "loss"]}, inputs).document
    assert composed["metrics"] == plain["metrics"]
    assert composed["metrics"]["task"] == "binary"


def test_sample_weights_go_to_the_terms_that_take_them() -> None:
    inputs = masks(torch.Generator().manual_seed(3))
    weight = torch.tensor([1.0, 0.0, 2.0])
    answer = alone({"loss": {"name": "bce_dice"}}, inputs | {"sample_weight": weight}).document
    single = alone({"loss": {"name": "bce_with_logits"}}, inputs | {"sample_weight": weight}).loss
    assert answer["terms"][0]["value"] == single


def test_uncertainty_reproduces_the_tutorials_number() -> None:
    """Losses (2.5, 0.8, 1.2) with s = 0, unhalved, make 4.5."""
    terms = [{"loss": {"name": "mae"}, "inputs": {"prediction": f"p{i}", "target": "zero"}} for i in range(3)]
    inputs = {f"p{i}": torch.tensor([v], dtype=torch.float64) for i, v in enumerate((2.5, 0.8, 1.2))}
    inputs |= {"zero": torch.zeros(1, dtype=torch.float64), "log_variance": torch.zeros(3, dtype=torch.float64)}
    answer = alone({"loss": {"name": "uncertainty", "form": "unhalved", "terms": terms}}, inputs)
    assert answer.loss == pytest.approx(4.5)


def test_no_lesson_easy_enough_is_nothing_to_average() -> None:
    row = next(row for row in COMPOSITIONS if row.name == "curriculum")
    answer = alone({"loss": {**row.loss, "progress": 0.0}}, drawn(row))
    assert answer.loss == 0.0
    assert answer.denominator == 0.0
    assert answer.warnings == {"nothing_to_average"}
    assert not answer.gradient().any()


def lesson(loss: str, inputs: Tensors, **more: object) -> Evaluated:
    return alone({"loss": {"name": "curriculum", "loss": {"name": loss}, "progress": 0.5, **more}}, inputs)


@pytest.mark.parametrize(("scaled", "factor"), [({}, 1), ({"normalization": "sum_scaled"}, 3)])
@pytest.mark.parametrize("weight", [[0.0, 1.0, 7.0], [3.0, 1.0, 7.0], [0.25, 0.5, 0.0], [0.0, 0.0, 7.0]])
def test_a_lesson_counts_by_its_sample_weight(weight: list[float], scaled: dict, factor: int) -> None:
    """Errors 2, 1 and 4, of which the last is too hard: factor · Σ w e² / Σ w over the first two."""
    inputs = {"prediction": torch.tensor([2.0, 1.0, 4.0]), "target": torch.zeros(3)}
    inputs |= {"difficulty": torch.tensor([0.1, 0.2, 0.9]), "sample_weight": torch.tensor(weight)}
    answer, total = lesson("mse", inputs, **scaled), weight[0] + weight[1]
    assert answer.denominator == total
    assert answer.warnings == (set() if total else {"nothing_to_average"})
    assert answer.loss == pytest.approx(factor * (4 * weight[0] + weight[1]) / (total or 1))
    slopes = [factor * 4 * weight[0] / (total or 1), factor * 2 * weight[1] / (total or 1), 0.0]
    torch.testing.assert_close(answer.gradient(), torch.tensor(slopes))


def test_a_lesson_of_weight_0_is_not_looked_at_and_a_bad_weight_is_named() -> None:
    inputs = {
        "prediction": torch.tensor([torch.nan, 1.0]),
        "target": torch.zeros(2),
        "difficulty": torch.tensor([0.1, 0.2]),
    }
    assert lesson("mse", inputs | {"sample_weight": torch.tensor([0.0, 2.0])}).loss == 1.0
    for bad in (-1.0, torch.inf, torch.nan):
        with pytest.raises(InvalidValue, match="sample_weight"):
            lesson("mse", inputs | {"sample_weight": torch.tensor([1.0, bad])})


def image(rows: int, draw: torch.Generator) -> Tensors:
    return {
        "prediction": torch.randn(rows, 2, 3, generator=draw),
        "target": torch.randint(2, (rows, 3), generator=draw),
    }


def numbers(rows: int, draw: torch.Generator) -> Tensors:
    return {name: torch.randn(rows, 3, generator=draw) for name in ("prediction", "target")}


@pytest.mark.parametrize(
    ("loss", "draw"),
    [
        ({"name": "huber", "delta": 0.5}, numbers),
        ({"name": "cross_entropy"}, image),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_curriculum_is_the_mean_of_each_sample_s_own_evaluation(loss: dict, draw: Callable) -> None:
    inputs = draw(7, torch.Generator().manual_seed(0))
    difficulty = torch.linspace(0, 1, 7)
    answer = alone({"loss": {"name": "curriculum", "loss": loss, "progress": 0.6}}, inputs | {"difficulty": difficulty})
    kept = [row for row in range(7) if difficulty[row] <= 0.6]
    samples = [alone({"loss": loss}, {name: t[row : row + 1] for name, t in inputs.items()}) for row in kept]
    assert answer.loss == pytest.approx(sum(sample.loss for sample in samples) / len(kept), rel=1e-6)
    for name, gradient in answer.gradients.items():
        for row in range(7):
            expected = samples[kept.index(row)].gradient(name)[0] / len(kept) if row in kept else torch.zeros(())
            torch.testing.assert_close(gradient[row], expected.expand(gradient[row].shape), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "loss", [loss for loss in REGISTRY.values() if loss.kind in ("stack", "alone")], ids=lambda loss: loss.name
)
def test_a_curriculum_of_a_loss_without_a_value_for_each_sample_is_refused(loss: Loss) -> None:
    """Dice and others were an internal error, and an expression was evaluated wrongly."""
    more = {"formula": "mean(p*p)"} if loss.name == "expression" else {}
    with pytest.raises(InvalidRequest, match=f"needs the loss of each sample, and {loss.name} has one"):
        make_plan({"loss": {"name": "curriculum", "loss": {"name": loss.name, **more}, "progress": 0.5}})


def test_the_metrics_of_a_curriculum_are_those_of_all_samples() -> None:
    """The first sample is right, the others are wrong."""
    inputs = {"prediction": torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]]), "target": torch.tensor([0, 0, 1])}
    request = {"loss": {"name": "curriculum", "loss": {"name": "cross_entropy"}, "progress": 0.5}}
    request |= {"outputs": ["loss", "metrics"], "metrics": {"names": ["accuracy"]}}
    document = alone(request, inputs | {"difficulty": torch.tensor([0.1, 0.2, 0.3])}).document
    assert document["metrics"]["accuracy"] == pytest.approx(1 / 3)


def test_a_sample_beyond_single_precision_keeps_its_digits_beside_others() -> None:
    inputs = {"prediction": torch.tensor([1e25, 2.0, 1e-25]), "target": torch.zeros(3), "difficulty": torch.zeros(3)}
    answer = lesson("mse", inputs)
    assert answer.loss == pytest.approx((1e50 + 4) / 3, rel=1e-6)
    tiny = lesson("mse", {name: tensor[2:] for name, tensor in inputs.items()})
    assert tiny.loss == pytest.approx(1e-50, rel=1e-6)


def test_a_sample_of_nan_leaves_the_others_gradients() -> None:
    inputs = {"prediction": torch.tensor([torch.nan, 2.0]), "target": torch.zeros(2), "difficulty": torch.zeros(2)}
    answer = lesson("mse", inputs)
    assert math.isnan(float(answer.loss))
    assert "non_finite" in answer.warnings
    assert answer.gradient()[1] == 2.0


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits"])
def test_many_samples_take_little_memory_each(loss: str) -> None:
    """A document for each sample took 1.4 KB of Python objects."""
    rows = 20_000
    inputs = {"prediction": torch.randn(rows, 1), "target": torch.rand(rows, 1), "difficulty": torch.rand(rows)}
    lesson(loss, {name: tensor[:10] for name, tensor in inputs.items()})
    tracemalloc.start()
    try:
        lesson(loss, inputs)
        assert tracemalloc.get_traced_memory()[1] < 200 * rows
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("weighted", [{}, {"sample_weight": torch.tensor([2.0, 0.5, 1.0])}])
def test_lessons_that_are_ignored_are_nothing_to_average(weighted: Tensors) -> None:
    """The only one that is not ignored is too hard."""
    inputs = {"prediction": torch.tensor([[2.0, 1.0]]).repeat(3, 1), "target": torch.tensor([-100, -100, 0])}
    answer = lesson("cross_entropy", inputs | {"difficulty": torch.tensor([0.1, 0.2, 0.9]), **weighted})
    assert (answer.loss, answer.denominator, answer.warnings) == (0.0, 0.0, {"nothing_to_average"})
    assert not answer.gradient().any()


def warned(answer: Evaluated) -> list[tuple[str, str]]:
    return [(warning["code"], warning["detail"]) for warning in answer.document["diagnostics"]["warnings"]]


def test_the_warnings_of_the_terms_are_passed_up_with_their_term() -> None:
    """Scores that are no distributions, targets that are all ignored in two heads, and a vector of length 0."""
    scores = {"prediction": torch.tensor([[0.9, 0.8], [0.2, 0.3]]).log(), "target": torch.tensor([[0.1, 0.2]] * 2)}
    ignored = {"prediction": torch.zeros(2, 3), "target": torch.tensor([-100, -100])}
    vectors = {"first": torch.zeros(2, 3), "second": torch.ones(2, 3), "similar": torch.ones(2)}
    heads = [("kl_div", scores), ("cross_entropy", ignored), ("cosine_embedding", vectors), ("nll", ignored)]
    terms, inputs, expected = [], {}, {}
    for i, (name, tensors) in enumerate(heads):
        terms.append({"loss": {"name": name}, "inputs": {key: f"{key}{i}" for key in tensors}})
        inputs |= {f"{key}{i}": tensor for key, tensor in tensors.items()}
        for code, detail in warned(alone({"loss": {"name": name}}, tensors)):
            if code != "zero_gradient":
                place = f"term {i} ({name}{''.join(f'; its {key} is {key}{i}' for key in tensors)})"
                expected.setdefault(code, []).append(f"{place}: {detail}")
    found = warned(alone({"loss": {"name": "weighted_sum", "terms": terms}}, inputs))
    assert {"negative_divergence", "zero_vector"} <= set(expected)
    assert len(expected["nothing_to_average"]) == 2
    assert found == [(code, "; ".join(details)) for code, details in expected.items()]


def test_the_warnings_of_a_lesson_are_those_of_the_samples_that_count() -> None:
    """Two zero vectors among those that are easy enough, one too hard, one of weight 0."""
    inputs = {"first": torch.zeros(5, 2), "second": torch.ones(5, 2), "similar": torch.ones(5)}
    inputs["first"][1] = torch.tensor([1.0, 2.0])
    inputs |= {"difficulty": torch.tensor([0.1, 0.1, 0.1, 0.9, 0.1]), "sample_weight": torch.tensor([1.0, 1, 1, 1, 0])}
    ((code, detail),) = [found for found in warned(lesson("cosine_embedding", inputs)) if found[0] != "zero_gradient"]
    assert code == "zero_vector"
    assert detail.startswith("term 0 (cosine_embedding): a vector of length 0")
    assert detail.endswith("(2 times)")
    inputs = {"prediction": torch.ones(2, 3), "target": torch.tensor([-100, 0]), "difficulty": torch.zeros(2)}
    assert warned(lesson("cross_entropy", inputs)) == []


def test_what_the_whole_says_is_not_said_of_its_terms() -> None:
    """Of a term without a slope nothing is said where another has one, and once where none has."""
    terms = [{"loss": {"name": "mse"}}, {"loss": {"name": "mae"}, "inputs": {"target": "other"}}]
    inputs = {"prediction": torch.zeros(2), "target": torch.zeros(2), "other": torch.ones(2)}
    whole = {"loss": {"name": "weighted_sum", "terms": terms}}
    assert warned(alone(whole, inputs)) == []
    assert [code for code, _ in warned(alone(whole, inputs | {"other": torch.zeros(2)}))] == ["zero_gradient"]


@pytest.mark.parametrize(("name", "scores"), [("ce_dice", (2, 3, 4)), ("bce_dice", (2, 4))])
def test_both_terms_say_that_all_is_ignored(name: str, scores: tuple[int, ...]) -> None:
    inputs = {"prediction": torch.ones(scores), "target": torch.full((2, 4), -100)}
    answer = alone({"loss": {"name": name, "ignore_index": -100, "smooth": 0.0}}, inputs)
    found = dict(warned(answer))
    assert set(found) == {"nothing_to_average", "zero_gradient"}
    assert answer.loss == 0.0
    assert "term 0" in found["nothing_to_average"]
    assert "term 1 (dice)" in found["nothing_to_average"]


def test_gradnorm_answers_the_renormalised_weights() -> None:
    row = next(row for row in COMPOSITIONS if row.name == "gradnorm")
    inputs = drawn(row)
    weights = torch.tensor(alone(request(row), inputs).document["renormalised_weights"])
    assert float(weights.sum()) == pytest.approx(4.0)
    ratios = inputs["task_weight"] / weights
    torch.testing.assert_close(ratios, ratios[:1].expand(4))


REFUSED = [
    ("no terms", {"terms": []}, InvalidRequest, "at least 1"),
    ("unknown loss", {"terms": [{"loss": {"name": "mze"}}]}, UnknownLoss, "term 0: .*mse"),
    ("bad parameter", {"terms": [{"loss": {"name": "huber", "delta": -1}}]}, InvalidRequest, "term 0: loss.delta"),
    ("unknown field", {"terms": [{"loss": {"name": "mse"}, "wait": 1}]}, InvalidRequest, "wait"),
    ("unknown mapping", {"terms": [{"loss": {"name": "mse"}, "inputs": {"x": "y"}}]}, UnknownInput, "'x'"),
    ("not a number", {"terms": [{"loss": {"name": "mse", "reduction": "none"}}]}, InvalidRequest, "reduction"),
    (
        "nested",
        {"terms": [{"loss": {"name": "weighted_sum", "terms": [{"loss": {"name": "mse"}}]}}]},
        InvalidRequest,
        "composed",
    ),
    (
        "missing head",
        {"terms": [{"loss": {"name": "mse"}, "inputs": {"prediction": "head"}}]},
        MissingInput,
        "head",
    ),
]


@pytest.mark.parametrize(("loss", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_faulty_term_is_named(loss: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        alone({"loss": {"name": "weighted_sum", **loss}}, masks(torch.Generator().manual_seed(4)))


def test_a_faulty_tensor_is_named_with_its_term() -> None:
    inputs = masks(torch.Generator().manual_seed(5))
    with pytest.raises(InvalidValue, match=r"term 0 \(bce_with_logits\): .*target\[0, 0, 0\]"):
        alone({"loss": {"name": "bce_dice"}}, inputs | {"target": inputs["target"] + 3})
    with pytest.raises(ShapeMismatch, match=r"term 0 \(bce_with_logits\): target"):
        alone({"loss": {"name": "bce_dice"}}, inputs | {"target": inputs["target"][:2]})
    with pytest.raises(UnknownInput, match="goal"):
        alone({"loss": {"name": "bce_dice"}}, inputs | {"goal": inputs["target"]})
