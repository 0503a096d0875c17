"""Custom objectives: the derivatives and the models of XGBoost's and LightGBM's own objectives."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
import pytest
import xgboost
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

import lossd
from lossd_client import LossdError
from lossd_client.boosting import objective
from serving import running

Array = npt.NDArray[Any]

RANDOM = np.random.default_rng(0)
SCORES, CLASS_SCORES = RANDOM.normal(0, 1.5, 12), RANDOM.normal(0, 1.5, (12, 3))
NUMBERS = RANDOM.normal(0, 2, 12)
COUNTS = np.exp(SCORES) * RANDOM.uniform(0.2, 2, 12)  # near the rates, because XGBoost limits a leaf of count:poisson
AMOUNTS = COUNTS * (np.arange(12) % 3 > 0)
LABELS, CLASSES = np.arange(12) % 2 * 1.0, np.arange(12) % 3 * 1.0
WEIGHTS = RANDOM.uniform(0.5, 2, 12)

LOSSES = [
    pytest.param("squared_error", {}, "reg:squarederror", "regression", SCORES, NUMBERS, id="squared error"),
    pytest.param("logistic", {}, "binary:logistic", "binary", SCORES, LABELS, id="logistic"),
    pytest.param("softmax", {}, "multi:softprob", "multiclass", CLASS_SCORES, CLASSES, id="softmax"),
    pytest.param("poisson", {}, "count:poisson", "poisson", SCORES, COUNTS, id="poisson"),
    pytest.param("huber", {"delta": 0.9}, None, "huber", SCORES, NUMBERS, id="huber"),
    pytest.param("gamma", {}, "reg:gamma", "gamma", SCORES, COUNTS, id="gamma"),
    pytest.param("tweedie", {"power": 1.3}, "reg:tweedie", "tweedie", SCORES, AMOUNTS, id="tweedie"),
    pytest.param("pseudo_huber", {"delta": 0.9}, "reg:pseudohubererror", None, SCORES, NUMBERS, id="pseudo-Huber"),
    pytest.param("squared_log_error", {}, "reg:squaredlogerror", None, AMOUNTS, COUNTS, id="squared log"),
    pytest.param("fair", {"c": 0.9}, None, "fair", SCORES, NUMBERS, id="fair"),
]
OF_XGBOOST, OF_LIGHTGBM = ([p for p in LOSSES if p.values[place]] for place in (2, 3))
SPELLED = {
    "delta": ("huber_slope", "alpha"),
    "power": ("tweedie_variance_power", "tweedie_variance_power"),
    "c": ("", "fair_c"),
}
"""What XGBoost and LightGBM call a parameter."""


def spelled(parameters: dict[str, Any], library: int) -> dict[str, Any]:
    return {SPELLED[name][library]: value for name, value in parameters.items()}


def of_xgboost(name: str, scores: Array, labels: Array, weights: Array, **parameters: Any) -> tuple[Array, Array]:
    """XGBoost's own gradient and second derivative of each row: a tree without splits is -g/h, and states h."""
    classes = {"num_class": scores.shape[1]} if scores.ndim == 2 else {}
    settings = {
        "objective": name,
        "lambda": 0,
        "min_child_weight": 0,
        "max_depth": 1,
        "eta": 1,
        "nthread": 1,
        **classes,
        **parameters,
    }
    rows = []
    for score, label, weight in zip(scores, labels, weights, strict=True):
        data = xgboost.DMatrix(np.zeros((1, 1)), [label], weight=[weight], base_margin=np.array([score]), nthread=1)
        booster = xgboost.train({**settings, "base_score": 0.5}, data, 1)
        trees = [json.loads(text) for text in booster.get_dump(with_stats=True, dump_format="json")]
        rows.append([(-tree["leaf"] * tree["cover"], tree["cover"]) for tree in trees])
    found = np.array(rows).reshape(*scores.shape, 2)
    return found[..., 0], found[..., 1]


