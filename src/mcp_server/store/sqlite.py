"""SQLite: one connection that writes, several that read, and a write-ahead log (WAL).

With a WAL, readers continue while a write is under way. With ``synchronous=NORMAL`` a commit does not wait for the
disk: a killed process loses nothing, and a power cut at most the last commits (sqlite.org/pragma.html).
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from mcp_server.errors import NetworkToolsError
from mcp_server.store.database import Database, T, Work
from mcp_server.store.files import (
    closed,
    disk_full,
    explain_os_error,
    make_private,
    make_private_file,
    unavailable,
)

BUSY_SECONDS = 10
"""The time that a write waits for a write of another process."""


class SqliteDatabase(Database):
    """A database in one file, created with mode 0600. Missing folders are created with mode 0700.

    At most ``readers`` transactions read at a time; more wait.
    """

    def __init__(self, path: Path, *, readers: int) -> None:
        super().__init__()
        self.location = str(path)
        self._path = path
        self._readers = readers
        self._reading: _Connections | None = None
        self._writing: _Connections | None = None

    async def open(self) -> None:
        """Create the file and the engines."""
        try:
            make_private(self._path.parent)
            make_private_file(self._path)
        except OSError as error:
            raise explain_os_error(error, self.location) from error
        file = _File(self._path)
        # SQLite has one writer at a time. Waiting for its thread is fair, and cheaper than waiting inside SQLite.
        self._writing = _Connections(file, "BEGIN IMMEDIATE", 1)
        self._reading = _Connections(file, "BEGIN", self._readers, "PRAGMA query_only=ON")

    async def _read(self, work: Work[T]) -> T:
        return await _opened(self._reading).run(work)

    async def _write(self, work: Work[T]) -> T:
        return await _opened(self._writing).run(work)

    async def _dispose(self) -> None:
        opened = (self._reading, self._writing)
        self._reading = self._writing = None
        for connections in opened:
            if connections is not None:
                await connections.close()

    def may_retry(self, error: DBAPIError) -> bool:
        """Return whether the connection was lost, which is rare with a file."""
        return error.connection_invalidated

    def lock_schema(self, connection: Connection) -> None:
        """Do nothing: ``BEGIN IMMEDIATE`` blocks every other writer."""

    def explain(self, error: Exception) -> NetworkToolsError:
        """Return the error for SQLite's primary result code (sqlite.org/rescode.html)."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, OSError):
            return explain_os_error(cause, self.location)
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return disk_full(self.location)
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return unavailable(
                f"{self.location} is damaged or not a database: {cause}.",
                "Move the file away. The next start creates a new one; the raw output beside it is kept.",
            )
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return unavailable(
                f"{self.location} was locked by another process for more than {BUSY_SECONDS} seconds.", "Try again."
            )
        return unavailable(f"{self.location} cannot be used: {cause}.")


class _File:
    """The database file as it was when it was opened. A connection keeps using a file that was renamed or deleted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = self._current_identity()

    def check(self) -> None:
        """Raise PlatformError (``store_unavailable``) if the path no longer names the file that was opened."""
        if self._current_identity() != self._identity:
            raise unavailable(
                f"{self.path} was moved away or replaced while the server had it open.",
                "Put the original file back. Or restart the server, which uses the file at this path or creates it.",
            )

    def _current_identity(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


class _Connections:
    """A pool of connections with one thread each. A whole transaction runs in one thread.

    One hop to a thread for each statement would cost more than SQLite itself.
    """

    def __init__(self, file: _File, begin: str, size: int, *pragmas: str) -> None:
        self._engine = _make_engine(file.path, begin, size, pragmas)
        self._file = file
        self._threads = ThreadPoolExecutor(size, "store")

    async def run(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction, which continues if the caller is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._transact, work)

    def _transact(self, work: Work[T]) -> T:
        # Otherwise writes would be lost with the moved file, and a new connection would create an empty one.
        self._file.check()
        with self._engine.begin() as connection:
            return work(connection)

    async def close(self) -> None:
        """Close the connections, which may copy the log into the file, and end the threads."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._engine.dispose)
        self._threads.shutdown()


def _opened(connections: _Connections | None) -> _Connections:
    if connections is None:
        raise closed()
    return connections


def _make_engine(path: Path, begin: str, size: int, pragmas: tuple[str, ...]) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_SECONDS},
        pool_size=size,
        max_overflow=0,
        pool_reset_on_return=None,  # `engine.begin` has ended the transaction by then
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # Otherwise the driver begins a transaction at the first write, which SQLite may then refuse.
        connection.isolation_level = None
        cursor = connection.cursor()
        _use_wal(cursor)
        for statement in ("PRAGMA synchronous=NORMAL", "PRAGMA foreign_keys=ON", *pragmas):
            cursor.execute(statement)
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _use_wal(cursor: Any) -> None:
    """Turn on the write-ahead log, a setting that the file keeps.

    If two processes create the file together, SQLite refuses this change at once instead of waiting for its busy
    timeout (sqlite.org/wal.html, "sometimes queries return SQLITE_BUSY"), so it is tried again here.
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
