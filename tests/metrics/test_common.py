"""Every metric of every task against its oracle; a metric without one fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lossd import metrics
from lossd.request import MetricOptions
from metrics import oracles
from metrics.measuring import Array, Request, alike, measure
from metrics.oracles import Oracle, Sample, null

Ingredients = dict[str, Array]


def scores_and_classes(seed: int, classes: int = 5) -> Iterator[tuple[str, Ingredients]]:
    """What can happen to a classification of rows: names, scores (n, C) in float32 and targets (n,)."""
    rng = np.random.default_rng(seed)

    def drawn(n: int, among: list[int]) -> Ingredients:
        return {
            "prediction": rng.normal(size=(n, classes)).astype(np.float32),
            "target": rng.choice(among, size=n).astype(np.int64),
        }

    every = list(range(classes))
    yield "ordinary", drawn(40, every)
    yield "two classes absent from the target", drawn(30, [0, 2, 4])
    one = drawn(12, [3])
    yield "one class in the target", one
    never = drawn(25, every)
    never["prediction"][:, [1, 2]] = -9
    yield "two classes never predicted", never
    neither = drawn(25, [0, 1, 2])
    neither["prediction"][:, 4] = -9
    yield "a class in neither", neither
    perfect = drawn(20, every)
    perfect["prediction"][np.arange(20), perfect["target"]] = 9
    yield "perfect", perfect
    wrong = drawn(20, every)
    wrong["prediction"][np.arange(20), (wrong["target"] + 1) % classes] = 9
    yield "all wrong", wrong
    apart = drawn(10, [2])
    apart["prediction"][:, 3] = 9
    yield "one class, always taken for another", apart
    alone = drawn(10, [2])
    alone["prediction"][:, 2] = 9
    yield "one class, always found", alone
    ties = drawn(40, every)
    # Whole numbers tie within a row, repeated rows between rows; the factors keep other rows' softmax clear of theirs.
    rows = ties["prediction"][:8].round() * (1 + np.arange(8, dtype=np.float32)[:, None] / 8)
    ties["prediction"] = rows[rng.integers(0, 8, size=40)]
    yield "ties", ties
    flat = drawn(10, every)
    flat["prediction"][:] = 0.25
    yield "all scores equal", flat
    yield "one sample", drawn(1, every)


def images_and_classes(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Scores (n, 3, 4, 2) and targets (n, 4, 2); classes missing from single images and from all."""
    rng = np.random.default_rng(seed)
    for title, n, among in (("ordinary", 6, [0, 1, 2]), ("a class absent", 5, [0, 2]), ("one image", 1, [0, 1, 2])):
        target = rng.choice(among, size=(n, 4, 2)).astype(np.int64)
        target[0] = among[0]
        yield title, {"prediction": rng.normal(size=(n, 3, 4, 2)).astype(np.float32), "target": target}
    mean = rng.dirichlet(np.ones(3), size=(5, 4, 2)).astype(np.float32)
    soft = np.ascontiguousarray(np.moveaxis(mean, -1, 1))
    yield "ordinary again", {"prediction": rng.normal(size=soft.shape).astype(np.float32), "target": soft.argmax(1)}


