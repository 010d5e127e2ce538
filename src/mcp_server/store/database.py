"""Runs transactions on one of the databases, and turns failures of the driver into errors of this project.

A piece of work is a function of a SQLAlchemy connection, so it is written once for both databases. SQLite runs the
whole transaction in a thread; PostgreSQL runs it on the event loop. `sqlite.py` and `postgres.py` each have a
subclass that connects and explains errors. This module imports SQLAlchemy, so it is imported only when a store is
opened.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mcp_server import metrics
from mcp_server.errors import NetworkToolsError
from mcp_server.logger import get_logger
from mcp_server.store.files import unavailable

T = TypeVar("T")
Work = Callable[[Connection], T]

logger = get_logger(__name__)


class Database(ABC):
    """One database. `read` and `write` each run a piece of work in a transaction.

    Work may run in another thread and must not use the event loop. It must have the same effect if it runs twice,
    because it is tried again on a new connection if the old connection is dead. ``location`` holds no secret.
    """

    location: str

    def __init__(self) -> None:
        self._pending: set[asyncio.Task[Any]] = set()

    @abstractmethod
    async def open(self) -> None:
        """Create the engines. They connect when they are first used."""

    @abstractmethod
    async def _read(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction that only reads."""

    @abstractmethod
    async def _write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction that may write."""

    @abstractmethod
    async def _dispose(self) -> None:
        """Close every connection. May be called more than once."""

    @abstractmethod
    def explain(self, error: Exception) -> NetworkToolsError:
        """Return the error of this project for a failure of the driver."""

    @abstractmethod
    def may_retry(self, error: DBAPIError) -> bool:
        """Return whether the same work may succeed at once on another connection."""

    @abstractmethod
    def lock_schema(self, connection: Connection) -> None:
        """Block every other migration until this transaction ends."""

    async def close(self) -> None:
        """Wait for running transactions, then close every connection. May be called more than once."""
        while self._pending:
            await asyncio.wait(tuple(self._pending))
        await self._dispose()

    async def read(self, work: Work[T]) -> T:
        """Run ``work`` on one snapshot of the database."""
        return await self._to_the_end("read", self._read, work)

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in one transaction."""
        return await self._to_the_end("write", self._write, work)

    async def _to_the_end(self, operation: str, transact: Callable[[Work[T]], Awaitable[T]], work: Work[T]) -> T:
        """Run a transaction to its end, even if the caller is cancelled meanwhile.

        A connection that is left in the middle of a transaction cannot be used again.
        """
        started = time.perf_counter()
        task = asyncio.ensure_future(self._with_retry(transact, work))
        self._pending.add(task)
        task.add_done_callback(self._ended)
        task.add_done_callback(
            lambda _: metrics.observe("mcp_store_seconds", time.perf_counter() - started, operation=operation)
        )
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._pending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("store.transaction_failed", message=str(error))

    async def _with_retry(self, transact: Callable[[Work[T]], Awaitable[T]], work: Work[T]) -> T:
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
                f"No connection to {self.location} became free in time.", "Try again, or raise database.pool_size."
            ) from error
        except (SQLAlchemyError, OSError) as error:
            raise self.explain(error) from error
