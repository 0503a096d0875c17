from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import lossd
from lossd.losses import REGISTRY
from lossd.pictures.axes import all_axes, axes_of
from lossd.pictures.curves import MAX_LINES, OPTIONS, Curve, Line, PointAnswer, curve
from lossd_client.errors import InvalidRequest, NotEvaluable, Problem, UnknownLoss
from rows import in_one_item

Array = np.ndarray[Any, Any]


def has_curve(name: str) -> bool:
    try:
        return bool(axes_of(REGISTRY[name]))
    except NotEvaluable:
        return False


# gradnorm holds the target of the gradient norms constant; ctc's gradient is that of a log-softmax's input.
NO_SLOPE = {"gradnorm", "ctc"}
AXES = [
    (name, axis.name)
    for name, loss in REGISTRY.items()
    for axis in all_axes(loss)
    if not axis.sets and name not in NO_SLOPE
]


def needed(name: str) -> dict[str, list[Any]]:
    """The parameters that a loss must be given."""
    return {parameter: [value] for parameter, value in all_axes(REGISTRY[name])[0].start.items()}


def answers(line: Line, outputs: list[str] | None = None) -> list[PointAnswer]:
    """A line's points, evaluated; with the outputs that it requests, unless others are given."""
    evaluations = (
        lossd.evaluate(request["loss"], inputs=inputs, outputs=outputs or request["outputs"])
        for request, inputs in zip(line.requests, line.inputs, strict=True)
    )
    return [PointAnswer(evaluation.loss, evaluation.gradients) for evaluation in evaluations]


def drawn(picture: Curve) -> dict[str, Any]:
    return picture.document([answers(line) for line in picture.lines])


# What is drawn


def test_losses_without_a_curve_are_those_that_need_more_than_an_axis() -> None:
    without = {name for name in REGISTRY if not has_curve(name)}
    assert without == {"weighted_sum", "uncertainty", "curriculum", "gradnorm", "perceptual", "ctc"}


def test_the_curve_s_own_options_are_no_loss_s_parameters() -> None:
    assert not {p.name for loss in REGISTRY.values() for p in loss.parameters} & set(OPTIONS)


@in_one_item("name, axis", AXES)
def test_the_gradient_is_the_slope_in_its_direction(name: str, axis: str) -> None:
    points, step = 12, 1e-6
    picture = curve(name, needed(name), x=axis, points=points)
    for line, series in zip(picture.lines, drawn(picture)["series"], strict=True):
        assert np.isfinite(series["loss"]).all()

        def loss(moved: float, line: Line = line) -> Array:
            inputs = {**line.path.inputs}
            for name, toward in line.path.toward.items():
                inputs[name] = inputs[name] + moved * toward
            there = replace(line, path=line.path._replace(inputs=inputs))
            values = np.concatenate([np.ravel(answer.loss) for answer in answers(there, ["loss"])])
            return values.reshape(points, -1).sum(1)

        forward = 0 if name == "vae" and axis == "prediction" else step  # ends at a probability of 1
        slope = (loss(forward) - loss(-step)) / (forward + step)
        right = np.isclose(slope, series["gradient"], rtol=1e-3, atol=1e-5)
        assert right.sum() >= points - 1, "all but a point at a kink"