def decisions(seed: int, *inner: int) -> Iterator[tuple[str, Ingredients]]:
    """Logits (n, *inner) and targets of the same shape."""
    rng = np.random.default_rng(seed)

    def drawn(n: int, chance: float = 0.5) -> Ingredients:
        logits = rng.normal(size=(n, *inner)).astype(np.float32)
        return {"prediction": logits, "target": (rng.random((n, *inner)) < chance).astype(np.float32)}

    yield "ordinary", drawn(30)
    yield "rarely positive", drawn(20, 0.05)
    yield "never positive", drawn(8, 0)
    yield "always positive", drawn(8, 1)
    silent = drawn(12)
    silent["prediction"] = -abs(silent["prediction"]) - 1
    yield "never found", silent
    eager = drawn(12)
    eager["prediction"] = abs(eager["prediction"]) + 1
    yield "found everywhere", eager
    perfect = drawn(12)
    perfect["prediction"] = (perfect["target"] * 4 - 2).astype(np.float32)
    yield "perfect", perfect
    yield "all wrong", {**perfect, "prediction": -perfect["prediction"]}
    nothing = drawn(6, 0)
    nothing["prediction"][:] = -3
    yield "nothing there, nothing found", nothing
    soft = drawn(20)
    soft["target"] = rng.random(soft["target"].shape).astype(np.float32)
    soft["target"].flat[0] = 0.5
    yield "soft targets", soft
    ties = drawn(30)
    ties["prediction"] = ties["prediction"].round()
    yield "ties", ties
    yield "one sample", drawn(1)


