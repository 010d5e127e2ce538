"""SQLite: one writing connection, several reading ones, write-ahead log.

WAL lets readers go on while a write is under way; with ``synchronous=NORMAL`` a commit does not wait for the
disk, so a killed process loses nothing and a power cut at most the last commits (sqlite.org/pragma.html).
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.store.database import Database, T, Work
from mcp_server.store.failures import closed, disk_full, explain_os_error, unavailable
from mcp_server.store.folders import make_private, make_private_file

BUSY_SECONDS = 10
"""How long a write waits for another process's."""

_COPY_BACK_PAGES = 8000
"""Pages of log (32 MiB) at which a commit copies them back itself; before that it is done between calls."""


class SqliteDatabase(Database):
    """The database in one file, which is made with mode 0600; its folder too where it is missing.

    At most ``readers`` connections read at a time; more reads wait for their turn.
    """

    def __init__(self, path: Path, *, readers: int) -> None:
        super().__init__()
        self.location = str(path)
        self._path = path
        self._readers = readers
        self._reading: _Lane | None = None
        self._writing: _Lane | None = None

    @property
    def dialect(self) -> Dialect:
        """That of the standard library's driver."""
        return _opened(self._writing).engine.dialect

    async def open(self) -> None:
        """Make the file and the engines."""
        try:
            make_private(self._path.parent)
            make_private_file(self._path)
        except OSError as error:
            raise explain_os_error(error, self.location) from error
        # SQLite has one writer at a time; waiting for its thread is fair and cheaper than waiting inside SQLite.
        file = _File(self._path)
        self._writing = _Lane(file, "BEGIN IMMEDIATE", 1, f"PRAGMA wal_autocheckpoint={_COPY_BACK_PAGES}")
        self._reading = _Lane(file, "BEGIN", self._readers, "PRAGMA query_only=ON")

    async def _read(self, work: Work[T]) -> T:
        return await _opened(self._reading).run(work)

    async def _write(self, work: Work[T]) -> T:
        return await _opened(self._writing).run(work)

    async def _dispose(self) -> None:
        lanes, self._reading, self._writing = (self._reading, self._writing), None, None
        for lane in lanes:
            if lane is not None:
                await lane.close()

    def may_retry(self, error: DBAPIError) -> bool:
        """Hardly ever: a file does not go away and come back as a connection does."""
        return error.connection_invalidated

    def lock_schema(self, connection: Connection) -> None:
        """Nothing to add: ``BEGIN IMMEDIATE`` already keeps every other writer out."""

    async def maintain(self) -> None:
        """Copy the log back into the file, as far as readers allow."""

        def copy_back(connection: Connection) -> None:
            connection.exec_driver_sql("COMMIT")  # a checkpoint stands outside any transaction
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
            connection.exec_driver_sql("BEGIN")

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


class _File:
    """The database's file as it was when it was opened. A connection goes on in a file that has lost its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = self._look()

    def check(self) -> None:
        """Raise PlatformError ``store_unavailable`` where another file, or none, is in its place."""
        if self._look() != self._identity:
            raise unavailable(
                f"{self.path} was moved away or replaced while the server had it open",
                "Put the same file back, or start the server again: it uses what is there, or makes a new one.",
            )

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


class _Lane:
    """Connections of one kind and a thread for each: a transaction is one turn of one thread, whatever it does.

    Statement by statement, each would be several turns between the event loop and a thread, which cost more than
    SQLite itself.
    """

    def __init__(self, file: _File, begin: str, size: int, pragma: str) -> None:
        self.engine = _make_engine(file.path, begin, size, pragma)
        self._file = file
        self._threads = ThreadPoolExecutor(size, "store")

    async def run(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction; it goes on to its end where the caller is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._transact, work)

    def _transact(self, work: Work[T]) -> T:
        # Else what is remembered from here on would be lost, and a further connection would make an empty file.
        self._file.check()
        with self.engine.begin() as connection:
            return work(connection)

    async def close(self) -> None:
        """Close the connections, which may copy the log back, and end the threads."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self.engine.dispose)
        self._threads.shutdown()


def _opened(lane: _Lane | None) -> _Lane:
    if lane is None:
        raise closed()
    return lane


def _make_engine(path: Path, begin: str, size: int, pragma: str) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_SECONDS},
        pool_size=size,
        max_overflow=0,
        pool_reset_on_return=None,  # `engine.begin` has always ended the transaction by then
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # The driver would begin a transaction late, with the first write, and could then be refused.
        connection.isolation_level = None
        cursor = connection.cursor()
        _use_wal(cursor)
        for statement in ("PRAGMA synchronous=NORMAL", "PRAGMA foreign_keys=ON", pragma):
            cursor.execute(statement)
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


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
