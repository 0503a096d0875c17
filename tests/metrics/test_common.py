"""Every metric of every task against its oracle; a metric without one fails."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from lossd import metrics
from lossd.request.options import MetricOptions
from metrics.measuring import Request, alike, measure
from metrics.tables import TABLES, Table

of_every_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.task)
of_tables_with_weights = pytest.mark.parametrize(
    "table", [table for table in TABLES if table.weighted], ids=lambda table: table.task
)


def rows_of(request: Request) -> int:
    return len(next(iter(request.values())))


def batch(table: Table, seed: int, *, weighted: bool, ignoring: bool) -> tuple[list[str], list[Request], int | None]:
    """Titles and requests; where ignoring, some targets of each request are the value that does not count."""
    rng = np.random.default_rng(seed + 1000)
    titles, requests, ignore_index = [], [], None
    for title, drawn in table.requests(seed):
        request = dict(drawn)
        if ignoring and rows_of(request) > 1:
            ignore_index = table.ignored
            target = request["target"].copy()
            target[rng.random(target.shape) < 0.3] = ignore_index
            target.flat[0] = request["target"].flat[0]
            request["target"] = target
        if weighted:
            weight = rng.random(rows_of(request)) + 0.5
            weight[1::4] = 0
            request["sample_weight"] = weight
        titles.append(title)
        requests.append(request)
    return titles, requests, ignore_index


def measured(table: Table, requests: Sequence[Request], **of_view: Any) -> list[dict[str, Any]]:
    """All metrics of a table, of each request of a batch."""
    return measure(table.task, requests, list(table.oracles), activation=table.activation, **of_view)


def test_every_metric_has_an_oracle_and_every_oracle_a_metric():
    assert {table.task: set(table.oracles) for table in TABLES} == {
        task: set(known) for task, known in metrics.METRICS.items()
    }
    assert set(metrics.TASKS) == set(metrics.METRICS)


@of_every_table
def test_the_metrics_of_a_batch_equal_their_oracles_request_by_request(table):
    options = {"k": 2, "beta": 0.5, "bins": 7}
    weightings = [False, True] if table.weighted else [False]
    ignorings = [False, True] if table.ignored is not None else [False]
    for weighted, ignoring in itertools.product(weightings, ignorings):
        titles, requests, ignore_index = batch(table, 7, weighted=weighted, ignoring=ignoring)
        found = measured(table, requests, ignore_index=ignore_index, **options)
        # Every request plainly and with all that it can have; the first with each alone too.
        compared = len(requests) if weighted == ignoring or len(ignorings) == 1 else 1
        for title, request, answer in zip(titles[:compared], requests[:compared], found[:compared], strict=True):
            for name, expected in table.expected(request, ignore_index, **options).items():
                alike(answer[name], expected, within=1e-7, place=f"{title}, {weighted=}, {ignoring=}: {name}")


WITH_THRESHOLDS = ("best_threshold", "roc_curve", "pr_curve")
"""Metrics that answer with scores; so do those named after what they are at."""


@of_every_table
def test_numbers_sent_as_float32_lose_no_digit(table):
    """Thresholds are in the dtype of the scores; of distances, the next number of that dtype."""
    names = [name for name in table.oracles if name not in WITH_THRESHOLDS and "_at_" not in name]

    def converted(requests: Sequence[Request], dtype: type) -> list[Request]:
        return [{name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in r.items()} for r in requests]

    narrow = converted([request for _, request in table.requests(7)], np.float32)
    wide = converted(narrow, np.float64)
    found, expected = (measure(table.task, requests, names, activation=table.activation) for requests in (narrow, wide))
    alike(found, expected, within=1e-14)


OF_REALS = (
    *("log_loss", "brier", "ece", "reliability", "mce", "ece_l2", "classwise_ece", "ace", "hinge", "generalized_dice"),
    *("lrap", "ranking_loss", "precision@k", "ndcg@k", "relative_volume_difference"),
)
"""Means of numbers that are not whole, whose sums depend on where they begin."""


@of_every_table
def test_a_request_among_strangers_equals_itself_alone(table):
    """Bit for bit where counts are whole numbers: without sample weights they are, and so are areas."""
    _, requests, _ = batch(table, 3, weighted=False, ignoring=False)
    for request, answer in zip(requests, measured(table, requests), strict=True):
        (alone,) = measured(table, [request])
        assert answer.keys() == alone.keys()
        for name, value in answer.items():
            if within := table.within or (1e-12 if name in OF_REALS else 0):
                alike(value, alone[name], within=within, place=name)
            else:
                assert value == alone[name], name


@of_every_table
def test_a_metric_beside_others_equals_itself_alone(table):
    _, requests, _ = batch(table, 3, weighted=table.weighted, ignoring=False)
    requests = requests[:4]
    together = measured(table, requests)
    for name in table.oracles:
        alone = measure(table.task, requests, [name], activation=table.activation)
        assert [answer[name] for answer in alone] == [answer[name] for answer in together], name


@of_every_table
def test_a_nan_in_one_request_never_touches_another(table):
    _, requests, _ = batch(table, 3, weighted=False, ignoring=False)
    requests = requests[:4]
    before = measured(table, requests)
    values = requests[0][table.poison].copy()
    values[0] = np.nan
    poisoned = [{**requests[0], table.poison: values}, *requests[1:]]
    assert measured(table, poisoned)[1:] == before[1:]


@of_tables_with_weights
def test_a_dropped_sample_leaves_no_trace_even_of_nan(table):
    _, requests, _ = batch(table, 3, weighted=False, ignoring=False)
    request = requests[0]
    n = rows_of(request)
    kept = np.arange(n) % 3 != 0
    poisoned = request[table.poison].copy()
    poisoned[~kept] = np.nan
    dropping = {**request, table.poison: poisoned, "sample_weight": kept.astype(float)}
    without = {key: value[kept] for key, value in request.items()} | {"sample_weight": np.ones(kept.sum())}
    alike(measured(table, [dropping]), measured(table, [without]), place=table.task)


COUNTS = ("tp", "fp", "fn", "tn", "support", "confusion_matrix", "empty_queries")


@of_tables_with_weights
def test_weights_of_any_size_give_the_same_ratios_to_the_last_bit(table):
    _, requests, _ = batch(table, 3, weighted=True, ignoring=False)
    of_weights = measured(table, requests)
    for exponent in (-1000, 1000):
        heavier = [{**request, "sample_weight": request["sample_weight"] * 2.0**exponent} for request in requests]
        for found, whole in zip(measured(table, heavier), of_weights, strict=True):
            assert found.keys() == whole.keys()
            for name, value in whole.items():
                assert_multiple(name, found[name], value, exponent)


def assert_multiple(name: str, found: Any, whole: Any, exponent: int) -> None:
    """Fail unless a count is multiplied by the weights' power of two, and nothing else has changed."""
    if name == "reliability":
        expected = {**whole, "count": [n * 2.0**exponent for n in whole["count"]]}
    elif name in COUNTS:
        expected = (np.array(whole) * 2.0**exponent).tolist()
    elif name == "minkowski":  # a sum of squares, whose root it is
        expected = pytest.approx(whole * 2.0 ** (exponent / 2), rel=1e-12)
    else:
        expected = whole
    assert found == expected, name


