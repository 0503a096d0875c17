"""What is wrong is refused with the same error in this process and by a service."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import pytest

import lossd
from lossd_client import LossClient
from lossd_client.errors import (
    BatchConflict,
    DtypeMismatch,
    DuplicateRows,
    InvalidRequest,
    InvalidValue,
    LossdError,
    MissingInput,
    NotComparable,
    ShapeMismatch,
    UnknownInput,
    UnknownLoss,
)
from serving import running

NAMES = count()

TWO, THREE = [0.5, -1.0], [1.0, 2.0, 3.0]
EVALUATIONS: Mapping[str, tuple[type[LossdError], dict[str, Any]]] = {
    "loss": (UnknownLoss, {"loss": "nope", "prediction": TWO, "target": TWO}),
    "parameter": (InvalidRequest, {"loss": "focal", "prediction": [TWO], "target": [1], "gamma": -1}),
    "unknown parameter": (InvalidRequest, {"loss": "mse", "prediction": TWO, "target": TWO, "delta": 1}),
    "output": (InvalidRequest, {"loss": "mse", "prediction": TWO, "target": TWO, "outputs": ["nope"]}),
    "gradient": (InvalidRequest, {"loss": "mse", "prediction": TWO, "target": TWO, "gradient": {"clip_norm": -1}}),
    "hessian": (InvalidRequest, {"loss": "dice", "prediction": [[TWO]], "target": [[0, 1]], "outputs": ["hessian"]}),
    "task": (InvalidRequest, {"task": "nope", "prediction": TWO, "target": TWO}),
    "metric": (InvalidRequest, {"loss": "mse", "prediction": TWO, "target": TWO, "metrics": ["nope"]}),
    "no target": (MissingInput, {"loss": "mse", "prediction": TWO}),
    "input": (UnknownInput, {"loss": "mse", "prediction": TWO, "target": TWO, "inputs": {"anchor": TWO}}),
    "shape": (ShapeMismatch, {"loss": "mse", "prediction": TWO, "target": THREE}),
    "dtype": (DtypeMismatch, {"loss": "nll", "prediction": [TWO], "target": [1.0]}),
    "value": (InvalidValue, {"loss": "bce", "prediction": [0.1, 3.2], "target": [0, 1]}),
}

POSITIONS, BATCHES = {"task": "binary", "identity": "position"}, {"task": "binary", "identity": "batch"}
IDS, SITES = {"task": "binary", "identity": "id"}, {"task": "binary", "identity": "id", "slices": {"site": ["A", "B"]}}
GOOD = {"prediction": TWO, "target": [0, 1]}
DEFINITIONS: Mapping[str, tuple[type[LossdError], dict[str, Any]]] = {
    "metric": (InvalidRequest, {"task": "binary", "metrics": ["nope"]}),
    "task": (InvalidRequest, {"task": "nope"}),
    "loss": (UnknownLoss, {"loss": "nope"}),
    "identity": (InvalidRequest, {"task": "binary", "identity": "row"}),
    "crossing": (InvalidRequest, {"task": "binary", "slices": {"site": ["A"]}, "crossed": [["site", "sex"]]}),
}
"""Wrong definitions."""
ADDED: Mapping[str, tuple[type[LossdError], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "other data": (BatchConflict, BATCHES, {**GOOD, "name": "a"}, {**GOOD, "target": [1, 1], "name": "a"}),
    "positions": (DuplicateRows, POSITIONS, {**GOOD, "first": 0}, {**GOOD, "first": 1}),
    "ids": (DuplicateRows, IDS, {**GOOD, "sample_id": [4, 5]}, {**GOOD, "sample_id": [5, 6]}),
    "an id twice": (DuplicateRows, IDS, {**GOOD, "sample_id": [4, 5]}, {**GOOD, "sample_id": [6, 6]}),
    "no position": (InvalidRequest, POSITIONS, {**GOOD, "first": 0}, GOOD),
    "no id": (InvalidRequest, IDS, {**GOOD, "sample_id": [4, 5]}, GOOD),
    "an id": (InvalidRequest, POSITIONS, {**GOOD, "first": 0}, {**GOOD, "sample_id": [2, 3]}),
    "a position": (InvalidRequest, BATCHES, {**GOOD, "name": "a"}, {**GOOD, "name": "b", "first": 0}),
    "a slice": (InvalidRequest, SITES, {**GOOD, "sample_id": [4, 5], "slices": {"site": "A"}},
                {**GOOD, "sample_id": [6, 7], "slices": {"site": "C"}}),
    "slices": (InvalidRequest, SITES, {**GOOD, "sample_id": [4, 5], "slices": {"site": ["A", None]}},
               {**GOOD, "sample_id": [6, 7], "slices": {"site": ["A", "C"]}}),
    "no slice": (InvalidRequest, SITES, {**GOOD, "sample_id": [4, 5], "slices": {"site": None}},
                 {**GOOD, "sample_id": [6, 7]}),
    "weights": (InvalidRequest, POSITIONS, {**GOOD, "first": 0}, {**GOOD, "first": 2, "sample_weight": TWO[:1] * 2}),
    "clusters": (InvalidRequest, POSITIONS, {**GOOD, "first": 0}, {**GOOD, "first": 2, "cluster_id": [1, 1]}),
    "shape": (ShapeMismatch, POSITIONS, {**GOOD, "first": 0}, {"prediction": TWO, "target": [1], "first": 2}),
    "value": (InvalidValue, POSITIONS, {**GOOD, "first": 0}, {"prediction": TWO, "target": [7, 1], "first": 2}),
    "no target": (MissingInput, POSITIONS, {**GOOD, "first": 0}, {"prediction": TWO, "first": 2}),
}  # fmt: skip
"""A definition, a batch that is counted, and one that is refused after it."""
READ: Mapping[str, tuple[type[LossdError], dict[str, Any]]] = {
    "level": (InvalidRequest, {"level": 0.2}),
    "metric": (InvalidRequest, {"metrics": ["nope"]}),
    "a metric that was not counted": (InvalidRequest, {"metrics": ["auroc"]}),
}
COMPARED: Mapping[str, tuple[type[LossdError], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "definition": (NotComparable, {**POSITIONS, "metrics": {"threshold": 0.2}}, {**GOOD, "first": 0}, {}),
    "rows": (NotComparable, POSITIONS, {**GOOD, "first": 2}, {}),
    "targets": (NotComparable, POSITIONS, {**GOOD, "target": [1, 1], "first": 0}, {}),
    "level": (InvalidRequest, POSITIONS, {**GOOD, "first": 0}, {"level": 1.0}),
}
"""A definition and a batch of a run that is compared with one of ``POSITIONS``, and the options."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossClient]:
    path = tmp_path_factory.mktemp("store") / "runs.db"
    with running(engine="inline", compiled=False, runs=str(path)) as service, LossClient(service.url) as client:
        yield client


