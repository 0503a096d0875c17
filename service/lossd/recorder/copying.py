"""Copies runs from one database to another, such as from SQLite to PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossd.recorder.database import Database, StoreError
from lossd.recorder.schema import BATCHES, DELETED, RUNS, STATES

__all__ = ["Copied", "copy"]

CHUNK = 1000
"""Rows that are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of a run.

    Attributes:
        owner: Whose run.
        name: Its name.
        batches: How many batches it has.
        before: Whether the other database had it already.
    """

    owner: str
    name: str
    batches: int
    before: bool


def copy(source: str, target: str) -> Iterator[Copied]:
    """Copy all runs, each in one transaction, and yield what became of each.

    A run that was copied before is left as it is, so the same call goes on where another one was interrupted.

    Args:
        source: The path of an SQLite file, or ``postgresql://...``. No service may write to an SQLite file meanwhile.
        target: The database to copy to, which is made if it is a path.

    Raises:
        StoreError: A database cannot be opened, or the target has another run of the same owner and name.
        Problem: A database does not answer, or is full.
    """
    if "://" not in source and not Path(source).is_file():
        raise StoreError(f"there is no database {source}")
    origin, copies = Database(source), Database(target)
    try:
        origin.open()
        copies.open()
        ids = origin.run(lambda c: c.scalars(sa.select(RUNS.c.id).where(RUNS.c.status != DELETED)).all())
        for run in ids:
            yield origin.run(lambda reading, run=run: copies.run(lambda writing: _copied(reading, writing, run)))  # type: ignore[misc]
    finally:
        copies.close()
        origin.close()


def _copied(reading: Connection, writing: Connection, run: str) -> Copied:
    row = reading.execute(sa.select(RUNS).where(RUNS.c.id == run)).mappings().one()
    if writing.scalar(sa.select(RUNS.c.id).where(RUNS.c.id == run)) is not None:
        return Copied(row["owner"], row["name"], row["batches"], before=True)
    same_name = (RUNS.c.owner == row["owner"]) & (RUNS.c.name == row["name"])
    if writing.scalar(sa.select(RUNS.c.id).where(same_name)) is not None:
        owner = f" of {row['owner']}" if row["owner"] else ""
        raise StoreError(f"both databases have a run {row['name']}{owner}; delete one of them, then copy again")
    writing.execute(sa.insert(RUNS), dict(row))
    for table in (BATCHES, STATES):
        for rows in _chunks(reading, table, run):
            writing.execute(sa.insert(table), rows)
    return Copied(row["owner"], row["name"], row["batches"], before=False)


def _chunks(connection: Connection, table: sa.Table, run: str) -> Iterator[list[dict[Any, Any]]]:
    """Yield the rows of a run, some at a time, in the order of their ordinals."""
    after = -1
    while True:
        query = sa.select(table).where(table.c.run == run, table.c.ordinal > after).order_by(table.c.ordinal)
        rows = [dict(row) for row in connection.execute(query.limit(CHUNK)).mappings()]
        if not rows:
            return
        yield rows
        after = rows[-1]["ordinal"]
