"""Explaining the scope, the same in every interface: may this be touched, by which line, and what would a call cost.

It starts nothing and is no run; a name is looked up once, also where a plan is made for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mcp_server.errors import AccessError, ArgumentError, NetworkToolsError, NotFoundError, RefusedError
from mcp_server.model.access import FULL_ACCESS, Access, Permission
from mcp_server.model.run import Actor, Risk
from mcp_server.model.untrusted import sanitize
from mcp_server.pipeline.denials import who
from mcp_server.scope.permission import require_permission

if TYPE_CHECKING:
    from mcp_server.model.target import Evidence
    from mcp_server.pipeline.pipeline import Pipeline
    from mcp_server.pipeline.plan import Plan
    from mcp_server.scope.policy import ScopePolicy
    from mcp_server.scope.resolver import Resolver

NAME: Final = "scope"
TITLE: Final = "Scope"
DESCRIPTION: Final = (
    "Says whether targets may be touched, by which line of the owner's policy, up to which risk, rate and time "
    "window, and what a call would cost. Runs nothing. Without arguments: the policy."
)
ENTRIES_SHOWN: Final = 100
"""Networks of its own that a caller is shown."""
MAX_TARGETS: Final = 64
MAX_CHARS: Final = 1024

RiskName = Literal["passive", "probe", "scan", "intrusive"]
Text = Annotated[str, Field(max_length=MAX_CHARS)]
"""A target or the name of a tool, as it is asked about."""

OUTPUT_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "scope_hash": {"type": "string"},
        "targets": {"type": "array", "items": {"type": "object"}},
        "plan": {"type": "object", "description": "Cost: addresses, ports, probes, seconds"},
        "policy": {"type": "object"},
        "caller": {"type": "object", "description": "What you may do"},
    },
}


class ScopeQuery(BaseModel):
    """What is asked; strict, as the parameters of a tool are."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)

    target: Annotated[
        Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TARGETS)] | None,
        Field(description="Addresses, CIDRs or names."),
    ] = None
    risk: Annotated[RiskName | None, Field(description="Ask for this risk.")] = None
    tool: Annotated[Text | None, Field(description="Plan a call of this tool.")] = None
    parameters: Annotated[dict[str, Any] | None, Field(description="Its arguments besides target.")] = None

    @property
    def targets(self) -> list[str]:
        """The targets as a list, each once."""
        given = [] if self.target is None else [self.target] if isinstance(self.target, str) else self.target
        return list(dict.fromkeys(given))


Planner = Callable[["Resolver", str, Mapping[str, Any]], Awaitable["Plan"]]
"""Plans a call of a tool with arguments, by a resolver."""


def read_query(arguments: Mapping[str, Any]) -> ScopeQuery:
    """Read arguments strictly; raises ArgumentError naming the first wrong one."""
    try:
        query = ScopeQuery.model_validate(dict(arguments))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = sanitize(str(first["loc"][0]) if first["loc"] else "arguments", 64)
        unknown = first["type"] == "extra_forbidden"
        what = f"unknown parameter {name!r}" if unknown else f"parameter {name!r}: {first['msg']}"
        raise ArgumentError(
            f"{NAME}: {what}", hint=f"Known parameters: {', '.join(ScopeQuery.model_fields)}."
        ) from None
    if query.parameters is not None and query.tool is None:
        raise ArgumentError(f"{NAME}: parameters are those of a tool, and no tool is named", hint="Name it in tool.")
    if query.tool is not None and not query.targets:
        raise ArgumentError(f"{NAME}: a plan needs a target", hint="Give it in target.")
    return query


async def ask_pipeline(pipeline: Pipeline, query: ScopeQuery, actor: Actor) -> dict[str, Any]:
    """Answer a query from a server's pipeline, as `answer` does, for what this actor may do.

    Raises AccessError ``insufficient_scope`` for one that may not ask.
    """
    require_permission(actor.access, Permission.TOOLS_READ, "the scope is shown to callers that may read of the tools")

    async def plan(resolver: Resolver, tool: str, arguments: Mapping[str, Any]) -> Plan:
        return await pipeline.plan(tool, arguments, actor, resolver=resolver)

    if any(_is_name(target) for target in query.targets or ()):
        # What is asked of a name server leaves this host, and is on the log: as often as a tool may be called.
        await pipeline.admission_controller.count(NAME, actor)
    allow_intrusive, policy = pipeline.current.value.config.security.allow_intrusive, pipeline.policy_of(actor.access)
    logged = _Logged(pipeline, actor)
    body = await answer(query, policy, logged, plan, allow_intrusive=allow_intrusive, access=actor.access)
    return body if query.targets or actor.access == FULL_ACCESS else body | {"caller": _caller(actor)}


