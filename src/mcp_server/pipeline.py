"""The road every call takes, whichever door it came in by."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mcp_server.audit import AuditLog
from mcp_server.config import Config
from mcp_server.discovery import Toolbox
from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.execution.admission import Admission
from mcp_server.model.run import Actor, Outcome
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolver import Resolver
from mcp_server.steps.answer import Answer, conclude, make_answer
from mcp_server.steps.authorise import Authorised, authorise, log_not_started, log_refusal
from mcp_server.steps.call import read_call
from mcp_server.steps.plan import Plan, plan
from mcp_server.steps.remember import Recorder, new_run
from mcp_server.steps.run import Progress, run

if TYPE_CHECKING:
    from mcp_server.store.base import Store
    from mcp_server.store.blobs import RawSpool

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Pipeline:
    """Everything the steps need; a reload replaces ``config``, ``policy`` and ``toolbox`` for calls that come after."""

    config: Config
    policy: ScopePolicy
    toolbox: Toolbox
    resolver: Resolver
    admission: Admission
    audit: AuditLog
    open_store: Callable[[], Awaitable[Store]]

    async def call(
        self, name: str, arguments: Mapping[str, Any], actor: Actor, progress: Progress | None = None
    ) -> Answer:
        """Take one call down the road.

        Returns an `Answer`, also for a run that failed or was cut short (its ``error`` says why). Raises
        RefusedError or PlatformError where nothing was started; every such refusal is on the decision log.
        """
        config, policy = self.config, self.policy
        async with AsyncExitStack() as admitted:
            try:
                call = read_call(self.toolbox.get(name), arguments, actor)
                planned = await plan(call, config, policy, self.resolver)
                authorised = await authorise(planned, config, policy, self.audit)
            except NetworkToolsError as error:
                if error.code != "audit_unavailable":
                    await log_refusal(self.audit, policy, actor, name, arguments, error)
                raise
            try:
                await admitted.enter_async_context(self.admission.slot(call.tool.tool_name()))
                store = await self.open_store()
            except BaseException as error:
                await asyncio.shield(log_not_started(self.audit, call, error))
                raise
            return await self._run(authorised, store, config, progress)

    async def plan(self, name: str, arguments: Mapping[str, Any], actor: Actor) -> Plan:
        """Plan a call without running it: what would be done, and what it would cost."""
        return await plan(read_call(self.toolbox.get(name), arguments, actor), self.config, self.policy, self.resolver)

    async def _run(self, authorised: Authorised, store: Store, config: Config, progress: Progress | None) -> Answer:
        from mcp_server.store.blobs import RawSpool

        recorder = Recorder(store, self.audit, new_run(authorised))
        try:
            spool = RawSpool(config.state_dir, recorder.run.id, authorised.plan.limits.output_bytes)
        except BaseException as error:
            await asyncio.shield(log_not_started(self.audit, authorised.plan.call, error))
            raise
        try:
            await recorder.begin()
            execution = await run(
                authorised, recorder, spool, head_bytes=config.effective.stdout_bytes, progress=progress
            )
        except BaseException as error:
            # Whatever ends a run early, its row must say so and keep what was found.
            await asyncio.shield(self._end_early(recorder, spool, error))
            if isinstance(error, NetworkToolsError):
                error.details.setdefault("run_id", recorder.run.id)
            raise
        finished, problem = conclude(recorder.run, authorised.plan, execution)
        # What is done stays done: a caller that goes away in this moment does not undo it.
        return make_answer(await asyncio.shield(recorder.finish(finished)), execution, problem)

    @staticmethod
    async def _end_early(recorder: Recorder, spool: RawSpool, error: BaseException) -> None:
        cancelled = isinstance(error, asyncio.CancelledError)
        known = error if isinstance(error, NetworkToolsError) else PlatformError(str(error), code="internal_error")
        try:
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
