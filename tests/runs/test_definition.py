"""The definition of a run: strict, canonical, and one digest for one meaning."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from lossd.losses import REGISTRY
from lossd.metrics import METRICS, TASKS
from lossd.runs.definition import RunDocument
from lossd.runs.run import Run
from lossd_client.errors import InvalidRequest, Problem, UnknownLoss
from losses.cases import CASES
from runs.drawing import NEEDED

TARGETS = "t1:" + "0123456789abcdef" * 2

FAULTS: list[tuple[Any, str, str]] = [
    ([], "", "must be a JSON object"),
    ({}, "", "names neither a loss nor a task"),
    ({"task": "binary", "loss": "mse"}, "", "either loss or task"),
    ({"task": "binry"}, "/task", "did you mean binary"),
    ({"task": "binary", "metric": ["f1"]}, "/metric", "did you mean metrics"),
    ({"task": "binary", "sliced": {}}, "/sliced", "sliced is not known"),
    ({"task": "binary", "metrics": ["accuracies"]}, "/metrics/names/0", "did you mean accuracy"),
    ({"task": "binary", "metrics": {"treshold": 0.5}}, "/metrics/treshold", "did you mean threshold"),
    ({"task": "binary", "metrics": {"threshold": "a"}}, "/metrics/threshold", "a threshold is a number"),
    ({"task": "binary", "metrics": []}, "/metrics/names", "count nothing: name a metric"),
    ({"task": "binary", "threshold": 0.5}, "/threshold", "put it into metrics"),
    ({"task": "binary", "rows": 5}, "/rows", "put it into dataset"),
    ({"task": "binary", "first": 5}, "/first", "part of a batch"),
    ({"task": "binary", "outputs": ["metrics"]}, "/outputs", "answers its loss and its metrics"),
    ({"task": "binary", "identity": "row"}, "/identity", "'position', 'id' or 'batch'"),
    ({"task": "binary", "scope": "all"}, "/scope", "'rows' or 'batch'"),
    ({"task": "binary", "limit": 1}, "/limit", "greater than or equal to 2"),
    ({"task": "binary", "limit": 1 << 30}, "/limit", "less than or equal to"),
    ({"task": "binary", "dataset": "x"}, "/dataset", "an object"),
    ({"task": "binary", "dataset": {"row": 5}}, "/dataset/row", "did you mean rows"),
    ({"task": "binary", "dataset": {"rows": -1}}, "/dataset/rows", "greater than or equal to 0"),
    ({"task": "binary", "dataset": {"rows": True}}, "/dataset/rows", "integer"),
    ({"task": "binary", "dataset": {"name": ""}}, "/dataset/name", "at least 1 character"),
    ({"task": "binary", "dataset": {"targets": "9f3a"}}, "/dataset/targets", "t1: and 32 hexadecimal digits"),
    ({"task": "binary", "tags": {"commit": 5}}, "/tags/commit", "string"),
    ({"task": "binary", "public": "yes"}, "/public", "boolean"),
    ({"loss": {"name": "focal", "gama": 1}}, "/loss/gama", "did you mean gamma"),
    ({"loss": "focal", "gamma": 1.0}, "/gamma", "put it into loss"),
    ({"loss": "focal", "reduction": "sum"}, "/reduction", "put it into loss"),
    ({"loss": {"name": "focal", "reduction": "none"}}, "/loss/reduction", "choose reduction mean or sum"),
    ({"task": "paired_views", "metrics": ["alignment", "uniformity"]}, "/metrics/names/1", "scope batch answers"),
    ({"task": "labelled_embeddings"}, "/metrics/names", "compares the rows of a batch"),
]


@pytest.mark.parametrize(("document", "pointer", "detail"), FAULTS, ids=lambda value: json.dumps(value)[:40])
def test_a_faulty_definition_names_the_place_and_the_remedy(document: Any, pointer: str, detail: str) -> None:
    with pytest.raises(InvalidRequest, match=detail) as caught:
        RunDocument.parse(document)
    if pointer:
        assert pointer in [fault["pointer"] for fault in caught.value.errors]


def test_an_unknown_loss_is_named_with_its_like() -> None:
    with pytest.raises(UnknownLoss, match="focal"):
        RunDocument.parse({"loss": "focall"})


def test_a_loss_of_embeddings_counts_alone() -> None:
    name = next(name for name, loss in REGISTRY.items() if loss.task == "labelled_embeddings")
    with pytest.raises(InvalidRequest, match=r"metrics \[\] counts the loss alone"):
        RunDocument.parse({"loss": name})
    assert RunDocument.parse({"loss": name, "metrics": []}).definition["request"]["outputs"] == ["loss"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"loss": "focal"}, {"loss": {"name": "focal", "gamma": 2.0, "reduction": "mean"}}),
        ({"loss": {"name": "focal", "gamma": 3}}, {"loss": {"name": "focal", "gamma": 3.0}}),
        ({"task": "binary", "metrics": "f1"}, {"task": "binary", "metrics": {"names": ["f1"], "beta": 1}}),
        ({"task": "binary", "metrics": ["f1"]}, {"task": "binary", "metrics": {"names": ["f1"], "threshold": None}}),
        ({"task": "binary"}, {"task": "binary", "metrics": None, "identity": "batch", "dataset": {}, "scope": "rows"}),
        ({"task": "binary"}, {"task": "binary", "tags": {"commit": "1"}, "public": True}),
        ({"loss": "mse", "metrics": []}, {"loss": "mse", "metrics": {"names": []}}),
    ],
)
def test_one_meaning_has_one_digest(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = RunDocument.parse(one), RunDocument.parse(other)
    assert (first.digest, first.definition) == (second.digest, second.definition)
    assert first.differences(second) == []


@pytest.mark.parametrize(
    ("changed", "pointers"),
    [
        ({"task": "multiclass"}, ["/task"]),
        ({"metrics": ["f1", "accuracy"]}, ["/metrics/names"]),
        ({"metrics": {"names": ["f1"], "zero_division": 0}}, ["/metrics/zero_division"]),
        ({"identity": "id", "limit": 100}, ["/identity", "/limit"]),
        ({"dataset": {"name": "a", "rows": 6}}, ["/dataset/rows"]),
        ({"dataset": {"name": "b", "rows": 5, "targets": TARGETS}}, ["/dataset/name", "/dataset/targets"]),
    ],
)
def test_another_meaning_has_another_digest_and_says_where(changed: dict[str, Any], pointers: list[str]) -> None:
    document = {"task": "binary", "metrics": ["f1"], "dataset": {"name": "a", "rows": 5}}
    first, second = RunDocument.parse(document), RunDocument.parse({**document, **changed})
    assert first.digest != second.digest
    assert sorted(first.differences(second)) == sorted(second.differences(first)) == pointers


def test_the_version_of_a_metric_belongs_to_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = RunDocument.parse({"task": "binary"})
    assert before.versions["f1"] == 1
    assert before.digest == RunDocument.parse(before.to_dict()).digest
    monkeypatch.setitem(METRICS["binary"], "f1", replace(METRICS["binary"]["f1"], version=2))
    assert RunDocument.parse(before.to_dict()).digest != before.digest


def documents() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"task": task, "scope": "batch", "metrics": {"names": sorted(METRICS[task]), **NEEDED}} for task in TASKS
    ]
    for case in CASES:
        for parameters in case.parameters or [{}]:
            known = {name: value for name, value in parameters.items() if value is not None}
            if known.get("reduction") != "none":
                found.append({"loss": {"name": case.name, **known}, "metrics": []})
    found += [{"loss": name} for name, loss in REGISTRY.items() if loss.kind == "composed" and loss.preset]
    return found


def test_the_canonical_form_means_the_same() -> None:
    for document in documents():
        first = RunDocument.parse(document)
        text = json.dumps(first.to_dict())
        second, third = RunDocument.parse(json.loads(text)), RunDocument.of(json.loads(json.dumps(first.definition)))
        assert json.dumps(second.to_dict()) == text
        assert second.digest == first.digest
        assert third.definition == second.definition == json.loads(json.dumps(first.definition))
        assert (second.plan.parameters, second.plan.metrics) == (first.plan.parameters, first.plan.metrics), document


def test_a_definition_that_is_not_canonical_is_refused() -> None:
    definition = RunDocument.parse({"loss": "focal", "metrics": []}).definition
    for request in (
        {**definition["request"], "loss": "focal"},
        {**definition["request"], "loss": {"name": "focal", "gamma": 2.0}},
        {**definition["request"], "outputs": ["loss", "gradient"]},
        {**definition["request"], "loss": {"name": "none"}},
    ):
        with pytest.raises(Problem):
            RunDocument.of({**definition, "request": request})


def test_a_run_of_this_process_has_the_definition_of_the_service() -> None:
    run = Run(loss="focal", metrics=["f1", "auroc"], gamma=1.5, identity="position", rows=7)
    document = {"loss": {"name": "focal", "gamma": 1.5}, "metrics": ["f1", "auroc"], "identity": "position"}
    assert run._state.definition == RunDocument.parse({**document, "dataset": {"rows": 7}}).definition


def test_the_signature_is_one_line_that_says_how_a_result_was_judged() -> None:
    document = RunDocument.parse(
        {"loss": {"name": "focal", "gamma": 1.5}, "metrics": {"names": ["f1"], "zero_division": 0}}
    )
    assert document.signature(50_000, TARGETS, "0.1.0") == (
        "lossd 0.1|focal|gamma=1.5|zero_division=0|rows=50000|targets=0123456789abcdef|"
        f"definition={document.digest[:16]}"
    )
    plain = RunDocument.parse({"task": "binary", "identity": "id"})
    assert plain.signature(3, None, "0.1.3.dev1") == (
        f"lossd 0.1|binary|zero_division=null|identity=id|rows=3|targets=null|definition={plain.digest[:16]}"
    )