def of_lightgbm(name: str, scores: Array, labels: Array, **parameters: Any) -> Iterator[tuple[Array, float, float]]:
    """The rows of each leaf of LightGBM's first trees, with the sums of its own gradients and second derivatives."""
    classes = {"num_class": scores.shape[1]} if scores.ndim == 2 else {}
    features = np.arange(len(labels), dtype=float)[:, None]
    data = lightgbm.Dataset(
        features, labels, init_score=scores, params={"min_data_in_bin": 1, "verbose": -1, "feature_pre_filter": False}
    )
    settings = {"num_leaves": len(labels), "min_data_in_leaf": 1, "min_sum_hessian_in_leaf": 0, "learning_rate": 1}
    quiet = {"boost_from_average": False, "verbose": -1, "num_threads": 1, "objective": name}
    booster = lightgbm.train({**settings, **quiet, **classes, **parameters}, data, 1)
    leaf_of_row = booster.predict(features, pred_leaf=True)
    for position, tree in enumerate(booster.dump_model()["tree_info"]):
        column = (position,) if scores.ndim == 2 else ()
        for leaf in leaves(tree["tree_structure"]):
            rows = np.flatnonzero(leaf_of_row[:, position] == leaf["leaf_index"])
            place = np.zeros(scores.shape, bool)
            place[(rows, *column)] = True
            yield place, -leaf["leaf_value"] * leaf["leaf_weight"], leaf["leaf_weight"]


def leaves(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "leaf_index" in node:
        yield node
    else:
        yield from leaves(node["left_child"])
        yield from leaves(node["right_child"])


@pytest.mark.parametrize(("name", "parameters", "builtin", "_", "scores", "labels"), OF_XGBOOST)
def test_derivatives_equal_xgboosts_own(
    name: str, parameters: dict[str, Any], builtin: str, _: str, scores: Array, labels: Array
) -> None:
    data = xgboost.DMatrix(np.zeros((12, 1)), labels, weight=WEIGHTS, nthread=1)
    found = objective(name, client=lossd, **parameters)(scores.astype(np.float32), data)
    expected = of_xgboost(builtin, scores, labels, WEIGHTS, **spelled(parameters, 0))
    for value, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, theirs, rtol=2e-6, atol=1e-7)  # float32 throughout, and in the tree's text


@pytest.mark.parametrize(("name", "parameters", "_", "builtin", "scores", "labels"), OF_LIGHTGBM)
def test_derivatives_equal_lightgbms_own(
    name: str, parameters: dict[str, Any], _: str, builtin: str, scores: Array, labels: Array
) -> None:
    gradient, hessian = objective(name, client=lossd, form="lightgbm", **parameters)(labels, scores)
    compared = 0
    for place, of_gradient, of_hessian in of_lightgbm(builtin, scores, labels, **spelled(parameters, 1)):
        assert hessian[place].sum() == pytest.approx(of_hessian, rel=2e-6)
        assert gradient[place].sum() == pytest.approx(of_gradient, rel=2e-6, abs=2e-6)
        compared += 1
    assert compared >= 4


REFITTED = [
    ("mae", {}, "reg:absoluteerror", {}, "regression_l1", {}),
    ("quantile", {"q": 0.3}, "reg:quantileerror", {"quantile_alpha": 0.3}, "quantile", {"alpha": 0.3}),
    ("mape", {"eps": 1.0}, None, {}, "mape", {}),
]
"""Losses of which the libraries refit the leaves afterwards: of their derivatives, a tree tells the second."""


@pytest.mark.parametrize(("name", "parameters", "in_xgboost", "of_first", "in_lightgbm", "of_second"), REFITTED)
def test_second_derivatives_equal_those_of_refitted_leaves(
    name: str,
    parameters: dict[str, Any],
    in_xgboost: str | None,
    of_first: dict[str, Any],
    in_lightgbm: str,
    of_second: dict[str, Any],
) -> None:
    if in_xgboost is not None:
        found = objective(name, client=lossd, form="xgboost", **parameters)(NUMBERS, SCORES, WEIGHTS)[1]
        np.testing.assert_allclose(found, of_xgboost(in_xgboost, SCORES, NUMBERS, WEIGHTS, **of_first)[1], rtol=2e-6)
    found = objective(name, client=lossd, form="lightgbm", **parameters)(NUMBERS, SCORES)[1]
    weights = [(place, weight) for place, _, weight in of_lightgbm(in_lightgbm, SCORES, NUMBERS, **of_second)]
    assert len(weights) >= 4
    for place, weight in weights:
        assert found[place].sum() == pytest.approx(weight, rel=2e-6)


def test_a_hinge_has_the_derivatives_of_xgboosts() -> None:
    """XGBoost's labels are 0 and 1, lossd's -1 and 1."""
    signs = 2 * LABELS - 1
    inside = signs * SCORES < 1
    assert 0 < inside.sum() < 12
    gradient, hessian = objective("hinge", client=lossd, form="xgboost")(signs, SCORES, WEIGHTS)
    of_gradient, of_hessian = of_xgboost("binary:hinge", SCORES, LABELS, WEIGHTS)
    np.testing.assert_allclose(gradient[inside], of_gradient[inside], rtol=2e-6)
    np.testing.assert_allclose(hessian[inside], of_hessian[inside], rtol=2e-6)
    assert not gradient[~inside].any()
    assert max(hessian[~inside].max(), of_hessian[~inside].max()) < 1e-15


