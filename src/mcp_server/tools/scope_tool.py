"""scope: shows whether targets may be touched, by which policy entry, and the cost of a call. Runs no program."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from mcp_server.errors import ArgumentError, NetworkToolsError, NotFoundError, RefusedError
from mcp_server.model.access import FULL_ACCESS
from mcp_server.model.run import Actor, Risk
from mcp_server.model.untrusted import sanitize
from mcp_server.scope.reading import read_target
from mcp_server.tools.base import ServerTool
from mcp_server.tools.context import ToolAnswer, ToolContext
from mcp_server.tools.scope.text import describe_answer

NETWORKS_SHOWN: Final = 100
"""The maximum number of networks that are shown of an actor that is limited to networks."""
MAX_TARGETS: Final = 64
MAX_CHARS: Final = 1024

RiskName = Literal["passive", "probe", "scan", "intrusive"]
QueryText = Annotated[str, Field(max_length=MAX_CHARS)]
"""A target or the name of a tool in a query."""


class ScopeParameters(BaseModel):
    """The parameters of a query. Without any, the policy itself is described."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)

    target: Annotated[
        QueryText | Annotated[list[QueryText], Field(min_length=1, max_length=MAX_TARGETS)] | None,
        Field(description="Addresses, CIDRs or names."),
    ] = None
    risk: Annotated[RiskName | None, Field(description="Check the targets for this risk.")] = None
    tool: Annotated[QueryText | None, Field(description="Plan a call of this tool.")] = None
    parameters: Annotated[dict[str, Any] | None, Field(description="Its arguments, without target.")] = None

    @property
    def targets(self) -> list[str]:
        """The targets as a list, without repetitions."""
        given = [] if self.target is None else [self.target] if isinstance(self.target, str) else self.target
        return list(dict.fromkeys(given))


class ScopeTool(ServerTool):
    """Explains the scope policy to a caller."""

    title = "Scope"
    description = (
        "Says whether targets may be touched, by which policy entry, up to which risk, rate and time window, and what "
        "a call would cost. Runs nothing. Without arguments it shows the policy."
    )
    risk = Risk.PASSIVE
    parameters = ScopeParameters
    output_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "scope_hash": {"type": "string"},
            "targets": {"type": "array", "items": {"type": "object"}},
            "plan": {"type": "object", "description": "Cost: addresses, ports, probes, seconds"},
            "policy": {"type": "object"},
            "caller": {"type": "object", "description": "What you may do"},
        },
    }

    async def answer(self, parameters: ScopeParameters, context: ToolContext) -> ToolAnswer:
        """Answer a query.

        Keys of the body: ``scope_hash``. ``targets`` (`mcp_server.scope.explain.explain` of each), or if there are none
        ``policy`` (`mcp_server.scope.explain.describe`). ``caller`` if the policy is shown to an actor without full
        access. ``plan`` if a tool is named: ``tool``, ``allowed``, ``code``, ``hint``, ``reason``, ``risk``,
        ``addresses``, ``ports``, ``probes``, ``seconds``, ``packets_per_second``.

        Raises ArgumentError if the query is incomplete, NotFoundError if it names an unknown tool.
        """
        from mcp_server.scope.explain import describe, explain

        if parameters.parameters is not None and parameters.tool is None:
            raise ArgumentError("scope: parameters were sent without a tool.", hint="Set 'tool' to the name of a tool.")
        if parameters.tool is not None and not parameters.targets:
            raise ArgumentError("scope: a plan needs a target.", hint="Set 'target' to an address, CIDR or name.")
        if any(_is_name(target) for target in parameters.targets):
            # A lookup leaves this host and is logged, so it counts against the rate limits as a call does.
            await context.count_call()
        now, policy, access = datetime.now(UTC), context.policy, context.actor.access
        body: dict[str, Any] = {"scope_hash": policy.hash}
        if not parameters.targets:
            body["policy"] = describe(policy, now)
            if access != FULL_ACCESS:
                body["caller"] = _caller(context.actor)
        else:
            risk = Risk[parameters.risk.upper()] if parameters.risk else Risk.PASSIVE
            body["targets"] = [
                await explain(
                    target,
                    policy,
                    context.resolver,
                    now=now,
                    risk=risk,
                    allow_intrusive=context.allow_intrusive,
                    access=access,
                )
                for target in parameters.targets
            ]
        if parameters.tool is not None:
            body["plan"] = await _plan(parameters, parameters.tool, context)
        return ToolAnswer(body, "\n".join(describe_answer(body)))


def _is_name(target: str) -> bool:
    try:
        return read_target(target).name is not None
    except RefusedError:
        return False


def _caller(actor: Actor) -> dict[str, Any]:
    """Return the limits of an actor. A value of None means that only the policy or the server limits it."""
    access = actor.access
    return {
        "name": actor.name,
        "scopes": sorted(permission.value for permission in access.permissions),
        "networks": None if access.networks is None else list(access.networks[:NETWORKS_SHOWN]),
        "tools": list(access.tools),
        "calls_per_minute": access.calls_per_minute,
        "packets_per_hour": access.packets_per_hour,
    }


async def _plan(query: ScopeParameters, tool: str, context: ToolContext) -> dict[str, Any]:
    from mcp_server.scope.explain import refused

    target = query.targets[0] if len(query.targets) == 1 else query.targets
    body: dict[str, Any] = {"tool": sanitize(tool, 64), "allowed": False}
    try:
        assessment = await context.assess(tool, {**(query.parameters or {}), "target": target})
    except NetworkToolsError as error:
        # An error in the query is raised. An error in a target is shown beside the explanation of that target.
        if isinstance(error, NotFoundError | ArgumentError) and error.details.get("parameter") != "target":
            error.details.setdefault("parameter", "tool")
            raise
        return body | refused(error)
    body |= {
        "risk": str(assessment.risk),
        "addresses": assessment.addresses,
        "ports": assessment.ports,
        "probes": assessment.probes,
        "seconds": round(assessment.seconds, 1),
    }
    if assessment.refusal is not None:
        return body | refused(assessment.refusal)
    return body | {"allowed": True, "packets_per_second": assessment.packets_per_second}
