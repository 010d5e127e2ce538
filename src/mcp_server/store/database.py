"""Transactions of a store, and how the medium's failures become our errors.

A piece of work is a plain function of a SQLAlchemy connection, so that it is written once for both databases: SQLite
carries it out whole in a thread of its own, PostgreSQL beside others on the event loop. One subclass per database
(`sqlite.py`, `postgres.py`) says how to connect and what an error means. SQLAlchemy is imported here, so this
module is imported only when a store is opened.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mcp_server import metrics
from mcp_server.errors import NetworkToolsError
from mcp_server.store.failures import unavailable

T = TypeVar("T")
Work = Callable[[Connection], T]

logger = logging.getLogger(__name__)


class Database(ABC):
    """One database: `read` and `write` run a piece of work in a transaction each.

    Work may run in another thread than the event loop's, and must not touch the loop. Every piece of work of this
    store may be run twice with the same effect; that is what lets one be tried once more on a new connection
    after the old one turned out to be dead. ``location`` may be shown to anyone.
    """

    location: str

    def __init__(self) -> None:
        self._pending: set[asyncio.Task[Any]] = set()

    @property
    @abstractmethod
    def dialect(self) -> Dialect:
        """The dialect statements are compiled for."""

    @abstractmethod
    async def open(self) -> None:
        """Make the engines; connections follow when they are first used."""

    @abstractmethod
    async def _read(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction that only reads."""

    @abstractmethod
    async def _write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction that may write."""

    @abstractmethod
    async def _dispose(self) -> None:
        """Close every connection; safe to call twice."""

    @abstractmethod
    def explain(self, error: Exception) -> NetworkToolsError:
        """The typed error for a failure of the driver."""

    @abstractmethod
    def may_retry(self, error: DBAPIError) -> bool:
        """Whether the same work may succeed at once on another connection."""

    @abstractmethod
    def lock_schema(self, connection: Connection) -> None:
        """Hold back every other migration until this transaction ends."""

    @abstractmethod
    async def maintain(self) -> None:
        """Do what is better done now than in a caller's transaction. Never raises a failure of the medium."""

    async def close(self) -> None:
        """Let what is under way end, then close every connection; safe to call twice."""
        while self._pending:
            await asyncio.wait(tuple(self._pending))
        await self._dispose()

    async def read(self, work: Work[T]) -> T:
        """Run ``work`` on one snapshot of the database."""
        return await self._whole("read", self._read, work)

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in one transaction."""
        return await self._whole("write", self._write, work)

    async def _whole(self, operation: str, transact: Callable[[Work[T]], Awaitable[T]], work: Work[T]) -> T:
        """Run a transaction to its end even where the caller is cancelled meanwhile.

        A connection that was left in the middle of one could not be used again.
        """
        started = time.perf_counter()
        task = asyncio.ensure_future(self._guarded(transact, work))
        self._pending.add(task)
        task.add_done_callback(self._ended)
        task.add_done_callback(
            lambda _: metrics.observe("mcp_store_seconds", time.perf_counter() - started, operation=operation)
        )
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._pending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("store.transaction_failed: %s", error)

    async def _guarded(self, transact: Callable[[Work[T]], Awaitable[T]], work: Work[T]) -> T:
        try:
            try:
                return await transact(work)
            except DBAPIError as error:
                if not self.may_retry(error):
                    raise
            return await transact(work)
        except NetworkToolsError:
            raise
        except PoolTimeoutError as error:
            raise unavailable(
                f"no connection to {self.location} became free in time", "Try again, or raise database.pool_size."
            ) from error
        except (SQLAlchemyError, OSError) as error:
            raise self.explain(error) from error
