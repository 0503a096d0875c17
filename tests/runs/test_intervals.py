"""Intervals of the jackknife: against closed forms, brute force and the exact binomial interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from lossd.metrics import METRICS, TASKS
from lossd.runs.statistics.intervals import Interval, biased, independent, interval, standard_errors, unseen

WITHOUT = {
    *("tp", "fp", "fn", "tn", "support", "confusion_matrix", "active_units", "empty_queries"),  # counts
    *("roc_curve", "pr_curve", "reliability", "per_threshold"),  # lists
    *("best_threshold", "max_error", "error_quantiles"),  # no smooth function of the rows
    *("ece", "mce", "ece_l2", "classwise_ece", "ace"),  # their bias is as large as their error
    *("ks", "eer", "gain@top", "lift@top", "medae", "d2_absolute"),  # no smooth function of the rows
    *("recall_at_precision", "precision_at_recall", "sensitivity_at_specificity", "specificity_at_sensitivity"),
    *("pinball", "d2_pinball", "normalized_confusion_matrix", "minkowski"),  # lists, and a sum
    *("spearman", "kendall"),  # functions of pairs of rows
    *("recall@1", "precision@1", "recall@k", "map@r", "uniformity"),  # functions of pairs of rows
    *("first_to_second@1", "second_to_first@1", "first_to_second@k", "second_to_first@k"),
    *("clip_low", "clip_high", "mean_ratio", "max_ratio"),
    *("sampling_kl_k1", "sampling_kl_k3", "reference_kl_k1", "reference_kl_k3"),
}
SCALES = {
    "unit": {
        *("accuracy", "precision", "recall", "specificity", "f1", "iou", "f_beta", "balanced_accuracy", "brier"),
        *("auroc", "average_precision", "per_image_iou", "per_image_dice", "top_k_accuracy", "mean_iou"),
        *("fooled", "correct", "satisfied", "ndcg@k", "map@k", "mrr", "hit_rate@k", "recall@k", "err"),
        *("coverage", "crossing", "preference_accuracy"),
        *("npv", "fpr", "fnr", "fw_iou", "generalized_dice", "boundary_iou"),
        *("exact_match", "hamming", "lrap", "ranking_loss", "precision@k"),
    },
    "signed": {
        *("mcc", "cohen_kappa", "pearson", "giou", "ccc", "cosine_similarity"),
        *("informedness", "markedness", "adjusted_balanced_accuracy"),
    },
    "positive": {
        *("mae", "mse", "rmse", "mape", "log_loss", "reconstruction", "kl", "alignment", "brier"),
        *("mean_positive_distance", "mean_negative_distance"),
        *("msle", "rmsle", "smape", "wape", "mase", "rse", "nrmse", "coverage_error", "hinge"),
        *("tweedie_deviance", "poisson_deviance", "gamma_deviance"),
        *("positive_likelihood_ratio", "negative_likelihood_ratio"),
    },
    "real": {
        *("bias", "r2", "explained_variance", "width"),
        *("d2_tweedie", "volume_difference", "relative_volume_difference"),
        *("mean_margin", "mean_chosen_reward", "mean_rejected_reward"),
    },
}


def test_every_metric_says_where_its_values_lie() -> None:
    for task, metrics in METRICS.items():
        for name, metric in metrics.items():
            if metric.interval is None:
                assert name in WITHOUT, (task, name)
            else:
                assert name in SCALES[metric.interval], (task, name)
                assert name not in WITHOUT or (task, name) == ("queries", "recall@k"), "others compare rows"
                assert metric.reads is not None, "a metric of a whole batch has no leave-outs"
            if metric.cases is not None:
                assert hasattr(TASKS[task], metric.cases), (task, name)
    several = {"multiclass", "segmentation"}
    assert {task for task in METRICS if "brier" in METRICS[task] and METRICS[task]["brier"].interval == "positive"} == (
        several
    )


def test_an_interval_stays_within_the_metrics_range() -> None:
    value = interval(0.9, 0.2, groups=64, scale="unit", level=0.95)
    assert value is not None
    assert 0 < value.low < 0.9 < value.high < 1
    value = interval(0.01, 1.0, groups=16, scale="positive", level=0.9999)
    assert value is not None
    assert 0 <= value.low < 0.01 < value.high
    value = interval(-0.99, 0.5, groups=16, scale="signed", level=0.99)
    assert value is not None
    assert -1 <= value.low < -0.99 < value.high <= 1


def left_out(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The mean without each group that has rows, one by one."""
    return np.array([values[groups != g].mean() for g in np.unique(groups)])


