"""Connections and transactions of a store, and how the medium's failures become our errors.

One subclass per database (`sqlite.py`, `postgres.py`) says how to connect and what an error means. SQLAlchemy
is imported here, so this module is imported only when a store is opened.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar

from sqlalchemy import Dialect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mcp_server.errors import NetworkToolsError
from mcp_server.store.medium import closed, unavailable

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

logger = logging.getLogger(__name__)


class Database(ABC):
    """One database: `read` and `write` run a piece of work in a transaction each.

    Every piece of work of this store may be run twice with the same effect; that is what lets `write` try once
    more on a new connection after the old one turned out to be dead. ``location`` may be shown to anyone.
    """

    location: str

    def __init__(self) -> None:
        self._reader: AsyncEngine | None = None
        self._writer: AsyncEngine | None = None
        self._gate: AbstractAsyncContextManager[Any] = nullcontext()
        self._pending: set[asyncio.Task[Any]] = set()

    @abstractmethod
    async def open(self) -> None:
        """Make the engines; connections follow when they are first used."""

    @abstractmethod
    def explain(self, error: Exception) -> NetworkToolsError:
        """The typed error for a failure of the driver."""

    @abstractmethod
    def may_retry(self, error: DBAPIError) -> bool:
        """Whether the same work may succeed at once on another connection."""

    @abstractmethod
    async def lock_schema(self, connection: AsyncConnection) -> None:
        """Hold back every other migration until this transaction ends."""

    @abstractmethod
    async def maintain(self) -> None:
        """Do what is better done now than in a caller's transaction. Never raises a failure of the medium."""

    @property
    def dialect(self) -> Dialect:
        """The dialect statements are compiled for."""
        return self._engine(self._writer).dialect

    async def close(self) -> None:
        """Let what is under way end, then close every connection; safe to call twice."""
        while self._pending:
            await asyncio.wait(tuple(self._pending))
        reader, writer, self._reader, self._writer = self._reader, self._writer, None, None
        for engine in {reader, writer} - {None}:
            if engine is not None:
                await engine.dispose()

    async def read(self, work: Work[T]) -> T:
        """Run ``work`` on one snapshot of the database."""
        return await self._whole(self._read(work))

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in one transaction."""
        return await self._whole(self._write(work))

    async def _whole(self, transaction: Coroutine[Any, Any, T]) -> T:
        """Run a transaction to its end even where the caller is cancelled meanwhile.

        A connection that was left in the middle of one could not be used again.
        """
        task = asyncio.ensure_future(self._guarded(transaction))
        self._pending.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._pending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("store.transaction_failed: %s", error)

    async def _read(self, work: Work[T]) -> T:
        try:
            async with self._engine(self._reader).begin() as connection:
                return await work(connection)
        except DBAPIError as error:
            if not self.may_retry(error):
                raise
        async with self._engine(self._reader).begin() as connection:
            return await work(connection)

    async def _write(self, work: Work[T]) -> T:
        async with self._gate:
            try:
                async with self._engine(self._writer).begin() as connection:
                    return await work(connection)
            except DBAPIError as error:
                if not self.may_retry(error):
                    raise
            async with self._engine(self._writer).begin() as connection:
                return await work(connection)

    async def _guarded(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except NetworkToolsError:
            raise
        except PoolTimeoutError as error:
            raise unavailable(
                f"no connection to {self.location} became free in time", "Try again, or raise database.pool_size."
            ) from error
        except SQLAlchemyError as error:
            raise self.explain(error) from error
        except (OSError, TimeoutError) as error:
            raise self.explain(error) from error

    def _engine(self, engine: AsyncEngine | None) -> AsyncEngine:
        if engine is None:
            raise closed()
        return engine