@of_tables_with_weights
def test_a_request_in_which_nothing_counts_is_undefined_not_an_error(table):
    _, requests, _ = batch(table, 3, weighted=False, ignoring=False)
    dropped = [{**r, "sample_weight": np.full(rows_of(r), float(i != 1))} for i, r in enumerate(requests[:3])]
    answer = measured(table, dropped)[1]
    undefined = answer.get("undefined", {})
    for name in table.oracles:
        if name in COUNTS:
            assert not np.any(answer[name]), name
            assert name not in undefined
        else:
            value = {**answer[name], "iou_threshold": None} if name == "per_threshold" else answer[name]
            assert set(_leaves(value)) == {None}, name
            assert name in undefined


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


@pytest.mark.parametrize("task", metrics.METRICS)
def test_every_metric_is_documented_and_its_options_exist(task):
    for name, entry in metrics.METRICS[task].items():
        assert entry.summary.endswith("."), f"{name}: the first line is a sentence"
        assert set(entry.options) <= set(MetricOptions.model_fields), name
        for option in entry.options:
            assert f"``{option}``" in entry.documentation, name


def test_the_catalogue_describes_every_metric_once():
    described = metrics.describe()
    assert [(d["task"], d["name"]) for d in described] == [
        (task, name) for task, known in metrics.METRICS.items() for name in known
    ]
    assert metrics.describe("binary") == [d for d in described if d["task"] == "binary"]
    (f_beta,) = [d for d in metrics.describe("binary") if d["name"] == "f_beta"]
    assert f_beta["options"] == ["threshold", "zero_division", "beta"]
    assert not f_beta["default"]


def test_every_option_is_read_by_some_metric():
    read = {option for entry in metrics.describe() for option in entry["options"]}
    of_the_request = {"names", "task", "from_logits", "ignore_index", "classes"}
    assert read == set(MetricOptions.model_fields) - of_the_request
