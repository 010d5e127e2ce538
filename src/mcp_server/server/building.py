"""What a server is made of: tools, resolver, pins and caps, each from the configuration; made again by a reload."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mcp_server.limits.admission import Caps
from mcp_server.netguard import Enforcement
from mcp_server.sandbox.privilege import can_open_raw_sockets
from mcp_server.scope.resolver import SystemResolver
from mcp_server.tools.base import MCPBaseTool, ToolPolicy
from mcp_server.tools.registry import ToolRegistry, discover

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.identity.actors import Actors
    from mcp_server.netguard import Guard
    from mcp_server.scope.policy import ScopePolicy

logger = logging.getLogger(__name__)

WARNINGS: Final = 20
"""Networks outside the policy that are named before the rest is counted."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Import inside without garbage collection, and leave what is there to no later one.

    Modules and models live as long as the process. Looking through them again and again while they are being made
    takes an eighth of a cold start (docs/performance.md), and a full collection of them 40 ms of somebody's call.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def make_resolver(policy: ScopePolicy, guard: Guard) -> SystemResolver:
    """The resolver a policy names, or else this host's own; inside a guard that one cannot be asked, and is not."""
    if guard.enforcement is not Enforcement.ARGUMENT and not policy.resolvers:
        return SystemResolver([])
    return SystemResolver.of(policy)


def read_allowed_checksums(config: Config) -> Mapping[str, frozenset[str]]:
    """The hashes of scripts that the owner accepts besides the reviewed ones."""
    from mcp_server.sandbox import allowed_checksums

    return (
        allowed_checksums.read_allowed_checksums(config.security.allowed_checksums)
        if config.security.allowed_checksums
        else {}
    )


def read_actors(config: Config, policy: ScopePolicy) -> Actors | None:
    """The bounds of single actors, where the owner names a file of them; warns of those that ``policy`` does not hold.

    Raises ConfigError for a file that cannot be used.
    """
    path = config.auth.actors_file
    if path is None:
        return None
    from mcp_server.identity.actors_file import read_actors_file

    actors = read_actors_file(path)
    outside = list(actors.outside(policy))
    for name, entry in outside[:WARNINGS]:
        logger.warning("actors.outside_policy actor=%s entry=%s: it allows no more than the policy does", name, entry)
    if len(outside) > WARNINGS:
        logger.warning("actors.outside_policy more=%d", len(outside) - WARNINGS)
    return actors


def build_registry(config: Config, guard: Guard | None = None) -> ToolRegistry:
    """Discover the tools of a configuration, rebuilt from their base lists; without a guard raw sockets are off."""
    policy = ToolPolicy(
        allow_intrusive=config.security.allow_intrusive,
        raw_sockets=guard is not None and guard.raw_sockets and can_open_raw_sockets(),
    )
    return discover(
        policy,
        packages=config.tool.packages,
        include=config.tool.include_patterns,
        exclude=config.tool.exclude_patterns,
    )


def caps(config: Callable[[], Config], registry: Callable[[], ToolRegistry]) -> Caps:
    """How many calls may go at once, as the configuration and the tools of the moment say."""

    def per_tool(name: str) -> int:
        # One that waits may be of a tool that a reload has taken away since.
        tool = registry().offered.get(name)
        return config().effective.concurrency_for(tool.concurrency if isinstance(tool, MCPBaseTool) else None)

    return Caps(
        total=lambda: config().admission.max_running,
        per_tool=per_tool,
        per_actor=lambda: config().admission.per_actor,
        per_host=lambda: config().admission.per_host,
        max_waiting=lambda: config().admission.max_waiting,
    )
