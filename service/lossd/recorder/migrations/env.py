"""Runs the migrations on the connection that the caller holds, in its transaction."""

from alembic import context

from lossd.recorder.schema import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    transactional_ddl=True,  # SQLite's too, because the connection begins transactions itself
)
context.run_migrations()
