"""Answers about runs, made of the recorder's records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from lossd import __version__
from lossd.api.runs.definitions import current_document, problem_of
from lossd.runs.state import RunState
from lossd_client.errors import Conflict, InvalidRequest
from lossd_client.wire import json
from lossd_client.wire.quoting import quoted

__all__ = ["batch_answer", "entry", "etag", "filtered", "missing_rows", "run_answer", "signature", "time_text"]

BESIDE = ("task", "undefined")  # beside the metrics of a result
APART = ("tags", "public")  # beside the definition, of which they are no part


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
        "counted": {"rows": record["rows"], "batches": record["batches"]},
        "created": time_text(record["created"]),
        "touched": time_text(record["touched"]),
        "sealed": time_text(record["sealed"]),
        "summary": record["summary"],
    }


def batch_answer(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's list of batches says of a batch."""
    return {
        "batch": batch["name"],
        "counted": {"rows": batch["rows"]},
        "first": batch["first"],
        "digest": batch["digest"],
        "run": batch["run"],
        "counted_at": time_text(batch["counted_at"]),
    }


def etag(record: Mapping[str, Any]) -> str:
    """Return the entity tag of a run: it changes with each counted batch, with the seal, and with the tags.

    It is weak (RFC 9110, section 8.8.1), because answers are compressed as each client asks.
    """
    parts = [record["id"], record["revision"], record["status"], record["tags"], record["public"], __version__]
    return f'W/"{hashlib.blake2b(json.dumps(parts), digest_size=12).hexdigest()}"'


def filtered(metrics: Mapping[str, Any], names: str) -> dict[str, Any]:
    """Return some metrics of a result.

    Args:
        metrics: The result's metrics.
        names: The names, separated by commas.

    Raises:
        InvalidRequest: The result has no metric of a name.
    """
    chosen = {name.strip() for name in names.split(",")}
    known = [name for name in metrics if name not in BESIDE]
    for name in chosen:
        if name not in known:
            raise InvalidRequest(f"the run has no metric {quoted(name)}; it has {', '.join(known)}")
    found = {name: value for name, value in metrics.items() if name == "task" or name in chosen}
    undefined = {name: value for name, value in metrics.get("undefined", {}).items() if name in chosen}
    return {**found, "undefined": undefined} if undefined else found


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


def run_answer(record: Mapping[str, Any], result: Mapping[str, Any] | None, metrics: str | None) -> dict[str, Any]:
    """Return the answer about one run.

    Args:
        record: The run's record.
        result: Its result; None if it has counted nothing.
        metrics: The names of the metrics in the answer, separated by commas; None for all.

    Raises:
        InvalidRequest: The result has no metric of a name.
    """
    answer = entry(record)
    answer["signature"] = None
    answer["missing"] = missing_rows(record, result)
    answer["result"] = None
    if result is None:
        problem = problem_of(record)
        return answer if problem is None else {**answer, "problem": problem}
    answer["signature"] = result.get("signature") or signature(record, result)
    found = result["metrics"] if metrics is None else filtered(result["metrics"], metrics)
    answer["result"] = {
        "provisional": record["status"] == "open",
        "digest": result["digest"],
        **({"loss": result["loss"]} if "loss" in result else {}),
        "metrics": found,
        "bounds": result["bounds"],
        "targets": result["targets"],
        "warnings": result["warnings"],
    }
    return answer
