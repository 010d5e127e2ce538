"""Step 6, remember: the run's row before the spawn, observations while it goes on, its end with raw bytes by hash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mcp_server.audit import AuditLog
from mcp_server.errors import NetworkToolsError
from mcp_server.model.asset import Host
from mcp_server.model.digest import HostDigest
from mcp_server.model.run import Coverage, Run

if TYPE_CHECKING:
    from mcp_server.steps.authorise import Authorised
    from mcp_server.store.base import Store

logger = logging.getLogger(__name__)

RETRY_SEC = 1.0
BATCH = 256
"""Hosts written together; fewer are written when the run ends."""


def new_run(authorised: Authorised) -> Run:
    """The record of an authorised plan that is about to start."""
    plan, call = authorised.plan, authorised.plan.call
    return Run(
        id=call.id,
        tool=call.tool.tool_name(),
        parameters=call.parameters.model_dump(mode="json", exclude_defaults=True),
        actor=call.actor,
        correlation_id=call.correlation_id,
        scope_hash=authorised.scope_hash,
        enforcement=authorised.enforcement.value,
        risk=plan.invocation.risk,
        argv=plan.argv,
        started=datetime.now(UTC),
        coverage=Coverage(
            addresses=plan.targets.canonical(),
            planned=plan.targets.count,
            ports=plan.invocation.ports,
            not_looked_at_count=plan.targets.count,
        ),
    )


class Recorder:
    """Keeps one run: collects hosts into batches and writes them in order, then the end."""

    def __init__(self, store: Store, audit: AuditLog, run: Run) -> None:
        self.run = run
        self._store = store
        self._audit = audit
        self._pending: list[Host] = []
        self._seen = asyncio.Event()
        self._writing = asyncio.Lock()

    async def begin(self) -> None:
        """Write the row of a run that is about to start."""
        await self._store.begin(self.run)

    def see(self, hosts: Iterable[Host]) -> None:
        """Take hosts from the parser; cheap, no I/O."""
        self._pending.extend(hosts)
        if self._pending:
            self._seen.set()

    async def keep_writing(self) -> None:
        """Write hosts as they are seen, until cancelled: few are left to write when the run ends, or is killed.

        A store that fails is asked again a second later: a database that comes back in time costs the run nothing.
        """
        while True:
            await self._seen.wait()
            self._seen.clear()
            try:
                # The end of the run must not cut a write in two: its hosts would be lost.
                await asyncio.shield(self.flush())
            except NetworkToolsError as error:
                logger.warning("store.hosts_wait run_id=%s: %s", self.run.id, error.message)
                await asyncio.sleep(RETRY_SEC)
                self._seen.set()

    async def flush(self) -> None:
        """Write what has been collected, in batches; hosts wait for the next call where a write fails."""
        async with self._writing:
            while batch := self._pending[:BATCH]:
                await self._store.add_hosts(self.run, batch)
                del self._pending[: len(batch)]

    def cut_short(self, coverage: Coverage, digest: HostDigest) -> None:
        """Note what a run that is being ended early had covered."""
        self.run = replace(self.run, coverage=coverage, hosts_up=digest.up, open_ports=digest.open_ports)

    async def finish(self, run: Run, process: Mapping[str, Any] | None = None) -> Run:
        """Write the last hosts, the end of the run and its record on the decision log.

        ``process`` holds what only the log keeps of the program: its pid, and the bytes it wrote.
        """
        run = replace(run, ended=run.ended or datetime.now(UTC))
        try:
            await self.flush()
            await self._store.finish(run)
            self.run = run
        finally:
            # Every decision that accepted a call has its end on the log, also where the store has failed.
            await self._audit.append(
                "end",
                run_id=run.id,
                correlation_id=run.correlation_id,
                scope_hash=run.scope_hash,
                outcome=run.outcome.value,
                returncode=run.returncode,
                code=run.error_code,
                raw=run.raw.sha256 if run.raw else None,
                **({"guard": guard} if (guard := run.metadata.get("guard")) else {}),
                **(process or {}),
            )
        return run
