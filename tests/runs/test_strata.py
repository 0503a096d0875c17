"""Strata: what the declared slices and crossings of a run are counted apart by."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from lossd.runs.definition import RunDocument
from lossd.runs.rows.strata import strata_of
from lossd_client.errors import InvalidRequest

SLICED: dict[str, Any] = {
    "task": "binary",
    "groups": 32,
    "slices": {"site": ["B", "A"], "age": ["old", "young"]},
    "crossed": [["site", "age"]],
}


def test_strata_are_all_rows_then_slices_by_name_then_crossings() -> None:
    assert strata_of(RunDocument.parse(SLICED).definition) == [
        {},
        {"age": "old"},
        {"age": "young"},
        {"site": "B"},
        {"site": "A"},
        {"site": "B", "age": "old"},
        {"site": "B", "age": "young"},
        {"site": "A", "age": "old"},
        {"site": "A", "age": "young"},
    ]
    assert strata_of(RunDocument.parse({"task": "binary"}).definition) == [{}]


def test_groups_and_slices_are_part_of_the_definition_and_of_its_document() -> None:
    document = RunDocument.parse(SLICED)
    assert RunDocument.parse(document.to_dict()).digest == document.digest
    assert RunDocument.of(document.definition).definition == document.definition
    changes: list[tuple[dict[str, Any], str]] = [
        ({"groups": 64}, "/groups"),
        ({"slices": {"site": ["A", "B"], "age": ["old", "young"]}}, "/slices/site"),
        ({"crossed": []}, "/crossed"),
    ]
    for change, pointer in changes:
        other = RunDocument.parse({**SLICED, **change})
        assert other.digest != document.digest
        assert document.differences(other) == [pointer]


def test_a_stored_document_of_before_there_were_groups_has_none() -> None:
    before = RunDocument.parse({"task": "binary", "groups": 0})
    assert not {"groups", "slices", "crossed"} & {*before.to_dict(), *before.definition}
    assert RunDocument.stored(before.to_dict()).digest == before.digest
    assert RunDocument.of(before.definition).groups == 0


@pytest.mark.parametrize(
    ("change", "pointer", "message"),
    [
        ({"groups": 20}, "/groups", "0, 16, 32"),
        ({"groups": True}, "/groups", "0, 16, 32"),
        ({"slices": {"site": ["A", "A"]}, "crossed": []}, "/slices/site", "'A' twice"),
        ({"slices": {"site": []}, "crossed": []}, "/slices/site", "1"),
        ({"slices": {"a/b": ["A"]}, "crossed": []}, "/slices", "a/b|A-Za-z"),
        ({"slices": {"site": ["A" * 201]}, "crossed": []}, "/slices/site", "200"),
        ({"slices": {"n": [str(i) for i in range(1001)]}, "crossed": []}, "/slices", "1001 values together"),
        ({"crossed": [["site", "sex"]]}, "/crossed/0", "'sex', which is not a slice; the slices are site, age"),
        ({"crossed": [["site"]]}, "/crossed/0", "two different slices or more"),
        ({"crossed": [["site", "site"]]}, "/crossed/0", "two different slices or more"),
        ({"crossed": [["site", "age"], ["age", "site"]]}, "/crossed/1", "crossed twice"),
    ],
)
def test_wrong_groups_and_slices_are_refused_where_they_stand(
    change: dict[str, Any], pointer: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        RunDocument.parse({**SLICED, **change})
    assert any(fault["pointer"].startswith(pointer) for fault in refused.value.errors), refused.value.errors


def test_a_definition_of_many_values_is_refused_quickly() -> None:
    """A definition may have 512 KiB of them; to compare each with each takes quarter of a minute."""
    values = [f"v{number}" for number in range(30_000)]
    begin = time.process_time()
    with pytest.raises(InvalidRequest, match="at most 1000 are counted") as refused:
        RunDocument.parse({**SLICED, "slices": {"site": [*values, "v7"]}, "crossed": []})
    assert "the slice site has 'v7' twice" in str(refused.value)
    assert time.process_time() - begin < 2.0


NAMES = [f"slice-{number}" for number in range(900)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slices": {"site": [*range(60_000)]}}, "slices.site.0: input should be a valid string"),
        ({"crossed": [[*range(20)]] * 3000}, "crossed.0.0: input should be a valid string"),
        ({"slices": {name: ["a"] for name in NAMES}, "crossed": [["q", "r"]] * 4000}, "slice-9, ...; and 3990 more"),
        ({"slices": {name: ["a"] for name in NAMES}, "crossed": [[*NAMES, "slice-0"]]}, "slice-9, ..."),
        ({"crossed": [["site", "age"]] * 4000}, "the slices site, age are crossed twice; and 3989 more"),
    ],
    ids=["values", "crossings", "unknown slices", "long crossing", "twice"],
)
def test_the_error_of_a_definition_of_many_faults_is_short(fields: dict[str, Any], message: str) -> None:
    """900 slices and 4,000 crossings, 80 KB, used to be refused in 147 MB."""
    with pytest.raises(InvalidRequest) as refused:
        RunDocument.parse({**SLICED, "slices": {"site": ["a"], "age": ["b"]}, "crossed": [], **fields})
    assert message in refused.value.detail
    assert len(json.dumps(refused.value.to_json())) < 8000