def numbers(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Predictions and targets (n, 3)."""
    rng = np.random.default_rng(seed)

    def drawn(n: int) -> Ingredients:
        target = rng.normal(size=(n, 3)) * 2 + 1
        return {"prediction": target + rng.normal(size=(n, 3)) * 0.5, "target": target}

    yield "ordinary", drawn(20)
    yield "constant target", {**drawn(7), "target": np.full((7, 3), 0.1)}
    yield "constant prediction", {**drawn(7), "prediction": np.full((7, 3), 0.1)}
    same = drawn(9)
    yield "perfect", {**same, "prediction": same["target"].copy()}
    yield "far from zero", {name: value + 1e6 for name, value in drawn(15).items()}
    yield "one sample", drawn(1)


@dataclass(frozen=True)
class Table:
    """A task's metrics, what it is tried on, and how a request becomes an oracle's sample."""

    task: str
    oracles: Mapping[str, Oracle]
    requests: Callable[[int], Iterator[tuple[str, Ingredients]]]
    sample: Callable[..., Sample]
    ignored: int | None = None
    activation: str = "logits"


def _of_classes(request: Request, ignore_index: int | None, **options: Any) -> Sample:
    return oracles.sample_of_classes(request, ignore_index, **options)


def _of_elements(request: Request, ignore_index: int | None, **options: Any) -> Sample:
    return oracles.sample_of_decisions(request, ignore_index, labels=False, **options)


def _of_labels(request: Request, ignore_index: int | None, **options: Any) -> Sample:
    return oracles.sample_of_decisions(request, ignore_index, labels=True, **options)


TABLES = (
    Table("multiclass", oracles.CLASSES, scores_and_classes, _of_classes, ignored=-100),
    Table("segmentation", oracles.CLASSES, images_and_classes, _of_classes, ignored=1),
    Table("binary", oracles.BINARY, lambda seed: decisions(seed, 2), _of_elements, ignored=255),
    Table("multilabel", oracles.MULTILABEL, lambda seed: decisions(seed, 3), _of_labels),
    Table("regression", oracles.REGRESSION, numbers, oracles.sample_of_numbers, activation="real"),
)
ROWS = [pytest.param(table, name, id=f"{table.task}-{name}") for table in TABLES for name in table.oracles]


def batch(table: Table, seed: int, *, weighted: bool, ignoring: bool) -> tuple[list[str], list[Request], int | None]:
    """Titles and requests; where ignoring, some targets of each request are the value that does not count."""
    rng = np.random.default_rng(seed + 1000)
    titles, requests, ignore_index = [], [], None
    for title, drawn in table.requests(seed):
        request = dict(drawn)
        if ignoring and len(request["target"]) > 1:
            ignore_index = table.ignored
            target = request["target"].copy()
            target[rng.random(target.shape) < 0.3] = ignore_index
            target.flat[0] = request["target"].flat[0]
            request["target"] = target
        if weighted:
            weight = rng.random(len(request["target"])) + 0.5
            weight[1::4] = 0
            request["sample_weight"] = weight
        titles.append(title)
        requests.append(request)
    return titles, requests, ignore_index


def test_every_metric_has_an_oracle_and_every_oracle_a_metric():
    assert {table.task: set(table.oracles) for table in TABLES} == {
        task: set(known) for task, known in metrics.METRICS.items()
    }


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_a_metric_of_a_batch_equals_its_oracle_request_by_request(table, name):
    options = {"k": 2, "beta": 0.5, "bins": 7}
    for weighted, ignoring in itertools.product([False, True], [False, True] if table.ignored is not None else [False]):
        titles, requests, ignore_index = batch(table, 7, weighted=weighted, ignoring=ignoring)
        found = measure(table.task, requests, [name], activation=table.activation, ignore_index=ignore_index, **options)
        for title, request, answer in zip(titles, requests, found, strict=True):
            expected = null(table.oracles[name](table.sample(request, ignore_index, **options)))
            alike(answer[name], expected, within=1e-7, place=f"{title}, {weighted=}, {ignoring=}: {name}")


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_a_request_among_strangers_equals_itself_alone(table, name):
    """Bit for bit: without sample weights the counts are integers, and so are areas."""
    _, requests, _ = batch(table, 3, weighted=False, ignoring=False)
    together = measure(table.task, requests, [name], activation=table.activation)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = measure(table.task, [request], [name], activation=table.activation)
        if table.task == "regression" or name in ("log_loss", "brier", "ece"):
            alike(answer[name], alone[name], within=1e-12)
        else:
            assert answer == alone


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_a_nan_in_one_request_never_touches_another(table, name):
    _, requests, _ = batch(table, 3, weighted=False, ignoring=False)
    before = measure(table.task, requests, [name], activation=table.activation)
    prediction = requests[0]["prediction"].copy()
    prediction[0] = np.nan
    poisoned = [{**requests[0], "prediction": prediction}, *requests[1:]]
    assert measure(table.task, poisoned, [name], activation=table.activation)[1:] == before[1:]


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_a_dropped_sample_leaves_no_trace_even_of_nan(table, name):
    _, requests, _ = batch(table, 3, weighted=False, ignoring=False)
    request = requests[0]
    n = len(request["target"])
    kept = np.arange(n) % 3 != 0
    poisoned = request["prediction"].copy()
    poisoned[~kept] = np.nan
    dropping = {**request, "prediction": poisoned, "sample_weight": kept.astype(float)}
    without = {key: value[kept] for key, value in request.items()}
    (found,) = measure(table.task, [dropping], [name], activation=table.activation)
    (expected,) = measure(
        table.task, [{**without, "sample_weight": np.ones(kept.sum())}], [name], activation=table.activation
    )
    alike(found, expected)


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_a_request_in_which_nothing_counts_is_undefined_not_an_error(table, name):
    _, requests, _ = batch(table, 3, weighted=False, ignoring=False)
    dropped = [{**r, "sample_weight": np.full(len(r["target"]), float(i != 1))} for i, r in enumerate(requests)]
    answer = measure(table.task, dropped, [name], activation=table.activation)[1]
    if name in ("tp", "fp", "fn", "tn", "support", "confusion_matrix"):
        assert not np.any(answer[name])
        assert "undefined" not in answer
    else:
        assert set(_leaves(answer[name])) == {None}
        assert name in answer["undefined"]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


EVERY = [entry for known in metrics.METRICS.values() for entry in known.values()]


@pytest.mark.parametrize("entry", EVERY, ids=lambda entry: f"{entry.task}-{entry.name}")
def test_every_metric_is_documented_and_its_options_exist(entry):
    assert entry.summary.endswith("."), "the first line is a sentence"
    assert set(entry.options) <= set(MetricOptions.model_fields)
    for option in entry.options:
        assert f"``{option}``" in entry.documentation


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
    of_the_request = {"names", "task", "from_logits", "ignore_index"}
    assert read == set(MetricOptions.model_fields) - of_the_request
