"""The store in a SQL database, the same for SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from mcp_server.errors import ArgumentError
from mcp_server.model.host import Host
from mcp_server.model.run import Outcome, Raw, Run
from mcp_server.store import queries
from mcp_server.store.base import Page
from mcp_server.store.blobs import iter_raw, read_raw
from mcp_server.store.database import Database
from mcp_server.store.files import closed, explain_os_error, make_private
from mcp_server.store.migrate import migrate
from mcp_server.store.owners import Owner
from mcp_server.store.paging import check_limit
from mcp_server.store.recovery import recover, remove_leftovers
from mcp_server.store.writes import observation_rows, write_begin, write_end, write_hosts


class SqlStore:
    """Implements `mcp_server.store.base.Store`. ``location`` names the database, without a password."""

    def __init__(self, database: Database, state_dir: Path) -> None:
        self.location = database.location
        self._database = database
        self._state_dir = state_dir
        self._owner: Owner | None = None
        self._running: dict[str, int] = {}
        """Runs that this process began, with their numbers."""

    async def open(self) -> tuple[str, ...]:
        """Create or migrate the schema, mark runs of processes that ended as ``interrupted``, and return their ids."""
        if self._owner is not None:
            return ()
        try:
            make_private(self._state_dir)
            self._owner = Owner.claim(self._state_dir)
        except OSError as error:
            raise explain_os_error(error, str(self._state_dir)) from error
        try:
            await self._database.open()
            await migrate(self._database)
            interrupted = await recover(self._database, self._owner, self._state_dir)
            await remove_leftovers(self._database, self._owner, self._state_dir)
        except BaseException:
            await self.close()
            raise
        return interrupted

    async def close(self) -> None:
        """Close every connection. May be called more than once."""
        await self._database.close()
        if self._owner is not None:
            self._owner.release()
            self._owner = None

    async def begin(self, run: Run) -> None:
        """Write a run that is about to start. This process becomes its owner.

        Raises ArgumentError if the run is not ``running``, or if its id is taken. If the process is killed, the run
        keeps the planned coverage that it began with.
        """
        if run.outcome is not Outcome.RUNNING:
            raise ArgumentError(f"A run must begin as running, not as {run.outcome.value}.")
        owner = self._owner
        if owner is None:
            raise closed()
        self._running[run.id] = await self._database.write(lambda connection: write_begin(connection, run, owner))

    async def add_hosts(self, run: Run, hosts: Sequence[Host]) -> None:
        """Append observations of a run that is active. The same fact about the same address is kept once.

        Raises NotFoundError if the run was not begun, and ArgumentError for an address that is not an IP address.
        """
        if self._owner is None:
            raise closed()
        if not hosts:
            return
        seq = self._running.get(run.id)
        if seq is None:
            seq = await self._database.read(lambda connection: queries.run_seq(connection, run.id))
        rows = observation_rows(seq, hosts)
        await self._database.write(lambda connection: write_hosts(connection, rows))

    async def finish(self, run: Run) -> None:
        """Write the end of a run: its outcome, coverage, raw output and error. Raises ArgumentError for ``running``."""
        if run.outcome is Outcome.RUNNING:
            raise ArgumentError("A run must not end as running.")
        await self._database.write(lambda connection: write_end(connection, run))
        self._running.pop(run.id, None)

    async def get_run(self, run_id: str, *, caller: str | None = None) -> Run:
        """Return one run; raise NotFoundError (``unknown_run``) for an unknown id."""
        return await self._database.read(lambda connection: queries.get_run(connection, run_id, caller))

    async def list_runs(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        tool: str | None = None,
        outcome: Outcome | None = None,
        caller: str | None = None,
    ) -> Page[Run]:
        """Return a page of runs, newest first.

        Raises ArgumentError if ``limit`` is not from 1 to 1000, or if the cursor belongs to another list.
        """
        check_limit(limit)
        selected = queries.RunFilter(tool, outcome, caller)
        return await self._database.read(lambda connection: queries.list_runs(connection, limit, cursor, selected))

    async def hosts(
        self, run_id: str, *, limit: int = 100, cursor: str | None = None, caller: str | None = None
    ) -> Page[Host]:
        """Return a page of the observations of a run, ordered by address. Raises as `get_run` and `list_runs` do."""
        check_limit(limit)
        return await self._database.read(
            lambda connection: queries.list_hosts(connection, run_id, limit, cursor, caller)
        )

    async def read_raw(self, raw: Raw, offset: int, limit: int) -> bytes:
        """Return at most ``limit`` bytes of raw output from byte ``offset``, or nothing at and after its end.

        Raises ArgumentError if ``limit`` is not from 1 byte to 16 MiB, and PlatformError if the content is missing or
        damaged.
        """
        return await asyncio.to_thread(read_raw, self._state_dir, raw, offset, limit)

    async def iter_raw(self, raw: Raw) -> AsyncIterator[bytes]:
        """Yield the whole raw output in pieces of at most 256 KiB. Raises PlatformError as `read_raw` does."""
        # The generator is not closed here, because a thread may still run it when the caller is cancelled.
        pieces = iter_raw(self._state_dir, raw)
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece
