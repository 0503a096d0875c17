"""The first schema.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")
POSITIONED = sa.text("first IS NOT NULL")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "runs",
        sa.Column("id", NAME, nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("public", sa.Boolean(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("touched", sa.Double(), nullable=False),
        sa.Column("sealed", sa.Double()),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("batches", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("pending", sa.BigInteger(), nullable=False),
        sa.Column("pending_bytes", sa.BigInteger(), nullable=False),
        sa.Column("owner", NAME, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("task", NAME),
        sa.Column("dataset", NAME),
        sa.Column("dataset_version", NAME),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("summary", sa.JSON()),
        sa.Column("common", sa.Text()),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("result", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("owner", "name", name="uq_runs"),
    )
    op.create_table(
        "batches",
        sa.Column("run", NAME, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("ordinal", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("total_rows", sa.BigInteger(), nullable=False),
        sa.Column("first", sa.BigInteger()),
        sa.Column("last", sa.BigInteger()),
        sa.Column("identity", sa.LargeBinary()),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("build", sa.String(), nullable=False),
        sa.Column("counted_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("run", "name", name="pk_batches"),
    )
    op.create_index("ix_batches_run_ordinal", "batches", ["run", "ordinal"], unique=True)
    op.create_index(
        "ix_batches_run_first", "batches", ["run", "first"], sqlite_where=POSITIONED, postgresql_where=POSITIONED
    )
    op.create_table(
        "states",
        sa.Column("run", NAME, nullable=False),
        sa.Column("ordinal", sa.BigInteger(), nullable=False),
        sa.Column("batches", sa.BigInteger(), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run", "ordinal", name="pk_states"),
    )
    if op.get_bind().dialect.name == "postgresql":  # states are compressed already
        op.execute("ALTER TABLE states ALTER COLUMN state SET STORAGE EXTERNAL")
