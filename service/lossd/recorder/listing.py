"""Lists of runs and of batches: filters, order, and pages that neither skip nor repeat a row.

A page begins behind the last row of the one before it, by its place in the order and not by a number of rows to skip.
A run whose place changes meanwhile, because it is touched or sealed, is where it belongs when a page is read.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossd.recorder.schema import BATCHES, DELETED, OPEN, RUNS, SEALED
from lossd.runs.rows.content import SHA256
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire.quoting import quoted

__all__ = ["ENTRIES", "OF", "batch_document", "batches", "record", "runs"]

PLACES = {"created": RUNS.c.created, "touched": RUNS.c.touched, "name": RUNS.c.name}
LATEST_FIRST = "-created"
MOST = 1000
MOST_BYTES = 8 << 20
"""The definitions of a page of runs; one may have 512 KiB."""

TEXT = re.compile(r"[!-~]+")
"""Ids and names of runs."""

OF = "/rows", "/batches"
"""Beside the numbers of an open run's summary: the rows and the batches that it is of. No metric has such a name."""

ENTRIES = (
    sa.select(BATCHES.c.total_entries)
    .where(BATCHES.c.run == RUNS.c.id, BATCHES.c.ordinal == RUNS.c.batches - 1)
    .scalar_subquery()
    .label("entries")
)
"""The entries of a run: the last batch knows them. A service of an earlier version counts batches without any."""

_LISTED = [
    *(column for column in RUNS.c if column.name not in ("common", "result", "pending", "pending_bytes")),
    ENTRIES,
]


