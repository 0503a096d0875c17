"""The tables of the store. A new database has them at once; Alembic's migrations make them of earlier ones.

Numbers come before long texts in ``runs``: SQLite reads a row from its start, and a sum of ``bytes`` then reads no
document. No table refers to another with a foreign key, because a deleted run loses its rows piece by piece. Times are
Unix seconds in UTC. Texts are ordered by their code points on every database.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)

__all__ = [
    "BATCHES", "DELETED", "METADATA", "OPEN", "RUNS", "SEALED", "STATES", "VERSION", "VERSIONS", "VERSION_TABLE",
]  # fmt: skip

VERSION = "0003"
"""The newest migration. With it in the database, Alembic need not be imported."""

VERSION_TABLE = "lossd_schema"
"""Alembic's table; its usual name may be another program's in a database that both share."""

VERSIONS = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)
"""As Alembic makes it."""

OPEN, SEALED, DELETED = "open", "sealed", "deleted"
"""The statuses of a run. No reader finds a deleted one; its rows are removed piece by piece."""

METADATA = MetaData(naming_convention={"pk": "pk_%(table_name)s", "uq": "uq_%(table_name)s"})

_name = String().with_variant(String(collation="C"), "postgresql")
_flat = JSON(none_as_null=True)

RUNS = Table(
    "runs",
    METADATA,
    Column("id", _name, nullable=False),
    Column("status", String, nullable=False),
    Column("public", Boolean, nullable=False),
    Column("created", Double, nullable=False),
    Column("touched", Double, nullable=False),
    Column("sealed", Double),
    Column("revision", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("batches", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("pending", BigInteger, nullable=False),  # batches that no fold contains
    Column("pending_bytes", BigInteger, nullable=False),
    Column("owner", _name, nullable=False),
    Column("name", _name, nullable=False),
    Column("task", _name),
    Column("dataset", _name),
    Column("dataset_version", _name),
    Column("digest", String, nullable=False),
    Column("tags", _flat, nullable=False),
    Column("summary", _flat),
    Column("common", Text),  # JSON: what the state of every batch has in common; NULL before the first
    Column("document", Text, nullable=False),
    Column("result", Text),
    Column("content_hash", String),  # of its batches; NULL of a run that an earlier version began: sha256
    PrimaryKeyConstraint("id"),
    UniqueConstraint("owner", "name"),
)

_positioned = text("first IS NOT NULL")

BATCHES = Table(
    "batches",
    METADATA,
    Column("run", _name, nullable=False),
    Column("name", _name, nullable=False),
    Column("ordinal", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # of the content, by the run's content_hash
    Column("rows", BigInteger, nullable=False),
    Column("total_rows", BigInteger, nullable=False),  # of the run, with this batch
    Column("entries", BigInteger),  # NULL of a batch that an earlier version counted
    Column("total_entries", BigInteger),  # of the run, with this batch; NULL if one of them is not known
    Column("first", BigInteger),  # the lowest position or id
    Column("last", BigInteger),  # the highest
    Column("identity", LargeBinary),  # the ids, packed; NULL where first and last say it all
    Column("device", String, nullable=False),
    Column("build", String, nullable=False),
    Column("counted_at", Double, nullable=False),
    PrimaryKeyConstraint("run", "name"),
    Index("ix_batches_run_ordinal", "run", "ordinal", unique=True),
    Index("ix_batches_run_first", "run", "first", sqlite_where=_positioned, postgresql_where=_positioned),
)

STATES = Table(
    "states",
    METADATA,
    Column("run", _name, nullable=False),
    Column("ordinal", BigInteger, nullable=False),  # of the first batch
    Column("batches", BigInteger, nullable=False),  # how many
    Column("nbytes", BigInteger, nullable=False),  # what they count for: the bytes of each state as it was sent
    Column("state", LargeBinary, nullable=False),  # one state of all of them, or theirs joined
    PrimaryKeyConstraint("run", "ordinal"),
)


def _store_as_it_is(_table: Table, connection: Connection, **_options: object) -> None:
    """Let PostgreSQL compress no state, because all are compressed."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("ALTER TABLE states ALTER COLUMN state SET STORAGE EXTERNAL")


event.listen(STATES, "after_create", _store_as_it_is)
