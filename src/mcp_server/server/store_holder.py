"""Opens the store of a server at its first use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.logger import get_logger
from mcp_server.pipeline.log_fields import run_facts

if TYPE_CHECKING:
    from mcp_server.audit import AuditLog
    from mcp_server.config import Config
    from mcp_server.model.run import Run
    from mcp_server.store.base import Store

logger = get_logger(__name__)


class StoreHolder:
    """Opens the store of ``config`` once. After it is closed, it cannot be opened again.

    The store is opened at its first use, so that a client is answered before a database library is imported.
    """

    def __init__(self, config: Config, audit: AuditLog) -> None:
        self._config = config
        self._audit = audit
        self._store: Store | None = None
        self._closed = False
        self._lock = asyncio.Lock()

    async def open(self) -> Store:
        """The open store. Raises PlatformError ``store_unavailable`` if it cannot be opened."""
        async with self._lock:
            if self._closed:
                raise PlatformError("The server has stopped, and its store is closed.", code="store_unavailable")
            if self._store is None:
                store = await asyncio.to_thread(self._make)
                interrupted = await store.open()
                self._store = store
                for run_id in interrupted:
                    await self._log_interrupted(await store.get_run(run_id))
            return self._store

    async def close(self) -> None:
        """Close the store. It cannot be opened again."""
        self._closed = True
        async with self._lock:
            store, self._store = self._store, None
            if store is not None:
                await store.close()

    def _make(self) -> Store:
        """Build the store. Blocks at the first call, because importing the database library takes 250 ms."""
        from mcp_server.store import open_store

        database = self._config.database
        return open_store(
            database.url,
            self._config.state_dir,
            pool_size=database.pool_size,
            max_overflow=database.max_overflow,
            pool_timeout=database.pool_timeout,
            pool_recycle=database.pool_recycle,
        )

    async def _log_interrupted(self, run: Run) -> None:
        """Write the end of a run to the audit log. The process that started the run ended without writing it."""
        logger.warning("store.interrupted_run", run_id=run.id)
        try:
            await self._audit.append("end", **run_facts(run), outcome=run.outcome.value)
        except NetworkToolsError as error:
            # Stored runs stay readable without an audit log. A new run needs the log, and is refused with the reason.
            logger.error("audit.end_not_logged", run_id=run.id, message=error.message)  # noqa: TRY400 - a traceback says no more
