"""What a tool that runs no program is given, and what it returns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcp_server.errors import NetworkToolsError
from mcp_server.model.run import Actor, Risk

if TYPE_CHECKING:
    from mcp_server.scope.policy import ScopePolicy
    from mcp_server.scope.resolver import Resolver


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a call would cost, and whether it may run. ``refusal`` is None if it may.

    ``packets_per_second`` is the highest rate that the policy allows for it; None means no bound.
    """

    risk: Risk
    addresses: int
    ports: int
    probes: int
    seconds: float
    packets_per_second: float | None
    refusal: NetworkToolsError | None


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool that runs no program may use. It is made for one call, and for the actor of that call.

    ``policy`` is the scope policy within the actor's networks. ``resolver`` looks each name up once, and records every
    lookup on the audit log. ``count_call`` counts the call against the rate limits and raises BusyError if it exceeds
    one. ``assess`` plans a call of a tool with arguments, and decides whether it may run, without running it.
    """

    actor: Actor
    policy: ScopePolicy
    allow_intrusive: bool
    resolver: Resolver
    count_call: Callable[[], Awaitable[None]]
    assess: Callable[[str, Mapping[str, Any]], Awaitable[Assessment]]


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """The answer of a tool that runs no program: a JSON-ready structure, and the same content as text."""

    body: dict[str, Any]
    text: str
