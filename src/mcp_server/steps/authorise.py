"""Step 3, authorise: the owner's policy decides on the plan, and the decision is on the log before a spawn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcp_server.audit import AuditLog, printable
from mcp_server.config import Config
from mcp_server.errors import AccessError, NetworkToolsError, RefusedError
from mcp_server.model.run import Actor, Outcome, Risk
from mcp_server.scope.policy import ScopePolicy
from mcp_server.steps.call import Call
from mcp_server.steps.plan import Plan

ENFORCEMENT = "argument"
"""How the scope is enforced: addresses are checked before the spawn. Stands on every run and record."""


@dataclass(frozen=True, slots=True)
class Authorised:
    """A plan that may run, and the policy it was allowed under."""

    plan: Plan
    scope_hash: str
    enforcement: str = ENFORCEMENT


async def authorise(plan: Plan, config: Config, policy: ScopePolicy, audit: AuditLog) -> Authorised:
    """Check the compiled plan against the policy and log the acceptance; raises TargetError or AccessError."""
    for target in plan.targets.items:
        for network in target.networks:
            policy.check_network(network).require()
    if plan.invocation.risk >= Risk.INTRUSIVE and not config.security.allow_intrusive:
        raise AccessError(f"{plan.call.tool.tool_name()}: this call is intrusive", code="intrusive_not_allowed")
    call = plan.call
    await audit.append(
        "decision",
        decision="accept",
        run_id=call.id,
        correlation_id=call.correlation_id,
        **_who(call.actor),
        tool=call.tool.tool_name(),
        arguments=printable(call.parameters.model_dump(mode="json", exclude_defaults=True)),
        targets=[
            {"given": printable(target.given), "pinned": list(target.canonical())} for target in plan.targets.items
        ],
        argv=list(plan.argv),
        risk=str(plan.invocation.risk),
        addresses=plan.targets.count,
        estimate={"probes": plan.invocation.estimate.probes, "seconds": round(plan.invocation.estimate.seconds, 1)},
        scope_hash=policy.hash,
        enforcement=ENFORCEMENT,
    )
    return Authorised(plan, policy.hash)


async def log_refusal(
    audit: AuditLog,
    policy: ScopePolicy,
    actor: Actor,
    tool: str,
    arguments: Mapping[str, Any],
    error: NetworkToolsError,
) -> None:
    """Put a refused call on the log with its code and reason, arguments as given but bounded and escaped."""
    await audit.append(
        "decision",
        decision="deny",
        **_who(actor),
        tool=printable(tool, 64),
        arguments=printable(dict(arguments), 256),
        code=error.code,
        reason=printable(error.message, 512),
        scope_hash=policy.hash,
        enforcement=ENFORCEMENT,
    )


async def log_not_started(audit: AuditLog, call: Call, error: BaseException) -> None:
    """Put the end of an accepted call on the log that came to no run: no place, no store, or given up while waiting."""
    if isinstance(error, NetworkToolsError):
        outcome, code = Outcome.REFUSED if isinstance(error, RefusedError) else Outcome.FAILED, error.code
    elif isinstance(error, asyncio.CancelledError):
        outcome, code = Outcome.CANCELLED, "cancelled"
    else:
        outcome, code = Outcome.FAILED, "internal_error"
    await audit.append("end", run_id=call.id, correlation_id=call.correlation_id, outcome=outcome.value, code=code)


def _who(actor: Actor) -> dict[str, str]:
    return {"actor": actor.name, "door": actor.door, "client": str(printable(actor.client, 128))}
