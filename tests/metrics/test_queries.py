"""Metrics of queries: beside scikit-learn, XGBoost and LightGBM, with ties, of ragged lists."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn.metrics import ndcg_score

import lossd
from lossd.runs.run import Run
from lossd_client.errors import InvalidRequest, InvalidValue
from metrics.measuring import Array, alike
from metrics.oracles_queries import QUERIES

NAMES = list(QUERIES)
MEANS = [name for name in NAMES if name != "empty_queries"]


def drawn(seed: int, n: int = 30, documents: int = 6, digits: int = 9) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 4, (n, documents)) * (rng.random((n, 1)) > 0.1)
    return {"prediction": rng.normal(size=(n, documents)).round(digits), "target": target}


def metrics(inputs: dict[str, Array], **options: Any) -> dict[str, Any]:
    return dict(lossd.evaluate(task="queries", inputs=inputs, metrics={"names": NAMES, **options}).metrics)


def test_the_numbers_of_two_queries() -> None:
    """Computed once by hand and by scikit-learn."""
    four = {"prediction": np.array([[0.2, 1.5, -0.3, 0.7]]), "target": np.array([[0, 2, 1, 3]])}
    for options, expected in (
        ({"k": 4}, 0.907936), ({"k": 4, "gain": "exponential"}, 0.835448), ({"k": 2, "gain": "exponential"}, 0.833991),
    ):  # fmt: skip
        assert metrics(four, **options)["ndcg@k"] == pytest.approx(expected, abs=1e-6)
    assert metrics(four)["map@k"] == pytest.approx(0.916667, abs=1e-6)
    tied = {"prediction": np.array([[0.5, 0.5, 0.9, 0.1]]), "target": np.array([[3, 2, 0, 1]])}
    for ties, expected in (("averaged", 0.684187), ("stable", 0.697934)):
        assert metrics(tied, ties=ties)["ndcg@k"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("gain", ["linear", "exponential"])
@pytest.mark.parametrize("ties", ["averaged", "stable"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_ties_and_gains_are_the_oracles(k: int, ties: str, gain: str) -> None:
    inputs = drawn(1, digits=0)
    found = metrics(inputs, k=k, ties=ties, gain=gain)
    for name in NAMES:
        assert found[name] == pytest.approx(QUERIES[name](inputs, k=k, ties=ties, gain=gain), rel=1e-10), name


@pytest.mark.parametrize("digits", [9, 0])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_ndcg_is_scikit_learns(k: int, digits: int) -> None:
    """It averages ties, and counts an empty query as 0."""
    inputs = drawn(2, digits=digits)
    found = metrics(inputs, k=k, zero_division=0)
    expected = ndcg_score(inputs["target"], inputs["prediction"], k=k)
    assert found["ndcg@k"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_ndcg_and_map_are_those_of_boosters(k: int) -> None:
    """Both have exponential gains, and count an empty query as 1."""
    inputs = drawn(3)
    scores, grades = inputs["prediction"].astype(np.float32), inputs["target"]
    rows = grades.size
    data = xgboost.DMatrix(np.zeros((rows, 1)), label=grades.ravel(), base_margin=scores.ravel(), qid=_queries(grades))
    booster = xgboost.train(
        {"objective": "rank:ndcg", "eval_metric": [f"ndcg@{k}"], "eta": 0, "max_depth": 1}, data, num_boost_round=1
    )
    (expected,) = [float(part.rpartition(":")[2]) for part in booster.eval(data).split("\t")[1:]]
    found = metrics({"prediction": scores, "target": grades}, k=k, gain="exponential", zero_division=1)
    assert found["ndcg@k"] == pytest.approx(expected, rel=1e-6)

    history: dict[str, Any] = {}
    settings = {
        "objective": "lambdarank",
        "metric": "ndcg,map",
        "eval_at": [k],
        "learning_rate": 1e-300,
        "verbosity": -1,
    }
    scored = lightgbm.Dataset(
        np.arange(rows)[:, None] % 7.0, grades.ravel(), group=[grades.shape[1]] * len(grades), init_score=scores.ravel()
    )
    lightgbm.train(settings, scored, 1, [scored], ["it"], callbacks=[lightgbm.record_evaluation(history)])
    assert found["ndcg@k"] == pytest.approx(history["it"][f"ndcg@{k}"][0], rel=1e-6)
    assert found["map@k"] == pytest.approx(history["it"][f"map@{k}"][0], rel=1e-6)


def _queries(grades: Array) -> Array:
    return np.repeat(np.arange(len(grades)), grades.shape[1])


def ragged(seed: int) -> tuple[dict[str, Array], Array]:
    """Queries of 0 to 6 documents, ties among them, and what says how many."""
    inputs, rng = drawn(seed, digits=0), np.random.default_rng(seed)
    return inputs, rng.integers(0, 7, len(inputs["target"]))


@pytest.mark.parametrize("ties", ["averaged", "stable"])
@pytest.mark.parametrize("zero_division", [None, 0, 1])
def test_what_lies_behind_a_list_does_not_count(zero_division: Any, ties: str) -> None:
    inputs, lengths = ragged(4)
    keep = np.arange(6) < lengths[:, None]
    padded = {
        "prediction": np.where(keep, inputs["prediction"], np.nan),
        "target": np.where(keep, inputs["target"], -7),
    }
    options = {"k": 3, "ties": ties, "gain": "exponential", "zero_division": zero_division}
    found = metrics({**padded, "lengths": lengths}, **options)
    assert metrics({**padded, "mask": keep}, **options) == found
    order = np.random.default_rng(0).permutation(6)  # padding may be anywhere
    if ties == "averaged":
        mixed = {name: array[:, order] for name, array in (padded | {"mask": keep}).items()}
        alike(metrics(mixed, **options), found, within=1e-12)
    single = [
        {name: array[row : row + 1, :length] for name, array in inputs.items()}
        for row, length in enumerate(lengths.tolist())
        if length
    ]
    for name in MEANS:
        values = [QUERIES[name](query, **options) for query in single]
        assert found[name] == pytest.approx(np.nanmean(np.array(values, float)), rel=1e-10), name
    assert found["empty_queries"] == sum(int(not query["target"].any()) for query in single)
    lone = [metrics(query, **options)["ndcg@k"] for query in single]
    assert found["ndcg@k"] == pytest.approx(np.mean([value for value in lone if value is not None]), rel=1e-12)


def test_a_run_of_ragged_queries_is_the_same_however_it_is_split() -> None:
    inputs, lengths = ragged(5)
    definition = {"task": "queries", "metrics": {"names": NAMES, "k": 3}}
    whole, split = Run(**definition), Run(**definition)
    whole.add(inputs={**inputs, "lengths": lengths})
    for first in range(0, len(lengths), 4):
        rows = slice(first, first + 4)
        split.add(inputs={name: array[rows] for name, array in inputs.items()}, lengths=lengths[rows])
    assert split.state() == whole.state()
    found = split.result().metrics
    for name, value in metrics({**inputs, "lengths": lengths}, k=3).items():
        if name in NAMES:
            assert found[name] == pytest.approx(value, rel=1e-14), name


def test_queries_without_a_relevant_document_are_null_and_counted() -> None:
    inputs = {"prediction": np.array([[1.0, 2.0], [3.0, 1.0]]), "target": np.array([[0, 0], [1, 0]])}
    assert metrics(inputs) == {"task": "queries", **dict.fromkeys(MEANS, 1.0), "err": 0.5, "empty_queries": 1}
    inputs["target"][1] = 0
    undefined = {name: [] for name in MEANS}
    expected = {"task": "queries", **dict.fromkeys(MEANS), "empty_queries": 2, "undefined": undefined}
    assert metrics(inputs) == expected
    weighted = {**inputs, "sample_weight": np.array([0.5, 0.25])}
    assert metrics(weighted)["empty_queries"] == 0.75


def test_a_score_that_is_nan_makes_its_query_nan() -> None:
    inputs = {"prediction": np.array([[np.nan, 2.0], [3.0, 1.0]]), "target": np.array([[1, 0], [1, 0]])}
    assert np.isnan(metrics(inputs)["ndcg@k"])
    inputs["sample_weight"] = np.array([0.0, 1.0])
    assert metrics(inputs)["ndcg@k"] == 1.0


def test_infinite_scores_are_first_and_last() -> None:
    inputs = {"prediction": np.array([[-np.inf, 2.0, np.inf]]), "target": np.array([[1, 2, 3]])}
    assert metrics(inputs)["ndcg@k"] == 1.0


def test_grades_beyond_powers_of_two() -> None:
    inputs = {"prediction": np.array([[2.0, 1.0, 0.0]]), "target": np.array([[1.0, 5000.0, 4999.0]])}
    found = metrics(inputs, gain="exponential")
    # The first is nothing beside the others; of these, the second has half the gain.
    assert found["ndcg@k"] == pytest.approx((1 / np.log2(3) + 0.5 / 2) / (1 + 0.5 / np.log2(3)), rel=1e-12)
    tiny = {**inputs, "target": np.array([[0.0, 1e-18, 1e-18]])}
    assert metrics(tiny, gain="exponential")["ndcg@k"] == pytest.approx(metrics(tiny)["ndcg@k"], rel=1e-12)


def test_err_of_many_equal_scores_is_refused_and_stable_is_not() -> None:
    inputs = {"prediction": np.zeros((1, 6000)), "target": np.ones((1, 6000))}
    with pytest.raises(InvalidRequest, match=r'6000 of a query.*Set metrics.ties to "stable"'):
        metrics(inputs)
    assert metrics(inputs, ties="stable")["err"] == pytest.approx(np.log(2), rel=1e-9)
    many = {"prediction": np.zeros((2, 50)), "target": np.ones((2, 50))}
    many["target"][1, ::2] = 0
    found = metrics({name: array[:1] for name, array in many.items()})["err"]
    assert found == pytest.approx(sum(0.5**r / r for r in range(1, 51)), rel=1e-12)
    hits = np.array([[1.0, 0.0, 0.0]])
    third = metrics({"prediction": np.zeros((1, 3)), "target": hits})["err"]
    assert third == pytest.approx((1 + 1 / 2 + 1 / 3) / 6, rel=1e-12)


def test_wrong_documents_are_named() -> None:
    inputs = {"prediction": np.zeros((1, 2)), "target": np.array([[1, -1]])}
    with pytest.raises(InvalidValue, match=r"finite values >= 0 expected, found -1 at target\[0, 1\]"):
        metrics(inputs)
    both = {"lengths": np.array([2]), "mask": np.ones((1, 2), bool)}
    with pytest.raises(InvalidRequest, match="takes mask or lengths, not both"):
        metrics({**inputs, "target": np.ones((1, 2)), **both})
    with pytest.raises(InvalidValue, match=r"lengths from 0 to 2 expected"):
        metrics({**inputs, "target": np.ones((1, 2)), "lengths": np.array([3])})