def runs(
    connection: Connection,
    owner: str,
    *,
    dataset: str | None = None,
    task: str | None = None,
    status: str | None = None,
    tag: str | None = None,
    sort: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> dict[str, Any]:
    """Return one page of the runs of an owner and of all public ones.

    Args:
        connection: The connection.
        owner: Whose runs.
        dataset: A data set's name, or its name and version: ``imagenet-val@2``.
        task: A task.
        status: open or sealed.
        tag: A tag's key and value: ``commit:4f1c``.
        sort: created, touched, name, or a metric of the summary, as ``f1.macro``; with ``-``, the highest or latest
            first. Runs without that metric come last.
        after: The ``next`` of the page before.
        limit: The most runs of the page. It has fewer if their definitions have more than 8 MiB.

    Returns:
        ``runs``, records without results; ``next``, to be passed as ``after``, or None after the last page.

    Raises:
        InvalidRequest: A filter or the cursor cannot be read.
    """
    sort = sort or LATEST_FIRST
    falling, key = sort.startswith("-"), sort.removeprefix("-")
    for name, value in {"dataset": dataset, "task": task, "tag": tag, "sort": key}.items():
        if value is not None and "\0" in value:
            raise _wrong(name, f"{name} has a NUL character, which no run has")
    place: sa.ColumnElement[Any] = (
        PLACES[key] if key in PLACES else sa.cast(_member(connection, RUNS.c.summary, key), sa.Double)
    )
    query = sa.select(*_LISTED, place.label("place")).where(
        RUNS.c.status != DELETED, (RUNS.c.owner == owner) | RUNS.c.public
    )
    if dataset is not None:
        name, _, version = dataset.rpartition("@")
        versioned = (RUNS.c.dataset == name) & (RUNS.c.dataset_version == version)
        query = query.where((RUNS.c.dataset == dataset) | versioned)
    if task is not None:
        query = query.where(RUNS.c.task == task)
    if status is not None:
        if status not in (OPEN, SEALED):
            raise _wrong("status", f"status is {quoted(status)}; it is one of {OPEN}, {SEALED}")
        query = query.where(RUNS.c.status == status)
    if tag is not None:
        name, colon, value = tag.partition(":")
        if not colon:
            raise _wrong("tag", f"tag is {quoted(tag)}; write a key and a value, such as commit:4f1c")
        query = query.where(_member(connection, RUNS.c.tags, name) == value)
    if after is not None:
        query = query.where(_behind(place, *_cursor(after, sort, text=key == "name"), falling=falling))
    order = place.desc() if falling else place.asc()
    limit = min(max(limit, 1), MOST)
    query = query.order_by(place.is_(None), order, RUNS.c.id).limit(limit + 1)
    page: list[sa.RowMapping] = []
    nbytes, more = 0, None
    with connection.execute(query) as found:
        for row in found.mappings():
            nbytes += len(row["document"])
            if len(page) == limit or (page and nbytes > MOST_BYTES):
                more = _written([sort, page[-1]["place"], page[-1]["id"]])
                break
            page.append(row)
    return {"runs": [record(row) for row in page], "next": more}


def batches(connection: Connection, run: str, after: str | None, limit: int) -> dict[str, Any]:
    """Return one page of the batches of a run, in the order in which they were counted.

    Returns:
        ``batches`` and ``next``, as of :func:`runs`.

    Raises:
        InvalidRequest: The cursor cannot be read.
    """
    query = sa.select(BATCHES).where(BATCHES.c.run == run)
    if after is not None:
        if not (after.isascii() and after.isdigit() and len(after) < 19):
            raise _wrong("after", f"after is {quoted(after)}; pass the next of the page before as it is")
        query = query.where(BATCHES.c.ordinal > int(after))
    query = query.order_by(BATCHES.c.ordinal).limit(min(max(limit, 1), MOST) + 1)
    found = connection.execute(query).mappings().all()
    page = found[: min(max(limit, 1), MOST)]
    more = str(page[-1]["ordinal"]) if len(found) > len(page) else None
    return {"batches": [batch_document(row) for row in page], "next": more}


def record(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a run as JSON values; ``result`` only if the row has one.

    ``summarized`` has the rows and the batches that ``summary`` is of, which may be fewer than an open run has by now.
    """
    names = ("id", "owner", "name", "digest", "task", "status", "tags", "public", "created", "touched", "sealed")
    counts = ("rows", "batches", "bytes", "revision")
    document: dict[str, Any] = {name: row[name] for name in names + counts}
    document["content_hash"] = row["content_hash"] or SHA256
    document["entries"] = row["entries"] if row["batches"] else 0
    kept = row["summary"]
    document["summary"] = None if kept is None else {name: value for name, value in kept.items() if name not in OF}
    document["summarized"] = None if kept is None else {name[1:]: kept.get(name, row[name[1:]]) for name in OF}
    document["document"] = json.loads(row["document"])
    document["dataset"] = row["dataset"]
    document["dataset_version"] = row["dataset_version"]
    if row.get("result") is not None:
        document["result"] = json.loads(row["result"])
    return document


def batch_document(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a counted batch as JSON values."""
    return {
        "name": row["name"],
        "rows": row["rows"],
        "entries": row["entries"],
        "digest": row["digest"].hex(),
        "first": row["first"],
        "last": row["last"],
        "device": row["device"],
        "build": row["build"],
        "counted_at": row["counted_at"],
        "run": {"rows": row["total_rows"], "batches": row["ordinal"] + 1},
    }


def _member(connection: Connection, column: sa.Column[Any], key: str) -> sa.ScalarSelect[Any]:
    """Return the value under a key of an object in a column, as text or number; NULL if it is absent.

    A path would need the key quoted, which SQLite cannot do for every key.
    """
    postgresql = connection.dialect.name == "postgresql"
    each = sa.func.json_each_text if postgresql else sa.func.json_each
    # SQLite would read the type of the column in the result.
    members = each(sa.type_coerce(column, sa.Text) if not postgresql else column).table_valued("key", "value")
    return sa.select(members.c.value).where(members.c.key == key).scalar_subquery()


def _behind(place: Any, value: Any, last: str, *, falling: bool) -> Any:
    """Return the condition of rows behind the last one of a page."""
    behind_in_tie = RUNS.c.id > last
    if value is None:
        return place.is_(None) & behind_in_tie
    further = place < value if falling else place > value
    return further | ((place == value) & behind_in_tie) | place.is_(None)


def _written(cursor: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(cursor, separators=(",", ":")).encode()).decode().rstrip("=")


def _cursor(after: str, sort: str, *, text: bool) -> tuple[Any, str]:
    """Return the place and the id of the last row of the page before.

    Raises:
        InvalidRequest: It is no cursor, or that of another order.
    """
    detail = f"after is {quoted(after)}; pass the next of the page before as it is, with the same sort"
    try:
        order, value, last = json.loads(base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)))
        if value is not None and not text:
            value = float(value)
        texts = [last, *([value] if text and value is not None else [])]
        if order != sort or not all(TEXT.fullmatch(part) for part in texts):
            raise ValueError("the cursor of another order")
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _wrong("after", detail) from error
    return value, last


def _wrong(name: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, errors=[Fault(pointer=f"/{name}", detail=detail)])
