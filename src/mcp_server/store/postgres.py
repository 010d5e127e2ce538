"""PostgreSQL over asyncpg, for several servers that share one store."""

from __future__ import annotations

from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from mcp_server.errors import ConfigError, NetworkToolsError
from mcp_server.store.database import Database, T, Work
from mcp_server.store.files import closed, disk_full, unavailable

CONNECT_SECONDS = 10
COMMAND_SECONDS = 60
_MIGRATION_LOCK = 0x6D63706E
"""The number of an advisory lock, chosen for this project: "mcpn" in ASCII."""

_RETRY_STATES = frozenset({"40001", "40P01"})  # serialization failure, deadlock
_FULL_STATES = frozenset({"53100"})  # disk full
_ACCESS_CLASSES = frozenset({"28", "42", "3D"})  # authorization, privilege, no such database


class PostgresDatabase(Database):
    """The database at ``url``, in any ``postgresql://`` form. The password is never shown."""

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
        """Create the engine; raise ConfigError if the driver is not installed."""
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
                f"The database.url names PostgreSQL, but {error.name} is not installed.",
                hint="Run: pip install 'mcp-network-tools[postgres]'.",
            ) from error

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
        """Take an advisory lock that is released when the transaction ends."""
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})

    def may_retry(self, error: DBAPIError) -> bool:
        """Return whether the connection was lost, or PostgreSQL asks to try again (appendix A of its manual)."""
        return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _RETRY_STATES

    def explain(self, error: Exception) -> NetworkToolsError:
        """Return the error for the SQLSTATE (appendix A of PostgreSQL's manual)."""
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        state = getattr(cause, "sqlstate", None) or ""
        if state in _FULL_STATES:
            return disk_full(self.location)
        if state[:2] in _ACCESS_CLASSES:
            return unavailable(
                f"{self.location} refused access: {cause}.", "Check database.url and the privileges of its user."
            )
        return unavailable(f"{self.location} cannot be used: {cause or type(cause).__name__}.")
