"""The settings of the connection pool, on a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from mcp_server.config import load_config
from mcp_server.server import EnhancedMCPServer
from mcp_server.store.postgres import PostgresDatabase
from tests.support.interfaces import environment
from tests.support.postgres import PostgresServer, running_postgres


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as running:
        yield running


async def opened(server: PostgresServer, **keys: float) -> tuple[PostgresDatabase, AsyncEngine]:
    settings = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1, "pool_recycle": 3600} | keys
    database = PostgresDatabase(make_url(server.url("postgres")), **settings)  # type: ignore[arg-type]  # numbers by name
    await database.open()
    return database, database._opened()


@pytest.mark.parametrize(("size", "overflow"), [(1, 0), (2, 0), (1, 2)])
async def test_pool_size_and_overflow_limit_connections_and_the_timeout_limits_the_wait(
    server: PostgresServer, size: int, overflow: int
) -> None:
    database, engine = await opened(server, pool_size=size, max_overflow=overflow)
    async with AsyncExitStack() as held:
        for _ in range(size + overflow):
            await held.enter_async_context(engine.connect())
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError):
            await held.enter_async_context(engine.connect())
        assert 0.9 < time.monotonic() - started < 5
    await database.close()


async def test_a_connection_older_than_pool_recycle_is_replaced(server: PostgresServer) -> None:
    database, engine = await opened(server, pool_recycle=1)

    async def backend() -> int:
        async with engine.connect() as connection:
            return int((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())

    first = await backend()
    assert await backend() == first
    await asyncio.sleep(1.2)
    assert await backend() != first
    await database.close()


async def test_the_database_settings_reach_the_pool(server: PostgresServer, tmp_path: Path) -> None:
    keys = {
        "MCP_DATABASE_URL": server.new_database(),
        "MCP_DATABASE_POOL_SIZE": "3",
        "MCP_DATABASE_MAX_OVERFLOW": "4",
        "MCP_DATABASE_POOL_TIMEOUT": "5",
        "MCP_DATABASE_POOL_RECYCLE": "66",
    }
    made = EnhancedMCPServer(load_config(env=environment(tmp_path / "state", **keys)))
    store = await made.pipeline.open_store()
    pool = store._database._opened().pool  # type: ignore[attr-defined]  # the pool itself is checked
    assert (pool.size(), pool._max_overflow, pool._timeout, pool._recycle) == (3, 4, 5, 66)
    await made.cleanup()