@in_one_item(
    "name, parameters, axis, expected",
    [
        ("mse", {}, "error", lambda x: x**2),
        ("huber", {"delta": [2.0]}, "error", lambda x: np.where(abs(x) <= 2, x**2 / 2, 2 * (abs(x) - 1))),
        ("quantile", {"q": [0.9]}, "error", lambda x: np.where(x < 0, -0.9 * x, 0.1 * x)),
        ("gaussian_nll", {}, "variance", lambda x: (np.log(x) + 1 / x) / 2),
        ("poisson_nll", {"log_input": [False]}, "rate", lambda x: x - 3 * np.log(x)),
        ("cross_entropy", {}, "probability", lambda p: -np.log(p)),
        ("cross_entropy", {}, "margin", lambda m: np.log1p(np.exp(-m))),
        ("focal", {"gamma": [3]}, "probability", lambda p: -((1 - p) ** 3) * np.log(p)),
        ("sigmoid_focal", {"from_logits": [False], "alpha": [1]}, "probability", lambda p: -((1 - p) ** 2) * np.log(p)),
        ("bce", {}, "probability", lambda p: -np.log(p)),
        ("nll", {}, "probability", lambda p: -np.log(p)),
        ("kl_div", {}, "probability", lambda p: 0.75 * np.log(0.75 / p) + 0.25 * np.log(0.25 / (1 - p))),
        (
            "kl_div",
            {"log_target": [True]},
            "probability",
            lambda p: 0.75 * np.log(0.75 / p) + 0.25 * np.log(0.25 / (1 - p)),
        ),
        ("multi_margin", {}, "margin", lambda m: np.maximum(0, 1 - m) / 2),
        ("multilabel_margin", {}, "margin", lambda m: np.maximum(0, 1 - m) / 2),
        ("soft_margin", {}, "margin", lambda m: np.log1p(np.exp(-m))),
        ("dice", {"smooth": [0]}, "overlap", lambda x: 1 - x),
        ("dice", {"smooth": [0], "mode": ["binary"]}, "overlap", lambda x: 1 - x),
        ("dice", {"smooth": [0], "mode": ["multilabel"], "from_logits": [False]}, "overlap", lambda x: 1 - x),
        ("jaccard", {"smooth": [0]}, "overlap", lambda x: 1 - x / (2 - x)),
        ("soft_f1", {}, "overlap", lambda x: 1 - x),
        ("bce_dice", {"smooth": [0]}, "overlap", lambda x: 1 - x - np.log(x)),
        ("iou", {}, "offset", lambda s: 1 - np.maximum(0, 1 - s) / (1 + np.minimum(1, s))),
        ("iou", {"format": ["cxcywh"]}, "overlap", lambda x: 1 - x),
        ("giou", {"format": ["xywh"]}, "offset", lambda s: 1 - (1 - s) / (1 + s)),
        ("hinge_embedding", {"margin": [2.0]}, "distance", (lambda d: d, lambda d: np.maximum(0, 2 - d))),
        (
            "contrastive",
            {"eps": [0], "factor": [0.5]},
            "distance",
            (lambda d: d**2 / 2, lambda d: np.maximum(0, 1 - d) ** 2 / 2),
        ),
        ("cosine_embedding", {}, "cosine", (lambda c: 1 - c, lambda c: np.maximum(0, c))),
        ("triplet", {"margin": [0.5]}, "distance", lambda d: np.maximum(0, 1 - d + 0.5)),
        ("clip", {"temperature": [0.5]}, "cosine", lambda c: np.log(1 + 3 * np.exp(-c / 0.5))),
        ("supcon", {"temperature": [0.5]}, "cosine", lambda c: np.log(1 + 6 * np.exp(-c / 0.5))),
        ("margin_ranking", {"margin": [1.0]}, "margin", lambda m: np.maximum(0, 1 - m)),
        ("ranknet", {"sigma": [2.0]}, "margin", lambda m: np.log1p(np.exp(-2 * m))),
        ("lambda_loss", {}, "margin", lambda m: (1 - 1 / np.log2(3)) * np.log1p(np.exp(-m))),
        ("list_net", {}, "margin", lambda m: np.log1p(np.exp(m)) - np.e / (1 + np.e) * m),
        ("list_mle", {}, "margin", lambda m: np.log1p(np.exp(-m))),
        ("approx_ndcg", {"temperature": [1.0]}, "margin", lambda m: -1 / np.log2(2 + 1 / (1 + np.exp(m)))),
        ("dpo", {}, "margin", lambda m: np.log1p(np.exp(-0.1 * m))),
        ("dpo", {"form": ["ipo"], "beta": [0.5]}, "margin", lambda m: (m - 1) ** 2),
        ("simpo", {"beta": [1.0], "gamma": [0.5]}, "margin", lambda m: np.log1p(np.exp(0.5 - m))),
        ("bradley_terry", {}, "margin", lambda m: np.log1p(np.exp(-m))),
        ("orpo", {"beta": [1.0]}, "probability", lambda p: -np.log(p)),  # the odds of the other are 1
        ("kto", {}, "log_ratio", (lambda r: 1 / (1 + np.exp(0.1 * r)), lambda r: 1 / (1 + np.exp(-0.1 * r)))),
        (
            "policy_gradient",
            {},
            "ratio",
            (lambda r: -np.minimum(r, 1.2), lambda r: np.maximum(r, 0.8)),
        ),
        (
            "policy_gradient",
            {"form": ["reinforce"]},
            "ratio",
            (lambda r: -np.log(r / 2), lambda r: np.log(r / 2)),
        ),
        (
            "distillation",
            {},
            "probability",
            lambda p: 0.75 * np.log(0.75 / p) + 0.25 * np.log(0.25 / (1 - p)),
        ),
        ("hinge_gan_discriminator", {}, "score", lambda s: 2 * np.maximum(0, 1 - s)),
        ("lsgan_discriminator", {}, "score", lambda s: (s - 1) ** 2),
        ("vae", {"beta": [2.0]}, "mean", lambda m: m**2),
        ("vae", {}, "log_variance", lambda s: (np.exp(s) - 1 - s) / 2),
        ("expression", {"formula": ["abs(prediction - target)"]}, "error", abs),
    ],
)
def test_the_loss_is_the_definition_s(name: str, parameters: dict[str, list[Any]], axis: str, expected: Any) -> None:
    document = drawn(curve(name, parameters, x=axis, points=20))
    x = np.array(document["x"])
    definitions = expected if isinstance(expected, tuple) else (expected,)
    for series, definition in zip(document["series"], definitions, strict=True):
        np.testing.assert_allclose(series["loss"], definition(x), rtol=1e-5, atol=1e-5)