LIKELIHOODS = ("poisson", "gamma", "tweedie")
DATA: dict[str, Callable[..., Any]] = {
    "squared_error": load_diabetes,
    "logistic": load_breast_cancer,
    "softmax": load_wine,
    **dict.fromkeys(LIKELIHOODS, load_diabetes),
}
TRAINED = [p for p in LOSSES if p.values[0] in DATA]


def data_of(name: str) -> tuple[Array, Array]:
    features, target = DATA[name](return_X_y=True)
    changed = {
        "poisson": lambda: np.round(target / 40),
        "tweedie": lambda: np.maximum(target - 100, 0) / 40,  # of which a third is 0
        "gamma": lambda: target / 40,
        "squared_error": lambda: target / 100,
    }
    return features, changed.get(name, lambda: target)()


def metric(name: str, raw: Array, target: Array, **parameters: Any) -> float:
    """The mean loss of raw scores, in float64."""
    loss = objective(name).loss
    return float(lossd.evaluate(loss, raw.astype(float), target, outputs=["loss"], **parameters).loss)


@pytest.mark.parametrize(("name", "parameters", "builtin", "_", "scores", "__"), TRAINED)
def test_a_model_of_xgboost_is_as_good_as_with_its_own_objective(
    name: str, parameters: dict[str, Any], builtin: str, _: str, scores: Array, __: Array
) -> None:
    features, target = data_of(name)
    labels = target.astype(np.int64) if name == "softmax" else target.astype(float)
    classes = {"num_class": 3} if scores.ndim == 2 else {}
    # XGBoost limits a leaf of count:poisson to 0.7, and starts from an intercept: neither is part of an objective.
    settings = {
        "max_depth": 3,
        "eta": 0.3,
        "seed": 0,
        "nthread": 1,
        "max_delta_step": 0.7 * (name == "poisson"),
    }
    margin = np.zeros((len(target), 3) if classes else len(target))
    data = xgboost.DMatrix(features, target, base_margin=margin, nthread=1)
    reference = xgboost.train({**settings, **classes, **spelled(parameters, 0), "objective": builtin}, data, 15)
    custom = xgboost.train({**settings, **classes}, data, 15, obj=objective(name, client=lossd, **parameters))
    raw = [booster.predict(data, output_margin=True) for booster in (reference, custom)]
    start, expected, found = (metric(name, scores, labels, **parameters) for scores in (margin, *raw))
    assert found == pytest.approx(expected, abs=1e-6)
    assert expected < (start - 0.1 if name in LIKELIHOODS else 0.7 * start), "nothing was learned"


@pytest.mark.parametrize(("name", "parameters", "_", "builtin", "scores", "__"), TRAINED)
def test_a_model_of_lightgbm_is_as_good_as_with_its_own_objective(
    name: str, parameters: dict[str, Any], _: str, builtin: str, scores: Array, __: Array
) -> None:
    features, target = data_of(name)
    classes = {"num_class": 3} if scores.ndim == 2 else {}
    settings = {
        "num_leaves": 7,
        "seed": 0,
        "num_threads": 1,
        "verbose": -1,
        "boost_from_average": False,
        **classes,
        **spelled(parameters, 1),
    }
    raw = []
    for chosen in (builtin, objective(name, client=lossd, **parameters)):
        booster = lightgbm.train({**settings, "objective": chosen}, lightgbm.Dataset(features, target), 15)
        raw.append(booster.predict(features, raw_score=True))
    labels = target.astype(np.int64) if name == "softmax" else target.astype(float)
    expected, found = (metric(name, scores, labels, **parameters) for scores in raw)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(engine="inline") as service:
        yield service.url


def test_a_model_trained_through_a_service_is_that_of_this_process(url: str) -> None:
    features, target = data_of("tweedie")
    data = xgboost.DMatrix(features, target, base_margin=np.zeros(len(target)), nthread=1)
    settings = {"max_depth": 3, "seed": 0, "nthread": 1}
    raw = [
        xgboost.train(settings, data, 5, obj=objective("tweedie", power=1.5, **where)).predict(data)
        for where in ({"url": url}, {"client": lossd})
    ]
    np.testing.assert_array_equal(*raw)
    features, target = data_of("softmax")
    settings = {"n_estimators": 5, "n_jobs": 1, "verbose": -1, "random_state": 0}
    models = [
        lightgbm.LGBMClassifier(objective=objective("softmax", **where), **settings)
        for where in ({"url": url}, {"client": lossd})
    ]
    raw = [model.fit(features, target).predict(features, raw_score=True) for model in models]
    np.testing.assert_array_equal(*raw)


