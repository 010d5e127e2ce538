"""The store on a SQL database, the same for SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection

from mcp_server.errors import ArgumentError
from mcp_server.model.host import Host
from mcp_server.model.run import Outcome, PortsTested, Raw, Run
from mcp_server.store import queries
from mcp_server.store.base import Page
from mcp_server.store.blobs import iter_raw, read_raw
from mcp_server.store.database import Database
from mcp_server.store.failures import closed, explain_os_error
from mcp_server.store.folders import make_private
from mcp_server.store.leftovers import remove_leftovers
from mcp_server.store.migrate import migrate
from mcp_server.store.owners import Owner
from mcp_server.store.paging import check_limit
from mcp_server.store.projection import ProjectionWorker
from mcp_server.store.recovery import recover
from mcp_server.store.rows import micros, observation_rows
from mcp_server.store.statements import Statements
from mcp_server.store.writes import write_begin, write_finish, write_network

_CLOSE_GRACE_SECONDS = 0.5


class SqlStore:
    """Implements `mcp_server.store.base.Store`. Every method may be called again after it failed.

    Observations are written before `add_hosts` returns; the fold into addresses, endpoints and services follows
    a moment later, and `settle` waits for it. ``location`` says where the record is kept, without a password.
    """

    def __init__(self, database: Database, state_dir: Path) -> None:
        self.location = database.location
        self._database = database
        self._state_dir = state_dir
        self._owner: Owner | None = None
        self._statements: Statements | None = None
        self._project: ProjectionWorker | None = None
        self._networks: dict[str, int] = {}
        self._begun: dict[str, tuple[int, tuple[PortsTested, ...]]] = {}

    async def open(self) -> tuple[str, ...]:
        """Create or migrate the schema, mark runs of dead owners ``interrupted``, and return the ids of those."""
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
            self._statements = Statements(self._database.dialect)
            self._project = ProjectionWorker(self._database, self._statements)
            interrupted, unfolded = await recover(self._database, self._statements, self._owner, self._state_dir)
            await remove_leftovers(self._database, self._owner, self._state_dir)
        except BaseException:
            await self.close()
            raise
        self._project.start()
        self._project.add(*unfolded)
        return interrupted

    async def close(self) -> None:
        """Release every connection; safe to call twice. What is not folded within half a second waits for the next."""
        if self._project is not None:
            await self._project.stop(_CLOSE_GRACE_SECONDS)
            self._project = None
        self._statements = None
        await self._database.close()
        if self._owner is not None:
            self._owner.release()
            self._owner = None

    async def begin(self, run: Run) -> None:
        """Write a run that is about to start, owned by this process.

        Raises ArgumentError for a run that is not ``running`` and for an id that is taken. A run begun with its
        planned coverage keeps that when its process is killed.
        """
        if run.outcome is not Outcome.RUNNING:
            raise ArgumentError(f"a run begins as running, not as {run.outcome.value}")
        owner, statements = self._owner, self._ready()
        if owner is None:
            raise closed()

        def work(connection: Connection) -> tuple[int, int]:
            network = self._networks.get(run.vantage) or write_network(connection, run.vantage)
            return write_begin(connection, statements, run, network, owner), network

        seq, self._networks[run.vantage] = await self._database.write(work)
        self._begun[run.id] = seq, run.coverage.ports if run.coverage else ()

    async def add_hosts(self, run: Run, hosts: Sequence[Host]) -> None:
        """Append observations of a running run; the same host with the same facts is kept once.

        Raises NotFoundError for a run that was not begun and ArgumentError for an address that is none.
        """
        statements = self._ready()
        if not hosts:
            return
        if run.id in self._begun:
            seq, _ = self._begun[run.id]
        else:
            seq = await self._database.read(lambda connection: queries.run_seq(connection, run.id))
        rows = observation_rows(seq, micros(datetime.now(UTC)), hosts)
        await self._database.write(lambda connection: statements.observations.many(connection, rows))
        self._folder().add(seq)

    async def finish(self, run: Run) -> None:
        """Write how a run ended: outcome, coverage, raw output, error. Raises ArgumentError for ``running``."""
        statements = self._ready()
        if run.outcome is Outcome.RUNNING:
            raise ArgumentError("a run does not end as running")
        _, ports = self._begun.get(run.id, (0, None))
        seq = await self._database.write(lambda connection: write_finish(connection, statements, run, ports))
        self._begun.pop(run.id, None)
        self._folder().add(seq)

    async def get_run(self, run_id: str, *, caller: str | None = None) -> Run:
        """Return one run; raise NotFoundError (``unknown_run``)."""
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
        """Return runs, newest first; raise ArgumentError for a limit outside 1 to 1000 or a foreign cursor."""
        check_limit(limit)
        chosen = queries.Chosen(tool, outcome, caller)
        return await self._database.read(lambda connection: queries.list_runs(connection, limit, cursor, chosen))

    async def hosts(
        self, run_id: str, *, limit: int = 100, cursor: str | None = None, caller: str | None = None
    ) -> Page[Host]:
        """Return what a run observed, in the order of address; raises as `get_run` and `list_runs` do."""
        check_limit(limit)
        return await self._database.read(
            lambda connection: queries.list_hosts(connection, run_id, limit, cursor, caller)
        )

    async def read_raw(self, raw: Raw, offset: int, limit: int) -> bytes:
        """Return at most ``limit`` bytes of raw output from ``offset`` bytes on; empty at and past the end.

        Raises ArgumentError for a limit outside 1 to 16 MiB and PlatformError where the content is missing or is
        not what was kept.
        """
        return await asyncio.to_thread(read_raw, self._state_dir, raw, offset, limit)

    async def iter_raw(self, raw: Raw) -> AsyncIterator[bytes]:
        """Yield the whole raw output in pieces of at most 256 KiB; raises PlatformError as `read_raw` does."""
        # Not closed here: a thread may still be in it when the caller is cancelled. Its last reference closes it.
        pieces = iter_raw(self._state_dir, raw)
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece

    async def settle(self) -> None:
        """Wait until every observation written so far is folded into the present state."""
        await self._folder().settle()

    def _folder(self) -> ProjectionWorker:
        if self._project is None:
            raise closed()
        return self._project

    def _ready(self) -> Statements:
        if self._statements is None:
            raise closed()
        return self._statements