def alignments(p: Array) -> Array:
    """The probability of the symbols 1 2 in four frames, each with p for its own symbol of 1 1 2 2."""
    total = np.zeros_like(p)
    for path in itertools.product((0, 1, 2), repeat=4):
        collapsed = [symbol for symbol, _ in itertools.groupby(path) if symbol]
        if collapsed == [1, 2]:
            matches = sum(symbol == target for symbol, target in zip(path, (1, 1, 2, 2), strict=True))
            total += p**matches * ((1 - p) / 2) ** (4 - matches)
    return total


@in_one_item(
    "name, parameters, axis, at, expected",
    [
        ("gaussian_nll", {}, "error", {"variance": 2.0}, lambda x: (np.log(2) + x**2 / 2) / 2),
        ("gaussian_nll", {}, "variance", {"error": 3}, lambda x: (np.log(x) + 9 / x) / 2),
        ("poisson_nll", {"log_input": [False]}, "rate", {"count": 5}, lambda x: x - 5 * np.log(x)),
        ("bce", {}, "probability", {"target": 0}, lambda p: -np.log(p)),
        ("soft_margin", {}, "probability", {"target": 0}, lambda p: -np.log(p)),
        ("cross_entropy", {}, "probability", {"classes": 5}, lambda p: -np.log(p)),
        ("cross_entropy", {}, "margin", {"classes": 5}, lambda m: np.log1p(np.exp(-m))),
        ("nll", {}, "probability", {"classes": 7}, lambda p: -np.log(p)),
        ("multi_margin", {}, "margin", {"classes": 4}, lambda m: 3 * np.maximum(0, 1 - m) / 4),
        ("multilabel_soft_margin", {}, "margin", {"labels": 4}, lambda m: np.log1p(np.exp(-m))),
        ("kl_div", {}, "probability", {"share": 1}, lambda p: -np.log(p)),
        (
            "dice",
            {"smooth": [0], "mode": ["binary"]},
            "overlap",
            {"share": 0.25},
            lambda p: 1 - 2 * p / (p + 3 * (1 - p) + 1),
        ),
        ("iou", {}, "offset", {"below": 2}, lambda s: 1 + 0 * s),
        (
            "iou",
            {"format": ["cxcywh"]},
            "offset",
            {"size": 3},
            lambda s: 1 - np.clip(2 - s, 0, 1) / (10 - np.clip(2 - s, 0, 1)),
        ),
        ("hinge_embedding", {"margin": [2.0]}, "distance", {"similar": 0}, lambda d: np.maximum(0, 2 - d)),
        ("triplet", {"margin": [0.5]}, "distance", {"positive": 2}, lambda d: np.maximum(0, 2 - d + 0.5)),
        ("margin_ranking", {"margin": [1.0]}, "margin", {"higher": -1}, lambda m: np.maximum(0, 1 + m)),
        ("soft_f1", {}, "probability", {}, lambda p: 1 - p),
        ("ctc", {}, "probability", {}, lambda p: -np.log(alignments(p)) / 2),
        (
            "weighted_sum",
            {"terms": [[{"loss": {"name": "mse"}, "weight": 0.5}, {"loss": {"name": "mae"}, "weight": 1}]]},
            "error",
            {},
            lambda x: x**2 / 2 + abs(x),
        ),
        (
            "uncertainty",
            {"terms": [[{"loss": {"name": "mse"}}]], "form": ["unhalved"]},
            "log_variance",
            {"error": 2},
            lambda s: 4 * np.exp(-s) + s,
        ),
        (
            "curriculum",
            {"loss": [{"name": "mse"}]},
            "progress",
            {},
            lambda t: np.array([np.mean([(i / 5) ** 2 for i in range(11) if i / 10 <= p]) for p in t]),
        ),
    ],
)
def test_the_given_numbers_of_an_axis_are_in_its_inputs(
    name: str, parameters: dict[str, list[Any]], axis: str, at: dict[str, float], expected: Callable[[Array], Array]
) -> None:
    document = drawn(curve(name, parameters, x=axis, at=at, points=11))
    (series,) = document["series"]
    np.testing.assert_allclose(series["loss"], expected(np.array(document["x"])), rtol=1e-5, atol=1e-5)
    assert (series["gradient"] is None) == (name == "curriculum")


