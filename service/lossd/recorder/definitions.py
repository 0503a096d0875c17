"""What a run's definition demands: of a second definition, of the states of its batches, and of its seal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lossd.recorder.schema import OPEN
from lossd.runs.differences import differing
from lossd.runs.facts import Facts
from lossd.runs.state import RunState
from lossd_client.errors import DefinitionChanged, Fault, Incomplete, InvalidRequest, OtherTargets, RunDiffers

__all__ = ["check_complete", "check_same", "check_targets", "columns", "compact", "in_common"]

NAMED_GAPS = 10

_NOTHING = {"status": OPEN, "revision": 0, "rows": 0, "batches": 0, "bytes": 0, "pending": 0, "pending_bytes": 0}


def columns(document: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """Return the columns of a new run, but for its id, owner, name, digest and times.

    Raises:
        InvalidRequest: A text has a NUL character, which PostgreSQL cannot keep.
    """
    dataset = document.get("dataset") or {}
    tags = dict(document.get("tags") or {})
    texts = {"/tags": [*tags, *tags.values()], "/dataset": [str(dataset.get(name)) for name in ("name", "version")]}
    for pointer, values in texts.items():
        if any("\0" in value for value in values):
            detail = f"{pointer[1:]} has a NUL character; leave it out"
            raise InvalidRequest(detail, errors=[Fault(pointer=pointer, detail=detail)])
    return {
        **_NOTHING,
        "task": task or document.get("task"),
        "dataset": dataset.get("name"),
        "dataset_version": dataset.get("version"),
        "tags": tags,
        "public": bool(document.get("public")),
        "document": compact(document),
    }


def compact(document: Mapping[str, Any]) -> str:
    """Return the same JSON for equal documents."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def check_same(found: Mapping[Any, Any], document: Mapping[str, Any], digest: str) -> None:
    """Check that a run's row has the definition of a document, whose tags and ``public`` may differ.

    Raises:
        RunDiffers: It has another one.
        DefinitionChanged: It has the same one, but a metric's definition has changed.
    """
    if found["digest"] == digest:
        return
    fields = list(differing(_definition(json.loads(found["document"])), _definition(document)))
    if not fields:
        raise DefinitionChanged(
            f"the definition of a metric has changed since the run {found['name']} began; start another run"
        )
    raise RunDiffers(
        f"the run {found['name']} exists with another definition, which differs in {', '.join(fields)}; use another "
        "name, or delete the run",
        fields=fields,
    )


def in_common(common: dict[str, Any] | None, described: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what all states of a run have in common, with one more state.

    Args:
        common: What the states so far have in common; None before the first.
        described: The description of the further state.

    Raises:
        DefinitionChanged: The definition of a metric has changed since the first batch.
        InvalidRequest: The states cannot be added up.
    """
    if "facts" not in described:
        return common
    facts = {**described["facts"], "dtypes": {}}
    found = {name: described[name] for name in ("definition", "metrics", "totals")} | {"facts": facts}
    if common is None or found == common:
        return found
    if found["definition"] != common["definition"]:
        raise InvalidRequest("the batch was evaluated by another definition than the run's; send it again")
    if found["metrics"] != common["metrics"]:
        raise DefinitionChanged(
            "the definition of a metric has changed since the run began, so it counts nothing more; start another run"
        )
    Facts.of_dict(common["facts"]).check(Facts.of_dict(facts))
    for key, shape in found["totals"].items():
        if common["totals"].get(key, shape) != shape:
            counted = common["totals"][key][1]
            raise InvalidRequest(
                f"{key.partition('.')[0]} has shape {shape[1]} in this batch and {counted} in those counted"
            )
    return {**common, "totals": {**common["totals"], **found["totals"]}}


def check_complete(row: Mapping[str, Any], state: RunState | None, expected: int | None) -> None:
    """Check that all rows of the data set are counted.

    Args:
        row: The run's row.
        state: The run's state; None without batches.
        expected: The rows of the data set; None if they are not known.

    Raises:
        Incomplete: Rows are missing, or there are more.
    """
    counted = row["rows"]
    missing = [] if state is None else state.identity.missing(expected)
    if counted and not missing and expected in (None, counted):
        return
    if not counted:
        what = "no row was counted; send batches, then seal the run"
    elif missing:
        ranges = ", ".join(f"{gap.start} to {gap.stop - 1}" for gap in missing[:NAMED_GAPS])
        more = ", ..." if len(missing) > NAMED_GAPS else ""
        what = f"the rows {ranges}{more} are missing; send them, then seal the run"
    elif expected is not None and counted < expected:
        what = f"{expected - counted} are missing; send them, then seal the run"
    else:
        what = "there are more than the data set has; seal the run with the number of its rows, or delete it"
    total = "" if expected is None else f" of {expected}"
    raise Incomplete(
        f"the run {row['name']} has counted {counted}{total} rows: {what}",
        expected=expected or 0,
        counted=counted,
        missing=[[gap.start, gap.stop] for gap in missing],
    )


def check_targets(state: RunState | None, pinned: str | None) -> None:
    """Check that the targets of the counted rows have the fingerprint that the definition names, if it names one.

    Raises:
        OtherTargets: They have another.
    """
    found = None if state is None else state.targets
    if pinned is not None and found != pinned:
        raise OtherTargets(
            f"the targets of the counted rows have the fingerprint {found}, and the definition names {pinned}: "
            "labels, weights or rows differ; delete the run, and send the right ones"
        )


def _definition(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in ("tags", "public")}
