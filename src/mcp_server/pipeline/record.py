"""Step 6, record: the row of a run before its program starts, observations while it runs, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mcp_server.audit import AuditLog
from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.logger import get_logger
from mcp_server.model.run import LOCAL, Coverage, Outcome, Run
from mcp_server.pipeline.authorize import AuthorizedPlan
from mcp_server.pipeline.log_fields import run_facts
from mcp_server.tools.results import Observation

if TYPE_CHECKING:
    from mcp_server.store.base import Store

logger = get_logger(__name__)

RETRY_SEC = 1.0
LATER_ATTEMPTS = 64
LATER_LONGEST_SEC = 60.0
BATCH = 256
"""Observations that are written together. The last batch of a run may be smaller."""


def new_run(authorized: AuthorizedPlan) -> Run:
    """Return the record of an authorized plan that is about to start."""
    plan, call = authorized.plan, authorized.plan.call
    return Run(
        id=call.id,
        tool=call.tool.tool_name(),
        parameters=call.parameters.model_dump(mode="json", exclude_defaults=True),
        actor=call.actor,
        correlation_id=call.correlation_id,
        scope_hash=authorized.scope_hash,
        enforcement=authorized.enforcement.value,
        risk=plan.risk,
        argv=plan.argv,
        started=datetime.now(UTC),
        outcome=Outcome.RUNNING,
        vantage=LOCAL,
        coverage=Coverage.nothing_yet(plan.targets.canonical(), plan.targets.count, plan.command.ports),
    )


class Recorder:
    """Records one run: writes its observations in order and in batches, and then its end.

    ``begun`` says whether the store has a row of the run.
    """

    def __init__(self, store: Store, audit: AuditLog, run: Run) -> None:
        self.run = run
        self.begun = False
        self._store = store
        self._audit = audit
        self._pending: list[Observation] = []
        self._seen = asyncio.Event()
        self._writing = asyncio.Lock()

    async def begin(self) -> None:
        """Write the row of a run that is about to start."""
        await self._store.begin(self.run)
        self.begun = True

    def see(self, observations: Iterable[Observation]) -> None:
        """Take observations from the parser. Does no I/O."""
        self._pending.extend(observations)
        if self._pending:
            self._seen.set()

    async def keep_writing(self) -> None:
        """Write observations as they arrive, until cancelled, so that few are lost if the process is killed.

        If the store fails, try again after a second: a database that recovers in time costs the run nothing.
        """
        while True:
            await self._seen.wait()
            self._seen.clear()
            try:
                # The end of the run must not cancel a write halfway: its observations would be lost.
                await asyncio.shield(self.flush())
            except NetworkToolsError as error:
                logger.warning("store.hosts_wait", run_id=self.run.id, message=error.message)
                await asyncio.sleep(RETRY_SEC)
                self._seen.set()

    async def flush(self) -> None:
        """Write the collected observations in batches. If a write fails, they are kept for the next call."""
        async with self._writing:
            while batch := self._pending[:BATCH]:
                await self._store.add_hosts(self.run, batch)
                del self._pending[: len(batch)]

    def cut_short(self, coverage: Coverage, counts: Mapping[str, int]) -> None:
        """Note the coverage and the counts of a run that ends early."""
        self.run = replace(self.run, coverage=coverage, counts=counts)

    async def finish(self, run: Run, process: Mapping[str, Any] | None = None) -> Run:
        """Write the last observations and the end of the run, and append its record to the audit log.

        ``process`` holds fields for the log only: the process id, and the number of bytes that the program wrote. If
        the store fails, the log says that the run failed, and the error is raised. `store_end` may be called again.
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
            # Every decision that accepted a call needs an end on the audit log, even if the store failed.
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
        """Write the last observations and the end of the run."""
        await self.flush()
        await self._store.finish(self.run)


class Unstored:
    """Ends of runs that the store could not write. Writing is repeated until it succeeds."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, recorder: Recorder) -> None:
        """Try to write the end of a run for about an hour, with increasing pauses."""
        task = asyncio.create_task(_store_later(recorder))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop trying. The next start of the server finds these runs and marks them interrupted."""
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
            logger.error("store.end_given_up", run_id=recorder.run.id, message=error.message)  # noqa: TRY400 - our own message says all
            return
        logger.info("store.end_stored_late", run_id=recorder.run.id)
        return
