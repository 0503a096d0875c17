"""Intervals and comparisons of runs: against one evaluation a group, closed forms, DeLong's and Takahashi's errors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import lossd
from lossd.metrics import METRICS
from lossd.runs.statistics.intervals import FEW
from lossd_client.errors import InvalidRequest, NotComparable
from lossd_client.run_messages import flat
from runs.drawing import decomposable, draw, options, rows, splits, tasks

GROUPS = 64


def group_of(positions: np.ndarray, groups: int) -> np.ndarray:
    """splitmix64 of each position, modulo the number of groups (Steele, Lea, Flood, 2014)."""
    mask = (1 << 64) - 1
    found = []
    for position in positions.tolist():
        z = (position + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        found.append((z ^ (z >> 31)) % groups)
    return np.array(found)


def counted(task: str, metrics: Any, inputs: dict[str, Any], groups: int = GROUPS, **further: Any) -> lossd.Run:
    run = lossd.Run(task=task, metrics=metrics, identity="position", groups=groups, **further)
    run.add(inputs=inputs, first=0)
    return run


def binary(rows: int, seed: int = 1, noise: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 2, rows)
    return {"prediction": target + noise * rng.normal(size=rows) - 0.5, "target": target}


WITH_INTERVALS = [
    task for task in tasks() if any(METRICS[task][name].interval is not None for name in decomposable(task))
]


@pytest.mark.parametrize(
    ("task", "weighted", "number"),
    [
        *((task, False, 16) for task in WITH_INTERVALS),
        *(("binary", True, GROUPS), ("multiclass", True, 16), ("regression", True, 16)),
    ],
)
def test_an_error_is_that_of_an_evaluation_without_each_group(task: str, weighted: bool, number: int) -> None:
    """Every metric of every task, by brute force: one evaluation of the rows without each of ``number`` groups."""
    rng = np.random.default_rng(len(task))
    count = 200
    names = [name for name in decomposable(task) if METRICS[task][name].interval is not None]
    inputs = draw(task, rng, count, "float64", weighted=weighted)
    metrics = {**options(task, rng), "names": names}
    result = counted(task, metrics, inputs, number).result()
    groups = group_of(np.arange(count), number)
    without: dict[str, list[float]] = {}
    for group in sorted(set(groups.tolist())):
        kept = {name: values[groups != group] for name, values in inputs.items()}
        answer = lossd.evaluate(None, task=task, metrics=metrics, outputs=["metrics"], inputs=kept)
        for name, value in flat(None, answer.metrics, lists=True).items():
            without.setdefault(name, []).append(value)
    checked = 0
    for name, interval in result.intervals.items():
        plain = name.replace("@", "_at_")
        values = np.array(without[plain])
        size = len(values)
        expected = np.sqrt((size - 1) / size * ((values - values.mean()) ** 2).sum())
        assert interval.standard_error == pytest.approx(expected, rel=1e-6, abs=1e-12), name
        assert interval.low <= flat(None, result.metrics, lists=True)[plain] <= interval.high
        checked += 1
    assert checked


@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_intervals_do_not_depend_on_the_split_or_the_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    task = str(rng.choice(["binary", "multiclass", "regression", "segmentation"]))
    count = int(rng.integers(64, 300))
    inputs = draw(task, rng, count, "float32", weighted=bool(rng.random() < 0.3))
    metrics = {**options(task, rng), "names": decomposable(task)}
    site = rng.integers(-1, 2, count)

    def run() -> lossd.Run:
        return lossd.Run(
            task=task, metrics=metrics, identity="position", groups=GROUPS, slices={"site": ["A", "B"]}, rows=count
        )

    whole, parts = run(), run()
    whole.add(inputs=inputs, first=0, slices={"site": site})
    pieces = list(splits(rng, count, most=6))
    rng.shuffle(pieces)
    for first, last in pieces:
        parts.add(inputs=rows(inputs, first, last), first=first, slices={"site": site[first:last]})
    one, other = (json.dumps(each.result().to_dict()) for each in (whole, parts))
    assert one == other
    again = lossd.Run.from_state(parts.state()).result()
    assert json.dumps(again.to_dict()) == one


def delong(scores: np.ndarray, positive: np.ndarray) -> float:
    """The standard error of DeLong, DeLong and Clarke-Pearson, 1988, by all pairs."""
    above, below = scores[positive], scores[~positive]
    wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)
    return float(np.sqrt(wins.mean(1).var(ddof=1) / len(above) + wins.mean(0).var(ddof=1) / len(below)))


def takahashi(target: np.ndarray, prediction: np.ndarray, classes: int) -> float:
    """The standard error of macro F1 of Takahashi et al., 2022, doi:10.1007/s10489-021-02635-5, formula of 3.2.

    The package confidenceinterval 1.0.5 adds two factors of it that the paper multiplies.
    """
    cells = np.zeros((classes, classes))
    np.add.at(cells, (target, prediction), 1 / len(target))
    both, hits = cells.sum(0) + cells.sum(1), np.diagonal(cells)
    f1, rest = 2 * hits / both, (both - 2 * hits) / both
    single = (f1 * rest / both * (rest + f1 / 2)).sum()
    crossed = cells * np.outer(f1 / both, f1 / both)
    variance = 2 / classes**2 * (single + crossed.sum() - np.trace(crossed))
    return float(np.sqrt(variance / len(target)))


def test_the_oracles_are_right() -> None:
    """DeLong's as of the package confidenceinterval 1.0.5; Takahashi's as the deviation of 4000 samples."""
    rng = np.random.default_rng(7)
    positive = rng.random(1000) < 0.3
    scores = rng.normal(size=1000) + 1.2 * positive
    width = 2 * scipy.stats.norm.ppf(0.975) * delong(scores, positive)
    assert width == pytest.approx(0.8379676849588528 - 0.7831105678335056, rel=1e-6)
    target = rng.choice(4, 1000, p=[0.5, 0.3, 0.15, 0.05])
    prediction = np.where(rng.random(1000) < 0.25, rng.integers(0, 4, 1000), target)
    cells = np.bincount(4 * target + prediction, minlength=16)
    drawn = rng.multinomial(1000, cells / 1000, 4000).reshape(-1, 4, 4)
    f1 = 2 * np.diagonal(drawn, axis1=1, axis2=2) / (drawn.sum(1) + drawn.sum(2))
    assert takahashi(target, prediction, 4) == pytest.approx(f1.mean(1).std(), rel=0.04)


def test_the_error_of_auroc_is_delongs() -> None:
    """On the mean of 30 samples of independent rows: a jackknife of 64 groups varies by 9 % from one to the next."""
    ratios = []
    for seed in range(30):
        inputs = binary(1500, seed)
        error = counted("binary", ["auroc"], inputs).result().intervals["auroc"].standard_error
        ratios.append(error / delong(inputs["prediction"], inputs["target"] == 1))
    assert np.mean(ratios) == pytest.approx(1, abs=0.04)
    assert np.std(ratios) < 0.13


def test_the_error_of_macro_f1_is_takahashis() -> None:
    ratios = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        target = rng.choice(4, 1500, p=[0.5, 0.3, 0.15, 0.05])
        prediction = np.where(rng.random(1500) < 0.25, rng.integers(0, 4, 1500), target)
        run = counted("multiclass", ["f1"], {"prediction": np.eye(4)[prediction], "target": target})
        ratios.append(run.result().intervals["f1.macro"].standard_error / takahashi(target, prediction, 4))
    assert np.mean(ratios) == pytest.approx(1, abs=0.04)
    assert np.std(ratios) < 0.13


def test_where_all_rows_are_right_the_end_is_the_exact_one() -> None:
    target = np.random.default_rng(1).integers(0, 2, 500)
    intervals = (
        counted("binary", ["accuracy", "recall"], {"prediction": target - 0.5, "target": target}).result().intervals
    )
    assert intervals.accuracy.low == pytest.approx(0.025 ** (1 / 500), rel=1e-12)
    assert intervals.accuracy.high == 1
    # Recall is made of the positive rows only.
    assert intervals.recall.low == pytest.approx(0.025 ** (1 / target.sum()), rel=1e-12)


def test_a_class_that_is_always_right_widens_the_mean_over_classes() -> None:
    """Of its 10 rows none was wrong, which the spread of the groups takes for certainty."""
    rng = np.random.default_rng(2)
    target = np.concatenate([rng.integers(0, 2, 1990), np.full(10, 2)])
    wrong = (rng.random(2000) < 0.05) & (target < 2)
    prediction = np.where(wrong, 1 - target, target)
    result = counted("multiclass", ["recall"], {"prediction": np.eye(3)[prediction], "target": target}).result()
    macro = result.intervals["recall.macro"]
    assert result.metrics.recall.per_class[2] == 1
    unseen = (1 - 0.025 ** (1 / 10)) / 3
    assert macro.low < result.metrics.recall.macro - unseen
    assert macro.high - result.metrics.recall.macro < unseen / 3
    assert "recall.per_class.2" not in result.intervals
    [warning] = result.warnings
    assert (warning.code, warning.classes) == ("few_rows", [2])


def test_few_rows_have_no_interval() -> None:
    few = counted("binary", ["accuracy"], binary(FEW - 1)).result()
    assert few.intervals == {}
    assert [warning.code for warning in few.warnings] == ["few_rows"]
    assert "63 rows" in few.warnings[0].detail
    assert "accuracy" in counted("binary", ["accuracy"], binary(FEW)).result().intervals


def test_a_value_made_of_few_of_the_rows_has_none() -> None:
    inputs = binary(2000)
    inputs["target"] = (np.arange(2000) < 20).astype(int)
    result = counted("binary", ["accuracy", "recall", "auroc", "specificity"], inputs).result()
    assert sorted(result.intervals) == ["accuracy", "specificity"]
    [warning] = result.warnings
    assert warning.code == "few_rows"
    assert "recall, auroc" in warning.detail


def test_few_clusters_are_few_rows() -> None:
    inputs = binary(2000)
    for size, known in ((200, False), (20, True)):
        run = lossd.Run(task="binary", metrics=["accuracy"], identity="position", groups=GROUPS)
        run.add(inputs=inputs, first=0, cluster_id=np.arange(2000) // size)
        assert ("accuracy" in run.result().intervals) is known


def test_rows_of_a_cluster_that_agree_count_as_one() -> None:
    """Of 100 clusters that are all right the exact end is about that of 100 rows, not of 5000."""
    target = np.ones(5000, int)
    run = lossd.Run(task="binary", metrics=["accuracy"], identity="position", groups=GROUPS)
    run.add(inputs={"prediction": target - 0.5, "target": target}, first=0, cluster_id=np.arange(5000) // 50)
    low = run.result().intervals.accuracy.low
    assert 0.025 ** (1 / 70) < low < 0.025 ** (1 / 140)


def test_a_run_without_groups_has_no_intervals() -> None:
    run = lossd.Run(task="binary", metrics=["accuracy"], identity="position", groups=0)
    run.add(inputs=binary(500), first=0)
    result = run.result()
    assert (result.groups, result.intervals, result.warnings) == (0, {}, [])
    comparison = run.compare(run).comparisons[0]
    assert comparison.metrics.accuracy.p is None
    assert [warning.code for warning in comparison.warnings] == ["no_groups"]


def test_the_level_is_the_intervals() -> None:
    run = counted("binary", ["accuracy"], binary(500))
    widths = []
    for level in (0.8, 0.95, 0.999):
        interval = run.result(level=level).intervals.accuracy
        widths.append(interval.high - interval.low)
    assert widths == sorted(widths)
    for level in (0.5, 1.0, float("nan")):
        with pytest.raises(InvalidRequest, match="level"):
            run.result(level=level)


def test_other_metrics_can_be_read_whose_parts_were_counted() -> None:
    run = counted("binary", ["auroc"], binary(300))
    result = run.result(metrics=["roc_curve", "f1"])
    assert set(result.metrics) == {"task", "roc_curve", "f1"}
    assert set(result.intervals) == {"f1"}
    with pytest.raises(InvalidRequest, match=r"log_loss.*it can answer .*auroc") as caught:
        run.result(metrics=["log_loss"])
    assert caught.value.errors[0]["pointer"] == "/metrics"


# Slices


def test_a_slice_is_the_run_of_its_rows() -> None:
    rng = np.random.default_rng(5)
    inputs, site, sex = binary(1500, noise=2.0), rng.integers(-1, 2, 1500), rng.integers(0, 2, 1500)
    run = lossd.Run(
        task="binary",
        metrics=["accuracy", "auroc"],
        identity="position",
        groups=GROUPS,
        slices={"site": ["A", "B"], "sex": ["f", "m"]},
        crossed=[["site", "sex"]],
    )
    run.add(inputs=inputs, first=0, slices={"site": site, "sex": sex})
    result = run.result()
    for a, name in enumerate("AB"):
        for b, other in enumerate("fm"):
            these = (site == a) & (sex == b)
            alone = lossd.Run(task="binary", metrics=["accuracy", "auroc"], identity="id", groups=GROUPS)
            alone.add(inputs={key: values[these] for key, values in inputs.items()}, sample_id=np.flatnonzero(these))
            expected, found = alone.result(), result.slice(site=name, sex=other)
            assert found.metrics == expected.metrics
            assert found.intervals == expected.intervals
            assert found.counted.rows == these.sum()
    singles = [result.slice(site="A"), result.slice(site="B"), result.slice(sex="f"), result.slice(sex="m")]
    accuracies = [each.metrics.accuracy for each in singles]
    assert result.worst.accuracy.value == min(accuracies)
    gap = max(abs(accuracies[0] - accuracies[1]), abs(accuracies[2] - accuracies[3]))
    assert result.gap.accuracy == pytest.approx(gap, rel=1e-12)
    with pytest.raises(KeyError, match="site=A"):
        result.slice(site="C")


# Comparisons


def pair(rows: int = 1500) -> tuple[lossd.Run, lossd.Run]:
    rng = np.random.default_rng(6)
    target, shared = rng.integers(0, 2, rows), rng.normal(size=rows)
    scores = [target - 0.5 + shared + noise * rng.normal(size=rows) for noise in (2.0, 0.3)]
    return tuple(  # type: ignore[return-value]
        counted("binary", ["default", "auroc", "brier"], {"prediction": each, "target": target}) for each in scores
    )


def test_the_better_run_is_found() -> None:
    first, second = pair()
    comparison = first.compare(second)
    assert (comparison.paired, comparison.groups, comparison.rows) == (True, GROUPS, 1500)
    [found] = comparison.comparisons
    for name in ("accuracy", "auroc", "brier"):
        entry = found.metrics[name]
        assert entry.verdict == "b"
        assert entry.p <= entry.p_holm < 0.05
        assert entry.difference == entry.value - entry.baseline
        assert entry.low < entry.difference < entry.high
    assert found.metrics.brier.better == "lower"
    assert found.metrics.brier.difference < 0
    assert found.metrics.tp.verdict is None
    assert second.compare(first).comparisons[0].metrics.accuracy.verdict == "a"
    assert first.compare(first).comparisons[0].metrics.accuracy.verdict == "undecided"


def test_a_paired_difference_of_accuracy_has_mcnemars_error() -> None:
    rng = np.random.default_rng(8)
    count = 6400
    target = rng.integers(0, 2, count)
    wrong = [rng.random(count) < share for share in (0.2, 0.15)]
    runs = [
        counted("binary", ["accuracy"], {"prediction": np.where(each, 1 - target, target) - 0.5, "target": target})
        for each in wrong
    ]
    found = runs[0].compare(runs[1]).comparisons[0].metrics.accuracy
    b, c = (wrong[0] & ~wrong[1]).sum(), (~wrong[0] & wrong[1]).sum()
    expected = np.sqrt(b + c - (b - c) ** 2 / count) / count
    assert found.difference == pytest.approx((b - c) / count, rel=1e-9)
    assert found.standard_error == pytest.approx(expected, rel=0.25)  # of 63 degrees of freedom


def test_what_is_asked_together_is_corrected_together() -> None:
    first, second = pair(300)
    several = first.compare(second).comparisons[0].metrics
    p = {name: entry.p for name, entry in several.items() if entry.p is not None}
    smallest = min(p, key=lambda name: p[name])
    assert several[smallest].p_holm == pytest.approx(min(1, len(p) * p[smallest]), rel=1e-12)
    alone = first.compare(second, metrics=[smallest]).comparisons[0].metrics[smallest]
    assert alone.p_holm == alone.p


def test_runs_are_compared_only_where_the_predictions_differ() -> None:
    inputs = binary(300)
    run = counted("binary", ["accuracy"], inputs)

    def refused(other: lossd.Run, differs: str, **further: Any) -> None:
        with pytest.raises(NotComparable) as caught:
            run.compare(other, **further)
        assert caught.value.differs == [differs]

    other = {**inputs, "target": 1 - inputs["target"]}
    refused(counted("binary", ["accuracy"], other), "targets")
    refused(counted("binary", ["accuracy"], {name: each[:299] for name, each in inputs.items()}), "rows")
    refused(counted("binary", {"names": ["accuracy"], "threshold": 0.3}, inputs), "/metrics/threshold")
    refused(counted("binary", {"names": ["accuracy"], "threshold": 0.3}, inputs), "/metrics/threshold", unpaired=True)
    clustered = lossd.Run(task="binary", metrics=["accuracy"], identity="position", groups=GROUPS)
    clustered.add(inputs=inputs, first=0, cluster_id=np.arange(300) // 3)
    refused(clustered, "pairing")
    assert run.compare(counted("binary", ["accuracy"], other), unpaired=True).paired is False
    # Which metrics a run names, its limit and its slices make no other judgement.
    more = counted("binary", ["auroc", "accuracy"], inputs, limit=5000)
    assert list(run.compare(more).comparisons[0].metrics) == ["accuracy"]


def test_runs_of_other_groups_are_compared_by_the_fewer() -> None:
    inputs = binary(600)
    run = counted("binary", ["accuracy"], inputs)
    fewer = lossd.Run(task="binary", metrics=["accuracy"], identity="position", groups=16)
    fewer.add(inputs={**inputs, "prediction": -inputs["prediction"]}, first=0)
    comparison = run.compare(fewer)
    assert comparison.groups == 16
    expected = lossd.Run(task="binary", metrics=["accuracy"], identity="position", groups=16)
    expected.add(inputs=inputs, first=0)
    assert comparison.comparisons[0].metrics == expected.compare(fewer).comparisons[0].metrics


def test_slices_and_classes_are_compared_if_asked_for() -> None:
    rng = np.random.default_rng(9)
    target, site = rng.integers(0, 3, 900), rng.integers(0, 2, 900)
    runs = []
    for right in (0.6, 0.8):
        prediction = np.where(rng.random(900) < right, target, rng.integers(0, 3, 900))
        run = lossd.Run(
            task="multiclass", metrics=["recall"], identity="position", groups=GROUPS, slices={"site": ["A", "B"]}
        )
        run.add(inputs={"prediction": np.eye(3)[prediction], "target": target}, first=0, slices={"site": site})
        runs.append(run)
    plain = runs[0].compare(runs[1]).comparisons[0]
    assert list(plain.metrics) == ["recall.macro", "recall.micro", "recall.weighted"]
    assert plain.slices == []
    full = runs[0].compare(runs[1], classes=True, slices=True).comparisons[0]
    assert full.metrics["recall.per_class.1"].verdict == "b"
    assert [each["slice"] for each in full.slices] == [{"site": "A"}, {"site": "B"}]
    assert [each.rows for each in full.slices] == np.bincount(site).tolist()
    assert full.slices[0].metrics["recall.macro"].difference == pytest.approx(
        runs[1].result().slice(site="A").metrics.recall.macro - runs[0].result().slice(site="A").metrics.recall.macro
    )