def refused(kind: type[LossdError], *calls: Callable[[], Any]) -> tuple[LossdError, LossdError]:
    """Both calls raise exactly this error."""
    found = []
    for call in calls:
        with pytest.raises(LossdError) as caught:
            call()
        found.append(caught.value)
    here, there = found
    assert (type(here), type(there)) == (kind, kind), (here, there)
    return here, there


def arrays(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The ids and the weights of a batch as arrays, as both ways take them."""
    dtypes = {"sample_id": np.int64, "cluster_id": np.int64, "sample_weight": np.float32}
    return {name: np.array(value, dtypes[name]) if name in dtypes else value for name, value in batch.items()}


@pytest.mark.parametrize("wrong", EVALUATIONS)
def test_an_evaluation(client: LossClient, wrong: str) -> None:
    kind, request = EVALUATIONS[wrong]
    here, there = refused(kind, lambda: lossd.evaluate(**request), lambda: client.evaluate(**request))
    assert (here.detail, here.errors) == (there.detail, there.errors)


@pytest.mark.parametrize("wrong", DEFINITIONS)
def test_a_definition(client: LossClient, wrong: str) -> None:
    kind, definition = DEFINITIONS[wrong]
    here, there = refused(kind, lambda: lossd.Run(**definition), lambda: client.run(f"run-{next(NAMES)}", **definition))
    assert here.detail == there.detail


@pytest.mark.parametrize("wrong", ADDED)
def test_a_batch(client: LossClient, wrong: str) -> None:
    kind, definition, good, bad = ADDED[wrong]
    local, remote = lossd.Run(**definition), client.run(f"run-{next(NAMES)}", **definition)
    for run in (local, remote):
        run.add(**arrays(good))
    here, there = refused(kind, lambda: local.add(**arrays(bad)), lambda: remote.add(**arrays(bad)))
    assert getattr(here, "rows", None) == getattr(there, "rows", None)
    assert here.detail.partition(":")[0] == there.detail.partition(":")[0]


@pytest.mark.parametrize("wrong", READ)
def test_a_result(client: LossClient, wrong: str) -> None:
    kind, options = READ[wrong]
    definition = {**POSITIONS, "metrics": ["accuracy"]}
    local, remote = lossd.Run(**definition), client.run(f"run-{next(NAMES)}", **definition)
    for run in (local, remote):
        run.add(**GOOD, first=0)
    refused(kind, lambda: local.result(**options), lambda: remote.result(**options))


@pytest.mark.parametrize("wrong", COMPARED)
def test_a_comparison(client: LossClient, wrong: str) -> None:
    kind, definition, batch, options = COMPARED[wrong]
    names = [f"run-{next(NAMES)}" for _ in range(2)]
    local, remote = [], []
    for name, defined, added in ((names[0], POSITIONS, {**GOOD, "first": 0}), (names[1], definition, batch)):
        local.append(lossd.Run(**defined))
        remote.append(client.run(name, **defined))
        local[-1].add(**added)
        remote[-1].add(**added)
    here, there = refused(
        kind, lambda: local[0].compare(local[1], **options), lambda: client.compare(*names, **options)
    )
    assert getattr(here, "differs", None) == getattr(there, "differs", None)
