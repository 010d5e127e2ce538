"""The road every call takes, whichever interface it came in by."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from mcp_server.audit import AuditLog
from mcp_server.config import Config
from mcp_server.errors import AccessError, ArgumentError, NetworkToolsError, PlatformError
from mcp_server.limits.admission import Admission
from mcp_server.limits.calls import Calls
from mcp_server.limits.circuit_breaker import Breakers, Permit
from mcp_server.limits.rate_limit import RateLimiter
from mcp_server.model.access import Access
from mcp_server.model.run import Actor, Outcome
from mcp_server.netguard import Guard, GuardReading
from mcp_server.observability import logs, tracing
from mcp_server.observability.events import EventBus
from mcp_server.pipeline.admit import AdmissionController, judge
from mcp_server.pipeline.authorize import AuthorizedPlan, Authorizer, ending, log_not_started
from mcp_server.pipeline.current import Current, Snapshot
from mcp_server.pipeline.denials import Denials, given_id
from mcp_server.pipeline.execute import Execution, Progress, ProgressUpdate, run
from mcp_server.pipeline.guard_watch import difference, read_guard
from mcp_server.pipeline.plan import Plan, Planner, check_permission
from mcp_server.pipeline.record import Recorder, Unstored, new_run
from mcp_server.pipeline.respond import CallResult, conclude, make_result
from mcp_server.pipeline.signals import Signals, known_name, plan_facts, step
from mcp_server.pipeline.validate import Call, read_call
from mcp_server.scope.actor_policy import ActorPolicies
from mcp_server.scope.budget import PacketBudget
from mcp_server.scope.permission import ALL, require_any_call, require_risk
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolver import Resolver
from mcp_server.tools.flags import Setting, read
from mcp_server.tools.registry import ToolRegistry

if TYPE_CHECKING:
    from mcp_server.store.base import Store
    from mcp_server.store.blobs import RawSpool

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Pipeline:
    """Takes calls through the steps. Every interface of a server uses the same pipeline.

    ``current`` holds what a reload replaces. ``invalidate`` is called if something of this host failed a call: health
    results are out of date then.
    """

    def __init__(
        self,
        current: Current,
        *,
        guard: Guard,
        audit: AuditLog,
        open_store: Callable[[], Awaitable[Store]],
        admission: Admission,
        breakers: Breakers,
        limiter: RateLimiter,
        calls: Calls,
        events: EventBus,
        invalidate: Callable[[], None],
    ) -> None:
        self.current = current
        self.guard = guard
        self.audit = audit
        self.open_store = open_store
        self.admission = admission
        self.breakers = breakers
        self.limiter = limiter
        self.calls = calls
        self.events = events
        self.invalidate = invalidate
        self.budget = PacketBudget()
        self.unstored = Unstored()
        self.actor_policies = ActorPolicies()
        self.signals = Signals(events, admission)
        self.admission_controller = AdmissionController(limiter, breakers, admission, self.signals)
        self.denials = Denials(audit, self.terms)

    def terms(self) -> dict[str, str]:
        """The hash of the policy in force and how it is enforced, for records of the decision log."""
        return {"scope_hash": self.current.value.policy.hash, "enforcement": self.guard.enforcement.value}

    async def call(
        self, name: str, arguments: Mapping[str, Any], actor: Actor, progress: Progress | None = None
    ) -> CallResult:
        """Take one call down the road.

        Returns an `Answer`, also for a run that failed or was cut short (its ``error`` says why). Raises
        RefusedError or PlatformError where nothing was started; every such refusal is on the decision log.
        """
        # One snapshot for the whole call, so that a reload cannot mix old and new settings.
        current = self.current.value
        config, registry = current.config, current.registry.seen_by(actor.access.tools)
        planner, authorizer = self._planner(current, actor.access), self._authorizer(current, actor.access)
        tool = known_name(registry, name)
        async with AsyncExitStack() as held:
            held.enter_context(self._invalidating())
            held.enter_context(logs.bound(actor=actor.name, tool=tool))
            async with self._noting_refusal(name, tool, arguments, actor):
                with step("validate"):
                    self.calls.check()
                    held.enter_context(self.calls.under_way())
                    await self.admission_controller.count(tool, actor)
                    call = _permitted(registry, name, arguments, actor, config)
                    permit = held.enter_context(self.admission_controller.attempt(tool))
                held.enter_context(logs.bound(run_id=call.id, correlation_id=call.correlation_id))
                with step("plan") as span:
                    planned = await planner.plan(call)
                    span.set(**plan_facts(planned))
                with step("authorize") as span:
                    authorized = await authorizer.authorize(planned)
                    span.set(**{"mcp_network_tools.enforcement": authorized.enforcement.value})
            async with self._noting_no_start(authorized):
                with step("admit") as span:
                    slot = await held.enter_async_context(self.admission_controller.slot(authorized, progress))
                    span.set(**{"mcp_network_tools.waited_sec": slot.waited})
                    permit.confirm()
                # The call may have waited long. Settings, time windows and the guard may have changed meanwhile.
                now, access = self.current.value, self.access_now(actor)
                now.registry.seen_by(access.tools).get(tool)
                authorized = self._authorizer(now, access).confirm(authorized, access)
                store = await self.open_store()
                before = await read_guard(self.guard)
                prepared = self._prepare(authorized, store, config, slot.waited)
            return await self._run(prepared, before, permit, progress)

    @contextmanager
    def _invalidating(self) -> Iterator[None]:
        """Have health look again where something of this host failed a call."""
        try:
            yield
        except PlatformError:
            self.invalidate()
            raise

    async def plan(
        self, name: str, arguments: Mapping[str, Any], actor: Actor, *, resolver: Resolver | None = None
    ) -> Plan:
        """Plan a call without running it: what would be done, and what it would cost.

        Names are looked up with ``resolver`` if it is given, else with the resolver in force.
        """
        current = self.current.value
        if resolver is not None:
            current = replace(current, resolver=resolver)
        call = _permitted(self.registry_for(actor), name, arguments, actor, current.config)
        return await self._planner(current, actor.access).plan(call)

    def foresee(self, name: str, arguments: Mapping[str, Any], actor: Actor) -> AccessError | None:
        """The refusal of a call for want of a permission, as far as its parameters tell; None where there is none.

        Looks nothing up and is on no log: `refuse` puts it there. A call that is wrong in another way is None too, and
        `call` says in which.
        """
        if actor.access.permissions >= ALL:
            return None
        try:
            config = self.current.value.config
            call = _permitted(self.registry_for(actor), name, arguments, actor, config)
            check_permission(call, _settings(call, config))
        except NetworkToolsError as error:
            return error if isinstance(error, AccessError) and error.code == "insufficient_scope" else None
        return None

    async def refuse(
        self, name: str, arguments: Mapping[str, Any], actor: Actor, error: NetworkToolsError
    ) -> NetworkToolsError:
        """Refuse a call for what `foresee` found: counted and on the log as `call` does it; returns what to answer."""
        tool = known_name(self.registry_for(actor), name)
        try:
            async with self._noting_refusal(name, tool, arguments, actor):
                self.calls.check()
                await self.admission_controller.count(tool, actor)
                raise error
        except NetworkToolsError as refusal:
            return refusal

    def registry_for(self, actor: Actor) -> ToolRegistry:
        """The tools there are for an actor."""
        return self.current.value.registry.seen_by(actor.access.tools)

    def policy_of(self, access: Access) -> ScopePolicy:
        """The policy as an actor with these bounds may use it."""
        return self.actor_policies.of(self.current.value.policy, access.networks)

    def access_now(self, actor: Actor) -> Access:
        """What an actor may do now: a reload may have changed its limits since the call came in."""
        actors = self.current.value.actors
        return actors.again(actor.name, actor.access) if actor.access.origin and actors else actor.access

    async def close(self) -> None:
        """Write what the log still lacks; for the end, when no call is under way."""
        await self.denials.close()
        await self.unstored.close()

    def _planner(self, current: Snapshot, access: Access) -> Planner:
        policy = self.actor_policies.of(current.policy, access.networks)
        return Planner(current.config, policy, current.resolver, self.guard, current.allowed_checksums)

    def _authorizer(self, current: Snapshot, access: Access) -> Authorizer:
        policy = self.actor_policies.of(current.policy, access.networks)
        return Authorizer(current.config, policy, self.guard, self.budget, self.audit)

    @asynccontextmanager
    async def _noting_refusal(
        self, name: str, tool: str, arguments: Mapping[str, Any], actor: Actor
    ) -> AsyncIterator[None]:
        """Put what is refused inside on the log; ``name`` is the caller's word for the tool, ``tool`` ours."""

        async def note(error: NetworkToolsError) -> None:
            self.signals.refused(tool, actor, error, given_id(arguments))
            hidden = error.code == "unknown_tool" and known_name(self.current.value.registry, name) != tool
            reason = f"the tools of {actor.name} do not include this one" if hidden else None
            await self.denials.log(actor, name, tool, arguments, error, reason=reason)

        try:
            yield
        except NetworkToolsError as error:
            await note(error)
            raise
        except asyncio.CancelledError:
            # A name may have been looked up for it: that it was asked for must be on the log.
            given_up = NetworkToolsError("the call was given up before it was decided on", code="cancelled")
            await asyncio.shield(note(given_up))
            raise
        except Exception:
            logger.exception("call.crashed")
            crash = NetworkToolsError("the server failed while it handled this call")
            await note(crash)
            raise crash from None

    @asynccontextmanager
    async def _noting_no_start(self, authorized: AuthorizedPlan) -> AsyncIterator[None]:
        """Put it on the log where an accepted call is not started after all, and give back what was set aside."""
        self.signals.accepted(authorized)
        try:
            yield
        except BaseException as error:
            self.budget.release(authorized.reservation)
            self.signals.not_started(authorized, *ending(error))
            await asyncio.shield(log_not_started(self.audit, authorized, error))
            raise

    def _prepare(self, authorized: AuthorizedPlan, store: Store, config: Config, waited: float) -> _Prepared:
        from mcp_server.store.blobs import RawSpool

        recorder = Recorder(store, self.audit, new_run(authorized))
        spool = RawSpool(config.state_dir, recorder.run.id, authorized.plan.limits.output_bytes)
        return _Prepared(authorized, recorder, spool, config.effective.stdout_bytes, waited)

    async def _run(
        self, prepared: _Prepared, before: GuardReading | None, permit: Permit, progress: Progress | None
    ) -> CallResult:
        recorder = prepared.recorder
        self.calls.note_run(recorder.run.id)

        async def on_update(update: ProgressUpdate) -> None:
            await read_guard(self.guard)  # one that is gone, or is another, ends the run
            self.signals.update(recorder.run, update)
            if progress is not None:
                await progress(update.share, update.sentence(recorder.run.tool))

        try:
            with step("execute") as span:
                await recorder.begin()
                self.signals.started(recorder.run, prepared.waited)
                execution = await run(
                    prepared.authorized, recorder, prepared.spool, head_bytes=prepared.head_bytes, on_update=on_update
                )
                span.set(**{"mcp_network_tools.bytes": execution.exit.bytes_out})
        except BaseException as error:
            # Whatever ends a run early, its row must say so and keep what was found.
            await _whole(self._end_early(prepared, before, error))
            if isinstance(error, NetworkToolsError):
                error.details.setdefault("run_id", recorder.run.id)
            raise
        # What is done stays done: a caller that goes away in this moment does not undo it.
        return await _whole(self._end(prepared, before, permit, execution))

    async def _end(
        self, prepared: _Prepared, before: GuardReading | None, permit: Permit, execution: Execution
    ) -> CallResult:
        recorder, plan = prepared.recorder, prepared.authorized.plan
        with step("record"):
            await self._note_guard(recorder, before)
            finished, problem = conclude(recorder.run, plan, execution)
            judge(permit, plan, problem)
            process = {"pid": execution.exit.pid, "bytes": execution.exit.bytes_out}
            try:
                run_ = await recorder.finish(finished, process)
            except NetworkToolsError as failure:
                self.unstored.keep(recorder)
                self.signals.ended(recorder.run, execution.exit.seconds, execution.exit.bytes_out, failure)
                raise
        self.signals.ended(run_, execution.exit.seconds, execution.exit.bytes_out, problem)
        with tracing.span("respond", **{"mcp_network_tools.outcome": run_.outcome.value}):
            return make_result(run_, execution, problem)

    async def _note_guard(self, recorder: Recorder, before: GuardReading | None) -> None:
        facts = await difference(self.guard, before, self.audit, recorder.run, self.signals)
        if facts:
            recorder.run = replace(recorder.run, metadata=recorder.run.metadata | {"guard": facts})

    async def _end_early(self, prepared: _Prepared, before: GuardReading | None, error: BaseException) -> None:
        recorder = prepared.recorder
        known = error if isinstance(error, NetworkToolsError) else PlatformError(str(error), code="internal_error")
        outcome = Outcome.FAILED
        if isinstance(error, asyncio.CancelledError):
            known, outcome = PlatformError("the call was cancelled", code="cancelled"), Outcome.CANCELLED
        why: dict[str, Any] = {"outcome": outcome, "error_code": known.code, "error_message": known.message}
        run_, size = replace(recorder.run, **why), 0
        try:
            await self._note_guard(recorder, before)
            raw = prepared.spool.finish()
            run_, size = await recorder.finish(replace(recorder.run, raw=raw, **why)), raw.size
        except NetworkToolsError as failure:
            # The caller is told what ended the run; its row reads `running` until the store takes its end.
            logger.error("run.end_not_recorded: %s", failure.message)  # noqa: TRY400 - no traceback: the failure is a disk or a database
            if recorder.begun:
                self.unstored.keep(recorder)
        seconds = ((run_.ended or datetime.now(UTC)) - run_.started).total_seconds()
        self.signals.ended(run_, max(seconds, 0.0), size, known)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An admitted run, after ``waited`` seconds in line; of its output ``head_bytes`` go with the answer."""

    authorized: AuthorizedPlan
    recorder: Recorder
    spool: RawSpool
    head_bytes: int
    waited: float


def _permitted(registry: ToolRegistry, name: str, arguments: Mapping[str, Any], actor: Actor, config: Config) -> Call:
    """Read a call of an actor that may use the tool at all; what its parameters ask for is judged by the plan.

    Who lacks even the least that the tool needs is told what this very call needs: one step up is then enough.
    """
    require_any_call(actor.access)
    tool = registry.get(name)
    least = tool.risk if tool.least_risk is None else tool.least_risk
    try:
        require_risk(actor.access, least, tool.tool_name())
    except AccessError as refusal:
        try:
            call = read_call(tool, arguments, actor)
            check_permission(call, _settings(call, config))
        except ArgumentError:
            raise refusal from None
        return call
    return read_call(tool, arguments, actor)


def _settings(call: Call, config: Config) -> tuple[Setting, ...]:
    return read(call.parameters.extra_args, call.tool.flags(), max_length=config.effective.max_args_length)


async def _whole(work: Coroutine[Any, Any, T]) -> T:
    """Do ``work`` to its end, also where the caller goes away meanwhile; only then is that cancellation raised."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
