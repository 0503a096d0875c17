"""Runs: any order, any split and any tree of merges give the same bytes, and the score of one evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

import lossd
from lossd.losses import REGISTRY
from lossd.metrics import METRICS, TASKS
from lossd.runs import encoding
from lossd.runs.run import Run
from lossd_client.errors import BatchConflict, DefinitionChanged, DuplicateRows, InvalidRequest, Problem
from runs.drawing import NEEDED, UNWEIGHTED, decomposable, differences, draw, evaluated, options, rows, splits, tasks

# The metrics that are functions of counts and of the order of scores, exactly the same without weights.
EXACT = (
    *("tp", "fp", "fn", "tn", "accuracy", "precision", "recall", "specificity", "f1", "iou", "support", "f_beta"),
    *("confusion_matrix", "balanced_accuracy", "mcc", "cohen_kappa", "top_k_accuracy", "auroc", "roc_curve"),
    *("pr_curve", "best_threshold", "max_error", "error_quantiles", "fooled", "correct", "satisfied", "active_units"),
    *("npv", "fpr", "fnr", "informedness", "markedness", "positive_likelihood_ratio", "negative_likelihood_ratio"),
    *("adjusted_balanced_accuracy", "normalized_confusion_matrix", "ks", "eer", "gain@top", "lift@top", "medae"),
    *("recall_at_precision", "precision_at_recall", "sensitivity_at_specificity", "specificity_at_sensitivity"),
    *("exact_match", "hamming", "fw_iou", "boundary_iou"),
)


def merged(batches: list[Run], rng: np.random.Generator) -> Run:
    """Merge runs two by two in random order, some of them by their bytes."""
    while len(batches) > 1:
        first, second = (batches.pop(int(rng.integers(len(batches)))) for _ in range(2))
        if rng.random() < 0.5:
            second = Run.from_state(second.state())
        first.merge(second)
        batches.append(first)
    return batches[0]


@pytest.mark.parametrize("task", tasks())
@settings(max_examples=2)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_run_is_one_evaluation_however_it_is_split(task: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, weighted = int(rng.integers(1, 60)), task not in UNWEIGHTED and bool(rng.random() < 0.4)
    inputs = draw(task, rng, n, str(rng.choice(["float32", "float64"])), weighted=weighted)
    metrics = options(task, rng)
    if weighted and "roc_curve" in metrics["names"]:
        # Steps of equal weights lie on a line, which sums of floats miss: they leave out other points of the curve.
        metrics["names"].remove("roc_curve")

    def run() -> Run:
        return Run(task=task, metrics=metrics, identity="position", rows=n)

    whole, one_by_one, parts = run(), run(), []
    assert whole.add(inputs=inputs, first=0) == n
    for first, last in splits(rng, n, most=6):
        assert one_by_one.add(inputs=rows(inputs, first, last), first=first) == last - first
        parts.append(run())
        parts[-1].add(inputs=rows(inputs, first, last), first=first)
    state = whole.state()
    assert one_by_one.state() == state
    assert merged(parts, rng).state() == state
    result, expected = whole.result(), evaluated(task, inputs, metrics)
    assert (result.counted.rows, result.missing, result.bounds) == (n, [], {})
    assert list(differences(result.metrics, expected.metrics, 1e-12)) == []
    warnings = [warning for warning in result.warnings if warning.code != "few_rows"]  # of intervals
    assert warnings == [w for w in expected.warnings if w.code != "classes_not_listed"]
    if not weighted:
        exact = [name for name in metrics["names"] if name in EXACT]
        assert {name: result.metrics[name] for name in exact} == {name: expected.metrics[name] for name in exact}


@pytest.mark.parametrize("task", tasks())
def test_a_metric_reads_only_the_parts_that_it_names(task: str) -> None:
    inputs = draw(task, np.random.default_rng(3), 20)
    metrics = {"names": decomposable(task), "k": 2, **NEEDED}
    expected = evaluated(task, inputs, metrics).metrics
    for name in decomposable(task):
        run = Run(task=task, metrics={**metrics, "names": [name]}, groups=0)
        run.add(inputs=inputs)
        assert list(differences(run.result().metrics[name], expected[name], 1e-12, name)) == []


@pytest.mark.parametrize("task", sorted(set(TASKS)))
def test_metrics_of_a_whole_batch_are_refused_or_flagged(task: str) -> None:
    names = [name for name, metric in METRICS[task].items() if metric.reads is None]
    rng = np.random.default_rng(1)
    first, second = draw(task, rng, 12), draw(task, rng, 9)
    for name in names:
        with pytest.raises(InvalidRequest, match=r"compares the rows of a batch .* scope batch"):
            Run(task=task, metrics=[name]).add(inputs=first)
        run = Run(task=task, metrics=[name], scope="batch")
        run.add(inputs=first)
        run.add(inputs=second)
        values = [evaluated(task, inputs, {"names": [name]}).metrics[name] for inputs in (first, second)]
        assert run.result().metrics[name] == pytest.approx(np.mean(values), rel=1e-15)
        assert [warning.code for warning in run.result().warnings if warning.code == "depends_on_batches"]


def test_a_refused_batch_changes_nothing() -> None:
    run = Run(task="multiclass", identity="position", metrics=["default", "auroc"])
    good = {"prediction": [[0.1, 0.9], [2.0, 1.0]], "target": [1, 1]}
    run.add(inputs=good, first=0)
    before = run.state()
    wrong: list[tuple[dict[str, Any], int | None, type[Problem], str]] = [
        ({**good, "target": [1, 7]}, 2, Problem, "target"),
        ({"prediction": [[0.1, 0.9, 0.5]], "target": [1]}, 2, InvalidRequest, "the run has 2 classes, found 3"),
        ({**good, "sample_weight": [1.0, 2.0]}, 2, InvalidRequest, "this batch has sample_weight"),
        (good, 1, DuplicateRows, "counted these rows before: 1"),
        (good, None, InvalidRequest, "needs first with every batch"),
        ({"prediction": [[0.1, 0.9]]}, 2, Problem, "target"),
    ]
    for inputs, first, error, message in wrong:
        with pytest.raises(error, match=message):
            run.add(inputs=inputs, first=first)
        assert run.state() == before
    assert run.add(inputs=good, first=2) == 2


def test_a_named_batch_counts_once_and_only_with_the_same_content() -> None:
    run = Run(task="binary")
    assert run.add([1.0, -1.0], [1, 1], name="a") == 2
    before = run.state()
    assert run.add([1.0, -1.0], [1, 1], name="a") == 0
    with pytest.raises(BatchConflict, match="'a' was counted with other data"):
        run.add([1.0, -1.0], [1, 0], name="a")
    assert run.state() == before
    assert run.result().metrics.accuracy == 0.5


def test_rows_by_id_and_missing_rows() -> None:
    run = Run(task="binary", identity="id", rows=6)
    run.add([1.0, -1.0, 2.0], [1, 1, 0], sample_id=[5, 0, 2])
    with pytest.raises(DuplicateRows, match="5"):
        run.add([1.0, 3.0], [1, 1], sample_id=[1, 5])
    assert run.result().missing == [[1, 2], [3, 5]]
    other = Run(task="binary", identity="id", rows=6)
    other.add([3.0], [1], sample_id=[1])
    run.merge(other)
    assert run.result().missing == [[3, 5]]
    assert run.result().counted.rows == 4


def test_damaged_bytes_are_refused() -> None:
    run = Run(task="multilabel", metrics=["default", "auroc", "log_loss"], identity="position")
    run.add([[1.0, -1.0], [0.5, 0.25]], [[1, 0], [0, 1]], first=0)
    state = run.state()
    assert Run.from_state(state).result() == run.result()
    for at in range(0, len(state), 7):
        damaged = bytearray(state)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(InvalidRequest):
            Run.from_state(bytes(damaged))
    for length in range(0, len(state), 11):
        with pytest.raises(InvalidRequest):
            Run.from_state(state[:length])


def test_a_metric_that_changed_is_not_merged_with_its_older_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(task="binary")
    run.add([1.0], [1])
    state = run.state()
    monkeypatch.setitem(METRICS["binary"], "f1", replace(METRICS["binary"]["f1"], version=2))
    with pytest.raises(DefinitionChanged, match="definition of f1 has changed"):
        Run.from_state(state)


def test_squares_about_a_distant_mean_do_not_cancel() -> None:
    target = 1e8 + np.arange(1.0, 6)
    run = Run(task="regression", metrics=["r2", "mse", "explained_variance", "pearson"])
    for value in target:
        run.add(np.array([value + 1]), np.array([value]))
    result = run.result().metrics
    assert (result.r2, result.mse, result.explained_variance, result.pearson) == (1 - 5 / 10, 1, 1, 1)


POWERS = ("minkowski", "tweedie_deviance", "poisson_deviance", "gamma_deviance", "d2_tweedie", "msle", "rmsle")
"""Sums of powers and logarithms, of which numbers of any size leave nothing."""


@pytest.mark.parametrize("scale", [1e200, 1e-200, 5e307])
def test_regression_at_the_ends_of_float64(scale: float) -> None:
    rng = np.random.default_rng(5)
    p, t = rng.uniform(-1, 1, (2, 40)) * scale
    metrics = {"names": [name for name in decomposable("regression") if name not in POWERS], **NEEDED}
    run = Run(task="regression", metrics=metrics)
    for at in range(0, 40, 7):
        run.add(p[at : at + 7], t[at : at + 7])
    expected = evaluated("regression", {"prediction": p, "target": t}, metrics)
    assert list(differences(run.result().metrics, expected.metrics, 1e-12)) == []


def test_lists_and_keywords_are_inputs_as_in_an_evaluation() -> None:
    run = Run(loss="focal", metrics=["accuracy"], gamma=1.0)
    run.add([[2.0, 1.0], [0.0, 3.0]], [0, 0], sample_weight=[1.0, 3.0])
    whole = lossd.evaluate(
        "focal", [[2.0, 1.0], [0.0, 3.0]], [0, 0], sample_weight=[1.0, 3.0], metrics=["accuracy"], gamma=1.0
    )
    assert run.result().loss == pytest.approx(whole.loss, rel=1e-12)
    assert run.result().metrics.accuracy == whole.metrics.accuracy


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("loss", "classes", "positions"),
    [
        ("cross_entropy", 5, ()),
        ("focal", 3, (4, 3)),
        ("bce_with_logits", None, (3,)),
        ("multilabel_soft_margin", 4, ()),
    ],
)
def test_ignored_targets_count_nowhere(
    loss: str, classes: int | None, positions: tuple[int, ...], weighted: bool
) -> None:
    rng = np.random.default_rng(11)
    n = 41
    if classes is None or loss == "multilabel_soft_margin":
        shape = (n, *positions) if classes is None else (n, classes, *positions)
        inputs = {"prediction": rng.normal(size=shape), "target": rng.integers(0, 2, shape).astype(float)}
    else:
        shape = (n, classes, *positions)
        inputs = {"prediction": rng.normal(size=shape), "target": rng.integers(0, classes, (n, *positions))}
    ignored = -1
    inputs["target"][rng.random(inputs["target"].shape) < 0.3] = ignored
    if weighted:
        inputs["sample_weight"] = rng.random(n) * (rng.random(n) > 0.2)
    task = REGISTRY[loss].task
    names = [name for name in decomposable(task) if not (weighted and name == "roc_curve")]
    metrics = {"names": names, "k": 2, "weights": "linear", "zero_division": 0}

    def run() -> Run:
        return Run(loss={"name": loss, "ignore_index": ignored}, metrics=metrics, identity="position")

    whole, split = run(), run()
    whole.add(inputs=inputs, first=0)
    for first, last in splits(rng, n, most=6):
        split.add(inputs=rows(inputs, first, last), first=first)
    assert split.state() == whole.state()
    expected = lossd.evaluate(loss, inputs=inputs, metrics=metrics, ignore_index=ignored)
    assert list(differences(whole.result().metrics, expected.metrics, 1e-12)) == []
    assert whole.result().loss == pytest.approx(expected.loss, rel=1e-12)


def test_scores_of_a_run_equal_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    target = rng.integers(0, 4, 500)
    logits = rng.normal(size=(500, 4)) + 1.5 * np.eye(4)[target]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    weight = rng.random(500)
    run = Run(task="multiclass", metrics={"names": ["f1", "auroc", "average_precision", "log_loss", "mcc", "brier"]})
    for first, last in splits(rng, 500):
        run.add(logits[first:last], target[first:last], sample_weight=weight[first:last])
    found, decided = run.result().metrics, logits.argmax(1)
    assert found.f1.macro == pytest.approx(
        sklearn.metrics.f1_score(target, decided, average="macro", sample_weight=weight), rel=1e-12
    )
    assert found.auroc.macro == pytest.approx(
        sklearn.metrics.roc_auc_score(target, probabilities, multi_class="ovr", sample_weight=weight), rel=1e-12
    )
    assert found.average_precision.per_class[1] == pytest.approx(
        sklearn.metrics.average_precision_score(target == 1, probabilities[:, 1], sample_weight=weight), rel=1e-12
    )
    assert found.log_loss == pytest.approx(
        sklearn.metrics.log_loss(target, probabilities, sample_weight=weight), rel=1e-12
    )
    assert found.mcc == pytest.approx(
        sklearn.metrics.matthews_corrcoef(target, decided, sample_weight=weight), rel=1e-12
    )


@pytest.mark.parametrize(("metrics", "parts"), [(["f1"], {"confusion"}), (["log_loss"], {"farthest"})])
def test_a_run_keeps_no_parts_that_its_metrics_and_warnings_do_not_read(metrics: list[str], parts: set[str]) -> None:
    """Whether scores look like probabilities is read where a metric makes probabilities of them."""
    run = lossd.Run(task="multiclass", metrics=metrics)
    run.add(np.eye(3, dtype=np.float32), np.array([0, 1, 1]))
    kept = {key.partition(".")[0] for key in run._state.totals}
    assert parts <= kept
    assert ("farthest" in kept) == (metrics == ["log_loss"])
    codes = [warning.code for warning in run.result().warnings]
    assert ("probabilities_as_logits" in codes) == (metrics == ["log_loss"])


def test_bytes_with_a_good_checksum_are_not_trusted_either() -> None:
    run = Run(task="binary", metrics=["accuracy", "auroc"], identity="position")
    run.add([1.0, -1.0], [1, 0], first=0)
    described, parts, _ = encoding.decode(run.state())
    for change in (
        {"facts": {**described["facts"], "names": ["no such metric"]}},
        {"facts": {}},
        {"totals": {}},
        {"totals": {key: [kind, [-1]] for key, (kind, _) in described["totals"].items()}},
        {"totals": {key: ["sums", [1 << 40]] for key in described["totals"]}},
        {"definition": {**described["definition"], "identity": "id"}},
        {"definition": {**described["definition"], "limit": -1}},
        {"definition": {**described["definition"], "request": {"task": "none"}}},
        {"metrics": {}},
    ):
        with pytest.raises(Problem):
            Run.from_state(encoding.encode(encoding.text_of({**described, **change}), parts))
    for name in parts:
        with pytest.raises(Problem):
            Run.from_state(encoding.encode(encoding.text_of(described), {**parts, name: parts[name][:-1]}))
        with pytest.raises(Problem):
            Run.from_state(
                encoding.encode(encoding.text_of(described), {key: data for key, data in parts.items() if key != name})
            )


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_a_loss_without_rows_makes_one_row_of_a_batch(shape: tuple[int, ...]) -> None:
    """The whole target is one row of the fingerprint too, at the position of the batch."""
    formula = {"name": "expression", "formula": "mean((prediction - target)**2)"}
    run, whole = (lossd.Run(loss=formula, metrics=[], identity="position") for _ in range(2))
    batches = [(np.full(shape, 3.0), np.full(shape, float(number))) for number in range(3)]
    for first in (2, 0, 1):
        assert run.add(*batches[first], first=first) == 1
    for first in range(3):
        whole.add(*batches[first], first=first)
    assert run.result() == whole.result()
    assert run.result().loss == (9 + 4 + 1) / 3
    exchanged = lossd.Run(loss=formula, metrics=[], identity="position")
    for first in range(3):
        exchanged.add(*batches[2 - first], first=first)
    assert exchanged.result().targets != run.result().targets
