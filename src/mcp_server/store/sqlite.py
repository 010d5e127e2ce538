"""SQLite: one writing connection, several reading ones, write-ahead log.

WAL lets readers go on while a write is under way; with ``synchronous=NORMAL`` a commit does not wait for the
disk, so a killed process loses nothing and a power cut at most the last commits (sqlite.org/pragma.html).
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.store.database import Database
from mcp_server.store.folders import make_private, make_private_file
from mcp_server.store.medium import disk_full, explain_os_error, unavailable

BUSY_SECONDS = 10
"""How long a write waits for another process's."""

_COPY_BACK_PAGES = 8000
"""Pages of log (32 MiB) at which a commit copies them back itself; before that it is done between calls."""


class SqliteDatabase(Database):
    """The database in one file, which is made with mode 0600; its folder too where it is missing."""

    def __init__(self, path: Path, *, readers: int, pool_timeout: float) -> None:
        super().__init__()
        self.location = str(path)
        self._path = path
        self._readers = readers
        self._pool_timeout = pool_timeout
        # SQLite has one writer at a time; waiting here is fair and cheaper than waiting inside SQLite.
        self._gate = asyncio.Lock()

    async def open(self) -> None:
        """Make the file and the engines."""
        try:
            make_private(self._path.parent)
            make_private_file(self._path)
        except OSError as error:
            raise explain_os_error(error, self.location) from error
        self._writer = self._engine_for("BEGIN IMMEDIATE", 1, f"PRAGMA wal_autocheckpoint={_COPY_BACK_PAGES}")
        self._reader = self._engine_for("BEGIN", self._readers, "PRAGMA query_only=ON")

    def _engine_for(self, begin: str, size: int, pragma: str) -> AsyncEngine:
        engine = create_async_engine(
            URL.create("sqlite+aiosqlite", database=str(self._path)),
            connect_args={"timeout": BUSY_SECONDS},
            pool_size=size,
            max_overflow=0,
            pool_timeout=self._pool_timeout,
            pool_reset_on_return=None,  # `engine.begin` has always ended the transaction by then
        )

        @event.listens_for(engine.sync_engine, "connect")
        def _connect(connection: Any, _record: Any) -> None:
            # The driver would begin a transaction late, with the first write, and could then be refused.
            connection.isolation_level = None
            cursor = connection.cursor()
            _use_wal(cursor)
            for statement in ("PRAGMA synchronous=NORMAL", "PRAGMA foreign_keys=ON", pragma):
                cursor.execute(statement)
            cursor.close()

        @event.listens_for(engine.sync_engine, "begin")
        def _begin(connection: Any) -> None:
            # Straight to the driver: through a cursor it would be three turns of its thread instead of one.
            # SQLAlchemy does not see errors raised there, so they are translated here.
            try:
                connection.connection.dbapi_connection.run_async(lambda driver: driver.execute(begin))
            except sqlite3.Error as error:
                raise self.explain(error) from error

        return engine

    def may_retry(self, error: DBAPIError) -> bool:
        """Hardly ever: a file does not go away and come back as a connection does."""
        return error.connection_invalidated

    async def lock_schema(self, connection: AsyncConnection) -> None:
        """Nothing to add: ``BEGIN IMMEDIATE`` already keeps every other writer out."""

    async def maintain(self) -> None:
        """Copy the log back into the file, as far as readers allow."""

        async def copy_back(connection: AsyncConnection) -> None:
            await connection.exec_driver_sql("COMMIT")  # a checkpoint stands outside any transaction
            await connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
            await connection.exec_driver_sql("BEGIN")

        try:
            await self.read(copy_back)
        except PlatformError:
            return  # the next write meets the same failure and reports it

    def explain(self, error: Exception) -> NetworkToolsError:
        """By SQLite's primary result code (sqlite.org/rescode.html)."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, OSError):
            return explain_os_error(cause, self.location)
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return disk_full(self.location)
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return unavailable(
                f"{self.location} is damaged or not a database: {cause}",
                "Move the file away; a new one is made at the next start. Raw output beside it is not touched.",
            )
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return unavailable(
                f"{self.location} was locked by another process for more than {BUSY_SECONDS} seconds", "Try again."
            )
        return unavailable(f"{self.location} cannot be used: {cause}")


def _use_wal(cursor: Any) -> None:
    """Turn write-ahead logging on, which stays on in the file.

    Two processes that make the file together meet here, and SQLite refuses this one change at once instead of
    waiting for its busy timeout (sqlite.org/wal.html, "sometimes queries return SQLITE_BUSY").
    """
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return
