"""Alembic runs this file: it applies the migrations on the connection and in the transaction of `store.migrate`."""

from __future__ import annotations

from alembic import context

from mcp_server.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite can roll schema changes back, but Alembic assumes that it cannot.
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