def test_the_error_of_a_mean_is_the_classical_one() -> None:
    """Of groups of one row, the jackknife's variance of a mean is s²/n exactly (Tukey)."""
    values = np.random.default_rng(1).normal(size=50)
    without = left_out(values, np.arange(50))
    [error] = standard_errors(without[:, None])
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(50), rel=1e-12)


def test_the_error_of_equal_groups_is_that_of_their_means() -> None:
    values = np.random.default_rng(2).exponential(size=(64, 30))
    without = left_out(values.ravel(), np.repeat(np.arange(64), 30))
    [error] = standard_errors(without[:, None])
    assert error == pytest.approx(values.mean(1).std(ddof=1) / math.sqrt(64), rel=1e-12)


def test_a_real_interval_is_students() -> None:
    values = np.random.default_rng(3).normal(size=40)
    [error] = standard_errors(left_out(values, np.arange(40))[:, None])
    found = interval(values.mean(), float(error), groups=40, scale="real", level=0.9)
    expected = scipy.stats.t.interval(0.9, 39, values.mean(), scipy.stats.sem(values))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("scale", "to", "back", "slope"),
    [
        ("unit", lambda p: math.log(p / (1 - p)), lambda x: 1 / (1 + math.exp(-x)), lambda p: 1 / (p - p * p)),
        ("signed", lambda r: math.log((1 + r) / (1 - r)) / 2, lambda z: 1 - 2 / (math.exp(2 * z) + 1), None),
        ("positive", math.log, math.exp, lambda x: 1 / x),
    ],
)
def test_other_scales_are_transformed(scale: str, to, back, slope) -> None:
    slope = slope or (lambda r: 1 / (1 - r**2))  # of Fisher's z
    value, error = 0.7, 0.05
    half = scipy.stats.t.ppf(0.975, 63) * error * slope(value)
    found = interval(value, error, groups=64, scale=scale, level=0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((back(to(value) - half), back(to(value) + half)), rel=1e-10)
    assert found.standard_error == error


@pytest.mark.parametrize("rows", [64, 100, 5000])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.999])
def test_where_all_rows_agree_the_end_is_the_exact_one(rows: int, level: float) -> None:
    exact = scipy.stats.binomtest(rows, rows).proportion_ci(level, method="exact")
    found = interval(1.0, 0.0, groups=64, scale="unit", level=level, beyond=(unseen(rows, level), 0.0))
    assert found == pytest.approx(Interval(exact.low, 1.0, 0.0), rel=1e-12)
    exact = scipy.stats.binomtest(0, rows).proportion_ci(level, method="exact")
    found = interval(0.0, 0.0, groups=64, scale="unit", level=level, beyond=(0.0, unseen(rows, level)))
    assert found == pytest.approx(Interval(0.0, exact.high, 0.0), rel=1e-12)


def test_nothing_is_said_where_nothing_is_known() -> None:
    for value, error in ((0.5, 0.0), (1.0, 0.1), (math.nan, 0.1), (0.5, math.nan), (math.inf, 0.1)):
        assert interval(value, error, groups=64, scale="unit", level=0.95) is None
    assert interval(2.0, 0.0, groups=64, scale="real", level=0.95) is None
    assert interval(0.0, 0.1, groups=64, scale="positive", level=0.95) is None