def _caller(actor: Actor) -> dict[str, Any]:
    """What a caller that is not the owner may do; None where only the policy and the server's limits bound it."""
    access = actor.access
    return {
        "name": actor.name,
        "scopes": sorted(permission.value for permission in access.permissions),
        "networks": None if access.networks is None else list(access.networks[:ENTRIES_SHOWN]),
        "tools": list(access.tools),
        "calls_per_minute": access.calls_per_minute,
        "packets_per_hour": access.packets_per_hour,
    }


def _is_name(target: str) -> bool:
    from mcp_server.scope.reading import read_target

    try:
        return read_target(target).name is not None
    except RefusedError:
        return False


class _Logged:
    """A resolver whose every question is on the decision log before it is asked: a name may carry data out."""

    def __init__(self, pipeline: Pipeline, actor: Actor) -> None:
        self._resolver, self._audit = pipeline.current.value.resolver, pipeline.audit
        self._fields = who(actor) | pipeline.terms()

    async def lookup(self, name: str) -> Evidence:
        """Log the question, then ask it; raises PlatformError where the log cannot be written."""
        await self._audit.append("lookup", name=name, **self._fields)
        return await self._resolver.lookup(name)


async def answer(
    query: ScopeQuery,
    policy: ScopePolicy,
    resolver: Resolver,
    plan: Planner | None,
    *,
    allow_intrusive: bool,
    access: Access = FULL_ACCESS,
) -> dict[str, Any]:
    """Answer a query. Keys: ``scope_hash``; ``targets`` (`scope.explain.explain` of each), or without any ``policy``
    (`scope.explain.describe`); and ``plan`` where a tool is named: ``tool``, ``allowed``, ``code``, ``hint``,
    ``reason``, ``risk``, ``addresses``, ``ports``, ``probes``, ``seconds``, ``packets_per_second``.

    Raises NotFoundError for an unknown tool, ArgumentError for parameters that are not the tool's.
    """
    from mcp_server.scope.explain import describe, explain
    from mcp_server.scope.resolver import CachingResolver

    now, once = datetime.now(UTC), CachingResolver(resolver)
    body: dict[str, Any] = {"scope_hash": policy.hash}
    if not query.targets:
        return body | {"policy": describe(policy, now)}
    risk = Risk[query.risk.upper()] if query.risk else Risk.PASSIVE
    body["targets"] = [
        await explain(target, policy, once, now=now, risk=risk, allow_intrusive=allow_intrusive, access=access)
        for target in query.targets
    ]
    if query.tool is not None and plan is not None:
        body["plan"] = await _plan(query, policy, once, plan, now=now, allow_intrusive=allow_intrusive)
    return body


async def _plan(
    query: ScopeQuery, policy: ScopePolicy, resolver: Resolver, plan: Planner, *, now: datetime, allow_intrusive: bool
) -> dict[str, Any]:
    from mcp_server.scope.explain import refused

    tool, targets = query.tool or "", query.targets
    target = targets[0] if len(targets) == 1 else targets
    body: dict[str, Any] = {"tool": sanitize(tool, 64), "allowed": False}
    try:
        planned = await plan(resolver, tool, {**(query.parameters or {}), "target": target})
        command, pinned = planned.command, planned.targets
        # Counted as the authorize step counts, which decides on a call.
        ports = sum(each.count for each in command.ports)
        probes = max(command.estimate.probes, pinned.count)
        body |= {
            "risk": str(command.risk),
            "addresses": pinned.count,
            "ports": ports,
            "probes": probes,
            "seconds": round(command.estimate.seconds, 1),
        }
        if command.risk >= Risk.INTRUSIVE and not allow_intrusive:
            raise AccessError(f"{tool}: this call is intrusive", code="intrusive_not_allowed")
        grant = policy.require(
            [network for item in pinned.items for network in item.networks],
            [item.name for item in pinned.items if item.name],
            command.risk,
            addresses=pinned.count,
            ports=ports,
            probes=probes,
            now=now,
        )
    except NetworkToolsError as error:
        # What is wrong with the question is an error; what is wrong with a target stands beside its explanation.
        if isinstance(error, NotFoundError | ArgumentError) and error.details.get("parameter") != "target":
            raise
        return body | refused(error)
    return body | {"allowed": True, "packets_per_second": grant.packets_per_second}


