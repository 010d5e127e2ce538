"""PostgreSQL over asyncpg: for several servers that share one memory."""

from __future__ import annotations

from sqlalchemy import Connection, Dialect, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from mcp_server.errors import ConfigError, NetworkToolsError
from mcp_server.store.database import Database, T, Work
from mcp_server.store.failures import closed, disk_full, unavailable

CONNECT_SECONDS = 10
COMMAND_SECONDS = 60
_MIGRATION_LOCK = 0x6D63706E
"""An arbitrary advisory lock number of this project: "mcpn"."""

_RETRY_STATES = frozenset({"40001", "40P01"})  # serialisation failure, deadlock
_FULL_STATES = frozenset({"53100"})  # disk full
_AUTHORISATION_CLASSES = frozenset({"28", "42", "3D"})  # authorization, privilege, no such database


class PostgresDatabase(Database):
    """A database reached by ``url`` (any ``postgresql://`` form); the password is never shown."""

    def __init__(self, url: URL, *, pool_size: int, max_overflow: int, pool_timeout: float, pool_recycle: int) -> None:
        super().__init__()
        self._url = url.set(drivername="postgresql+asyncpg")
        self.location = url.set(drivername="postgresql").render_as_string(hide_password=True)
        self._pool_size = pool_size
        self._max_overflow = max_overflow
        self._pool_timeout = pool_timeout
        self._pool_recycle = pool_recycle
        self._engine: AsyncEngine | None = None

    async def open(self) -> None:
        """Make the engine; raise ConfigError where the driver is not installed."""
        try:
            self._engine = create_async_engine(
                self._url,
                pool_size=self._pool_size,
                max_overflow=self._max_overflow,
                pool_timeout=self._pool_timeout,
                pool_recycle=self._pool_recycle,
                connect_args={"timeout": CONNECT_SECONDS, "command_timeout": COMMAND_SECONDS},
            )
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"database.url names PostgreSQL, and {error.name} is not installed",
                hint="pip install 'mcp-network-tools[postgres]'",
            ) from error

    @property
    def dialect(self) -> Dialect:
        """That of asyncpg."""
        return self._opened().dialect

    async def _read(self, work: Work[T]) -> T:
        return await self._write(work)

    async def _write(self, work: Work[T]) -> T:
        async with self._opened().begin() as connection:
            return await connection.run_sync(work)

    async def _dispose(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.dispose()

    def _opened(self) -> AsyncEngine:
        if self._engine is None:
            raise closed()
        return self._engine

    def lock_schema(self, connection: Connection) -> None:
        """Take an advisory lock that ends with the transaction."""
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})

    async def maintain(self) -> None:
        """Nothing: the server looks after itself."""

    def may_retry(self, error: DBAPIError) -> bool:
        """After a lost connection, and where PostgreSQL itself asks for it (appendix A of its manual)."""
        return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _RETRY_STATES

    def explain(self, error: Exception) -> NetworkToolsError:
        """By SQLSTATE (PostgreSQL manual, appendix A)."""
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        state = getattr(cause, "sqlstate", None) or ""
        if state in _FULL_STATES:
            return disk_full(self.location)
        if state[:2] in _AUTHORISATION_CLASSES:
            return unavailable(f"{self.location} refuses us: {cause}", "Check database.url and the user's privileges.")
        return unavailable(f"{self.location} cannot be used: {cause or type(cause).__name__}")