# Lines


def test_parameters_with_several_values_are_lines_in_every_combination() -> None:
    document = drawn(curve("focal", {"gamma": [0, 2], "alpha": [0.25, 0.75]}))
    assert [series["parameters"] for series in document["series"]] == [
        {"gamma": 0, "alpha": 0.25}, {"gamma": 0, "alpha": 0.75},
        {"gamma": 2, "alpha": 0.25}, {"gamma": 2, "alpha": 0.75},
    ]  # fmt: skip
    assert document["series"][0]["label"] == "focal, gamma 0, alpha 0.25"


def test_other_losses_are_laid_over_along_the_same_axis() -> None:
    document = drawn(curve("focal", {"gamma": [0]}, others=["cross_entropy", "bce"]))
    focal, cross_entropy, bce = (np.array(series["loss"]) for series in document["series"])
    np.testing.assert_allclose(focal, cross_entropy)
    np.testing.assert_allclose(bce, cross_entropy, rtol=1e-5)
    with pytest.raises(NotEvaluable, match="mse cannot be drawn along 'probability', only along error"):
        curve("focal", others=["mse"])


def test_the_axis_its_ends_and_the_others_are_said() -> None:
    document = drawn(curve("focal", x="margin", low=-1, high=1))
    assert (document["axis"], document["axes"]) == ("margin", ["probability", "margin"])
    assert (document["x"][0], document["x"][-1]) == (-1, 1)
    assert document["label"].startswith("margin")
    assert document["series"][0]["gradient_of"] == "the class's score"


