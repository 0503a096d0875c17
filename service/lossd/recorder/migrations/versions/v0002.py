"""The entries of batches.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns. Batches that were counted before have NULL: nobody knows their entries."""
    for name in ("entries", "total_entries"):
        op.add_column("batches", sa.Column(name, sa.BigInteger()))
