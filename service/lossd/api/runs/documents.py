"""Answers about runs, made of the recorder's records."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from datetime import UTC, datetime
from typing import Any

from lossd import __version__
from lossd.api.runs.definitions import current_document, problem_of
from lossd.api.runs.names import RunQuery
from lossd.runs.state import RunState
from lossd_client.errors import Conflict, InvalidRequest
from lossd_client.run_messages import flat
from lossd_client.wire import json
from lossd_client.wire.quoting import quoted

__all__ = [
    "batch_answer",
    "entry",
    "etag",
    "filtered",
    "missing_rows",
    "run_answer",
    "signature",
    "summary_of",
    "time_text",
    "version",
]

BESIDE = ("task", "undefined")  # beside the metrics of a result
BY_NAME = ("intervals", "bounds", "worst", "gap")  # by the names of metrics, or of their numbers: f1.macro
OF_SLICES = ("slices", "worst", "gap")
ENDS = ("low", "high")
RESULT = (
    "digest", "loss", "metrics", "level", "groups", "intervals", "bounds", "targets", "pairing", "slices", "worst",
    "gap", "readable", "warnings",
)  # fmt: skip
"""The fields of a result, in the order of an answer."""
APART = ("tags", "public")  # kept beside the definition, not in it


def time_text(seconds: float | None) -> str | None:
    """Return a Unix time as RFC 3339 in UTC; None for None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def entry(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the list of runs says of a run."""
    return {
        "run": record["name"],
        "owner": record["owner"],
        "status": record["status"],
        **{name: value for name, value in record["document"].items() if name not in APART},
        "tags": record["tags"],
        "public": record["public"],
        "digest": record["digest"],
        "counted": {name: record[name] for name in ("rows", "entries", "batches")},
        "created": time_text(record["created"]),
        "touched": time_text(record["touched"]),
        "sealed": time_text(record["sealed"]),
        **_summary(record),
    }


def batch_answer(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's list of batches says of a batch."""
    return {
        "batch": batch["name"],
        "counted": {"rows": batch["rows"], "entries": batch["entries"]},
        "first": batch["first"],
        "digest": batch["digest"],
        "run": batch["run"],
        "counted_at": time_text(batch["counted_at"]),
    }


def version(record: Mapping[str, Any]) -> tuple[int, float]:
    """Return what tells the states of a run apart.

    The revision alone does not: a database that fails over to a copy that lacks the last commits gives it again.
    """
    return record["revision"], record["touched"]


def etag(record: Mapping[str, Any]) -> str:
    """Return the entity tag of a run: it changes with each counted batch, with the seal, and with the tags.

    It is weak (RFC 9110, section 8.8.1), because answers are compressed as each client asks.
    """
    parts = [record["id"], *version(record), record["status"], record["tags"], record["public"], __version__]
    return f'W/"{hashlib.blake2b(json.dumps(parts), digest_size=12).hexdigest()}"'


def summary_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a result by which runs are listed, such as ``f1.macro``.

    The ends of their intervals are among them: ``f1.macro.low`` and ``f1.macro.high``.
    """
    numbers, intervals = flat(result.get("loss"), result["metrics"]), result.get("intervals", {})
    ends = {f"{name}.{end}": intervals[name][end] for name in numbers if name in intervals for end in ENDS}
    return {**numbers, **ends}


def _summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the latest numbers of a run, what they are of, and their intervals, [low, high]; None without numbers."""
    kept = record["summary"]
    if kept is None:
        return {"summary": None, "summary_of": None, "intervals": None}
    intervals = {
        name: [kept[f"{name}.{end}"] for end in ENDS] for name in kept if all(f"{name}.{end}" in kept for end in ENDS)
    }
    apart = {f"{name}.{end}" for name in intervals for end in ENDS}
    numbers = {name: value for name, value in kept.items() if name not in apart}
    return {"summary": numbers, "summary_of": record["summarized"], "intervals": intervals}


def filtered(result: Mapping[str, Any], parameters: RunQuery) -> dict[str, Any]:
    """Return the part of a result that a request asks for.

    Raises:
        InvalidRequest: The result has no metric of a name.
    """
    if not parameters.slices:
        result = {name: value for name, value in result.items() if name not in OF_SLICES}
    if (names := parameters.names) is None:
        return dict(result)
    known = [name for name in result["metrics"] if name not in BESIDE]
    for name in names:
        if name not in known:
            raise InvalidRequest(f"the run has no metric {quoted(name)}; it has {', '.join(known)}")
    found = _of_metrics(result, {*names, "loss"})
    if "slices" in result:
        found["slices"] = [_of_metrics(each, {*names, "loss"}) for each in result["slices"]]
    return found


def _of_metrics(result: Mapping[str, Any], names: Container[str]) -> dict[str, Any]:
    """Return a result, or a slice of one, with these metrics alone."""
    found = dict(result)
    metrics = {name: value for name, value in result["metrics"].items() if name == "task" or name in names}
    undefined = {name: value for name, value in result["metrics"].get("undefined", {}).items() if name in names}
    found["metrics"] = {**metrics, "undefined": undefined} if undefined else metrics
    for part in BY_NAME:
        if part in result:
            found[part] = {name: value for name, value in result[part].items() if name.partition(".")[0] in names}
    return found


def missing_rows(record: Mapping[str, Any], result: Mapping[str, Any] | None) -> list[list[int]]:
    """Return the first ranges of rows that a run lacks, [first, behind the last]; none if they are unknown."""
    if result is not None:
        return list(result["missing"])
    try:
        return [[gap.start, gap.stop] for gap in RunState(current_document(record).definition).missing()]
    except Conflict:
        return []


def signature(record: Mapping[str, Any], result: Mapping[str, Any]) -> str | None:
    """Return the line that says how an open run is judged; None if another version of lossd defined it."""
    try:
        return current_document(record).signature(record["rows"], result["targets"], __version__)
    except Conflict:
        return None


def run_answer(
    record: Mapping[str, Any], result: Mapping[str, Any] | None, parameters: RunQuery | None = None
) -> dict[str, Any]:
    """Return the answer about one run.

    Args:
        record: The run's record.
        result: Its result; None if it has counted nothing.
        parameters: What is asked for; None for everything.

    Raises:
        InvalidRequest: The result has no metric of a name.
    """
    answer = entry(record)
    del answer["intervals"]  # the result has them
    answer["signature"] = None
    answer["missing"] = missing_rows(record, result)
    answer["result"] = None
    if result is None:
        problem = problem_of(record)
        return answer if problem is None else {**answer, "problem": problem}
    answer["signature"] = result.get("signature") or signature(record, result)
    found = {"intervals": {}, "slices": [], **result}  # a result of an earlier version has none
    found = filtered(found, parameters) if parameters is not None else found
    names = [name for name in RESULT if name in found]
    answer["result"] = {"provisional": record["status"] == "open", **{name: found[name] for name in names}}
    return answer
