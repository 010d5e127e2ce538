"""The migrations and the tables of the store, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from mcp_server.errors import PlatformError
from mcp_server.store import open_store, schema
from mcp_server.store.migrate import alembic_config
from mcp_server.store.revision import REVISION
from mcp_server.store.sql import SqlStore
from tests.support.postgres import PostgresServer, running_postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqlStore]:
    url = request.getfixturevalue("postgres").new_database() if request.param == "postgresql" else None
    opened = open_store(url, tmp_path)
    assert isinstance(opened, SqlStore)
    await opened.open()
    yield opened
    await opened.close()


async def test_the_migrations_create_the_tables_of_the_schema(store: SqlStore) -> None:
    def differences(connection: Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection), schema.metadata))

    assert await store._database.read(differences) == []


async def test_a_database_of_a_later_version_is_refused_and_not_changed(store: SqlStore) -> None:
    await store._database.write(
        lambda connection: connection.execute(text("UPDATE alembic_version SET version_num='9999'"))
    )
    await store.close()
    with pytest.raises(PlatformError, match="'9999', which is newer") as caught:
        await store.open()
    assert caught.value.code == "store_unavailable"
    assert store._owner is None


def test_the_revision_is_that_of_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [REVISION]
