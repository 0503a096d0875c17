"""The hash functions by which runs tell batches apart.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column. Runs that were begun before have NULL: the digests of their batches are of SHA-256."""
    op.add_column("runs", sa.Column("content_hash", sa.String()))
