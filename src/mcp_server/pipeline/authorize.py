"""Step 3, authorize: decide whether a plan may run, and write the decision to the audit log before anything starts."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mcp_server.audit import AuditLog
from mcp_server.audit.records import escape_values
from mcp_server.config import Config
from mcp_server.errors import AccessError, NetworkToolsError, RefusedError
from mcp_server.model.access import Access
from mcp_server.model.run import Outcome, Risk
from mcp_server.netguard import Enforcement, Guard, GuardReading
from mcp_server.pipeline.guard_watch import read_guard
from mcp_server.pipeline.log_fields import who
from mcp_server.pipeline.plan import Plan
from mcp_server.scope.budget import PacketBudget, Reservation
from mcp_server.scope.grant import Grant
from mcp_server.scope.permissions import require_risk
from mcp_server.scope.policy import ScopePolicy
from mcp_server.tools.context import Assessment


def decide(
    plan: Plan, policy: ScopePolicy, access: Access, *, allow_intrusive: bool, now: datetime
) -> Grant | RefusedError:
    """Decide whether a plan may run. Pure: the same arguments give the same decision, and nothing is recorded.

    ``policy`` is the scope policy within the actor's networks. ``access`` holds the actor's permissions. Returns the
    grant of the policy, or the error that refuses the call: AccessError ``insufficient_scope``,
    ``intrusive_not_allowed``, ``risk_not_allowed`` or ``outside_time_window``, TargetError ``target_out_of_scope``,
    BusyError ``budget_exceeded``.
    """
    tool = plan.call.tool
    try:
        require_risk(access, plan.risk, tool.tool_name())
        if plan.risk >= Risk.INTRUSIVE and not allow_intrusive:
            raise AccessError(f"{tool.tool_name()}: this call is intrusive.", code="intrusive_not_allowed")
        grant = policy.require(
            plan.targets.networks,
            plan.targets.names,
            plan.risk,
            addresses=plan.targets.count,
            ports=plan.ports,
            probes=plan.probes,
            now=now,
        )
    except RefusedError as refusal:
        return refusal
    if grant.packets_per_second is not None and not tool.limits_rate:
        return AccessError(
            f"The policy allows {grant.packets_per_second:g} packets a second for these targets, "
            f"but {tool.tool_name()} cannot limit its rate.",
            code="risk_not_allowed",
            hint="Use a tool that can limit its rate, or targets without a rate. 'scope check' shows the rates.",
        )
    return grant


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A plan that was not run, and the decision about it: the grant, or the error that refuses the call."""

    plan: Plan
    decision: Grant | RefusedError

    def assessment(self) -> Assessment:
        """Return the cost and the decision in the form that tools use."""
        plan, decision = self.plan, self.decision
        return Assessment(
            risk=plan.risk,
            addresses=plan.targets.count,
            ports=plan.ports,
            probes=plan.probes,
            seconds=plan.command.estimate.seconds,
            packets_per_second=decision.packets_per_second if isinstance(decision, Grant) else None,
            refusal=None if isinstance(decision, Grant) else decision,
        )