def test_labels_of_several_quantiles_keep_their_fractions() -> None:
    labels, scores = np.array([0.7, 2.0]), np.array([[0.5, 0.9], [1.0, 3.0]])
    gradient, hessian = objective("quantiles", client=lossd, levels=[0.5, 0.9], form="lightgbm")(labels, scores)
    np.testing.assert_allclose(gradient, [[-0.25, 0.05], [-0.25, 0.05]])
    np.testing.assert_allclose(hessian, np.full((2, 2), 0.5))


def test_one_model_learns_several_quantiles() -> None:
    features, target = load_diabetes(return_X_y=True)
    levels, hundreds = [0.1, 0.5, 0.9], target / 100
    start = np.tile(np.quantile(hundreds, levels), (len(target), 1))
    custom = objective("quantiles", client=lossd, levels=levels)
    settings = {"objective": custom, "num_class": 3, "num_leaves": 7, "learning_rate": 0.1, "verbose": -1}
    data = lightgbm.Dataset(features, hundreds, init_score=start)
    booster = lightgbm.train({**settings, "num_threads": 1, "seed": 0}, data, 30)
    scores = start + booster.predict(features, raw_score=True)
    np.testing.assert_allclose((hundreds[:, None] <= scores).mean(0), levels, atol=0.1)
    losses = [lossd.evaluate("quantiles", s, hundreds, levels=levels, outputs=["loss"]).loss for s in (start, scores)]
    assert losses[1] < 0.8 * losses[0], "nothing was learned"


def test_estimators_of_scikit_learn_take_an_objective_with_weights() -> None:
    features, target = load_breast_cancer(return_X_y=True)
    weights = np.where(target == 1, 2.0, 0.5)
    custom = objective("logistic", client=lossd)
    ours, reference = (
        xgboost.XGBClassifier(n_estimators=5, base_score=0.5, n_jobs=1, **o) for o in ({"objective": custom}, {})
    )
    scores = [
        m.fit(features, target, sample_weight=weights).predict(features, output_margin=True) for m in (ours, reference)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    settings = {"n_estimators": 5, "n_jobs": 1, "verbose": -1, "boost_from_average": False}
    models = [lightgbm.LGBMClassifier(objective=o, **settings) for o in (custom, "binary")]
    scores = [m.fit(features, target, sample_weight=weights).predict(features, raw_score=True) for m in models]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_catboost_gets_the_opposite_signs() -> None:
    custom = objective("squared_error", client=lossd)
    pairs = custom.calc_ders_range([[2.0, 1.0]], [0.0, 3.0], [1.0, 3.0])
    assert pairs == [(-2.0, -1.0), (6.0, -3.0)]
    with pytest.raises(ValueError, match="2 outputs"):
        custom.calc_ders_range([[1.0], [2.0]], [0.0])


def test_an_objective_is_copied_and_pickled() -> None:
    custom = objective("focal", url="http://127.0.0.1:9", gamma=1.0)
    assert copy.deepcopy(custom) is custom
    assert repr(pickle.loads(pickle.dumps(custom))) == "objective('focal', gamma=1.0)"


def test_floor_and_form_go_to_the_service() -> None:
    scores, labels = np.array([-3.0]), np.array([1.0])
    [exact] = objective("sigmoid_focal", client=lossd)(labels, scores)[1]
    [floored] = objective("sigmoid_focal", client=lossd, floor=1e-3)(labels, scores)[1]
    [information] = objective("sigmoid_focal", client=lossd, form="fisher")(labels, scores)[1]
    assert exact == pytest.approx(-0.005022, abs=1e-6)
    assert floored == pytest.approx(1e-3)
    assert information > 0


def test_what_is_wrong_is_refused() -> None:
    with pytest.raises(TypeError, match="not both"):
        objective("mse", url="http://127.0.0.1:1", client=lossd)
    with pytest.raises(TypeError, match="leave out the reduction"):
        objective("mse", reduction="mean")
    with pytest.raises(ValueError, match=r"shape \(6,\), expected \(3,\) or \(3, classes\)"):
        objective("softmax", client=lossd)(np.zeros(3), np.zeros(6))
    with pytest.raises(LossdError, match="dice by prediction is not diagonal"):
        objective("dice", client=lossd, mode="binary")(np.zeros(3), np.zeros(3))
