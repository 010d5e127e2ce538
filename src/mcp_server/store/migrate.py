"""Alembic brings the schema up to date when a store is opened.

Importing Alembic takes about 0.3 s, so it is imported only if the database is not at `REVISION`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from mcp_server.store.database import Database
from mcp_server.store.revision import REVISION, newer

if TYPE_CHECKING:
    from alembic.config import Config

_FOLDER = Path(__file__).parent / "migrations"


def alembic_config() -> Config:
    """Return Alembic's settings for the migrations of this package; set ``attributes["connection"]`` before use."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or None if it is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


async def migrate(database: Database) -> None:
    """Bring the schema to `REVISION`; raise SchemaError if a later version wrote the database.

    If two processes call this at once, one migrates, and the other waits and then has nothing to do.
    """

    def upgrade(connection: Connection) -> None:
        database.lock_schema(connection)
        _upgrade(connection, database.location)

    if await database.read(current_revision) != REVISION:
        await database.write(upgrade)


def _upgrade(connection: Connection, location: str) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config()
    revision = current_revision(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise newer(location, revision)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