def test_equal_leave_outs_have_no_error_at_all() -> None:
    """Not 1e-17: that would make an interval, or a difference of which p is 0."""
    for value in (0.1, 1 / 3, 0.7, 1e300, 1e-300):
        assert standard_errors(np.full((63, 1), value)).tolist() == [0.0]


def test_bias_is_quenouilles() -> None:
    """The variance with the divisor n has the bias -s²/n, which the jackknife of single rows finds exactly."""
    values = np.random.default_rng(4).normal(size=30)
    variance = values.var()
    without = np.array([np.delete(values, i).var() for i in range(30)])
    bias = 29 * (without.mean() - variance)
    assert bias == pytest.approx(-values.var(ddof=1) / 30, rel=1e-9)
    errors = np.array([abs(bias) / 0.49, abs(bias) / 0.51, 0.0])
    assert biased(np.full(3, variance), np.repeat(without[:, None], 3, 1), errors).tolist() == [False, True, False]


def test_the_number_of_things_follows_from_the_groups_that_they_are_in() -> None:
    """On the mean of 2000 draws: 20, 64 and 150 things, each in one of 64 groups."""
    rng = np.random.default_rng(5)
    for things in (20, 64, 150):
        drawn = rng.integers(0, 64, (2000, things))
        holding = np.array([len(set(row)) for row in drawn.tolist()])
        assert independent(holding, 64).mean() == pytest.approx(things, rel=0.05)


@pytest.mark.parametrize(
    ("right", "rows"), [(0.8, 64), (0.8, 500), (0.8, 20_000), (0.95, 200), (0.99, 2000), (0.999, 2000), (0.999, 20_000)]
)
def test_nominal_95_percent_of_accuracy_are_95_percent(right: float, rows: int) -> None:
    """Of 4000 samples, whose own error is 0.35 %; in 14 % of those of 0.999 and 2000 rows no row is wrong."""
    rng = np.random.default_rng(rows)
    sizes = rng.multinomial(rows, np.full(64, 1 / 64), 4000)
    hits = rng.binomial(sizes, right)
    all_hits = hits.sum(1)
    covered = 0
    for size, hit, total in zip(sizes, hits, all_hits, strict=True):
        some = size > 0
        without = ((total - hit) / (rows - size))[some]
        [error] = standard_errors(without[:, None]).tolist()
        value = total / rows
        beyond = (unseen(rows, 0.95) if value == 1 else 0.0, 0.0)
        found = interval(value, error, groups=int(some.sum()), scale="unit", level=0.95, beyond=beyond)
        assert found is not None
        covered += found.low <= right <= found.high
    assert 0.93 <= covered / 4000 <= 0.97


def test_rows_of_a_cluster_stay_together() -> None:
    """With 100 clusters of 50 rows; by groups of rows the variance is 1 + 49 / 11 times too small, and covers 60 %."""
    rng = np.random.default_rng(6)
    covered = np.zeros(2)
    for _ in range(400):
        right = (np.arange(50) < rng.binomial(50, rng.beta(8, 2, 100))[:, None]).ravel()
        for number, groups in enumerate((np.repeat(rng.integers(0, 64, 100), 50), rng.integers(0, 64, 5000))):
            sizes, hits = np.bincount(groups, minlength=64), np.bincount(groups, right, 64)
            without = ((right.sum() - hits) / (5000 - sizes))[sizes > 0]
            [error] = standard_errors(without[:, None]).tolist()
            found = interval(right.mean(), error, groups=len(without), scale="unit", level=0.95)
            assert found is not None
            covered[number] += found.low <= 0.8 <= found.high
    assert covered[0] / 400 == pytest.approx(0.95, abs=0.03)
    assert covered[1] / 400 == pytest.approx(0.60, abs=0.07)
