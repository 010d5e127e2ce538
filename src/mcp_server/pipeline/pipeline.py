"""The pipeline: takes each request through its steps. Every interface uses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mcp_server.audit import AuditLog
from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.limits.admission import Admission
from mcp_server.limits.calls import Calls
from mcp_server.limits.circuit_breaker import Breakers
from mcp_server.limits.rate_limit import RateLimiter
from mcp_server.logger import bound, get_logger
from mcp_server.model.access import Access
from mcp_server.model.run import Actor
from mcp_server.netguard import Guard
from mcp_server.observability.events import EventBus
from mcp_server.pipeline.admit import AdmissionController
from mcp_server.pipeline.authorize import AuthorizedPlan, Authorizer, PlannedCall, log_not_started, outcome_of
from mcp_server.pipeline.current import Current, Snapshot
from mcp_server.pipeline.denials import Denials
from mcp_server.pipeline.execute import Progress
from mcp_server.pipeline.guard_watch import read_guard
from mcp_server.pipeline.log_fields import given_id, who
from mcp_server.pipeline.plan import LoggedResolver, Planner
from mcp_server.pipeline.record import Unstored
from mcp_server.pipeline.respond import CallResult
from mcp_server.pipeline.running import AdmittedRun, RunServices
from mcp_server.pipeline.signals import Signals, known_name, plan_facts, step
from mcp_server.pipeline.validate import Call, Query, ValidatedRequest, validate
from mcp_server.scope.actor_policy import ActorPolicies
from mcp_server.scope.budget import PacketBudget
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolver import CachingResolver
from mcp_server.tools.context import Assessment, ToolAnswer, ToolContext
from mcp_server.tools.registry import ToolRegistry

if TYPE_CHECKING:
    from mcp_server.store.base import Store

logger = get_logger(__name__)


class Pipeline:
    """Takes calls through the steps. Every interface of a server uses the same pipeline.

    ``current`` holds the snapshot that a reload replaces. ``invalidate`` is called if a call failed because of this
    host, because the health results are then out of date.
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
        self.calls = calls
        self.events = events
        self.invalidate = invalidate
        self.budget = PacketBudget()
        self.unstored = Unstored()
        self.actor_policies = ActorPolicies()
        self.signals = Signals(events, admission)
        self.admission_controller = AdmissionController(limiter, breakers, admission, self.signals)
        self.denials = Denials(audit, self.terms)
        self._runs = RunServices(guard, audit, calls, self.signals, self.unstored)

    def terms(self) -> dict[str, str]:
        """Return the hash of the policy in force and its enforcement, for records of the audit log."""
        return {"scope_hash": self.current.value.policy.hash, "enforcement": self.guard.enforcement.value}

    async def handle(
        self,
        name: str,
        arguments: Mapping[str, Any],
        actor: Actor,
        progress: Progress | None = None,
        *,
        validated: ValidatedRequest | None = None,
    ) -> CallResult | ToolAnswer:
        """Handle a request for any tool, as `call` or `answer` does. ``validated`` is what `validate` returned."""
        if self.registry_for(actor).is_server_tool(name):
            return await self.answer(name, arguments, actor, validated=validated)
        return await self.call(name, arguments, actor, progress, validated=validated)

    async def answer(
        self,
        name: str,
        arguments: Mapping[str, Any],
        actor: Actor,
        *,
        validated: ValidatedRequest | None = None,
    ) -> ToolAnswer:
        """Answer a request for a tool that runs no program. Raises RefusedError or PlatformError."""
        current = self.current.value
        query = (validated or self._validate(current, name, arguments, actor)).require(Query)
        logged = LoggedResolver(current.resolver, self.audit, who(actor) | self.terms())
        current = replace(current, resolver=CachingResolver(logged))

        async def assess(tool: str, tool_arguments: Mapping[str, Any]) -> Assessment:
            return (await self._plan(current, tool, tool_arguments, actor)).assessment()

        context = ToolContext(
            actor=actor,
            policy=self.actor_policies.of(current.policy, actor.access.networks),
            allow_intrusive=current.config.security.allow_intrusive,
            resolver=current.resolver,
            count_call=lambda: self.admission_controller.count(query.tool.tool_name(), actor),
            assess=assess,
        )
        with self._invalidating():
            return await query.tool.answer(query.parameters, context)

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        actor: Actor,
        progress: Progress | None = None,
        *,
        validated: ValidatedRequest | None = None,
    ) -> CallResult:
        """Take one call of a program through all steps.

        Returns a `CallResult`, also if the run failed or was cut short: its ``error`` says why. Raises RefusedError or
        PlatformError if nothing was started. Every refused call is on the audit log.
        """
        # One snapshot for the whole call, so that a reload cannot mix old and new settings.
        current = self.current.value
        tool = known_name(current.registry.seen_by(actor.access.tools), name)
        async with AsyncExitStack() as held:
            held.enter_context(self._invalidating())
            held.enter_context(bound(actor=actor.name, tool=tool))
            async with self._logging_refusal(name, tool, arguments, actor):
                with step("validate"):
                    self.calls.check()
                    held.enter_context(self.calls.under_way())
                    await self.admission_controller.count(tool, actor)
                    request = validated or self._validate(current, name, arguments, actor)
                    call = replace(request.require(Call), actor=actor)
                    permit = held.enter_context(self.admission_controller.attempt(tool))
                held.enter_context(bound(run_id=call.id, correlation_id=call.correlation_id))
                with step("plan") as span:
                    plan = await self._planner(current, actor.access).plan(call)
                    span.set(**plan_facts(plan))
                with step("authorize") as span:
                    authorized = await self._authorizer(current, actor.access).authorize(plan)
                    span.set(**{"mcp_network_tools.enforcement": authorized.enforcement.value})
            async with self._logging_no_start(authorized):
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
                admitted = AdmittedRun(self._runs, authorized, store, current.config, before, waited_sec=slot.waited)
            return await admitted.execute(permit, progress)

    def validate(self, name: str, arguments: Mapping[str, Any], actor: Actor) -> ValidatedRequest:
        """Validate a request without counting or logging it. Pass the result to `call` or to `refuse`."""
        return self._validate(self.current.value, name, arguments, actor)

    async def refuse(self, request: ValidatedRequest) -> NetworkToolsError:
        """Refuse a request that validation refused: count and log it as `call` does. Returns the error to answer."""
        actor = request.actor
        tool = known_name(self.registry_for(actor), request.name)
        try:
            async with self._logging_refusal(request.name, tool, request.arguments, actor):
                self.calls.check()
                await self.admission_controller.count(tool, actor)
                request.require(Call)
        except NetworkToolsError as refusal:
            return refusal
        raise ValueError(f"{request.name} was not refused")

    async def plan(self, name: str, arguments: Mapping[str, Any], actor: Actor) -> PlannedCall:
        """Plan a call and decide whether it may run, without running it. Raises what prevents a plan."""
        return await self._plan(self.current.value, name, arguments, actor)

    def registry_for(self, actor: Actor) -> ToolRegistry:
        """Return the tools that exist for an actor."""
        return self.current.value.registry.seen_by(actor.access.tools)

    def policy_of(self, access: Access) -> ScopePolicy:
        """Return the policy within the networks of an actor."""
        return self.actor_policies.of(self.current.value.policy, access.networks)

    def access_now(self, actor: Actor) -> Access:
        """Return the present access of an actor. A reload may have changed its limits since the call arrived."""
        actors = self.current.value.actors
        return actors.update(actor.name, actor.access) if actor.access.origin and actors else actor.access

    async def close(self) -> None:
        """Write the records that the log still lacks. Call this at the end, when no call is active."""
        await self.denials.close()
        await self.unstored.close()

    def _validate(self, current: Snapshot, name: str, arguments: Mapping[str, Any], actor: Actor) -> ValidatedRequest:
        registry = current.registry.seen_by(actor.access.tools)
        return validate(registry, name, arguments, actor, max_args_length=current.config.effective.max_args_length)

    async def _plan(self, current: Snapshot, name: str, arguments: Mapping[str, Any], actor: Actor) -> PlannedCall:
        call = self._validate(current, name, arguments, actor).require(Call)
        plan = await self._planner(current, actor.access).plan(call)
        return PlannedCall(plan, self._authorizer(current, actor.access).decide(plan, actor.access))

    def _planner(self, current: Snapshot, access: Access) -> Planner:
        policy = self.actor_policies.of(current.policy, access.networks)
        return Planner(current.config, policy, current.resolver, self.guard, current.allowed_checksums)

    def _authorizer(self, current: Snapshot, access: Access) -> Authorizer:
        policy = self.actor_policies.of(current.policy, access.networks)
        return Authorizer(current.config, policy, self.guard, self.budget, self.audit)

    @contextmanager
    def _invalidating(self) -> Iterator[None]:
        """Invalidate the health results if a call failed because of this host."""
        try:
            yield
        except PlatformError:
            self.invalidate()
            raise

    @asynccontextmanager
    async def _logging_refusal(
        self, name: str, tool: str, arguments: Mapping[str, Any], actor: Actor
    ) -> AsyncIterator[None]:
        """Log refusals in the block. ``name`` is the tool name that the caller used, ``tool`` the known name."""

        async def log(error: NetworkToolsError) -> None:
            self.signals.refused(tool, actor, error, given_id(arguments))
            hidden = error.code == "unknown_tool" and known_name(self.current.value.registry, name) != tool
            reason = f"The tools of {actor.name} do not include this one." if hidden else None
            await self.denials.log(actor, name, tool, arguments, error, reason=reason)

        try:
            yield
        except NetworkToolsError as error:
            await log(error)
            raise
        except asyncio.CancelledError:
            # A name may have been looked up for the call, so the log must have a record of the call.
            cancelled = NetworkToolsError("The call was cancelled before the decision.", code="cancelled")
            await asyncio.shield(log(cancelled))
            raise
        except Exception:
            logger.exception("call.crashed")
            crash = NetworkToolsError("The server failed while it handled this call.")
            await log(crash)
            raise crash from None

    @asynccontextmanager
    async def _logging_no_start(self, authorized: AuthorizedPlan) -> AsyncIterator[None]:
        """If an accepted call does not start, log that and release the packets that were reserved for it."""
        self.signals.accepted(authorized)
        try:
            yield
        except BaseException as error:
            self.budget.release(authorized.reservation)
            self.signals.not_started(authorized, *outcome_of(error))
            await asyncio.shield(log_not_started(self.audit, authorized, error))
            raise