@dataclass(frozen=True, slots=True)
class AuthorizedPlan:
    """A plan that may run, the policy that allowed it, and the packets that were reserved for it.

    ``exclusive`` lists the policy entries with a packet rate. Each run may use the whole rate of such an entry, so
    runs on the same entry take turns.
    """

    plan: Plan
    scope_hash: str
    enforcement: Enforcement
    reservation: Reservation
    exclusive: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Authorizer:
    """Authorizes plans. ``policy`` is the scope policy within the networks of the actor."""

    config: Config
    policy: ScopePolicy
    guard: Guard
    budget: PacketBudget
    audit: AuditLog

    def decide(self, plan: Plan, access: Access) -> Grant | RefusedError:
        """Decide whether a plan may run now."""
        allow_intrusive = self.config.security.allow_intrusive
        return decide(plan, self.policy, access, allow_intrusive=allow_intrusive, now=datetime.now(UTC))

    async def authorize(self, plan: Plan) -> AuthorizedPlan:
        """Decide on a plan, reserve its packets, and log that it was accepted.

        Raises the refusal of `decide`, BusyError ``budget_exceeded`` if the budget of the hour is used up, and
        PlatformError if the guard is gone or the log cannot be written.
        """
        actor = plan.call.actor
        grant = _require(self.decide(plan, actor.access))
        reading = await read_guard(self.guard)
        reservation = self.budget.reserve(
            plan.probes,
            self.policy.limits.packets_per_hour,
            time.monotonic(),
            actor=actor.name,
            own_limit=actor.access.packets_per_hour,
        )
        try:
            await self._log(plan, tuple(map(str, grant.entries)), reading)
        except BaseException:
            self.budget.release(reservation)
            raise
        exclusive = self.policy.rated_entries(plan.targets.networks, plan.targets.names)
        return AuthorizedPlan(plan, self.policy.hash, self.guard.enforcement, reservation, exclusive)

    def confirm(self, authorized: AuthorizedPlan, access: Access) -> AuthorizedPlan:
        """Decide again on a call that has waited, with the present ``access``. Raises the refusal of `decide`."""
        _require(self.decide(authorized.plan, access))
        return replace(authorized, scope_hash=self.policy.hash)

    async def _log(self, plan: Plan, entries: tuple[str, ...], reading: GuardReading | None) -> None:
        from mcp_server.sandbox.containment import containment

        call, estimate = plan.call, plan.command.estimate
        # A runner for loopback targets runs outside of the namespace that the ruleset filters.
        filtered = plan.executor.allow_raw or not self.guard.raw_sockets
        # The runner for loopback targets has no more privileges than a server without raw sockets.
        confined = await asyncio.to_thread(containment, allow_raw=plan.executor.allow_raw)
        await self.audit.append(
            "decision",
            decision="accept",
            run_id=call.id,
            correlation_id=call.correlation_id,
            **who(call.actor),
            tool=call.tool.tool_name(),
            arguments=escape_values(call.parameters.model_dump(mode="json", exclude_defaults=True)),
            targets=[
                {"given": escape_values(target.given), "pinned": list(target.canonical())}
                | ({"resolution": escape_values(target.evidence.as_dict())} if target.evidence else {})
                for target in plan.targets.items
            ],
            argv=list(plan.argv),
            binary={"path": plan.binary.path, "realpath": plan.binary.realpath, "sha256": plan.binary.sha256()},
            risk=str(plan.risk),
            addresses=plan.targets.count,
            estimate={"probes": estimate.probes, "seconds": round(estimate.seconds, 1)},
            reason=f"allowed by {', '.join(entries)}",
            scope_hash=self.policy.hash,
            enforcement=self.guard.enforcement.value,
            executor=plan.executor.name,
            sandbox={"tier": confined.tier.value, "files_confined": confined.files_confined},
            ruleset=reading.ruleset if reading and filtered else None,
        )


def _require(decision: Grant | RefusedError) -> Grant:
    if isinstance(decision, RefusedError):
        raise decision
    return decision


async def log_not_started(audit: AuditLog, authorized: AuthorizedPlan, error: BaseException) -> None:
    """Log the end of an accepted call that did not become a run: no free slot, no store, or cancelled while waiting."""
    outcome, code = outcome_of(error)
    call = authorized.plan.call
    await audit.append(
        "end",
        run_id=call.id,
        correlation_id=call.correlation_id,
        **who(call.actor),
        tool=call.tool.tool_name(),
        scope_hash=authorized.scope_hash,
        enforcement=authorized.enforcement.value,
        outcome=outcome.value,
        code=code,
    )


def outcome_of(error: BaseException) -> tuple[Outcome, str]:
    """Return the outcome and the code of a call that this error ended."""
    if isinstance(error, NetworkToolsError):
        return Outcome.REFUSED if isinstance(error, RefusedError) else Outcome.FAILED, error.code
    if isinstance(error, asyncio.CancelledError):
        return Outcome.CANCELLED, "cancelled"
    return Outcome.FAILED, "internal_error"
