"""Alembic's migrations: from an older schema of the store to the newest."""