def compact(value: Any) -> Any:
    """Leave out what tells an agent nothing: None, empty texts, lists and mappings. False and 0 say something."""
    if isinstance(value, Mapping):
        pairs = ((key, compact(each)) for key, each in value.items())
        return {key: each for key, each in pairs if each not in (None, "", [], {})}
    return [compact(each) for each in value] if isinstance(value, (list, tuple)) else value


def lines(body: Mapping[str, Any]) -> list[str]:
    """An answer as lines of text, for people and for clients that read no structure."""
    body = compact(body)
    found = [_target_line(each) for each in body.get("targets", ())]
    if (planned := body.get("plan")) is not None:
        cost = ", ".join(
            f"{key} {planned[key]}" for key in ("risk", "addresses", "ports", "probes", "seconds") if key in planned
        )
        state = "would run" if planned["allowed"] else f"refused: {planned['reason']}. {planned['hint']}"
        found.append(f"plan {planned['tool']}: {state}{f' ({cost})' if cost else ''}")
    if (policy := body.get("policy")) is not None:
        found += _policy_lines(policy)
    if (caller := body.get("caller")) is not None:
        found += [f"your {key}: {', '.join(value)}" for key, value in caller.items() if isinstance(value, list)]
        found += [f"your {key}: {value}" for key, value in caller.items() if not isinstance(value, list)]
    return found


def _target_line(each: Mapping[str, Any]) -> str:
    text = f"{'allowed' if each['allowed'] else 'refused'}: {each['target']}: {each['reason']}"
    if not each["allowed"]:
        text += f". {each['hint']}"
    if "max_risk" in each:
        text += f"; up to {each['max_risk']}"
    if "packets_per_second" in each:
        text += f", {_number(each['packets_per_second'])} packets/s"
    numbers = [str(line["line"]) for line in each.get("lines", ()) if "line" in line]
    if numbers:
        text += f"; line {', '.join(numbers)}"
    for window in each.get("windows", ()):
        text += f"; window {window['name']} ({window['when']}) {_state(window)}"
    return text


def _number(value: float) -> str:
    """A cap as its owner wrote it: ``5000000``, and not the rounded ``5e+06``."""
    return str(int(value)) if value == int(value) else repr(value)


def _state(window: Mapping[str, Any]) -> str:
    return "is open" if window["open"] else f"opens {window.get('next_opening', 'never')}"


def _policy_lines(policy: Mapping[str, Any]) -> list[str]:
    found = [f"policy: {policy.get('name', policy['source'])}"]
    for line in policy.get("allow", ()):
        if line["max_risk"] == "intrusive" and not {"packets_per_second", "windows"} & line.keys():
            found.append(f"allow {line['entry']}")
            continue
        rate = f", {_number(line['packets_per_second'])} packets/s" if "packets_per_second" in line else ""
        when = f", in {', '.join(line['windows'])}" if "windows" in line else ""
        found.append(f"allow {line['entry']}: up to {line['max_risk']}{rate}{when}")
    if policy["allow_total"] > len(policy.get("allow", ())):
        found.append(f"and {policy['allow_total'] - len(policy['allow'])} more")
    if "exclude" in policy:
        rest = policy["exclude_total"] - len(policy["exclude"])
        found.append(f"exclude {', '.join(policy['exclude'])}{f' and {rest} more' if rest else ''}")
    found += [f"limit {key}: {_number(value)}" for key, value in policy.get("limits", {}).items()]
    found += [f"window {each['name']}: {each['when']}, {_state(each)}" for each in policy.get("windows", ())]
    if "resolvers" in policy:
        found.append(f"resolvers {', '.join(policy['resolvers'])}")
    return found
