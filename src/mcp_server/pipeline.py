"""The road every call takes, whichever door it came in by."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mcp_server.audit import AuditLog
from mcp_server.config import Config
from mcp_server.discovery import Toolbox
from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.execution.admission import Admission
from mcp_server.execution.guard import Guard, GuardReading
from mcp_server.model.run import Actor, Outcome
from mcp_server.scope.budget import PacketBudget
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolver import Resolver
from mcp_server.steps.answer import Answer, conclude, make_answer
from mcp_server.steps.authorise import Authorised, Authoriser, log_not_started
from mcp_server.steps.call import read_call
from mcp_server.steps.plan import Plan, Planner
from mcp_server.steps.remember import Recorder, new_run
from mcp_server.steps.run import Execution, Progress, run
from mcp_server.steps.watch import difference, read_guard

if TYPE_CHECKING:
    from mcp_server.store.base import Store
    from mcp_server.store.blobs import RawSpool

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Pipeline:
    """Everything the steps need; a reload replaces ``config``, ``policy``, ``toolbox`` and ``pins`` for later calls.

    ``pins`` are hashes of scripts that the owner accepts besides the reviewed ones.
    """

    config: Config
    policy: ScopePolicy
    toolbox: Toolbox
    resolver: Resolver
    guard: Guard
    admission: Admission
    audit: AuditLog
    open_store: Callable[[], Awaitable[Store]]
    pins: Mapping[str, frozenset[str]] = field(default_factory=dict)
    budget: PacketBudget = field(default_factory=PacketBudget)

    async def call(
        self, name: str, arguments: Mapping[str, Any], actor: Actor, progress: Progress | None = None
    ) -> Answer:
        """Take one call down the road.

        Returns an `Answer`, also for a run that failed or was cut short (its ``error`` says why). Raises
        RefusedError or PlatformError where nothing was started; every such refusal is on the decision log.
        """
        # One set of these for the whole call: a reload in between must not mix two of the owner's minds.
        config, planner, authoriser = self.config, self._planner(), self._authoriser()
        async with AsyncExitStack() as admitted:
            try:
                call = read_call(self.toolbox.get(name), arguments, actor)
                planned = await planner.plan(call)
                authorised = await authoriser.authorise(planned)
            except NetworkToolsError as error:
                if error.code not in {"audit_unavailable", "audit_broken"}:
                    await authoriser.log_refusal(actor, name, arguments, error)
                raise
            except asyncio.CancelledError:
                # A name may have been looked up for it: that it was asked for must be on the log.
                given_up = NetworkToolsError("the call was given up before it was decided on", code="cancelled")
                await asyncio.shield(authoriser.log_refusal(actor, name, arguments, given_up))
                raise
            try:
                await admitted.enter_async_context(self.admission.slot(call.tool.tool_name()))
                # It may have waited long: the owner's mind, the hour or the guard may be another by now.
                authorised = self._authoriser().confirm(authorised)
                store = await self.open_store()
                before = await read_guard(self.guard)
            except BaseException as error:
                self.budget.release(authorised.reservation)
                await asyncio.shield(log_not_started(self.audit, call, error))
                raise
            return await self._run(authorised, before, store, config, progress)

    async def plan(self, name: str, arguments: Mapping[str, Any], actor: Actor) -> Plan:
        """Plan a call without running it: what would be done, and what it would cost."""
        return await self._planner().plan(read_call(self.toolbox.get(name), arguments, actor))

    def _planner(self) -> Planner:
        return Planner(self.config, self.policy, self.resolver, self.guard, self.pins)

    def _authoriser(self) -> Authoriser:
        return Authoriser(self.config, self.policy, self.guard, self.budget, self.audit)

    async def _run(
        self,
        authorised: Authorised,
        before: GuardReading | None,
        store: Store,
        config: Config,
        progress: Progress | None,
    ) -> Answer:
        from mcp_server.store.blobs import RawSpool

        recorder = Recorder(store, self.audit, new_run(authorised))
        try:
            spool = RawSpool(config.state_dir, recorder.run.id, authorised.plan.limits.output_bytes)
        except BaseException as error:
            self.budget.release(authorised.reservation)
            await asyncio.shield(log_not_started(self.audit, authorised.plan.call, error))
            raise
        try:
            await recorder.begin()
            execution = await run(
                authorised, recorder, spool, head_bytes=config.effective.stdout_bytes, progress=progress
            )
        except BaseException as error:
            # Whatever ends a run early, its row must say so and keep what was found.
            await asyncio.shield(self._end_early(recorder, before, spool, error))
            if isinstance(error, NetworkToolsError):
                error.details.setdefault("run_id", recorder.run.id)
            raise
        # What is done stays done: a caller that goes away in this moment does not undo it.
        return await asyncio.shield(self._end(recorder, before, authorised.plan, execution))

    async def _end(self, recorder: Recorder, before: GuardReading | None, plan: Plan, execution: Execution) -> Answer:
        await self._note_guard(recorder, before)
        finished, problem = conclude(recorder.run, plan, execution)
        process = {"pid": execution.exit.pid, "bytes": execution.exit.bytes_out}
        return make_answer(await recorder.finish(finished, process), execution, problem)

    async def _note_guard(self, recorder: Recorder, before: GuardReading | None) -> None:
        facts = await difference(self.guard, before, self.audit, recorder.run.id)
        if facts:
            recorder.run = replace(recorder.run, metadata=recorder.run.metadata | {"guard": facts})

    async def _end_early(
        self, recorder: Recorder, before: GuardReading | None, spool: RawSpool, error: BaseException
    ) -> None:
        cancelled = isinstance(error, asyncio.CancelledError)
        known = error if isinstance(error, NetworkToolsError) else PlatformError(str(error), code="internal_error")
        try:
            await self._note_guard(recorder, before)
            await recorder.finish(
                replace(
                    recorder.run,
                    outcome=Outcome.CANCELLED if cancelled else Outcome.FAILED,
                    error_code="cancelled" if cancelled else known.code,
                    error_message="the call was cancelled" if cancelled else known.message,
                    raw=spool.finish(),
                )
            )
        except NetworkToolsError as failure:
            # The caller is told what ended the run. Its row reads `running` until a later start finds its owner gone,
            # and the raw output waits in the spool until then.
            logger.error("run.end_not_recorded run=%s: %s", recorder.run.id, failure.message)  # noqa: TRY400 - no traceback: the failure is a disk or a database
