"""The further metrics of scoring: their options, their edges, and what a run makes of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from sklearn import metrics as sk

import lossd
from lossd.request.planning import make_plan
from lossd_client.errors import InvalidRequest
from metrics.measuring import alike, measure
from metrics.oracles_scoring import _ace, _boundary, _eer, _gain, _ks
from metrics.samples import Sample


def regression(request: dict[str, Any], names: list[str], **options: Any) -> dict[str, Any]:
    [answer] = measure("regression", [request], names, activation="real", **options)
    return answer


def positive(n: int = 50) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    target = rng.gamma(2.0, 1.5, n)
    return {"prediction": target * np.exp(rng.normal(size=n) / 3), "target": target}


def test_quadratic_kappa_of_a_run_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 6, 400)
    scores = rng.normal(size=(400, 6)) - 0.5 * np.abs(np.arange(6) - target[:, None])
    weight = rng.random(400)
    for weights in ("linear", "quadratic"):
        metrics = {"names": ["cohen_kappa"], "weights": weights}
        run = lossd.Run(task="multiclass", metrics=metrics)
        for first in range(0, 400, 70):
            rows = slice(first, first + 70)
            run.add(scores[rows], target[rows], sample_weight=weight[rows])
        expected = sk.cohen_kappa_score(target, scores.argmax(1), weights=weights, sample_weight=weight)
        found = lossd.evaluate(
            task="multiclass", prediction=scores, target=target, sample_weight=weight, metrics=metrics
        )
        assert run.result().metrics.cohen_kappa == pytest.approx(expected, rel=1e-12)
        assert found.metrics.cohen_kappa == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "option", "among"), [("nrmse", "by", "mean, range, std or l2"), ("mase", "scale", "naive forecast")]
)
def test_a_metric_without_the_option_that_it_needs_is_refused(name: str, option: str, among: str) -> None:
    request = {"task": "regression", "metrics": {"names": [name]}}
    with pytest.raises(InvalidRequest, match=f"{name} has no value without metrics.{option}: set it to .*{among}") as e:
        make_plan(request)
    assert e.value.errors == [{"pointer": f"/metrics/{option}", "detail": e.value.detail}]
    with pytest.raises(InvalidRequest, match=f"{name} has no value without metrics.{option}"):
        lossd.Run(task="regression", metrics=[name])


@pytest.mark.parametrize("by", ["mean", "range", "std", "l2"])
@pytest.mark.parametrize("exponent", [-1000, 0, 1000])
def test_nrmse_divides_by_what_is_asked(by: str, exponent: int) -> None:
    plain = positive()
    request = {name: np.ldexp(array, exponent) for name, array in plain.items()}
    target = plain["target"]
    scale = {"mean": target.mean(), "range": np.ptp(target), "std": target.std(), "l2": np.sqrt((target**2).mean())}[by]
    expected = sk.root_mean_squared_error(target, plain["prediction"]) / scale
    assert regression(request, ["nrmse"], by=by)["nrmse"] == pytest.approx(expected, rel=1e-13)
    run = lossd.Run(task="regression", metrics={"names": ["nrmse"], "by": by})
    run.add(inputs=request)
    assert run.result().metrics.nrmse == pytest.approx(expected, rel=1e-13)
    zeros = {"prediction": np.ones(3), "target": np.zeros(3)}
    assert regression(zeros, ["nrmse"], by=by)["nrmse"] is None


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 1.5, 2.0, 2.5, 3.0])
def test_deviances_of_any_power_are_scikit_learns(power: float) -> None:
    request = positive()
    arrays = request["target"], request["prediction"]
    weight = np.random.default_rng(1).random(len(arrays[0]))
    found = regression({**request, "sample_weight": weight}, ["tweedie_deviance", "d2_tweedie"], power=power)
    expected = sk.mean_tweedie_deviance(*arrays, power=power, sample_weight=weight)
    explained = sk.d2_tweedie_score(*arrays, power=power, sample_weight=weight)
    assert found == {
        "task": "regression",
        "tweedie_deviance": pytest.approx(expected, rel=1e-12),
        "d2_tweedie": pytest.approx(explained, rel=1e-12),
    }
    run = lossd.Run(task="regression", metrics={"names": ["tweedie_deviance", "d2_tweedie"], "power": power})
    for first in range(0, 50, 7):
        rows = slice(first, first + 7)
        run.add(*(array[rows] for array in arrays[::-1]), sample_weight=weight[rows])
    result = run.result().metrics
    assert (result.tweedie_deviance, result.d2_tweedie) == pytest.approx((expected, explained), rel=1e-12)


def test_no_tweedie_distribution_has_a_power_between_0_and_1() -> None:
    with pytest.raises(InvalidRequest, match=r"metrics\.power: no Tweedie distribution has a power between 0 and 1"):
        make_plan({"task": "regression", "metrics": {"names": ["tweedie_deviance"], "power": 0.5}})


@pytest.mark.parametrize("power", [-1.0, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("gap", [1e-12, 1e-6, 0.1, 0.13])
def test_deviances_of_close_numbers_keep_their_digits(power: float, gap: float) -> None:
    target, prediction = 1e6, 1e6 * (1 + gap)
    found = regression(
        {"prediction": np.array([prediction]), "target": np.array([target])}, ["tweedie_deviance"], power=power
    )
    with mpmath.workdps(60):
        y, m, p = mpmath.mpf(target), mpmath.mpf(prediction), mpmath.mpf(power)
        if power == 1:
            exact = 2 * (y * mpmath.log(y / m) - y + m)
        elif power == 2:
            exact = 2 * (mpmath.log(m / y) + y / m - 1)
        else:
            exact = 2 * (y ** (2 - p) / ((1 - p) * (2 - p)) - y * m ** (1 - p) / (1 - p) + m ** (2 - p) / (2 - p))
    assert found["tweedie_deviance"] == pytest.approx(float(exact), rel=1e-9 if gap == 1e-12 else 1e-12)


@pytest.mark.parametrize(
    ("name", "prediction", "target", "defined"),
    [
        ("msle", -1.0, 1.0, False),
        ("rmsle", 0.0, -1.5, False),
        ("msle", -0.5, 0.0, True),
        ("poisson_deviance", 1.0, 0.0, True),
        ("poisson_deviance", 0.0, 1.0, False),
        ("poisson_deviance", 1.0, -1.0, False),
        ("gamma_deviance", 1.0, 0.0, False),
    ],
)
def test_numbers_outside_a_metrics_range_leave_it_undefined(
    name: str, prediction: float, target: float, defined: bool
) -> None:
    request = {"prediction": np.array([prediction, 2.0]), "target": np.array([target, 3.0])}
    found = regression(request, [name])
    assert (found[name] is not None) == defined
    assert ("undefined" in found) != defined
    run = lossd.Run(task="regression", metrics=[name])
    run.add(inputs=request)
    assert (run.result().metrics[name] is not None) == defined


def test_zeros_where_a_relative_error_divides_by_them() -> None:
    zeros = {"prediction": np.array([0.0, 1.0]), "target": np.array([0.0, 0.0])}
    found = regression(zeros, ["smape", "wape"])
    assert (found["smape"], found["wape"], found["undefined"]) == (1.0, None, {"wape": []})
    large = {"prediction": np.array([1.5e308, np.inf]), "target": np.array([-1.5e308, 1.0])}
    assert regression(large, ["smape"])["smape"] == 2.0


def exact_correlations(first: list[int], second: list[int], weight: list[float]) -> dict[str, float]:
    """Spearman's and Kendall's correlation, from their definitions: a weight is so many equal elements."""
    w = [Fraction(each) for each in weight]

    def order(a: int, b: int) -> int:
        return (a > b) - (a < b)

    def centred(values: list[int]) -> list[Fraction]:
        return [sum((v * order(x, other) for other, v in zip(values, w, strict=True)), Fraction(0)) for x in values]

    def spread(a: Sequence[Fraction | int], b: Sequence[Fraction | int], by: Sequence[Fraction]) -> Fraction:
        return sum((v * x * y for x, y, v in zip(a, b, by, strict=True)), Fraction(0))

    pairs = list(itertools.product(range(len(w)), repeat=2))
    signs = [[order(values[i], values[j]) for i, j in pairs] for values in (first, second)]
    found = {}
    for name, (one, other), by in (
        ("spearman", (centred(first), centred(second)), w),
        ("kendall", signs, [w[i] * w[j] for i, j in pairs]),
    ):
        joint, of_first, of_second = spread(one, other, by), spread(one, one, by), spread(other, other, by)
        found[name] = math.copysign(math.sqrt(joint / of_first * (joint / of_second)), joint)
    return found


@pytest.mark.parametrize("seed", range(40))
def test_correlations_of_ranks_with_weights_of_any_size(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    first, second = ([0, 1, *rng.integers(0, 4, n - 2).tolist()] for _ in range(2))
    second = rng.permutation(second)
    weight = 10.0 ** rng.choice([0, 0, 12, -12, 100, -100], n) * (1 + rng.random(n))
    inputs = {"prediction": np.array(first, float), "target": np.array(second, float), "sample_weight": weight}
    found = regression(inputs, ["spearman", "kendall"])
    for name, expected in exact_correlations(first, second.tolist(), weight.tolist()).items():
        assert found[name] == pytest.approx(expected, rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize("name", ["spearman", "kendall"])
def test_a_weight_counts_as_so_many_equal_samples(name: str) -> None:
    rng = np.random.default_rng(7)
    first, second = rng.integers(0, 9, (2, 60)) + 0.5
    second = second + first / 2
    weight = rng.integers(0, 4, 60)
    correlation = {"spearman": scipy.stats.spearmanr, "kendall": scipy.stats.kendalltau}[name]
    expected = correlation(np.repeat(first, weight), np.repeat(second, weight)).statistic
    request = {"prediction": first, "target": second, "sample_weight": weight.astype(float)}
    assert regression(request, [name])[name] == pytest.approx(expected, rel=1e-12)


def test_correlations_of_ranks_of_many_numbers() -> None:
    rng = np.random.default_rng(8)
    first = rng.normal(size=3001).round(2)
    second = first + rng.normal(size=3001).round(1)
    found = regression({"prediction": first, "target": second}, ["spearman", "kendall"])
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(first, second).statistic, rel=1e-12)
    assert found["kendall"] == pytest.approx(scipy.stats.kendalltau(first, second).statistic, rel=1e-12)
    unknown = regression({"prediction": np.array([np.nan, 1]), "target": np.arange(2.0)}, ["spearman", "kendall"])
    assert (unknown["spearman"], unknown["kendall"]) == ("NaN", "NaN")


@pytest.mark.parametrize("n", range(2, 30))
def test_a_perfect_correlation_of_ranks_is_1(n: int) -> None:
    target = np.random.default_rng(n).normal(size=n)
    for prediction, expected in ((np.exp(target), 1.0), (-target, -1.0)):
        found = regression({"prediction": prediction, "target": target}, ["spearman", "kendall"])
        assert (found["spearman"], found["kendall"]) == (expected, expected)


def test_a_run_has_no_correlation_of_ranks() -> None:
    with pytest.raises(InvalidRequest, match="spearman compares the rows of a batch with each other, so a run has no"):
        lossd.Run(task="regression", metrics=["spearman"])


def test_concordance_where_a_side_is_constant() -> None:
    both = {"prediction": np.full(3, 2.0), "target": np.full(3, 2.0)}
    one = {"prediction": np.full(3, 2.0), "target": np.arange(3.0)}
    assert regression(both, ["ccc"])["ccc"] is None
    assert regression(one, ["ccc"])["ccc"] == 0
    exact = {"prediction": np.arange(3.0), "target": np.arange(3.0)}
    assert regression(exact, ["ccc"])["ccc"] == 1
    for request in (both, one, exact):
        run = lossd.Run(task="regression", metrics=["ccc"])
        run.add(inputs=request)
        assert run.result().metrics.ccc == regression(request, ["ccc"])["ccc"]


@pytest.mark.parametrize("most", [0.05, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("digits", [1, 9])
def test_the_partial_area_is_scikit_learns(most: float, digits: int) -> None:
    rng = np.random.default_rng(3)
    target = rng.integers(0, 2, 500)
    score = (rng.normal(size=500) + target).round(digits)
    weight = rng.random(500)
    for weights in (None, weight):
        expected = sk.roc_auc_score(target, score, max_fpr=most, sample_weight=weights)
        extra = {} if weights is None else {"sample_weight": weights}
        request = {"prediction": score, "target": target, **extra}
        [found] = measure("binary", [request], ["auroc"], max_fpr=most)
        assert found["auroc"] == pytest.approx(expected, rel=1e-12)
        run = lossd.Run(task="binary", metrics={"names": ["auroc"], "max_fpr": most})
        for first in range(0, 500, 90):
            run.add(inputs={name: array[first : first + 90] for name, array in request.items()})
        result = run.result()
        assert result.metrics.auroc == pytest.approx(expected, rel=1e-12)
        assert result.intervals.auroc.low < expected < result.intervals.auroc.high


def test_a_demand_that_no_threshold_meets() -> None:
    request = {"prediction": np.array([2.0, 1.0, 0.0]), "target": np.array([0, 1, 1])}
    names = ["recall_at_precision", "precision_at_recall", "sensitivity_at_specificity", "specificity_at_sensitivity"]
    [found] = measure("binary", [request], names)
    assert [found[name] for name in names] == [
        None, {"precision": 2 / 3, "threshold": 0.5}, None, {"specificity": 0.0, "threshold": 0.5}
    ]  # fmt: skip
    assert found["undefined"] == {"recall_at_precision": [1], "sensitivity_at_specificity": [1]}
    [found] = measure("binary", [request], names, min_precision=0.5, min_specificity=0, min_recall=0.5)
    assert found["recall_at_precision"] == {"recall": 1.0, "threshold": 0.5}
    [sent] = measure("binary", [request], ["recall"], threshold=found["recall_at_precision"]["threshold"])
    assert sent["recall"] == 1.0


def test_bounds_of_a_cut_table_hold_the_exact_value() -> None:
    rng = np.random.default_rng(9)
    n = 4000
    target = rng.integers(0, 2, n)
    score = rng.normal(size=n) + target
    p = 1 / (1 + np.exp(-score))
    sample = Sample(p > 0.5, target > 0, p, np.ones(n), 1, np.arange(n), np.ones(n), {"top": 0.2})
    gain = _gain(sample)
    expected = {"ks": _ks(sample), "eer": _eer(sample), "gain@top": gain, "lift@top": gain / 0.2}
    expected |= {"ace": _ace(p, target > 0, np.ones(n), 15)}
    expected["auroc"] = sk.roc_auc_score(target, score, max_fpr=0.4)
    run = lossd.Run(task="binary", metrics={"names": list(expected), "top": 0.2, "max_fpr": 0.4}, limit=64, groups=0)
    run.add(score, target)
    result = run.result()
    for name, value in expected.items():
        assert 0 < abs(result.metrics[name] - value) <= result.bounds[name].within, name
        assert result.bounds[name].bits < 64
    numbers = rng.normal(size=n), rng.normal(size=n)
    metrics = {"names": ["medae", "d2_absolute", "d2_pinball"], "levels": [0.1, 0.8]}
    run = lossd.Run(task="regression", metrics=metrics, limit=64, groups=0)
    run.add(*numbers)
    result = run.result()
    assert abs(result.metrics.medae - sk.median_absolute_error(*numbers)) <= result.bounds.medae.within
    found = result.metrics.d2_absolute - sk.d2_absolute_error_score(*numbers[::-1])
    assert 0 < abs(found) <= result.bounds.d2_absolute.within
    for level, value in zip((0.1, 0.8), result.metrics.d2_pinball, strict=True):
        exact = sk.d2_pinball_score(*numbers[::-1], alpha=level)
        assert 0 < abs(value - exact) <= result.bounds.d2_pinball.within


def test_a_label_that_does_not_count_is_no_part_of_its_sample() -> None:
    scores = np.array([[2.0, 1.0, -1.0], [0.5, -2.0, 3.0]])
    target = np.array([[1, -1, 0], [-1, 1, 0]])
    names = ["exact_match", "hamming", "lrap", "coverage_error", "ranking_loss", "precision@k", "ndcg@k"]
    [found] = measure("multilabel", [{"prediction": scores, "target": target}], names, ignore_index=-1, k=1)
    # What is left: a perfect sample of two labels, and one with the label that applies in the second place.
    values = [0.5, 0.5, 0.75, 1.5, 0.5, 0.5, 0.5]
    alike(found, {"task": "multilabel", **dict(zip(names, values, strict=True))})


def test_the_boundary_is_wider_in_a_larger_image() -> None:
    rng = np.random.default_rng(2)
    shape = (2, 90, 120)
    smooth = [scipy.ndimage.gaussian_filter(rng.normal(size=shape), (0, 6, 6)) > 0 for _ in range(2)]
    prediction, true = (each.astype(int) for each in smooth)
    scores = np.stack([1.0 - prediction, prediction * 1.0], 1)
    [found] = measure("segmentation", [{"prediction": scores, "target": true}], ["boundary_iou"])
    both = either = 0
    for p, t in zip(prediction, true, strict=True):
        first, second = _boundary(p == 1, 3), _boundary(t == 1, 3)
        both, either = both + (first & second).sum(), either + (first | second).sum()
    assert found["boundary_iou"]["per_class"][1] == both / either


def test_boundaries_of_what_is_no_image_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"boundary_iou needs images, .* found \(3, 2, 5\)"):
        measure(
            "segmentation", [{"prediction": np.zeros((3, 2, 5)), "target": np.zeros((3, 5), int)}], ["boundary_iou"]
        )


@pytest.mark.parametrize("normalize", ["true", "pred", "all"])
def test_fractions_of_a_confusion_matrix(normalize: str) -> None:
    rng = np.random.default_rng(6)
    target, scores = rng.integers(0, 4, 60), rng.normal(size=(60, 4))
    [found] = measure(
        "multiclass", [{"prediction": scores, "target": target}], ["normalized_confusion_matrix"], normalize=normalize
    )
    expected = sk.confusion_matrix(target, scores.argmax(1), normalize=normalize)
    alike(found["normalized_confusion_matrix"], expected.tolist(), within=1e-15)
