"""Steps 5 to 7 of a run that has its slot: execute, record and respond, for every way in which a run can end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from mcp_server.audit import AuditLog
from mcp_server.config import Config
from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.limits.calls import Calls
from mcp_server.limits.circuit_breaker import Permit
from mcp_server.logger import get_logger
from mcp_server.model.run import Outcome
from mcp_server.netguard import Guard, GuardReading
from mcp_server.pipeline.admit import judge
from mcp_server.pipeline.authorize import AuthorizedPlan
from mcp_server.pipeline.execute import Execution, Progress, ProgressUpdate, run
from mcp_server.pipeline.guard_watch import difference, read_guard
from mcp_server.pipeline.record import Recorder, Unstored, new_run
from mcp_server.pipeline.respond import CallResult, conclude, make_result
from mcp_server.pipeline.signals import Signals, step

if TYPE_CHECKING:
    from mcp_server.store.base import Store

logger = get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunServices:
    """The services that every run uses."""

    guard: Guard
    audit: AuditLog
    calls: Calls
    signals: Signals
    unstored: Unstored


class AdmittedRun:
    """One run that has its slot, after ``waited_sec`` seconds. ``before`` is the state of the guard before the run."""

    def __init__(
        self,
        services: RunServices,
        authorized: AuthorizedPlan,
        store: Store,
        config: Config,
        before: GuardReading | None,
        *,
        waited_sec: float,
    ) -> None:
        from mcp_server.store.blobs import RawSpool

        self._services = services
        self._authorized = authorized
        self._before = before
        self._waited_sec = waited_sec
        self._head_bytes = config.effective.stdout_bytes
        self._recorder = Recorder(store, services.audit, new_run(authorized))
        self._spool = RawSpool(config.state_dir, self._recorder.run.id, authorized.plan.limits.output_bytes)

    async def execute(self, permit: Permit, progress: Progress | None) -> CallResult:
        """Run the program to its end, and record and return the result.

        Raises NetworkToolsError if the run ended early. The row of the run then has the outcome and the results so far.
        """
        recorder, services = self._recorder, self._services
        services.calls.note_run(recorder.run.id)

        async def on_update(update: ProgressUpdate) -> None:
            await read_guard(services.guard)  # a guard that is gone or changed ends the run
            services.signals.progress(recorder.run, update)
            if progress is not None:
                await progress(update.share, update.sentence(recorder.run.tool))

        try:
            with step("execute") as span:
                await recorder.begin()
                services.signals.started(recorder.run, self._waited_sec)
                execution = await run(
                    self._authorized, recorder, self._spool, head_bytes=self._head_bytes, on_update=on_update
                )
                span.set(**{"mcp_network_tools.bytes": execution.exit.bytes_out})
        except BaseException as error:
            await _completed(self._end_early(error))
            if isinstance(error, NetworkToolsError):
                error.details.setdefault("run_id", recorder.run.id)
            raise
        # The run has finished, so a caller that disconnects now must not cancel the recording.
        return await _completed(self._end(permit, execution))

    async def _end(self, permit: Permit, execution: Execution) -> CallResult:
        recorder, plan, services = self._recorder, self._authorized.plan, self._services
        with step("record"):
            await self._note_guard()
            finished, problem = conclude(recorder.run, plan, execution)
            judge(permit, plan, problem)
            process = {"pid": execution.exit.pid, "bytes": execution.exit.bytes_out}
            try:
                run_ = await recorder.finish(finished, process)
            except NetworkToolsError as failure:
                services.unstored.keep(recorder)
                services.signals.ended(recorder.run, execution.exit.seconds, execution.exit.bytes_out, failure)
                raise
        services.signals.ended(run_, execution.exit.seconds, execution.exit.bytes_out, problem)
        with step("respond", **{"mcp_network_tools.outcome": run_.outcome.value}):
            return make_result(run_, execution, problem)

    async def _note_guard(self) -> None:
        recorder, services = self._recorder, self._services
        facts = await difference(services.guard, self._before, services.audit, recorder.run, services.signals.alarm)
        if facts:
            recorder.run = replace(recorder.run, metadata=recorder.run.metadata | {"guard": facts})

    async def _end_early(self, error: BaseException) -> None:
        recorder, services = self._recorder, self._services
        known = error if isinstance(error, NetworkToolsError) else PlatformError(str(error), code="internal_error")
        outcome = Outcome.FAILED
        if isinstance(error, asyncio.CancelledError):
            known, outcome = PlatformError("The call was cancelled.", code="cancelled"), Outcome.CANCELLED
        why: dict[str, Any] = {"outcome": outcome, "error_code": known.code, "error_message": known.message}
        run_, size = replace(recorder.run, **why), 0
        try:
            await self._note_guard()
            raw = self._spool.finish()
            run_, size = await recorder.finish(replace(recorder.run, raw=raw, **why)), raw.size
        except NetworkToolsError as failure:
            # The caller gets the error that ended the run. The row says `running` until the store can write the end.
            logger.error("run.end_not_recorded", message=failure.message)  # noqa: TRY400 - no traceback: the failure is a disk or a database
            if recorder.begun:
                services.unstored.keep(recorder)
        seconds = ((run_.ended or datetime.now(UTC)) - run_.started).total_seconds()
        services.signals.ended(run_, max(seconds, 0.0), size, known)


async def _completed(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, even if the caller is cancelled meanwhile. The cancellation is raised after that."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
