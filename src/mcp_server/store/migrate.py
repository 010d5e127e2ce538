"""The schema is brought up to date by Alembic when a store is opened.

Alembic takes a third of a second to import, so it is imported only where the database is not at `REVISION`.
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
    """Alembic's settings for the migrations packaged here; give it ``attributes["connection"]``."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config


def current_revision(connection: Connection) -> str | None:
    """The revision the database is at, or None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


async def migrate(database: Database) -> None:
    """Bring the schema to `REVISION`; raise SchemaError for a database of a later version.

    Two processes may call this at once: one migrates, the other waits and finds it done.
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
