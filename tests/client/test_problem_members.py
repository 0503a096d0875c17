from __future__ import annotations

import orjson

from lossd_client.errors import BatchConflict, DuplicateRows, Incomplete, NotComparable, Problem, RunDiffers


def test_extension_members_survive_the_wire() -> None:
    sent = DuplicateRows("rows 3, 4 were counted before", rows=[3, 4], count=2, batches=["a"])
    document = orjson.loads(orjson.dumps(sent.to_json()))
    assert document["rows"] == [3, 4]
    received = Problem.from_json(document)
    assert isinstance(received, DuplicateRows)
    assert (received.rows, received.count, received.batches) == ([3, 4], 2, ["a"])
    received = Problem.from_json(Incomplete("no", expected=5, counted=3, missing=[[3, 5]]).to_json())
    assert isinstance(received, Incomplete)
    assert (received.expected, received.counted, received.missing) == (5, 3, [[3, 5]])
    apart = [{"run": "b", "owner": "", "differs": ["targets"], "detail": "no"}]
    received = Problem.from_json(NotComparable("no", differs=["targets"], runs=apart).to_json())
    assert isinstance(received, NotComparable)
    assert (received.differs, received.runs) == (["targets"], apart)


def test_mistyped_members_are_ignored() -> None:
    received = Problem.from_json({"type": "/problems/run-differs", "status": 409, "detail": "no", "fields": 7})
    assert isinstance(received, RunDiffers)
    assert received.fields == []


def test_problems_without_members_have_none() -> None:
    assert BatchConflict("no").to_json().keys() == {"type", "title", "status", "detail"}