@pytest.mark.parametrize(
    ("name", "parameters", "label", "subject"),
    [
        ("poisson_nll", {}, "predicted rate", "the logarithm of the rate"),
        ("tweedie", {}, "predicted mean", "the logarithm of the mean"),
        ("tweedie", {"log_input": [False]}, "predicted mean", "the mean"),
        ("negative_binomial_nll", {}, "predicted mean", "the mean"),
        ("squared_log", {}, "prediction", "the prediction"),
    ],
)
def test_the_gradient_is_of_the_quantity_of_the_axis(
    name: str, parameters: dict[str, list[Any]], label: str, subject: str
) -> None:
    document = drawn(curve(name, parameters, points=3))
    assert document["label"].startswith(f"{label}, where ")
    assert document["series"][0]["gradient_of"] == subject


@in_one_item(
    "ask, kind, detail",
    [
        (lambda: curve("focul"), UnknownLoss, "did you mean focal"),
        (lambda: curve("ctc"), NotEvaluable, "ctc has no curve: it depends on every path"),
        (lambda: curve("weighted_sum"), NotEvaluable, "ask for the curve of one of those"),
        (lambda: curve("focal", {"gamma": [-1]}), InvalidRequest, "gamma"),
        (lambda: curve("focal", {"gama": [1]}), InvalidRequest, "gama"),
        (lambda: curve("focal", {"reduction": ["sum"]}), InvalidRequest, "nothing for reduction to reduce"),
        (lambda: curve("focal", x="error"), InvalidRequest, "x can be probability or margin"),
        (lambda: curve("ctc"), NotEvaluable, "x=probability draws an example"),
        (lambda: curve("perceptual", x="error"), NotEvaluable, "perceptual has no curve"),
        (lambda: curve("focal", at={"share": 1}), InvalidRequest, "has no number at.'share'; it has at.classes"),
        (lambda: curve("mse", at={"share": 1}), InvalidRequest, "it has none"),
        (
            lambda: curve("focal", at={"classes": 2.5}),
            InvalidRequest,
            "at.classes must be an integer from 2 to 20; found 2.5",
        ),
        (lambda: curve("focal", at={"classes": 21}), InvalidRequest, "from 2 to 20; found 21"),
        (lambda: curve("focal", at={"classes": "many"}), InvalidRequest, "at.classes must be a number"),
        (lambda: curve("kl_div", at={"share": float("nan")}), InvalidRequest, "from 0 to 1; found NaN"),
        (lambda: curve("bce", at={"target": 0.5}), InvalidRequest, "must be 1 (positive) or 0 (negative); found 0.5"),
        (lambda: curve("focal", low=0.5, high=0.5), InvalidRequest, "low must be below high"),
        (lambda: curve("focal", high=1.5), InvalidRequest, "both within 1e-06 and 0.999999; found 0.005 and 1.5"),
        (lambda: curve("focal", {"gamma": list(range(MAX_LINES + 1))}), InvalidRequest, "13 lines; there may be 12"),
        (lambda: curve("dice", {"smooth": [0, 1, 2]}, points=500), InvalidRequest, "3 times 500 requests"),
        (lambda: curve("focal", points=1), InvalidRequest, "2 to 501 points, found 1"),
        (lambda: curve("expression", {"formula": ["a - b"]}), NotEvaluable, "be prediction and target; found a, b"),
    ],
)
def test_what_cannot_be_drawn_is_said(ask: Callable[[], Curve], kind: type[Problem], detail: str) -> None:
    with pytest.raises(kind) as refused:
        ask()
    assert detail in refused.value.detail
