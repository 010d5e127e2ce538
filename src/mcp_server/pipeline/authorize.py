"""Step 3, authorize: the owner's policy decides on the plan, and the decision is on the log before a spawn."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mcp_server.audit import AuditLog
from mcp_server.audit.escaping import escape_values
from mcp_server.config import Config
from mcp_server.errors import AccessError, NetworkToolsError, RefusedError
from mcp_server.model.access import Access
from mcp_server.model.run import Outcome, Risk
from mcp_server.model.target import Network
from mcp_server.netguard import Enforcement, Guard, GuardReading
from mcp_server.pipeline.denials import who
from mcp_server.pipeline.guard_watch import read_guard
from mcp_server.pipeline.plan import Plan
from mcp_server.scope.budget import PacketBudget, Reservation
from mcp_server.scope.grant import Grant
from mcp_server.scope.permissions import require_risk
from mcp_server.scope.policy import ScopePolicy


@dataclass(frozen=True, slots=True)
class AuthorizedPlan:
    """A plan that may run, the policy it was allowed under, and what was set aside for it."""

    plan: Plan
    scope_hash: str
    enforcement: Enforcement
    reservation: Reservation
    exclusive: tuple[str, ...] = ()
    """Entries with a packet rate: the run keeps to the whole of it, so runs on one such entry take turns."""


@dataclass(frozen=True, slots=True)
class Authorizer:
    """What decides on plans: the owner's configuration, the policy as the actor may use it, the budgets, the guard."""

    config: Config
    policy: ScopePolicy
    guard: Guard
    budget: PacketBudget
    audit: AuditLog

    async def authorize(self, plan: Plan) -> AuthorizedPlan:
        """Judge the compiled plan and log the acceptance.

        Raises TargetError, AccessError or BusyError where the policy refuses, PlatformError where the guard is gone
        or the log cannot be written.
        """
        grant = self._judge(plan)
        reading = await read_guard(self.guard)
        actor = plan.call.actor
        reservation = self.budget.reserve(
            _probes(plan),
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
        rated = self.policy.rated_entries(*_touched(plan))
        return AuthorizedPlan(plan, self.policy.hash, self.guard.enforcement, reservation, rated)

    def confirm(self, authorized: AuthorizedPlan, access: Access) -> AuthorizedPlan:
        """Judge a call again that has waited since, by what its actor may do now.

        Raises as `authorize` does where it may no longer run.
        """
        plan = authorized.plan
        self._judge(replace(plan, call=replace(plan.call, actor=replace(plan.call.actor, access=access))))
        return replace(authorized, scope_hash=self.policy.hash)

    def _judge(self, plan: Plan) -> Grant:
        command = plan.command
        require_risk(plan.call.actor.access, command.risk, plan.call.tool.tool_name())
        if command.risk >= Risk.INTRUSIVE and not self.config.security.allow_intrusive:
            raise AccessError(f"{plan.call.tool.tool_name()}: this call is intrusive", code="intrusive_not_allowed")
        return self.policy.require(
            *_touched(plan),
            command.risk,
            addresses=plan.targets.count,
            ports=sum(ports.count for ports in command.ports),
            probes=_probes(plan),
            now=datetime.now(UTC),
        )

    async def _log(self, plan: Plan, entries: tuple[str, ...], reading: GuardReading | None) -> None:
        from mcp_server.sandbox.containment import containment

        call, estimate = plan.call, plan.command.estimate
        # A runner that a guard helper started elsewhere is outside of the ruleset.
        elsewhere = not plan.executor.allow_raw and self.guard.raw_sockets
        # It is as unprivileged there as one without raw sockets would be here.
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
            risk=str(plan.command.risk),
            addresses=plan.targets.count,
            estimate={"probes": estimate.probes, "seconds": round(estimate.seconds, 1)},
            reason=f"allowed by {', '.join(entries)}",
            scope_hash=self.policy.hash,
            enforcement=self.guard.enforcement.value,
            executor=plan.executor.name,
            sandbox={"tier": confined.tier.value, "files_confined": confined.files_confined},
            ruleset=reading.ruleset if reading and not elsewhere else None,
        )


async def log_not_started(audit: AuditLog, authorized: AuthorizedPlan, error: BaseException) -> None:
    """Put the end of an accepted call on the log that came to no run: no place, no store, or given up while waiting."""
    outcome, code = ending(error)
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


def ending(error: BaseException) -> tuple[Outcome, str]:
    """What a call came to that this error ended, and the code of that."""
    if isinstance(error, NetworkToolsError):
        return Outcome.REFUSED if isinstance(error, RefusedError) else Outcome.FAILED, error.code
    if isinstance(error, asyncio.CancelledError):
        return Outcome.CANCELLED, "cancelled"
    return Outcome.FAILED, "internal_error"


def _touched(plan: Plan) -> tuple[list[Network], list[str]]:
    """The pinned networks of a plan, and the names that were looked up for them."""
    items = plan.targets.items
    return [network for target in items for network in target.networks], [each.name for each in items if each.name]


def _probes(plan: Plan) -> int:
    """The packets a call may take; a tool that estimates none sends at least one to each address."""
    return max(plan.command.estimate.probes, plan.targets.count)
