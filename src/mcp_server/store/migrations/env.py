"""What Alembic runs: the migrations on the connection and in the transaction that `store.migrate` holds."""

from __future__ import annotations

from alembic import context

from mcp_server.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite rolls schema changes back too, but Alembic does not count on it unless told.
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
