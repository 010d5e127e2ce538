"""Step 6, remember: the run's row before the spawn, observations while it goes on, its end with raw bytes by hash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mcp_server.audit import AuditLog
from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.model.digest import HostDigest
from mcp_server.model.host import Host
from mcp_server.model.run import LOCAL, Coverage, Outcome, Run
from mcp_server.pipeline.denials import who

if TYPE_CHECKING:
    from mcp_server.pipeline.authorize import AuthorizedPlan
    from mcp_server.store.base import Store

logger = logging.getLogger(__name__)

RETRY_SEC = 1.0
LATER_ATTEMPTS = 64
LATER_LONGEST_SEC = 60.0
BATCH = 256
"""Hosts written together; fewer are written when the run ends."""


def new_run(authorized: AuthorizedPlan) -> Run:
    """The record of an authorized plan that is about to start."""
    plan, call = authorized.plan, authorized.plan.call
    return Run(
        id=call.id,
        tool=call.tool.tool_name(),
        parameters=call.parameters.model_dump(mode="json", exclude_defaults=True),
        actor=call.actor,
        correlation_id=call.correlation_id,
        scope_hash=authorized.scope_hash,
        enforcement=authorized.enforcement.value,
        risk=plan.command.risk,
        argv=plan.argv,
        started=datetime.now(UTC),
        outcome=Outcome.RUNNING,
        vantage=LOCAL,
        coverage=Coverage.nothing_yet(plan.targets.canonical(), plan.targets.count, plan.command.ports),
    )


def run_facts(run: Run) -> dict[str, str]:
    """What every record of a run says on the log besides its event: which, for whom, and under what."""
    return {
        "run_id": run.id,
        "correlation_id": run.correlation_id,
        **who(run.actor),
        "tool": run.tool,
        "scope_hash": run.scope_hash,
        "enforcement": run.enforcement,
    }


class Recorder:
    """Keeps one run: collects hosts into batches and writes them in order, then the end."""

    def __init__(self, store: Store, audit: AuditLog, run: Run) -> None:
        self.run = run
        self.begun = False
        """Whether the store has a row of it."""
        self._store = store
        self._audit = audit
        self._pending: list[Host] = []
        self._seen = asyncio.Event()
        self._writing = asyncio.Lock()

    async def begin(self) -> None:
        """Write the row of a run that is about to start."""
        await self._store.begin(self.run)
        self.begun = True

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
        self.run = replace(self.run, coverage=coverage, counts=digest.counts)

    async def finish(self, run: Run, process: Mapping[str, Any] | None = None) -> Run:
        """Write the last hosts, the end of the run and its record on the decision log.

        ``process`` holds what only the log keeps of the program: its pid, and the bytes it wrote. Where the store
        fails, that is how the run ended: the log says so, and raises; `store_end` may be tried again.
        """
        self.run = run = replace(run, ended=run.ended or datetime.now(UTC))
        try:
            await self.store_end()
        except NetworkToolsError as failure:
            reason: dict[str, Any] = {"error_code": failure.code, "error_message": failure.message}
            self.run = run = replace(run, outcome=Outcome.FAILED, **reason)
            failure.details.setdefault("run_id", run.id)
            raise
        finally:
            # Every decision that accepted a call has its end on the log, also where the store has failed.
            await self._audit.append(
                "end",
                **run_facts(run),
                outcome=run.outcome.value,
                returncode=run.returncode,
                code=run.error_code,
                raw=run.raw.sha256 if run.raw else None,
                **({"guard": guard} if (guard := run.metadata.get("guard")) else {}),
                **(process or {}),
            )
        return run

    async def store_end(self) -> None:
        """Write the last hosts and the end of the run."""
        await self.flush()
        await self._store.finish(self.run)


class Unstored:
    """Ends of runs that the store did not take, tried again until it does: a database that comes back has them all."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, recorder: Recorder) -> None:
        """Try from now on, with longer and longer pauses, for an hour or so."""
        task = asyncio.create_task(_store_later(recorder))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up; the next start finds the runs and marks them interrupted."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _store_later(recorder: Recorder) -> None:
    for attempt in range(LATER_ATTEMPTS):
        await asyncio.sleep(min(RETRY_SEC * 2**attempt, LATER_LONGEST_SEC))
        try:
            await recorder.store_end()
        except PlatformError:
            continue
        except NetworkToolsError as error:
            logger.error("store.end_given_up run_id=%s: %s", recorder.run.id, error.message)  # noqa: TRY400 - our own words say all
            return
        logger.info("store.end_stored_late run_id=%s", recorder.run.id)
        return
