"""The context that a tool without a program gets, and the answer that it returns."""

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
    """The expected cost of a call, and whether it may run. ``refusal`` is None if it may run.

    ``packets_per_second`` is the highest rate that the policy allows for the call; None means no limit.
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
    """The services that a tool without a program may use. One context is made for one call and its actor.

    ``policy`` is the scope policy within the actor's networks. ``resolver`` looks up each name once, and writes every
    lookup to the audit log. ``count_call`` counts the call against the rate limits, and raises BusyError if the call
    exceeds a limit. ``assess`` plans a call of a tool with arguments, and decides whether it may run, without running
    it.
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
